"""
Runs thousands of expiries through the function at once: `python tests/bench/scale.py [--expiries N] [--processes N]`.

Pub/Sub pushes each expiry one to three times to some processes of the function, on one Firestore, over a ModelArts
that fails one call in twenty. Now and then a process is killed, and a few projects hold more clusters than may be
deleted in an hour. In the end everything is counted; it exits with 1 where something does not add up.

The Pub/Sub emulator pushes two messages of a subscription at a time, so that there are many topics. With a retry
policy it stops pushing what has failed three times; without one it pushes every second. So the pauses that
production has are kept here, where the one address that it pushes to hands each message to whoever is least busy.
"""

import argparse
import http.client
import itertools
import json
import os
import random
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar, NoReturn, Self

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "function"))

import emulators
import pytest
from google.cloud.firestore import Client
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.types import PubsubMessage, PullRequest, PushConfig, ReceivedMessage
from modelarts_cleanup.adapters.ledger_firestore import COLLECTION, FirestoreStore
from modelarts_cleanup.local.simulator import (
    Answer,
    Call,
    Drip,
    Drop,
    Fault,
    Lag,
    Request,
    Reset,
    Simulator,
    Slow,
    VisibleFor,
    VisibleForLooks,
)
from modelarts_cleanup.local.world import ChargingMode
from modelarts_cleanup.model import ClusterType
from rich.console import Console
from rich.table import Table
from served import EXPIRED, Served, settings

REGION = "cn-southwest-2"
DELETED = ("deleted", None)
REFUSED = ("failed", "refused")
GONE = ("already_gone", None)
REJECTED = ("rejected", "invalid_event")
# How each hundred expiries of the projects that are not crowded shall end.
MIX: Mapping[tuple[str, str | None], int] = {
    DELETED: 79,
    GONE: 4,
    REFUSED: 2,
    REJECTED: 3,
    ("skipped", "cluster_protected"): 2,
    ("skipped", "has_members"): 2,
    ("skipped", "name_differs"): 1,
    ("skipped", "name_not_allowed"): 2,
    ("skipped", "needs_unsubscribe"): 2,
    ("skipped", "not_expired"): 1,
    ("skipped", "project_not_allowed"): 1,
    ("skipped", "region_not_allowed"): 1,
}
CLOSING = (DELETED, GONE)
FAULTS = 0.05
# Projects with more clusters than may be deleted in an hour, and how many topics their expiries have of their own.
CROWD = "crowd-"
CROWDED_TOPICS = 8
# A client that reads for 10 s gives up on these; whatever comes sooner is only late.
TOO_SLOW = 10.5
LONGEST_LEASE = 120.0
# From so many failed deliveries on, a message is pushed every two seconds, lest it is dead after a lease or two.
IMPATIENT = 5
Scalar = str | int | bool


