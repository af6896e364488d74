"""
The use case as one function: look at the cluster, judge it, delete it, look again, tell.

What it needs from outside are the ports below. Everything it decides it decides by `guard`, and
everything it remembers it remembers by `ledger`.
"""

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from modelarts_cleanup import events, guard
from modelarts_cleanup.ledger import Claim, Ledger, Superseded, Told
from modelarts_cleanup.model import (
    Absent,
    Accepted,
    AlreadyGone,
    Cluster,
    ClusterRef,
    ClusterType,
    CompletionEvent,
    Deleted,
    Event,
    Expiry,
    Failed,
    Member,
    NotFound,
    Outcome,
    Refused,
    Rejected,
    RetryLater,
    Skipped,
    instant_text,
)

STUCK_AFTER = timedelta(hours=1)
LOOKING_FOR = timedelta(seconds=30)
# Pauses between looks after a DELETE, in seconds; the last one repeats.
PAUSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)


class Clock(Protocol):
    """The present, and the time that is left of one delivery."""

    def now(self) -> datetime:
        """Tell the present, aware and in UTC."""
        ...

    def left(self) -> timedelta:
        """Tell how long this delivery may still work on ModelArts; not positive when time is up."""
        ...

    def sleep(self, span: timedelta) -> None:
        """Wait."""
        ...


class Clusters(Protocol):
    """The hyper clusters of ModelArts. Every fault raises `RetryLater`."""

    def look(self, ref: ClusterRef, cluster_type: ClusterType | None, *, clock: Clock) -> Cluster | Absent:
        """Read the cluster, now; without a type, both are looked for before it counts as absent."""
        ...

    def members(self, cluster: Cluster, *, clock: Clock) -> tuple[Member, ...]:
        """Read the supernodes that belong to the cluster."""
        ...

    def delete(self, cluster: Cluster, *, clock: Clock) -> Accepted | NotFound | Refused:
        """Send the DELETE, once."""
        ...


class Sink(Protocol):
    """Where completion events go."""

    def publish(self, completion: CompletionEvent) -> None:
        """Put an event there and wait until it is stored. Raises `RetryLater` with `sink_unavailable`."""
        ...


class World(msgspec.Struct, frozen=True, kw_only=True):
    """What a deployment is made of, built once."""

    policy: guard.Policy
    clusters: Clusters
    ledger: Ledger
    sink: Sink


def cleanup(event: Event, *, holder: str, world: World, clock: Clock) -> Told:
    """
    Take one event to its end, and tell it. `holder` names this delivery.

    Raises `RetryLater` if only another delivery can bring it there; the lease is given back then.
    """
    attempt = None
    try:
        claim = world.ledger.claim(event, holder=holder, now=clock.now())
        if isinstance(claim, Told):
            return claim
        attempt = claim.attempt
        completion = claim.unpublished or _completion(event, claim, world=world, clock=clock)
        world.sink.publish(completion)
        world.ledger.published(claim, now=clock.now(), closes=events.closes_expiry(completion))
    except BaseException as error:
        if isinstance(error, RetryLater):
            error.attempt = error.attempt or attempt
        # What went wrong first is the answer; a lease that cannot be given back runs out. Even a claim
        # that failed may have been written.
        with suppress(RetryLater):
            world.ledger.release(event, holder=holder, now=clock.now())
        raise
    return Told(completion=completion, duplicate=claim.duplicate)


def _completion(event: Event, claim: Claim, *, world: World, clock: Clock) -> CompletionEvent:
    """Bring the event to an outcome, and have that recorded before anyone is told."""
    expiry = event.asks
    outcome = expiry if isinstance(expiry, Rejected) else _judged(expiry, claim, world=world, clock=clock)
    completion = events.completion_event(
        event,
        outcome,
        deliveries=claim.attempt,
        received_at=claim.received_at,
        region=world.policy.region,
        now=clock.now(),
    )
    world.ledger.record(claim, outcome, completion, now=clock.now())
    return completion


