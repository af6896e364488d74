"""
The fault table with Google's parts: their real clients, over real wires to both emulators and to a Secret Manager.

What happens on the way happens in a relay in front of each emulator, and in the Secret Manager itself. The function
has the time limits that it has in production, so all rows are run at once, and each test looks at how one ended. That
a row is in the table needs no emulator; that it is true does.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import fakes
import grpc
import msgspec
import pytest
from emulators import Pubsub, Relay, new_project, refuse, secret_manager, secret_version, wait_until_given_up
from google.cloud.secretmanager_v1.types import AccessSecretVersionRequest, AccessSecretVersionResponse
from google.pubsub_v1.types import ReceivedMessage
from grpc import StatusCode
from modelarts_cleanup import credentials, world
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.cleanup import World
from modelarts_cleanup.entries import ClusterEntry, Entries, Lease, Store
from modelarts_cleanup.ledger import Ledger
from modelarts_cleanup.local.simulator import Answer, Call, Request, Simulator, VisibleForLooks
from modelarts_cleanup.model import RetryLater
from modelarts_cleanup.places import FirestorePlace, SecretPlace, TopicPlace
from test_faults import CLUSTER, EXPIRES_AT, PROJECT, STANDS, STEPS, Row, delivered, known

pytest_plugins = ["emulators"]

Reply: TypeAlias = "Callable[[Stage, grpc.ServicerContext], AccessSecretVersionResponse]"
Arrange: TypeAlias = "Callable[[Stage], None]"

LATER = EXPIRES_AT + timedelta(days=1)
READ, COMMIT = "BatchGetDocuments", "Commit"
# They wait most of the time; with many more at once, a busy machine runs into the limits itself.
ROWS_AT_ONCE = 10


class Google:
    """What all rows share: the emulators, each with a relay in front of it, and a Secret Manager."""

    def __init__(self, pubsub: Pubsub, *, publishing: Relay, firestore: Relay) -> None:
        self.pubsub = pubsub
        self.publishing = publishing
        self.firestore = firestore
        self.stages: dict[str, Stage] = {}

    def access(self, request: AccessSecretVersionRequest, context: grpc.ServicerContext) -> AccessSecretVersionResponse:
        """Answer with the next of the replies of a stage; the last one stays."""
        stage = self.stages[request.name.split("/")[1]]
        reply = stage.replies.pop(0) if len(stage.replies) > 1 else stage.replies[0]
        return reply(stage, context)


class Stepped:
    """A ledger's store, and what shall happen when its n-th transaction begins and ends."""

    def __init__(self, store: Store) -> None:
        self.begins: dict[int, Callable[[], object]] = {}
        self.ends: dict[int, Callable[[], object]] = {}
        self._store = store
        self._number = 0

    def transact(self, keys: Sequence[str], change: Callable[[Entries], fakes.T]) -> fakes.T:
        self._number += 1
        self.begins.get(self._number, lambda: None)()
        try:
            return self._store.transact(keys, change)
        finally:
            self.ends.get(self._number, lambda: None)()


