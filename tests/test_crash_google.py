"""
Kill -9 between any two steps, with Google's parts around the function: the emulator delivers again by itself.

A process is killed while many deliveries are under way in it, each of them held at another step; a new one on the same
port has to bring all of them to their end.
"""

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import grpc
import pytest
from emulators import Relay
from google.cloud.secretmanager_v1.types import AccessSecretVersionRequest, AccessSecretVersionResponse
from google.pubsub_v1.types import ReceivedMessage
from google_stage import PROJECTS, Case, Stage, data_of
from modelarts_cleanup.local.simulator import Call, Drop, Request, Simulator, VisibleForLooks
from served import Served, free_port

pytest_plugins = ["emulators", "google_stage"]


@dataclass(frozen=True)
class Killed:
    """
    Where a process is killed: its n-th call of a kind has come in, or been carried out, and is never answered.

    `leased` tells whether it leaves a lease behind, `deletes` how many DELETEs ModelArts receives over all deliveries
    and `told` how often the one completion event is stored. A cluster that `still_shows` does so for one more look.
    """

    step: str
    call: Call | str
    nth: int = 1
    after: bool = False
    leased: bool = True
    deletes: int = 1
    told: int = 1
    still_shows: bool = False

    @property
    def name(self) -> str:
        shown = ", the cluster still shows" if self.still_shows else ""
        return f"{'after' if self.after else 'before'} {self.step}{shown}"


READ, COMMIT, PUBLISH, ACCESS = "BatchGetDocuments", "Commit", "Publish", "AccessSecretVersion"
# In the order of a delivery. A DELETE whose answer nobody heard or wrote down is sent again if the cluster still shows.
DELIVERY = (
    Killed("the ledger is read", READ, leased=False),
    Killed("the ledger is read", READ, after=True, leased=False),
    Killed("the claim", COMMIT, leased=False),
    Killed("the claim", COMMIT, after=True),
    Killed("the look", Call.SHOW_CLUSTER),
    Killed("the look", Call.SHOW_CLUSTER, after=True),
    Killed("the members", Call.LIST_SUPERNODES),
    Killed("the members", Call.LIST_SUPERNODES, after=True),
    Killed("the limit is read", READ, 2),
    Killed("the limit is read", READ, 2, after=True),
    Killed("delete sent", COMMIT, 2),
    Killed("delete sent", COMMIT, 2, after=True),
    Killed("the DELETE that came in is carried out", Call.DELETE_CLUSTER, deletes=2),
    Killed("the DELETE", Call.DELETE_CLUSTER, after=True),
    Killed("the DELETE", Call.DELETE_CLUSTER, after=True, deletes=2, still_shows=True),
    Killed("delete accepted", COMMIT, 3),
    Killed("delete accepted", COMMIT, 3, deletes=2, still_shows=True),
    Killed("delete accepted", COMMIT, 3, after=True),
    Killed("delete accepted", COMMIT, 3, after=True, still_shows=True),
    Killed("the second look", Call.SHOW_CLUSTER, 2),
    Killed("the second look", Call.SHOW_CLUSTER, 2, after=True),
    Killed("the record", COMMIT, 4),
    Killed("the record", COMMIT, 4, after=True),
    Killed("the event is stored", PUBLISH),
    Killed("the event is stored", PUBLISH, after=True, told=2),
    Killed("published", COMMIT, 5, told=2),
    Killed("published", COMMIT, 5, after=True, leased=False),
)
# Only the first delivery of a process reads the secret, so that this takes a process of its own.
SECRET = Killed("the secret is read", ACCESS)
KILLED = (*DELIVERY[:4], SECRET, *DELIVERY[4:])


class Holder:
    """Holds calls, each at its step, until their process has been killed."""

    def __init__(self, simulator: Simulator) -> None:
        self.released = threading.Event()
        self._simulator = simulator
        self._held: set[Killed] = set()
        self._seen: Counter[tuple[Call, bool, str | None]] = Counter()
        self._planned: dict[tuple[Call, bool, str | None, int], Killed] = {}

    def hold(self, killed: Killed) -> None:
        self._held.add(killed)
        self.released.wait(60)

    def wait_for(self, all_of_them: Collection[Killed]) -> None:
        until = time.monotonic() + 30
        while len(self._held) < len(all_of_them) and time.monotonic() < until:
            time.sleep(0.02)
        assert {killed.name for killed in all_of_them} == {killed.name for killed in self._held}

    def plan(self, killed: Killed, case: Case, relay: Relay) -> None:
        """Hold a call about a cluster, on its way to Google or to ModelArts."""
        if isinstance(killed.call, Call):
            self._planned[killed.call, killed.after, case.project, killed.nth] = killed
            return
        for _ in range(killed.nth - 1):
            relay.plan(killed.call, None, about=case.cluster_id, passing=True)
        relay.plan(
            killed.call,
            grpc.StatusCode.UNAVAILABLE,
            about=case.cluster_id,
            after_effect=killed.after,
            then=partial(self.hold, killed),
        )

    def meet(self, request: Request, *, after: bool) -> None:
        """Hold a call to ModelArts if it is planned."""
        key = (request.call, after, request.project_id)
        self._seen[key] += 1
        killed = self._planned.get((*key, self._seen[key]))
        if killed is None:
            return
        if request.call is Call.DELETE_CLUSTER and not after:
            self._simulator.fail(Drop(), on=request.call, cluster_id=request.cluster_id)
        self.hold(killed)


