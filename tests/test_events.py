import base64
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes import NOW, REF, an_event
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup import events
from modelarts_cleanup.envelope import Envelope
from modelarts_cleanup.events import EXPIRED
from modelarts_cleanup.fields import InvalidEventError
from modelarts_cleanup.model import (
    AlreadyGone,
    Cause,
    Cluster,
    ClusterRef,
    CompletionEvent,
    Deleted,
    Event,
    Expiry,
    Failed,
    Member,
    Original,
    Outcome,
    Rejected,
    Skipped,
)
from msgspec.structs import replace

REGION = "cn-southwest-2"
AT = "2026-07-15T10:00:00Z"
LEAST: dict[str, object] = {"project_id": "p1", "cluster_id": "c-1", "expires_at": AT}
ORIGINAL = Original(content_type="application/json", head=b"{}")
ENVELOPE = Envelope(id="e1", source="//test", type=EXPIRED, time="2026-07-14T00:00:00Z")


def understood(data: bytes, **changed: Any) -> Event:
    given = {"id": "e1", "source": "//test", "type": EXPIRED, "time": None, **changed}
    return events.read(Envelope(data=data, **given), key="k", region=REGION, original=ORIGINAL)


def asked(**changed: object) -> Expiry:
    """Parse the least that an event must hold, with changes; `...` leaves a field out."""
    given = {**LEAST, **changed}
    return events.parse({name: value for name, value in given.items() if value is not ...}, region=REGION)


# What comes in.


def test_the_least_that_an_event_must_hold_is_an_expiry() -> None:
    assert asked() == Expiry(ref=ClusterRef(REGION, "p1", "c-1"), expires_at=datetime(2026, 7, 15, 10, tzinfo=UTC))


def test_every_field_is_read_and_unknown_ones_are_ignored() -> None:
    given = {
        "region": "eu-west-101",
        "project_id": "P-2",
        "cluster_id": "C_2",
        "type": "ECS",
        "name": "ci-a",
        "expires_at": AT,
        "protected": True,
        "owner": "team",
        "reason": "",
        "unknown": {"a": 1},
        "ttl_seconds": 1_000_000_000_000_000,
        "tz": "America/Los_Angeles",
    }
    assert events.parse(given, region=REGION) == Expiry(
        ref=ClusterRef("eu-west-101", "P-2", "C_2"),
        expires_at=datetime(2026, 7, 15, 10, tzinfo=UTC),
        type="ECS",
        name="ci-a",
        protected=True,
        owner="team",
        reason="",
    )


@pytest.mark.parametrize(
    ("data", "type_"),
    [
        pytest.param(json.dumps(LEAST).encode(), EXPIRED, id="typed"),
        pytest.param(json.dumps(LEAST).encode(), None, id="bare"),
    ],
)
def test_an_event_is_understood_with_its_identity_and_its_cause(data: bytes, type_: str | None) -> None:
    assert understood(data, type=type_, time=AT) == Event(
        key="k", cause=Cause(id="e1", source="//test", type=type_, time=AT), asks=asked()
    )


def test_the_reason_of_an_event_belongs_to_its_cause_too() -> None:
    event = understood(json.dumps({**LEAST, "reason": "nightly"}).encode())
    assert event.cause.reason == "nightly"
    assert isinstance(event.asks, Expiry)
    assert event.asks.reason == "nightly"


@pytest.mark.parametrize("time", ["yesterday-ish", "", "2026-07-15", "0001-01-01T00:00:00Z", None])
def test_an_unreadable_time_is_dropped_and_never_replaced_by_now(time: str | None) -> None:  # case 7
    event = understood(json.dumps(LEAST).encode(), time=time)
    assert event.cause.time is None
    assert event.asks == asked()


# What cannot be understood.


