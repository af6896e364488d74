"""
Every sample in `events/` is valid, understood, and what we emit; schemas, AsyncAPI document and code say the same.

`PYTHONPATH=function python tests/test_wire.py` writes the completion samples anew.
"""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from fakes import FakeClock, FakeClusters, FakeSink, MemoryStore
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from modelarts_cleanup import envelope, events, fields, model, settings, webhook
from modelarts_cleanup.adapters.sinks import HttpSink
from modelarts_cleanup.cleanup import Clock, World, cleanup
from modelarts_cleanup.guard import Policy
from modelarts_cleanup.ledger import Ledger
from referencing import Registry, Resource

EVENTS = Path(__file__).parent.parent / "events"
SAMPLES = EVENTS / "samples"
PARSER = Path(__file__).parent / "asyncapi"

REGION = "cn-southwest-2"
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
OUTCOMES = {re.sub(r"(?<=.)(?=[A-Z])", "_", kind.__name__).lower() for kind in get_args(model.Outcome)}
ENDS = {
    ("deleted", None),
    ("already_gone", None),
    *(("skipped", reason) for reason in get_args(model.SkipReason)),
    *(("failed", reason) for reason in get_args(model.FailReason)),
    ("rejected", "invalid_event"),
}


def loaded(path: Path) -> Any:
    return json.loads(path.read_text())


def files(pattern: str) -> list[Path]:
    found = sorted(SAMPLES.glob(pattern))
    assert found
    return found


