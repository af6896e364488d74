import http.server
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from pathlib import Path

import grpc
import pytest
from emulators import Pubsub, Relay
from modelarts_cleanup import envelope
from modelarts_cleanup.adapters.sink_pubsub import PubsubSink
from modelarts_cleanup.model import CompletionEvent, RetryLater
from served import free_port

pytest_plugins = ["emulators"]

COMPLETION = CompletionEvent(
    id="7a0d7fb5-6b1c-5f57-b6a4-5a0f5d8f9a10",
    source="//modelarts-cleanup/cn-southwest-2",
    subject="projects/p1/hyper-clusters/c-1",
    time="2026-07-15T12:00:00Z",
    outcome="deleted",
    data='{"outcome":"deleted","owner":"Zoë 朱"}',
)
TOPIC = "projects/p1/topics/completions"
EXPIRY = {"id": "msg_1", "source": "//modelarts-cleanup/webhook", "type": "t", "specversion": "1.0"}


@contextmanager
def receiver() -> Iterator[tuple[str, "queue.SimpleQueue[tuple[Message, bytes]]"]]:
    """Take what is pushed: headers and body."""
    pushed: queue.SimpleQueue[tuple[Message, bytes]] = queue.SimpleQueue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            pushed.put((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", pushed
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def complaint(sink: PubsubSink, attributes: dict[str, str] = EXPIRY, data: str = "{}") -> str:
    with pytest.raises(RetryLater) as raised:
        sink.put(attributes, data)
    assert raised.value.reason == "sink_unavailable"
    assert "hunter2" not in str(raised.value)
    return raised.value.detail


def test_a_completion_event_is_a_message_with_exactly_the_attributes_of_the_contract(pubsub: Pubsub) -> None:
    topic = pubsub.topic("completions")
    subscription = pubsub.subscription(topic)
    PubsubSink(topic).publish(COMPLETION)
    (pulled,) = pubsub.pull(subscription)
    assert dict(pulled.message.attributes) == {
        "ce-id": "7a0d7fb5-6b1c-5f57-b6a4-5a0f5d8f9a10",
        "ce-source": "//modelarts-cleanup/cn-southwest-2",
        "ce-type": "dev.modelarts-cleanup.cleanup.completed.v1",
        "ce-specversion": "1.0",
        "ce-time": "2026-07-15T12:00:00Z",
        "ce-subject": "projects/p1/hyper-clusters/c-1",
        "ce-outcome": "deleted",
        "Content-Type": "application/json",
    }
    assert pulled.message.data == COMPLETION.data.encode()
    assert not pulled.message.ordering_key


def test_an_event_published_twice_is_twice_the_same_but_for_the_message_id(pubsub: Pubsub) -> None:
    topic = pubsub.topic("completions")
    subscription = pubsub.subscription(topic)
    sink = PubsubSink(topic)
    sink.publish(COMPLETION)
    sink.publish(COMPLETION)
    first, second = pubsub.pull(subscription, 2)
    assert first.message.data == second.message.data
    assert dict(first.message.attributes) == dict(second.message.attributes)
    assert first.message.message_id != second.message.message_id


@pytest.mark.parametrize(
    "awkward", ["plain", "100%", "a b", 'say "x"', "Zoë 朱", "%41", "line\r\nX-Injected: 1", "<>[]{}^`|\\~"]
)
def test_attributes_survive_the_way_through_headers_as_they_were(pubsub: Pubsub, awkward: str) -> None:
    topic = pubsub.topic("expiries")
    with receiver() as (url, pushed):
        push = {"push_endpoint": url, "no_wrapper": {"write_metadata": True}}
        pubsub.subscription(topic, push_config=push)
        PubsubSink(topic).put({**EXPIRY, "id": awkward}, '{"owner":"Zoë 朱"}')
        headers, body = pushed.get(timeout=20)
    assert headers.get_all("content-type") == ["application/json"]
    assert "X-Injected" not in headers
    request = envelope.Request(
        method="POST", headers={name.lower(): value for name, value in headers.items()}, body=body, digest=""
    )
    found = envelope.read(request)
    assert (found.problem, found.id, found.source, found.type) == (None, awkward, EXPIRY["source"], EXPIRY["type"])
    assert json.loads(found.data) == {"owner": "Zoë 朱"}


def test_many_threads_share_one_sink(pubsub: Pubsub) -> None:
    topic = pubsub.topic("expiries")
    subscription = pubsub.subscription(topic)
    sink = PubsubSink(topic)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: sink.put({**EXPIRY, "id": str(number)}, "{}"), range(16)))
    assert {pulled.message.attributes["ce-id"] for pulled in pubsub.pull(subscription, 16)} == set(map(str, range(16)))