@dataclass(frozen=True)
class Ended:
    """How an expiry ended whose process was killed."""

    answers: Sequence[str]
    deletes: int
    effective: int
    told: Sequence[ReceivedMessage]


class Scene:
    """Processes of the function that follow each other on one port, with relays between them and the emulators."""

    def __init__(self, stage: Stage, *, publishing: Relay, firestore: Relay) -> None:
        self._stage = stage
        self._relays = {PUBLISH: publishing, READ: firestore, COMMIT: firestore}
        self._addresses = {
            "PUBSUB_EMULATOR_HOST": publishing.address,
            "FIRESTORE_EMULATOR_HOST": firestore.address,
        }
        self._port = free_port()
        self._told = stage.pubsub.subscription(stage.completions)
        lag = VisibleForLooks(1)
        self._cases = {
            killed: Case(stage, project=project, lag=lag if killed.still_shows else None)
            for killed, project in zip(KILLED, PROJECTS, strict=False)  # no two of them change the same limit
        }

    def ends(self) -> dict[Killed, Ended]:
        with self._process("first") as process:
            self._kill_while_it_reads_the_secret(process)
        with self._process("second") as process:
            self._wait_for([SECRET], "in_progress", "second")
            self._cases[SECRET].two_minutes_pass()
            self._wait_for([SECRET], "deleted", "second")
            self._kill_at_every_step(process)
        with self._process("third"):
            leased = [killed for killed in DELIVERY if killed.leased]
            self._wait_for(leased, "in_progress", "third")
            for killed in leased:
                self._cases[killed].two_minutes_pass()
            self._wait_for(DELIVERY, "deleted", "third")
            told = self._all_told()
        return {killed: self._ended(killed, told) for killed in KILLED}

    def _process(self, name: str) -> Served:
        return self._stage.served(name, port=self._port, THREADS="40", **self._addresses)

    def _push(self, killed: Killed, process: Served) -> None:
        self._cases[killed].pushes_to(process)
        self._cases[killed].expire()

    def _kill_while_it_reads_the_secret(self, process: Served) -> None:
        holder = Holder(self._stage.simulator)
        server = self._stage.manager.server
        genuine = server.answer

        def held(request: AccessSecretVersionRequest, context: grpc.ServicerContext) -> AccessSecretVersionResponse:
            holder.hold(SECRET)
            return genuine(request, context)

        server.answer = held
        try:
            self._push(SECRET, process)
            holder.wait_for([SECRET])
            process.kill()
        finally:
            server.answer = genuine
            holder.released.set()

    def _kill_at_every_step(self, process: Served) -> None:
        holder = Holder(self._stage.simulator)
        self._stage.simulator.on_request = partial(holder.meet, after=False)
        self._stage.simulator.on_answer = partial(holder.meet, after=True)
        try:
            for killed in DELIVERY:
                holder.plan(killed, self._cases[killed], self._relays.get(str(killed.call), self._relays[COMMIT]))
            for killed in reversed(DELIVERY):  # the longest way first: nobody may have to wait until he gives up
                self._push(killed, process)
            holder.wait_for(DELIVERY)
            process.kill()
        finally:
            holder.released.set()

    def _wait_for(self, expected: Collection[Killed], answer: str, log: str) -> None:
        until = time.monotonic() + 30
        left = list(expected)
        while left and time.monotonic() < until:
            time.sleep(0.1)
            left = [killed for killed in left if answer not in self._cases[killed].answers(log)]
        assert not [killed.name for killed in left], f"not answered {answer}"

    def _all_told(self) -> list[ReceivedMessage]:
        told = self._stage.pubsub.pull(self._told, sum(killed.told for killed in KILLED))
        return [*told, *self._stage.pubsub.pull(self._told, within=1.0)]

    def _ended(self, killed: Killed, told: Sequence[ReceivedMessage]) -> Ended:
        case = self._cases[killed]
        return Ended(
            answers=case.answers("second" if killed is SECRET else "third"),
            deletes=case.deletes(),
            effective=case.simulator.count_effective_deletes(cluster_id=case.cluster_id),
            told=[one for one in told if data_of(one)["cluster"]["cluster_id"] == case.cluster_id],
        )


@pytest.fixture(scope="module")
def ends(stage: Stage) -> Iterator[Mapping[Killed, Ended]]:
    with ExitStack() as stack:
        publishing = stack.enter_context(Relay(stage.settings["PUBSUB_EMULATOR_HOST"]))
        firestore = stack.enter_context(Relay(stage.settings["FIRESTORE_EMULATOR_HOST"]))
        yield Scene(stage, publishing=publishing, firestore=firestore).ends()


@pytest.mark.parametrize("killed", KILLED, ids=lambda killed: killed.name.replace(" ", "-"))
def test_what_a_killed_process_left_is_delivered_again_and_ends_in_one_delete_and_one_event(
    killed: Killed, ends: Mapping[Killed, Ended]
) -> None:
    ended = ends[killed]
    assert list(dict.fromkeys(ended.answers)) == (["in_progress", "deleted"] if killed.leased else ["deleted"])
    assert ended.answers.count("deleted") == 1
    assert ended.deletes == killed.deletes
    assert ended.effective == 1
    assert len(ended.told) == killed.told
    # What was stored and could not be marked is published once more, and is the same event.
    assert len({(one.message.data, one.message.attributes["ce-id"]) for one in ended.told}) == 1
    assert data_of(ended.told[0])["outcome"] == "deleted"
