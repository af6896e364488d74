"""The reliability promise as a table: every step, every fault, and what stands after it and after redelivery."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Generic, TypeVar
from uuid import uuid4

import fakes
import pytest
from modelarts_cleanup import credentials, ledger
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.adapters.secrets import Secret, file_bytes
from modelarts_cleanup.adapters.sinks import HttpSink
from modelarts_cleanup.cleanup import World, cleanup
from modelarts_cleanup.deadline import DeliveryClock
from modelarts_cleanup.entries import ClusterEntry, Entry, EventEntry, Store
from modelarts_cleanup.local.simulator import Answer, Call, Drop, Fault, Reset, Simulator, Slow
from modelarts_cleanup.model import RetryLater
from receiving import Received, http_sink

_S = TypeVar("_S")

PROJECT, CLUSTER = "p1", "c-1"
EXPIRES_AT = datetime(2026, 7, 1, tzinfo=UTC)
README = Path(__file__).parent.parent / "README.md"


class FragileStore(SqliteStore):
    """SQLite, whose n-th transaction from now fails, before it is written or after (its answer is lost)."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.fail_in = 0
        self.after = False

    def transact(self, keys: Any, change: Any) -> Any:
        self.fail_in -= 1
        if self.fail_in == 0 and not self.after:
            raise RetryLater("ledger_unavailable", "down")
        found = super().transact(keys, change)
        if self.fail_in == 0:
            raise RetryLater("ledger_unavailable", "answer lost")
        return found


class Stage:
    """One cluster whose time is up, everything around it real, and every part able to fail."""

    def __init__(self, simulator: Simulator, sink_url: str, received: Received, directory: Path) -> None:
        self.simulator = simulator
        self.received = received
        self.secret_file = directory / "credentials.json"
        self.secret_file.write_text(simulator.credentials_json())
        self.store = FragileStore(str(directory / "ledger.db"))
        self.sink_url = sink_url
        self.endpoint = simulator.url
        simulator.add_cluster(project_id=PROJECT, cluster_id=CLUSTER, name="ci-a")

    def deliver(self) -> str:
        """Deliver the event once, to a new process."""
        secret = Secret("test", fetch=lambda: file_bytes(str(self.secret_file)), read=credentials.read)
        world = World(
            policy=fakes.a_policy(),
            clusters=ModelArts(self.endpoint, secret, connect_seconds=0.5, read_seconds=0.5),
            ledger=ledger.Ledger(self.store),
            sink=HttpSink(self.sink_url, seconds=0.5),
        )
        return delivered(world)

    def mend(self) -> None:
        self.simulator.heal()
        self.endpoint = self.simulator.url
        self.received.answers.clear()
        self.secret_file.write_text(self.simulator.credentials_json())


def delivered(world: World) -> str:
    """Deliver the event; the answer is an outcome, or the reason to be delivered again."""
    event = fakes.an_event(expires_at=EXPIRES_AT)
    try:
        return cleanup(event, holder=uuid4().hex, world=world, clock=DeliveryClock()).completion.outcome
    except RetryLater as retry:
        return retry.reason


def known(store: Store) -> str:
    """Say what stands in the ledger of the event and its cluster, and whether someone holds the lease."""

    def entry(key: str) -> Entry | None:
        return store.transact([key], lambda entries: entries[key])

    event, cluster = entry("event:e1"), entry(f"cluster:{fakes.REF.key}")
    assert event is None or isinstance(event, EventEntry)
    assert cluster is None or isinstance(cluster, ClusterEntry)
    leased = cluster and cluster.lease and cluster.lease.until > datetime.now(UTC)
    return _progress(event, cluster) + (", leased" if leased else "")


def _progress(event: EventEntry | None, cluster: ClusterEntry | None) -> str:
    if event and event.completion:
        return "recorded, published" if event.published else "recorded"
    if cluster and cluster.deletion:
        return "DELETE accepted" if cluster.deletion.accepted else "DELETE sent"
    return "claimed" if event else "nothing"


Arrange = Callable[[Stage], None]


def at(call: Call, fault: Fault, *, after_effect: bool = False, times: int = 1) -> Arrange:
    return lambda stage: stage.simulator.fail(fault, on=call, times=times, after_effect=after_effect)


def _dns(stage: Stage) -> None:
    stage.endpoint = "http://nowhere.invalid"