@pytest.mark.parametrize(
    ("attributes", "data", "says"),
    [
        ({f"a{number}": "x" for number in range(100)}, "{}", "the event has more than 100 attributes, too many"),
        ({"a" * 254: "x"}, "{}", f"the event's attribute ce-{'a' * 61} is too long"),
        ({"id": "x" * 1025}, "{}", "the event's attribute ce-id is too long"),
        ({"id": "é" * 171}, "{}", "the event's attribute ce-id is too long"),
        ({}, "x" * 10_000_000, "the event is larger than 10000000 bytes, too large"),
        ({}, "é" * 5_000_000, "the event is larger than 10000000 bytes, too large"),
    ],
)
def test_what_pubsub_would_refuse_is_not_sent(attributes: dict[str, str], data: str, says: str) -> None:
    assert complaint(PubsubSink(TOPIC), attributes, data) == f"{says} for Pub/Sub"


def test_the_largest_that_pubsub_takes_is_sent(pubsub: Pubsub) -> None:
    topic = pubsub.topic("expiries")
    subscription = pubsub.subscription(topic)
    attributes = {"a" * 253: "x" * 1024, **{f"a{number}": "" for number in range(98)}}
    PubsubSink(topic).put(attributes, "x" * 1_000_000)
    (pulled,) = pubsub.pull(subscription)
    assert len(pulled.message.attributes) == 100


def test_a_topic_that_does_not_exist_is_named(pubsub: Pubsub) -> None:
    name = f"projects/{pubsub.project}/topics/nowhere"
    assert complaint(PubsubSink(name)) == f"the topic {name} does not exist"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "may not be published to by this identity (pubsub.topics.publish is missing)",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "cannot be published to: Google does not accept this identity"),
        (grpc.StatusCode.INVALID_ARGUMENT, "does not take the event"),
        (grpc.StatusCode.FAILED_PRECONDITION, "cannot be published to in its present state"),
        (grpc.StatusCode.DATA_LOSS, "cannot be published to: DataLoss"),
    ],
)
def test_an_error_is_told_in_our_own_words_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, code: grpc.StatusCode, says: str
) -> None:
    with Relay("127.0.0.1:9") as relay:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", relay.address)
        relay.plan("Publish", code)
        assert complaint(PubsubSink(TOPIC)) == f"the topic {TOPIC} {says}"
        assert relay.calls == ["Publish"]


def test_an_api_that_is_not_enabled_is_told_from_a_missing_right(monkeypatch: pytest.MonkeyPatch) -> None:
    with Relay("127.0.0.1:9") as relay:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", relay.address)
        relay.plan("Publish", grpc.StatusCode.PERMISSION_DENIED, reason="SERVICE_DISABLED")
        assert complaint(PubsubSink(TOPIC)).endswith("the API of Pub/Sub is not enabled in its project")


def test_an_error_that_passes_is_not_noticed(
    pubsub: Pubsub, pubsub_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = pubsub.topic("completions")
    subscription = pubsub.subscription(topic)
    with Relay(pubsub_emulator) as relay:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", relay.address)
        relay.plan("Publish", grpc.StatusCode.UNAVAILABLE)
        PubsubSink(topic).publish(COMPLETION)
    assert len(pubsub.pull(subscription, 2, within=1.0)) == 1


def test_an_event_whose_storing_was_not_told_is_sent_again_and_stays_the_same_event(
    pubsub: Pubsub, pubsub_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = pubsub.topic("completions")
    subscription = pubsub.subscription(topic)
    with Relay(pubsub_emulator) as relay:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", relay.address)
        relay.plan("Publish", grpc.StatusCode.UNAVAILABLE, after_effect=True)
        PubsubSink(topic).publish(COMPLETION)
    first, second = pubsub.pull(subscription, 2)
    assert first.message.data == second.message.data
    assert dict(first.message.attributes) == dict(second.message.attributes)


def test_an_answer_that_does_not_come_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with Relay("127.0.0.1:9") as relay:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", relay.address)
        relay.plan("Publish", None)
        started = time.monotonic()
        assert complaint(PubsubSink(TOPIC, seconds=0.5)) == f"the topic {TOPIC} cannot be reached in time"
        assert time.monotonic() - started < 2


def test_a_server_that_takes_connections_and_says_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached" in complaint(PubsubSink(TOPIC, seconds=0.5))


def test_a_server_that_is_down_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", f"127.0.0.1:{free_port()}")
    assert complaint(PubsubSink(TOPIC, seconds=0.5)) == f"the topic {TOPIC} cannot be reached"


def test_a_process_without_a_google_identity_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "hunter2.json"))
    assert complaint(PubsubSink(TOPIC)).endswith("this process has no Google identity (DefaultCredentialsError)")
