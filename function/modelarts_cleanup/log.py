"""Writes one JSON line per request to stdout, as Cloud Logging reads it."""

import json
import sys
from collections.abc import Mapping
from contextlib import suppress

# By reason, else by outcome; https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry#logseverity
_SEVERITY = {
    "failed": "ERROR",
    "rejected": "WARNING",
    "refused_request": "WARNING",
    "retry": "WARNING",
    "in_progress": "INFO",
    "still_deleting": "INFO",
    "expires_soon": "INFO",
    "credentials_unavailable": "ERROR",
    "credentials_refused": "ERROR",
    "misconfigured_endpoint": "ERROR",
    "misconfigured": "ERROR",
    "internal_error": "CRITICAL",
}


def write(outcome: str, reason: str | None, detail: str, line: Mapping[str, object]) -> None:
    """Write the line of a request; values of `line` that are None are left out."""
    written = {
        "severity": _SEVERITY.get(reason or "", _SEVERITY.get(outcome, "INFO")),
        "message": f"{outcome}{f' ({reason})' if reason else ''}: {detail}",
        "outcome": outcome,
        "reason": reason,
        **{name: value for name, value in line.items() if value is not None},
    }
    # One write: lines of requests that end at once must not mix.
    with suppress(OSError):  # an event is not lost for a line that cannot be written
        sys.stdout.write(json.dumps(written) + "\n")
        sys.stdout.flush()