@pytest.mark.parametrize(
    ("data", "changed", "field", "problem"),
    [
        pytest.param(b"null", {}, "data", "is not a JSON object", id="case 5: null"),
        pytest.param(b"[]", {}, "data", "is not a JSON object", id="case 5: a list"),
        pytest.param(b'"x"', {}, "data", "is not a JSON object", id="case 5: a text"),
        pytest.param(b"5", {}, "data", "is not a JSON object", id="case 5: a number"),
        pytest.param(
            b'{"cluster_id":abc}',
            {},
            "data",
            "is not JSON (line 1, column 15)",
            id="case 5: a value without quotes",
        ),
        pytest.param(b"\x78\x9c\xab\x56\x4a", {}, "data", "is not UTF-8 (byte 1)", id="case 4: compressed"),
        pytest.param(
            base64.b64encode(b'{"cluster_id":"a"}'),
            {},
            "data",
            "is not JSON (line 1, column 1); it looks like base64: encoded twice?",
            id="case 6: encoded twice",
        ),
        pytest.param(
            base64.b64encode(b'{"a":12}') + b"\n",
            {},
            "data",
            "is not JSON (line 1, column 1); it looks like base64: encoded twice?",
            id="case 6: encoded twice, padded, with a line break",
        ),
        pytest.param(b"abc", {}, "data", "is not JSON (line 1, column 1)", id="case 6: too short to be base64"),
        pytest.param(
            b"hello-world",
            {},
            "data",
            "is not JSON (line 1, column 1)",
            id="case 6: what base64 never looks like",
        ),
        pytest.param(
            b'{"a":1,"a":1}',
            {},
            "data",
            "has the same name twice in one object",
            id="a name twice in one object",
        ),
        pytest.param(
            json.dumps(LEAST).encode(),
            {"type": "dev.modelarts-cleanup.cluster.expired.v2"},
            "type",
            "is not dev.modelarts-cleanup.cluster.expired.v1",
            id="another type",
        ),
        pytest.param(
            json.dumps(LEAST).encode(),
            {"type": events.COMPLETED},
            "type",
            "is not dev.modelarts-cleanup.cluster.expired.v1",
            id="our own completion event",
        ),
        pytest.param(
            b"",
            {"field": "data", "problem": "is missing"},
            "data",
            "is missing",
            id="case 3: wrong in its envelope",
        ),
        pytest.param(
            json.dumps(LEAST).encode(),
            {"field": "specversion", "problem": "is not 1.0"},
            "specversion",
            "is not 1.0",
            id="whose envelope is wrong is not read",
        ),
    ],
)
def test_what_cannot_be_understood_is_rejected_with_what_came_in(
    data: bytes, changed: dict[str, Any], field: str, problem: str
) -> None:
    event = understood(data, **changed)
    assert event.asks == Rejected(field=field, problem=problem, original=ORIGINAL)
    assert event.key == "k"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        pytest.param({"expires_at": 5}, (None, "p1", "c-1"), id="the ids are told"),
        pytest.param({"expires_at": 5, "region": "r"}, ("r", "p1", "c-1"), id="and the region"),
        pytest.param({"cluster_id": "../x"}, (None, "p1", None), id="but not an id that is none"),
        pytest.param({"project_id": 5}, (None, None, "c-1"), id="nor a project that is none"),
        pytest.param({"region": "a b"}, (None, "p1", "c-1"), id="nor a region that is none"),
    ],
)
def test_a_rejected_event_still_tells_the_ids_that_can_be_read(
    changed: dict[str, object], named: tuple[str | None, ...]
) -> None:
    asks = understood(json.dumps({**LEAST, **changed}).encode()).asks
    assert isinstance(asks, Rejected)
    assert (asks.region, asks.project_id, asks.cluster_id) == named


def test_a_rejected_event_still_tells_its_reason_if_that_can_be_read() -> None:
    wrong = {**LEAST, "expires_at": 5, "reason": "nightly"}
    assert understood(json.dumps(wrong).encode()).cause.reason == "nightly"
    assert understood(json.dumps({**wrong, "reason": 5}).encode()).cause.reason is None


FIELDS = [
    "region",
    "project_id",
    "cluster_id",
    "type",
    "name",
    "expires_at",
    "created_at",
    "ttl",
    "protected",
    "owner",
    "reason",
]
VALUES = (
    st.sampled_from(
        ["p1", "c-1", "HPS", AT, "7d", "", "a/b", "..", "c-1\n", "2026-07-15", "P1M", "9999-12-31T00:00:00Z"]
    )
    | st.text(max_size=10)
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.lists(st.integers(), max_size=2)
)
SHAPES = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES).map(lambda given: {**LEAST, **given})


