import base64
import io
import json
import logging
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import flask
import functions_framework
import modelarts_cleanup
import modelarts_cleanup.app
import pytest
from fakes import REF, FakeClusters, FakeSink, MemoryStore, a_policy, an_event
from flask.testing import FlaskClient
from modelarts_cleanup import app, credentials, deadline, settings
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.adapters.secrets import Secret
from modelarts_cleanup.adapters.sinks import FileSink, HttpSink
from modelarts_cleanup.cleanup import World
from modelarts_cleanup.deadline import DeliveryClock, TimeIsUp, told_within, within
from modelarts_cleanup.envelope import LARGEST_DATA
from modelarts_cleanup.ledger import Claim, Ledger, Told
from modelarts_cleanup.local.simulator import Answer, Call, Drop, Fault, Request, Reset, Simulator, Slow
from modelarts_cleanup.model import RetryLater
from served import EXPIRED, FUNCTION, Served, completions
from served import settings as environment_in
from standardwebhooks.webhooks import Webhook as StandardWebhook

SUBSCRIPTION = "projects/p/subscriptions/s"
PUBSUB_SOURCE = f"//pubsub.googleapis.com/{SUBSCRIPTION}"
PAST = "2026-07-01T00:00:00Z"

Serve = Callable[..., FlaskClient]


