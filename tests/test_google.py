"""The function under the Functions Framework, with Pub/Sub and Firestore around it: their emulators, on real wires."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import pytest
from emulators import ConnectProxy, Pubsub, Relay, SecretManagerServer, certificate, new_project, service_account_file
from google.cloud.firestore import Client
from google.cloud.secretmanager_v1.types import AccessSecretVersionResponse, SecretPayload
from google.pubsub_v1.types import ReceivedMessage
from modelarts_cleanup.adapters.sink_pubsub import PubsubSink
from modelarts_cleanup.local.simulator import Answer, Call, Request, Simulator
from served import EXPIRED, Served, settings

pytest_plugins = ["emulators"]

ATTRIBUTES = {"id": "e1", "source": "//test", "type": EXPIRED, "specversion": "1.0"}


class Stage:
    """A project with topics, a ledger, a ModelArts, and one process of the function, which all tests share."""

    def __init__(self, simulator: Simulator, directory: Path, addresses: dict[str, str]) -> None:
        self.pubsub = Pubsub(new_project())
        self.simulator = simulator
        self.directory = directory
        self.ledger = Client(project=self.pubsub.project).collection("ledger")
        self.completions = self.pubsub.topic("completions")
        self.settings = settings(
            directory,
            endpoint=simulator.url,
            credentials=simulator.credentials_json(),
            COMPLETION_SINK=f"pubsub://{self.completions}",
            LEDGER=f"firestore://projects/{self.pubsub.project}/databases/(default)",
            **addresses,
        )
        self.numbers = itertools.count(1)

    def served(self, name: str, **changed: str) -> Served:
        return Served({**self.settings, **changed}, log=self.directory / name)


class Case:
    """One cluster whose time is up, with a topic of its own for what is told of it."""

    def __init__(self, stage: Stage) -> None:
        self.pubsub = stage.pubsub
        self.simulator = stage.simulator
        self.ledger = stage.ledger
        self.directory = stage.directory
        self.cluster_id = f"c-{next(stage.numbers)}"
        self.simulator.add_cluster(project_id="p1", cluster_id=self.cluster_id, name="ci-a")
        self.expiry = {
            "project_id": "p1",
            "cluster_id": self.cluster_id,
            "expires_at": "2026-07-01T00:00:00Z",
            "owner": "Zoë 朱",
        }
        self.attributes = {**ATTRIBUTES, "id": f"e-{self.cluster_id}"}
        self.expiries = self.pubsub.topic(f"expiries-{self.cluster_id}")
        self._completed = self.pubsub.subscription(stage.completions)

    def pushes_to(self, served: Served, *, wrapped: bool = False, **more: object) -> str:
        unwrapped = {} if wrapped else {"no_wrapper": {"write_metadata": True}}
        return self.pubsub.subscription(self.expiries, push_config={"push_endpoint": served.url, **unwrapped}, **more)

    def expire(self) -> None:
        PubsubSink(self.expiries).put(self.attributes, json.dumps(self.expiry))

    def completed(self, count: int = 1, *, within: float = 20.0) -> list[ReceivedMessage]:
        """Give what has been told of the cluster: so many events, or fewer if no more come in time."""
        found: list[ReceivedMessage] = []
        until = time.monotonic() + within
        while len(found) < count and (left := until - time.monotonic()) > 0:
            found += [
                pulled
                for pulled in self.pubsub.pull(self._completed, within=left)
                if data_of(pulled)["cluster"]["cluster_id"] == self.cluster_id
            ]
        return found

    def answers(self) -> list[str]:
        """Give what the deliveries of the expiry were answered, by the log."""
        lines = (self.directory / "survivor").read_text().splitlines()
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        return [line["reason"] or line["outcome"] for line in logged if line.get("cluster_id") == self.cluster_id]

    def entries(self) -> dict[str, dict[str, Any]]:
        return {document.id: json.loads(document.get("entry")) for document in self.ledger.stream()}

    def two_minutes_pass(self) -> None:
        """Let the lease that a killed process left behind run out, without the wait."""
        document = self.ledger.document(f"cluster:cn-southwest-2:p1:{self.cluster_id}")
        entry = json.loads(document.get().get("entry"))
        if entry["lease"]:
            entry["lease"]["until"] = "2026-07-01T00:00:00Z"
            document.update({"entry": json.dumps(entry)})

    def deletes(self) -> int:
        return self.simulator.count(Call.DELETE_CLUSTER, cluster_id=self.cluster_id)


def data_of(pulled: ReceivedMessage) -> Any:
    return json.loads(pulled.message.data)


@pytest.fixture(scope="module")
def stage(pubsub_emulator: str, firestore_emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    addresses = {"PUBSUB_EMULATOR_HOST": pubsub_emulator, "FIRESTORE_EMULATOR_HOST": firestore_emulator}
    with pytest.MonkeyPatch.context() as patch, Simulator() as simulator:
        for name, address in addresses.items():
            patch.setenv(name, address)
        yield Stage(simulator, tmp_path_factory.mktemp("google"), addresses)


@pytest.fixture(scope="module")
def served(stage: Stage) -> Iterator[Served]:
    with stage.served("survivor") as served:
        yield served


@pytest.fixture
def case(stage: Stage) -> Case:
    return Case(stage)


def test_a_message_becomes_one_delete_and_one_completion_event_with_the_attributes_of_the_contract(
    case: Case, served: Served
) -> None:
    case.pushes_to(served)
    case.expire()
    (pulled,) = case.completed()
    assert not case.completed(within=1.2)
    attributes = dict(pulled.message.attributes)
    data = data_of(pulled)
    assert attributes.pop("ce-id")
    assert attributes.pop("ce-time") == data["completed_at"]
    assert attributes == {
        "ce-source": "//modelarts-cleanup/cn-southwest-2",
        "ce-type": "dev.modelarts-cleanup.cleanup.completed.v1",
        "ce-specversion": "1.0",
        "ce-subject": f"projects/p1/hyper-clusters/{case.cluster_id}",
        "ce-outcome": "deleted",
        "Content-Type": "application/json",
    }
    assert (data["outcome"], data["attempt"], data["owner"]) == ("deleted", 1, "Zoë 朱")
    assert (data["cause"]["id"], data["cause"]["source"]) == (case.attributes["id"], "//test")
    assert case.deletes() == 1
    entries = case.entries()
    assert {"cluster", "event", "expiry", "limit"} <= {key.partition(":")[0] for key in entries}
    assert entries[f"cluster:cn-southwest-2:p1:{case.cluster_id}"]["lease"] is None
    for secret in (case.simulator.key_pair.access_key, case.simulator.key_pair.secret_key):
        assert secret not in repr(entries) + (case.directory / "survivor").read_text() + str(pulled)


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "unwrapped"])
def test_a_message_of_data_alone_is_known_by_its_message_id_and_subscription(
    case: Case, served: Served, *, wrapped: bool
) -> None:
    subscription = case.pushes_to(served, wrapped=wrapped)
    message_id = case.pubsub.publish(case.expiries, json.dumps(case.expiry).encode())
    (pulled,) = case.completed()
    cause = data_of(pulled)["cause"]
    assert data_of(pulled)["outcome"] == "deleted"
    assert (cause["id"], cause["source"]) == (message_id, f"//pubsub.googleapis.com/{subscription}")


@pytest.mark.parametrize("wrapped", [True, False], ids=["wrapped", "unwrapped"])
def test_a_structured_event_is_understood_by_its_content_type(case: Case, served: Served, *, wrapped: bool) -> None:
    case.pushes_to(served, wrapped=wrapped)
    event = json.dumps({**case.attributes, "data": case.expiry}).encode()
    case.pubsub.publish(case.expiries, event, {"content-type": "application/cloudevents+json"})
    (pulled,) = case.completed()
    assert (data_of(pulled)["outcome"], data_of(pulled)["cause"]["id"]) == ("deleted", case.attributes["id"])


def test_a_message_that_cannot_be_understood_is_acknowledged_and_told(case: Case, served: Served) -> None:
    case.pushes_to(served)
    case.pubsub.publish(case.expiries, json.dumps({**case.expiry, "expires_at": "soon"}).encode())
    (pulled,) = case.completed()
    assert not case.completed(within=1.2)
    assert (data_of(pulled)["outcome"], data_of(pulled)["field"]) == ("rejected", "expires_at")
    assert case.answers() == ["invalid_event"]


def test_what_could_not_be_done_is_delivered_again_and_counted(case: Case, served: Served) -> None:
    fault = Answer.error(503, "ModelArts.0010")
    case.simulator.fail(fault, on=Call.SHOW_CLUSTER, cluster_id=case.cluster_id, times=2)
    case.pushes_to(served)
    case.expire()
    (pulled,) = case.completed()
    assert (data_of(pulled)["outcome"], data_of(pulled)["attempt"]) == ("deleted", 3)
    assert case.answers()[:2] == ["modelarts_unavailable", "modelarts_unavailable"]


def test_a_dead_letter_is_kept_and_ends_well_when_it_is_replayed(case: Case, served: Served) -> None:
    dead = case.pubsub.topic(f"dead-letters-{case.cluster_id}")
    kept = case.pubsub.subscription(dead)
    fault = Answer.error(503, "ModelArts.0010")
    case.simulator.fail(fault, on=Call.SHOW_CLUSTER, cluster_id=case.cluster_id, times=5)
    case.pushes_to(served, dead_letter_policy={"dead_letter_topic": dead, "max_delivery_attempts": 5})
    case.expire()
    (letter,) = case.pubsub.pull(kept)
    assert json.loads(letter.message.data) == case.expiry
    assert letter.message.attributes["ce-id"] == case.attributes["id"]
    assert letter.message.attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    assert not case.completed(within=0.5)
    case.pubsub.publish(case.expiries, letter.message.data, letter.message.attributes)
    (pulled,) = case.completed()
    assert (data_of(pulled)["outcome"], data_of(pulled)["attempt"]) == ("deleted", 6)
    assert case.deletes() == 1


def test_an_event_that_two_subscriptions_push_at_once_is_one_piece_of_work(case: Case, served: Served) -> None:
    case.pushes_to(served)
    case.pushes_to(served)
    case.expire()
    (pulled,) = case.completed()
    assert not case.completed(within=1.5)
    assert data_of(pulled)["outcome"] == "deleted"
    assert case.deletes() == 1


def test_a_process_killed_when_modelarts_has_deleted_leaves_what_pubsub_brings_to_its_end(
    stage: Stage, case: Case, served: Served
) -> None:
    def arranged(kill: Callable[[], None]) -> None:
        def strike(request: Request) -> None:
            if request.call is Call.DELETE_CLUSTER and request.cluster_id == case.cluster_id:
                kill()

        case.simulator.on_answer = strike

    (pulled,) = told_after_a_kill(stage, case, served, arranged)
    assert data_of(pulled)["outcome"] == "deleted"


# A delivery commits a claim, "delete sent", "accepted", the record, and, when it has published, "published".
@pytest.mark.parametrize(
    ("method", "nth", "stored"),
    [("Commit", 1, 1), ("Commit", 2, 1), ("Commit", 3, 1), ("Commit", 4, 1), ("Publish", 1, 2), ("Commit", 5, 1)],
    ids=["claimed", "sent", "accepted", "recorded", "stored", "published"],
)
def test_a_process_killed_when_google_has_written_leaves_what_pubsub_brings_to_its_end(
    stage: Stage, case: Case, served: Served, *, method: str, nth: int, stored: int
) -> None:
    with ExitStack() as relays:
        addresses = {}
        by_variable = {}
        for variable in ("FIRESTORE_EMULATOR_HOST", "PUBSUB_EMULATOR_HOST"):
            by_variable[variable] = relay = relays.enter_context(Relay(stage.settings[variable]))
            addresses[variable] = relay.address
        relay = by_variable["FIRESTORE_EMULATOR_HOST" if method == "Commit" else "PUBSUB_EMULATOR_HOST"]

        def arranged(kill: Callable[[], None]) -> None:
            for _ in range(nth - 1):
                relay.plan(method, None, passing=True)
            relay.plan(method, grpc.StatusCode.UNAVAILABLE, after_effect=True, then=kill)

        pulled = told_after_a_kill(stage, case, served, arranged, stored=stored, **addresses)
    # What was stored and could not be marked is published once more, and is the same event.
    assert len({(one.message.data, one.message.attributes["ce-id"]) for one in pulled}) == 1
    assert data_of(pulled[0])["outcome"] == "deleted"


def told_after_a_kill(
    stage: Stage,
    case: Case,
    survivor: Served,
    arranged: Callable[[Callable[[], None]], None],
    *,
    stored: int = 1,
    **addresses: str,
) -> list[ReceivedMessage]:
    """Kill -9 a process that Pub/Sub pushes to, and give what is told once it pushes to another."""
    killed = threading.Event()
    with stage.served(f"victim-of-{case.cluster_id}", **addresses) as victim:

        def kill() -> None:
            victim.kill()
            killed.set()

        arranged(kill)
        subscription = case.pushes_to(victim)
        case.expire()
        assert killed.wait(30)
    case.two_minutes_pass()
    case.pubsub.push_to(subscription, survivor.url)
    pulled = case.completed(stored)
    until = time.monotonic() + 20
    while "deleted" not in case.answers() and time.monotonic() < until:
        time.sleep(0.05)
    assert case.answers() == ["deleted"]
    assert len(pulled) == stored
    assert not case.completed(within=0.5)
    assert case.simulator.count_effective_deletes(cluster_id=case.cluster_id) == 1
    return pulled


def test_the_secret_comes_from_secret_manager_over_tls_as_it_does_in_the_cloud(
    stage: Stage, case: Case, tmp_path: Path
) -> None:
    # The client has no setting for another address; what it does honour, as gRPC does, is a proxy and a set of roots.
    name = f"projects/{stage.pubsub.project}/secrets/modelarts"
    text = stage.simulator.credentials_json().encode()
    payload = SecretPayload(data=text, data_crc32c=google_crc32c.value(text))
    key, chain = certificate("secretmanager.googleapis.com")
    (tmp_path / "roots.pem").write_bytes(chain)
    manager = SecretManagerServer(
        lambda _request, _context: AccessSecretVersionResponse(payload=payload),
        credentials=grpc.ssl_server_credentials([(key, chain)]),
    )
    with manager, ConnectProxy(manager.port) as proxy:
        changed = {
            "CREDENTIALS": f"secretmanager://{name}",
            "GOOGLE_APPLICATION_CREDENTIALS": str(service_account_file(tmp_path / "run.json", stage.pubsub.project)),
            "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "roots.pem"),
            "grpc_proxy": proxy.url,
            "no_grpc_proxy": "127.0.0.1",
        }
        with stage.served("with-secret-manager", **changed) as served:
            case.pushes_to(served)
            case.expire()
            (pulled,) = case.completed()
    assert data_of(pulled)["outcome"] == "deleted"
    assert manager.asked == [f"{name}/versions/latest"]
    assert manager.metadata[0]["authorization"].startswith("Bearer ")
    assert proxy.asked == ["secretmanager.googleapis.com:443"]