class Stage:
    """One cluster whose time is up, and a process of the function with a project of its own at Google's."""

    def __init__(self, google: Google, simulator: Simulator) -> None:
        self.google = google
        self.simulator = simulator
        self.name = new_project()
        self.topic = google.pubsub.topic(f"completions-{self.name}")
        self.told = google.pubsub.subscription(self.topic)
        self.replies: list[Reply] = [as_it_is]
        self.late = threading.Event()
        self.landed = threading.Event()
        self.landed.set()
        google.stages[self.name] = self
        simulator.add_cluster(project_id=PROJECT, cluster_id=CLUSTER, name="ci-a")
        self.start()

    def start(self) -> None:
        """Start a process of the function, as it is in production but for its thread that builds in advance."""
        secret = world.secret(SecretPlace(f"projects/{self.name}/secrets/s/versions/latest"), read=credentials.read)
        self.steps = Stepped(self.store())
        self.world = World(
            policy=fakes.a_policy(),
            clusters=ModelArts(self.simulator.url, secret),
            ledger=Ledger(self.steps),
            sink=world.sink(TopicPlace(self.topic)),
        )

    def store(self) -> Store:
        """Open the ledger as another process does."""
        return world.store(FirestorePlace(self.name, "(default)"))

    def deliver(self) -> str:
        return delivered(self.world)

    def mend(self) -> None:
        """Let all be well, and what was under way arrive."""
        self.google.firestore.heal(self.name)
        self.google.publishing.heal(self.name)
        self.replies = [as_it_is]
        self.simulator.heal()
        self.late.set()
        assert self.landed.wait(20)

    def lease_runs_out(self) -> None:
        """Let two minutes pass, without the wait."""
        key = f"cluster:{fakes.REF.key}"

        def change(entries: Entries) -> None:
            entry = entries[key]
            assert isinstance(entry, ClusterEntry)
            assert entry.lease
            entries[key] = msgspec.structs.replace(entry, lease=Lease(entry.lease.holder, EXPIRES_AT))

        self.store().transact([key], change)

    def another_claims(self, expires_at: datetime = EXPIRES_AT) -> None:
        """Have another process claim another event for the cluster, and get no further."""
        event = fakes.an_event("e2", expires_at=expires_at)
        with suppress(RetryLater):
            Ledger(self.store()).claim(event, holder="another", now=datetime.now(UTC))

    def another_takes_over(self) -> None:
        self.lease_runs_out()
        self.another_claims()


# What Secret Manager replies


def as_it_is(stage: Stage, _context: grpc.ServicerContext) -> AccessSecretVersionResponse:
    return secret_version(stage.simulator.credentials_json().encode())


def damaged(stage: Stage, _context: grpc.ServicerContext) -> AccessSecretVersionResponse:
    return secret_version(stage.simulator.credentials_json().encode(), damaged=True)


def silent(stage: Stage, context: grpc.ServicerContext) -> AccessSecretVersionResponse:
    wait_until_given_up(context)
    return as_it_is(stage, context)


def late(stage: Stage, context: grpc.ServicerContext) -> AccessSecretVersionResponse:
    time.sleep(1)
    return as_it_is(stage, context)


def holds(data: bytes) -> Reply:
    return lambda _stage, _context: secret_version(data)


def refuses(code: StatusCode, reason: str | None = None) -> Reply:
    return lambda _stage, context: refuse(context, code, reason)


def secret(*replies: Reply) -> Arrange:
    def arrange(stage: Stage) -> None:
        stage.replies = list(replies)

    return arrange


def rotated(*, after: Call | None = None, then: Sequence[Reply] = (as_it_is,)) -> Arrange:
    """Rotate the key once it has been read, before the first call or after another; `then` is what is read next."""

    def arrange(stage: Stage) -> None:
        stage.replies = [holds(stage.simulator.credentials_json().encode()), *then]
        if after is None:
            stage.simulator.rotate()
            return

        def rotate(request: Request) -> None:
            if request.call is after:
                stage.simulator.on_answer = lambda _request: None
                stage.simulator.rotate()

        stage.simulator.on_answer = rotate

    return arrange


def not_replaced(stage: Stage) -> None:
    secret(holds(stage.simulator.credentials_json().encode()))(stage)
    stage.simulator.rotate()


# What happens on the way to Pub/Sub and Firestore


def publish(code: StatusCode | None, **more: object) -> Arrange:
    return lambda stage: stage.google.publishing.plan("Publish", code, about=stage.name, **more)


def once(step: int, method: str, code: StatusCode | None, **more: object) -> Arrange:
    """Let the first call of a method within a step of the ledger meet a mishap."""

    def arrange(stage: Stage) -> None:
        stage.steps.begins[step] = lambda: stage.google.firestore.plan(method, code, about=stage.name, **more)

    return arrange


