import base64
import fcntl
import json
import os
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from emulators import Pubsub, Relay, new_project
from google.cloud.firestore import Client
from modelarts_cleanup import events
from modelarts_cleanup.local import cli, delivery
from modelarts_cleanup.local.commands import commands
from modelarts_cleanup.local.function_process import FunctionProcess, function_folder
from modelarts_cleanup.local.replay import Memory
from modelarts_cleanup.local.samples import samples
from modelarts_cleanup.local.screen import CommandError, cell
from modelarts_cleanup.local.simulator import Answer, Call
from modelarts_cleanup.local.stage import Stage
from served import FUNCTION, Served, free_port

pytest_plugins = ["emulators"]

EVENTS = FUNCTION.parent / "events"
SAMPLES = EVENTS / "samples"
PAST = "2026-07-01T00:00:00Z"
CANARY = "hunter2-never-to-be-seen"
POLICY = {"MODELARTS_REGION": "cn-southwest-2", "ALLOWED_PROJECTS": "p1", "ALLOWED_NAMES": "ci-*", "DRY_RUN": "false"}
WHSEC = "whsec_" + base64.b64encode(b"a secret of a webhook, long").decode()


def run(
    *arguments: str, env: Mapping[str, str] | None = None, text: str | bytes | None = None, code: int = 0
) -> Result:
    """Run a command in this process; it must end with `code`, and never with a stack trace."""
    result = CliRunner().invoke(commands, arguments, input=text, env=dict(env or {}))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.output
    assert CANARY not in result.output
    return result


