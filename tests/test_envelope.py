import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelarts_cleanup import envelope
from modelarts_cleanup.envelope import LARGEST_DATA, LONGEST_ATTRIBUTE, MESSAGE_PUBLISHED, Envelope, Request

TYPE = "dev.modelarts-cleanup.cluster.expired.v1"
TIME = "2026-07-15T10:00:00Z"
DATA = b'{"cluster_id": "a"}'
SUBSCRIPTION = "projects/p/subscriptions/s"
OF_MESSAGE = "//pubsub.googleapis.com/" + SUBSCRIPTION

ATTRIBUTES = {"specversion": "1.0", "id": "e1", "source": "//test", "type": TYPE, "time": TIME}
CE = {f"ce-{name}": value for name, value in ATTRIBUTES.items()}
JSON = {"content-type": "application/json"}
STRUCTURED = {"content-type": "application/cloudevents+json; charset=UTF-8"}
UNWRAPPED = {"x-goog-pubsub-message-id": "7", "x-goog-pubsub-subscription-name": SUBSCRIPTION}
EVENT = Envelope(id="e1", source="//test", type=TYPE, time=TIME, data=DATA)
MESSAGE = Envelope(id="7", source=OF_MESSAGE, data=DATA)


def a_request(
    headers: Mapping[str, str], body: bytes = DATA, *, method: str = "POST", complete: bool = True
) -> Request:
    digest = hashlib.sha256(body).hexdigest()
    return Request(method=method, headers=headers, body=body, digest=digest, complete=complete)


def a_structured(**changed: Any) -> bytes:
    given = {**ATTRIBUTES, "data": json.loads(DATA), **changed}
    text = json.dumps({name: value for name, value in given.items() if value is not ...})
    return text.encode()


def a_push(data: bytes | None = DATA, attributes: Any = ..., /, **message: Any) -> dict[str, Any]:
    given = {"messageId": "7", "attributes": attributes, "data": ..., **message}
    if data is not None:
        given["data"] = base64.b64encode(data).decode()
    return {
        "message": {name: value for name, value in given.items() if value is not ...},
        "subscription": SUBSCRIPTION,
    }


def pushed(push: object) -> Request:
    return a_request(JSON, json.dumps(push).encode())