def throughout(step: int, method: str, code: StatusCode) -> Arrange:
    """Let all calls of a method within a step meet a mishap."""

    def arrange(stage: Stage) -> None:
        once(step, method, code, lasting=True)(stage)
        stage.steps.ends[step] = lambda: stage.google.firestore.heal(stage.name)

    return arrange


def down_from(step: int) -> Arrange:
    """Let no call get through any more, from the beginning of a step on until all is well."""
    return once(step, "", StatusCode.UNAVAILABLE, lasting=True)


def meanwhile(step: int, act: Arrange) -> Arrange:
    """Let something happen between a step's read and its commit."""
    return lambda stage: once(step, COMMIT, None, passing=True, first=lambda: act(stage))(stage)


def arrives_late(step: int) -> Arrange:
    """Let the commit of a step be carried out when it has long been given up."""

    def arrange(stage: Stage) -> None:
        stage.landed.clear()
        more = {"after_effect": True, "first": stage.late.wait, "then": stage.landed.set}
        once(step, COMMIT, StatusCode.UNAVAILABLE, **more)(stage)

    return arrange


def without_a_look(arrange: Arrange) -> Arrange:
    """Let the look fail too, so that the second step is to give the lease back."""

    def arranged(stage: Stage) -> None:
        stage.simulator.fail(Answer(503), on=Call.SHOW_CLUSTER)
        arrange(stage)

    return arranged


def still_shown(arrange: Arrange) -> Arrange:
    """Let ModelArts show the cluster once more after its DELETE."""

    def arranged(stage: Stage) -> None:
        stage.simulator.add_cluster(project_id=PROJECT, cluster_id=CLUSTER, name="ci-a", lag=VisibleForLooks(1))
        arrange(stage)

    return arranged


# The table


@dataclass(frozen=True)
class GoogleRow(Row[Stage]):
    """One line of the table; `told` counts how often the one completion event was stored."""

    told: int = 1

    @property
    def cells(self) -> tuple[str, ...]:
        *before, end = super().cells
        return (*before, told(self.told), end)

    @property
    def redelivered(self) -> str | None:
        """What a delivery is answered while a lease that was left behind lives; None where none is left."""
        if not self.known.endswith(", leased"):
            return None
        return self.ends if "published" in self.known else "in_progress"


def told(times: int) -> str:
    return "1" if times == 1 else f"1, stored {times} times"


ALL_WELL = ("deleted", "recorded, published")


def _rows() -> Iterator[GoogleRow]:
    yield from _rows_of_the_secret()
    yield from _rows_of_reads()
    for step, name in enumerate(STEPS, 1):
        yield from _rows_of_commits(step, f"ledger: {name}")
    yield from _rows_of_a_cluster_that_still_shows()
    yield from _rows_of_contention()
    yield from _rows_of_giving_back()
    yield from _rows_of_publishing()


