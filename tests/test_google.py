"""The function under the Functions Framework, with Pub/Sub and Firestore around it: their emulators, on real wires."""

import json
from collections.abc import Iterator

import pytest
from google_stage import Case, Stage, data_of
from modelarts_cleanup.local.simulator import Answer, Call
from served import Served

pytest_plugins = ["emulators", "google_stage"]


@pytest.fixture(scope="module")
def served(stage: Stage) -> Iterator[Served]:
    with stage.served("survivor") as served:
        yield served


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


def test_the_secret_comes_from_secret_manager_over_tls_as_it_does_in_the_cloud(
    stage: Stage, case: Case, served: Served
) -> None:
    case.pushes_to(served)
    case.expire()
    (pulled,) = case.completed()
    assert data_of(pulled)["outcome"] == "deleted"
    assert set(stage.manager.server.asked) == {f"{stage.secret}/versions/latest"}
    assert stage.manager.server.metadata[0]["authorization"].startswith("Bearer ")
    assert set(stage.manager.proxy.asked) == {"secretmanager.googleapis.com:443"}
