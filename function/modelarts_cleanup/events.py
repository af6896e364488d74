"""The JSON of our events, in and out; only this room knows it, and the fields it reads one by one."""

import base64
import json
import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import assert_never

import msgspec

from modelarts_cleanup import fields, strict_json
from modelarts_cleanup.envelope import Envelope
from modelarts_cleanup.fields import InvalidEventError
from modelarts_cleanup.model import (
    CLUSTER_ID,
    PROJECT_ID,
    REGION,
    AlreadyGone,
    Cause,
    ClusterRef,
    CompletionEvent,
    Deleted,
    Event,
    Expiry,
    Failed,
    Original,
    Outcome,
    Rejected,
    Skipped,
    instant_text,
)

EXPIRED = "dev.modelarts-cleanup.cluster.expired.v1"
COMPLETED = "dev.modelarts-cleanup.cleanup.completed.v1"

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, COMPLETED)
_BASE64 = re.compile(rb"\s*[A-Za-z0-9+/]{8,}={0,2}\s*")


def read(envelope: Envelope, *, key: str, region: str, original: Original) -> Event:
    """
    Understand an event. One that cannot be understood asks to be `Rejected`; nothing is raised.

    `key` names the event in the ledger, `region` is the deployment's own, which an event need not name.
    """
    given: Mapping[str, object] = {}
    try:
        given = data_object(envelope)
        asks: Expiry | Rejected = parse(given, region=region)
    except InvalidEventError as error:
        asks = Rejected(
            field=error.field,
            problem=error.problem,
            original=original,
            region=fields.if_readable(fields.identifier, given, "region", REGION),
            project_id=fields.if_readable(fields.identifier, given, "project_id", PROJECT_ID),
            cluster_id=fields.if_readable(fields.identifier, given, "cluster_id", CLUSTER_ID),
        )
    cause = Cause(
        id=envelope.id,
        source=envelope.source,
        type=envelope.type,
        # An unreadable time is dropped, never replaced by "now": nothing is decided by it.
        time=envelope.time if fields.if_readable(fields.instant, {"time": envelope.time}, "time") else None,
        reason=fields.if_readable(fields.text, given, "reason"),
    )
    return Event(key=key, cause=cause, asks=asks)


def data_object(envelope: Envelope) -> dict[str, object]:
    """Take the data of an expiry event out of its envelope. Raises `InvalidEventError`."""
    if envelope.field is not None:
        raise InvalidEventError(envelope.field, str(envelope.problem))
    if envelope.type not in (None, EXPIRED):  # a bare Pub/Sub message has no type of its own
        raise InvalidEventError("type", f"is not {EXPIRED}")
    try:
        given = strict_json.read(envelope.data)
    except ValueError as error:
        hint = "; it looks like base64: encoded twice?" if _BASE64.fullmatch(envelope.data) else ""
        raise InvalidEventError("data", f"{error}{hint}") from None
    if not isinstance(given, dict):
        raise InvalidEventError("data", "is not a JSON object")
    return given


def parse(given: Mapping[str, object], *, region: str) -> Expiry:
    """
    Read the data of an expiry event, strictly: nothing is repaired, unknown fields are ignored.

    Raises `InvalidEventError` naming the field.
    """
    return Expiry(
        ref=ClusterRef(
            region=fields.identifier(given, "region", REGION) if "region" in given else region,
            project_id=fields.identifier(given, "project_id", PROJECT_ID),
            cluster_id=fields.identifier(given, "cluster_id", CLUSTER_ID),
        ),
        type=fields.cluster_type(given) if "type" in given else None,
        name=fields.text(given, "name", shortest=1) if "name" in given else None,
        expires_at=fields.expires_at(given),
        protected=fields.boolean(given, "protected") if "protected" in given else False,
        owner=fields.text(given, "owner") if "owner" in given else None,
        reason=fields.text(given, "reason") if "reason" in given else None,
    )