def _rows_of_the_secret() -> Iterator[GoogleRow]:
    for fault, reply in (
        ("missing (NOT_FOUND)", refuses(StatusCode.NOT_FOUND)),
        ("disabled or destroyed (FAILED_PRECONDITION)", refuses(StatusCode.FAILED_PRECONDITION)),
        ("may not be read (PERMISSION_DENIED)", refuses(StatusCode.PERMISSION_DENIED)),
        ("API not enabled", refuses(StatusCode.PERMISSION_DENIED, "SERVICE_DISABLED")),
        ("identity not accepted (UNAUTHENTICATED)", refuses(StatusCode.UNAUTHENTICATED)),
        ("quota used up (RESOURCE_EXHAUSTED)", refuses(StatusCode.RESOURCE_EXHAUSTED)),
        ("down (UNAVAILABLE)", refuses(StatusCode.UNAVAILABLE)),
        ("no answer in time", silent),
        ("checksum wrong each time", damaged),
        ("empty", holds(b"")),
        ("neither JSON nor CSV", holds(b"hunter2")),
        ("without a key", holds(b'{"access_key": "a"}')),
        ("line break in a key", holds(b'{"access_key": "a\\nb", "secret_key": "hunter2"}')),
    ):
        yield GoogleRow("secret", fault, secret(reply), "credentials_unavailable", "claimed")
    for fault, reply in (
        ("down once (UNAVAILABLE)", refuses(StatusCode.UNAVAILABLE)),
        ("checksum wrong once", damaged),
        ("late, in time", late),
    ):
        yield GoogleRow("secret", fault, secret(reply, as_it_is), *ALL_WELL)
    missing = refuses(StatusCode.NOT_FOUND)
    yield GoogleRow("secret", "rotated since it was read", rotated(), *ALL_WELL)
    yield GoogleRow(
        "secret", "rotated since it was read, checksum wrong once", rotated(then=(damaged, as_it_is)), *ALL_WELL
    )
    yield GoogleRow("secret", "rotated after the DELETE", rotated(after=Call.DELETE_CLUSTER), *ALL_WELL)
    yield GoogleRow(
        "secret", "rotated just before the DELETE", rotated(after=Call.LIST_SUPERNODES), *ALL_WELL, deletes=2
    )
    yield GoogleRow("secret", "key withdrawn, and no new one there", not_replaced, "credentials_refused", "claimed")
    gone = "rotated since it was read, then missing"
    yield GoogleRow("secret", gone, rotated(then=[missing]), "credentials_unavailable", "claimed")
    gone = "rotated just before the DELETE, then missing"
    arrange = rotated(after=Call.LIST_SUPERNODES, then=[missing])
    yield GoogleRow("secret", gone, arrange, "credentials_unavailable", "DELETE sent", deletes=2)


def _rows_of_reads() -> Iterator[GoogleRow]:
    for step, name in ((1, "ledger: claim"), (2, "ledger: delete sent")):
        for fault, arrange in (
            ("read: down (UNAVAILABLE)", throughout(step, READ, StatusCode.UNAVAILABLE)),
            ("read: no answer in time", once(step, READ, None)),
            ("read: may not be used (PERMISSION_DENIED)", once(step, READ, StatusCode.PERMISSION_DENIED)),
            ("read: no such database (NOT_FOUND)", once(step, READ, StatusCode.NOT_FOUND)),
        ):
            yield GoogleRow(name, fault, arrange, "ledger_unavailable", STANDS[step - 1])
        for code in (StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.RESOURCE_EXHAUSTED):
            yield GoogleRow(name, f"read: {code.name} once", once(step, READ, code), *ALL_WELL)


def _rows_of_commits(step: int, name: str) -> Iterator[GoogleRow]:
    before, after = STANDS[step - 1], STANDS[step]
    leased = f"{before}, leased" if step > 1 else before
    told = 2 if name.endswith("published") else 1
    for fault, arrange, stands in (
        ("down once (UNAVAILABLE)", once(step, COMMIT, StatusCode.UNAVAILABLE), before),
        ("may not be used (PERMISSION_DENIED)", once(step, COMMIT, StatusCode.PERMISSION_DENIED), before),
        ("no answer in time", once(step, COMMIT, None), before),
        ("loses every race (ABORTED)", throughout(step, COMMIT, StatusCode.ABORTED), before),
        ("down from then on", down_from(step), leased),
        ("carried out when it was given up", arrives_late(step), "claimed, leased" if step == 1 else before),
    ):
        yield GoogleRow(name, fault, arrange, "ledger_unavailable", stands, told=told)
    for fault, code in (("lost", StatusCode.UNAVAILABLE), ("not in time", None)):
        arrange = once(step, COMMIT, code, after_effect=True)
        yield GoogleRow(name, f"written, its answer {fault}", arrange, "ledger_unavailable", after)
    yield GoogleRow(name, "loses a race once (ABORTED)", once(step, COMMIT, StatusCode.ABORTED), *ALL_WELL)


