"""Starts what is measured, measures it, and says how far figures spread."""

import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import environments
import psutil
import requests
from served import EXPIRED, FUNCTION, Served, settings

BENCH = Path(__file__).parent
# Enough that the hourly limit of one project is not what is measured.
PROJECTS = [f"p{number}" for number in range(100)]
# The vendor's SDK, and what it needs beside what ours needs.
PEER_NEEDS = (
    *("huaweicloudsdkcore", "huaweicloudsdkmodelarts", "defusedxml", "dnspython", "pyasn1", "pymongo", "pyyaml"),
    *("requests-toolbelt", "simplejson", "six"),
)
KEYS = '{"access_key": "ak", "secret_key": "sk"}'


@dataclass(frozen=True)
class Figure:
    """What was measured several times: the median to quote, and the spread to doubt it by."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Sum up values."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        """Show the median, and the spread behind it."""
        return f"{_short(self.median)} ({_short(self.least)}–{_short(self.most)})"


def _short(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@contextmanager
def modelarts(delay_ms: float = 0) -> Iterator[str]:
    """Serve a ModelArts that answers after a delay."""
    command = [sys.executable, str(BENCH / "modelarts.py"), str(delay_ms)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        port = int(process.stdout.readline())
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def requests_to(endpoint: str) -> int:
    """Ask how many requests a ModelArts has had."""
    return int(requests.get(f"{endpoint}/requests", timeout=5).text)


def embedded(endpoint: str, directory: Path, **changed: str) -> dict[str, str]:
    """Settings with embedded adapters, in a folder of their own."""
    folder = directory / uuid4().hex
    folder.mkdir()
    limits = {"DELETIONS_PER_HOUR": "999999", "ALLOWED_PROJECTS": ",".join(PROJECTS)}
    return settings(folder, endpoint=endpoint, credentials=KEYS, **limits, **changed)


def event(session: requests.Session, url: str, cluster: str, *, bare: bool = False) -> float:
    """Deliver one expiry; how long its answer took, in ms. `bare` sends the data alone, as the peer wants it."""
    project = random.choice(PROJECTS)  # noqa: S311 - no secret
    data = {"project_id": project, "cluster_id": cluster, "type": "HPS", "expires_at": "2026-07-01T00:00:00Z"}
    headers = {"content-type": "application/json"}
    if not bare:
        headers |= {"ce-id": cluster, "ce-source": "//bench", "ce-type": EXPIRED, "ce-specversion": "1.0"}
    began = time.perf_counter()
    answer = session.post(url, data=json.dumps(data), headers=headers, timeout=120)
    took = (time.perf_counter() - began) * 1000
    assert answer.status_code == 200, answer.text
    return took


@dataclass(frozen=True)
class Pythons:
    """What a function runs with: the Python of ours, and that of the peer."""

    ours: str = sys.executable
    peer: str = sys.executable

    @classmethod
    def deployed(cls, place: Path) -> "Pythons":
        """Make environments that hold what each would be deployed with, and no more, its bytecode compiled."""
        ours, peer = environments.make(place / "ours"), environments.make(place / "peer")
        (place / "peer.txt").write_text(environments.pinned(PEER_NEEDS))
        environments.add(peer, place / "peer.txt", "--no-deps")
        return cls(str(ours), str(peer))


def cold_start(
    environment: Mapping[str, str], *, python: str, source: Path = FUNCTION / "main.py", bare: bool = False
) -> float:
    """Start a process, deliver an event as soon as it listens; ms from the start to the answer."""
    began = time.perf_counter()
    served = Served(environment, source=source, python=python)
    try:
        with served, requests.Session() as session:
            event(session, served.url, uuid4().hex, bare=bare)
            return (time.perf_counter() - began) * 1000
    finally:
        served.kill()


def paired(runs: int, variants: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure variants in turn, so that a machine that slows down slows all of them; the first turn is not counted."""
    values: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(runs + 1):
        for name, measure in variants.items():
            value = measure()
            if turn:
                values[name].append(value)
    return values


def ratios(values: Mapping[str, Sequence[float]], baseline: str) -> dict[str, Figure]:
    """Divide pair by pair by the baseline of the same turn."""
    return {
        name: Figure.of([mine / base for mine, base in zip(found, values[baseline], strict=True)])
        for name, found in values.items()
    }


def load(url: str, *, parallel: int, events: int, bare: bool = False) -> tuple[list[float], float]:
    """Deliver events in parallel; each one's ms, and events per second."""
    took: list[float] = []
    lock = threading.Lock()
    left = iter(range(events))

    def work() -> None:
        with requests.Session() as session:
            while True:
                with lock:
                    if next(left, None) is None:
                        return
                found = event(session, url, uuid4().hex, bare=bare)
                with lock:
                    took.append(found)

    threads = [threading.Thread(target=work) for _ in range(parallel)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took, events / (time.perf_counter() - began)


@dataclass(frozen=True)
class Weight:
    """What a worker holds: resident and peak memory in MiB, open files, threads; and the CPU time it has had."""

    resident: float
    peak: float
    files: int
    threads: int
    cpu_seconds: float

    @classmethod
    def of(cls, served: Served) -> "Weight":
        """Weigh the worker that serves, not the master that watches it."""
        children = psutil.Process(served.process.pid).children()
        worker = children[0] if children else psutil.Process(served.process.pid)
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
        used = worker.cpu_times()
        return cls(
            worker.memory_info().rss / 2**20,
            peak / 1024,
            worker.num_fds(),
            worker.num_threads(),
            used.user + used.system,
        )


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder that goes when it is no longer needed."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)
