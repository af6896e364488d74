"""What the demo plays: one event of every kind, what ModelArts holds and does meanwhile, and how each must end."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, cast

from modelarts_cleanup import envelope, events
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.cleanup import STUCK_AFTER
from modelarts_cleanup.ledger import Claim, Ledger
from modelarts_cleanup.local.delivery import Delivery, binary
from modelarts_cleanup.local.samples import Sample, SampleRefusal, Samples
from modelarts_cleanup.local.simulator import Answer, Call, Reset, SimulatedCluster, VisibleFor
from modelarts_cleanup.local.stage import REGION, Stage
from modelarts_cleanup.model import Accepted, Cluster, ClusterRef, Original, instant_text

DEMO_SOURCE: Final = "//modelarts-cleanup/demo"
_LINGERING: Final = timedelta(seconds=0.5)
# By how the names of the samples begin.
_TRANSPORTS: Final = {
    "http-binary": "a CloudEvent in binary mode",
    "http-structured": "a CloudEvent in structured mode",
    "pubsub-unwrapped": "an unwrapped Pub/Sub message",
    "pubsub-wrapped": "a wrapped Pub/Sub message",
    "eventarc": "Eventarc's event about a message",
}


@dataclass(frozen=True, slots=True)
class End:
    """How one delivery ends."""

    outcome: str
    reason: str | None = None
    duplicate: bool = False

    def __str__(self) -> str:
        """Write it as one reads it."""
        return " ".join(filter(None, (self.outcome, self.reason, "(duplicate)" if self.duplicate else "")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A completion event that must be told: who caused it, and how it ended; its id where that is known."""

    cause: str
    outcome: str
    reason: str | None
    id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One event: `prepare` sets the stage, each of `sent` is delivered in turn, and each of `ends` must be its end."""

    about: str
    sent: tuple[Delivery, ...]
    ends: tuple[End, ...]
    prepare: Callable[[Stage], object] = lambda _stage: None
    told: Told | None = None
    deletes: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)


def scenes(given: Samples) -> Iterator[Scene]:
    """Give every scene, in the order in which they are played."""
    for sample in given.samples:
        yield _of_sample(sample)
        if sample.name == "deleted":
            yield _again("The same event is delivered again.", (sample.sent,), duplicate=False)
            for way, sent in _grouped(given.ways):
                forms = "" if len(sent) == 1 else f" ({len(sent)} forms)"
                yield _again(f"The same expiry in another event, as {way}{forms}.", sent, duplicate=True)
    project = given.settings["ALLOWED_PROJECTS"].partition(",")[0]
    yield from _troubled(project)


def _of_sample(sample: Sample) -> Scene:
    told = sample.completion
    refused = sample.cluster is not None and isinstance(sample.cluster.on_delete, SampleRefusal)
    return Scene(
        about=sample.about,
        sent=(sample.sent,),
        ends=(End(told.data.outcome, told.data.reason),),
        prepare=lambda stage: put(stage, sample),
        told=Told(cause=sample.name, outcome=told.data.outcome, reason=told.data.reason, id=told.id),
        deletes=int(refused or told.data.outcome == "deleted"),
        settings=sample.settings,
    )


def put(stage: Stage, sample: Sample) -> SimulatedCluster | None:
    """Put the sample's cluster on the stage, if it has one, and what ModelArts does with it."""
    cluster = sample.cluster
    if cluster is None:
        return None
    simulated = stage.simulator.add_cluster(
        project_id=sample.project_id, cluster_id=sample.cluster_id, name=cluster.name, type=cluster.type
    )
    for member in cluster.members:
        stage.simulator.add_supernode(
            project_id=sample.project_id,
            cluster_id=sample.cluster_id,
            supernode_id=member.id,
            name=member.name or "",
            status=member.status,
            charging_mode="PRE_PAID" if member.prepaid else "POST_PAID",
        )
    if isinstance(cluster.on_delete, SampleRefusal):
        answer = Answer.error(cluster.on_delete.status, cluster.on_delete.code)
        stage.simulator.fail(answer, on=Call.DELETE_CLUSTER, cluster_id=sample.cluster_id)
    elif cluster.on_delete == "stays":
        _sent_long_ago(stage, sample.sent, simulated)
    return simulated