def _rows_of_a_cluster_that_still_shows() -> Iterator[GoogleRow]:
    down = once(3, COMMIT, StatusCode.UNAVAILABLE)
    unheard = once(3, COMMIT, StatusCode.UNAVAILABLE, after_effect=True)
    for fault, arrange, stands, deletes in (
        ("down once (UNAVAILABLE), and the cluster still shows", down, "DELETE sent", 2),
        ("written, its answer lost, and the cluster still shows", unheard, "DELETE accepted", 1),
    ):
        yield GoogleRow(f"ledger: {STEPS[2]}", fault, still_shown(arrange), "ledger_unavailable", stands, deletes)


def _rows_of_contention() -> Iterator[GoogleRow]:
    fault = "another event for the cluster is delivered meanwhile"
    yield GoogleRow("ledger: claim", fault, meanwhile(1, Stage.another_claims), "in_progress", "claimed, leased")
    for step in (2, 3, 4, 5):
        yield GoogleRow(f"ledger: {STEPS[step - 1]}", fault, meanwhile(step, Stage.another_claims), *ALL_WELL)
    fault = "its lease runs out and is taken over meanwhile"
    for step in (2, 3, 4):
        stands = f"{STANDS[step - 1]}, leased"
        arrange = meanwhile(step, Stage.another_takes_over)
        yield GoogleRow(f"ledger: {STEPS[step - 1]}", fault, arrange, "in_progress", stands)
    arrange = meanwhile(5, Stage.another_takes_over)
    yield GoogleRow("ledger: published", fault, arrange, "deleted", "recorded, published, leased")
    fault = "a later expiry is told meanwhile"

    def told_later(stage: Stage) -> None:
        stage.another_claims(LATER)

    yield GoogleRow("ledger: claim", fault, meanwhile(1, told_later), "in_progress", "claimed, leased", 0, "skipped")
    yield GoogleRow(
        "ledger: delete sent", fault, meanwhile(2, told_later), "skipped", "recorded, published", 0, "skipped"
    )


def _rows_of_giving_back() -> Iterator[GoogleRow]:
    for fault, arrange, stands in (
        ("down once (UNAVAILABLE)", once(2, COMMIT, StatusCode.UNAVAILABLE), "claimed, leased"),
        ("no answer in time", once(2, COMMIT, None), "claimed, leased"),
        ("down from then on", down_from(2), "claimed, leased"),
        ("carried out when it was given up", arrives_late(2), "claimed"),
        ("written, its answer lost", once(2, COMMIT, StatusCode.UNAVAILABLE, after_effect=True), "claimed"),
        ("loses a race once (ABORTED)", once(2, COMMIT, StatusCode.ABORTED), "claimed"),
    ):
        yield GoogleRow("ledger: give back", fault, without_a_look(arrange), "modelarts_unavailable", stands)


def _rows_of_publishing() -> Iterator[GoogleRow]:
    for fault, arrange in (
        ("topic missing (NOT_FOUND)", publish(StatusCode.NOT_FOUND)),
        ("may not be published to (PERMISSION_DENIED)", publish(StatusCode.PERMISSION_DENIED)),
        ("API not enabled", publish(StatusCode.PERMISSION_DENIED, reason="SERVICE_DISABLED")),
        ("identity not accepted (UNAUTHENTICATED)", publish(StatusCode.UNAUTHENTICATED)),
        ("event refused (INVALID_ARGUMENT)", publish(StatusCode.INVALID_ARGUMENT)),
        ("refused (FAILED_PRECONDITION)", publish(StatusCode.FAILED_PRECONDITION)),
        ("quota used up (RESOURCE_EXHAUSTED)", publish(StatusCode.RESOURCE_EXHAUSTED, lasting=True)),
        ("down (UNAVAILABLE)", publish(StatusCode.UNAVAILABLE, lasting=True)),
        ("no answer in time", publish(None)),
    ):
        yield GoogleRow("publish", fault, arrange, "sink_unavailable", "recorded")
    for code in (StatusCode.UNAVAILABLE, StatusCode.INTERNAL, StatusCode.RESOURCE_EXHAUSTED):
        yield GoogleRow("publish", f"{code.name} once", publish(code), *ALL_WELL)
    yield GoogleRow("publish", "late, in time", publish(None, passing=True, first=lambda: time.sleep(1)), *ALL_WELL)
    lost = publish(StatusCode.UNAVAILABLE, after_effect=True)
    yield GoogleRow("publish", "stored, its answer lost", lost, *ALL_WELL, told=2)
    lost = publish(None, after_effect=True)
    yield GoogleRow("publish", "stored, its answer not in time", lost, "sink_unavailable", "recorded", told=2)
    lost = publish(StatusCode.CANCELLED, after_effect=True)
    yield GoogleRow("publish", "stored, its answer CANCELLED", lost, "sink_unavailable", "recorded", told=2)


