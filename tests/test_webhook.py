"""A signed webhook is verified over its raw bytes, and turned into an expiry event."""

import base64
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup import webhook
from modelarts_cleanup.envelope import MESSAGE_PUBLISHED, Request
from modelarts_cleanup.events import EXPIRED
from modelarts_cleanup.fields import InvalidEventError
from standardwebhooks.webhooks import Webhook

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - made up
OTHER = "whsec_" + base64.b64encode(b"another secret of thirty-two byt").decode()
DATA = {"project_id": "p1", "cluster_id": "c-1", "expires_at": "2026-07-01T00:00:00Z"}


def signed(body: bytes, *, secret: str = SECRET, age: timedelta = timedelta(), **changed: str) -> dict[str, str]:
    at = datetime.now(UTC) - age
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", at, body.decode("latin-1")),
    }
    return headers | {name.replace("_", "-"): value for name, value in changed.items()}


def verify(body: bytes, headers: dict[str, str], *secrets: str) -> None:
    webhooks = webhook.secrets("\n".join(secrets or (SECRET,)).encode())
    webhook.verify(body, headers, webhooks=webhooks, now=datetime.now(UTC))


def request(body: bytes, content_type: str = "application/json") -> Request:
    headers = {"content-type": content_type, "webhook-id": "msg_1", "webhook-timestamp": "1785000000"}
    return Request(method="POST", headers=headers, body=body, digest="")


@pytest.mark.parametrize(
    "body",
    [b'{"b":1, "a":"x"}', b'{ "a" : "\\u00e9" }', b"a=b&c=d", b""],
    ids=["case 66: odd spacing", "case 66: escapes", "case 66: a form", "nothing"],
)
def test_the_very_bytes_are_what_is_verified(body: bytes) -> None:
    verify(body, signed(body))
    with pytest.raises(webhook.SignatureError):
        verify(body + b" ", signed(body))


def test_each_of_several_secrets_is_good_while_they_are_rotated() -> None:
    for secret in (SECRET, OTHER):
        verify(b"{}", signed(b"{}", secret=secret), SECRET, OTHER)
    with pytest.raises(webhook.SignatureError):
        verify(b"{}", signed(b"{}", secret=OTHER), SECRET)


@pytest.mark.parametrize(
    ("signature", "fits"),
    [
        ("v1,AAAA {good}", True),
        ("v1a,AAAA {good}", True),
        ("v1 {good}", True),
        ("v1,A {good}", True),
        ("v1,\xe9  {good}", True),
        ("{good} v1,not-base64!", True),
        ("v1,AAAA v1,BBBB", False),
        ("v1,\xe9", False),
        ("v1", False),
        ("v1,", False),
        (",", False),
        ("v1,not base64!", False),
        ("", False),
        ("v2,AAAA", False),
    ],
    ids=[
        "case 68: the second is good",
        "case 68: another version beside it",
        "case 68: one without a comma beside it",
        "case 68: one that is no base64 beside it",
        "case 68: one that is not ASCII beside it",
        "case 68: one that is no base64 behind it",
        "case 68: none is good",
        "case 65: not ASCII",
        "no comma",
        "no signature",
        "nothing but a comma",
        "no base64",
        "empty",
        "unknown version",
    ],
)
def test_a_signature_fits_or_is_refused_and_nothing_else(signature: str, fits: bool) -> None:  # noqa: FBT001
    headers = signed(b"{}")
    headers["webhook-signature"] = signature.format(good=headers["webhook-signature"])
    if fits:
        verify(b"{}", headers)
    else:
        with pytest.raises(webhook.SignatureError):
            verify(b"{}", headers)


def test_a_body_that_is_no_utf_8_is_refused() -> None:  # case 67
    with pytest.raises(webhook.SignatureError):
        verify(b"\xff\xfe", signed(b"\xff\xfe"))


@pytest.mark.parametrize(("age", "fits"), [(0, True), (290, True), (310, False), (-50, True), (-70, False)])
def test_a_timestamp_may_be_five_minutes_old_and_one_minute_ahead(age: int, fits: bool) -> None:  # noqa: FBT001
    headers = signed(b"{}", age=timedelta(seconds=age))  # case 69
    if fits:
        verify(b"{}", headers)
    else:
        with pytest.raises(webhook.SignatureError):
            verify(b"{}", headers)