@dataclass(frozen=True)
class Options:
    """How much of it; a `brief` run has no wait that is long, a killed process's leases included."""

    expiries: int = 5000
    processes: int = 4
    seed: int = 1
    kills: int = 6
    topics: int = 48
    threads: int = 12
    brief: bool = False

    @property
    def projects(self) -> int:
        """How many projects are not crowded."""
        return max(5, self.expiries // 40)

    @property
    def crowded(self) -> int:
        """How many clusters that may be deleted, in each of two projects: half as many again as in others."""
        return 3 * self.expiries // (2 * self.projects + 6)


# The expiries


@dataclass(frozen=True)
class Sending:
    """One message, and the identity of the event in it; None where the message's own is the event's."""

    case: int
    identity: tuple[str, str] | None
    data: bytes
    attributes: dict[str, str]
    crowded: bool = False


@dataclass(frozen=True)
class Case:
    """One expiry of one cluster, and how it shall end."""

    number: int
    project: str
    cluster: str
    ending: tuple[str, str | None]
    sendings: tuple[Sending, ...]


def drawn(*seed: object) -> random.Random:
    """Give a generator that depends on nothing but its seed."""
    return random.Random("/".join(map(str, seed)))  # noqa: S311 - no secret


def planned(options: Options, simulator: Simulator) -> list[Case]:
    """Plan all expiries, and put into the world what they are about."""
    endings = [ending for ending, share in MIX.items() for _ in range(share)]
    drawn(options.seed, "endings").shuffle(endings)
    ordinary = options.expiries - 2 * options.crowded
    cases = []
    for number in range(options.expiries):
        ending, project = endings[number % len(endings)], f"p-{number * options.projects // ordinary}"
        if number >= ordinary:
            ending, project = DELETED, f"{CROWD}{number % 2}"
        if ending[1] == "project_not_allowed":
            project = "elsewhere"
        cases.append(_case(number, project, ending, drawn(options.seed, number), simulator))
    return cases


def _case(number: int, project: str, ending: tuple[str, str | None], dice: random.Random, simulator: Simulator) -> Case:
    cluster, reason = f"c-{number}", ending[1]
    type_: ClusterType = "ECS" if ending == REFUSED or (ending == DELETED and dice.random() < 0.2) else "HPS"
    name = {"name_not_allowed": "prod", "cluster_protected": dice.choice(["ci-keep", "ci"])}.get(reason or "", "ci")
    name = f"{name}-{number}"
    if ending != GONE:
        later: list[Lag] = [VisibleForLooks(1), VisibleForLooks(3), VisibleFor(timedelta(seconds=1))]
        lag = dice.choice(later) if dice.random() < 0.3 else None
        simulator.add_cluster(project_id=project, cluster_id=cluster, name=name, type=type_, lag=lag)
    if reason in ("has_members", "needs_unsubscribe") or ending == REFUSED:
        charged: ChargingMode = "PRE_PAID" if reason == "needs_unsubscribe" else "POST_PAID"
        simulator.add_supernode(project_id=project, cluster_id=cluster, charging_mode=charged)
    data: dict[str, Scalar] = {"project_id": project, "cluster_id": cluster, "owner": "Zoë 朱"}
    if dice.random() < 0.5:
        data["type"] = type_
    if reason == "name_differs" or dice.random() < 0.3:
        data["name"] = "ci-another" if reason == "name_differs" else name
    if reason == "cluster_protected" and not name.startswith("ci-keep"):
        data["protected"] = True
    if reason == "region_not_allowed":
        data["region"] = "cn-north-4"
    moment = datetime(2099 if reason == "not_expired" else 2026, 7, 1, tzinfo=UTC)
    expires_at = moment + timedelta(microseconds=dice.randrange(10**9))
    return Case(number, project, cluster, ending, tuple(_sendings(number, data, expires_at, ending, dice)))


def _sendings(
    number: int,
    data: dict[str, Scalar],
    expires_at: datetime,
    ending: tuple[str, str | None],
    dice: random.Random,
) -> Iterator[Sending]:
    """Send an expiry up to three times: the same event again, or another one that says the same in other words."""
    rubbish = dice.choice([b"{", b"\xff", b"[]", b'{"project_id": "p-0"}', b'{"cluster_id": "../x"}'])
    crowded = str(data["project_id"]).startswith(CROWD)
    sending: Sending | None = None
    for again in range(dice.choice([1, 2, 3])):
        if sending and dice.random() < 0.5:
            yield sending
            continue
        body = json.dumps({**data, **_told(expires_at, dice)}).encode() if ending != REJECTED else rubbish
        identity = f"//scale/{again % 2}", f"e-{number}-{again}"
        event = {"specversion": "1.0", "type": EXPIRED, "id": identity[1], "source": identity[0]}
        form = dice.choice(["binary", "binary", "structured", "bare"])
        if form == "structured" and ending != REJECTED:
            whole = json.dumps({**event, "data": json.loads(body)}).encode()
            sending = Sending(number, identity, whole, {"content-type": "application/cloudevents+json"}, crowded)
        elif form == "bare":
            sending = Sending(number, None, body, {}, crowded)
        else:
            named = {f"ce-{name}": value for name, value in event.items()}
            sending = Sending(number, identity, body, {**named, "content-type": "application/json"}, crowded)
        yield sending


def _told(expires_at: datetime, dice: random.Random) -> dict[str, Scalar]:
    match dice.randrange(3):
        case 0:
            return {
                "created_at": (expires_at - timedelta(hours=36)).isoformat(),
                "ttl": dice.choice(["36h", "P1DT12H"]),
            }
        case 1:
            return {"expires_at": expires_at.astimezone(timezone(timedelta(hours=8))).isoformat()}
    return {"expires_at": expires_at.isoformat().replace("+00:00", "Z")}


def in_order(cases: Sequence[Case], seed: int) -> list[Sending]:
    """Mix the messages: repetitions follow at once, or soon, or late."""
    dice = drawn(seed, "order")
    keyed: list[tuple[float, int, Sending]] = []
    for case in cases:
        at = dice.uniform(0, len(cases))
        for sending in case.sendings:
            keyed.append((at, len(keyed), sending))
            at += dice.choice([0.0, 3.0, 50.0, 1000.0])
    return [sending for _, _, sending in sorted(keyed, key=lambda one: one[:2])]


# The faults


@dataclass(frozen=True)
class Kind:
    """One kind of fault, and which calls it may meet; one that `needs_effect` would be a lie where there is none."""

    name: str
    make: Callable[[random.Random], Fault]
    after_effect: bool = False
    only: tuple[Call, ...] | None = None
    long: bool = False
    weight: int = 2
    needs_effect: bool = False


READS = (Call.SHOW_CLUSTER, Call.LIST_SUPERNODES, Call.LIST_CLUSTERS)
DELETE = (Call.DELETE_CLUSTER,)


def _answer(status: int, body: str = "", **headers: str) -> Callable[[random.Random], Fault]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Answer(status, body=body.encode(), headers=named)


def _error(status: int, code: str) -> Callable[[random.Random], Fault]:
    return lambda _: Answer.error(status, code)


KINDS = (
    Kind("late", lambda dice: Slow(dice.uniform(0.1, 2)), weight=6),
    Kind("too late", lambda _: Slow(TOO_SLOW), long=True, weight=1),
    Kind("too late, after the effect", lambda _: Slow(TOO_SLOW), after_effect=True, long=True, weight=1),
    Kind("drips", lambda _: Drip(0.005)),
    Kind("drips for longer than a delivery", lambda _: Drip(1.0, headers=True), long=True, weight=1),
    Kind("reset", lambda _: Reset()),
    Kind("reset after the effect", lambda _: Reset(), after_effect=True),
    Kind("reset in the answer", lambda dice: Reset(sent=dice.randint(1, 90)), after_effect=True),
    Kind("drop", lambda _: Drop()),
    Kind("drop after the effect", lambda _: Drop(), after_effect=True),
    Kind("drop in the answer", lambda dice: Drop(sent=dice.randint(1, 90)), after_effect=True),
    Kind("302", _answer(302, Location="http://127.0.0.1:9/")),
    Kind("401", _error(401, "APIGW.0301")),
    Kind("403 of the gateway", _error(403, "APIGW.0302")),
    Kind("404 of the gateway", _error(404, "APIGW.0101")),
    Kind("409", _answer(409, "{}")),
    Kind("409 busy", _error(409, "ModelArts.6357")),
    Kind("429", _error(429, "APIGW.0308")),
    Kind("429 with a time", lambda _: Answer.error(429, "APIGW.0308", headers={"Retry-After": "1"})),
    Kind("500", _error(500, "ModelArts.0010")),
    Kind("500 after the effect", _error(500, "ModelArts.0010"), after_effect=True),
    Kind("502 in HTML", _answer(502, "<html>Bad Gateway</html>", Content_Type="text/html")),
    Kind("503", _answer(503, "", Retry_After="1")),
    Kind("504 after the effect", _answer(504), after_effect=True),
    Kind("cut short", lambda _: Answer(200, body=b"{}", headers={"Content-Length": "90"}), after_effect=True),
    Kind("200 in HTML", _answer(200, "<html>Sign in</html>", Content_Type="text/html"), only=READS),
    Kind("200 with nothing", _answer(200), only=READS),
    Kind("200 with a list", _answer(200, "[]"), only=READS),
    Kind("200 with null", _answer(200, '{"id": null, "data": null, "hyper_clusters": null}'), only=READS),
    Kind("200 about another", _answer(200, '{"id": "x", "name": "ci-x", "data": [], "total": 5}'), only=READS[:2]),
    Kind("204", _answer(204), only=READS),
    Kind("bare 404", _answer(404), only=READS[:2]),
    Kind("404 after the effect", _error(404, "ModelArts.6404"), after_effect=True, only=DELETE, needs_effect=True),
    Kind("200 after the effect", _answer(200, "<html>"), after_effect=True, only=DELETE, needs_effect=True),
)


class Mishaps:
    """Plans faults as requests come: whether the nth call for a cluster meets one depends on nothing but the seed."""

    def __init__(self, simulator: Simulator, options: Options, refused: set[str]) -> None:
        self.met: Counter[str] = Counter()
        self.may_be_long = not options.brief
        self._simulator = simulator
        self._seed = options.seed
        self._refused = refused
        self._lock = threading.Lock()
        self._numbers: Counter[tuple[Call, str | None, str | None]] = Counter()

    def before(self, request: Request) -> None:
        """Plan a fault for this request, or none."""
        key = (request.call, request.project_id, request.cluster_id)
        with self._lock:
            self._numbers[key] += 1
            number = self._numbers[key]
        dice = drawn(self._seed, *key, number)
        if dice.random() >= FAULTS:
            return
        fits = [kind for kind in KINDS if self._fits(kind, request)]
        (kind,) = dice.choices(fits, [kind.weight for kind in fits])
        with self._lock:
            self.met[kind.name] += 1
        fault = kind.make(dice)
        self._simulator.fail(fault, on=request.call, cluster_id=request.cluster_id, after_effect=kind.after_effect)

    def _fits(self, kind: Kind, request: Request) -> bool:
        if kind.long and not self.may_be_long:
            return False
        if kind.needs_effect and request.cluster_id in self._refused:
            return False
        return kind.only is None or request.call in kind.only


def harmless(fault: Fault | None) -> bool:
    """Tell whether the genuine answer got through in time in spite of a fault, or without one."""
    match fault:
        case Slow(seconds=seconds, answer=None):
            return seconds < TOO_SLOW
        case Drip(seconds=seconds, answer=None):
            return seconds < 1
        case Answer(status=status, headers=headers):
            return status in (200, 204) and "Content-Length" not in headers
    return fault is None


# The processes, and who sends them what


@dataclass(frozen=True)
class Delivery:
    """One delivery of a message; `told` is the reason or outcome of its answer, None if its process was killed."""

    message: str
    case: int
    at: datetime
    status: int | None
    told: str | None


@dataclass(eq=False)
class Process:
    """One process, and the cases that it is at work on."""

    served: Served
    at_work: Counter[int] = field(default_factory=Counter)
    open: bool = True
    killed: bool = False


class Processes:
    """Processes of the function that come and go, and one address for all of them."""

    def __init__(self, environment: Mapping[str, str], options: Options, place: Path) -> None:
        self.deliveries: list[Delivery] = []
        self.last: dict[str, Delivery] = {}
        self.limited: set[int] = set()
        self.failed: Counter[str] = Counter()
        self.acknowledged = 0
        self.wrong: list[str] = []
        self.changed = threading.Condition()
        self.paused = False
        self._environment = {**environment, "THREADS": str(options.threads + 4)}
        self._options = options
        self._place = place
        self._started = 0
        self._running: list[Process] = []

        class Handler(_Handler):
            processes = self

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.wrong = self.wrong
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> Self:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: self.start(), range(self._options.processes)))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        for process in self._running:
            process.served.kill()
            process.served.stop()

    def start(self) -> None:
        """Start one more."""
        with self.changed:
            self._started += 1
            log = self._place / f"process-{self._started}"
        served = Served(self._environment, log=log).__enter__()
        with self.changed:
            self._running.append(Process(served))
            self.changed.notify_all()

    def renew(self, **environment: str) -> None:
        """Deploy with other settings: others come, and each that was there ends its work and goes."""
        self._environment |= environment
        former = tuple(self._running)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda _: self.start(), former))
            list(pool.map(self._retire, former))

    def _retire(self, process: Process) -> None:
        with self.changed:
            process.open = False
            if not self.changed.wait_for(lambda: not process.at_work, 70):
                self.wrong.append("a process did not end its work within 70 s")
            self._running.remove(process)
        process.served.stop()

    def kill(self, process: Process) -> None:
        """Kill -9 one, with whatever it is at work on."""
        with self.changed:
            process.open, process.killed = False, True
            self._running.remove(process)
        process.served.kill()
        process.served.stop()

    def busiest(self) -> Process:
        """Give the one with the most to do."""
        with self.changed:
            return max(self._open(), key=lambda process: process.at_work.total())

    def at_work_on(self, case: int) -> Process | None:
        """Give one that is at work on a case."""
        with self.changed:
            return next((process for process in self._open() if process.at_work[case]), None)

    def wait_until_idle(self) -> None:
        """Let nothing more begin, and wait until all that has begun has ended."""
        with self.changed:
            self.paused = True
            if not self.changed.wait_for(lambda: not any(process.at_work for process in self._running), 70):
                self.wrong.append("deliveries did not end within 70 s")

    def resume(self) -> None:
        """Let deliveries begin again."""
        with self.changed:
            self.paused = False
            self.changed.notify_all()

    def deliver(self, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Deliver one message to whoever is least busy; 502 if it dies over it."""
        named = {name.lower(): value for name, value in headers.items()}
        case, message = int(named["case"]), named["x-goog-pubsub-message-id"]
        if self._too_early(message):
            return 503, b""
        process = self._taken(case)
        answered: tuple[int, bytes] | None = None
        with suppress(OSError, http.client.HTTPException):
            answered = _posted(process.served.port, headers, body)
        told = None
        if answered:
            answer = json.loads(answered[1])
            told = answer["reason"] if answer["outcome"] == "retry" else answer["outcome"]
        delivery = Delivery(message, case, datetime.now(UTC), answered and answered[0], told)
        with self.changed:
            process.at_work[case] -= 1
            process.at_work += Counter()  # forget what is at nothing
            if answered is None and not process.killed:
                self.wrong.append(f"a process that nobody killed gave no answer to message {message}")
            self.deliveries.append(delivery)
            self.last[message] = delivery
            self.acknowledged += delivery.status == 200
            if told == "deletion_limit":
                self.limited.add(case)
            self.failed[message] += delivery.status != 200
            patient = self.failed[message] > IMPATIENT and delivery.status != 200
            self.changed.notify_all()
        if patient and told != "deletion_limit":
            time.sleep(1)
        return answered or (502, b"")

    def _too_early(self, message: str) -> bool:
        """Tell whether a message that waits for the limit shall wait on, as it does in production."""
        with self.changed:
            last = self.last.get(message)
            pause = timedelta(seconds=1 if self._options.brief else 10)
            return bool(last and last.told == "deletion_limit" and datetime.now(UTC) - last.at < pause)

    def _open(self) -> list[Process]:
        return [process for process in self._running if process.open]

    def _taken(self, case: int) -> Process:
        def free() -> Process | None:
            ready = [] if self.paused else self._open()
            least = min(ready, key=lambda process: process.at_work.total(), default=None)
            return least if least and least.at_work.total() < self._options.threads else None

        with self.changed:
            while (process := free()) is None:
                self.changed.wait()
            process.at_work[case] += 1
            return process


def _posted(port: int, headers: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=90)
    try:
        connection.request("POST", "/", body, dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    wrong: list[str]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of connections that Pub/Sub cuts; all else is a mistake of this script."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self.wrong.append(f"{type(error).__name__} in a delivery: {error}")


class _Handler(BaseHTTPRequestHandler):
    processes: ClassVar[Processes]
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        dropped = ("connection", "host", "content-length", "transfer-encoding")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        status, answer = self.processes.deliver(headers, body)
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


# The moments at which a process is killed; what is None is at once.
MOMENTS: tuple[tuple[Call, str] | None, ...] = (
    (Call.DELETE_CLUSTER, "answer"),
    None,
    (Call.DELETE_CLUSTER, "request"),
    (Call.SHOW_CLUSTER, "answer"),
    None,
    (Call.LIST_SUPERNODES, "answer"),
)


class Killer:
    """Kills a process each time that so many messages have been acknowledged, and brings another one."""

    def __init__(self, processes: Processes, cases: Sequence[Case], options: Options, messages: int) -> None:
        self.kills = 0
        self._processes = processes
        self._by_cluster = {(case.project, case.cluster): case.number for case in cases}
        self._after = [messages * (1 + kill) // (2 * options.kills + 1) for kill in range(options.kills)]
        self._lock = threading.Lock()
        self._armed: tuple[Call, str] | None = None
        self._restarts: list[Callable[[], None]] = []

    def look(self) -> list[Callable[[], None]]:
        """Kill, if it is time; give what is to be done so that others take over."""
        with self._lock:
            due = bool(self._after) and self._processes.acknowledged >= self._after[0] and self._armed is None
            if due:
                self._after.pop(0)
                moment = self._armed = MOMENTS[self.kills % len(MOMENTS)]
            restarts, self._restarts = self._restarts, []
        if due and moment is None:
            self._kill(self._processes.busiest())
        return restarts

    @property
    def idle(self) -> bool:
        """Whether there is nobody left to kill, nor to replace."""
        with self._lock:
            return not self._after and self._armed is None and not self._restarts

    def meet(self, request: Request, at: str) -> None:
        """Kill whoever makes this request, if that is what was waited for."""
        if self._armed != (request.call, at):
            return
        number = self._by_cluster.get((str(request.project_id), str(request.cluster_id)))
        process = self._processes.busiest() if number is None else self._processes.at_work_on(number)
        with self._lock:
            if process is None or self._armed is None:
                return
            self._armed = None
        self._kill(process)

    def _kill(self, process: Process) -> None:
        self._processes.kill(process)
        with self._lock:
            self.kills += 1
            self._restarts.append(self._processes.start)


# The run


@dataclass(frozen=True)
class Told:
    """One completion event as it came off its topic."""

    message: str
    attributes: Mapping[str, str]
    data: bytes


@dataclass(frozen=True)
class Record:
    """All that was seen."""

    options: Options
    cases: Sequence[Case]
    limit: int
    identities: Mapping[str, tuple[str, str]]  # of events, by message
    deliveries: Sequence[Delivery]
    told: Sequence[Told]
    requests: Sequence[Request]
    requests_under_limit: int
    waiting: frozenset[int]
    standing: frozenset[str]
    left: Sequence[str]
    wrong: Sequence[str]
    faults: Mapping[str, int]
    kills: int
    seconds: Mapping[str, float]


class Scene:
    """Topics, subscriptions and what goes over them."""

    def __init__(self, options: Options, url: str, project: str) -> None:
        self.pubsub = emulators.Pubsub(project)
        self.completions = self.pubsub.topic("completions")
        self.told: list[Told] = []
        self.identities: dict[str, tuple[str, str]] = {}
        self._completed = self.pubsub.subscription(self.completions, ack_deadline_seconds=600)
        dead = self.pubsub.topic("dead-letters")
        self._dead = self.pubsub.subscription(dead)
        self._publisher = PublisherClient()
        self._subscriber = SubscriberClient()
        self._dice = drawn(options.seed, "topics")
        letters: dict[str, object] = {"dead_letter_policy": {"dead_letter_topic": dead, "max_delivery_attempts": 100}}
        # What waits for the limit is delivered more often than that: production's pauses are up to ten minutes.
        ordinary: dict[str, dict[str, object]] = {
            self.pubsub.topic(f"expiries-{number}"): letters for number in range(options.topics)
        }
        crowded: dict[str, dict[str, object]] = {
            self.pubsub.topic(f"expiries-of-a-crowd-{number}"): {} for number in range(CROWDED_TOPICS)
        }
        self._topics = {False: [*ordinary], True: [*crowded]}
        push = {"push_endpoint": url, "no_wrapper": {"write_metadata": True}}
        self.subscriptions = {
            topic: self.pubsub.subscription(topic, ack_deadline_seconds=600, push_config=push, **more)
            for topic, more in {**ordinary, **crowded}.items()
        }

    def publish(self, sendings: Sequence[Sending]) -> None:
        """Publish messages, each on one of the topics, and remember whose they are."""
        shares: dict[str, list[Sending]] = {}
        for sending in sendings:
            shares.setdefault(self._dice.choice(self._topics[sending.crowded]), []).append(sending)
        for topic, share in shares.items():
            messages = [
                PubsubMessage(data=one.data, attributes={**one.attributes, "case": str(one.case)}) for one in share
            ]
            ids = self._publisher.publish(topic=topic, messages=messages, timeout=30).message_ids
            own = f"//pubsub.googleapis.com/{self.subscriptions[topic]}"
            for one, message in zip(share, ids, strict=True):
                self.identities[message] = one.identity or (own, message)

    def listen(self) -> int:
        """Take the completion events off their topic that are there now; how many."""
        pulled = self._pulled(self._completed)
        self.told += [
            Told(one.message.message_id, dict(one.message.attributes), bytes(one.message.data)) for one in pulled
        ]
        return len(pulled)

    def listen_to_the_end(self) -> None:
        """Take completion events until none has come for a second."""
        quiet = 0
        while quiet < 10:
            quiet = 0 if self.listen() else quiet + 1
            time.sleep(0.1)

    def left(self) -> list[str]:
        """Say what the subscriptions still hold, and what the dead letters."""
        for subscription in self.subscriptions.values():
            self._subscriber.modify_push_config(subscription=subscription, push_config=PushConfig(), timeout=10)

        time.sleep(1)
        return [
            f"message {one.message.message_id} is left in {subscription}"
            for subscription in [self._dead, *self.subscriptions.values()]
            for one in self._pulled(subscription)
        ]

    def _pulled(self, subscription: str) -> list[ReceivedMessage]:
        # A pull that waits and is cut off takes messages that nobody gets.
        request = PullRequest(subscription=subscription, max_messages=1000, return_immediately=True)
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            pulled = list(self._subscriber.pull(request, timeout=30).received_messages)
        if pulled:
            ids = [one.ack_id for one in pulled]
            self._subscriber.acknowledge(subscription=subscription, ack_ids=ids, timeout=30)
        return pulled


def run(options: Options, *, pubsub: str, firestore: str, place: Path, say: Callable[[str], object]) -> Record:
    """Run it all, with emulators at these addresses, which the environment names too."""
    began = time.monotonic()
    project = emulators.new_project()
    with Simulator() as simulator, ExitStack() as stack:
        cases = planned(options, simulator)
        needed = Counter(case.project for case in cases if case.ending == DELETED)
        for case in cases:  # one that is refused is judged afresh for each event, and counts each time
            needed[case.project] += len(_events(case)) if case.ending == REFUSED else 0
        limit = max(count for name, count in needed.items() if not name.startswith(CROWD))
        environment = settings(
            place,
            endpoint=simulator.url,
            credentials=simulator.credentials_json(),
            ALLOWED_PROJECTS=",".join(sorted({case.project for case in cases} - {"elsewhere"})),
            PROTECTED_CLUSTERS="ci-keep-*",
            DELETIONS_PER_HOUR=str(limit),
            COMPLETION_SINK=f"pubsub://projects/{project}/topics/completions",
            LEDGER=f"firestore://projects/{project}/databases/(default)",
            PUBSUB_EMULATOR_HOST=pubsub,
            FIRESTORE_EMULATOR_HOST=firestore,
        )
        processes = Processes(environment, options, place)
        scene = Scene(options, processes.url, project)
        stack.enter_context(processes)
        mishaps = Mishaps(simulator, options, {case.cluster for case in cases if case.ending == REFUSED})
        sendings = in_order(cases, options.seed)
        killer = Killer(processes, cases, options, len(sendings))

        def on_request(request: Request) -> None:
            killer.meet(request, "request")
            mishaps.before(request)

        simulator.on_request = on_request
        simulator.on_answer = lambda request: killer.meet(request, "answer")
        seconds = {"preparing": time.monotonic() - began}
        director = Director(options, cases, scene=scene, processes=processes, killer=killer, say=say)
        director.send(sendings)
        mishaps.may_be_long = False  # the rest need not wait for it
        seconds["sending"] = time.monotonic() - began - sum(seconds.values())
        director.wait_for_all_but_the_limit(limit)
        seconds["the rest, but for the limit"] = time.monotonic() - began - sum(seconds.values())
        waiting, under_limit = director.waiting(), len(simulator.requests)
        processes.renew(DELETIONS_PER_HOUR=str(10 * options.expiries))
        director.wait_for_all()
        seconds["after the limit was raised"] = time.monotonic() - began - sum(seconds.values())
        scene.listen_to_the_end()
        return Record(
            options=options,
            cases=cases,
            limit=limit,
            identities=scene.identities,
            deliveries=tuple(processes.deliveries),
            told=tuple(scene.told),
            requests=simulator.requests,
            requests_under_limit=under_limit,
            waiting=waiting,
            standing=frozenset(
                one.cluster_id for name in {case.project for case in cases} for one in simulator.clusters(name)
            ),
            left=scene.left(),
            wrong=tuple(processes.wrong),
            faults=mishaps.met,
            kills=killer.kills,
            seconds=seconds,
        )


class StalledError(RuntimeError):
    """Nothing has come to an end for too long."""


class Director:
    """Sends and waits, and meanwhile lets processes be killed and replaced."""

    def __init__(
        self,
        options: Options,
        cases: Sequence[Case],
        *,
        scene: Scene,
        processes: Processes,
        killer: Killer,
        say: Callable[[str], object],
    ) -> None:
        self._options = options
        self._cases = cases
        self._scene = scene
        self._processes = processes
        self._killer = killer
        self._say = say
        self._began = self._said = time.monotonic()
        self._moved = (0, time.monotonic())

    def send(self, sendings: Sequence[Sending]) -> None:
        """Send all messages, as fast as they are answered for the first time."""
        batch, ahead = 20, 72
        for start in range(0, len(sendings), batch):
            while start - len(self._processes.last) > ahead:
                self._turn()
            self._scene.publish(sendings[start : start + batch])

    def wait_for_all_but_the_limit(self, limit: int) -> None:
        """Wait until nothing is left but what may not be deleted yet."""
        crowded = [case for case in self._cases if case.project.startswith(CROWD)]
        expected = max(0, len(crowded) - limit * len({case.project for case in crowded}))
        while True:
            waiting, all_seen = self.waiting(), len(self._processes.last) == len(self._scene.identities)
            if all_seen and self._killer.idle and len(waiting) <= expected and waiting <= self._processes.limited:
                return
            self._turn()

    def wait_for_all(self) -> None:
        """Wait until every message is acknowledged."""
        while self._unacknowledged():
            self._turn()

    def waiting(self) -> frozenset[int]:
        """Give the cases that wait for the limit."""
        return frozenset(last.case for last in self._unacknowledged())

    def _unacknowledged(self) -> list[Delivery]:
        with self._processes.changed:
            return [last for last in self._processes.last.values() if last.status != 200]

    def _turn(self) -> None:
        for restart in self._killer.look():
            if self._options.brief:
                self._two_minutes_pass()
            restart()
        self._scene.listen()
        time.sleep(0.1)
        done, now = self._processes.acknowledged, time.monotonic()
        if done != self._moved[0]:
            self._moved = (done, now)
        if now - self._moved[1] > 2 * LONGEST_LEASE:
            self._stalled()
        if now - self._said > 15:
            self._said = now
            passed = now - self._began
            self._say(
                f"{passed:4.0f} s: {done} of {len(self._scene.identities)} messages acknowledged, "
                f"{len(self._processes.deliveries)} deliveries, {len(self._scene.told)} completion events, "
                f"{self._killer.kills} kills"
            )

    def _two_minutes_pass(self) -> None:
        """Let the leases that a killed process left behind run out: whatever is held while nobody works is one."""
        self._processes.wait_until_idle()
        ledger = Client(project=self._scene.pubsub.project).collection(COLLECTION)
        for document in ledger.stream():
            entry = json.loads(document.get("entry"))
            if entry.get("lease"):
                entry["lease"]["until"] = "2026-07-01T00:00:00Z"
                document.reference.update({"entry": json.dumps(entry)})
        self._processes.resume()

    def _stalled(self) -> NoReturn:
        reasons = Counter(last.told for last in self._unacknowledged())
        raise StalledError(f"nothing was acknowledged for {2 * LONGEST_LEASE:.0f} s; what is left waits for {reasons}")


# What must add up


def _events(case: Case) -> list[Sending]:
    """Give the different events of a case; what has no identity of its own is an event each time that it is sent."""
    found: dict[object, Sending] = {}
    for number, sending in enumerate(case.sendings):
        found.setdefault(sending.identity or number, sending)
    return list(found.values())


def problems(record: Record) -> list[str]:
    """Say everything that does not add up."""
    return [
        *record.wrong,
        *record.left,
        *_problems_of_messages(record),
        *_problems_of_endings(record),
        *_problems_of_deletes(record),
        *_problems_of_the_limit(record),
    ]


def _problems_of_messages(record: Record) -> Iterator[str]:
    acknowledged = Counter(delivery.message for delivery in record.deliveries if delivery.status == 200)
    for message in record.identities:
        if acknowledged[message] != 1:
            yield f"message {message} was acknowledged {acknowledged[message]} times"
    for delivery in record.deliveries:
        if delivery.status not in (200, 503, None):
            yield f"message {delivery.message} was answered with {delivery.status}"
        if delivery.told in ("internal_error", "misconfigured"):
            yield f"message {delivery.message} was answered with {delivery.told}"
    if record.kills != record.options.kills:
        yield f"{record.kills} processes were killed, not {record.options.kills}"


def _problems_of_endings(record: Record) -> Iterator[str]:
    """Look for exactly one completion event of each expiry that closes, else of each event."""
    case_of = {
        record.identities[one.message]: one.case for one in record.deliveries if one.message in record.identities
    }
    causes: dict[int, list[tuple[str, str]]] = {}
    first: dict[tuple[str, str], Told] = {}
    for told in record.told:
        key = (told.attributes["ce-source"], told.attributes["ce-id"])
        before = first.setdefault(key, told)
        if before is not told:
            if (before.data, before.attributes) != (told.data, told.attributes):
                yield f"completion event {key[1]} was repeated with another content"
            continue
        data = json.loads(told.data)
        cause = (data["cause"]["source"], data["cause"]["id"])
        if cause not in case_of:
            yield f"completion event {key[1]} is about an event that nobody sent: {cause}"
            continue
        case = record.cases[case_of[cause]]
        causes.setdefault(case.number, []).append(cause)
        ended = (told.attributes["ce-outcome"], data["reason"], data["cluster"]["cluster_id"])
        if ended[:2] != case.ending or (ended[2] != case.cluster and case.ending != REJECTED):
            yield f"{case.cluster} ended as {ended}, not as {case.ending}"
    for case in record.cases:
        found = causes.get(case.number, [])
        expected = 1 if case.ending in CLOSING else len(_events(case))
        if len(found) != expected or len(set(found)) != expected:
            yield f"{case.cluster} ({case.ending[0]}) has {len(found)} completion events, not {expected}"
        if (case.cluster in record.standing) != (case.ending not in CLOSING):
            yield f"{case.cluster} ({case.ending[0]}) {'stands' if case.cluster in record.standing else 'is gone'}"


def _problems_of_deletes(record: Record) -> Iterator[str]:
    deletes = _deletes(record)
    cut: dict[int, list[datetime]] = {}
    for delivery in record.deliveries:
        # Where the ledger could not be asked in time, as on a machine that is too busy, no more may be written than
        # after a kill.
        if delivery.status is None or delivery.told == "ledger_unavailable":
            cut.setdefault(delivery.case, []).append(delivery.at)
    for case in record.cases:
        sent = deletes.pop(case.cluster, [])
        if sum(one.effective for one in sent) != (case.ending == DELETED):
            yield f"{case.cluster} ({case.ending[0]}) was deleted {sum(one.effective for one in sent)} times"
        if sent and case.ending not in (DELETED, REFUSED):
            yield f"{case.cluster} ({case.ending[0]}) was sent {len(sent)} DELETEs"
        # Each event may be refused once.
        free = len(_events(case)) if case.ending == REFUSED else 1
        unexplained = len(sent) - free
        for before, after in itertools.pairwise(sent):
            over_a_cut = any(before.at < at < after.at for at in cut.get(case.number, ()))
            unexplained -= over_a_cut or not harmless(before.fault)
        if unexplained > 0:
            yield f"{case.cluster} was sent {unexplained} DELETEs that neither a fault nor a kill explains"
    for cluster in deletes:
        yield f"{cluster}, which is nobody's, was sent a DELETE"


def _deletes(record: Record, first: int | None = None) -> dict[str, list[Request]]:
    found: dict[str, list[Request]] = {}
    for request in record.requests[:first]:
        if request.call is Call.DELETE_CLUSTER:
            found.setdefault(str(request.cluster_id), []).append(request)
    return found


def _problems_of_the_limit(record: Record) -> Iterator[str]:
    reached = set(_deletes(record, record.requests_under_limit))
    by_project: dict[str, list[Case]] = {}
    for case in record.cases:
        by_project.setdefault(case.project, []).append(case)
    if not record.waiting:
        yield "nothing had to wait for the limit"
    for project, cases in by_project.items():
        count = sum(case.cluster in reached for case in cases)
        crowded = project.startswith(CROWD)
        if count > record.limit or (crowded and count != min(record.limit, len(cases))):
            yield f"{count} clusters of {project} were sent DELETEs under a limit of {record.limit}"
        wait = {case.number for case in cases if crowded and case.cluster not in reached}
        if wait != {case.number for case in cases if case.number in record.waiting}:
            yield f"not those that had to wait in {project} have waited"


def tables(record: Record) -> Iterator[Table]:
    """Show the counts."""
    told = {(one.attributes["ce-source"], one.attributes["ce-id"]): json.loads(one.data) for one in record.told}
    endings = Table("outcome", "expiries", "events sent", "completion events", title="outcomes")
    counted = Counter((data["outcome"], data["reason"]) for data in told.values())
    for ending in MIX:
        cases = [case for case in record.cases if case.ending == ending]
        sent = sum(len(_events(case)) for case in cases)
        name = " ".join(part for part in ending if part)
        endings.add_row(name, str(len(cases)), str(sent), str(counted.pop(ending, 0)))
    endings.add_section()
    all_sent = sum(len(_events(case)) for case in record.cases)
    endings.add_row("all", str(len(record.cases)), str(all_sent), str(len(told)))
    yield endings
    yield _counts("deliveries", Counter(_word(delivery) for delivery in record.deliveries), len(record.deliveries))
    requests = Counter(str(request.call) for request in record.requests)
    yield _counts("requests to ModelArts", requests, len(record.requests))
    deletes = [_role(one, sent) for sent in _deletes(record).values() for one in sent]
    yield _counts("DELETEs", Counter(deletes), len(deletes))
    share = sum(record.faults.values()) / max(1, len(record.requests))
    yield _counts(f"faults ({share:.1%} of requests)", record.faults, sum(record.faults.values()))
    seconds = {name: round(span) for name, span in record.seconds.items()}
    yield _counts("seconds", seconds, round(sum(record.seconds.values())))


def _word(delivery: Delivery) -> str:
    if delivery.status is None:
        return "none: the process was killed"
    return f"{delivery.status} {delivery.told}"


def _role(delete: Request, sent: Sequence[Request]) -> str:
    if delete.effective:
        return "deleted the cluster"
    if delete.status == 403 and harmless(delete.fault):
        return "refused"
    if any(one.effective and one.at <= delete.at for one in sent):
        return "sent again after one whose answer was lost"
    return "met a fault, no effect"


def _counts(title: str, counts: Mapping[str, int], total: int) -> Table:
    table = Table("", "count", title=title)
    for name, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        table.add_row(name, str(count))
    table.add_section()
    table.add_row("all", str(total))
    return table


def main() -> int:
    """Run, show, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expiries", type=int, default=5000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="keep the processes' logs there")
    given = parser.parse_args()
    options = Options(expiries=given.expiries, processes=given.processes, kills=given.kills, seed=given.seed)
    console = Console()
    with ExitStack() as stack:
        place = given.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        place.mkdir(parents=True, exist_ok=True)
        try:
            jars = emulators.jar(*emulators.PUBSUB), emulators.jar(*emulators.FIRESTORE)
            pubsub = stack.enter_context(emulators.running(["-jar", jars[0]], log=place / "pubsub"))
            start = ["-cp", jars[1], emulators.FIRESTORE_MAIN, "start"]
            firestore = stack.enter_context(emulators.running(start, log=place / "firestore"))
        except pytest.skip.Exception as missing:
            console.print(f"Not run: {missing}")
            return 1
        os.environ |= {"PUBSUB_EMULATOR_HOST": pubsub, "FIRESTORE_EMULATOR_HOST": firestore}
        emulators.warm_up(FirestoreStore(emulators.new_project(), "(default)", seconds=30))
        try:
            record = run(options, pubsub=pubsub, firestore=firestore, place=place, say=console.print)
        except StalledError as error:
            console.print(f"It does not add up: {error}")
            return 1
    for table in tables(record):
        console.print(table)
    found = problems(record)
    again = len(record.told) - len({one.attributes["ce-id"] for one in record.told})
    console.print(
        f"seed {options.seed}, {options.processes} processes, {record.kills} kills, {len(record.identities)} messages, "
        f"limit {record.limit}: {len(record.waiting)} expiries had to wait for it; "
        f"{again} completion events were published again, byte for byte"
    )
    for line in found[:50]:
        console.print(line)
    console.print(f"{len(found)} things do not add up" if found else "everything adds up")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
