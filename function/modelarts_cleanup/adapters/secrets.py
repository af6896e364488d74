"""Reads a secret by its URL, and keeps it in memory for five minutes at most."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from modelarts_cleanup.model import RetryLater

# A value older than FRESH is read again; where that fails, the last good one serves until KEPT.
FRESH_SECONDS = 240.0
KEPT_SECONDS = 300.0
LARGEST = 64 * 1024

_T = TypeVar("_T")


class Secret(Generic[_T]):
    """
    One secret, read when it is first needed; safe to use from many threads.

    `name` stands for it in every complaint. `fetch` gives its bytes and raises `OSError` that shows
    nothing of them; `read` turns them into a value and raises `ValueError` that shows nothing either.
    """

    def __init__(
        self,
        name: str,
        *,
        fetch: Callable[[], bytes],
        read: Callable[[bytes], _T],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self.fetch = fetch
        self._read = read
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._kept: tuple[float, _T] | None = None
        self._failed: tuple[float, RetryLater] | None = None

    def get(self) -> _T:
        """Give the value. Raises `RetryLater` with `credentials_unavailable`."""
        asked_at = self._monotonic()
        with self._lock:
            age = self._monotonic() - self._kept[0] if self._kept else KEPT_SECONDS
            if self._kept and age < FRESH_SECONDS:
                return self._kept[1]
            try:
                return self._fetched(asked_at)
            except RetryLater:
                if self._kept and age < KEPT_SECONDS:
                    return self._kept[1]
                self._kept = None
                raise

    def renewed(self, stale: _T) -> _T:
        """Read the value again, unless somebody else just has. Raises as `get`."""
        asked_at = self._monotonic()
        with self._lock:
            if self._kept and self._kept[1] != stale:
                return self._kept[1]
            return self._fetched(asked_at)

    def _fetched(self, asked_at: float) -> _T:
        if self._failed and self._failed[0] > asked_at:
            # It failed while this one waited: trying again for each who waits would take them turn by turn.
            raise RetryLater(self._failed[1].reason, self._failed[1].detail) from None
        try:
            value = self._read(self.fetch())
        except (ValueError, OSError) as error:
            failure = RetryLater("credentials_unavailable", f"the secret {self._name} {error}")
            self._failed = (self._monotonic(), failure)
            raise failure from None
        self._kept = (self._monotonic(), value)
        return value


def file_bytes(path: str) -> bytes:
    """Read a secret that stands in a file. Raises `OSError` or `ValueError`."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as error:
        raise OSError(f"cannot be read: {error.strerror}") from None
    if len(text) > LARGEST:
        raise ValueError(f"is larger than {LARGEST} bytes")
    return text
