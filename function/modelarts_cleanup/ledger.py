"""
What is remembered between deliveries, and the rules of it: claim, lease, delete sent, limit, record.

The rules are written here once, as functions of entries; a store reads and writes entries in one
transaction and knows no rule. A store may run a rule again when it lost a race.
"""

from datetime import UTC, datetime, timedelta

import msgspec

from modelarts_cleanup.entries import (
    ClusterEntry,
    Deletion,
    Entries,
    Entry,
    EventEntry,
    ExpiryEntry,
    Lease,
    LimitEntry,
    Store,
)
from modelarts_cleanup.model import (
    Accepted,
    AlreadyGone,
    Cluster,
    CompletionEvent,
    Deleted,
    Event,
    Expiry,
    Failed,
    NotFound,
    Outcome,
    RetryLater,
    instant_text,
)

# Longer than any delivery lives: a lease that has run out has no holder at work.
LEASE = timedelta(seconds=120)
# What is left to do once an outcome stands is to publish it, which takes seconds.
PUBLISHING_LEASE = timedelta(seconds=15)
LIMIT_WINDOW = timedelta(hours=1)
# Longer than Pub/Sub and its dead letters keep a message, replays included.
KEPT = timedelta(days=90)

_LAST = datetime.max.replace(tzinfo=UTC)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """The event is done with: this was recorded and published."""

    completion: CompletionEvent
    duplicate: bool


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """
    The right to work on one event, until the lease runs out.

    `unpublished` is set if a former delivery recorded the outcome and could not publish it.
    """

    holder: str
    event_key: str
    expiry: Expiry | None
    attempt: int
    received_at: datetime
    latest_expiry: datetime
    deletion: Deletion | None = None
    unpublished: CompletionEvent | None = None
    duplicate: bool = False


class Superseded(msgspec.Struct, frozen=True):
    """A later expiry was told for the cluster while this event was being judged."""

    latest_expiry: datetime


