"""Reads a file into the request that carries its event, and delivers it."""

import base64
import hashlib
import json
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import quote

import requests
from requests.exceptions import InvalidHeader, InvalidSchema, InvalidURL, MissingSchema

from modelarts_cleanup import envelope, events, strict_json
from modelarts_cleanup.adapters.direct import DirectSession
from modelarts_cleanup.local.screen import CommandError

SOURCE: Final = "//modelarts-cleanup/send"
STRUCTURED: Final = "application/cloudevents+json"
# The function answers within 60 s.
SECONDS: Final = 75.0
_VISIBLE: Final = "!#$&'()*+,/:;=?@[]-._~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request that carries an event; `headers` have lower-case names."""

    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    method: str = "POST"

    def as_read(self) -> envelope.Request:
        """Give the request as the function would read it."""
        return envelope.Request(
            method=self.method,
            headers=self.headers,
            body=self.body,
            digest=hashlib.sha256(self.body).hexdigest(),
            complete=True,
        )

    def event_id(self) -> str | None:
        """Tell the id of the event, as the function will read it."""
        return envelope.read(self.as_read()).id


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back: the status, and the body where it is a JSON object."""

    status: int
    body: Mapping[str, object]

    @property
    def outcome(self) -> str:
        """How it ended, in the words of whoever answered."""
        return str(self.body.get("outcome", f"answer {self.status}"))

    @property
    def reason(self) -> str | None:
        """Why it ended so, if there is a reason."""
        reason = self.body.get("reason")
        return None if reason is None else str(reason)


def read_bytes(file: str) -> bytes:
    """Read a file, or standard input for `-`. Raises `CommandError`."""
    if file == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError for a path that no file can have
        raise CommandError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def delivery(text: bytes, *, event_id: str | None = None, source: str | None = None) -> Delivery:
    """
    Make the request that carries what a file holds.

    A sample of a request (`headers` and `body`) goes as it is, a structured CloudEvent and a Pub/Sub push as what
    they are. Anything else is taken for the data alone, and is given attributes; `event_id` and `source` are those,
    and stand in for a structured CloudEvent's own.
    """
    given = _object(text)
    if isinstance(headers := given.get("headers"), dict):
        lower = {name.lower(): str(value) for name, value in headers.items()}
        return Delivery(headers=lower, body=_sampled_body(given), method=str(given.get("method", "POST")))
    if "specversion" in given:
        named = {"id": event_id, "source": source}
        changed = {name: value for name, value in named.items() if value is not None}
        body = json.dumps({**given, **changed}, ensure_ascii=False).encode() if changed else text
        return Delivery(headers={"content-type": STRUCTURED}, body=body)
    if "message" in given and "project_id" not in given:
        return Delivery(headers={"content-type": "application/json"}, body=text)
    return binary(text, event_id=event_id or str(uuid.uuid4()), source=source or SOURCE)


def binary(data: bytes, *, event_id: str, source: str) -> Delivery:
    """Make the request that carries the data of an expiry event in binary mode."""
    headers = {
        "ce-id": quote(event_id, safe=_VISIBLE),
        "ce-source": quote(source, safe=_VISIBLE),
        "ce-type": events.EXPIRED,
        "ce-specversion": "1.0",
        "content-type": "application/json",
    }
    return Delivery(headers=headers, body=data)


def deliver(sent: Delivery, url: str) -> Answer:
    """Post a request and read the answer, whatever it is. Raises `CommandError` if there is none."""
    try:
        with DirectSession() as session:
            answer = session.request(
                sent.method, url, data=sent.body, headers=dict(sent.headers), timeout=SECONDS, allow_redirects=False
            )
            content = answer.content
    except (MissingSchema, InvalidSchema, InvalidURL):
        raise CommandError(f"{url or 'an empty text'} is no http(s) URL") from None
    except (InvalidHeader, UnicodeError):
        raise CommandError("this request has a header that HTTP cannot carry") from None
    except (requests.RequestException, OSError, ValueError) as error:
        raise CommandError(f"no answer from {url}: {type(error).__name__}") from None
    return Answer(status=answer.status_code, body=_object(content))


def _sampled_body(given: Mapping[str, object]) -> bytes:
    if "body_base64" in given:
        try:
            return base64.b64decode(str(given["body_base64"]), validate=True)
        except ValueError:
            raise CommandError("this sample of a request has a body_base64 that is not base64") from None
    body = given.get("body", "")
    return body.encode() if isinstance(body, str) else json.dumps(body, ensure_ascii=False).encode()


def _object(text: bytes) -> Mapping[str, object]:
    try:
        given = strict_json.read(text)
    except ValueError:
        return {}
    return given if isinstance(given, dict) else {}