@dataclass
class Stage:
    """A ModelArts, a folder for all else, and the function that the framework serves."""

    simulator: Simulator
    folder: Path
    serve: Serve
    changed: dict[str, str] = field(default_factory=dict)
    _client: FlaskClient | None = None

    @property
    def client(self) -> FlaskClient:
        if self._client is None:
            given = environment_in(
                self.folder,
                endpoint=self.simulator.url,
                credentials=self.simulator.credentials_json(),
                **self.changed,
            )
            self._client = self.serve(given)
        return self._client

    @property
    def told(self) -> list[dict[str, Any]]:
        return completions(self.folder)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Serve `main.py` by the real framework, as a new process would."""

    def served(environment: Mapping[str, str], target: str = "cleanup") -> FlaskClient:
        for name in (*settings.NAMES, "GOOGLE_CLOUD_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        # The framework writes this one, and extends the path.
        for name, value in {"FUNCTION_SIGNATURE_TYPE": "http", **environment}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.delitem(sys.modules, "main", raising=False)
        monkeypatch.delitem(sys.modules, "modelarts_cleanup.app")
        monkeypatch.delattr(modelarts_cleanup, "app")
        create_app: Callable[..., flask.Flask] = functions_framework.create_app
        return create_app(target, str(FUNCTION / "main.py")).test_client()

    return served


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def stage(simulator: Simulator, tmp_path: Path, serve: Serve) -> Stage:
    return Stage(simulator, tmp_path, serve)


def expiry(cluster_id: str = "c-1", **changed: object) -> dict[str, object]:
    return {"project_id": "p1", "cluster_id": cluster_id, "expires_at": PAST, **changed}


def ce_headers(event_id: str = "e1", **changed: str) -> dict[str, str]:
    headers = {"ce-id": event_id, "ce-source": "//test", "ce-type": EXPIRED, "ce-specversion": "1.0", **changed}
    return {"Content-Type": "application/json", **headers}


def text(data: object) -> bytes:
    return json.dumps(data).encode()


def coded(data: object) -> str:
    return base64.b64encode(text(data)).decode()


def answered(answer: Any) -> tuple[int, str, str | None]:
    assert answer.mimetype == "application/json"
    body = json.loads(answer.data)
    return answer.status_code, body["outcome"], body["reason"]


def shown(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = answer.json
    return found


def log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


# Every way in which an event comes


BARE = {"id": "e1", "source": "//test", "type": EXPIRED, "specversion": "1.0"}


def structured(**changed: object) -> dict[str, object]:
    return {**BARE, "data": expiry(), **changed}


def pushed(**message: object) -> bytes:
    return text({"message": {"messageId": "m1", "publishTime": PAST, **message}, "subscription": SUBSCRIPTION})


JSON = {"Content-Type": "application/json"}
STRUCTURED = {"Content-Type": "application/cloudevents+json; charset=utf-8"}
UNWRAPPED = {"x-goog-pubsub-message-id": "m1", "x-goog-pubsub-subscription-name": SUBSCRIPTION}
ATTRIBUTES = {name: value for name, value in ce_headers().items() if name.startswith("ce-")}
EVENTARC = ce_headers("a1", **{"ce-type": "google.cloud.pubsub.topic.v1.messagePublished", "ce-source": "//t"})
WAYS: dict[str, tuple[dict[str, str], bytes, str, str]] = {
    "binary": (ce_headers(), text(expiry()), "e1", "//test"),
    "binary_without_content_type": (ATTRIBUTES, text(expiry()), "e1", "//test"),
    "structured": (STRUCTURED, text(structured()), "e1", "//test"),
    "structured_base64": (STRUCTURED, text({**BARE, "data_base64": coded(expiry())}), "e1", "//test"),
    "wrapped": (JSON, pushed(data=coded(expiry())), "m1", PUBSUB_SOURCE),
    "wrapped_with_attributes": (JSON, pushed(data=coded(expiry()), attributes=ATTRIBUTES), "e1", "//test"),
    "wrapped_structured": (
        JSON,
        pushed(data=coded(structured()), attributes={"content-type": "application/cloudevents+json"}),
        "e1",
        "//test",
    ),
    "unwrapped": ({**JSON, **UNWRAPPED}, text(expiry()), "m1", PUBSUB_SOURCE),
    "unwrapped_with_attributes": ({**UNWRAPPED, **ce_headers()}, text(expiry()), "e1", "//test"),
    "eventarc": (EVENTARC, pushed(data=coded(expiry())), "m1", PUBSUB_SOURCE),
}


@pytest.mark.parametrize("signature", ["http", "cloudevent"])
@pytest.mark.parametrize("way", WAYS)
def test_an_event_is_understood_whichever_way_it_comes(stage: Stage, way: str, signature: str) -> None:
    headers, body, event_id, source = WAYS[way]
    stage.changed = {"FUNCTION_SIGNATURE_TYPE": signature}
    cluster = stage.simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
    answer = stage.client.post("/", headers=headers, data=body)
    assert answered(answer) == (200, "deleted", None)
    assert cluster not in stage.simulator
    [told] = stage.told
    assert told["data"]["cause"]["id"] == event_id
    assert told["data"]["cause"]["source"] == source
    assert answer.json == {"outcome": "deleted", "reason": None, "detail": told["data"]["detail"], "id": told["id"]}


def test_all_ways_to_tell_one_expiry_are_one_piece_of_work(stage: Stage) -> None:
    stage.simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
    answers = [stage.client.post("/", headers=headers, data=body) for headers, body, _, _ in WAYS.values()]
    assert {answered(answer) for answer in answers} == {(200, "deleted", None)}
    assert len({shown(answer)["id"] for answer in answers}) == 1
    assert len(stage.told) == 1
    assert stage.simulator.count(Call.DELETE_CLUSTER) == 1
    named = [shown(answer).get("duplicate") for answer in answers]
    # The first event came again as it was; the message on Pub/Sub is another event.
    assert named == [{"e1": None, "m1": True}[event_id] for _, _, event_id, _ in WAYS.values()]


PATHS = [
    *(
        "/",
        "",
        "*",
        "/robots.txt",
        "/favicon.ico",
        "//x",
        "//",
        "///",
        "/a//b",
        "/a/b/c/",
        "/\x00",
        "/\xff",
        "/webhook",
    ),
    *("/../x", "/.", "/a;b", "/x?__proto__", "/" + "a" * 5000, "/%2e%2e/", "/\xc3\xa4", "/_ah/warmup", "/static/x"),
]


def at(path: str) -> dict[str, str]:
    """Give a path as a server does; the client would take `//x` for a host."""
    return {"PATH_INFO": path, "RAW_URI": path, "REQUEST_URI": path}


def test_the_path_means_nothing(stage: Stage) -> None:
    for number, path in enumerate(PATHS):
        body = text(expiry(f"c-{number}"))
        answer = stage.client.post("/", headers=ce_headers(f"e-{number}"), data=body, environ_overrides=at(path))
        assert answered(answer) == (200, "already_gone", None), path


@pytest.mark.parametrize("host", ["x", "a" * 300, "ä", "a b", "[", "x:99999", ""])
def test_the_host_means_nothing(stage: Stage, host: str) -> None:
    answer = stage.client.post("/", headers={**ce_headers(), "Host": host}, data=text(expiry()))
    assert answered(answer) == (200, "already_gone", None)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "FOO"])
@pytest.mark.parametrize("path", ["/", "/robots.txt", "//x"])
def test_only_what_is_posted_is_an_event(stage: Stage, method: str, path: str) -> None:
    stage.simulator.on_request = lambda request: pytest.fail(f"{request.method} {request.path}")
    answer = stage.client.open(
        "/", method=method, headers=ce_headers(), data=text(expiry()), environ_overrides=at(path)
    )
    assert answered(answer) == (200, "rejected", "invalid_event")
    [told] = stage.told
    assert told["data"]["field"] == "method"
    assert stage.simulator.requests == ()


def test_a_head_is_answered_without_a_body(stage: Stage) -> None:
    answer = stage.client.head("/")
    assert (answer.status_code, answer.data) == (200, b"")


# Rubbish

RUBBISH: dict[str, tuple[dict[str, str], bytes]] = {
    "nothing": ({}, b""),
    "no_body": (ce_headers(), b""),
    "text": ({"Content-Type": "text/plain"}, b"hello"),
    "form": ({"Content-Type": "application/x-www-form-urlencoded"}, b"a=b&c=d"),
    "multipart": ({"Content-Type": "multipart/form-data; boundary=x"}, b"--x\r\n\r\n--x--"),
    "no_utf8": (ce_headers(), b"\x78\x9c\xff"),
    "nul": (ce_headers(), b"\x00" * 100),
    "broken": (ce_headers(), b'{"cluster_id":abc}'),
    **{f"json_{value}": (ce_headers(), value.encode()) for value in ("null", "[]", '"x"', "5", "true", "{}", "NaN")},
    "nested": (ce_headers(), b"[" * 60_000),
    "twice": (ce_headers(), b'{"project_id":"p1","project_id":"p2"}'),
    "encoded_twice": (JSON, pushed(data=base64.b64encode(coded(expiry()).encode()).decode())),
    "no_base64": (JSON, pushed(data="{}")),
    "no_data": (JSON, pushed(attributes={"cluster_id": "c-1"})),
    "attributes_null": (JSON, pushed(attributes=None)),
    "attributes_list": (JSON, pushed(data=coded(expiry()), attributes=["a"])),
    "attribute_number": (JSON, pushed(data=coded(expiry()), attributes={"a": 1})),
    "message_null": (JSON, text({"message": None, "subscription": SUBSCRIPTION})),
    "message_list": (JSON, text({"message": [], "subscription": SUBSCRIPTION})),
    "no_message_id": (JSON, text({"message": {"data": coded(expiry())}, "subscription": SUBSCRIPTION})),
    "batch": ({"Content-Type": "application/cloudevents-batch+json"}, text([structured()])),
    "another_type": (ce_headers(**{"ce-type": "x"}), text(expiry())),
    "another_specversion": (ce_headers(**{"ce-specversion": "0.3"}), text(expiry())),
    "no_specversion": ({"ce-id": "1", "ce-source": "s", "ce-type": EXPIRED}, text(expiry())),
    "latin_1": (ce_headers(**{"Content-Type": "application/json; charset=iso-8859-1"}), text(expiry())),
    "odd_headers": (ce_headers(**{"ce-id": "%ff%00", "ce-source": "\xff"}), b"{}"),
    "bad_id": (ce_headers(), text(expiry("../../servers/x"))),
    "bad_time": (ce_headers(), text(expiry(expires_at="2026-07-15"))),
    "surrogate": (ce_headers(), b'{"project_id":"p1","cluster_id":"c-1","owner":"\\ud800"}'),
    "large": (ce_headers(), text(expiry(owner="x" * LARGEST_DATA))),
    "huge": (ce_headers(), b"x" * 3_000_000),
    "wrong_length": ({**ce_headers(), "Content-Length": "many"}, b"{}"),
    "negative_length": ({**ce_headers(), "Content-Length": "-1"}, b"{}"),
    "bare_json": (JSON, text(expiry())),
    "cookie": ({**JSON, "Cookie": "a=\xff; ;;=", "Accept": "\xff", "If-Match": "*", "Range": "bytes=0-1"}, b"{}"),
    "expect": ({**JSON, "Expect": "100-continue", "Upgrade": "h2c", "Content-Encoding": "gzip"}, b"{}"),
}


@pytest.mark.parametrize("kind", RUBBISH)
def test_rubbish_is_rejected_once_and_for_all(stage: Stage, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    headers, body = RUBBISH[kind]
    for _ in range(2):
        assert answered(stage.client.post("/", headers=headers, data=body)) == (200, "rejected", "invalid_event")
    [told] = stage.told
    data = told["data"]
    assert data["field"]
    assert data["problem"]
    if "length" not in kind:
        assert base64.b64decode(data["original"]["data_base64"]) == body[: 64 * 1024]
    assert stage.simulator.requests == ()
    lines = log_lines(capsys)
    assert [line["severity"] for line in lines] == ["WARNING"] * 2
    assert str(data["field"]) in lines[0]["message"]


class Chunks(io.RawIOBase):
    """A body of unknown length, as a server hands on a chunked one."""

    def __init__(self, *chunks: bytes | Exception) -> None:
        self._chunks = list(chunks)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._chunks:
            return 0
        chunk = self._chunks.pop(0)
        if isinstance(chunk, Exception):
            raise chunk
        buffer[: len(chunk)] = chunk
        return len(chunk)


def chunked(client: FlaskClient, *chunks: bytes | Exception, **headers: str) -> Any:
    return client.post(
        "/",
        headers={**ce_headers(), "Transfer-Encoding": "chunked", **headers},
        environ_overrides={"wsgi.input": Chunks(*chunks), "wsgi.input_terminated": True},
    )


def test_a_chunked_body_is_read_to_its_end(stage: Stage) -> None:
    body = text(expiry())
    assert answered(chunked(stage.client, body[:5], body[5:])) == (200, "already_gone", None)


def test_a_chunked_body_without_end_in_sight_is_not_kept(stage: Stage) -> None:
    assert answered(chunked(stage.client, *[b"x" * 60_000] * 200)) == (200, "rejected", "invalid_event")
    assert "larger" in stage.told[0]["data"]["problem"]


def test_a_body_that_breaks_off_comes_again(stage: Stage) -> None:
    status, outcome, _ = answered(chunked(stage.client, b"{", OSError("CANARY")))
    assert (status, outcome) == (503, "retry")
    assert stage.told == []


def test_a_body_shorter_than_it_says_is_no_event(stage: Stage) -> None:
    longer = {"CONTENT_LENGTH": "500"}
    answer = stage.client.post("/", headers=ce_headers(), data=text(expiry()), environ_overrides=longer)
    assert answered(answer)[:2] == (503, "retry")
    assert stage.told == []


# The answer to a retry


def test_what_must_come_again_is_answered_with_503_and_the_reason(stage: Stage) -> None:
    stage.simulator.fail(Answer.error(500, "ModelArts.0010"))
    answer = stage.client.post("/", headers=ce_headers(), data=text(expiry()))
    assert answered(answer) == (503, "retry", "modelarts_unavailable")
    assert "problems" not in shown(answer)
    assert answered(stage.client.post("/", headers=ce_headers(), data=text(expiry())))[1] == "already_gone"
    assert stage.told[0]["data"]["attempt"] == 2


@pytest.mark.parametrize("changed", [{}, {"LEDGER": "sqlite:///proc/none/ledger.db"}])
def test_the_lease_is_given_back_with_the_answer(stage: Stage, changed: dict[str, str]) -> None:
    stage.changed = changed
    stage.simulator.fail(Reset(), times=None)
    reasons = {answered(stage.client.post("/", headers=ce_headers(), data=text(expiry())))[2] for _ in range(3)}
    assert reasons == {"ledger_unavailable" if changed else "modelarts_unavailable"}


def test_many_deliveries_at_once_end_in_one_completion_event(stage: Stage) -> None:
    stage.simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
    stage.client.application.test_client()
    barrier = threading.Barrier(8)

    def deliver(number: int) -> tuple[int, str, str | None]:
        barrier.wait()
        client = stage.client.application.test_client()
        return answered(client.post("/", headers=ce_headers(f"e-{number % 2}"), data=text(expiry())))

    with ThreadPoolExecutor(8) as threads:
        found = set(threads.map(deliver, range(8)))
    assert (200, "deleted", None) in found
    assert found <= {(200, "deleted", None), (503, "retry", "in_progress")}
    assert len(stage.told) == 1
    assert stage.simulator.count(Call.DELETE_CLUSTER) == 1


# Settings that cannot be used


def test_without_usable_settings_every_request_is_answered_with_all_problems(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    client = serve({"DRY_RUN": "yes", "ALLOWED_NAMES": "", "CREDENTIALS": "CANARY-access-key"})
    bodies = [
        client.post("/", headers=ce_headers(), data=text(expiry())),
        client.post("/robots.txt", data=b"rubbish"),
        client.get("/", environ_overrides=at("//x")),
        client.post("/", headers=JSON, data=b"x" * 1_000_000),
    ]
    assert [answered(answer) for answer in bodies] == [(503, "retry", "misconfigured")] * 4
    problems = shown(bodies[0])["problems"]
    named = [problem.split()[0] for problem in problems]
    assert sorted(named) == [
        *("ALLOWED_NAMES", "ALLOWED_PROJECTS", "COMPLETION_SINK", "CREDENTIALS"),
        *("DRY_RUN", "LEDGER", "MODELARTS_REGION"),
    ]
    assert all(shown(answer)["problems"] == problems for answer in bodies)
    lines = log_lines(capsys)
    assert [line["severity"] for line in lines] == ["ERROR"] * 4
    assert lines[0]["event_id"] == "e1"
    assert "CANARY" not in json.dumps([lines, problems])


def test_settings_are_read_once_when_they_are_first_needed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    client = stage.client
    monkeypatch.setenv("ALLOWED_PROJECTS", "p2")
    answer = client.post("/", headers=ce_headers(), data=text(expiry()))
    assert answered(answer) == (200, "skipped", "project_not_allowed")
    monkeypatch.setenv("ALLOWED_PROJECTS", "p1")
    answer = client.post("/", headers=ce_headers("e2"), data=text(expiry()))
    assert answered(answer) == (200, "skipped", "project_not_allowed")


def test_a_dry_run_says_so(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.changed = {"DRY_RUN": "true"}
    stage.simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
    assert answered(stage.client.post("/", headers=ce_headers(), data=text(expiry()))) == (200, "skipped", "dry_run")
    assert log_lines(capsys)[0]["dry_run"] is True
    assert stage.simulator.count(Call.DELETE_CLUSTER) == 0


# The log


def test_one_line_is_written_for_a_request_with_all_that_matters(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
    stage.changed = {"GOOGLE_CLOUD_PROJECT": "g-1"}
    trace = {"X-Cloud-Trace-Context": f"{'a' * 32}/1;o=1"}
    stage.client.post("/", headers={**ce_headers(), **trace}, data=text(expiry()))
    [line] = log_lines(capsys)
    duration = line.pop("duration_ms")
    assert 0 < duration < 60_000
    assert line == {
        "severity": "INFO",
        "message": f"deleted: {stage.told[0]['data']['detail']}",
        "outcome": "deleted",
        "reason": None,
        "event_id": "e1",
        "region": "cn-southwest-2",
        "project_id": "p1",
        "cluster_id": "c-1",
        "attempt": 1,
        "dry_run": False,
        "logging.googleapis.com/trace": f"projects/g-1/traces/{'a' * 32}",
    }


@pytest.mark.parametrize(
    ("call", "fault", "reason", "severity"),
    [
        (Call.SHOW_CLUSTER, Answer(500), "modelarts_unavailable", "WARNING"),
        (Call.SHOW_CLUSTER, Answer(429), "throttled", "WARNING"),
        (Call.SHOW_CLUSTER, Answer(401), "credentials_refused", "ERROR"),
        (Call.SHOW_CLUSTER, Answer.error(404, "APIGW.0101"), "misconfigured_endpoint", "ERROR"),
        (Call.DELETE_CLUSTER, Answer.error(403, "ModelArts.6344"), "refused", "ERROR"),
    ],
)
def test_the_severity_says_whether_a_person_must_look(
    stage: Stage, capsys: pytest.CaptureFixture[str], *, call: Call, fault: Fault, reason: str, severity: str
) -> None:
    stage.simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
    stage.simulator.fail(fault, on=call, times=None)
    stage.client.post("/", headers=ce_headers(), data=text(expiry()))
    [line] = log_lines(capsys)
    assert (line["reason"], line["severity"]) == (reason, severity)
    assert (line["attempt"], line["cluster_id"], line["dry_run"]) == (1, "c-1", False)
    assert f"({reason}): " in line["message"]


def test_a_delivery_that_is_put_off_has_its_attempt_too(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    event = an_event("another", ref=REF)
    store = SqliteStore(str(stage.folder / "ledger.db"))
    assert isinstance(Ledger(store).claim(event, holder="another", now=datetime.now(UTC)), Claim)
    answer = stage.client.post("/", headers=ce_headers(), data=text(expiry()))
    assert answered(answer) == (503, "retry", "in_progress")
    [line] = log_lines(capsys)
    assert (line["severity"], line["attempt"]) == ("INFO", 1)


def test_what_is_not_known_is_left_out(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.client.post("/", data=b"rubbish")
    [line] = log_lines(capsys)
    assert set(line) == {"severity", "message", "outcome", "reason", "attempt", "duration_ms", "dry_run"}


def test_a_line_is_one_line_whatever_the_event_says(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = "a\nb\r\u2028\x00\x1b[31m\U0001f600"
    stage.client.post("/", headers=STRUCTURED, data=text(structured(id=nasty)))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.isascii()
    assert json.loads(out)["event_id"] == nasty


A, B = "a" * 32, "b" * 32
TRACES: list[tuple[dict[str, str], str | None]] = [
    ({"X-Cloud-Trace-Context": f"{A}/1;o=1"}, A),
    ({"X-Cloud-Trace-Context": f"{A}/1"}, A),
    ({"X-Cloud-Trace-Context": A}, A),
    ({"X-Cloud-Trace-Context": f"{A};o=1"}, A),
    ({"traceparent": f"00-{A}-00f067aa0ba902b7-01"}, A),
    ({"traceparent": f"00-{A}-00f067aa0ba902b7-01-more"}, A),
    ({"X-Cloud-Trace-Context": f"{A}/1", "traceparent": f"00-{B}-00f067aa0ba902b7-01"}, A),
    ({"X-Cloud-Trace-Context": "", "traceparent": f"00-{B}-00f067aa0ba902b7-01"}, B),
    ({"X-Cloud-Trace-Context": "rubbish"}, None),
    ({"X-Cloud-Trace-Context": A[:31]}, None),
    ({"X-Cloud-Trace-Context": f"{A}a"}, None),
    ({"X-Cloud-Trace-Context": f'{A}"; "x'}, None),
    ({"traceparent": ""}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "trace"), TRACES)
def test_a_trace_is_found_in_each_of_its_forms(
    stage: Stage, capsys: pytest.CaptureFixture[str], headers: dict[str, str], trace: str | None
) -> None:
    stage.client.post("/", headers={**ce_headers(), **headers}, data=text(expiry(region="elsewhere")))
    [line] = log_lines(capsys)
    assert line.get("logging.googleapis.com/trace") == trace


def test_an_event_is_not_lost_for_a_line_that_cannot_be_written(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, _text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    answer = stage.client.post("/", headers=ce_headers(), data=text(expiry(region="elsewhere")))
    assert answered(answer) == (200, "skipped", "region_not_allowed")


# A mistake of ours


def test_a_mistake_of_ours_is_named_by_kind_and_place_and_the_event_comes_again(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = chunked(stage.client, ZeroDivisionError("CANARY"))
    assert answered(answer) == (503, "retry", "internal_error")
    assert shown(answer)["detail"].startswith("ZeroDivisionError in ")
    captured = capsys.readouterr()
    [line] = [json.loads(line) for line in captured.out.splitlines()]
    assert line["severity"] == "CRITICAL"
    assert "CANARY" not in captured.out + captured.err + answer.text


# Whatever hangs


def a_world(**changed: Any) -> World:
    fakes: dict[str, Any] = {
        "policy": a_policy(),
        "clusters": FakeClusters(),
        "ledger": Ledger(MemoryStore()),
        "sink": FakeSink(),
    }
    return World(**{**fakes, **changed})


EVENT = an_event(expires_at=datetime(2026, 7, 1, tzinfo=UTC))
SPAN = timedelta(seconds=0.25)


def left_behind(given: World) -> TimeIsUp:
    started = time.monotonic()
    with pytest.raises(TimeIsUp) as raised:
        told_within(SPAN, EVENT, given, DeliveryClock())
    assert time.monotonic() - started < SPAN.total_seconds() + 4
    assert raised.value.detail.startswith("no end after ")
    return raised.value


def lease_is_free(ledger: Ledger) -> bool:
    try:
        ledger.claim(EVENT, holder="next", now=datetime.now(UTC))
    except RetryLater:
        return False
    ledger.release(EVENT, holder="next", now=datetime.now(UTC))
    return True


@pytest.fixture
def forever() -> Iterator[threading.Event]:
    """Give something to wait for, that comes when the test has ended."""
    event = threading.Event()
    yield event
    event.set()


def test_a_modelarts_that_hangs_is_left_behind_without_the_lease(simulator: Simulator) -> None:
    keys = Secret("s", fetch=lambda: simulator.credentials_json().encode(), read=credentials.read)
    simulator.fail(Slow(30.0))
    given = a_world(clusters=ModelArts(simulator.url, keys))
    assert left_behind(given).reason == "modelarts_unavailable"
    assert lease_is_free(given.ledger)


def test_a_secret_that_hangs_is_left_behind_without_the_lease(forever: threading.Event) -> None:
    def fetch() -> bytes:
        forever.wait()
        return b""

    keys = Secret("s", fetch=fetch, read=credentials.read)
    given = a_world(clusters=ModelArts("http://127.0.0.1:1", keys))
    assert left_behind(given).reason == "credentials_unavailable"
    assert left_behind(given).reason == "credentials_unavailable"  # by then it is the lock that is waited for
    assert lease_is_free(given.ledger)


def test_a_file_that_hangs_is_left_behind_without_the_lease(tmp_path: Path) -> None:
    import fcntl  # noqa: PLC0415 - for this test only

    file = tmp_path / "completions.jsonl"
    given = a_world(sink=FileSink(str(file)))
    with file.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert left_behind(given).reason == "sink_unavailable"
        assert lease_is_free(given.ledger)


def test_a_receiver_that_hangs_is_left_behind_without_the_lease(simulator: Simulator) -> None:
    simulator.fail(Slow(30.0))
    given = a_world(sink=HttpSink(simulator.url))
    assert left_behind(given).reason == "sink_unavailable"
    assert lease_is_free(given.ledger)


def test_a_ledger_that_hangs_is_left_behind_too(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "ledger.db"))
    given = a_world(ledger=Ledger(store))
    assert lease_is_free(given.ledger)
    with closing(sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert left_behind(given).reason == "ledger_unavailable"


def test_a_ledger_whose_client_is_still_being_imported_is_known_for_one(forever: threading.Event) -> None:
    class Importing(MemoryStore):
        def transact(self, *_: Any, **__: Any) -> Any:
            forever.wait()

    assert left_behind(a_world(ledger=Ledger(Importing()))).reason == "ledger_unavailable"


def test_whatever_else_hangs_is_a_mistake_of_ours(forever: threading.Event) -> None:
    class Hanging(FakeClusters):
        def look(self, *_: Any, **__: Any) -> Any:
            forever.wait()

    given = a_world(clusters=Hanging())
    assert left_behind(given).reason == "internal_error"
    assert lease_is_free(given.ledger)


def test_what_was_left_behind_writes_nothing_when_it_wakes(forever: threading.Event) -> None:
    ended = threading.Event()

    class Late(FakeClusters):
        def look(self, *_: Any, **__: Any) -> Any:
            if len(self.calls) == 0:
                self.calls.append("look")
                forever.wait()
            return super().look(REF, None, clock=DeliveryClock())

        def members(self, *_: Any, **__: Any) -> Any:
            return ()

    class Watched(Ledger):
        def release(self, *arguments: Any, **named: Any) -> None:
            super().release(*arguments, **named)
            if forever.is_set():
                ended.set()

    clusters = Late()
    clusters.add()
    store = MemoryStore()
    given = a_world(clusters=clusters, ledger=Watched(store))
    left_behind(given)
    told = told_within(timedelta(seconds=20), EVENT, given, DeliveryClock())
    assert told.completion.outcome == "deleted"
    before = dict(store.entries)
    forever.set()
    assert ended.wait(10)
    assert store.entries == before
    assert clusters.deletes == 1
    assert cast("FakeSink", given.sink).published == [told.completion]


def test_what_ends_in_time_ends_as_it_ends() -> None:
    clock = DeliveryClock()
    given = a_world()
    assert isinstance(told_within(SPAN, EVENT, given, clock), Told)
    assert within(SPAN, lambda: 5, clock) == 5
    for error in (RetryLater("throttled", "x"), SystemExit(3)):
        with pytest.raises(type(error)) as raised:
            within(SPAN, lambda: (_ for _ in ()).throw(error), clock)  # noqa: B023 - called at once
        assert raised.value is error


def test_when_there_is_no_time_left_nothing_is_waited_for(forever: threading.Event) -> None:
    with pytest.raises(TimeIsUp):
        within(timedelta(), forever.wait, DeliveryClock())


def test_the_clock_of_a_delivery_tells_present_and_time_left() -> None:
    clock = DeliveryClock()
    clock.sleep(timedelta(seconds=0.02))
    assert timedelta(seconds=0.02) <= clock.passed() < timedelta(seconds=5)
    assert timedelta(seconds=35) < clock.left() < timedelta(seconds=40)
    assert abs(clock.now() - datetime.now(UTC)) < timedelta(seconds=5)
    assert clock.now().tzinfo is UTC


def test_importing_does_nothing_and_needs_no_environment() -> None:
    assert isinstance(app.cleanup, app.Cleanup)
    assert isinstance(app.webhook, app.Webhook)


# What must not be shown


class Heard(logging.Handler):
    """What reaches the root logger, which is where the framework listens (LOG_EXECUTION_ID)."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


