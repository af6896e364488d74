"""
What the function does under the Functions Framework is played here: with Google's parts, and a ModelArts, around it.

Use the fixtures with `pytest_plugins = ["emulators", "google_stage"]`. Nothing is asserted here, as in `emulators`:
PYTEST_DONT_REWRITE, as the tests import it too.
"""

import itertools
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from emulators import Pubsub, SecretManagerOfGoogle, new_project, secret_manager, secret_version
from google.cloud.firestore import Client
from google.cloud.secretmanager_v1.types import AccessSecretVersionRequest, AccessSecretVersionResponse
from google.pubsub_v1.types import ReceivedMessage
from grpc import ServicerContext
from modelarts_cleanup.adapters.sink_pubsub import PubsubSink
from modelarts_cleanup.local.simulator import Call, Lag, Simulator
from served import EXPIRED, Served, settings

# Projects at ModelArts' whose clusters may be deleted.
PROJECTS = ("p1", *(f"p-{number}" for number in range(100)))


class Stage:
    """A project with topics, a secret, a ledger, and a ModelArts, which all tests of a module share."""

    def __init__(
        self, simulator: Simulator, manager: SecretManagerOfGoogle, directory: Path, addresses: Mapping[str, str]
    ) -> None:
        self.pubsub = Pubsub(new_project())
        self.simulator = simulator
        self.manager = manager
        self.directory = directory
        self.ledger = Client(project=self.pubsub.project).collection("ledger")
        self.completions = self.pubsub.topic("completions")
        self.secret = f"projects/{self.pubsub.project}/secrets/modelarts"
        self.settings = {
            **settings(directory, endpoint=simulator.url, credentials=""),
            "ALLOWED_PROJECTS": ",".join(PROJECTS),
            "CREDENTIALS": f"secretmanager://{self.secret}",
            "COMPLETION_SINK": f"pubsub://{self.completions}",
            "LEDGER": f"firestore://projects/{self.pubsub.project}/databases/(default)",
            **addresses,
            **manager.environment,
        }
        self.numbers = itertools.count(1)

    def served(self, name: str, *, port: int | None = None, **changed: str) -> Served:
        """Serve the function; its log has this name."""
        return Served({**self.settings, **changed}, log=self.directory / name, port=port)


class Case:
    """One cluster whose time is up, with a topic of its own for what is told of it."""

    def __init__(self, stage: Stage, *, project: str = "p1", lag: Lag | None = None) -> None:
        self.pubsub = stage.pubsub
        self.simulator = stage.simulator
        self.ledger = stage.ledger
        self.directory = stage.directory
        self.project = project
        self.cluster_id = f"c-{next(stage.numbers):03}"
        self.simulator.add_cluster(project_id=project, cluster_id=self.cluster_id, name="ci-a", lag=lag)
        self.expiry = {
            "project_id": project,
            "cluster_id": self.cluster_id,
            "expires_at": "2026-07-01T00:00:00Z",
            "owner": "Zoë 朱",
        }
        self.attributes = {"id": f"e-{self.cluster_id}", "source": "//test", "type": EXPIRED, "specversion": "1.0"}
        self.expiries = self.pubsub.topic(f"expiries-{self.cluster_id}")
        self._completed = self.pubsub.subscription(stage.completions)

    def pushes_to(self, served: Served, *, wrapped: bool = False, **more: object) -> str:
        """Let Pub/Sub push the expiry to a process; give the subscription's name."""
        unwrapped = {} if wrapped else {"no_wrapper": {"write_metadata": True}}
        return self.pubsub.subscription(self.expiries, push_config={"push_endpoint": served.url, **unwrapped}, **more)

    def expire(self) -> None:
        """Publish the expiry."""
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

    def answers(self, log: str = "survivor") -> list[str]:
        """Give what the deliveries of the expiry were answered, by a log."""
        lines = (self.directory / log).read_text().splitlines()
        logged = [json.loads(line) for line in lines if line.startswith("{")]
        return [line["reason"] or line["outcome"] for line in logged if line.get("cluster_id") == self.cluster_id]

    def entries(self) -> dict[str, dict[str, Any]]:
        """Give what stands in the ledger, by key."""
        return {document.id: json.loads(document.get("entry")) for document in self.ledger.stream()}

    def two_minutes_pass(self) -> None:
        """Let the lease that a killed process left behind run out, without the wait."""
        document = self.ledger.document(f"cluster:cn-southwest-2:{self.project}:{self.cluster_id}")
        found = document.get()
        entry = json.loads(found.get("entry")) if found.exists else {}
        if entry.get("lease"):
            entry["lease"]["until"] = "2026-07-01T00:00:00Z"
            document.update({"entry": json.dumps(entry)})

    def deletes(self) -> int:
        """Count the DELETEs that ModelArts has received for the cluster."""
        return self.simulator.count(Call.DELETE_CLUSTER, cluster_id=self.cluster_id)


def data_of(pulled: ReceivedMessage) -> Any:
    """Read the data of a completion event."""
    return json.loads(pulled.message.data)


@pytest.fixture(scope="module")
def stage(pubsub_emulator: str, firestore_emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Set the stage for a module."""
    directory = tmp_path_factory.mktemp("google")
    addresses = {"PUBSUB_EMULATOR_HOST": pubsub_emulator, "FIRESTORE_EMULATOR_HOST": firestore_emulator}
    with pytest.MonkeyPatch.context() as patch, Simulator() as simulator:
        for name, address in addresses.items():
            patch.setenv(name, address)

        def keys(_request: AccessSecretVersionRequest, _context: ServicerContext) -> AccessSecretVersionResponse:
            return secret_version(simulator.credentials_json().encode())

        with secret_manager(keys, directory=directory) as manager:
            yield Stage(simulator, manager, directory, addresses)


@pytest.fixture
def case(stage: Stage) -> Case:
    """Let the time of one cluster be up."""
    return Case(stage)
