"""Ends a wait that has no end of its own."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")


class StillWaitingError(Exception):
    """Some work did not end in time; `thread` is still at it, and is left behind."""

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__("no end in time")
        self.thread = thread


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """
    Run some work in a thread of its own.

    Raises what the work raises, and `StillWaitingError` once `seconds` have passed.
    """
    ended: queue.SimpleQueue[tuple[_T] | BaseException] = queue.SimpleQueue()

    def run() -> None:
        try:
            ended.put((work(),))
        except BaseException as error:  # noqa: BLE001 - it is raised again where it is waited for
            ended.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        found = ended.get(timeout=max(seconds, 0.0))
    except queue.Empty:
        raise StillWaitingError(thread) from None
    if isinstance(found, BaseException):
        raise found
    return found[0]