def test_no_secret_is_shown_in_any_answer_line_event_or_ledger(
    stage: Stage, capfd: pytest.CaptureFixture[str], heard: Heard
) -> None:
    simulator = stage.simulator
    simulator.rotate(access_key="CANARYACCESS", secret_key="canary-key", security_token="canary-token" + "x" * 300)  # noqa: S106 - it is none
    echoes: list[Callable[[str], Answer]] = [
        lambda sent: Answer.error(401, "APIGW.0301", message=sent),
        lambda sent: Answer.error(403, "ModelArts.6344", message=sent),
        lambda sent: Answer.json(400, {"error_code": sent, "error_msg": sent}),
        lambda sent: Answer(500, body=f"<html>{sent}</html>".encode()),
        lambda sent: Answer(302, headers={"Location": "http://[" + sent}),
        lambda sent: Answer(429, headers={"Retry-After": sent}),
        lambda sent: Answer(404, body=sent.encode(), headers={"X-Request-Id": sent}),
        lambda sent: Answer.json(200, {"id": sent, "name": sent}),
        lambda sent: Answer.json(200, {"data": [{"id": 5, "name": sent}]}),
        lambda sent: Answer(200, body=sent.encode(), headers={"Content-Encoding": "gzip"}),
        lambda sent: Answer(200, headers={"Content-Length": "0", f"broken header {sent}": ""}),
        lambda sent: Answer.error(503, "ModelArts.0010", message=sent),
    ]
    for call in (Call.SHOW_CLUSTER, Call.LIST_SUPERNODES, Call.DELETE_CLUSTER):
        for number, echo in enumerate(echoes):

            def on_request(request: Request, call: Call = call, echo: Callable[[str], Answer] = echo) -> None:
                if request.call is call:
                    sent = " ".join(f"{name}={value}" for name, value in request.headers.items())
                    # What is answered with 200 is carried out, or it would be waited for.
                    simulator.fail(echo(sent), on=call, after_effect=call is Call.DELETE_CLUSTER)

            simulator.on_request = on_request
            cluster_id = f"{call}-{number}"
            simulator.add_cluster(project_id="p1", cluster_id=cluster_id, name="ci-a")
            headers = ce_headers(
                cluster_id,
                Authorization="Bearer canary-bearer",
                Cookie="session=canary-cookie",
                **{"X-Key": "canary-x"},
            )
            answer = stage.client.post("/", headers=headers, data=text(expiry(cluster_id)))
            assert answer.status_code in (200, 503)
            print(answer.text, answer.headers)  # noqa: T201 - the answers are looked through with the log
    for fault in (Reset(), Drop(), Slow(0.1)):
        simulator.on_request = lambda _: None
        simulator.fail(fault)
        print(stage.client.post("/", headers=headers, data=text(expiry("last"))).text)  # noqa: T201 - the same
    captured = capfd.readouterr()
    seen = captured.out + captured.err + "".join(heard.texts)
    seen += "".join(file.read_bytes().decode("latin-1") for file in stage.folder.iterdir() if "cred" not in file.name)
    assert len(seen) > 10_000
    for secret in ("canary", "CANARY", "SDK-HMAC-SHA256", "Signature="):
        assert secret not in seen