def each(pattern: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", files(pattern), ids=lambda path: path.stem)


INDEX = loaded(SAMPLES / "index.json")
NAMED = {sample["name"]: sample for sample in INDEX["samples"]}
SCHEMAS = {path.name: loaded(path) for path in (EVENTS / "schemas").glob("*.json")}
EXPIRED, EXPIRED_EVENT = "expired.v1.json", "expired.v1.cloudevent.json"
COMPLETED, COMPLETED_EVENT = "completed.v1.json", "completed.v1.cloudevent.json"


@cache
def validator(name: str) -> Any:
    known: Registry[Any] = Registry().with_resources(
        (schema["$id"], Resource.from_contents(schema)) for schema in SCHEMAS.values()
    )
    return Draft202012Validator(SCHEMAS[name], registry=known, format_checker=Draft202012Validator.FORMAT_CHECKER)


def errors(name: str, value: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in validator(name).iter_errors(value)]


def request(headers: Mapping[str, str], body: bytes, method: str = "POST") -> envelope.Request:
    lower = {name.lower(): value for name, value in headers.items()}
    return envelope.Request(method=method, headers=lower, body=body, digest=hashlib.sha256(body).hexdigest())


def request_of(sample: Mapping[str, Any]) -> envelope.Request:
    """Make the request that a sample in `requests/` describes: a text is the body as it stands, the rest is JSON."""
    body = sample.get("body", "")
    text = body if isinstance(body, str) else json.dumps(body)
    sent = base64.b64decode(sample["body_base64"]) if "body_base64" in sample else text.encode()
    return request(sample["headers"], sent, sample.get("method", "POST"))


def understood(asked: envelope.Request) -> model.Event:
    found = envelope.read(asked)
    original = model.Original(content_type=asked.headers.get("content-type"), head=asked.body)
    return events.read(found, key=envelope.identity(found, asked), region=REGION, original=original)


def told_of(event: model.Event) -> dict[str, Any]:
    """Say what was understood in the words of a sample's `expected`."""
    asks = event.asks
    ends: dict[str, Any] = {"rejected": asks.field} if isinstance(asks, model.Rejected) else {"expiry": words(asks)}
    return {"id": event.cause.id, "source": event.cause.source, **ends}


def words(expiry: model.Expiry) -> dict[str, Any]:
    return {
        "region": expiry.ref.region,
        "project_id": expiry.ref.project_id,
        "cluster_id": expiry.ref.cluster_id,
        "expires_at": model.instant_text(expiry.expires_at),
        "type": expiry.type,
        "name": expiry.name,
        "protected": expiry.protected,
        "owner": expiry.owner,
        "reason": expiry.reason,
    }


# The use case, run under the conditions that the index gives for a sample.


class SampleClusters(FakeClusters):
    """The fake, with request ids of the form that ModelArts uses."""

    def look(
        self, ref: model.ClusterRef, cluster_type: model.ClusterType | None, *, clock: Clock
    ) -> model.Cluster | model.Absent:
        found = super().look(ref, cluster_type, clock=clock)
        return model.Absent(request_id="2f6c1f0bb2a44f0e9c3a7d1f5b8e6a01") if isinstance(found, model.Absent) else found

    def delete(self, cluster: model.Cluster, *, clock: Clock) -> model.Accepted | model.NotFound | model.Refused:
        answer = super().delete(cluster, clock=clock)
        return model.Accepted(request_id="9d4e7b3ac1f84d62b5e0f8a2c6d7e902") if answer == ACCEPTED else answer


ACCEPTED = model.Accepted(request_id="delete-1")


def event_of(name: str) -> model.Event:
    return understood(request(STRUCTURED, (SAMPLES / "expiry" / f"{name}.json").read_bytes()))


def clusters_of(name: str) -> FakeClusters:
    clusters, given_cluster, asks = SampleClusters(), NAMED[name]["cluster"], event_of(name).asks
    if given_cluster and isinstance(asks, model.Expiry):
        clusters.add(asks.ref, given_cluster["name"], given_cluster["type"])
        members = tuple(model.Member(**member) for member in given_cluster.get("members", ()))
        clusters.of[asks.ref.cluster_id] = members
        on_delete = given_cluster.get("on_delete")
        if on_delete == "stays":
            clusters.looks_after_delete = 1_000_000
        elif on_delete:
            clusters.answer_to_delete = model.Refused(**on_delete, request_id="c7a1d5e3f0924b8693bd2e6f1a4c8d03")
    return clusters


def policy_of(name: str) -> Policy:
    unused = {"CREDENTIALS": "file:///c", "COMPLETION_SINK": "file:///s", "LEDGER": "sqlite:///l"}
    return settings.read({**unused, **INDEX["settings"], **NAMED[name].get("settings", {})}).policy


@cache
def completion_of(name: str) -> model.CompletionEvent:
    sample, clock, sink = NAMED[name], FakeClock(datetime.fromisoformat(INDEX["now"])), FakeSink()
    world = World(policy=policy_of(name), clusters=clusters_of(name), ledger=Ledger(MemoryStore()), sink=sink)
    if "after" in sample:
        cleanup(event_of(sample["after"]), holder="before", world=world, clock=clock)
    if "again_after_minutes" in sample:
        with suppress(model.RetryLater):
            cleanup(event_of(name), holder="first", world=world, clock=clock)
        clock.next_delivery(timedelta(minutes=sample["again_after_minutes"]))
    return cleanup(event_of(name), holder="last", world=world, clock=clock).completion


def line_of(completion: model.CompletionEvent) -> str:
    return events.structured(events.attributes(completion), completion.data)


# The samples.


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_a_schema_is_one_and_its_own_examples_are_valid(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$id"] == f"https://modelarts-cleanup.dev/schemas/{name}"
    for example in schema.get("examples", ()):
        assert errors(name, example) == []
    for field, described in schema["properties"].items():
        assert "$ref" in described or described["description"].endswith("."), field
        alone = validator(name).evolve(schema={"$ref": f"{schema['$id']}#/properties/{field}"})
        assert all(alone.is_valid(example) for example in described.get("examples", ())), field


@each("data/*.json")
def test_data_alone_is_valid_and_the_same_logical_expiry_however_it_is_written(path: Path) -> None:
    data = loaded(path)
    assert errors(EXPIRED, data) == []
    first = event_of("deleted").asks
    assert isinstance(first, model.Expiry)
    assert events.parse(data, region=REGION).key == first.key


@each("expiry/*.json")
def test_an_expiry_event_is_valid_unless_it_is_named_rejected(path: Path) -> None:
    assert bool(errors(EXPIRED_EVENT, loaded(path))) == path.name.startswith("rejected")


@each("requests/*/*.json")
def test_a_request_is_understood_as_it_says(path: Path) -> None:
    sample = loaded(path)
    assert set(sample) <= {"about", "method", "headers", "body", "body_base64", "expected"}
    event = understood(request_of(sample))
    assert told_of(event) == sample["expected"]
    assert isinstance(event.asks, model.Rejected) == (path.parent.name == "rejected")


@each("requests/understood/*.json")
def test_every_transport_brings_the_same_logical_expiry(path: Path) -> None:
    expiry, first = understood(request_of(loaded(path))).asks, event_of("deleted").asks
    assert isinstance(expiry, model.Expiry)
    assert isinstance(first, model.Expiry)
    assert expiry.key == first.key


@pytest.mark.parametrize("path", [*files("data/*.json"), *files("expiry/*.json")], ids=lambda path: path.stem)
def test_data_and_events_are_bodies_of_a_webhook_as_they_are(path: Path) -> None:
    signed = request({"Webhook-Id": "msg_1", "Webhook-Timestamp": "1784109600"}, path.read_bytes())
    if path.name.startswith("rejected"):
        with pytest.raises(fields.InvalidEventError):
            webhook.expiry_event(signed)
        return
    attributes, data = webhook.expiry_event(signed)
    passed_on = understood(request({f"ce-{name}": value for name, value in attributes.items()}, data.encode()))
    given_data = loaded(path)
    assert passed_on.asks == events.parse(given_data.get("data", given_data), region=REGION)
    assert (passed_on.cause.source, passed_on.cause.id) == (webhook.SOURCE, "msg_1")


def test_a_rejected_request_is_named_after_the_field_that_it_must_name() -> None:
    for path in files("requests/rejected/*.json"):
        assert path.stem.startswith(loaded(path)["expected"]["rejected"])


def test_every_field_and_attribute_has_a_request_that_is_rejected_for_it() -> None:
    fields = {loaded(path)["expected"]["rejected"] for path in files("requests/rejected/*.json")}
    attributes = {"id", "source", "type", "specversion", "data", "data_base64"}
    assert fields >= set(SCHEMAS[EXPIRED]["properties"]) | attributes


def test_the_schema_refuses_every_structured_sample_that_is_rejected_but_for_what_it_cannot_say() -> None:
    blind = set()
    for path in files("requests/rejected/*.json"):
        sample = loaded(path)
        if (
            sample["headers"] == STRUCTURED
            and isinstance(sample["body"], dict)
            and not errors(EXPIRED_EVENT, sample["body"])
        ):
            blind.add(path.stem)
    assert blind == {
        "created_at-with-ttl-beyond-calendar",
        "data_base64-not-base64",
        "expires_at-differs-from-created_at-and-ttl",
        "ttl-above-maximum",
        "ttl-below-minimum",
        "ttl-far-above-maximum",
        "ttl-zero",
    }


def test_the_index_names_every_pair_of_samples() -> None:
    assert (
        set(NAMED)
        == {path.stem for path in files("expiry/*.json")}
        == {path.stem for path in files("completion/*.json")}
    )
    named = {name if (part := name.partition("-"))[1] == "" else f"{part[0]}-{part[2]}" for name in NAMED}
    assert named == {"-".join(filter(None, end)) for end in ENDS}


@each("completion/*.json")
def test_a_completion_sample_is_valid_and_byte_for_byte_what_we_emit(path: Path) -> None:
    sample = loaded(path)
    emitted = line_of(completion_of(path.stem))
    assert json.dumps(sample, ensure_ascii=False, separators=(",", ":")) == emitted
    assert errors(COMPLETED_EVENT, sample) == []
    assert (f"{sample['outcome']}-{sample['data']['reason'] or ''}").rstrip("-") == path.stem
    cause = loaded(SAMPLES / "expiry" / path.name)
    assert (sample["data"]["cause"]["source"], sample["data"]["cause"]["id"]) == (cause["source"], cause["id"])


def test_completion_samples_cover_every_end_and_the_schema_names_no_other() -> None:
    samples = [loaded(path) for path in files("completion/*.json")]
    assert {(sample["outcome"], sample["data"]["reason"]) for sample in samples} == ENDS
    properties = SCHEMAS[COMPLETED]["properties"]
    assert set(properties["outcome"]["enum"]) == OUTCOMES == {outcome for outcome, _ in ENDS}
    assert set(properties["reason"]["enum"]) == {reason for _, reason in ENDS}
    assert set(SCHEMAS[COMPLETED_EVENT]["properties"]["outcome"]["enum"]) == OUTCOMES


def test_we_emit_every_field_that_the_schema_names_and_no_other() -> None:
    samples = [loaded(path) for path in files("completion/*.json")]
    assert {name for sample in samples for name in sample} == set(SCHEMAS[COMPLETED_EVENT]["properties"])
    assert {name for sample in samples for name in sample["data"]} == set(SCHEMAS[COMPLETED]["properties"])
    for nested in ("cluster", "cause", "original"):
        described = set(SCHEMAS[COMPLETED]["properties"][nested]["properties"])
        assert {name for sample in samples for name in sample["data"].get(nested, ())} == described


@pytest.mark.parametrize("end", sorted(ENDS, key=str), ids=lambda end: "-".join(filter(None, end)))
def test_a_reason_is_valid_with_its_own_outcome_alone(end: tuple[str, str | None]) -> None:
    outcome = end[0]
    name = "-".join(filter(None, end))
    data = loaded(SAMPLES / "completion" / f"{name}.json")["data"]
    for other in sorted(OUTCOMES - {outcome}):
        fits = outcome in ("deleted", "already_gone") and other in ("deleted", "already_gone")
        assert bool(errors(COMPLETED, {**data, "outcome": other})) != fits, other
    for other_reason in {reason for _, reason in ENDS} - {reason for of, reason in ENDS if of == outcome}:
        assert errors(COMPLETED, {**data, "reason": other_reason}), other_reason


@each("completion/*.json")
def test_a_completion_event_without_one_of_its_fields_or_with_one_of_another_outcome_is_not_valid(path: Path) -> None:
    sample, rejected = loaded(path), loaded(SAMPLES / "completion" / "rejected-invalid_event.json")
    for name in sample:
        fits = name == "subject" and sample["outcome"] == "rejected"
        assert bool(errors(COMPLETED_EVENT, {key: sample[key] for key in sample if key != name})) != fits, name
    data = sample["data"]
    for name in data:
        assert errors(COMPLETED, {key: data[key] for key in data if key != name}), name
    kept_for = loaded(SAMPLES / "completion" / "skipped-has_members.json")["data"]
    for name, value in {**kept_for, **rejected["data"]}.items():
        assert name in data or errors(COMPLETED, {**data, name: value}), name


def test_a_completion_event_may_gain_fields() -> None:
    sample = loaded(SAMPLES / "completion" / "deleted.json")
    sample["data"]["cluster"]["added"] = sample["data"]["added"] = sample["added"] = "later"
    assert errors(COMPLETED_EVENT, sample) == []


# The schema and the parser, on what nobody thought of.

FIELDS = SCHEMAS[EXPIRED]["properties"]
DATA = [loaded(path) for path in files("data/*.json")]
ODD = " \n0\uff119-+:.TZtzPWwdDhHmMsS_é"
UNIT = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}


def fitting(name: str) -> st.SearchStrategy[Any]:
    described = FIELDS[name]
    if "$ref" in described:
        described = SCHEMAS[EXPIRED]["$defs"][described["$ref"].rpartition("/")[2]]
    patterns = [one["pattern"] for one in (described, *described.get("anyOf", ())) if "pattern" in one]
    if patterns:
        return st.one_of([st.from_regex(pattern, fullmatch=True) for pattern in patterns])
    if described.get("type") == "string":
        return st.text(max_size=3) | st.integers(1022, 1026).map("x".__mul__)
    return st.sampled_from(described["enum"]) if "enum" in described else st.booleans()


@st.composite
def bent(draw: st.DrawFn, name: str) -> object:
    text = draw(fitting(name) | st.sampled_from(FIELDS[name]["examples"]))
    if not isinstance(text, str):
        return str(text)
    at = draw(st.integers(0, len(text)))
    return text[:at] + draw(st.text(ODD, max_size=2)) + text[at + draw(st.integers(0, 1)) :]


def values(name: str) -> st.SearchStrategy[Any]:
    wrong: st.SearchStrategy[Any] = st.sampled_from([None, True, False, 0, 1, 1.5, "", "0", [], {}, ["a"], {"a": 1}])
    right: st.SearchStrategy[Any] = st.sampled_from(FIELDS[name]["examples"])
    return st.one_of(right, fitting(name), bent(name), wrong)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    document = dict(draw(st.sampled_from(DATA)))
    for name in draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=3)):
        document[name] = draw(values(name))
    for name in draw(st.sets(st.sampled_from(sorted(document)), max_size=1)):
        del document[name]
    return document


