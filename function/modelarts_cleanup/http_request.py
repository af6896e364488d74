"""Takes out of an HTTP request what an event can be in, however large the request is."""

import hashlib
import io
import re
from collections.abc import Mapping

import flask

from modelarts_cleanup.envelope import Request

_CHUNK = 64 * 1024
_TRACE = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{32})(?:[-/;].*)?")


def read(request: flask.Request, *, largest: int) -> Request:
    """Read a request to its end; of a body larger than `largest` bytes only the head and the hash are kept."""
    digest = hashlib.sha256()
    kept = bytearray()
    size = 0
    try:
        while chunk := request.stream.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if len(kept) <= largest:
                kept += chunk
    finally:
        # The framework reads what it takes for the rest of the body, and would fail at it as we did.
        request.stream = io.BytesIO()
    return Request(
        method=request.method,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=bytes(kept),
        digest=digest.hexdigest(),
        complete=size <= largest,
    )


def trace(headers: Mapping[str, str], *, project: str | None) -> dict[str, str]:
    """
    Find the trace that a request carries, as a field of a log line; empty without one.

    https://cloud.google.com/trace/docs/trace-context
    """
    found = _TRACE.fullmatch(headers.get("x-cloud-trace-context") or headers.get("traceparent") or "")
    if not found:
        return {}
    return {"logging.googleapis.com/trace": f"projects/{project}/traces/{found[1]}" if project else found[1]}
