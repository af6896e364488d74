"""A copy of what is deployed, with only what its requirements name, serves an event."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import environments
import pytest
from modelarts_cleanup.local.simulator import Simulator
from served import FUNCTION, Served, completions, settings

EXPIRY = {"project_id": "p1", "cluster_id": "c-1", "expires_at": "2026-07-01T00:00:00Z"}
# What the embedded adapters must not load: each would cost a cold start.
NEVER = ("google.cloud", "grpc", "google.auth", "standardwebhooks", "huaweicloudsdkcore", "click.testing", "rich")


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Copy `function/` as the platform gets it, and install its requirements into an empty environment."""
    folder = tmp_path_factory.mktemp("deployed")
    source = folder / "function"
    shutil.copytree(FUNCTION, source, ignore=shutil.ignore_patterns("local", "__pycache__"))
    try:
        python = environments.make(folder / "venv", source / "requirements.txt")
    except environments.NoIndexError as missing:
        pytest.skip(str(missing))
    return source, python


def test_what_is_deployed_serves_an_event(deployed: tuple[Path, Path], tmp_path: Path) -> None:
    source, python = deployed
    with Simulator() as simulator:
        simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
        given = settings(tmp_path, endpoint=simulator.url, credentials=simulator.credentials_json())
        log = tmp_path / "log"
        with Served(given, source=source / "main.py", python=str(python), log=log) as served:
            assert served.send(EXPIRY).outcome == "deleted", served.log
        assert [event["outcome"] for event in completions(tmp_path)] == ["deleted"]
    assert not (source / "modelarts_cleanup" / "local").exists()


def test_what_is_deployed_serves_webhooks(deployed: tuple[Path, Path], tmp_path: Path) -> None:
    source, python = deployed
    given = {"EXPIRY_SINK": f"file://{tmp_path}/expiries.jsonl", "WEBHOOK_SECRETS": f"file://{tmp_path}/secrets"}
    with Served(given, target="webhook", source=source / "main.py", python=str(python)) as served:
        assert served.post(b"{}", {}).status == 503
        (tmp_path / "secrets").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
        assert served.post(b"{}", {}).status == 401


def test_the_deployed_path_with_embedded_adapters_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    with Simulator() as simulator:
        simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")
        given = settings(tmp_path, endpoint=simulator.url, credentials=simulator.credentials_json())
        with Served({**given, "PYTHONPROFILEIMPORTTIME": "1"}, log=tmp_path / "log") as served:
            assert served.send(EXPIRY).outcome == "deleted"
            imported = {line.rpartition("|")[2].strip() for line in served.log.splitlines() if "import time" in line}
    assert "modelarts_cleanup.app" in imported
    assert "modelarts_cleanup.adapters.ledger_sqlite" in imported
    of_the_framework = "google.cloud.functions"
    assert [name for name in imported if name.startswith(NEVER) and not name.startswith(of_the_framework)] == []


def test_importing_the_function_does_nothing(tmp_path: Path) -> None:
    code = "import threading, main; assert threading.active_count() == 1"
    kept = {"PATH": os.environ["PATH"], "PYTHONPATH": str(FUNCTION)}
    before = time.time()
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept, cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert [path for path in tmp_path.iterdir() if path.stat().st_mtime >= before] == []


def test_a_message_with_as_many_attributes_as_pubsub_allows_is_no_framework_error(tmp_path: Path) -> None:
    attributes = {f"attribute-{number}": "x" * 100 for number in range(100)}
    metadata = {"x-goog-pubsub-message-id": "7", "x-goog-pubsub-subscription-name": "projects/p/subscriptions/s"}
    given = settings(tmp_path, endpoint="http://127.0.0.1:1", credentials="")
    with Served(given) as served:
        answered = served.post(b"{}", {**attributes, **metadata})
    assert (answered.status, answered.outcome) == (200, "rejected")
