"""How far it goes, on paper: what so many expiries a minute ask of each part."""

import math
from dataclasses import dataclass

from cost import Taken, deliveries
from modelarts_cleanup.cleanup import LOOKING_FOR, PAUSES

# As infra/function.tf has it.
CONCURRENCY = 8
# The calls before the looks that wait for the end: a look, the members, the DELETE.
CALLS_BEFORE = 3
# What the calls of one event take, with ModelArts and Google at the other end of real networks: an assumption.
EVENT_SECONDS = 1.5
# What the benchmark found: CPU of a worker with Google's parts, and documents of Firestore.
MEASURED = Taken(cpu_seconds=0.025, reads=5, writes=11)


@dataclass(frozen=True)
class Reach:
    """What a rate of expiries asks for; all but the first two are a second."""

    at_work: float
    instances: int
    deliveries: float
    modelarts_calls: float
    documents_written: float


def looks(seconds: float) -> int:
    """Count the looks at a cluster within so many seconds of one delivery."""
    count, at, pauses, pause = 0, 0.0, iter(PAUSES), 0.0
    while True:
        pause = next(pauses, pause)
        at += pause
        if at > seconds:
            return max(count, 1)
        count += 1


def reach(per_minute: float, deletion_seconds: float, taken: Taken) -> Reach:
    """Work out what is asked for, if a cluster is gone `deletion_seconds` after its DELETE."""
    came = deliveries(deletion_seconds, EVENT_SECONDS)
    rate = per_minute / 60
    whole, looked = divmod(came.busy_seconds - came.count * EVENT_SECONDS, LOOKING_FOR.total_seconds())
    calls = CALLS_BEFORE + whole * looks(LOOKING_FOR.total_seconds()) + looks(looked) + (came.count - 1)
    return Reach(
        at_work=rate * came.busy_seconds,
        instances=math.ceil(max(rate * came.busy_seconds / CONCURRENCY, rate * came.count * taken.cpu_seconds)),
        deliveries=rate * came.count,
        modelarts_calls=rate * calls,
        documents_written=rate * (taken.writes + (came.count - 1) * taken.further_writes),
    )


def table(taken: Taken) -> str:
    """Show it for a few rates, and clusters that take at once, five minutes or a quarter of an hour to be deleted."""
    names = (
        "expiries a minute",
        "gone after",
        "deliveries at once",
        "instances",
        "ModelArts calls/s",
        "documents written/s",
    )
    lines = [f"| {' | '.join(names)} |", "|---|---|---|---|---|---|"]
    for per_minute in (1, 100, 10_000):
        for minutes in (0, 5, 15):
            found = reach(per_minute, minutes * 60, taken)
            lines.append(
                f"| {per_minute:,} | {f'{minutes} min' if minutes else 'at once'} | {_rounded(found.at_work)} "
                f"| {found.instances:,} | {_rounded(found.modelarts_calls)} | {_rounded(found.documents_written)} |"
            )
    return "\n".join(lines) + "\n"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