@given(given=SHAPES)
def test_parsing_raises_nothing_but_its_own_error_and_no_id_is_outside_its_pattern(given: dict[str, object]) -> None:
    found = parsed(given)
    if isinstance(found, InvalidEventError):
        assert found.field in FIELDS
        return
    plain = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")
    for text, allowed in (
        (found.ref.region, plain),
        (found.ref.project_id, plain),
        (found.ref.cluster_id, plain | {"_"}),
    ):
        assert 1 <= len(text) <= 64
        assert set(text) <= allowed
    assert found.expires_at.utcoffset() == timedelta()


def parsed(given: dict[str, object]) -> Expiry | InvalidEventError:
    try:
        return events.parse(given, region=REGION)
    except InvalidEventError as error:
        return error


@given(
    data=st.binary() | SHAPES.map(lambda given: json.dumps(given).encode()),
    type_=st.sampled_from([EXPIRED, None, "x"]),
    time=st.none() | st.text(max_size=20),
)
def test_whatever_comes_in_is_an_expiry_or_rejected_and_can_be_told(
    data: bytes, type_: str | None, time: str | None
) -> None:
    event = understood(data, type=type_, time=time)
    outcome: Outcome = Skipped(reason="dry_run", detail="x") if isinstance(event.asks, Expiry) else event.asks
    assert json.loads(told(event, outcome).data.encode())["outcome"] in ("skipped", "rejected")


# What goes out.

CLUSTER = Cluster(ref=REF, type="HPS", name="ci-a")
MEMBER = Member(id="m-1", name=None, status="RUNNING", prepaid=True)
REJECTED = Rejected(
    field="ttl",
    problem="is missing",
    original=Original(content_type=None, head=b"\xff{"),
    project_id="p1",
    cluster_id="c-1",
)
CAUSE = {"id": "e1", "source": "//test", "type": EXPIRED, "time": None, "reason": None}


def told(event: Event, outcome: Outcome, **changed: Any) -> CompletionEvent:
    given = {"deliveries": 1, "received_at": NOW - timedelta(minutes=1), "region": REGION, "now": NOW, **changed}
    return events.completion_event(event, outcome, **given)


def data(event: Event, outcome: Outcome, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(told(event, outcome, **changed).data)
    return found


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        pytest.param(
            Deleted(detail="gone", cluster=CLUSTER, request_id="r-1"),
            {"outcome": "deleted", "reason": None, "detail": "gone", "modelarts_request_id": "r-1"},
            id="deleted",
        ),
        pytest.param(
            AlreadyGone(detail="absent", request_id="r-2"),
            {"outcome": "already_gone", "reason": None, "detail": "absent", "modelarts_request_id": "r-2"},
            id="already gone",
        ),
        pytest.param(
            Skipped(reason="dry_run", detail="dry", cluster=CLUSTER),
            {"outcome": "skipped", "reason": "dry_run", "detail": "dry"},
            id="skipped",
        ),
        pytest.param(
            Skipped(reason="needs_unsubscribe", detail="prepaid", cluster=CLUSTER, members=(MEMBER,)),
            {
                "outcome": "skipped",
                "reason": "needs_unsubscribe",
                "detail": "prepaid",
                "members": [{"id": "m-1", "name": None, "status": "RUNNING", "prepaid": True}],
            },
            id="case 56: skipped for its members",
        ),
        pytest.param(
            Failed(reason="refused", detail="ModelArts.50004", cluster=CLUSTER, request_id="r-3"),
            {"outcome": "failed", "reason": "refused", "detail": "ModelArts.50004", "modelarts_request_id": "r-3"},
            id="failed",
        ),
    ],
)
def test_a_completion_event_says_what_the_contract_says(outcome: Outcome, expected: dict[str, object]) -> None:
    seen = getattr(outcome, "cluster", None)
    common = {
        "cluster": {
            "region": REGION,
            "project_id": "p1",
            "cluster_id": "c-1",
            "type": "HPS" if seen else None,
            "name": "ci-a" if seen else None,
        },
        "expires_at": "2026-07-15T11:00:00Z",
        "owner": "team",
        "cause": {**CAUSE, "time": None},
        "attempt": 3,
        "received_at": "2026-07-15T11:59:00Z",
        "completed_at": "2026-07-15T12:00:00Z",
        "modelarts_request_id": None,
    }
    assert data(an_event(owner="team"), outcome, deliveries=3) == {**common, **expected}