class Ledger:
    """The memory between deliveries, by the rules of contract section 5."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def claim(self, event: Event, *, holder: str, now: datetime) -> Told | Claim:
        """
        Take an event to work on, or learn that it is done with. `holder` names the delivery.

        Every expiry told here counts for its cluster, even when the lease is another's.
        Raises `RetryLater` with `in_progress` while another delivery holds the lease.
        """
        expiry = event.asks if isinstance(event.asks, Expiry) else None
        expiry_key = _expiry_key(expiry) if expiry else None

        def change(entries: Entries) -> Told | Claim | RetryLater:
            seen = _event(entries, event.key, now)
            closed = _expiry(entries, expiry_key, now) if expiry_key else None
            completion = seen.completion or (closed.completion if closed else None)
            duplicate = completion is not None and seen.completion is None
            # Whoever published what closed the expiry published it for all who share it.
            if completion and (seen.published or (closed and closed.published and closed.completion == completion)):
                return Told(completion=completion, duplicate=duplicate)
            entries[_event_key(event.key)] = seen = msgspec.structs.replace(
                seen,
                deliveries=seen.deliveries + 1,
                forget_at=now + KEPT,
            )
            key = _lease_key(event.key, expiry)
            cluster = _cluster(entries, key, now)
            latest = expiry and max(expiry.expires_at, cluster.latest_expiry or expiry.expires_at)
            held = cluster.lease if cluster.lease and cluster.lease.until > now else None
            entries[key] = msgspec.structs.replace(
                cluster,
                latest_expiry=latest,
                lease=held or Lease(holder, now + LEASE),
                forget_at=_forget_at(max(now, latest or now)),
            )
            if held:
                until = instant_text(held.until)
                retry = RetryLater("in_progress", f"another delivery is at work until {until} at the latest")
                retry.attempt = seen.deliveries
                return retry
            return Claim(
                holder=holder,
                event_key=event.key,
                expiry=expiry,
                attempt=seen.deliveries,
                received_at=seen.received_at,
                latest_expiry=latest or now,
                deletion=cluster.deletion,
                unpublished=completion,
                duplicate=duplicate,
            )

        keys = [_event_key(event.key), _lease_key(event.key, expiry), *([expiry_key] if expiry_key else [])]
        found = self._store.transact(keys, change)
        if isinstance(found, RetryLater):  # returned, not raised: what was written above shall stand
            raise found
        return found

    def delete_sent(self, claim: Claim, cluster: Cluster, *, limit: int, now: datetime) -> Deletion | Superseded:
        """
        Write that a DELETE is about to be sent, and count it against the limit of `limit` an hour.

        A DELETE that is sent again because its answer was lost or a fault counts once. Nothing is
        written, and nothing may be sent, when a later expiry has been told meanwhile. Raises
        `RetryLater` with `deletion_limit`, or with `in_progress` if the lease was lost.
        """
        expiry = _expiry_of(claim)
        limit_key = f"limit:{expiry.ref.region}:{expiry.ref.project_id}"

        def change(entries: Entries) -> Deletion | Superseded:
            entry = _held(entries, claim, now)
            if entry.latest_expiry and entry.latest_expiry > expiry.expires_at:
                return Superseded(entry.latest_expiry)
            sent = entry.deletion
            again = sent if sent and not sent.reported and sent.expires_at == expiry.expires_at else None
            if again is None:
                entries[limit_key] = _counted(entries[limit_key], limit=limit, now=now)
            deletion = Deletion(
                expires_at=expiry.expires_at,
                type=cluster.type,
                name=cluster.name,
                # One that ModelArts finds nothing for, while it shows the cluster, is stuck an hour after the first.
                sent_at=again.sent_at if again and again.not_found else now,
            )
            entries[_lease_key(claim.event_key, expiry)] = msgspec.structs.replace(entry, deletion=deletion)
            return deletion

        return self._store.transact([_lease_key(claim.event_key, expiry), limit_key], change)

    def delete_answered(self, claim: Claim, answer: Accepted | NotFound, *, now: datetime) -> None:
        """Write what ModelArts said to the DELETE; one that it accepted is not sent again. Raises `RetryLater`."""
        key = _lease_key(claim.event_key, claim.expiry)
        accepted = isinstance(answer, Accepted)

        def change(entries: Entries) -> None:
            entry = _held(entries, claim, now)
            if entry.deletion:
                answered = msgspec.structs.replace(
                    entry.deletion,
                    accepted=accepted,
                    not_found=not accepted,
                    request_id=answer.request_id,
                )
                entries[key] = msgspec.structs.replace(entry, deletion=answered)

        self._store.transact([key], change)

    def record(self, claim: Claim, outcome: Outcome, completion: CompletionEvent, *, now: datetime) -> None:
        """Write how the event ended, before anyone is told. Raises `RetryLater`, also if the lease was lost."""
        key, event_key = _lease_key(claim.event_key, claim.expiry), _event_key(claim.event_key)
        expiry_key = _expiry_key(claim.expiry) if claim.expiry and closes_expiry(outcome) else None

        def change(entries: Entries) -> None:
            entry = _held(entries, claim, now)
            seen = _event(entries, claim.event_key, now)
            entries[event_key] = msgspec.structs.replace(seen, completion=completion, forget_at=now + KEPT)
            if expiry_key:
                entries[expiry_key] = ExpiryEntry(forget_at=now + KEPT, completion=completion)
            deletion = entry.deletion
            if isinstance(outcome, Failed) and outcome.reason == "refused":
                deletion = None
            elif deletion and isinstance(outcome, Failed):
                # Another event for this cluster may try again; a cluster found gone is still our doing.
                deletion = msgspec.structs.replace(deletion, reported="stuck")
            elif deletion and isinstance(outcome, Deleted):
                deletion = msgspec.structs.replace(deletion, reported="gone")
            lease = Lease(claim.holder, now + PUBLISHING_LEASE)
            entries[key] = msgspec.structs.replace(entry, deletion=deletion, lease=lease)

        self._store.transact([key, event_key, *([expiry_key] if expiry_key else [])], change)

    def published(self, claim: Claim, *, now: datetime, closes: bool = True) -> None:
        """
        Write that the completion event is stored on the sink, and give the lease back.

        `closes` tells whether that event may have closed the expiry. Raises `RetryLater`.
        """
        key, event_key = _lease_key(claim.event_key, claim.expiry), _event_key(claim.event_key)
        expiry_key = _expiry_key(claim.expiry) if claim.expiry and closes else None

        def change(entries: Entries) -> None:
            seen = _event(entries, claim.event_key, now)
            if seen.completion:
                entries[event_key] = msgspec.structs.replace(seen, published=True)
            closed = _expiry(entries, expiry_key, now) if expiry_key else None
            if expiry_key and closed and seen.completion in (None, closed.completion):
                entries[expiry_key] = msgspec.structs.replace(closed, published=True)
            _give_back(entries, key, claim.holder, now)

        self._store.transact([key, event_key, *([expiry_key] if expiry_key else [])], change)

    def release(self, event: Event, *, holder: str, now: datetime) -> None:
        """Give the lease back, so that the next delivery need not wait for its end. Raises `RetryLater`."""
        key = _lease_key(event.key, event.asks if isinstance(event.asks, Expiry) else None)
        self._store.transact([key], lambda entries: _give_back(entries, key, holder, now))


def closes_expiry(outcome: Outcome) -> bool:
    """Tell whether an outcome ends the logical expiry, and not only the event that was judged."""
    return isinstance(outcome, Deleted | AlreadyGone)


def _forget_at(last_needed_at: datetime) -> datetime:
    return last_needed_at + KEPT if last_needed_at < _LAST - KEPT else _LAST


def _counted(entry: Entry | None, *, limit: int, now: datetime) -> LimitEntry:
    earlier = entry.counted if isinstance(entry, LimitEntry) else ()
    counted = tuple(at for at in earlier if at > now - LIMIT_WINDOW)
    if len(counted) >= limit:
        again = f"; the next one may be sent at {instant_text(min(counted) + LIMIT_WINDOW)}" if counted else ""
        raise RetryLater(
            "deletion_limit", f"{len(counted)} DELETEs in this project within an hour, {limit} are allowed{again}"
        )
    return LimitEntry(forget_at=now + LIMIT_WINDOW, counted=(*counted, now))


def _held(entries: Entries, claim: Claim, now: datetime) -> ClusterEntry:
    entry = _cluster(entries, _lease_key(claim.event_key, claim.expiry), now)
    if entry.lease is None or entry.lease.holder != claim.holder:
        raise RetryLater("in_progress", "the lease ran out and another delivery took over")
    return entry


def _give_back(entries: Entries, key: str, holder: str, now: datetime) -> None:
    entry = _cluster(entries, key, now)
    if entry.lease and entry.lease.holder == holder:
        entries[key] = msgspec.structs.replace(entry, lease=None)


# An entry past its time counts as absent, whether or not the store has removed it yet.


def _event(entries: Entries, event_key: str, now: datetime) -> EventEntry:
    entry = entries[_event_key(event_key)]
    if isinstance(entry, EventEntry) and entry.forget_at > now:
        return entry
    return EventEntry(forget_at=now + KEPT, received_at=now)


def _expiry(entries: Entries, key: str, now: datetime) -> ExpiryEntry | None:
    entry = entries[key]
    return entry if isinstance(entry, ExpiryEntry) and entry.forget_at > now else None


def _cluster(entries: Entries, key: str, now: datetime) -> ClusterEntry:
    entry = entries[key]
    return entry if isinstance(entry, ClusterEntry) and entry.forget_at > now else ClusterEntry(forget_at=now + KEPT)


def _expiry_of(claim: Claim) -> Expiry:
    if claim.expiry is None:
        raise TypeError("a rejected event deletes nothing")
    return claim.expiry


def _event_key(event_key: str) -> str:
    return f"event:{event_key}"


def _expiry_key(expiry: Expiry) -> str:
    return f"expiry:{expiry.key}"


def _lease_key(event_key: str, expiry: Expiry | None) -> str:
    return f"cluster:{expiry.ref.key}" if expiry else f"lease:{event_key}"