def refused_by_schema(document: Mapping[str, Any]) -> set[str]:
    refused = set()
    for error in validator(EXPIRED).iter_errors(document):
        if error.path:
            refused.add(error.path[0])
        elif error.validator == "anyOf":
            refused |= {"expires_at", "created_at", "ttl"}
        else:
            refused |= set(error.validator_value) - set(document)
    return refused


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)


def beyond_schema(document: Mapping[str, Any]) -> set[str]:
    """Find what is wrong and no schema can say: ranges, sums, and the ends of the calendar."""
    wrong: set[str] = set()
    for name in ("expires_at", "created_at"):
        with suppress(OverflowError):
            if name not in document or moment(document[name]).year >= 2000:
                continue
        wrong.add(name)
    if "ttl" in document:
        parts = re.findall(r"([0-9]+)([wdhms])", document["ttl"].lower())
        seconds = sum(int(number) * UNIT[unit] for number, unit in parts)
        if not 60 <= seconds <= 366 * 86_400:
            wrong.add("ttl")
        elif "created_at" in document and not wrong:
            try:
                ends = moment(document["created_at"]) + timedelta(seconds=seconds)
            except OverflowError:
                return {"created_at"}
            if "expires_at" in document and moment(document["expires_at"]) != ends:
                wrong.add("expires_at")
    return wrong