def _judged(expiry: Expiry, claim: Claim, *, world: World, clock: Clock) -> Outcome:
    """Look and judge. What this very expiry has sent already is first followed to its end."""
    sent = claim.deletion
    follows_up = sent is not None and sent.expires_at == expiry.expires_at
    objection = None if follows_up else _objection_to_request(expiry, claim, world=world, clock=clock)
    if objection:
        return objection

    known_type = expiry.type or (sent.type if sent else None)
    cluster = world.clusters.look(expiry.ref, known_type, clock=clock)
    if isinstance(cluster, Absent):
        # What another expiry's DELETE did has been told as its doing.
        if sent is None or (sent.reported == "gone" and not follows_up):
            return AlreadyGone(detail="ModelArts has no such cluster", request_id=cluster.request_id)
        return _gone(Cluster(ref=expiry.ref, type=sent.type, name=sent.name), sent.sent_at, sent.request_id)
    if sent and sent.accepted and not sent.reported:
        return _looked_until_gone(cluster, sent.sent_at, sent.request_id, world=world, clock=clock)

    # Before anything is sent again, every rule is asked again.
    objection = _objection_to_request(expiry, claim, world=world, clock=clock) if follows_up else None
    objection = objection or _objection_to_cluster(cluster, expiry, world=world, clock=clock)
    return objection or _deleted(cluster, claim, world=world, clock=clock)


def _objection_to_request(expiry: Expiry, claim: Claim, *, world: World, clock: Clock) -> Skipped | None:
    latest = claim.latest_expiry
    return guard.objection_to_request(expiry, policy=world.policy, latest_expiry=latest, now=clock.now())


def _objection_to_cluster(cluster: Cluster, expiry: Expiry, *, world: World, clock: Clock) -> Skipped | None:
    # For a cluster of type ECS nothing readable says what is attached to it.
    looks_at_members = world.policy.require_empty and cluster.type == "HPS"
    members = world.clusters.members(cluster, clock=clock) if looks_at_members else ()
    return guard.objection_to_cluster(cluster, expiry=expiry, members=members, policy=world.policy)


def _deleted(cluster: Cluster, claim: Claim, *, world: World, clock: Clock) -> Outcome:
    """Write that the DELETE is sent, send it, and look until the cluster is gone."""
    sent = world.ledger.delete_sent(claim, cluster, limit=world.policy.deletions_per_hour, now=clock.now())
    if isinstance(sent, Superseded):
        latest = instant_text(sent.latest_expiry)
        return Skipped(reason="superseded", detail=f"a later expiry was told meanwhile: {latest}", cluster=cluster)
    answer = world.clusters.delete(cluster, clock=clock)
    if isinstance(answer, Refused):
        return Failed(
            reason="refused",
            detail=f"ModelArts refused the DELETE with {answer.status} {answer.code or '(no code)'}",
            cluster=cluster,
            request_id=answer.request_id,
        )
    world.ledger.delete_answered(claim, answer, now=clock.now())
    return _looked_until_gone(cluster, sent.sent_at, answer.request_id, world=world, clock=clock)


def _gone(cluster: Cluster, sent_at: datetime, request_id: str | None) -> Deleted:
    detail = f"gone after the DELETE sent at {instant_text(sent_at)}"
    return Deleted(detail=detail, cluster=cluster, request_id=request_id)


def _looked_until_gone(
    cluster: Cluster,
    sent_at: datetime,
    request_id: str | None,
    *,
    world: World,
    clock: Clock,
) -> Deleted | Failed:
    """Look until the cluster is gone, as long as this delivery may; accepted is not gone."""
    until = clock.now() + LOOKING_FOR
    pauses = iter(PAUSES)
    pause = 0.0
    while True:
        pause = next(pauses, pause)
        clock.sleep(timedelta(seconds=pause))
        if isinstance(world.clusters.look(cluster.ref, cluster.type, clock=clock), Absent):
            return _gone(cluster, sent_at, request_id)
        now = clock.now()
        if now - sent_at >= STUCK_AFTER:
            return Failed(
                reason="stuck",
                detail=f"still there {int((now - sent_at).total_seconds())} s after the DELETE sent at "
                f"{instant_text(sent_at)}",
                cluster=cluster,
                request_id=request_id,
            )
        ahead = timedelta(seconds=pause)
        if now + ahead >= until or clock.left() <= ahead:
            raise RetryLater(
                "still_deleting", f"the DELETE was sent at {instant_text(sent_at)}, the cluster is still there"
            )
