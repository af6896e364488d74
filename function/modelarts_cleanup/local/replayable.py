"""Makes what can be sent again out of completion events and dead letters."""

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Final
from urllib.parse import quote

import msgspec

from modelarts_cleanup import envelope, events, fields
from modelarts_cleanup.local.delivery import STRUCTURED, Delivery, binary
from modelarts_cleanup.local.pubsub import Letter

SOURCE: Final = "//modelarts-cleanup/replay"
# Of a larger body only this much is kept in a completion event.
KEPT: Final = 64 * 1024
# What Pub/Sub adds to a dead letter, and refuses from whoever publishes.
_PUBSUBS_OWN: Final = ("CloudPubSubDeadLetter", "goog")
_BLANK: Final = " \t\r\n"
# It only finds where a value ends.
_SCANNER: Final = json.JSONDecoder(parse_int=str, parse_float=str)
# What gcloud writes is base64 in the alphabet for URLs.
_STANDARD: Final = str.maketrans("-_", "+/")


class _Cluster(msgspec.Struct, frozen=True):
    region: str | None = None
    project_id: str | None = None
    cluster_id: str | None = None
    type: str | None = None
    name: str | None = None


class _Cause(msgspec.Struct, frozen=True):
    id: str | None = None
    source: str | None = None
    type: str | None = None
    reason: str | None = None


class _Original(msgspec.Struct, frozen=True):
    content_type: str | None
    data_base64: str


class _Data(msgspec.Struct, frozen=True):
    outcome: str
    detail: str
    cluster: _Cluster
    cause: _Cause
    expires_at: str | None = None
    owner: str | None = None
    original: _Original | None = None


class _Completion(msgspec.Struct, frozen=True):
    id: str
    data: _Data


class _Kind(msgspec.Struct, frozen=True):
    type: object = None
    message: object = None


class _Message(msgspec.Struct, frozen=True, rename="camel"):
    message_id: str
    data: str = ""
    attributes: dict[str, str] = {}


class _Pulled(msgspec.Struct, frozen=True):
    message: _Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayable:
    """
    Something to send again: over HTTP as `delivery`, on Pub/Sub as `data` with `attributes`.

    `key` is what is remembered of it. `problem` says why it cannot be sent, `doubt` why that is of no use. `origin`
    is the subscription that gave it up, if it is a dead letter that says so.
    """

    key: str
    about: str
    delivery: Delivery
    data: bytes = field(repr=False)
    attributes: Mapping[str, str] = field(default_factory=dict)
    problem: str | None = None
    doubt: str | None = None
    letter: Letter | None = None
    origin: str | None = None


def of_file(content: bytes, file: str) -> list[Replayable]:
    """
    Read completion events, structured expiry events, and messages as gcloud writes them: one a line, or in lists.

    What the file holds twice is given once. Raises `ValueError` that names the line and what it is not.
    """
    try:
        text = content.decode("utf-8-sig").rstrip(_BLANK)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} of {file} is not UTF-8") from None
    found: dict[str, Replayable] = {}
    for at, value in _values(text, file):
        try:
            one = _of_value(value, PurePath(file).name)
        except ValueError as error:
            raise _unreadable(text, at, file, str(error)) from None
        if one is not None:
            found.setdefault(one.key, one)
    return list(found.values())


def of_completion(text: bytes, letter: Letter | None = None) -> Replayable | None:
    """
    Make the expiry event again that a completion event reports as `failed` or `rejected`.

    Its id is derived from the old one: the old one would only be answered with what was recorded for it. None for
    another outcome. Raises `ValueError` if it is none, for all its type.
    """
    try:
        given = msgspec.json.decode(text, type=_Completion)
    except msgspec.DecodeError:
        raise ValueError("is no completion event") from None
    if given.data.outcome not in ("failed", "rejected"):
        return None
    cause = given.data.cause
    event_id = f"{cause.id or given.id}.replay"[-envelope.LONGEST_ATTRIBUTE :]
    source = cause.source or SOURCE
    problem = doubt = None
    if given.data.outcome == "failed":
        data = _expiry_data(given.data)
    else:
        data, problem = _original_body(given.data)
        if problem is None:
            data, doubt = _original_data(given.data, data)
    return Replayable(
        key=given.id,
        about=f"{event_id}: {given.data.outcome}, {given.data.detail}",
        delivery=binary(data, event_id=event_id, source=source),
        data=data,
        attributes={
            "ce-id": event_id,
            "ce-source": source,
            "ce-type": events.EXPIRED,
            "ce-specversion": "1.0",
            "Content-Type": "application/json",
        },
        problem=problem,
        doubt=doubt,
        letter=letter,
        origin=letter.origin if letter else None,
    )


def of_letter(letter: Letter, subscription: str) -> Replayable:
    """Take a message as it is; one of `failed` and `rejected` completion events is made an expiry event again."""
    problem = None
    if letter.attributes.get("ce-type") == events.COMPLETED:
        attributes = {"id": letter.attributes.get("ce-id")}
        try:
            found = of_completion(json.dumps(attributes)[:-1].encode() + b',"data":' + letter.data + b"}", letter)
        except ValueError as error:
            found, problem = None, f"it {error}, for all its attributes"
        if found is not None:
            return found
        problem = problem or "it tells of an event that is done with"
    kept = {name: value for name, value in letter.attributes.items() if not name.startswith(_PUBSUBS_OWN)}
    message = {
        "message": {
            "data": base64.b64encode(letter.data).decode(),
            "attributes": kept,
            "messageId": letter.message_id,
        },
        "subscription": subscription,
    }
    delivery = Delivery(headers={"content-type": "application/json"}, body=json.dumps(message).encode())
    return Replayable(
        key=f"{subscription}:{letter.message_id}",
        about=f"{delivery.event_id()}: a message of {len(letter.data)} bytes",
        delivery=delivery,
        data=letter.data,
        attributes=kept,
        problem=problem,
        letter=letter,
        origin=letter.origin,
    )


