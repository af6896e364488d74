import fcntl
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

import pytest
from modelarts_cleanup.adapters.sinks import FileSink, HttpSink
from modelarts_cleanup.model import CompletionEvent, RetryLater
from msgspec.structs import replace
from served import FUNCTION, free_port

COMPLETION = CompletionEvent(
    id="0b1c",
    source="//modelarts-cleanup/cn-southwest-2",
    subject="projects/p1/hyper-clusters/c-1",
    time="2026-07-15T12:00:00Z",
    outcome="skipped",
    data='{"outcome":"skipped","owner":"tä\U0001f600m \\n\\u2028"}',
)
ATTRIBUTES = {
    "id": "0b1c",
    "source": "//modelarts-cleanup/cn-southwest-2",
    "type": "dev.modelarts-cleanup.cleanup.completed.v1",
    "specversion": "1.0",
    "time": "2026-07-15T12:00:00Z",
    "subject": "projects/p1/hyper-clusters/c-1",
    "outcome": "skipped",
}


def unavailable(act: Callable[[], object]) -> str:
    with pytest.raises(RetryLater) as raised:
        act()
    assert raised.value.reason == "sink_unavailable"
    assert raised.value.__context__ is None or raised.value.__suppress_context__
    return raised.value.detail


def lines(file: Path) -> list[dict[str, Any]]:
    text = file.read_bytes()
    assert text.endswith(b"\n")
    return [json.loads(line) for line in text.decode().split("\n")[:-1]]


# A file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "completions.jsonl"


def test_an_event_is_one_line_in_structured_mode(file: Path) -> None:
    FileSink(str(file)).publish(COMPLETION)
    assert lines(file) == [{**ATTRIBUTES, "datacontenttype": "application/json", "data": json.loads(COMPLETION.data)}]


def test_what_is_not_there_is_left_out(file: Path) -> None:
    FileSink(str(file)).publish(replace(COMPLETION, subject=None))
    assert "subject" not in lines(file)[0]


def test_events_are_appended_and_a_repeat_is_the_same_bytes(file: Path) -> None:
    sink = FileSink(str(file))
    sink.publish(COMPLETION)
    first = file.read_bytes()
    sink.publish(replace(COMPLETION, id="other"))
    FileSink(str(file)).publish(COMPLETION)
    assert file.read_bytes().startswith(first)
    assert file.read_bytes().endswith(first)
    assert [line["id"] for line in lines(file)] == ["0b1c", "other", "0b1c"]


def test_any_event_can_be_put_there(file: Path) -> None:
    FileSink(str(file)).put({"id": "1"}, '{"a":1}')
    assert lines(file) == [{"id": "1", "datacontenttype": "application/json", "data": {"a": 1}}]


@pytest.mark.parametrize("left", [b'{"id":"ha', b"x", b"\x00\xff" * 5000])
@pytest.mark.parametrize("before", [b"", b'{"id":"before"}\n', b"\n"])
def test_what_a_killed_writer_left_unfinished_is_cut_off(file: Path, before: bytes, left: bytes) -> None:
    file.write_bytes(before + left)
    FileSink(str(file)).publish(COMPLETION)
    assert file.read_bytes().startswith(before)
    assert json.loads(file.read_bytes().removeprefix(before))["id"] == "0b1c"


APPENDING = """
import sys
from modelarts_cleanup.adapters.sinks import FileSink
from modelarts_cleanup.model import CompletionEvent

sink = FileSink(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{number}"
    data = '"' + "x" * 9000 + '"'
    sink.publish(CompletionEvent(id=name, source="s", subject=None, time="t", outcome="deleted", data=data))
    print(number, flush=True)
"""


def appending(file: Path, name: str, times: int) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(file), name, str(times)],
        env={**os.environ, "PYTHONPATH": str(FUNCTION)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


def test_many_processes_and_threads_share_a_file(file: Path) -> None:
    processes = [appending(file, name, 20) for name in "abc"]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    sink = FileSink(str(file))
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: sink.publish(replace(COMPLETION, id=f"t-{number}")), range(20)))
    for process in processes:
        process.communicate(timeout=60)
    assert {line["id"] for line in lines(file)} == {f"{name}-{number}" for name in "abct" for number in range(20)}
    assert len(lines(file)) == 80


