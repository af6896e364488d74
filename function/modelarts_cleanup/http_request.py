"""Takes out of an HTTP request what an event can be in, however large the request is."""

import hashlib
import io
import re
from collections.abc import Mapping
from functools import partial
from typing import IO

import flask
from werkzeug.exceptions import HTTPException

from modelarts_cleanup import patience
from modelarts_cleanup.envelope import Request
from modelarts_cleanup.model import RetryLater

SECONDS = 15.0
_CHUNK = 64 * 1024
_TRACE = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:[-/;].*)?")


def read(request: flask.Request, *, largest: int, seconds: float = SECONDS) -> Request:
    """
    Read a request to its end; of a body larger than `largest` bytes only the head and the hash are kept.

    Raises `RetryLater` with `request_cut_off` for a body that is shorter than it says, breaks, or does not end.
    """
    stream = request.stream
    # The framework reads what it takes for the rest of the body, and would fail at it, or hang, as we may.
    request.stream = io.BytesIO()
    try:
        # A sender may stop in the middle and keep the connection.
        body, digest, size = patience.within(seconds, partial(_read_body, stream, largest))
    except patience.StillWaitingError:
        raise RetryLater("request_cut_off", f"the request did not end in {seconds:.0f} s") from None
    except (OSError, HTTPException) as error:  # what the server and the framework make of a body that breaks
        raise RetryLater("request_cut_off", f"the request could not be read ({type(error).__name__})") from None
    if size < (request.content_length or 0):
        # Not the event but a part of it: judged by that, it would be rejected for ever.
        raise RetryLater("request_cut_off", "the request was cut off before its end")
    return Request(
        method=request.method,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=body,
        digest=digest,
        complete=size <= largest,
    )


def _read_body(stream: IO[bytes], largest: int) -> tuple[bytes, str, int]:
    digest = hashlib.sha256()
    kept = bytearray()
    size = 0
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
        size += len(chunk)
        if len(kept) <= largest:
            kept += chunk
    return bytes(kept), digest.hexdigest(), size


def trace(headers: Mapping[str, str], *, project: str | None) -> dict[str, str]:
    """
    Find the trace that a request carries, as a field of a log line; empty without one.

    https://cloud.google.com/trace/docs/trace-context
    """
    found = _TRACE.fullmatch(headers.get("x-cloud-trace-context") or headers.get("traceparent") or "")
    if not found:
        return {}
    return {"logging.googleapis.com/trace": f"projects/{project}/traces/{found[1]}" if project else found[1]}
