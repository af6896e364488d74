"""
Finds the event in an HTTP request: a CloudEvent in binary or structured mode, or a Pub/Sub push of one.

Bindings: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md,
https://github.com/googleapis/google-cloudevents/blob/main/docs/spec/pubsub.md and
https://cloud.google.com/pubsub/docs/payload-unwrapping. The framework's own parser is pinned to a version that
reads a missing body as None, passes broken JSON on as text and lets undecodable bytes escape as exceptions;
each of those would be a redelivery storm here, so this room reads the request itself and is strict.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from urllib.parse import unquote

import msgspec

from modelarts_cleanup import strict_json

MESSAGE_PUBLISHED = "google.cloud.pubsub.topic.v1.messagePublished"
LONGEST_ATTRIBUTE = 1024
LARGEST_DATA = 64 * 1024

_REQUIRED = ("specversion", "id", "source", "type")
_PUBSUB = "//pubsub.googleapis.com/"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """
    An HTTP request as far as an event can be in it.

    `headers` have lower-case names. `body` is whole unless `complete` is False: a body so large
    that it is no event is only hashed (`digest`, SHA-256 in hex) and kept up to its head.
    """

    method: str
    headers: Mapping[str, str]
    body: bytes
    digest: str
    complete: bool = True


class Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """
    What stands around the data of an event: its attributes, and where it was found wrong.

    Attributes are None where they are missing or unreadable. With `field` and `problem` set the
    event cannot be understood, and `data` is not to be read.
    """

    id: str | None = None
    source: str | None = None
    type: str | None = None
    time: str | None = None
    data: bytes = b""
    field: str | None = None
    problem: str | None = None


class _UnreadableError(ValueError):
    def __init__(self, envelope: Envelope) -> None:
        super().__init__(envelope.problem)
        self.envelope = envelope


def identity(envelope: Envelope, request: Request) -> str:
    """Name the event in the ledger: by source and id, never by id alone; by its body where it has none."""
    if envelope.id is not None and envelope.source is not None:
        named = json.dumps([envelope.source, envelope.id]).encode()
        return "id:" + hashlib.sha256(named).hexdigest()
    return "body:" + request.digest


def read(request: Request) -> Envelope:
    """Find the event in a request. Raises nothing: what cannot be understood is said in the envelope."""
    try:
        return _read_http(request)
    except _UnreadableError as error:
        return error.envelope


def _read_http(request: Request) -> Envelope:
    headers = request.headers
    # Unwrapped, the attributes of a message are HTTP headers, and its data is the body.
    attributes = {name[3:]: _decoded(value) for name, value in headers.items() if name.startswith("ce-")}
    message = _message(headers.get("x-goog-pubsub-message-id"), headers.get("x-goog-pubsub-subscription-name"))
    known = _known(attributes, message)
    if request.method != "POST":
        raise _bad(known, "method", f"is {request.method[:16]}; an event is posted")
    if not request.complete:
        raise _bad(known, "data", f"is larger than {LARGEST_DATA} bytes")
    content_type = headers.get("content-type", "")
    if (
        message != Envelope()
        or _is_event(attributes)
        or _media_type(content_type).startswith("application/cloudevents")
    ):
        return _read_message(attributes, content_type, request.body, message)
    pushed = _json_object(known, "data", request.body)
    if "message" not in pushed:
        raise _bad(known, "id", "is missing: neither CloudEvents attributes (ce-id, …) nor a Pub/Sub message")
    return _read_push(pushed)


def _read_push(push: Mapping[str, object]) -> Envelope:
    """Read a wrapped message (https://cloud.google.com/pubsub/docs/push#receive_push)."""
    given = push.get("message")
    if not isinstance(given, dict):
        raise _bad(Envelope(), "message", "is no object")
    message = _message(given.get("messageId", given.get("message_id")), push.get("subscription"))
    texts = given.get("attributes")
    texts = {} if texts is None else texts
    if not isinstance(texts, dict) or not all(isinstance(value, str) for value in texts.values()):
        raise _bad(message, "message.attributes", "is no object of texts")
    headers = {name.lower(): value for name, value in texts.items()}
    # Unwrapped, the same attributes would be headers: they are decoded alike, so that either way is the same event.
    attributes = {name[3:]: _decoded(value) for name, value in headers.items() if name.startswith("ce-")}
    data = _base64(_known(attributes, message), "message.data", given.get("data", ""))
    return _read_message(attributes, headers.get("content-type", ""), data, message)


def _read_message(attributes: Mapping[str, object], content_type: str, data: bytes, message: Envelope) -> Envelope:
    """Read attributes beside data: what HTTP in binary mode and Pub/Sub have in common."""
    known = _known(attributes, message)
    media_type, charset = _media_type(content_type), _charset(content_type)
    if media_type.startswith("application/cloudevents-batch"):
        raise _bad(known, "content-type", "is a batch; one request is one event")
    if charset not in ("", "utf-8", "utf8", "us-ascii"):
        raise _bad(known, "content-type", "names a charset other than UTF-8, which JSON is written in")
    if media_type == "application/cloudevents+json":
        return _read_structured(_json_object(known, "data", data), message)
    if media_type.startswith("application/cloudevents"):
        raise _bad(known, "content-type", "is a format of CloudEvents other than JSON")
    if not _is_event(attributes):
        if message.id is None or message.source is None:
            field, thing = ("id", "message id") if message.id is None else ("source", "subscription")
            raise _bad(known, field, f"is missing: the message has no {thing} that can be read")
        return _with_data(message, data)
    event = _event(attributes, message)
    if event.type == MESSAGE_PUBLISHED:  # Eventarc's event about a message; the message is what was meant
        return _read_push(_json_object(event, "data", data))
    return _with_data(event, data)


def _read_structured(given: Mapping[str, object], message: Envelope) -> Envelope:
    event = _event(given, message)
    if "data" in given and "data_base64" in given:
        raise _bad(event, "data", "stands beside data_base64; one of them is the data")
    data = given.get("data")
    text = _base64(event, "data_base64", given["data_base64"]) if "data_base64" in given else b""
    if event.type == MESSAGE_PUBLISHED:
        return _read_push(data if isinstance(data, dict) else _json_object(event, "data", text))
    if "data_base64" in given:
        return _with_data(event, text)
    return _with_data(
        event, json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() if "data" in given else b""
    )


def _event(given: Mapping[str, object], message: Envelope) -> Envelope:
    """Take the attributes of a CloudEvent, all that it must have."""
    known = _known(given, message)
    for name in _REQUIRED:
        if name not in given:
            raise _bad(known, name, "is missing")
        if _text(given[name]) is None:
            raise _bad(known, name, f"is no text of 1 to {LONGEST_ATTRIBUTE} characters")
    if given["specversion"] != "1.0":
        raise _bad(known, "specversion", "is not 1.0")
    return known


def _known(given: Mapping[str, object], message: Envelope) -> Envelope:
    """Take what can be read of the attributes; the message's identity stands in for one that is not whole."""
    event_id, source = _text(given.get("id")), _text(given.get("source"))
    if event_id is None or source is None:
        event_id, source = message.id, message.source
    return Envelope(id=event_id, source=source, type=_text(given.get("type")), time=_text(given.get("time")))


def _message(message_id: object, subscription: object) -> Envelope:
    name = _text(subscription)
    return Envelope(id=_text(message_id), source=None if name is None else _PUBSUB + name)


def _with_data(event: Envelope, data: bytes) -> Envelope:
    if not data:
        raise _bad(event, "data", "is missing")
    if len(data) > LARGEST_DATA:
        raise _bad(event, "data", f"is larger than {LARGEST_DATA} bytes")
    return msgspec.structs.replace(event, data=data)


def _is_event(attributes: Mapping[str, object]) -> bool:
    return any(name in attributes for name in _REQUIRED)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= LONGEST_ATTRIBUTE else None


def _decoded(value: str) -> str:
    # HTTP carries attributes percent-encoded (section 3.1.3.2 of the binding).
    try:
        return unquote(value, errors="strict")
    except UnicodeDecodeError:
        return value


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _charset(content_type: str) -> str:
    for parameter in content_type.lower().split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip() == "charset":
            return value.strip().strip('"')
    return ""


def _base64(known: Envelope, field: str, value: object) -> bytes:
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except ValueError:  # binascii.Error is one, and so is text that is not ASCII
        pass
    raise _bad(known, field, "is not base64")


def _json_object(known: Envelope, field: str, text: bytes) -> dict[str, object]:
    if not text:
        raise _bad(known, field, "is missing")
    try:
        value = strict_json.read(text)
    except ValueError as error:
        raise _bad(known, field, str(error)) from None
    if not isinstance(value, dict):
        raise _bad(known, field, "is not a JSON object")
    return value


def _bad(known: Envelope, field: str, problem: str) -> _UnreadableError:
    return _UnreadableError(msgspec.structs.replace(known, field=field, problem=problem))