def test_whatever_a_killed_writer_was_told_to_be_stored_is_there(file: Path) -> None:
    with appending(file, "a", 10_000) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write("go\n")
        process.stdin.flush()
        told = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGKILL)
    FileSink(str(file)).publish(COMPLETION)
    stored = [line["id"] for line in lines(file)]
    assert stored[:20] == [f"a-{number.strip()}" for number in told]
    assert stored[-1] == "0b1c"


def test_a_file_that_another_has_locked_is_waited_for(file: Path) -> None:
    with file.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        timer = threading.Timer(0.1, lambda: fcntl.flock(other, fcntl.LOCK_UN))
        started = time.monotonic()
        timer.start()
        FileSink(str(file)).publish(COMPLETION)
        assert time.monotonic() - started >= 0.09
        timer.join()
    assert len(lines(file)) == 1


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("none/completions.jsonl", "No such file or directory"),
        (".", "Is a directory"),
        ("/dev/full", "No space left on device"),
        ("/proc/completions.jsonl", "No such file or directory"),
        ("x" * 300, "File name too long"),
    ],
)
def test_a_file_that_cannot_be_appended_to_says_why(tmp_path: Path, path: str, why: str) -> None:
    sink = FileSink(str(tmp_path / path))
    assert unavailable(lambda: sink.publish(COMPLETION)) == f"the event could not be appended: {why}"


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_no_half_of_it(file: Path, room: int) -> None:
    sink = FileSink(str(file))
    sink.publish(COMPLETION)
    before = file.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + room, hard))
    try:
        detail = unavailable(lambda: sink.publish(COMPLETION))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert detail == f"the event could not be appended: {'No space left on device' if room else 'File too large'}"
    assert file.read_bytes() == before
    sink.publish(COMPLETION)
    assert file.read_bytes() == before * 2


# HTTP


@dataclass
class Receiver:
    """An HTTP sink that keeps what it was sent, and answers as `answers` say."""

    answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)

    def __enter__(self) -> Self:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append((self.path, headers, self.rfile.read(int(headers["content-length"]))))
                answer = receiver.answers.pop(0) if receiver.answers else 204
                if callable(answer):
                    answer(self)
                    return
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/events?token=CANARY"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def sink(receiver: Receiver) -> HttpSink:
    return HttpSink(receiver.url, seconds=0.5)


def test_an_event_is_posted_in_binary_mode(receiver: Receiver, sink: HttpSink) -> None:
    sink.publish(COMPLETION)
    [(path, headers, body)] = receiver.received
    assert path == "/events?token=CANARY"
    assert {name[3:]: value for name, value in headers.items() if name.startswith("ce-")} == ATTRIBUTES
    assert headers["content-type"] == "application/json"
    assert body == COMPLETION.data.encode()


def test_without_a_subject_there_is_no_such_header(receiver: Receiver, sink: HttpSink) -> None:
    sink.publish(replace(COMPLETION, subject=None))
    assert "ce-subject" not in receiver.received[0][1]


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        ("plain/with:signs", "plain/with:signs"),
        ("a b", "a%20b"),
        ('"', "%22"),
        ("%", "%25"),
        ("%20", "%2520"),
        ("ä", "%C3%A4"),
        ("\U0001f600", "%F0%9F%98%80"),
        ("a\r\nInjected: 1", "a%0D%0AInjected:%201"),
        ("!#$&'()*+,/:;=?@[]-._~", "!#$&'()*+,/:;=?@[]-._~"),
    ],
)
def test_attributes_are_percent_encoded_as_the_binding_says(
    receiver: Receiver, sink: HttpSink, value: str, sent: str
) -> None:
    sink.put({**ATTRIBUTES, "subject": value}, "{}")
    headers = receiver.received[0][1]
    assert headers["ce-subject"] == sent
    assert unquote(sent) == value
    assert "injected" not in headers


def test_a_repeat_is_the_same_event_byte_for_byte(receiver: Receiver, sink: HttpSink) -> None:
    receiver.answers = [500]
    unavailable(lambda: sink.publish(COMPLETION))
    HttpSink(receiver.url).publish(COMPLETION)
    sink.publish(COMPLETION)
    assert len(receiver.received) == 3
    first, *others = [(path, body, {**headers, "host": ""}) for path, headers, body in receiver.received]
    assert others == [first, first]


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_means_that_it_is_stored(receiver: Receiver, sink: HttpSink, status: int) -> None:
    receiver.answers = [status]
    sink.publish(COMPLETION)