def _sent_long_ago(stage: Stage, sent: Delivery, simulated: SimulatedCluster) -> None:
    """Write into the ledger what a delivery has left there that sent the DELETE more than an hour ago."""
    asked = sent.as_read()
    found = envelope.read(asked)
    original = Original(content_type=None, head=b"")
    event = events.read(found, key=envelope.identity(found, asked), region=REGION, original=original)
    at = datetime.now(UTC) - STUCK_AFTER - timedelta(minutes=1)
    ledger = Ledger(SqliteStore(str(stage.ledger)))
    claim = cast("Claim", ledger.claim(event, holder="demo", now=at))  # nothing has been told of it yet
    ref = ClusterRef(REGION, simulated.project_id, simulated.cluster_id)
    cluster = Cluster(ref=ref, type=simulated.type, name=simulated.name)
    ledger.delete_sent(claim, cluster, limit=1_000, now=at)
    ledger.delete_answered(claim, Accepted(request_id=None), now=at)
    ledger.release(event, holder="demo", now=at)


def _again(about: str, sent: tuple[Delivery, ...], *, duplicate: bool) -> Scene:
    return Scene(about=about, sent=sent, ends=(End("deleted", duplicate=duplicate),) * len(sent))


def _grouped(ways: Mapping[str, Delivery]) -> Iterator[tuple[str, tuple[Delivery, ...]]]:
    """Put the ways to send together by transport."""
    grouped: dict[str, list[Delivery]] = {}
    for name, sent in ways.items():
        transport = next((words for prefix, words in _TRANSPORTS.items() if name.startswith(prefix)), name)
        grouped.setdefault(transport, []).append(sent)
    for transport, together in grouped.items():
        yield transport, tuple(together)


def _troubled(project: str) -> Iterator[Scene]:
    """Give what goes well at last."""

    def scene(number: int, about: str, *, ends: tuple[End, ...], prepare: Callable[[Stage, str], object]) -> Scene:
        cluster_id, event_id = f"demo-{number}", f"demo-{number}"
        expires_at = instant_text(datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=5))
        data = {"project_id": project, "cluster_id": cluster_id, "expires_at": expires_at}
        sent = binary(json.dumps(data).encode(), event_id=event_id, source=DEMO_SOURCE)

        def set_stage(stage: Stage) -> None:
            lag = VisibleFor(_LINGERING) if number == 1 else None
            stage.simulator.add_cluster(project_id=project, cluster_id=cluster_id, name=f"ci-{cluster_id}", lag=lag)
            prepare(stage, cluster_id)

        told = Told(cause=event_id, outcome="deleted", reason=None)
        return Scene(about=about, sent=(sent,) * len(ends), ends=ends, prepare=set_stage, told=told, deletes=1)

    lost = End("retry", "modelarts_unavailable")
    yield scene(
        1,
        "The cluster is still shown for a moment after its DELETE.",
        ends=(End("deleted"),),
        prepare=lambda _stage, _cluster_id: None,
    )
    yield scene(
        2,
        "ModelArts fails (500) at the first look; the redelivery brings it to its end.",
        ends=(lost, End("deleted")),
        prepare=lambda stage, cluster_id: stage.simulator.fail(
            Answer.error(500, "ModelArts.0001"), on=Call.SHOW_CLUSTER, cluster_id=cluster_id
        ),
    )
    yield scene(
        3,
        "ModelArts is throttled at the first look; so is the redelivery, but not the third.",
        ends=(End("retry", "throttled"), End("retry", "throttled"), End("deleted")),
        prepare=lambda stage, cluster_id: stage.simulator.fail(
            Answer.error(429, "APIGW.0308"), on=Call.SHOW_CLUSTER, cluster_id=cluster_id, times=2
        ),
    )
    yield scene(
        4,
        "The answer to the DELETE is lost: the redelivery sees that it was done, and sends no second one.",
        ends=(lost, End("deleted")),
        prepare=lambda stage, cluster_id: stage.simulator.fail(
            Reset(), on=Call.DELETE_CLUSTER, cluster_id=cluster_id, after_effect=True
        ),
    )