def _tls(stage: Stage) -> None:
    stage.endpoint = stage.endpoint.replace("http:", "https:")


def _refused(stage: Stage) -> None:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        stage.endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"


def _secret(text: str | None) -> Arrange:
    def arrange(stage: Stage) -> None:
        if text is None:
            stage.secret_file.unlink()
        else:
            stage.secret_file.write_text(text)

    return arrange


def _ledger(transaction: int, *, after: bool) -> Arrange:
    def arrange(stage: Stage) -> None:
        stage.store.fail_in = transaction
        stage.store.after = after

    return arrange


def _sink(answer: int | Callable[[BaseHTTPRequestHandler], None]) -> Arrange:
    return lambda stage: stage.received.answers.append(answer)


def _hang(handler: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(1.5)
    handler.close_connection = True


def _drop(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)
    handler.close_connection = True


# What a delivery writes into the ledger, one transaction each, and what stands there before, between and after.
STEPS = ("claim", "delete sent", "delete accepted", "record", "published")
STANDS = ("nothing", "claimed", "DELETE sent", "DELETE accepted", "recorded", "recorded, published")
HTML = b"<html><body>Bad Gateway</body></html>"
NO_RIGHTS = Answer.error(403, "ModelArts.0108")
FAULTS: list[tuple[str, Fault, str]] = [
    ("no answer in time", Slow(1.0), "modelarts_unavailable"),
    ("connection reset", Reset(), "modelarts_unavailable"),
    ("connection dropped", Drop(), "modelarts_unavailable"),
    ("302 to elsewhere", Answer(302, headers={"Location": "http://127.0.0.1:1/"}), "modelarts_unavailable"),
    ("401, with a renewed key too", Answer.error(401, "APIGW.0301"), "credentials_refused"),
    ("403 for missing rights", NO_RIGHTS, "credentials_refused"),
    ("404 of the gateway", Answer.error(404, "APIGW.0101"), "misconfigured_endpoint"),
    ("409 without a code", Answer(409), "busy"),
    ("400, another operation in progress", Answer.error(400, "ModelArts.6357"), "busy"),
    ("429 without Retry-After", Answer(429), "throttled"),
    ("429, Retry-After: soon", Answer(429, headers={"Retry-After": "soon"}), "throttled"),
    ("429, Retry-After: 86400", Answer(429, headers={"Retry-After": "86400"}), "throttled"),
    ("500 with an error body", Answer.error(500, "ModelArts.0010"), "modelarts_unavailable"),
    ("502 with HTML", Answer(502, body=HTML), "modelarts_unavailable"),
    ("503 without a body", Answer(503), "modelarts_unavailable"),
]
SHAPES: list[tuple[str, Fault]] = [
    ("200 without a body", Answer(200)),
    ("200 with broken JSON", Answer(200, body=b'{"id": "c-1", "na')),
    ("200 of another shape", Answer(200, body=b'{"items": []}')),
    ("200 with HTML", Answer(200, body=HTML)),
    ("204 where a body is due", Answer(204)),
]


@dataclass(frozen=True)
class Row(Generic[_S]):
    """One line of the table, by what it does to a stage; `deletes` counts those received, over all deliveries."""

    step: str
    fault: str
    arrange: Callable[[_S], None]
    answer: str
    known: str
    deletes: int = 1
    ends: str = "deleted"

    @property
    def id(self) -> str:
        return re.sub(r"[^a-zA-Z0-9]+", "-", f"{self.step}-{self.fault}")

    @property
    def cells(self) -> tuple[str, ...]:
        end = "the same" if self.answer == self.ends else f"`{self.ends}`"
        answer = f"200 `{self.answer}`" if self.answer == self.ends else f"503 `{self.answer}`"
        return self.step, self.fault, answer, self.known, str(self.deletes), end


def _rows() -> Iterator[Row[Stage]]:  # noqa: C901 - a table
    for fault, text in (("missing", None), ("empty", ""), ("broken", "{"), ("without a key", '{"access_key": "a"}')):
        yield Row("credentials", fault, _secret(text), "credentials_unavailable", "claimed")
    yield Row("connect", "name not resolved", _dns, "modelarts_unavailable", "claimed")
    yield Row("connect", "TLS fails", _tls, "modelarts_unavailable", "claimed")
    yield Row("connect", "refused", _refused, "modelarts_unavailable", "claimed")
    for step, call in (("look", Call.SHOW_CLUSTER), ("members", Call.LIST_SUPERNODES)):
        for fault, what, answer in FAULTS:
            yield Row(step, fault, at(call, what, times=2), answer, "claimed")
        for fault, what in SHAPES:
            yield Row(step, fault, at(call, what), "modelarts_unavailable", "claimed")
    yield Row(
        "look",
        "404 without a code, while the list has it",
        at(Call.SHOW_CLUSTER, Answer(404)),
        "modelarts_unavailable",
        "claimed",
    )
    yield Row(
        "look", "401 once, the key was rotated", at(Call.SHOW_CLUSTER, Answer(401)), "deleted", "recorded, published"
    )
    yield Row(
        "look",
        "429, Retry-After: 1",
        at(Call.SHOW_CLUSTER, Answer(429, headers={"Retry-After": "1"})),
        "deleted",
        "recorded, published",
    )
    for fault, what, answer in FAULTS:
        sent_in_one = 2 if "401" in fault else 1
        yield Row(
            "DELETE",
            fault,
            at(Call.DELETE_CLUSTER, what, times=2 if "401" in fault else 1),
            answer,
            "DELETE sent",
            1 + sent_in_one,
        )
    for fault, lost in (("reset", Reset()), ("dropped", Drop()), ("too slow", Slow(1.0))):
        yield Row(
            "DELETE",
            f"carried out, its answer {fault}",
            at(Call.DELETE_CLUSTER, lost, after_effect=True),
            "modelarts_unavailable",
            "DELETE sent",
        )
    yield Row(
        "DELETE",
        "202, which promises nothing",
        at(Call.DELETE_CLUSTER, Answer(202)),
        "modelarts_unavailable",
        "DELETE sent",
        2,
    )
    for fault, what in (
        ("403, in use", Answer.error(403, "ModelArts.6344")),
        ("403 without a code", Answer(403)),
        ("400, stop it first", Answer.error(400, "ModelArts.6304")),
    ):
        yield Row("DELETE", fault, at(Call.DELETE_CLUSTER, what), "failed", "recorded, published", 1, "failed")
    yield Row(
        "DELETE",
        "400, not found, and the look agrees",
        at(Call.DELETE_CLUSTER, Answer.error(400, "ModelArts.6404"), after_effect=True),
        "deleted",
        "recorded, published",
    )
    for fault, what, answer in FAULTS:
        yield Row("look after the DELETE", fault, _after_delete(what), answer, "DELETE accepted")
    for number, step in enumerate(STEPS, 1):
        down, unheard = _ledger(number, after=False), _ledger(number, after=True)
        yield Row(f"ledger: {step}", "down", down, "ledger_unavailable", STANDS[number - 1])
        yield Row(f"ledger: {step}", "written, its answer lost", unheard, "ledger_unavailable", STANDS[number])
    for fault, how in (("500", 500), ("302", 302), ("no answer in time", _hang), ("connection dropped", _drop)):
        yield Row("publish", fault, _sink(how), "sink_unavailable", "recorded")


def _after_delete(what: Fault) -> Arrange:
    def arrange(stage: Stage) -> None:
        def on_answer(request: Any) -> None:
            if request.call is Call.DELETE_CLUSTER:
                stage.simulator.fail(what, on=Call.SHOW_CLUSTER, times=2)

        stage.simulator.on_answer = on_answer

    return arrange


ROWS = list(_rows())


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Simulator() as simulator, http_sink() as (url, received):
        yield Stage(simulator, url, received, tmp_path)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_fault_loses_nothing_and_tells_no_lie(row: Row[Stage], stage: Stage) -> None:
    row.arrange(stage)
    assert stage.deliver() == row.answer
    assert known(stage.store) == row.known
    stage.mend()
    answers = [stage.deliver(), stage.deliver()]
    assert answers == [row.ends, row.ends]
    assert known(stage.store) == "recorded, published"
    assert stage.simulator.count(Call.DELETE_CLUSTER) == row.deletes
    assert stage.simulator.count_effective_deletes() == (1 if row.ends == "deleted" else 0)
    assert len(stage.received.bodies) == 1, "one completion event, byte for byte"