def agreed(document: Mapping[str, Any]) -> set[str]:
    """Let schema and parser judge a document: they agree, and give the fields that they refuse."""
    refused = refused_by_schema(document)
    refused |= beyond_schema({name: value for name, value in document.items() if name not in refused})
    named: str | None = None
    expiry: model.Expiry | None = None
    try:
        expiry = events.parse(document, region=REGION)
    except fields.InvalidEventError as error:
        named = error.field
    assert named in refused if refused else named is None
    if expiry and "expires_at" in document:
        assert expiry.expires_at == moment(document["expires_at"])
    return refused


@given(documents())
def test_schema_and_parser_take_and_refuse_the_same_and_for_the_same_field(document: dict[str, Any]) -> None:
    agreed(document)


@pytest.mark.parametrize(
    ("field", "last", "first_wrong"),
    [
        ("project_id", "p" * 64, "p" * 65),
        ("cluster_id", "c" * 64, "c" * 65),
        ("region", "r" * 64, "r" * 65),
        ("name", "n" * 1024, "n" * 1025),
        ("name", "n", ""),
        ("owner", "o" * 1024, "o" * 1025),
        ("reason", "r" * 1024, "r" * 1025),
        ("ttl", "1d".zfill(64), "1d".zfill(65)),
        ("ttl", "366d", "366d1s"),
        ("ttl", "60s", "59s"),
        ("expires_at", "2000-01-01T00:00:00Z", "1999-12-31T23:59:59Z"),
        ("expires_at", "1999-12-31T23:00:00-01:00", "2000-01-01T00:59:59+01:00"),
        ("expires_at", "9999-12-31T23:59:59Z", "9999-12-31T23:59:59-00:01"),
        ("expires_at", "2028-02-29T23:59:59+23:59", "2027-02-29T23:59:59+23:59"),
        ("expires_at", "2026-07-15T10:00:00.123456789Z", "2026-07-15T10:00:00.1234567890Z"),
    ],
)
def test_schema_and_parser_draw_the_same_line(field: str, last: str, first_wrong: str) -> None:
    document = {"project_id": "p", "cluster_id": "c", "expires_at": "2026-07-15T10:00:00Z"}
    assert agreed({**document, field: last}) == set()
    assert agreed({**document, field: first_wrong}) == {field}