def test_a_rejected_event_comes_back_with_what_it_was() -> None:
    event = Event(key="k", cause=Cause(id="e1", source="//test"), asks=REJECTED)
    assert data(event, REJECTED) == {
        "outcome": "rejected",
        "reason": "invalid_event",
        "detail": "ttl is missing",
        "cluster": {"region": None, "project_id": "p1", "cluster_id": "c-1", "type": None, "name": None},
        "expires_at": None,
        "owner": None,
        "cause": {"id": "e1", "source": "//test", "type": None, "time": None, "reason": None},
        "attempt": 1,
        "received_at": "2026-07-15T11:59:00Z",
        "completed_at": "2026-07-15T12:00:00Z",
        "modelarts_request_id": None,
        "field": "ttl",
        "problem": "is missing",
        "original": {"content_type": None, "data_base64": "/3s="},
    }
    assert told(event, REJECTED).subject == "projects/p1/hyper-clusters/c-1"


def test_a_cluster_is_told_as_it_was_seen_and_else_as_it_was_asked_for() -> None:
    event = an_event(type="ECS", name="ci-b")
    unseen = data(event, AlreadyGone(detail="x"))["cluster"]
    seen = data(event, Skipped(reason="name_differs", detail="x", cluster=CLUSTER))["cluster"]
    assert (unseen["type"], unseen["name"]) == ("ECS", "ci-b")
    assert (seen["type"], seen["name"]) == ("HPS", "ci-a")


@pytest.mark.parametrize(
    "asks", [replace(REJECTED, project_id=None), replace(REJECTED, cluster_id=None)], ids=["no project", "no cluster"]
)
def test_a_cluster_that_is_not_known_is_no_subject(asks: Rejected) -> None:
    completion = told(Event(key="k", cause=Cause(), asks=asks), asks)
    assert completion.subject is None
    assert "subject" not in events.attributes(completion)


def test_a_completion_event_is_a_cloudevent_with_the_outcome_as_an_extension() -> None:
    completion = told(an_event(), Deleted(detail="gone"))
    assert events.attributes(completion) == {
        "id": completion.id,
        "source": "//modelarts-cleanup/cn-southwest-2",
        "type": "dev.modelarts-cleanup.cleanup.completed.v1",
        "specversion": "1.0",
        "time": "2026-07-15T12:00:00Z",
        "subject": "projects/p1/hyper-clusters/c-1",
        "outcome": "deleted",
    }


def test_a_structured_completion_event_is_one_line_with_its_data_as_json() -> None:
    completion = told(an_event(owner="Ä\n\u2028"), Deleted(detail="fünf"))
    line = events.structured(events.attributes(completion), completion.data)
    assert "\n" not in line
    assert "fünf" in line
    assert json.loads(line) == {
        **events.attributes(completion),
        "datacontenttype": "application/json",
        "data": json.loads(completion.data),
    }
    assert ": " not in line.replace("fünf", "")


def test_data_is_written_compactly_and_in_utf_8() -> None:
    assert told(an_event(owner="Ä"), Deleted(detail="x")).data.startswith(
        '{"outcome":"deleted","reason":null,"detail":"x",'
    )
    assert '"owner":"Ä"' in told(an_event(owner="Ä"), Deleted(detail="x")).data