# The other entry point: signed webhooks

WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"canary-webhook-secret-of-32-byte").decode()


@dataclass
class Hooked:
    """The entry point `webhook`, and its folder."""

    folder: Path
    client: FlaskClient

    def send(
        self, body: bytes, *, event_id: str = "w-1", secret: str = WEBHOOK_SECRET, at: str | None = None, **more: Any
    ) -> Any:
        timestamp = at or str(int(time.time()))
        signed = datetime.fromtimestamp(int(timestamp), UTC)
        headers = {
            "webhook-id": event_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": StandardWebhook(secret).sign(event_id, signed, body.decode("latin-1")),
            "Content-Type": "application/json",
        }
        return self.client.open("/", **{"method": "POST", "headers": headers, "data": body, **more})

    @property
    def stored(self) -> list[dict[str, Any]]:
        file = self.folder / "expiries.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def hooked(serve: Serve, tmp_path: Path) -> Hooked:
    (tmp_path / "secrets").write_text(f"{WEBHOOK_SECRET}\n")
    given = {"EXPIRY_SINK": f"file://{tmp_path}/expiries.jsonl", "WEBHOOK_SECRETS": f"file://{tmp_path}/secrets"}
    return Hooked(tmp_path, serve(given, "webhook"))


def test_a_signed_webhook_is_stored_as_an_expiry_event(hooked: Hooked, capsys: pytest.CaptureFixture[str]) -> None:
    answer = hooked.send(text(expiry()))
    assert (answer.status_code, answer.json) == (202, {"id": "w-1"})
    [stored] = hooked.stored
    assert (stored["id"], stored["source"], stored["type"]) == ("w-1", "//modelarts-cleanup/webhook", EXPIRED)
    assert stored["data"] == expiry()
    [line] = log_lines(capsys)
    assert (line["outcome"], line["severity"], line["event_id"]) == ("accepted", "INFO", "w-1")


