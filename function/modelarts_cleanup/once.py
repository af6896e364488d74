"""Builds a thing when it is first needed."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Once(Generic[_T]):
    """A thing that is built when it is first asked for; safe to use from many threads."""

    def __init__(self, build: Callable[[], _T]) -> None:
        self._build = build
        self._lock = threading.Lock()
        self._built: tuple[_T] | None = None

    def get(self) -> _T:
        """Give the thing. Raises what building it raises; then the next one who asks tries again."""
        with self._lock:
            if self._built is None:
                self._built = (self._build(),)
            return self._built[0]