def test_an_answer_tells_how_it_ended_and_whether_it_is_a_duplicate() -> None:
    completion = told(an_event(), Skipped(reason="dry_run", detail="dry"), deliveries=4)
    expected = {"outcome": "skipped", "reason": "dry_run", "detail": "dry", "id": completion.id}
    assert events.answer(completion, duplicate=False) == expected
    assert events.answer(completion, duplicate=True) == {**expected, "duplicate": True}
    assert events.attempt(completion) == 4


# Who a completion event is.


def test_the_id_of_a_completion_event_stays_the_same_from_version_to_version() -> None:
    space = uuid.uuid5(uuid.NAMESPACE_URL, "dev.modelarts-cleanup.cleanup.completed.v1")
    of_expiry = str(uuid.uuid5(space, "expiry:cn-southwest-2:p1:c-1:2026-07-15T11:00:00Z"))
    of_event = str(uuid.uuid5(space, "event:e1"))
    assert told(an_event(), Deleted(detail="x")).id == of_expiry
    assert told(an_event(), AlreadyGone(detail="x")).id == of_expiry
    assert told(an_event(), Skipped(reason="dry_run", detail="x")).id == of_event
    assert told(an_event(), Failed(reason="stuck", detail="x")).id == of_event
    assert told(Event(key="e1", cause=Cause(), asks=REJECTED), REJECTED).id == of_event


CLOSING: st.SearchStrategy[Outcome] = st.sampled_from(
    [Deleted(detail="a"), Deleted(detail="b", cluster=CLUSTER, request_id="r"), AlreadyGone(detail="c")]
)
JUDGING: st.SearchStrategy[Outcome] = st.sampled_from(
    [
        Skipped(reason="dry_run", detail="a", cluster=CLUSTER),
        Skipped(reason="has_members", detail="b", members=(MEMBER,)),
        Failed(reason="stuck", detail="c", request_id="r"),
    ]
)
TWO = st.sampled_from([0, 1])
EVENTS = st.builds(
    lambda key, cluster, hours, owner: an_event(
        f"e{key}",
        ref=ClusterRef(REGION, "p1", f"c-{cluster}"),
        expires_at=NOW + timedelta(hours=hours),
        owner=f"o{owner}",
        reason=f"r{owner}",
    ),
    *[TWO] * 4,
)
MORE = st.fixed_dictionaries({"deliveries": st.integers(1, 9), "now": st.sampled_from([NOW, NOW + timedelta(days=9)])})


@given(events_=st.tuples(EVENTS, EVENTS), outcomes=st.tuples(CLOSING, CLOSING), more=st.tuples(MORE, MORE))
def test_the_id_of_what_closes_an_expiry_depends_on_the_logical_expiry_alone(
    events_: tuple[Event, Event], outcomes: tuple[Outcome, Outcome], more: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    one, other = (told(event, outcome, **with_) for event, outcome, with_ in zip(events_, outcomes, more, strict=True))
    keys = {event.asks.key for event in events_ if isinstance(event.asks, Expiry)}
    assert (one.id == other.id) == (len(keys) == 1)


@given(events_=st.tuples(EVENTS, EVENTS), outcomes=st.tuples(JUDGING, JUDGING), more=st.tuples(MORE, MORE))
def test_the_id_of_what_judges_an_event_depends_on_its_identity_alone(
    events_: tuple[Event, Event], outcomes: tuple[Outcome, Outcome], more: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    one, other = (told(event, outcome, **with_) for event, outcome, with_ in zip(events_, outcomes, more, strict=True))
    assert (one.id == other.id) == (events_[0].key == events_[1].key)


def test_the_same_thing_told_again_is_told_byte_for_byte() -> None:
    first, again = (told(an_event(owner="x"), Deleted(detail="gone", cluster=CLUSTER)) for _ in range(2))
    assert first == again


@pytest.mark.parametrize(
    ("outcome", "closes"),
    [("deleted", True), ("already_gone", True), ("skipped", False), ("failed", False), ("rejected", False)],
)
def test_only_a_cluster_that_is_gone_closes_its_expiry(outcome: str, closes: bool) -> None:  # noqa: FBT001
    completion = CompletionEvent(id="i", source="s", subject=None, time="t", outcome=outcome, data="{}")
    assert events.closes_expiry(completion) is closes