def test_a_secret_that_hangs_is_not_waited_for(hooked: Hooked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadline, "ANSWERING", timedelta(seconds=0.3))
    pipe = hooked.folder / "secrets"
    pipe.unlink()
    os.mkfifo(pipe)  # opening it ends when somebody writes to it
    answer = hooked.send(text(expiry()))
    assert answered(answer) == (503, "retry", "credentials_unavailable")
    pipe.write_text(f"{WEBHOOK_SECRET}\n")


def test_the_same_webhook_sent_again_is_the_same_event(hooked: Hooked) -> None:
    at = str(int(time.time()))
    for _ in range(2):
        assert hooked.send(text(expiry()), at=at).status_code == 202
    first, second = hooked.stored
    assert first == second


def test_what_a_webhook_stores_is_what_cleanup_understands(stage: Stage, hooked: Hooked) -> None:
    hooked.send(text(expiry()))
    answer = stage.client.post("/", headers=STRUCTURED, data=text(hooked.stored[0]))
    assert answered(answer) == (200, "already_gone", None)
    assert stage.told[0]["data"]["cause"]["source"] == "//modelarts-cleanup/webhook"


@pytest.mark.parametrize(
    ("changed", "status", "severity"),
    [
        ({"secret": "whsec_" + base64.b64encode(b"another").decode()}, 401, "WARNING"),
        ({"at": "1700000000"}, 401, "WARNING"),
        ({"headers": {}}, 401, "WARNING"),
        ({"method": "GET"}, 405, "WARNING"),
        ({"method": "FOO"}, 405, "WARNING"),
        ({"body": b"x" * (64 * 1024 + 1)}, 413, "WARNING"),
        ({"body": text(expiry("../x"))}, 400, "WARNING"),
        ({"body": b"{"}, 400, "WARNING"),
        ({"body": b"\xff"}, 401, "WARNING"),
    ],
)
def test_what_is_wrong_with_a_webhook_is_said_and_nothing_is_stored(
    hooked: Hooked, capsys: pytest.CaptureFixture[str], *, changed: dict[str, Any], status: int, severity: str
) -> None:
    answer = hooked.send(**{"body": text(expiry()), **changed})
    assert answer.status_code == status
    assert answer.mimetype == "application/json"
    assert ("field" in answer.json) == (status == 400)
    assert answer.headers.get("Allow") == ("POST" if status == 405 else None)
    assert hooked.stored == []
    [line] = log_lines(capsys)
    assert line["severity"] == severity
    assert "canary" not in answer.text + json.dumps(line)