def told(*arguments: str, env: Mapping[str, str] | None = None, text: str | bytes | None = None, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", env=env, text=text, code=code).stdout)


def an_expiry(cluster_id: str = "c-1", **more: object) -> str:
    return json.dumps({"project_id": "p1", "cluster_id": cluster_id, "expires_at": PAST, **more})


def a_file(folder: Path, text: str | bytes, name: str = "event.json") -> str:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


# The page


def test_the_help_is_one_page_that_names_every_command() -> None:
    page = run("--help").stdout
    assert len(page.splitlines()) < 50
    for name in ("demo", "serve", "send", "explain", "check", "replay"):
        assert f"\n  {name} " in page
        assert run(name, "--help").stdout.startswith("Usage: ")
    assert "..." not in page.partition("Commands:")[2]


def test_the_commands_say_what_to_install_where_their_extra_is_missing() -> None:
    code = "import sys; sys.modules['rich'] = None; from modelarts_cleanup.local.cli import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(FUNCTION)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert "modelarts-cleanup[local]" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_command_starts_by_its_one_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["modelarts-cleanup", "--help"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    monkeypatch.setitem(sys.modules, "modelarts_cleanup.local.commands", None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_colours_are_for_terminals_and_for_those_who_want_them() -> None:
    arguments = ("explain", "-")
    assert "\x1b[" not in run(*arguments, text="{}", env=POLICY).stdout
    assert "\x1b[35mrejected" in run(*arguments, text="{}", env={**POLICY, "FORCE_COLOR": "1", "TERM": "xterm"}).stdout
    wanted = {"FORCE_COLOR": "1", "TERM": "xterm", "NO_COLOR": "1"}
    assert "\x1b[35m" not in run(*arguments, text="{}", env={**POLICY, **wanted}).stdout


def test_nothing_in_an_event_is_obeyed_by_a_terminal() -> None:
    assert "\x1b" not in cell("a\x1b[31mb\r\n[red]c").plain
    assert cell("[red]c").plain == "[red]c"


# demo


def test_the_demo_ends_well_within_its_time_and_leaves_nothing_behind(tmp_path: Path) -> None:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", "from modelarts_cleanup.local.cli import main; main()", "demo", "--json"],
        env={**os.environ, "PYTHONPATH": str(FUNCTION), "TMPDIR": str(tmp_path), "DRY_RUN": "nonsense"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stderr == ""
    found = json.loads(ended.stdout)
    assert found["ok"]
    assert found["problems"] == []
    ends = {(end["outcome"], end["reason"]) for event in found["events"] for end in event["ends"]}
    index = json.loads((SAMPLES / "index.json").read_text())
    assert len([outcome for outcome, _ in ends if outcome != "retry"]) == len(index["samples"])
    assert {("retry", "modelarts_unavailable"), ("retry", "throttled")} < ends
    assert any(end["duplicate"] for event in found["events"] for end in event["ends"])
    assert len(found["completion_events"]) == len(index["samples"]) + 4
    assert found["clusters_deleted"] == 5
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 30  # 10 s where nobody else is at work


@pytest.fixture
def few_events(tmp_path: Path) -> Path:
    """A folder `events` with some of the samples."""
    events_folder = tmp_path / "events"
    shutil.copytree(EVENTS, events_folder)
    samples = events_folder / "samples"
    kept = ("deleted", "already_gone", "skipped-needs_unsubscribe", "failed-refused", "failed-stuck")
    index = json.loads((samples / "index.json").read_text())
    index["samples"] = [one for one in index["samples"] if one["name"] in kept]
    (samples / "index.json").write_text(json.dumps(index))
    return events_folder


def test_a_demo_of_other_samples_ends_well_if_they_do(few_events: Path) -> None:
    found = told("demo", "--events", str(few_events))
    assert found["ok"]
    assert [event["deletes"] for event in found["events"] if event["about"] == "ModelArts refuses the DELETE."] == [1]


def test_a_demo_that_goes_otherwise_says_what_was_different(few_events: Path) -> None:
    samples = few_events / "samples"
    wrong = samples / "completion" / "already_gone.json"
    wrong.write_text(wrong.read_text().replace('"already_gone"', '"deleted"'))
    ways = samples / "requests" / "understood"
    shutil.rmtree(ways)
    ways.mkdir()
    shutil.copy(samples / "requests" / "rejected" / "id-missing.json", ways / "other.json")
    output = run("demo", "--events", str(few_events), code=1).stdout
    assert "Delivery 1 ended as already_gone, and not as deleted." in output
    assert "ModelArts was sent 0 DELETEs, and not 1." in output
    assert "No completion event tells that already_gone ended as deleted." in output
    assert "A completion event too many tells that already_gone ended as already_gone." in output
    assert "ended as rejected invalid_event, and not as deleted (duplicate)." in output
    assert "\x1b" not in output


def test_a_demo_without_samples_or_function_says_which_option_names_them(
    tmp_path: Path, few_events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--events DIR" in run("demo", "--events", str(tmp_path / "none"), code=2).stderr
    assert "--function DIR" in run("demo", "--function", str(tmp_path), code=2).stderr
    index = few_events / "samples" / "index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "now": "2999-01-01T00:00:00Z"}))
    assert "is not up before 2999" in run("demo", "--events", str(few_events), code=2).stderr
    # Installed elsewhere, both are found in a checkout where the command is run.
    elsewhere = tmp_path / "lib" / "site-packages" / "modelarts_cleanup"
    monkeypatch.chdir(FUNCTION.parent)
    assert function_folder(None, package=elsewhere) == FUNCTION
    assert samples(None, package=elsewhere).samples
    monkeypatch.chdir("/")
    with pytest.raises(CommandError, match="--function DIR"):
        function_folder(None, package=elsewhere)
    with pytest.raises(CommandError, match="--events DIR"):
        samples(None, package=elsewhere)


# serve


@contextmanager
def serving(*arguments: str, port: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", "from modelarts_cleanup.local.cli import main; main()", "serve", *arguments],
        env={**os.environ, "PYTHONPATH": str(FUNCTION)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for(port)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(port: int) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            requests.get(f"http://127.0.0.1:{port}/", timeout=5)
        except requests.RequestException:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError


def served_in_process(port: int, *arguments: str, meanwhile: Callable[[], object]) -> Result:
    """Run `serve` in this process until something was done meanwhile."""

    def work() -> None:
        try:
            wait_for(port)
            meanwhile()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=work)
    thread.start()
    result = run("serve", "--port", str(port), *arguments)
    thread.join()
    return result


def test_serve_shows_where_and_how_to_send_and_what_came_of_it() -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    sample = SAMPLES / "expiry" / "deleted.json"
    answers: list[delivery.Answer] = []
    before = signal.getsignal(signal.SIGTERM)

    def send() -> None:
        answers.append(delivery.deliver(delivery.delivery(sample.read_bytes()), url))

    output = served_in_process(port, "--set", "DELETIONS_PER_HOUR=7", meanwhile=send).stdout
    assert answers[0].outcome == "deleted"
    assert f"serving on {url}" in output
    assert f"modelarts-cleanup send {sample} --url {url}" in output
    assert f"modelarts-cleanup send - --url {url}" in output
    assert f"curl -sS {url} " in output
    assert ["DELETIONS_PER_HOUR", "7"] in [line.split() for line in output.splitlines()]
    assert "gone after the DELETE" in output
    assert "[deleted 0123456789abcdef0123456789abcdef 00000000-0000-4000-8000-000000000001; " in output
    assert output.endswith("Stopped; the folder is gone.\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_serve_needs_no_samples_and_what_it_says_to_copy_is_understood(tmp_path: Path) -> None:
    alone = tmp_path / "function"
    shutil.copytree(FUNCTION, alone, ignore=shutil.ignore_patterns("__pycache__"))
    output = served_in_process(free_port(), "--function", str(alone), meanwhile=lambda: None).stdout
    echo = next(line for line in output.splitlines() if line.strip().startswith("echo "))
    line = echo.partition(" | ")[0]
    text = subprocess.run(["sh", "-c", line], capture_output=True, check=True).stdout
    assert (
        told("explain", "-", text=text, env={**POLICY, "ALLOWED_PROJECTS": "demo"})["decision"]["outcome"] == "deleted"
    )


def test_each_line_that_serve_says_to_copy_is_about_a_cluster_of_its_own_and_can_be_run_as_it_is(
    tmp_path: Path,
) -> None:
    command = tmp_path / ".venv" / "bin" / "modelarts-cleanup"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!{sys.executable}\nfrom modelarts_cleanup.local.cli import main\nmain()\n")
    command.chmod(0o755)
    url = f"http://127.0.0.1:{free_port()}/"
    with subprocess.Popen(
        [".venv/bin/modelarts-cleanup", "serve", "--port", url.rpartition(":")[2].strip("/")],
        cwd=tmp_path,
        env=(env := {**os.environ, "PYTHONPATH": str(FUNCTION)}),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            printed = list(iter(process.stdout.readline, f"ok: serving on {url} until Ctrl-C\n"))
            copied = [line for line in printed if f" --url {url}" in line or f"curl -sS {url}" in line]
            assert [".venv/bin/modelarts-cleanup send" in line for line in copied] == [True, True, False]
            for line in copied:
                answer = subprocess.run(
                    ["sh", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
                ).stdout
                assert "deleted" in answer
                assert "duplicate" not in answer
        finally:
            process.terminate()
            process.stdout.read()
    assert process.returncode == 0


def test_serve_names_its_command_by_the_path_that_it_was_started_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = a_file(tmp_path, "#!/bin/sh\n", "modelarts-cleanup")
    Path(command).chmod(0o755)
    monkeypatch.setattr(sys, "argv", [command])
    assert f" | {command} send -" in served_in_process(free_port(), meanwhile=lambda: None).stdout
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert " | modelarts-cleanup send -" in served_in_process(free_port(), meanwhile=lambda: None).stdout


def test_serve_writes_json_lines_for_machines() -> None:
    port = free_port()
    output = served_in_process(port, "--json", meanwhile=lambda: None).stdout
    first, *log = [json.loads(line) for line in output.splitlines()]
    assert first["url"] == f"http://127.0.0.1:{port}/"
    assert {line["outcome"] for line in log} == {"rejected"}


def test_serve_ends_well_when_it_is_interrupted_and_takes_its_folder_with_it() -> None:
    port = free_port()
    with serving("--json", "--port", str(port), port=port) as process:
        requests.post(f"http://127.0.0.1:{port}/", data=b"{", timeout=10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 0
    assert err == ""
    assert lines[0]["url"] == f"http://127.0.0.1:{port}/"
    assert lines[0]["settings"]["DRY_RUN"] == "false"
    assert not Path(lines[0]["folder"]).exists()
    assert lines[-1]["outcome"] == "rejected"


def test_serve_refuses_a_taken_port_and_settings_that_it_does_not_have() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port} cannot be served on" in run("serve", "--port", str(port), code=2).stderr
    port = free_port()
    for change in ("CREDENTIALS=file:///etc/passwd", "MODELARTS_ENDPOINT=https://x", "DRY_RUN"):
        assert "--set takes NAME=VALUE" in run("serve", "--port", str(port), "--set", change, code=2).stderr
    assert "DRY_RUN is not exactly" in run("serve", "--port", str(port), "--set", "DRY_RUN=yes", code=2).stderr
    assert run("serve", "--port", "0", code=2)


def a_function(folder: Path, main: str) -> str:
    (folder / "modelarts_cleanup").mkdir()
    (folder / "modelarts_cleanup" / "app.py").touch()
    (folder / "main.py").write_text(main)
    return str(folder)


def test_serve_says_so_when_the_function_does_not_start_or_ends_by_itself(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    wrong = a_function(broken, "raise RuntimeError('not today')")
    error = run("serve", "--port", str(free_port()), "--function", wrong, code=2).stderr
    assert "does not serve" in error
    assert "not today" in error
    short = tmp_path / "short"
    short.mkdir()
    dying = (
        "import os, threading\ndef cleanup(request): return ''\nthreading.Timer(1, os.kill, (os.getpid(), 9)).start()\n"
    )
    error = run("serve", "--port", str(free_port()), "--function", a_function(short, dying), code=2).stderr
    assert "has ended by itself" in error


def test_a_function_that_does_not_end_when_asked_is_killed(tmp_path: Path) -> None:
    deaf = a_function(tmp_path, "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n")
    with (
        pytest.raises(CommandError, match="it says nothing"),
        FunctionProcess(Path(deaf), {}, on_line=print, starting=1.0, stopping=0.2),
    ):
        pass


# send


@dataclass
class Deployment:
    """A function on a stage."""

    stage: Stage
    url: str

    def add(self, cluster_id: str, name: str = "ci-1") -> None:
        self.stage.simulator.add_cluster(project_id="p1", cluster_id=cluster_id, name=name)


@pytest.fixture(scope="module")
def deployed() -> Iterator[Deployment]:
    with Stage() as stage:
        changed = {"ALLOWED_PROJECTS": "p1", "ALLOWED_NAMES": "ci-*", "DELETIONS_PER_HOUR": "1000"}
        with FunctionProcess(FUNCTION, stage.settings(changed), on_line=lambda _line: None) as function:
            yield Deployment(stage, function.url)


def test_data_alone_is_sent_as_a_new_event_each_time(deployed: Deployment, tmp_path: Path) -> None:
    deployed.add("send-1")
    file = a_file(tmp_path, an_expiry("send-1"))
    first = told("send", file, "--url", deployed.url)
    second = told("send", file, "--url", deployed.url)
    assert first["answer"]["outcome"] == second["answer"]["outcome"] == "deleted"
    assert first["id"] != second["id"]
    assert second["answer"]["duplicate"] is True
    assert "(duplicate: another event" in run("send", file, "--url", deployed.url).stdout
    again = told("send", file, "--url", deployed.url, "--id", first["id"])
    assert "duplicate" not in again["answer"]


def test_an_event_keeps_its_own_id_unless_another_is_said(deployed: Deployment, tmp_path: Path) -> None:
    sample = str(SAMPLES / "expiry" / "skipped-project_not_allowed.json")
    assert told("send", sample, "--url", deployed.url)["id"] == "skipped-project_not_allowed"
    renamed = told("send", sample, "--url", deployed.url, "--id", "ünlike\n%", "--source", "//other ü")
    assert renamed["id"] == "ünlike\n%"
    assert renamed["answer"]["reason"] == "project_not_allowed"
    data = a_file(tmp_path, an_expiry("send-id"))
    assert told("send", data, "--url", deployed.url, "--id", "ünlike\n%", "--source", "//other ü")["id"] == "ünlike\n%"


@pytest.mark.parametrize(
    "path", sorted((SAMPLES / "requests" / "rejected").glob("[cdmt]*.json")), ids=lambda path: path.stem
)
def test_a_sample_of_a_request_is_sent_as_it_stands(path: Path, deployed: Deployment) -> None:
    answer = told("send", str(path), "--url", deployed.url)["answer"]
    expected = json.loads(path.read_text())["expected"]["rejected"]
    assert answer["reason"] == "invalid_event"
    assert answer["detail"].startswith(f"{expected} ")


def test_a_wrapped_message_is_sent_as_the_push_that_it_is(deployed: Deployment) -> None:
    data = base64.b64encode(an_expiry("send-push").encode()).decode()
    push = json.dumps({"message": {"messageId": "77", "data": data}, "subscription": "projects/p/subscriptions/s"})
    assert told("send", "-", "--url", deployed.url, text=push)["id"] == "77"


def test_send_ends_with_one_when_the_event_must_come_again(deployed: Deployment) -> None:
    deployed.add("send-2")
    deployed.stage.simulator.fail(Answer(500), on=Call.SHOW_CLUSTER, cluster_id="send-2")
    result = run("send", "-", "--url", deployed.url, text=an_expiry("send-2"), code=1)
    assert result.stdout.startswith("retry modelarts_unavailable: ")


def test_send_ends_with_two_when_nothing_can_be_sent(deployed: Deployment, tmp_path: Path) -> None:
    file = a_file(tmp_path, an_expiry())
    assert "No such file" in run("send", str(tmp_path / "none"), code=2).stderr
    assert "directory" in run("send", str(tmp_path), code=2).stderr
    assert "cannot be read" in run("send", "\0", code=2).stderr
    assert "no answer from" in run("send", file, "--url", f"http://127.0.0.1:{free_port()}/", code=2).stderr
    for url in ("", "nonsense", "ftp://x", "http://", "http://[", "http://.x/"):
        assert "is no http(s) URL" in run("send", file, "--url", url, code=2).stderr
    for option in ("--id", "--source"):
        for value in ("", "\udcff"):
            assert f"{option} is not a text in Unicode" in run("send", file, option, value, code=2).stderr
    sample = json.dumps({"headers": {"x-a": "注"}, "body": "{}"})
    assert "a header that HTTP cannot carry" in run("send", "-", text=sample, code=2).stderr
    assert "given together" in run("send", file, "--webhook", code=2).stderr
    assert "given together" in run("send", file, "--secret-file", file, code=2).stderr
    bad = '{"headers": {}, "body_base64": "é"}'
    assert "sample" in run("send", "-", "--url", deployed.url, text=bad, code=2).stderr


class Page(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(302)
        self.send_header("Location", "http://elsewhere.invalid/")
        self.end_headers()
        self.wfile.write(b"[]")

    def log_message(self, *_: object) -> None:
        pass


def test_an_answer_of_something_else_is_shown_by_its_status_and_not_followed() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        output = run("send", "-", "--url", f"http://127.0.0.1:{server.server_port}/", text=an_expiry(), code=1).stdout
        server.shutdown()
    assert output.startswith("answer 302")


def test_a_webhook_is_signed_so_that_the_function_takes_it_and_no_other_secret_does(tmp_path: Path) -> None:
    secret, other = a_file(tmp_path, WHSEC + "\n", "secret"), a_file(tmp_path, "whsec_" + "A" * 32, "other")
    stored = tmp_path / "expiries.jsonl"
    given = {"EXPIRY_SINK": f"file://{stored}", "WEBHOOK_SECRETS": f"file://{secret}"}
    file = a_file(tmp_path, an_expiry(owner="me"))
    with Served(given, target="webhook") as served:
        accepted = told("send", file, "--url", served.url, "--webhook", "--secret-file", secret, "--id", "w-1")
        bare = json.dumps({"headers": {}, "body": an_expiry("bare")})
        assert told("send", "-", "--url", served.url, "--webhook", "--secret-file", secret, text=bare)["status"] == 202
        wrong = run("send", file, "--webhook", "--secret-file", secret, "--id", "a b", code=2).stderr
        assert "--id is not 1 to 256 visible ASCII characters" in wrong
        assert accepted["status"] == 202
        assert "ok: accepted" in run("send", file, "--url", served.url, "--webhook", "--secret-file", secret).stdout
        refused = told("send", file, "--url", served.url, "--webhook", "--secret-file", other, code=1)
        assert refused["status"] == 401
        invalid = run("send", "-", "--url", served.url, "--webhook", "--secret-file", secret, text="{}", code=1)
        assert "project_id is missing" in invalid.stdout
    assert json.loads(stored.read_text().splitlines()[0])["id"] == "w-1"


def test_a_secret_that_is_none_is_complained_of_without_showing_it(tmp_path: Path) -> None:
    file, secret = a_file(tmp_path, an_expiry()), a_file(tmp_path, CANARY, "secret")
    error = run("send", file, "--webhook", "--secret-file", secret, code=2).stderr
    assert "the secret in" in error
    good = a_file(tmp_path, WHSEC, "good")
    assert "not UTF-8" in run("send", "-", "--webhook", "--secret-file", good, text=b"\xff", code=2).stderr


# explain


def explained(text: str, *arguments: str, **changed: str) -> Any:
    return told("explain", "-", *arguments, text=text, env={**POLICY, **changed})


def decision(text: str, *arguments: str, **changed: str) -> tuple[str, str | None, list[str]]:
    found = explained(text, *arguments, **changed)["decision"]
    return found["outcome"], found["reason"], found["unless"]


OPEN_REQUEST = ["superseded"]
OPEN_NAME = ["name_differs", "name_not_allowed", "cluster_protected"]
OPEN_MEMBERS = ["needs_unsubscribe", "has_members"]
SEEN = ("--name", "ci-1", "--members", "0", "--latest-expiry", PAST)


@pytest.mark.parametrize(
    ("text", "arguments", "changed", "end"),
    [
        (an_expiry(), (), {}, ("deleted", None, OPEN_REQUEST + OPEN_NAME + OPEN_MEMBERS)),
        (an_expiry(), SEEN, {}, ("deleted", None, [])),
        (an_expiry(), SEEN, {"DRY_RUN": "true"}, ("skipped", "dry_run", [])),
        (an_expiry(), ("--name", "ci-1"), {}, ("deleted", None, OPEN_REQUEST + OPEN_MEMBERS)),
        (an_expiry(), ("--name", "prod"), {}, ("skipped", "name_not_allowed", OPEN_REQUEST)),
        (an_expiry(name="ci-2"), ("--name", "ci-1"), {}, ("skipped", "name_differs", OPEN_REQUEST)),
        (an_expiry(), SEEN, {"PROTECTED_CLUSTERS": "ci-1"}, ("skipped", "cluster_protected", [])),
        (an_expiry(), ("--members", "2"), {}, ("skipped", "has_members", OPEN_REQUEST + OPEN_NAME)),
        (an_expiry(), ("--prepaid",), {}, ("skipped", "needs_unsubscribe", OPEN_REQUEST + OPEN_NAME)),
        (an_expiry(), ("--members", "2"), {"REQUIRE_EMPTY": "false"}, ("deleted", None, OPEN_REQUEST + OPEN_NAME)),
        (an_expiry(), ("--members", "2", "--type", "ECS"), {}, ("deleted", None, OPEN_REQUEST + OPEN_NAME)),
        (an_expiry(type="ECS"), SEEN, {}, ("deleted", None, [])),
        (an_expiry(type="ECS"), ("--type", "HPS"), {}, ("already_gone", None, OPEN_REQUEST)),
        (an_expiry(type="ECS", region="x"), ("--type", "HPS"), {}, ("skipped", "region_not_allowed", [])),
        (an_expiry(), (), {"ALLOWED_PROJECTS": "p2"}, ("skipped", "project_not_allowed", [])),
        (an_expiry(region="cn-north-4"), (), {}, ("skipped", "region_not_allowed", [])),
        (an_expiry(protected=True), (), {}, ("skipped", "cluster_protected", [])),
        (an_expiry(), ("--latest-expiry", "2026-08-01T00:00:00Z"), {}, ("skipped", "superseded", [])),
        (an_expiry(), ("--now", "2026-06-30T00:00:00Z"), {}, ("skipped", "not_expired", OPEN_REQUEST)),
        (an_expiry(), ("--now", "2026-06-30T23:59:30Z"), {}, ("retry", "expires_soon", OPEN_REQUEST)),
        ('{"project_id": 1}', (), {}, ("rejected", "invalid_event", [])),
        ("not JSON", (), {}, ("rejected", "invalid_event", [])),
    ],
)
def test_explain_decides_as_the_function_would(
    text: str, arguments: Sequence[str], changed: Mapping[str, str], end: tuple[str, str | None, list[str]]
) -> None:
    assert decision(text, *arguments, **changed) == end


def test_explain_needs_no_credentials_but_notes_that_they_are_missing() -> None:
    found = explained(an_expiry(), CREDENTIALS="nonsense")
    assert found["notes"] == [
        "CREDENTIALS is neither file:///path nor secretmanager://projects/P/secrets/S[/versions/V]",
        "COMPLETION_SINK is not set",
        "LEDGER is not set",
    ]
    assert found["settings"]["DELETIONS_PER_HOUR"] == "10"


def test_explain_shows_event_settings_rules_and_decision_to_a_person() -> None:
    output = run("explain", "-", text=an_expiry(owner="team-a"), env={**POLICY, "DRY_RUN": "true"}).stdout
    assert "team-a" in output
    assert [line.split() for line in output.splitlines() if "REQUIRE_EMPTY" in line] == [
        ["REQUIRE_EMPTY", "true", "default"]
    ]
    assert "decided when looked at" in output
    assert "skipped dry_run: DRY_RUN is true" in output
    assert "unless one of these" in output
    assert "Note, not needed for the decision: LEDGER is not set" in output
    rejected = run("explain", "-", text='{"project_id": 1}', env=POLICY).stdout
    assert "rejected invalid_event: project_id is not a text" in rejected
    assert "not_expired" not in rejected


def test_explain_lists_all_problems_of_settings_at_once() -> None:
    error = run("explain", "-", text="{}", env={"DRY_RUN": "yes", "CREDENTIALS": CANARY}, code=2).stderr
    for name in ("MODELARTS_REGION", "ALLOWED_PROJECTS", "ALLOWED_NAMES", "DRY_RUN", "CREDENTIALS", "LEDGER"):
        assert f"\n  {name} is " in error


def test_explain_takes_instants_as_events_write_them() -> None:
    error = run("explain", "-", "--now", "2026-07-01", text="{}", env=POLICY, code=2).stderr
    assert "RFC 3339" in error
    assert run("explain", "/none", env=POLICY, code=2)


# check


@pytest.fixture
def deployment() -> Iterator[tuple[Stage, dict[str, str]]]:
    with Stage() as stage:
        yield stage, stage.settings({"ALLOWED_PROJECTS": "p1,p2", "ALLOWED_NAMES": "ci-*"})


def checked(given: Mapping[str, str], *, code: int = 1) -> dict[str, tuple[bool, str]]:
    found = told("check", env=given, code=code)
    assert found["ok"] is (code == 0)
    return {one["place"]: (one["well"], one["detail"]) for one in found["findings"]}


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(file): (file.read_bytes(), file.stat().st_mtime_ns) for file in folder.rglob("*") if file.is_file()}


def test_a_check_of_what_is_well_ends_with_zero_and_changes_nothing(deployment: tuple[Stage, dict[str, str]]) -> None:
    stage, given = deployment
    stage.simulator.add_cluster(project_id="p1", name="ci-1")
    secret = stage.folder / "webhook"
    secret.write_text(WHSEC)
    given |= {"WEBHOOK_SECRETS": f"file://{secret}", "EXPIRY_SINK": f"file://{stage.folder}/expiries.jsonl"}
    for _ in range(2):
        before = snapshot(stage.folder)
        found = checked(given, code=0)
        assert snapshot(stage.folder) == before
        # The second time there is a ledger, and a file with completion events.
        with closing(sqlite3.connect(stage.ledger)) as ledger:
            ledger.execute("PRAGMA journal_mode = WAL")
            ledger.execute("CREATE TABLE IF NOT EXISTS ledger (key TEXT)")
        (stage.folder / "completions.jsonl").touch()
    assert found["clusters of p1"] == (True, "can be listed: 1 of type HPS, 0 of type ECS")
    assert found["supernodes of p2"] == (True, "can be listed")
    assert {call.method for call in stage.simulator.requests} == {"GET"}
    assert "all is well" in run("check", env=given).stdout


def test_a_deployment_of_the_webhook_alone_needs_no_other_setting(tmp_path: Path) -> None:
    given = {"WEBHOOK_SECRETS": f"file://{a_file(tmp_path, WHSEC)}", "EXPIRY_SINK": f"file://{tmp_path}/expiries"}
    assert list(checked(given, code=0)) == ["settings", "EXPIRY_SINK", "WEBHOOK_SECRETS"]


def test_a_ledger_that_is_in_use_is_read_with_its_journal(deployment: tuple[Stage, dict[str, str]]) -> None:
    stage, given = deployment
    with closing(sqlite3.connect(stage.ledger)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE ledger (key TEXT)")
        assert checked(given, code=0)["LEDGER"] == (True, f"{stage.ledger} is a ledger, and can be written to")


def test_a_check_names_every_setting_that_cannot_be_read_and_looks_at_the_others(
    deployment: tuple[Stage, dict[str, str]],
) -> None:
    _, given = deployment
    given |= {"DRY_RUN": "yes", "LEDGER": "nonsense", "EXPIRY_SINK": "file:///tmp/x"}
    found = checked(given)
    assert found["DRY_RUN"] == (False, "is not exactly true or false")
    assert found["LEDGER"][0] is False
    assert found["WEBHOOK_SECRETS"] == (False, "is not set")
    assert found["CREDENTIALS"][0] is True
    assert "clusters of p1" not in found
    output = run("check", env=given, code=1).stdout
    assert "wrong: 3 of these" in output


def test_clusters_are_listed_whatever_is_wrong_with_ledger_and_sink(deployment: tuple[Stage, dict[str, str]]) -> None:
    _, given = deployment
    del given["LEDGER"]
    given["REQUIRE_EMPTY"] = "false"
    found = checked(given)
    assert found["LEDGER"] == (False, "is not set")
    assert found["clusters of p1"][0] is True
    assert "supernodes of p1" not in found


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer.error(403, "ModelArts.0210"), "belongs to another project"),
        (Answer.error(404, "APIGW.0101"), "MODELARTS_ENDPOINT has no such API"),
        (Answer.error(500, "ModelArts.0001"), "cannot be reached from here, or fails"),
        (Answer.error(429, "APIGW.0308"), "APIGW.0308"),
    ],
)
def test_a_check_says_what_an_answer_of_modelarts_means_for_an_operator(
    answer: Answer, words: str, deployment: tuple[Stage, dict[str, str]]
) -> None:
    stage, given = deployment
    stage.simulator.fail(answer, on=Call.LIST_CLUSTERS)
    well, detail = checked(given)["clusters of p1"]
    assert not well
    assert words in detail


def test_a_secret_that_cannot_be_used_is_wrong_and_not_shown(deployment: tuple[Stage, dict[str, str]]) -> None:
    stage, given = deployment
    (stage.folder / "credentials.json").write_text(json.dumps({"access_key": CANARY}))
    found = checked(given)
    assert found["CREDENTIALS"] == (False, f"the secret {stage.folder}/credentials.json has no text secret_key")


def test_a_file_that_cannot_be_written_is_said_with_what_is_in_the_way(
    deployment: tuple[Stage, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, given = deployment
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE accounts (id TEXT)")
    (tmp_path / "text").write_text("no database" * 100)

    def wrong(**changed: str) -> str:
        (name,) = changed
        well, detail = checked({**given, **changed})[name]
        assert not well
        return detail

    assert "the folder" in wrong(COMPLETION_SINK="file:///none/such/file")
    assert "is no file" in wrong(COMPLETION_SINK=f"file://{tmp_path}")
    assert "is an SQLite file of something else" in wrong(LEDGER=f"sqlite://{other}")
    assert "cannot be read as an SQLite file" in wrong(LEDGER=f"sqlite://{tmp_path}/text")
    monkeypatch.setattr(os, "access", lambda *_: False)  # whoever runs the tests may write anything
    assert "cannot be read and written" in wrong(COMPLETION_SINK=f"file://{other}")
    assert "its folder cannot be written to" in wrong(COMPLETION_SINK=f"file://{tmp_path}/new")
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).is_file())
    assert "SQLite puts its journal there" in wrong(LEDGER=f"sqlite://{other}")


@contextmanager
def tls_server(folder: Path) -> Iterator[tuple[int, Path]]:
    """A server that speaks TLS as localhost, and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "certificate.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with socket.create_server(("localhost", 0)) as listening:

        def serve_all() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    connection.close()

        threading.Thread(target=serve_all, daemon=True).start()
        yield listening.getsockname()[1], pem
        listening.shutdown(socket.SHUT_RDWR)


def test_a_web_sink_is_reached_without_an_event(
    deployment: tuple[Stage, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, given = deployment

    def sink(url: str, code: int = 1) -> str:
        return checked({**given, "COMPLETION_SINK": url}, code=code)["COMPLETION_SINK"][1]

    with socket.create_server(("127.0.0.1", 0)) as plain:
        assert "can be reached" in sink(f"http://127.0.0.1:{plain.getsockname()[1]}/", code=0)
    assert "cannot be reached" in sink(f"http://127.0.0.1:{free_port()}/")
    with tls_server(tmp_path) as (port, pem):
        assert "TLS with it fails" in sink(f"https://localhost:{port}/{CANARY}")
        monkeypatch.setattr("modelarts_cleanup.local.looks.DEFAULT_CA_BUNDLE_PATH", str(pem))
        assert "certificate that is trusted" in sink(f"https://localhost:{port}/{CANARY}", code=0)


@pytest.fixture
def relayed(pubsub_emulator: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The Pub/Sub emulator behind a relay that can be told to fail."""
    with Relay(pubsub_emulator) as relay:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", relay.address)
        yield relay


def test_a_topic_is_looked_at_and_not_published_to(deployment: tuple[Stage, dict[str, str]], relayed: Relay) -> None:
    _, given = deployment
    topic = Pubsub(new_project()).topic("completions")
    relayed.calls.clear()
    given["COMPLETION_SINK"] = f"pubsub://{topic}"
    assert checked(given, code=0)["COMPLETION_SINK"] == (True, f"the topic {topic} is there and may be published to")
    assert relayed.calls == ["GetTopic"]
    given["COMPLETION_SINK"] += "-none"
    assert checked(given)["COMPLETION_SINK"] == (False, f"the topic {topic}-none does not exist")


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, None, "pubsub.topics.get is missing"),
        (grpc.StatusCode.PERMISSION_DENIED, "SERVICE_DISABLED", "the API of Pub/Sub is not enabled"),
        (grpc.StatusCode.UNAUTHENTICATED, None, "Google does not accept this identity"),
        (grpc.StatusCode.INTERNAL, None, "cannot be used: InternalServerError"),
    ],
)
def test_a_topic_that_cannot_be_used_is_told_by_what_is_missing(
    code: grpc.StatusCode, reason: str | None, words: str, deployment: tuple[Stage, dict[str, str]], relayed: Relay
) -> None:
    _, given = deployment
    topic = Pubsub(new_project()).topic("completions")
    relayed.plan("GetTopic", code, reason=reason)
    detail = checked({**given, "COMPLETION_SINK": f"pubsub://{topic}"})["COMPLETION_SINK"][1]
    assert words in detail
    assert "hunter2" not in detail


@dataclass
class Granted:
    permissions: list[str]


class TopicOfGoogle:
    """A publisher that answers what the emulator does not know: the rights of whoever asks."""

    granted: list[str]

    def test_iam_permissions(self, request: dict[str, Any], **_: object) -> Granted:
        assert request["permissions"] == ["pubsub.topics.publish"]
        return Granted(self.granted)


def test_a_topic_is_asked_for_the_right_to_publish(
    deployment: tuple[Stage, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, given = deployment
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    monkeypatch.setattr("google.pubsub_v1.services.publisher.PublisherClient", TopicOfGoogle)
    given["COMPLETION_SINK"] = "pubsub://projects/p/topics/completions"
    TopicOfGoogle.granted = []
    assert "pubsub.topics.publish is missing" in checked(given)["COMPLETION_SINK"][1]
    TopicOfGoogle.granted = ["pubsub.topics.publish"]
    assert checked(given, code=0)["COMPLETION_SINK"][0]


def test_whoever_has_no_google_identity_is_told_so(
    deployment: tuple[Stage, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, given = deployment
    monkeypatch.delenv("PUBSUB_EMULATOR_HOST", raising=False)
    given |= {
        "COMPLETION_SINK": "pubsub://projects/p/topics/completions",
        "CREDENTIALS": "secretmanager://projects/p/secrets/s",
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json"),
    }
    found = checked(given)
    assert "has no Google identity" in found["COMPLETION_SINK"][1]
    assert "has no Google identity" in found["CREDENTIALS"][1]


def test_a_firestore_ledger_is_read_and_tried_without_a_document(
    deployment: tuple[Stage, dict[str, str]], firestore_emulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, given = deployment
    project = new_project()
    given["LEDGER"] = f"firestore://projects/{project}/databases/(default)"
    with Relay(firestore_emulator) as relay:
        monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", relay.address)
        assert checked(given, code=0)["LEDGER"] == (
            True,
            f"the database (default) of {project} can be read and written",
        )
        assert [str(code) for name, code in relay.ends if name == "Commit"] == ["StatusCode.NOT_FOUND"]
        relay.plan("Commit", grpc.StatusCode.PERMISSION_DENIED)
        assert "roles/datastore.user is missing" in checked(given)["LEDGER"][1]
        relay.plan("Commit", grpc.StatusCode.INTERNAL)
        assert "writing cannot be tried: InternalServerError" in checked(given)["LEDGER"][1]
        relay.plan("BatchGetDocuments", grpc.StatusCode.PERMISSION_DENIED)
        assert "may not be used by this identity" in checked(given)["LEDGER"][1]
    monkeypatch.setenv("FIRESTORE_EMULATOR_HOST", firestore_emulator)
    assert list(Client(project=project).collection("ledger").stream()) == []


# replay


def a_completion(outcome: str, number: int = 1, **more: object) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"completion-{number}",
        "type": events.COMPLETED,
        "data": {
            "outcome": outcome,
            "detail": "for a reason",
            "cluster": {
                "region": "cn-southwest-2",
                "project_id": "p1",
                "cluster_id": f"replay-{number}",
                "type": "HPS",
                "name": "ci-1",
            },
            "expires_at": PAST,
            "owner": "team-ü",
            "cause": {"id": f"e-{number}", "source": "//ci", "type": events.EXPIRED, "reason": "because"},
            **more,
        },
    }


def a_rejected(number: int, body: bytes, content_type: str | None, **cause: str | None) -> dict[str, Any]:
    original = {"content_type": content_type, "data_base64": base64.b64encode(body).decode()}
    given = a_completion("rejected", number, original=original)
    given["data"] |= {"cause": {"type": None, **cause}, "cluster": {}, "expires_at": None}
    return given


def lines(*given: object) -> str:
    return "\n".join(json.dumps(one) for one in given) + "\n\n"


def states(found: Any) -> list[str]:
    return [one["state"] for one in found["events"]]


def test_a_failed_event_is_made_again_from_what_was_told_of_it(deployed: Deployment, tmp_path: Path) -> None:
    deployed.add("replay-1")
    source = a_file(tmp_path, lines(a_completion("deleted", 2), a_completion("failed")), "completions.jsonl")
    planned = told("replay", source, "--to", deployed.url)
    assert states(planned) == ["kept"]
    assert planned["sent"] is False
    assert not (tmp_path / "completions.jsonl.replayed").exists()
    output = run("replay", source, "--to", deployed.url, text="y\n").stdout
    assert "Send 1 of these to" in output
    assert f"remembered in {source}.replayed" in output
    completion = next(one for one in deployed.stage.completions() if one["data"]["cause"]["id"] == "e-1.replay")  # type: ignore[index]
    data: Any = completion["data"]
    assert (data["outcome"], data["owner"], data["cause"]["reason"]) == ("deleted", "team-ü", "because")
    assert (data["cluster"]["name"], data["expires_at"]) == ("ci-1", PAST)
    again = told("replay", source, "--to", deployed.url, "--yes")
    assert states(again) == ["already"]
    assert again["remembered_in"] == f"{source}.replayed"
    assert "Nothing is to be sent" in run("replay", source, "--to", deployed.url).stdout


def test_the_completion_events_of_the_function_itself_can_be_replayed(deployed: Deployment, tmp_path: Path) -> None:
    bare = json.dumps({"project_id": "p1", "cluster_id": "own", "expires_at": "2026-07-01"})
    assert told("send", "-", "--url", deployed.url, text=bare)["answer"]["outcome"] == "rejected"
    kept = [one for one in deployed.stage.completions() if one.get("subject") == "projects/p1/hyper-clusters/own"]
    source = a_file(tmp_path, lines(*kept), "completions.jsonl")
    found = told("replay", source, "--to", deployed.url, "--yes", code=1)
    assert states(found) == ["useless"]
    assert "expires_at is not an RFC 3339" in found["events"][0]["detail"]
    assert states(told("replay", source, "--to", deployed.url, "--yes", "--all")) == ["sent"]


def test_a_rejected_event_is_found_again_in_every_form_in_which_it_can_have_come(
    deployed: Deployment, tmp_path: Path
) -> None:
    data = an_expiry("replayed-form").encode()
    structured = {"specversion": "1.0", "id": "s", "source": "//ci", "type": events.EXPIRED, "data": json.loads(data)}
    push = {
        "message": {"messageId": "1", "data": base64.b64encode(data).decode()},
        "subscription": "projects/p/subscriptions/s",
    }
    given = lines(
        a_rejected(11, data, "application/json", id="b", source="//ci ü", type=events.EXPIRED),
        a_rejected(12, data, "application/x-www-form-urlencoded", id="1234", source="//pubsub.googleapis.com/s"),
        a_rejected(13, json.dumps(structured).encode(), "application/cloudevents+json", id="s", source="//ci"),
        a_rejected(14, json.dumps(push).encode(), "application/json", id="1", source="//pubsub.googleapis.com/s"),
    )
    source = a_file(tmp_path, given)
    assert states(told("replay", source, "--to", deployed.url, "--yes")) == ["sent"] * 4
    ids = {one["data"]["cause"]["id"] for one in deployed.stage.completions()}  # type: ignore[index]
    assert "b.replay" in ids


def test_what_is_not_whole_is_never_sent(deployed: Deployment, tmp_path: Path) -> None:
    broken = a_rejected(24, b"", None)
    broken["data"]["original"]["data_base64"] = "!"
    source = a_file(
        tmp_path,
        lines(
            a_rejected(21, b"x" * 65536, "application/json"),
            a_rejected(22, b"\xff", None),
            a_completion("rejected", 23),
            broken,
        ),
    )
    found = told("replay", source, "--to", deployed.url, "--yes", code=1)
    assert states(found) == ["unusable", "useless", "unusable", "unusable"]
    output = run("replay", source, "--to", deployed.url, code=1).stdout
    assert "only the first 64 KiB" in output


def test_an_event_that_is_not_taken_is_tried_again_the_next_time(deployed: Deployment, tmp_path: Path) -> None:
    deployed.add("replay-31")
    deployed.stage.simulator.fail(Answer(500), on=Call.SHOW_CLUSTER, cluster_id="replay-31")
    source = a_file(tmp_path, lines(a_completion("failed", 31)))
    assert states(told("replay", source, "--to", deployed.url, "--yes", code=1)) == ["retry"]
    assert states(told("replay", source, "--to", deployed.url, "--yes")) == ["sent"]


def test_what_cannot_be_sent_at_all_ends_the_sending(tmp_path: Path) -> None:
    source = a_file(tmp_path, lines(a_completion("failed", 41), a_completion("failed", 42)))
    found = told("replay", source, "--to", f"http://127.0.0.1:{free_port()}/", "--yes", code=1)
    assert states(found) == ["wrong", "kept"]


def test_nothing_is_sent_without_a_yes(deployed: Deployment, tmp_path: Path) -> None:
    source = a_file(tmp_path, lines(a_completion("failed", 51)))
    before = len(deployed.stage.completions())
    run("replay", source, "--to", deployed.url, text="n\n", code=1)
    assert len(deployed.stage.completions()) == before


def test_replay_says_what_is_wrong_with_what_it_is_given(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/"
    good = a_file(tmp_path, lines(a_completion("failed")), "good")
    assert "line 2 of" in run("replay", a_file(tmp_path, lines(a_completion("failed"), {})), "--to", url, code=2).stderr
    expiry = (SAMPLES / "completion" / "deleted.json").read_text().replace("completed.v1", "other.v1")
    assert (
        "is no completion event"
        in run("replay", a_file(tmp_path, lines(json.loads(expiry))), "--to", url, code=2).stderr
    )
    assert "remembered beside it" in run("replay", "-", code=2).stderr
    assert "--to" in run("replay", good, code=2).stderr
    for to in ("file:///x", "nonsense"):
        assert "--to is an http(s) URL" in run("replay", good, "--to", to, code=2).stderr
    memory = a_file(tmp_path, "[]\n", "memory")
    assert "name another with --remember" in run("replay", good, "--to", url, "--remember", memory, code=2).stderr


def a_structured(number: int, **more: object) -> dict[str, Any]:
    data = json.loads(an_expiry(f"structured-{number}"))
    event = {"specversion": "1.0", "id": f"s-{number}", "source": "//ci", "type": events.EXPIRED, "data": data}
    return {**event, **more}


def a_pulled(data: bytes, message_id: str, **attributes: str) -> dict[str, Any]:
    """Give a message as gcloud writes one that it has pulled: with the base64 that URLs may hold."""
    named = {name.replace("_", "-"): value for name, value in attributes.items()}
    message = {"data": base64.urlsafe_b64encode(data).decode(), "messageId": message_id, "publishTime": PAST}
    return {"ackId": "a", "message": {**message, "attributes": named} if named else message}


def a_dead_letter(data: bytes, message_id: str, subscription: str = "projects/p/subscriptions/s") -> dict[str, Any]:
    _, project, _, name = subscription.split("/")
    origin = {
        "CloudPubSubDeadLetterSourceSubscription": name,
        "CloudPubSubDeadLetterSourceSubscriptionProject": project,
    }
    return a_pulled(data, message_id, **origin)


def causes(deployed: Deployment) -> list[tuple[str, str]]:
    told_of: list[Any] = [one["data"] for one in deployed.stage.completions()]
    return [(one["cause"]["source"], one["cause"]["id"]) for one in told_of]


def test_a_saved_expiry_event_is_sent_as_it_was_and_once(deployed: Deployment, tmp_path: Path) -> None:
    deployed.add("structured-1")
    event = a_structured(1, knativeerrorcode="503")
    source = a_file(tmp_path, lines(event, a_structured(2), event), "letters")
    found = told("replay", source, "--to", deployed.url, "--yes")
    assert [(one["state"], one["detail"]) for one in found["events"]] == [("sent", "deleted"), ("sent", "already_gone")]
    assert "s-1: an expiry event from //ci" in found["events"][0]["about"]
    assert causes(deployed).count(("//ci", "s-1")) == 1
    assert states(told("replay", source, "--to", deployed.url, "--yes")) == ["already", "already"]
    # Elsewhere it is not remembered, and the ledger knows it by its id.
    remember = str(tmp_path / "other")
    assert states(told("replay", source, "--to", deployed.url, "--yes", "--remember", remember)) == ["sent", "sent"]
    assert causes(deployed).count(("//ci", "s-1")) == 1


def test_what_gcloud_has_pulled_is_sent_as_it_was(deployed: Deployment, tmp_path: Path) -> None:
    tricky = an_expiry("pulled-1", reason="???>>>~~~").encode()
    assert {"-", "_"} & set(base64.urlsafe_b64encode(tricky).decode())
    own = {"ce_id": "own", "ce_source": "//ci/own", "ce_type": events.EXPIRED, "ce_specversion": "1.0"}
    pulled = [
        a_dead_letter(tricky, "901"),
        a_pulled(an_expiry("pulled-2").encode(), "902"),
        a_pulled(an_expiry("pulled-3").encode(), "903", **own),
    ]
    source = a_file(tmp_path, json.dumps(pulled, indent=2) + "\n[]\n" + lines(pulled[0]), "letters.json")
    assert states(told("replay", source, "--to", deployed.url, "--yes")) == ["sent"] * 3
    assert {
        ("//pubsub.googleapis.com/projects/p/subscriptions/s", "901"),
        ("//pubsub.googleapis.com/letters.json", "902"),
        ("//ci/own", "own"),
    } <= set(causes(deployed))
    assert states(told("replay", source, "--to", deployed.url, "--yes")) == ["already"] * 3
    assert told("replay", a_file(tmp_path, "[]\n", "empty"))["events"] == []


def test_a_file_may_hold_events_and_messages_of_every_kind(deployed: Deployment, tmp_path: Path) -> None:
    completion = a_completion("failed", 92)
    done = a_pulled(json.dumps(a_completion("deleted", 93)["data"]).encode(), "93", ce_type=events.COMPLETED, ce_id="c")
    given = lines(
        a_completion("failed", 91),
        a_structured(91),
        a_pulled(an_expiry("mixed").encode(), "91"),
        a_pulled(json.dumps(completion["data"]).encode(), "92", ce_type=events.COMPLETED, ce_id="completion-92"),
        a_completion("deleted", 94),
        done,
    )
    found = told("replay", a_file(tmp_path, given), "--to", deployed.url, "--yes", code=1)
    assert states(found) == ["sent", "sent", "sent", "sent", "unusable"]
    assert {("//ci", "e-91.replay"), ("//ci", "s-91"), ("//ci", "e-92.replay")} <= set(causes(deployed))


def test_saved_dead_letters_go_back_to_the_topic_they_came_from(pubsub: Pubsub, tmp_path: Path) -> None:
    expiries = pubsub.topic("expiries")
    push, watched = pubsub.subscription(expiries), pubsub.subscription(expiries)
    source = a_file(tmp_path, lines(a_dead_letter(b'{"a": 1}', "1", push), a_structured(95)))
    found = told("replay", source, "--yes")
    assert states(found) == ["sent", "sent"]
    assert found["to"] == f"pubsub://{expiries}"
    messages = [*pubsub.pull(watched), *pubsub.pull(watched)]
    letter, event = sorted((one.message for one in messages), key=lambda one: len(one.data))
    assert (letter.data, dict(letter.attributes)) == (b'{"a": 1}', {})
    assert json.loads(event.data) == a_structured(95)
    assert dict(event.attributes) == {"Content-Type": "application/cloudevents+json"}
    unknown = a_file(tmp_path, lines(a_pulled(b"{}", "1", CloudPubSubDeadLetterSourceSubscription="s")), "unknown")
    assert "name where to send it with --to" in run("replay", unknown, code=2).stderr


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ('{"a": \n\n', 2, "is not JSON"),
        ("x\n", 2, "is not JSON"),
        ("[" * 200_000, 2, "is no JSON that is read: it is nested too deeply"),
        (b'\n"\xff"', 3, "is not UTF-8"),
        ("\n1", 3, "is no completion event, no expiry event and no Pub/Sub message"),
        (json.dumps({"type": "other", "message": {}}), 2, "is no completion event, no expiry event and no Pub/Sub"),
        (json.dumps({"type": events.COMPLETED}), 2, "is no completion event"),
        (json.dumps(a_structured(1, id="")), 2, "is no expiry event: id is no text"),
        (json.dumps(a_structured(1, data_base64="")), 2, "is no expiry event: data stands beside data_base64"),
        (
            json.dumps({"message": {"data": "e30="}}),
            2,
            "is no Pub/Sub message: Object missing required field `messageId`",
        ),
        (json.dumps({"message": {"data": "!", "messageId": "1"}}), 2, "is no Pub/Sub message: its data is not base64"),
        (json.dumps([a_pulled(b"{}", "1"), {"message": 1}], indent=0).replace("\n", ""), 2, "is no Pub/Sub message"),
        ('[\n{"message": {"messageId": "1"}},\n{"message"\n]', 5, "is not JSON"),
        ('[\n{"message": {"messageId": "1"}},\n\n{}]', 5, "is no completion event, no expiry"),
        ('[\n{"message": {"messageId": "1"}}\n\n', 3, "is not JSON"),
    ],
)
def test_what_cannot_be_read_in_a_file_is_named_by_its_line_and_nothing_is_sent(
    tmp_path: Path, text: str | bytes, line: int, problem: str
) -> None:
    rest = text if isinstance(text, bytes) else text.encode()
    source = a_file(tmp_path, json.dumps(a_structured(1)).encode() + b"\n" + rest)
    # Nothing listens there: what was sent would end with 1.
    error = run("replay", source, "--to", f"http://127.0.0.1:{free_port()}/", "--yes", code=2).stderr
    assert f"line {line} of {source} {problem}" in " ".join(error.split())


def test_nothing_is_sent_that_could_not_be_remembered(deployed: Deployment, tmp_path: Path) -> None:
    source = a_file(tmp_path, lines(a_completion("failed", 61), a_completion("failed", 62)))
    remember = str(tmp_path / "none" / "memory")
    error = run("replay", source, "--to", deployed.url, "--yes", "--remember", remember, code=2).stderr
    assert "cannot be written to, so nothing is sent" in " ".join(error.split())
    assert states(told("replay", source, "--to", deployed.url)) == ["kept", "kept"]


def test_what_was_sent_and_can_no_longer_be_remembered_stops_the_replay(tmp_path: Path) -> None:
    memory = Memory(tmp_path / "gone" / "memory")
    with pytest.raises(CommandError, match=r"d-1 was sent, but .* cannot be written to: No such file"):
        memory.add("d-1", "pubsub://projects/p/topics/t")
    assert "d-1" not in memory


def test_two_replays_of_the_same_do_not_work_at_once(tmp_path: Path) -> None:
    source = a_file(tmp_path, lines(a_completion("failed", 63)))
    with Path(f"{source}.replayed").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        error = run("replay", source, "--to", f"http://127.0.0.1:{free_port()}/", "--yes", code=2).stderr
    assert "another replay is at work" in " ".join(error.split())


def test_what_another_replay_has_sent_meanwhile_is_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = a_file(tmp_path, lines(a_completion("failed", 64)))
    memory = Path(f"{source}.replayed")
    to = f"http://127.0.0.1:{free_port()}/"
    (planned,) = told("replay", source, "--to", to)["events"]

    def confirm(_question: str) -> bool:
        memory.write_text(json.dumps({"key": planned["key"], "to": "x", "at": "x"}) + "\n")
        return True

    monkeypatch.setattr("click.confirm", confirm)
    output = run("replay", source, "--to", to).stdout
    assert "sent meanwhile" in " ".join(output.split())


def test_a_byte_order_mark_before_a_file_of_events_is_no_part_of_it(deployed: Deployment, tmp_path: Path) -> None:
    source = tmp_path / "with-bom"
    source.write_bytes(b"\xef\xbb\xbf" + lines(a_completion("failed", 65)).encode())
    assert states(told("replay", str(source), "--to", deployed.url)) == ["kept"]


def test_a_dead_letter_goes_back_to_the_topic_it_came_from_and_is_acknowledged(
    pubsub: Pubsub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    expiries, dead = pubsub.topic("expiries"), pubsub.topic("dead-letters")
    push, watched, letters = pubsub.subscription(expiries), pubsub.subscription(expiries), pubsub.subscription(dead)
    origin = {
        "CloudPubSubDeadLetterSourceSubscription": push.rpartition("/")[2],
        "CloudPubSubDeadLetterSourceSubscriptionProject": pubsub.project,
        "ce-id": "d-1",
        "ce-type": events.EXPIRED,
    }
    pubsub.publish(dead, b'{"a": 1}', origin)
    assert states(told("replay", letters, "--limit", "1")) == ["kept"]
    output = run("replay", letters, "--limit", "1", "--yes").stdout
    assert f"Sent to pubsub://{expiries}" in output
    (message,) = pubsub.pull(watched)
    assert message.message.data == b'{"a": 1}'
    assert dict(message.message.attributes) == {"ce-id": "d-1", "ce-type": events.EXPIRED}
    assert states(told("replay", letters)) == []
    assert [file.name for file in tmp_path.iterdir()] == [letters.replace("/", ".") + ".replayed"]


def test_a_dead_letter_that_was_sent_and_not_acknowledged_is_only_acknowledged(
    pubsub: Pubsub, deployed: Deployment, tmp_path: Path
) -> None:
    dead = pubsub.topic("dead-letters")
    letters = pubsub.subscription(dead)
    message_id = pubsub.publish(dead, an_expiry("letter").encode())
    memory = a_file(tmp_path, lines({"key": f"{letters}:{message_id}"}).strip(), "memory")
    arguments = ("replay", letters, "--to", deployed.url, "--remember", memory, "--yes")
    assert states(told(*arguments, "--limit", "1")) == ["already"]
    assert states(told(*arguments)) == []


def test_letters_are_sent_to_the_function_itself_and_given_back_if_it_does_not_take_them(
    pubsub: Pubsub, deployed: Deployment, tmp_path: Path
) -> None:
    dead = pubsub.topic("dead-letters")
    letters = pubsub.subscription(dead)
    deployed.add("letter-1")
    deployed.stage.simulator.fail(Answer(500), on=Call.SHOW_CLUSTER, cluster_id="letter-1")
    pubsub.publish(dead, an_expiry("letter-1").encode())
    memory = str(tmp_path / "memory")
    arguments = ("replay", letters, "--to", deployed.url, "--remember", memory, "--limit", "1", "--yes")
    assert states(told(*arguments, code=1)) == ["retry"]
    assert states(told(*arguments)) == ["sent"]
    assert "letter-1" not in deployed.stage.simulator


def test_a_subscription_of_completion_events_is_made_expiry_events_again(
    pubsub: Pubsub, deployed: Deployment, tmp_path: Path
) -> None:
    topic = pubsub.topic("completions")
    letters = pubsub.subscription(topic)
    for number, data in enumerate((a_completion("failed", 71)["data"], a_completion("deleted", 72)["data"], {})):
        pubsub.publish(topic, json.dumps(data).encode(), {"ce-type": events.COMPLETED, "ce-id": f"c-{number}"})
    arguments = ("replay", letters, "--limit", "3", "--remember", str(tmp_path / "memory"), "--yes")
    assert "name where to send it with --to" in run(*arguments, code=2).stderr
    found = told(*arguments, "--to", deployed.url, code=1)
    assert sorted(states(found)) == ["sent", "unusable", "unusable"]


def test_a_completion_event_of_a_file_can_go_to_a_topic(pubsub: Pubsub, tmp_path: Path) -> None:
    topic = pubsub.topic("expiries")
    watched = pubsub.subscription(topic)
    source = a_file(tmp_path, lines(a_completion("failed", 81)))
    assert states(told("replay", source, "--to", f"pubsub://{topic}", "--yes")) == ["sent"]
    (message,) = pubsub.pull(watched)
    assert message.message.attributes["ce-id"] == "e-81.replay"
    assert json.loads(message.message.data)["cluster_id"] == "replay-81"


def test_a_pull_that_hears_of_nothing_in_time_has_found_all(
    pubsub: Pubsub, relayed: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    letters = pubsub.subscription(pubsub.topic("dead-letters"))
    relayed.plan("Pull", grpc.StatusCode.DEADLINE_EXCEEDED)
    assert told("replay", letters)["events"] == []


def test_a_subscription_that_is_not_there_or_not_ours_is_said_so(
    pubsub: Pubsub, relayed: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    none = f"projects/{pubsub.project}/subscriptions/none"
    assert f"the subscription {none} does not exist" in run("replay", none, code=2).stderr
    relayed.plan("Pull", grpc.StatusCode.PERMISSION_DENIED)
    assert "pubsub.subscriptions.consume is missing" in run("replay", none, code=2).stderr