TEXTS = st.none() | st.text(max_size=9)
NAMES = st.none() | st.text(min_size=1, max_size=9)
INSTANTS = st.datetimes(datetime(2000, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - see timezones
REFS = st.builds(
    model.ClusterRef,
    fitting("region"),
    fitting("project_id"),
    fitting("cluster_id"),
)
EXPIRIES = st.builds(
    model.Expiry, ref=REFS, expires_at=INSTANTS, type=st.sampled_from([None, "HPS", "ECS"]), name=NAMES, owner=TEXTS
)
CLUSTERS = st.builds(
    model.Cluster, ref=REFS, type=st.sampled_from(["HPS", "ECS"]), name=st.text(min_size=1, max_size=9)
)
MEMBERS = st.builds(model.Member, id=st.text(max_size=9), name=TEXTS, status=TEXTS, prepaid=st.booleans())
DETAIL = st.text(min_size=1, max_size=9)
KEPT_FOR_MEMBERS = ("has_members", "needs_unsubscribe")
REJECTIONS = st.builds(
    model.Rejected,
    field=DETAIL,
    problem=DETAIL,
    original=st.builds(model.Original, content_type=NAMES, head=st.binary(max_size=9)),
    region=st.none() | fitting("region"),
    project_id=st.none() | fitting("project_id"),
    cluster_id=st.none() | fitting("cluster_id"),
)
JUDGEMENTS = st.one_of(
    st.builds(model.Deleted, detail=DETAIL, cluster=st.none() | CLUSTERS, request_id=NAMES),
    st.builds(model.AlreadyGone, detail=DETAIL, request_id=NAMES),
    st.builds(
        model.Skipped,
        reason=st.sampled_from([reason for reason in get_args(model.SkipReason) if reason not in KEPT_FOR_MEMBERS]),
        detail=DETAIL,
        cluster=st.none() | CLUSTERS,
    ),
    st.builds(
        model.Skipped,
        reason=st.sampled_from(KEPT_FOR_MEMBERS),
        detail=DETAIL,
        cluster=CLUSTERS,
        members=st.lists(MEMBERS, min_size=1, max_size=2).map(tuple),
    ),
    st.builds(
        model.Failed,
        reason=st.sampled_from(get_args(model.FailReason)),
        detail=DETAIL,
        cluster=CLUSTERS,
        request_id=NAMES,
    ),
)
CAUSES = st.builds(
    model.Cause, id=DETAIL, source=DETAIL, type=NAMES, time=st.none() | INSTANTS.map(model.instant_text), reason=TEXTS
)


@given(JUDGEMENTS | REJECTIONS, EXPIRIES, CAUSES, st.text(max_size=9), INSTANTS)
def test_whatever_is_told_of_whatever_event_is_valid(
    outcome: model.Outcome, expiry: model.Expiry, cause: model.Cause, key: str, now: datetime
) -> None:
    asks = outcome if isinstance(outcome, model.Rejected) else expiry
    event = model.Event(key=key, cause=cause, asks=asks)
    completion = events.completion_event(event, outcome, deliveries=1, received_at=now, region=REGION, now=now)
    assert errors(COMPLETED_EVENT, json.loads(line_of(completion))) == []


# The CloudEvents SDK as the oracle.

TEXT_OF_ATTRIBUTE = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="%"), min_size=1)


