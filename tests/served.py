"""Serves the function with the real Functions Framework in a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import requests

FUNCTION = Path(__file__).parent.parent / "function"
EXPIRED = "dev.modelarts-cleanup.cluster.expired.v1"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Answered:
    """The answer to one delivery."""

    status: int
    body: Any

    @property
    def outcome(self) -> str:
        return str(self.body["outcome"])

    @property
    def reason(self) -> str | None:
        reason: str | None = self.body["reason"]
        return reason


class Served:
    """One entry point under the Functions Framework, its log in `log`, killed at the end."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        target: str = "cleanup",
        source: Path = FUNCTION / "main.py",
        python: str = sys.executable,
        log: Path | None = None,
        port: int | None = None,
    ) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._out = log.open("wb") if log else subprocess.DEVNULL
        kept = {name: value for name, value in os.environ.items() if name.split("_")[0] in ("PATH", "HOME", "COVERAGE")}
        self.process = subprocess.Popen(
            [python, "-m", "functions_framework", "--target", target, "--source", str(source)],
            env={**kept, "HOST": "127.0.0.1", "PORT": str(self.port), "THREADS": "16", **environment},
            stdout=self._out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
                return self
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        raise RuntimeError(f"the function does not serve: {self.log}")

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log else ""

    def stop(self) -> None:
        """Ask it to end, as the platform does; wait, and kill what is left."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._log and not isinstance(self._out, int):
            self._out.close()

    def kill(self) -> None:
        """Kill -9 it, all its processes at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def post(self, body: bytes, headers: Mapping[str, str], *, path: str = "/", method: str = "POST") -> Answered:
        answer = requests.request(method, self.url + path, data=body, headers=dict(headers), timeout=90)
        return Answered(answer.status_code, answer.json())

    def send(self, data: object, *, id: str = "e1", source: str = "//test") -> Answered:  # noqa: A002 - its name
        headers = {
            "ce-id": id,
            "ce-source": source,
            "ce-type": EXPIRED,
            "ce-specversion": "1.0",
            "content-type": "application/json",
        }
        return self.post(json.dumps(data).encode(), headers)


def settings(directory: Path, *, endpoint: str, credentials: str, **changed: str) -> dict[str, str]:
    """Give settings with embedded adapters in a directory; `credentials` is the secret's text."""
    (directory / "credentials.json").write_text(credentials)
    return {
        "MODELARTS_REGION": "cn-southwest-2",
        "MODELARTS_ENDPOINT": endpoint,
        "ALLOWED_PROJECTS": "p1",
        "ALLOWED_NAMES": "ci-*",
        "DRY_RUN": "false",
        "DELETIONS_PER_HOUR": "1000",
        "CREDENTIALS": f"file://{directory}/credentials.json",
        "COMPLETION_SINK": f"file://{directory}/completions.jsonl",
        "LEDGER": f"sqlite://{directory}/ledger.db",
        **changed,
    }


def completions(directory: Path) -> list[dict[str, Any]]:
    """Read the completion events of the file sink."""
    file = directory / "completions.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