@pytest.mark.parametrize("status", [300, 301, 302, 304, 307, 308, 400, 401, 404, 409, 413, 429, 500, 502, 503, 600])
def test_nothing_else_does_and_nothing_is_sent_twice(receiver: Receiver, sink: HttpSink, status: int) -> None:
    receiver.answers = [status]
    assert unavailable(lambda: sink.publish(COMPLETION)) == f"the sink answered {status}"
    assert len(receiver.received) == 1


def redirecting(location: bytes, body: bytes = b"") -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(
            b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: %d\r\n\r\n%b" % (location, len(body) + 1, body)
        )
        threading.Event().wait(0.7)  # the last byte never comes
        handler.close_connection = True

    return answer


@pytest.mark.parametrize("location", [b"/elsewhere", b"http://[", b"/\xff", b"//x", b""])
def test_a_redirect_is_not_followed_nor_is_its_body_waited_for(
    receiver: Receiver, sink: HttpSink, location: bytes
) -> None:
    receiver.answers = [redirecting(location, b"x" * 100)]
    assert unavailable(lambda: sink.publish(COMPLETION)) == "the sink answered 302"
    assert len(receiver.received) == 1


def hang(handler: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(1.0)
    handler.close_connection = True


def drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


def rubbish(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize("answer", [hang, drop, rubbish])
def test_without_an_answer_it_is_not_stored(
    receiver: Receiver, sink: HttpSink, answer: Callable[[BaseHTTPRequestHandler], None]
) -> None:
    receiver.answers = [answer]
    detail = unavailable(lambda: sink.publish(COMPLETION))
    assert detail.startswith("no answer from the sink")
    assert "CANARY" not in detail
    assert len(receiver.received) == 1


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_where_nobody_answers_it_is_not_stored(receiver: Receiver, scheme: str) -> None:
    # A port where nobody listens, and one where nobody speaks TLS.
    url = f"http://127.0.0.1:{free_port()}/" if scheme == "http" else receiver.url.replace("http", "https")
    assert unavailable(lambda: HttpSink(url, seconds=0.5).publish(COMPLETION)).startswith("no answer from the sink: ")


@pytest.mark.parametrize("host", ["a" * 64 + ".example", ".example", "a..example", "xn--.example"])
def test_a_host_that_cannot_be_is_said_to_be_unavailable(host: str) -> None:
    unavailable(lambda: HttpSink(f"https://{host}/", seconds=0.5).publish(COMPLETION))


def test_an_answer_with_a_body_that_never_ends_is_stored_all_the_same(receiver: Receiver, sink: HttpSink) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nx")
        threading.Event().wait(0.7)
        handler.close_connection = True

    receiver.answers = [endless]
    sink.publish(COMPLETION)


def test_neither_proxy_nor_netrc_is_used(
    receiver: Receiver, sink: HttpSink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login someone password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    sink.publish(COMPLETION)
    assert "authorization" not in receiver.received[0][1]


def test_no_cookie_is_kept(receiver: Receiver, sink: HttpSink) -> None:
    def with_cookie(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 204 No Content\r\nSet-Cookie: a=b\r\n\r\n")

    receiver.answers = [with_cookie]
    sink.publish(COMPLETION)
    sink.publish(COMPLETION)
    assert "cookie" not in receiver.received[1][1]


def test_a_file_that_another_process_holds_is_not_waited_for_without_end(tmp_path: Path) -> None:
    held = tmp_path / "completions.jsonl"
    with held.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert unavailable(lambda: FileSink(str(held), seconds=0.05).publish(COMPLETION))
    FileSink(str(held)).publish(COMPLETION)


def test_a_server_that_takes_its_time_over_every_byte_is_given_up_in_time(receiver: Receiver) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        for byte in b"HTTP/1.1 204 No Content\r\n":
            handler.wfile.write(bytes([byte]))
            threading.Event().wait(0.05)
        handler.close_connection = True

    receiver.answers = [drip]
    began = time.monotonic()
    assert unavailable(lambda: HttpSink(receiver.url, seconds=0.3).publish(COMPLETION)).startswith("no answer")
    assert time.monotonic() - began < 1