def without(given: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in given.items() if key != name}


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        pytest.param(a_request({**JSON, **CE}), EVENT, id="CloudEvent in binary mode"),
        pytest.param(a_request(CE), EVENT, id="case 9: binary mode without content type"),
        pytest.param(
            a_request({"content-type": 'text/plain; a=b; Charset="UTF-8"', **CE}), EVENT, id="a charset, quoted"
        ),
        pytest.param(
            a_request({"content-type": "application/json;charset=us-ascii", **CE}), EVENT, id="ASCII is UTF-8"
        ),
        pytest.param(a_request(STRUCTURED, a_structured()), EVENT, id="CloudEvent in structured mode"),
        pytest.param(
            a_request({"content-type": "Application/CloudEvents+JSON"}, a_structured()),
            EVENT,
            id="a media type has no case",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(data=..., data_base64=base64.b64encode(DATA).decode())),
            EVENT,
            id="structured mode with data_base64",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(subject="x", traceparent="y", other=1)),
            EVENT,
            id="extensions are ignored",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(time=...)),
            Envelope(id="e1", source="//test", type=TYPE, data=DATA),
            id="case 10: nothing optional",
        ),
        pytest.param(
            a_request({**CE, "ce-time": "yesterday-ish"}),
            Envelope(id="e1", source="//test", type=TYPE, time="yesterday-ish", data=DATA),
            id="case 7: an unreadable time is passed on as it is",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(time=5)),
            Envelope(id="e1", source="//test", type=TYPE, data=DATA),
            id="case 7: a time that is no text is none",
        ),
        pytest.param(
            a_request({**CE, "ce-id": "100%25 %C3%A9", "ce-source": "%E0%A4%A"}),
            Envelope(id="100% é", source="%E0%A4%A", type=TYPE, time=TIME, data=DATA),
            id="attributes are percent-encoded, unless they cannot be",
        ),
        pytest.param(
            pushed({"message": {"data": "e30=", "messageId": "7"}, "subscription": SUBSCRIPTION}),
            Envelope(id="7", source=OF_MESSAGE, data=b"{}"),
            id="case 1: Pub/Sub, wrapped, without attributes",
        ),
        pytest.param(pushed(a_push(DATA, None)), MESSAGE, id="case 1: attributes are null"),
        pytest.param(pushed(a_push(DATA, {"a": "b"})), MESSAGE, id="Pub/Sub, wrapped, other attributes"),
        pytest.param(pushed(a_push(messageId=..., message_id="7")), MESSAGE, id="Pub/Sub, wrapped, message_id"),
        pytest.param(a_request({}, json.dumps(a_push()).encode()), MESSAGE, id="Pub/Sub, wrapped, no content type"),
        pytest.param(pushed(a_push(DATA, CE)), EVENT, id="Pub/Sub, wrapped, a CloudEvent in attributes"),
        pytest.param(
            pushed(a_push(DATA, {name.upper(): value for name, value in CE.items()})),
            EVENT,
            id="attributes have no case",
        ),
        pytest.param(
            pushed(a_push(DATA, {**CE, "ce-id": "%41"})),
            Envelope(id="A", source="//test", type=TYPE, time=TIME, data=DATA),
            id="attributes of a wrapped message are decoded as if they were headers",
        ),
        pytest.param(
            pushed(a_push(a_structured(), {"content-type": "application/cloudevents+json"})),
            EVENT,
            id="Pub/Sub, wrapped, a structured CloudEvent",
        ),
        pytest.param(
            pushed(a_push(a_structured(), {"Content-Type": "application/cloudevents+json"})),
            EVENT,
            id="Pub/Sub, wrapped, a structured CloudEvent, Content-Type",
        ),
        pytest.param(a_request(UNWRAPPED), MESSAGE, id="Pub/Sub, unwrapped"),
        pytest.param(a_request({**UNWRAPPED, **CE}), EVENT, id="Pub/Sub, unwrapped, a CloudEvent in attributes"),
        pytest.param(
            a_request({**UNWRAPPED, **STRUCTURED}, a_structured()),
            EVENT,
            id="Pub/Sub, unwrapped, a structured CloudEvent",
        ),
        pytest.param(
            a_request({**UNWRAPPED, "ce-extension": "x"}),
            MESSAGE,
            id="an extension alone makes no CloudEvent of a message",
        ),
        pytest.param(
            a_request({**JSON, **CE, "ce-type": MESSAGE_PUBLISHED}, json.dumps(a_push()).encode()),
            MESSAGE,
            id="Eventarc in binary mode: the message is what was meant",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(type=MESSAGE_PUBLISHED, data=a_push(DATA, CE))),
            EVENT,
            id="Eventarc in structured mode, a CloudEvent in attributes",
        ),
    ],
)
def test_an_event_is_found_in_each_transport(request_: Request, expected: Envelope) -> None:
    found = envelope.read(request_)
    if found.data != expected.data:  # structured data may be written in another way
        assert json.loads(found.data) == json.loads(expected.data)
        found = Envelope(
            **{name: getattr(found, name) for name in ("id", "source", "type", "time")}, data=expected.data
        )
    assert found == expected


NAMELESS = {"id": None, "source": None, "type": None}
KNOWN = {"id": "e1", "source": "//test", "type": TYPE}
OF_7 = {"id": "7", "source": OF_MESSAGE, "type": None}