ROWS = list(_rows())


@dataclass(frozen=True)
class Ending:
    """How a row ended."""

    answer: str
    known: str
    redelivered: str | None
    answers: list[str]
    known_at_last: str
    deletes: int
    effective: int
    told: list[ReceivedMessage]


def ending(google: Google, row: GoogleRow) -> Ending:
    """Deliver, mend, and deliver again: to the same process, and to another."""
    with Simulator() as simulator:
        stage = Stage(google, simulator)
        row.arrange(stage)
        try:
            answer = stage.deliver()
        finally:
            stage.mend()
        stands, redelivered = known(stage.store()), None
        if stands.endswith(", leased"):
            redelivered = stage.deliver()
            stage.lease_runs_out()
        answers = [stage.deliver()]
        stage.start()
        answers.append(stage.deliver())
        stored = google.pubsub.pull(stage.told, row.told)
        return Ending(
            answer=answer,
            known=stands,
            redelivered=redelivered,
            answers=answers,
            known_at_last=known(stage.store()),
            deletes=simulator.count(Call.DELETE_CLUSTER),
            effective=simulator.count_effective_deletes(),
            told=[*stored, *google.pubsub.pull(stage.told, within=0.1)],
        )


@pytest.fixture(scope="module")
def google(pubsub_emulator: str, firestore_emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setenv("PUBSUB_EMULATOR_HOST", pubsub_emulator)
        google = Google(
            Pubsub(new_project()),
            publishing=stack.enter_context(Relay(pubsub_emulator)),
            firestore=stack.enter_context(Relay(firestore_emulator)),
        )
        manager = stack.enter_context(secret_manager(google.access, directory=tmp_path_factory.mktemp("google")))
        addresses = {
            "PUBSUB_EMULATOR_HOST": google.publishing.address,
            "FIRESTORE_EMULATOR_HOST": google.firestore.address,
        }
        for name, value in {**addresses, **manager.environment}.items():
            patch.setenv(name, value)
        yield google


@pytest.fixture(scope="module")
def endings(google: Google, request: pytest.FixtureRequest) -> Iterator[Mapping[GoogleRow, "Future[Ending]"]]:
    """Run all rows that are asked for."""
    asked_for = [getattr(item, "callspec", None) for item in request.session.items]
    rows = [row for spec in asked_for if spec and isinstance(row := spec.params.get("row"), GoogleRow)]
    with ThreadPoolExecutor(ROWS_AT_ONCE) as pool:
        yield {row: pool.submit(ending, google, row) for row in rows}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_fault_at_googles_loses_nothing_and_tells_no_lie(
    row: GoogleRow, endings: Mapping[GoogleRow, "Future[Ending]"]
) -> None:
    ended = endings[row].result()
    assert ended.answer == row.answer
    assert ended.known == row.known
    assert ended.redelivered == row.redelivered
    assert ended.answers == [row.ends, row.ends]
    assert ended.known_at_last == "recorded, published"
    assert ended.deletes == row.deletes
    assert ended.effective == (1 if row.ends == "deleted" else 0)
    assert len(ended.told) == row.told
    events = {(one.message.data, tuple(sorted(one.message.attributes.items()))) for one in ended.told}
    assert len(events) == 1, "one completion event, byte for byte"