def an_sdk_event(id_: str, source: str) -> CloudEvent:
    given_attributes = {"type": events.EXPIRED, "id": id_, "source": source, "time": "2026-07-15T10:00:00Z"}
    return CloudEvent(given_attributes, loaded(SAMPLES / "data" / "every-field.json"))


@given(TEXT_OF_ATTRIBUTE, TEXT_OF_ATTRIBUTE)
def test_events_made_by_the_sdk_are_understood_in_both_modes(id_: str, source: str) -> None:
    made = an_sdk_event(id_, source)
    expected = events.parse(loaded(SAMPLES / "data" / "every-field.json"), region=REGION)
    for headers, body in (to_binary(made), to_structured(made)):
        assert isinstance(body, bytes)
        event = understood(request(headers, body))
        assert event.asks == expected
        assert (event.cause.id, event.cause.source, event.cause.time) == (id_, source, "2026-07-15T10:00:00Z")


def test_both_modes_of_the_sdk_are_one_event() -> None:
    made = an_sdk_event("e1", "//test")
    binary, structured = (
        understood(request(headers, bytes(body or b""))) for headers, body in (to_binary(made), to_structured(made))
    )
    assert binary == structured


@each("completion/*.json")
def test_the_sdk_understands_our_structured_events(path: Path) -> None:
    line = line_of(completion_of(path.stem))
    read = from_http(STRUCTURED, line)
    assert {**read.get_attributes(), "data": read.get_data()} == loaded(path)