def _unreadable(text: str, at: int, file: str, problem: str) -> ValueError:
    line = text.count("\n", 0, at) + 1
    return ValueError(f"line {line} of {file} {problem}")


def _values(text: str, file: str) -> Iterator[tuple[int, bytes]]:
    """Give every JSON value, and where it begins, those of a list one by one. Raises `ValueError`."""
    at = _after(_BLANK, text, 0)
    while at < len(text):
        try:
            value, end = _SCANNER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # Of a list it is one item that is broken.
            raise _unreadable(text, error.pos if text[at] == "[" else at, file, "is not JSON") from None
        except RecursionError:
            raise _unreadable(text, at, file, "is no JSON that is read: it is nested too deeply") from None
        if isinstance(value, list):
            at += 1
            for _ in value:
                at = _after(_BLANK + ",", text, at)
                _, after = _SCANNER.raw_decode(text, at)
                yield at, text[at:after].encode()
                at = after
        else:
            yield at, text[at:end].encode()
        at = _after(_BLANK, text, end)


def _after(skipped: str, text: str, at: int) -> int:
    while at < len(text) and text[at] in skipped:
        at += 1
    return at


def _of_value(text: bytes, file: str) -> Replayable | None:
    """Make what can be sent of one value of a file. Raises `ValueError` that says what it is not."""
    try:
        kind = msgspec.json.decode(text, type=_Kind)
    except (msgspec.DecodeError, RecursionError):
        kind = _Kind()
    if kind.type == events.EXPIRED:
        return _of_expiry(text)
    if kind.type == events.COMPLETED:
        return of_completion(text)
    if kind.type is None and kind.message is not None:
        letter = _letter(text)
        # Over HTTP a message is named by its id and its subscription, if not by attributes of its own.
        return replace(of_letter(letter, letter.origin or file), letter=None)
    raise ValueError("is no completion event, no expiry event and no Pub/Sub message")


def _of_expiry(text: bytes) -> Replayable:
    """Take a structured CloudEvent as it is."""
    delivery = Delivery(headers={"content-type": STRUCTURED}, body=text)
    found = envelope.read(delivery.as_read())
    if found.field is not None:
        raise ValueError(f"is no expiry event: {found.field} {found.problem}")
    return Replayable(
        key=json.dumps([found.source, found.id]),
        about=f"{found.id}: an expiry event from {found.source}",
        delivery=delivery,
        data=text,
        attributes={"Content-Type": STRUCTURED},
    )


def _letter(text: bytes) -> Letter:
    try:
        message = msgspec.json.decode(text, type=_Pulled).message
        data = base64.b64decode(message.data.translate(_STANDARD), validate=True)
    except msgspec.DecodeError as error:
        raise ValueError(f"is no Pub/Sub message: {error}") from None
    except ValueError:
        raise ValueError("is no Pub/Sub message: its data is not base64") from None
    return Letter(message_id=message.message_id, data=data, attributes=message.attributes)


def _expiry_data(data: _Data) -> bytes:
    """Ask again what was asked; what ModelArts called the cluster is named, so that no other one is meant."""
    cluster = data.cluster
    asked = {
        "region": cluster.region,
        "project_id": cluster.project_id,
        "cluster_id": cluster.cluster_id,
        "type": cluster.type,
        "name": cluster.name,
        "expires_at": data.expires_at,
        "owner": data.owner,
        "reason": data.cause.reason,
    }
    return json.dumps({name: value for name, value in asked.items() if value is not None}, ensure_ascii=False).encode()


def _original_body(data: _Data) -> tuple[bytes, str | None]:
    """Give what was kept of a rejected request, and why that is not all of it."""
    if data.original is None:
        return b"", "nothing of the original is kept"
    try:
        body = base64.b64decode(data.original.data_base64, validate=True)
    except ValueError:
        return b"", "what is kept of the original is not base64"
    return body, "only the first 64 KiB of the original are kept" if len(body) >= KEPT else None


def _original_data(data: _Data, body: bytes) -> tuple[bytes, str | None]:
    """Find the data of the event in the body of its request, and say if it would be rejected again."""
    cause = data.cause
    attributes = {"id": cause.id, "source": cause.source, "type": cause.type or events.EXPIRED, "specversion": "1.0"}
    headers = {f"ce-{name}": quote(value) for name, value in attributes.items() if value is not None}
    if data.original and data.original.content_type:
        headers["content-type"] = data.original.content_type
    # Of the headers only the content type was kept: what a Pub/Sub push or a structured event says itself comes
    # first, and the attributes that were told stand in for those of a binary one.
    found = envelope.read(Delivery(headers={"content-type": headers.get("content-type", "")}, body=body).as_read())
    if found.field == "id":
        found = envelope.read(Delivery(headers=headers, body=body).as_read())
    try:
        events.parse(events.data_object(found), region=data.cluster.region or "-")
    except fields.InvalidEventError as error:
        return found.data or body, f"this version would reject it again: {error}"
    return found.data, None