@pytest.mark.parametrize(
    ("request_", "field", "problem", "known"),
    [
        pytest.param(a_request(CE, method="GET"), "method", "is GET; an event is posted", KNOWN, id="not posted"),
        pytest.param(
            a_request({}, b"", method="X" * 99),
            "method",
            f"is {'X' * 16}; an event is posted",
            NAMELESS,
            id="a long method",
        ),
        pytest.param(
            a_request(CE, complete=False),
            "data",
            f"is larger than {LARGEST_DATA} bytes",
            KNOWN,
            id="a body beyond reading",
        ),
        pytest.param(a_request(CE, b""), "data", "is missing", KNOWN, id="case 3: binary mode with an empty body"),
        pytest.param(
            a_request(CE, b" " * (LARGEST_DATA + 1)),
            "data",
            f"is larger than {LARGEST_DATA} bytes",
            KNOWN,
            id="too much data",
        ),
        pytest.param(
            a_request(STRUCTURED, b""), "data", "is missing", NAMELESS, id="structured mode with an empty body"
        ),
        pytest.param(a_request({}, b""), "data", "is missing", NAMELESS, id="nothing at all"),
        pytest.param(
            pushed({"message": {"attributes": {"cluster_id": "a"}, "messageId": "7"}, "subscription": SUBSCRIPTION}),
            "data",
            "is missing",
            OF_7,
            id="case 2: attributes and no data",
        ),
        pytest.param(a_request(UNWRAPPED, b""), "data", "is missing", OF_7, id="case 2: unwrapped, no data"),
        pytest.param(
            a_request({}, b"\x78\x9c\xab"), "data", "is not UTF-8 (byte 1)", NAMELESS, id="case 4: compressed"
        ),
        pytest.param(
            a_request({}, b"{a}"), "data", "is not JSON (line 1, column 2)", NAMELESS, id="case 5: broken JSON"
        ),
        pytest.param(a_request({}, b"[]"), "data", "is not a JSON object", NAMELESS, id="case 5: a list"),
        pytest.param(
            a_request({"content-type": "application/json", "authorization": "Bearer not-a-real-token"}, b'{"a":1}'),
            "id",
            "is missing: neither CloudEvents attributes (ce-id, …) nor a Pub/Sub message",
            NAMELESS,
            id="case 11: neither event nor message",
        ),
        pytest.param(
            a_request({"content-type": "application/json; charset=iso-8859-1", **CE}, b'{"a":"\xe9"}'),
            "content-type",
            "names a charset other than UTF-8, which JSON is written in",
            KNOWN,
            id="case 9: Latin-1",
        ),
        pytest.param(
            a_request({"content-type": "application/cloudevents-batch+json"}, b"[]"),
            "content-type",
            "is a batch; one request is one event",
            NAMELESS,
            id="a batch",
        ),
        pytest.param(
            pushed(a_push(b"[]", {"content-type": "application/cloudevents-batch+json"})),
            "content-type",
            "is a batch; one request is one event",
            OF_7,
            id="a batch in a message",
        ),
        pytest.param(
            a_request({"content-type": "application/cloudevents+avro", **CE}, b"x"),
            "content-type",
            "is a format of CloudEvents other than JSON",
            KNOWN,
            id="a structured format other than JSON",
        ),
        pytest.param(
            a_request({**CE, "ce-specversion": "0.3"}), "specversion", "is not 1.0", KNOWN, id="another specversion"
        ),
        pytest.param(
            a_request({**UNWRAPPED, **without(CE, "ce-id")}),
            "id",
            "is missing",
            {**KNOWN, "id": "7", "source": OF_MESSAGE},
            id="the message's identity stands in for one that is not whole",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(data=...)),
            "data",
            "is missing",
            KNOWN,
            id="structured mode without data",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(data_base64="e30=")),
            "data",
            "stands beside data_base64; one of them is the data",
            KNOWN,
            id="data twice",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(data=..., data_base64="e30")),
            "data_base64",
            "is not base64",
            KNOWN,
            id="data_base64 without its padding",
        ),
        pytest.param(
            a_request(STRUCTURED, a_structured(data=..., data_base64={})),
            "data_base64",
            "is not base64",
            KNOWN,
            id="no text",
        ),
        pytest.param(
            a_request(STRUCTURED, b'{"id":"a","id":"b"}'),
            "data",
            "has the same name twice in one object",
            NAMELESS,
            id="an attribute twice",
        ),
        pytest.param(pushed({"message": "x"}), "message", "is no object", NAMELESS, id="a message that is text"),
        pytest.param(pushed({"message": None}), "message", "is no object", NAMELESS, id="a message that is null"),
        pytest.param(
            a_request({**JSON, **CE, "ce-type": MESSAGE_PUBLISHED}, b"{}"),
            "message",
            "is no object",
            NAMELESS,
            id="Eventarc without a message",
        ),
        pytest.param(
            pushed(a_push(DATA, "x")),
            "message.attributes",
            "is no object of texts",
            OF_7,
            id="attributes are text",
        ),
        pytest.param(
            pushed(a_push(DATA, {"a": 1})),
            "message.attributes",
            "is no object of texts",
            OF_7,
            id="an attribute is 1",
        ),
        pytest.param(
            pushed(a_push(None, data="e30")), "message.data", "is not base64", OF_7, id="data without its padding"
        ),
        pytest.param(pushed(a_push(None, data="e3 0=")), "message.data", "is not base64", OF_7, id="data with a space"),
        pytest.param(pushed(a_push(None, data="é")), "message.data", "is not base64", OF_7, id="data is not ASCII"),
        pytest.param(pushed(a_push(None, data={})), "message.data", "is not base64", OF_7, id="data is an object"),
        pytest.param(
            pushed(a_push(None, CE, data="!")),
            "message.data",
            "is not base64",
            KNOWN,
            id="whose data is wrong is still told by its attributes",
        ),
        pytest.param(
            pushed(a_push(messageId=7)),
            "id",
            "is missing: the message has no message id that can be read",
            {**NAMELESS, "source": OF_MESSAGE},
            id="a message id that is a number",
        ),
        pytest.param(
            pushed({"message": {"messageId": "7", "data": "e30="}}),
            "source",
            "is missing: the message has no subscription that can be read",
            {"id": "7", "source": None, "type": None},
            id="a message without a subscription",
        ),
    ],
)
def test_what_cannot_be_understood_says_which_field_and_why(
    *, request_: Request, field: str, problem: str, known: dict[str, str | None]
) -> None:
    found = envelope.read(request_)
    assert (found.field, found.problem) == (field, problem)
    assert {"id": found.id, "source": found.source, "type": found.type} == known
    assert found.data == b""


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
def test_an_event_without_an_attribute_that_it_must_have_is_no_event(name: str) -> None:
    for request_ in (
        a_request(without(CE, f"ce-{name}")),
        a_request(STRUCTURED, a_structured(**{name: ...})),
        pushed(a_push(DATA, without(CE, f"ce-{name}"))),
        a_request({**UNWRAPPED, **without(CE, f"ce-{name}")}),
    ):
        found = envelope.read(request_)
        assert (found.field, found.problem) == (name, "is missing")


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="null"),
        pytest.param(1, id="a number"),
        pytest.param(["x"], id="a list"),
        pytest.param("", id="empty"),
        pytest.param("x" * (LONGEST_ATTRIBUTE + 1), id="too long"),
    ],
)
def test_an_attribute_is_a_text_that_is_neither_empty_nor_endless(name: str, value: object) -> None:
    found = envelope.read(a_request(STRUCTURED, a_structured(**{name: value})))
    assert (found.field, found.problem) == (name, f"is no text of 1 to {LONGEST_ATTRIBUTE} characters")