def completion_event(
    event: Event,
    outcome: Outcome,
    *,
    deliveries: int,
    received_at: datetime,
    region: str,
    now: datetime,
) -> CompletionEvent:
    """
    Report an outcome. Its id is derived, so that whoever reports the same thing again reports the same event.

    `deliveries` counts those it took, `received_at` is when the first one came.
    """
    asks = event.asks
    word, reason, detail, more = _told(outcome)
    if isinstance(asks, Expiry):
        seen = getattr(outcome, "cluster", None)
        cluster = {
            "region": asks.ref.region,
            "project_id": asks.ref.project_id,
            "cluster_id": asks.ref.cluster_id,
            "type": seen.type if seen else asks.type,
            "name": seen.name if seen else asks.name,
        }
        derived_from = f"expiry:{asks.key}" if isinstance(outcome, Deleted | AlreadyGone) else f"event:{event.key}"
    else:
        named = {"region": asks.region, "project_id": asks.project_id, "cluster_id": asks.cluster_id}
        cluster = {**named, "type": None, "name": None}
        derived_from = f"event:{event.key}"
    known = cluster["project_id"] and cluster["cluster_id"]
    data = {
        "outcome": word,
        "reason": reason,
        "detail": detail,
        "cluster": cluster,
        "expires_at": instant_text(asks.expires_at) if isinstance(asks, Expiry) else None,
        "owner": asks.owner if isinstance(asks, Expiry) else None,
        "cause": msgspec.structs.asdict(event.cause),
        "attempt": deliveries,
        "received_at": instant_text(received_at),
        "completed_at": instant_text(now),
        "modelarts_request_id": getattr(outcome, "request_id", None),
        **more,
    }
    return CompletionEvent(
        id=str(uuid.uuid5(_NAMESPACE, derived_from)),
        source=f"//modelarts-cleanup/{region}",
        subject=f"projects/{cluster['project_id']}/hyper-clusters/{cluster['cluster_id']}" if known else None,
        time=instant_text(now),
        outcome=word,
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")),
    )


def closes_expiry(completion: CompletionEvent) -> bool:
    """Tell whether a completion event ends the logical expiry, and not only the event that was judged."""
    return completion.outcome in ("deleted", "already_gone")


def attributes(completion: CompletionEvent) -> dict[str, str]:
    """Give the CloudEvents attributes of a completion event, without their prefix; none of them is empty."""
    given = {
        "id": completion.id,
        "source": completion.source,
        "type": COMPLETED,
        "specversion": "1.0",
        "time": completion.time,
        "subject": completion.subject,
        "outcome": completion.outcome,
    }
    return {name: value for name, value in given.items() if value is not None}


def structured(attributes: Mapping[str, str], data: str) -> str:
    """Write an event as one line of JSON, in structured mode."""
    event = {**attributes, "datacontenttype": "application/json", "data": json.loads(data)}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


def answer(completion: CompletionEvent, *, duplicate: bool) -> dict[str, object]:
    """Tell the sender how its event ended."""
    data = json.loads(completion.data)
    told = {"outcome": completion.outcome, "reason": data["reason"], "detail": data["detail"], "id": completion.id}
    return {**told, "duplicate": True} if duplicate else told


def attempt(completion: CompletionEvent) -> int:
    """Tell how many deliveries it took."""
    return int(json.loads(completion.data)["attempt"])


def _told(outcome: Outcome) -> tuple[str, str | None, str, dict[str, object]]:
    told: dict[str, object] = {}
    match outcome:
        case Deleted(detail=detail):
            return "deleted", None, detail, told
        case AlreadyGone(detail=detail):
            return "already_gone", None, detail, told
        case Skipped(reason=reason, detail=detail, members=members):
            told |= {"members": [msgspec.structs.asdict(member) for member in members]} if members else {}
            return "skipped", reason, detail, told
        case Failed(reason=reason, detail=detail):
            return "failed", reason, detail, told
        case Rejected(field=field, problem=problem, original=original):
            kept = {
                "content_type": original.content_type,
                "data_base64": base64.b64encode(original.head).decode(),
            }
            told |= {"field": field, "problem": problem, "original": kept}
            return "rejected", "invalid_event", f"{field} {problem}", told
    assert_never(outcome)
