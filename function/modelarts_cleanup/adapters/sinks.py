"""Puts an event where a URL says: a line in a file, an HTTP request, a Pub/Sub message."""

import errno
import fcntl
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from urllib.parse import quote

from modelarts_cleanup import events, patience
from modelarts_cleanup.adapters.direct import DirectSession
from modelarts_cleanup.model import CompletionEvent, RetryLater

# Shorter than what is left of a delivery when the work on ModelArts must have ended.
SECONDS = 8.0


class EventSink(ABC):
    """Where events go. An adapter says how one is put there; what is put there is the same for all."""

    @abstractmethod
    def put(self, attributes: Mapping[str, str], data: str) -> None:
        """
        Put an event there and wait until it is stored.

        `attributes` are those of CloudEvents, without a prefix; `data` is JSON text. Raises
        `RetryLater` with `sink_unavailable`.
        """

    def publish(self, completion: CompletionEvent) -> None:
        """Put a completion event there. Raises as `put`."""
        self.put(events.attributes(completion), completion.data)


class FileSink(EventSink):
    """Appends one structured CloudEvent a line; many processes may share the file."""

    def __init__(self, path: str, *, seconds: float = SECONDS) -> None:
        self._path = Path(path)
        self._seconds = seconds

    def put(self, attributes: Mapping[str, str], data: str) -> None:
        """Append the event and wait until it is on disk."""
        line = events.structured(attributes, data).encode() + b"\n"
        try:
            with self._path.open("a+b", buffering=0) as file:
                _lock(file.fileno(), self._seconds)
                _append(file.fileno(), line)
        except OSError as error:
            raise RetryLater("sink_unavailable", f"the event could not be appended: {error.strerror}") from None


class HttpSink(EventSink):
    """Posts a CloudEvent in binary mode."""

    def __init__(self, url: str, *, seconds: float = SECONDS) -> None:
        self._url = url
        self._seconds = seconds
        self._session = DirectSession()

    def put(self, attributes: Mapping[str, str], data: str) -> None:
        """Post the event; only a 2xx means that it is stored."""
        headers = {f"ce-{name}": quote(value, safe="!#$&'()*+,/:;=?@[]-._~") for name, value in attributes.items()}
        headers["Content-Type"] = "application/json"
        try:
            # A server may take its time over every byte: what is bounded is the whole of it.
            status = patience.within(self._seconds, partial(self._post, headers, data.encode()))
        except patience.StillWaitingError:
            raise RetryLater("sink_unavailable", f"no answer from the sink in {self._seconds:.0f} s") from None
        except (OSError, ValueError) as error:  # what requests raises is one of them
            raise RetryLater("sink_unavailable", f"no answer from the sink: {type(error).__name__}") from None
        if not 200 <= status < 300:
            raise RetryLater("sink_unavailable", f"the sink answered {status}")

    def _post(self, headers: Mapping[str, str], body: bytes) -> int:
        with self._session.post(
            self._url,
            data=body,
            headers=headers,
            timeout=(self._seconds / 2, self._seconds),
            allow_redirects=False,
            stream=True,  # the body of the answer says nothing to us
        ) as response:
            return response.status_code


def _lock(descriptor: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.002)
        else:
            return


def _append(descriptor: int, line: bytes) -> None:
    size = end = os.fstat(descriptor).st_size
    # What a killed writer left unfinished was never told to be stored: cut it off.
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != size:
        os.ftruncate(descriptor, end)
    if os.write(descriptor, line) != len(line):
        os.ftruncate(descriptor, end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(descriptor)