def test_an_attribute_may_have_1024_characters() -> None:
    longest = "x" * LONGEST_ATTRIBUTE
    assert envelope.read(a_request({**CE, "ce-id": longest})).id == longest
    assert envelope.read(a_request({**CE, "ce-time": longest + "x"})).time is None


def test_the_data_of_an_event_may_have_64_kib_in_every_transport() -> None:
    data = b'{"a":"' + b"x" * (LARGEST_DATA - 8) + b'"}'
    text = data.decode()
    structured = f'{{"specversion":"1.0","id":"e1","source":"//test","type":"{TYPE}","data":{text}}}'.encode()
    for request_ in (a_request(CE, data), pushed(a_push(data)), a_request(STRUCTURED, structured)):
        assert envelope.read(request_).data == data


def test_data_is_measured_as_it_was_sent_whatever_its_letters() -> None:
    data = json.dumps({"note": "é" * 20_000}, ensure_ascii=False)
    structured = json.dumps({**ATTRIBUTES, "data": json.loads(data)}, ensure_ascii=False)
    for request_ in (a_request(CE, data.encode()), a_request(STRUCTURED, structured.encode())):
        found = envelope.read(request_)
        assert found.problem is None
        assert json.loads(found.data) == json.loads(data)


def test_nothing_of_a_header_that_is_no_attribute_is_kept() -> None:  # case 11, 79
    secret = {"authorization": "Bearer canary", "cookie": "canary", "x-api-key": "canary"}
    for request_ in (a_request(secret, b'{"a":1}'), a_request({**secret, **CE}), a_request({**secret, **CE}, b"")):
        assert "canary" not in repr(envelope.read(request_))


def test_no_other_header_changes_what_is_found() -> None:
    plain = envelope.read(a_request(UNWRAPPED))
    for more in (
        {"authorization": "x"},
        {"x-goog-pubsub-ordering-key": "x"},
        {"webhook-id": "x"},
        {"x-forwarded-for": "x"},
    ):
        assert envelope.read(a_request({**UNWRAPPED, **more})) == plain


# Who an event is.


def identity(request_: Request) -> str:
    return envelope.identity(envelope.read(request_), request_)


def test_an_event_has_one_identity_in_every_transport() -> None:
    of_event = [
        a_request(CE),
        a_request(STRUCTURED, a_structured()),
        pushed(a_push(DATA, CE)),
        a_request({**UNWRAPPED, **CE}),
        a_request(CE, b'{"cluster_id": "another"}'),
        a_request(CE, b"broken"),
    ]
    assert len({identity(request_) for request_ in of_event}) == 1
    encoded = {**CE, "ce-id": "100%25 %C3%A9"}
    assert identity(a_request({**UNWRAPPED, **encoded})) == identity(pushed(a_push(DATA, encoded)))
    of_message = [a_request(UNWRAPPED), pushed(a_push()), pushed(a_push(messageId=..., message_id="7"))]
    assert len({identity(request_) for request_ in of_message}) == 1