@contextmanager
def receiver(got: list[tuple[dict[str, str], bytes]]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append((dict(self.headers.items()), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_the_sdk_understands_our_events_over_http() -> None:
    got: list[tuple[dict[str, str], bytes]] = []
    names = sorted(NAMED)
    with receiver(got) as url:
        for name in names:
            HttpSink(url).publish(completion_of(name))
    for name, (headers, body) in zip(names, got, strict=True):
        sample = loaded(SAMPLES / "completion" / f"{name}.json")
        read = from_http(headers, body)
        assert headers["Content-Type"] == sample["datacontenttype"]
        assert {**read.get_attributes(), "data": read.get_data()} == sample


# The AsyncAPI document.

DOCUMENT = yaml.safe_load((EVENTS / "asyncapi.yaml").read_text())
MESSAGES = DOCUMENT["components"]["messages"]
NAMED_SCHEMAS = DOCUMENT["components"]["schemas"]


def pointed_at(reference: str, document: Any = DOCUMENT) -> Any:
    file, _, pointer = reference.partition("#")
    found = loaded(EVENTS / file) if file else document
    for part in filter(None, pointer.split("/")):
        found = found[part]
    return found


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (one for name, one in value.items() if name == "$ref")
        yield from (reference for one in value.values() for reference in references(one))
    elif isinstance(value, list):
        yield from (reference for one in value for reference in references(one))


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    found = set(references(DOCUMENT))
    assert all(pointed_at(reference) for reference in found)
    assert {f"schemas/{name}" for name in SCHEMAS} <= found
    assert {f"#/components/messages/{name}" for name in set(MESSAGES) - {"completedStructured"}} <= found


@pytest.mark.parametrize("name", sorted(name for name, message in MESSAGES.items() if "examples" in message))
def test_the_examples_of_a_message_are_valid(name: str) -> None:
    message = MESSAGES[name]
    schema = message["payload"]["$ref"].removeprefix("schemas/")
    for example in message["examples"]:
        assert errors(schema, pointed_at(example["payload"]["$ref"])) == []


def test_the_asyncapi_document_says_what_the_code_says() -> None:
    incoming = NAMED_SCHEMAS["expiredAttributes"]["properties"]
    outgoing = NAMED_SCHEMAS["completedAttributes"]["properties"]
    assert incoming["ce-type"]["const"] == events.EXPIRED
    assert outgoing["ce-type"]["const"] == events.COMPLETED
    assert set(outgoing["ce-outcome"]["enum"]) == OUTCOMES
    named = {f"ce-{name}": value for name, value in events.attributes(completion_of("deleted")).items()}
    assert set(outgoing) == set(named)
    assert Draft202012Validator(NAMED_SCHEMAS["completedAttributes"]).is_valid(named)
    unnamed = {f"ce-{name}" for name in events.attributes(completion_of("rejected-invalid_event"))}
    assert set(NAMED_SCHEMAS["completedAttributes"]["required"]) == set(named) - {"ce-subject"} <= unnamed
    assert set(NAMED_SCHEMAS["retry"]["properties"]["reason"]["enum"]) == set(get_args(model.RetryReason))
    answer = events.answer(completion_of("deleted"), duplicate=True)
    assert set(NAMED_SCHEMAS["told"]["properties"]) == set(answer)


def test_the_asyncapi_document_names_every_way_in_and_out() -> None:
    ways = {
        (operation["action"], operation["channel"]["$ref"].rpartition("/")[2])
        for operation in DOCUMENT["operations"].values()
    }
    assert ways == {
        ("receive", "expiries"),
        ("receive", "expiriesOverHttp"),
        ("receive", "expiriesByWebhook"),
        ("receive", "deadLetters"),
        ("send", "expiries"),
        ("send", "completions"),
        ("send", "completionsOverHttp"),
    }
    assert {channel for _, channel in ways} == set(DOCUMENT["channels"])


def parser_of(cache_of_pytest: pytest.Cache) -> Path:
    """Install the official parser, once for its lock; skip where it cannot be had."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not node or not npm:
        pytest.skip("node or npm is missing")
    lock = hashlib.sha256((PARSER / "package-lock.json").read_bytes()).hexdigest()[:16]
    installed = cache_of_pytest.mkdir("asyncapi") / lock
    if not installed.exists():
        fresh = cache_of_pytest.mkdir("asyncapi") / f"{lock}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(PARSER, fresh)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"]
        try:
            subprocess.run(command, cwd=fresh, check=True, capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"the parser cannot be installed: {type(error).__name__}")
        fresh.rename(installed)
    return installed


def test_the_official_parser_takes_the_asyncapi_document(cache: pytest.Cache) -> None:
    modules = parser_of(cache)
    command = ["node", str(modules / "judge.mjs"), str(modules), str(EVENTS / "asyncapi.yaml")]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    judged = json.loads(said.stdout)
    assert [one for one in judged["diagnostics"] if one["severity"] <= 1] == []  # errors and warnings
    assert set(judged["operations"]) == set(DOCUMENT["operations"])


def write_completion_samples() -> None:
    for name in NAMED:
        sample = json.loads(line_of(completion_of(name)))
        path = SAMPLES / "completion" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(sample, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    write_completion_samples()