@pytest.mark.parametrize(
    ("gone", "reason"), [("secrets", "credentials_unavailable"), ("expiries.jsonl", "sink_unavailable")]
)
def test_a_webhook_that_could_not_be_stored_is_sent_again(hooked: Hooked, gone: str, reason: str) -> None:
    (hooked.folder / gone).unlink(missing_ok=True)
    (hooked.folder / gone).mkdir()
    answer = hooked.send(text(expiry()))
    assert answered(answer) == (503, "retry", reason)


def test_a_webhook_needs_its_own_settings_and_no_other(serve: Serve) -> None:
    client = serve({"MODELARTS_REGION": "r"}, "webhook")
    answer = client.post("/", data=b"{}")
    assert answered(answer) == (503, "retry", "misconfigured")
    assert [problem.split()[0] for problem in shown(answer)["problems"]] == ["EXPIRY_SINK", "WEBHOOK_SECRETS"]


def test_a_webhook_at_an_odd_path_is_a_webhook_and_never_an_event(hooked: Hooked) -> None:
    answer = hooked.client.post("/", headers=ce_headers(), data=text(expiry()), environ_overrides=at("/robots.txt"))
    assert answer.status_code == 401
    assert hooked.stored == []


def test_cleanup_never_serves_a_webhook(stage: Stage) -> None:
    answer = Hooked(stage.folder, stage.client).send(text(expiry()), environ_overrides=at("/webhook"))
    assert answered(answer) == (200, "rejected", "invalid_event")


