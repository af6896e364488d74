"""The ledger's steps one by one: how long each takes, and what Firestore would charge for them."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TypeVar
from unittest.mock import patch

from fakes import an_event
from modelarts_cleanup import events
from modelarts_cleanup.adapters import ledger_firestore
from modelarts_cleanup.entries import Deletion, Store
from modelarts_cleanup.ledger import Claim, Ledger
from modelarts_cleanup.model import Accepted, Cluster, ClusterRef, Deleted

_T = TypeVar("_T")


def steps(store: Store, number: int, *, took: Callable[[str, float], object]) -> None:
    """Take one expiry through all steps of the ledger, and tell the ms that each took."""

    def timed(name: str, work: Callable[[], _T]) -> _T:
        began = time.perf_counter()
        found = work()
        took(name, (time.perf_counter() - began) * 1000)
        return found

    ledger, now = Ledger(store), datetime.now(UTC)
    ref = ClusterRef("cn-southwest-2", "p1", f"ledger-{number}")
    event, cluster = an_event(f"ledger-{number}", ref=ref, expires_at=now), Cluster(ref=ref, type="HPS", name="ci-a")
    claim = timed("claim", lambda: ledger.claim(event, holder="bench", now=now))
    assert isinstance(claim, Claim)
    sent = timed("DELETE to be sent", lambda: ledger.delete_sent(claim, cluster, limit=999_999, now=now))
    assert isinstance(sent, Deletion)
    timed("DELETE answered", lambda: ledger.delete_answered(claim, Accepted(), now=now))
    outcome = Deleted(detail="gone", cluster=cluster)
    completion = events.completion_event(
        event, outcome, deliveries=1, received_at=now, region="cn-southwest-2", now=now
    )
    timed("outcome recorded", lambda: ledger.record(claim, outcome, completion, now=now))
    timed("published, lease given back", lambda: ledger.published(claim, now=now))
    timed("a redelivery's claim", lambda: ledger.claim(event, holder="again", now=now))


def timings(store: Store, count: int, *, first: int = 0) -> Mapping[str, list[float]]:
    """Give the ms of each step, over many expiries."""
    found: dict[str, list[float]] = {}
    for number in range(first, first + count):
        steps(store, number, took=lambda name, ms: found.setdefault(name, []).append(ms))
    return found


@contextmanager
def charged() -> Iterator[Counter[str]]:
    """Count the documents that are read and written, and the calls, while the block runs."""
    counted: Counter[str] = Counter()
    read, committed = ledger_firestore._read, ledger_firestore.FirestoreStore._committed  # noqa: SLF001 - counted here

    def counting_read(client: object, keys: Sequence[str], until: float) -> object:
        counted.update(reads=len(keys), calls=1)
        return read(client, keys, until)  # type: ignore[arg-type] # handed on as it came

    def counting_committed(
        self: object, client: object, known: object, changed: Mapping[str, object], until: float
    ) -> bool:
        counted.update(writes=len(changed), calls=1)
        return committed(self, client, known, changed, until)  # type: ignore[arg-type] # as above

    with (
        patch.object(ledger_firestore, "_read", counting_read),
        patch.object(ledger_firestore.FirestoreStore, "_committed", counting_committed),
    ):
        yield counted


def charges(store: Store, *, number: int) -> Counter[str]:
    """Count what one expiry reads and writes in Firestore until it is told, without the redelivery."""
    whole: Counter[str] = Counter()
    with charged() as counted:
        steps(store, number, took=lambda name, _ms: whole.update(counted) if name.startswith("published") else None)
    return whole


def charges_again(store: Store, *, number: int) -> Counter[str]:
    """Count what a further delivery reads and writes that finds the cluster still there, and gives the event back."""
    ledger, now = Ledger(store), datetime.now(UTC)
    event = an_event(f"ledger-{number}", ref=ClusterRef("cn-southwest-2", "p1", f"ledger-{number}"), expires_at=now)
    ledger.claim(event, holder="first", now=now)
    ledger.release(event, holder="first", now=now)
    with charged() as counted:
        ledger.claim(event, holder="second", now=now)
        ledger.release(event, holder="second", now=now)
    return counted