@pytest.mark.parametrize("timestamp", ["", "soon", "1.5", "-1", "nan", "1e9", "١٢٣", "9" * 12, " 1785000000"])
def test_a_timestamp_that_is_no_whole_number_is_refused(timestamp: str) -> None:
    with pytest.raises(webhook.SignatureError):
        verify(b"{}", signed(b"{}", webhook_timestamp=timestamp))


@pytest.mark.parametrize("event_id", ["", "with space", "\xe9", "x" * 257])
def test_an_id_that_could_not_be_carried_on_is_refused(event_id: str) -> None:
    with pytest.raises(webhook.SignatureError):
        verify(b"{}", signed(b"{}", webhook_id=event_id))


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_header_that_is_missing_is_a_bad_signature(missing: str) -> None:
    headers = signed(b"{}")
    del headers[missing]
    with pytest.raises(webhook.SignatureError):
        verify(b"{}", headers)


@given(signature=st.text(max_size=100), body=st.binary(max_size=100))
def test_whatever_stands_in_the_signature_it_is_refused_in_one_way(signature: str, body: bytes) -> None:
    with pytest.raises(webhook.SignatureError):
        verify(body, signed(b"{}", webhook_signature=signature) | {"webhook-id": "another"})


@pytest.mark.parametrize(
    ("text", "count"), [(SECRET, 1), (f"\n {SECRET} \r\n\n{OTHER}\n", 2), ("whsec_a2V5a2V5a2V5a2V5", 1)]
)
def test_secrets_stand_one_a_line(text: str, count: int) -> None:
    assert len(webhook.secrets(text.encode())) == count


@pytest.mark.parametrize(
    "text", ["", "\n\n", "plain-text-secret", "whsec_", "whsec_!!!!", "whsec_A", f"{SECRET}\nplain", "whsec_é"]
)
def test_what_is_no_secret_is_refused_and_not_shown(text: str) -> None:  # cases 72, 73
    with pytest.raises(ValueError, match="secret") as raised:
        webhook.secrets(text.encode())
    assert "plain" not in str(raised.value)
    assert "MfKQ" not in str(raised.value)


# An event about a message on Pub/Sub that holds a good expiry event.
MESSAGE = {
    "message": {
        "messageId": "1",
        "attributes": {"ce-id": "e", "ce-source": "s", "ce-type": EXPIRED, "ce-specversion": "1.0"},
        "data": base64.b64encode(json.dumps(DATA).encode()).decode(),
    },
    "subscription": "projects/p/subscriptions/s",
}


def structured(**changed: object) -> bytes:
    event = {"specversion": "1.0", "id": "own", "source": "//own", "type": EXPIRED, "data": DATA}
    return json.dumps(event | changed).encode()


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps(DATA).encode(), "application/json"),
        (json.dumps({**DATA, "reason": "specversion"}).encode(), "application/json"),
        (json.dumps({**DATA, "tags": {"specversion": "2"}}).encode(), "application/json"),
        (structured(), "application/cloudevents+json; charset=utf-8"),
        (structured(), "application/json"),
    ],
    ids=["data", "data that mentions it", "data that holds it", "a CloudEvent", "a CloudEvent as plain JSON"],
)
def test_the_event_is_named_by_what_was_signed(body: bytes, content_type: str) -> None:
    attributes, data = webhook.expiry_event(request(body, content_type))
    assert attributes == {
        "id": "msg_1",
        "source": "//modelarts-cleanup/webhook",
        "type": EXPIRED,
        "specversion": "1.0",
        "time": "2026-07-25T17:20:00Z",
    }
    assert {name: value for name, value in json.loads(data).items() if name in DATA} == DATA


@pytest.mark.parametrize(
    ("body", "content_type", "field"),
    [
        (b"{", "application/json", "data"),
        (b"[]", "application/json", "data"),
        (b'{"project_id": "p1"}', "application/json", "cluster_id"),
        (structured(type="another"), "application/json", "type"),
        (structured(type=MESSAGE_PUBLISHED, data=MESSAGE), "application/cloudevents+json", "type"),
        (structured(), "application/cloudevents+xml", "content-type"),
        (structured(specversion="0.3"), "application/json", "specversion"),
        (b"[]", "application/cloudevents-batch+json", "content-type"),
        (structured(data={**DATA, "ttl": 5}), "application/cloudevents+json", "ttl"),
    ],
)
def test_what_is_wrong_is_named(body: bytes, content_type: str, field: str) -> None:
    with pytest.raises(InvalidEventError) as raised:
        webhook.expiry_event(request(body, content_type))
    assert raised.value.field == field
