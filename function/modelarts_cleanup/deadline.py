"""Ends a delivery in time, whatever hangs in it."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from uuid import uuid4

from modelarts_cleanup import patience
from modelarts_cleanup.cleanup import World, cleanup
from modelarts_cleanup.ledger import Told
from modelarts_cleanup.model import Event, RetryLater, RetryReason

# A delivery works on ModelArts for 40 s, then has some left to record and tell, and answers
# within 55 s whatever hangs.
WORKING = timedelta(seconds=40)
ANSWERING = timedelta(seconds=55)
GIVING_BACK = timedelta(seconds=2)

_T = TypeVar("_T")
_WAITED_FOR: Mapping[str, RetryReason] = {
    "modelarts_cleanup.adapters.modelarts": "modelarts_unavailable",
    "modelarts_cleanup.adapters.secrets": "credentials_unavailable",
    "modelarts_cleanup.adapters.secret_manager": "credentials_unavailable",
    "modelarts_cleanup.adapters.sinks": "sink_unavailable",
    "modelarts_cleanup.adapters.sink_pubsub": "sink_unavailable",
    "modelarts_cleanup.adapters.ledger_sqlite": "ledger_unavailable",
    "modelarts_cleanup.adapters.ledger_firestore": "ledger_unavailable",
    "modelarts_cleanup.ledger": "ledger_unavailable",  # whose adapter is still being imported
}


class TimeIsUp(RetryLater):
    """Something hung, and was left behind."""


class DeliveryClock:
    """The time of one delivery."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def now(self) -> datetime:
        """Tell the present."""
        return datetime.now(UTC)

    def passed(self) -> timedelta:
        """Tell how long the delivery has taken so far."""
        return timedelta(seconds=time.monotonic() - self._started)

    def left(self) -> timedelta:
        """Tell how long the delivery may still work on ModelArts."""
        return WORKING - self.passed()

    def sleep(self, span: timedelta) -> None:
        """Wait."""
        time.sleep(span.total_seconds())


def told_within(span: timedelta, event: Event, world: World, clock: DeliveryClock) -> Told:
    """
    Run the use case for an event, at most until `span` after its delivery began.

    What hangs is left behind without its lease: whatever it still wants to write, the ledger
    refuses. Raises `RetryLater` as `cleanup` does, and when time is up.
    """
    holder = uuid4().hex

    def give_back() -> None:
        with suppress(RetryLater):
            world.ledger.release(event, holder=holder, now=clock.now())

    try:
        return within(span, lambda: cleanup(event, holder=holder, world=world, clock=clock), clock)
    except TimeIsUp:
        with suppress(TimeIsUp):  # the ledger may be what hangs
            within(clock.passed() + GIVING_BACK, give_back, clock)
        raise


def within(span: timedelta, work: Callable[[], _T], clock: DeliveryClock) -> _T:
    """
    Run some work in a thread of its own, as nothing else ends a wait that has no end of its own.

    Raises what the work raises, and `TimeIsUp`, with the reason of what it waits for, once `span`
    has passed since the delivery began.
    """
    try:
        return patience.within((span - clock.passed()).total_seconds(), work)
    except patience.StillWaitingError as error:
        reason = _waited_for(error.thread)
        raise TimeIsUp(reason, f"no end after {clock.passed().total_seconds():.0f} s") from None


def _waited_for(thread: threading.Thread) -> RetryReason:
    """Say what a thread hangs in, by the innermost of our rooms on its stack that waits."""
    frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001 - the documented way to see another stack
    while frame:
        room = str(frame.f_globals.get("__name__"))
        if room in _WAITED_FOR:
            return _WAITED_FOR[room]
        frame = frame.f_back
    return "internal_error"