def test_an_identity_is_source_and_id_never_id_alone() -> None:
    parted = [("//a", "b"), ("//b", "b"), ("//a", "c"), ("//a//", "b"), ("//a", "//b"), ('//a","', "b")]
    given = [a_request({**CE, "ce-source": source, "ce-id": name}) for source, name in parted]
    assert len({identity(request_) for request_ in given}) == len(parted)


def test_where_there_is_no_identity_the_body_is_it() -> None:
    one, same, other = (identity(a_request({}, body)) for body in (b"{a}", b"{a}", b"{b}"))
    assert one == same != other
    assert one == "body:" + hashlib.sha256(b"{a}").hexdigest()
    assert identity(a_request(without(CE, "ce-source"))) == "body:" + hashlib.sha256(DATA).hexdigest()


def test_the_identity_of_an_event_stays_the_same_from_version_to_version() -> None:
    expected = hashlib.sha256(b'["//test", "e1"]').hexdigest()
    assert identity(a_request(CE)) == "id:" + expected


# Whatever is posted.

NAMES = st.sampled_from(
    [*CE, "ce-subject", "ce-", "content-type", *UNWRAPPED, "authorization", "x-goog-pubsub-publish-time"]
)
VALUES = st.sampled_from(
    [
        *CE.values(),
        *UNWRAPPED.values(),
        MESSAGE_PUBLISHED,
        *STRUCTURED.values(),
        "application/cloudevents-batch+json",
        "%FF",
    ]
) | st.text(max_size=20)
FIELDS = st.sampled_from(
    ["message", "subscription", "messageId", "data", "attributes", "data_base64", *ATTRIBUTES, *CE]
)
TEXTS = VALUES | st.sampled_from(["e30=", base64.b64encode(a_structured()).decode(), base64.b64encode(DATA).decode()])
SHAPES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(FIELDS | st.text(max_size=5), inner, max_size=6),
    max_leaves=20,
)
BODIES = st.binary(max_size=60) | SHAPES.map(lambda value: json.dumps(value).encode())


@given(
    headers=st.dictionaries(NAMES | st.text(max_size=8), VALUES, max_size=8),
    body=BODIES,
    method=st.sampled_from(["POST", "GET", ""]),
    complete=st.booleans(),
)
@example(headers={}, body=b"[" * 100_000, method="POST", complete=True)
@example(headers={"content-type": "application/json;charset"}, body=b"{}", method="POST", complete=True)
@example(headers={}, body=b'{"message":{"attributes":[]}}', method="POST", complete=True)
def test_whatever_is_posted_nothing_is_raised(
    *, headers: dict[str, str], body: bytes, method: str, complete: bool
) -> None:
    request_ = a_request(headers, body, method=method, complete=complete)
    found = envelope.read(request_)
    assert (found.field is None) == (found.problem is None)
    assert found.field is not None or 0 < len(found.data) <= LARGEST_DATA
    for text in (found.id, found.source, found.type, found.time):
        assert text is None or isinstance(text, str)
    assert envelope.identity(found, request_) == envelope.identity(envelope.read(request_), request_)


def test_a_push_in_a_push_in_a_push_comes_to_an_end() -> None:
    push = a_push()
    for _ in range(12):
        push = a_push(json.dumps(push).encode(), {**CE, "ce-type": MESSAGE_PUBLISHED})
    assert envelope.read(pushed(push)) == MESSAGE


def test_eventarcs_event_may_hold_its_message_in_base64() -> None:
    push = {"message": {"data": base64.b64encode(b'{"a": 1}').decode(), "messageId": "7"}, "subscription": "s"}
    event = {
        "specversion": "1.0",
        "id": "own",
        "source": "//own",
        "type": envelope.MESSAGE_PUBLISHED,
        "data_base64": base64.b64encode(json.dumps(push).encode()).decode(),
    }
    headers = {"content-type": "application/cloudevents+json"}
    found = envelope.read(envelope.Request(method="POST", headers=headers, body=json.dumps(event).encode(), digest=""))
    assert (found.id, found.source, found.data) == ("7", "//pubsub.googleapis.com/s", b'{"a": 1}')