# A real server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    folder = tmp_path_factory.mktemp("served")
    with Simulator() as simulator:
        given = environment_in(folder, endpoint=simulator.url, credentials=simulator.credentials_json())
        with Served(given, log=folder / "log") as served:
            yield served, folder


def test_a_server_answers_every_request_in_our_words_and_writes_one_line_for_each(
    server: tuple[Served, Path],
) -> None:
    served, _ = server
    before = len(served.log.splitlines())
    good = text(expiry("c-9"))

    def in_chunks(body: bytes) -> Any:
        return iter([body[:7], body[7:]])

    found = [
        served.post(good, ce_headers("r-1")),
        served.post(in_chunks(good), ce_headers("r-2")),
        served.post(in_chunks(b"x" * 2_000_000), ce_headers("r-3")),
        served.post(b"", {}, method="GET", path="/favicon.ico"),
        served.post(b"", {}, method="OPTIONS", path="//x"),
        served.post(b"\xff" * 100, {"Content-Type": "application/octet-stream"}),
    ]
    assert [answer.status for answer in found] == [200] * 6
    assert [answer.outcome for answer in found] == ["already_gone"] * 2 + ["rejected"] * 4
    lines = [line for line in served.log.splitlines()[before:] if line.startswith("{")]
    assert [json.loads(line)["outcome"] for line in lines] == [answer.outcome for answer in found]
