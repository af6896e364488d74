"""What an expiry costs on Google Cloud, on paper: what it takes, times the rates of a price list."""

from dataclasses import dataclass

from modelarts_cleanup.cleanup import LOOKING_FOR

# Pub/Sub's pauses between deliveries (infra/trigger.tf).
FIRST_PAUSE = 10.0
LONGEST_PAUSE = 600.0
KIB_PER_GIB = 1024**2


@dataclass(frozen=True)
class Rates:
    """
    USD. The defaults are list prices of us-central1 without any free tier.

    https://cloud.google.com/run/pricing (billed by requests), https://cloud.google.com/firestore/pricing,
    https://cloud.google.com/pubsub/pricing, https://cloud.google.com/secret-manager/pricing
    """

    vcpu_second: float = 0.000024
    gib_second: float = 0.0000025
    request: float = 0.40 / 1_000_000
    document_read: float = 0.03 / 100_000
    document_write: float = 0.09 / 100_000
    document_delete: float = 0.01 / 100_000
    pubsub_gib: float = 40 / 1024
    secret_access: float = 0.03 / 10_000

    def changed(self, given: list[str]) -> "Rates":
        """Take rates as `name=USD`. Raises `ValueError`, `TypeError`."""
        pairs = (pair.split("=", 1) for pair in given)
        return Rates(**{**vars(self), **{name: float(value) for name, value in pairs}})


@dataclass(frozen=True)
class Deliveries:
    """How one expiry comes and comes again until its cluster is gone: how often, and how long it is worked on."""

    count: int
    busy_seconds: float


def deliveries(deletion_seconds: float, event_seconds: float) -> Deliveries:
    """Follow one expiry whose cluster takes a while to be deleted; an event takes `event_seconds` besides looking."""
    at, busy, count, pause = 0.0, 0.0, 0, FIRST_PAUSE
    while True:
        count += 1
        looked = min(max(deletion_seconds - at, 0.0), LOOKING_FOR.total_seconds())
        busy += event_seconds + looked
        at += event_seconds + looked
        if at >= deletion_seconds:
            return Deliveries(count, busy)
        at += pause
        pause = min(2 * pause, LONGEST_PAUSE)


@dataclass(frozen=True)
class Taken:
    """What one expiry takes, measured; documents of the first delivery, and of each further one."""

    cpu_seconds: float
    reads: int
    writes: int
    further_reads: int = 3
    further_writes: int = 3
    documents: int = 3
    message_kib: float = 4.0


def per_thousand(taken: Taken, came: Deliveries, rates: Rates, *, vcpus: float, gib: float, at_once: float) -> float:
    """
    Give the USD of 1,000 expiries, of which `at_once` share an instance of `vcpus` and `gib`.

    An instance is charged while any delivery is at work; shared, at least by its CPU's own work.
    """
    instance_seconds = max(came.busy_seconds / at_once, came.count * taken.cpu_seconds / vcpus)
    further = came.count - 1
    return 1000 * (
        instance_seconds * (vcpus * rates.vcpu_second + gib * rates.gib_second)
        + came.count * rates.request
        + (taken.reads + further * taken.further_reads) * rates.document_read
        + (taken.writes + further * taken.further_writes) * rates.document_write
        + taken.documents * rates.document_delete
        # Each message is charged where it is published and where it is delivered, 1 KiB at least.
        + (1 + came.count + 2) * taken.message_kib / KIB_PER_GIB * rates.pubsub_gib
        + rates.secret_access
    )
