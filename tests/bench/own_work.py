"""Our own work for one event: all that is not waiting for ModelArts, by the clock around the HTTP exchange."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import requests
from fakes import a_policy, an_event
from measured import KEYS, PROJECTS
from modelarts_cleanup import credentials, deadline
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.adapters.secrets import Secret
from modelarts_cleanup.adapters.sinks import FileSink
from modelarts_cleanup.cleanup import World
from modelarts_cleanup.ledger import Ledger
from modelarts_cleanup.model import ClusterRef


class _Timed(requests.adapters.HTTPAdapter):
    waited = 0.0

    def send(self, *arguments: Any, **more: Any) -> requests.Response:
        began = time.perf_counter()
        try:
            return super().send(*arguments, **more)
        finally:
            self.waited += time.perf_counter() - began


def own_work(endpoint: str, place: Path, events: int) -> list[float]:
    """Take events to their end in this process, with SQLite and a file; ms of own work of each."""
    clusters = ModelArts(endpoint, Secret("keys", fetch=KEYS.encode, read=credentials.read))
    timed = _Timed()
    clusters._session.mount("http://", timed)  # noqa: SLF001 - the clock stands around what is waited for
    world = World(
        policy=a_policy(deletions_per_hour=events + 1, allowed_projects=tuple(PROJECTS)),
        clusters=clusters,
        ledger=Ledger(SqliteStore(str(place / "own.db"))),
        sink=FileSink(str(place / "own.jsonl")),
    )
    found: list[float] = []
    for number in range(events):
        ref = ClusterRef("cn-southwest-2", PROJECTS[number % len(PROJECTS)], f"own-{number}")
        event = an_event(f"own-{number}", ref=ref, expires_at=datetime(2026, 7, 1, tzinfo=UTC))
        timed.waited, began = 0.0, time.perf_counter()
        deadline.told_within(deadline.ANSWERING, event, world, deadline.DeliveryClock())
        found.append((time.perf_counter() - began - timed.waited) * 1000)
    return found[events // 10 :]
