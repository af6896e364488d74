from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes import REF, MemoryStore, an_event
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from modelarts_cleanup.adapters.ledger_sqlite import SqliteStore
from modelarts_cleanup.entries import ClusterEntry, Deletion, Entries, Entry, LimitEntry, Store
from modelarts_cleanup.ledger import (
    KEPT,
    LEASE,
    LIMIT_WINDOW,
    PUBLISHING_LEASE,
    Claim,
    Ledger,
    Superseded,
    Told,
    closes_expiry,
)
from modelarts_cleanup.model import (
    Accepted,
    AlreadyGone,
    Cause,
    Cluster,
    ClusterRef,
    CompletionEvent,
    Deleted,
    Event,
    Failed,
    Original,
    Outcome,
    Rejected,
    RetryLater,
    Skipped,
)
from msgspec.structs import replace

pytest_plugins = ["emulators"]

# Far ahead, as stores remove what they need not keep by their own clocks.
NOW = datetime(2126, 7, 15, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
EXPIRES_AT = NOW - HOUR
DELETED = Deleted(detail="gone")
GONE = AlreadyGone(detail="gone")
SKIPPED = Skipped(reason="dry_run", detail="kept")
REFUSED = Failed(reason="refused", detail="403")
STUCK = Failed(reason="stuck", detail="still there")


@pytest.fixture(params=["memory", "sqlite", "firestore"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "sqlite":
        return SqliteStore(f"{request.getfixturevalue('tmp_path')}/ledger.db")
    if request.param == "firestore":
        found: Store = request.getfixturevalue("firestore_store")
        return found
    return MemoryStore()


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return Ledger(store)


def expired(key: str = "e1", *, at: datetime = EXPIRES_AT, ref: ClusterRef = REF) -> Event:
    return an_event(key, expires_at=at, ref=ref)


def rejected(key: str = "e1") -> Event:
    original = Original(content_type=None, head=b"")
    return Event(key=key, cause=Cause(), asks=Rejected(field="data", problem="is missing", original=original))


def completion(name: str = "1", outcome: str = "deleted") -> CompletionEvent:
    return CompletionEvent(id=name, source="//test", subject=None, time="t", outcome=outcome, data='{"ä":1}')


def cluster(ref: ClusterRef = REF) -> Cluster:
    return Cluster(ref=ref, type="ECS", name="ci-a")


def claimed(ledger: Ledger, event: Event, holder: str = "h1", *, now: datetime = NOW) -> Claim:
    found = ledger.claim(event, holder=holder, now=now)
    assert isinstance(found, Claim)
    return found


def reason_of(act: Callable[[], object]) -> str:
    with pytest.raises(RetryLater) as raised:
        act()
    return raised.value.reason


def entry(store: Store, key: str) -> Entry | None:
    return store.transact([key], lambda entries: entries[key])


def cluster_entry(store: Store, ref: ClusterRef = REF) -> ClusterEntry:
    found = entry(store, f"cluster:{ref.key}")
    assert isinstance(found, ClusterEntry)
    return found


def counted(store: Store, ref: ClusterRef = REF) -> int:
    found = entry(store, f"limit:{ref.region}:{ref.project_id}")
    return len(found.counted) if isinstance(found, LimitEntry) else 0


def told(ledger: Ledger, event: Event, outcome: Outcome, *, holder: str = "h1", now: datetime = NOW) -> None:
    """Bring an event to its end."""
    claim = claimed(ledger, event, holder, now=now)
    ledger.record(claim, outcome, completion(event.key), now=now)
    ledger.published(claim, now=now)


# Claim and lease


def test_the_first_claim_knows_nothing(ledger: Ledger) -> None:
    event = expired()
    assert ledger.claim(event, holder="h1", now=NOW) == Claim(
        holder="h1",
        event_key="e1",
        expiry=event.asks if not isinstance(event.asks, Rejected) else None,
        attempt=1,
        received_at=NOW,
        latest_expiry=EXPIRES_AT,
    )


@pytest.mark.parametrize("other", ["e1", "e2"])
def test_while_a_lease_is_held_nobody_else_gets_it(ledger: Ledger, other: str) -> None:
    claimed(ledger, expired())
    assert reason_of(lambda: ledger.claim(expired(other), holder="h2", now=NOW + LEASE - SECOND)) == "in_progress"


def test_who_is_put_off_learns_until_when_at_the_latest(ledger: Ledger) -> None:
    claimed(ledger, expired())
    with pytest.raises(RetryLater, match="2126-07-15T12:02:00Z"):
        ledger.claim(expired(), holder="h2", now=NOW)


def test_leases_of_other_clusters_are_free(ledger: Ledger) -> None:
    claimed(ledger, expired())
    for number, ref in enumerate(
        (replace(REF, cluster_id="c-2"), replace(REF, project_id="p2"), replace(REF, region="r2"))
    ):
        claimed(ledger, expired(f"other-{number}", ref=ref), "h2")


def test_a_lease_given_back_is_free_at_once(ledger: Ledger) -> None:
    claimed(ledger, expired())
    ledger.release(expired(), holder="h1", now=NOW)
    assert claimed(ledger, expired(), "h2").attempt == 2


def test_only_its_holder_gives_a_lease_back(ledger: Ledger) -> None:
    claimed(ledger, expired())
    ledger.release(expired(), holder="h2", now=NOW)
    assert reason_of(lambda: ledger.claim(expired(), holder="h3", now=NOW)) == "in_progress"


def test_giving_back_what_was_never_taken_does_nothing(ledger: Ledger, store: Store) -> None:
    ledger.release(expired(), holder="h1", now=NOW)
    assert entry(store, f"cluster:{REF.key}") is None


def test_a_lease_that_has_run_out_is_taken_over_with_what_its_holder_wrote(ledger: Ledger) -> None:
    first = claimed(ledger, expired())
    ledger.delete_sent(first, cluster(), limit=1, now=NOW + SECOND)
    ledger.delete_answered(first, Accepted(request_id="r-1"), now=NOW + 2 * SECOND)
    second = claimed(ledger, expired(), "h2", now=NOW + LEASE)
    assert second.deletion == Deletion(
        expires_at=EXPIRES_AT, type="ECS", name="ci-a", sent_at=NOW + SECOND, accepted=True, request_id="r-1"
    )
    assert second.attempt == 2
    assert second.received_at == NOW


@pytest.mark.parametrize("act", ["delete_sent", "delete_answered", "record"])
def test_who_lost_the_lease_writes_nothing_any_more(ledger: Ledger, store: Store, act: str) -> None:
    first = claimed(ledger, expired())
    second = claimed(ledger, expired(), "h2", now=NOW + LEASE)
    before = cluster_entry(store)
    acts: dict[str, Callable[[], object]] = {
        "delete_sent": lambda: ledger.delete_sent(first, cluster(), limit=9, now=NOW + LEASE),
        "delete_answered": lambda: ledger.delete_answered(first, Accepted(request_id=None), now=NOW + LEASE),
        "record": lambda: ledger.record(first, DELETED, completion(), now=NOW + LEASE),
    }
    assert reason_of(acts[act]) == "in_progress"
    assert cluster_entry(store) == before
    assert counted(store) == 0
    ledger.release(expired(), holder="h1", now=NOW + LEASE)
    assert cluster_entry(store) == before
    ledger.record(second, DELETED, completion(), now=NOW + LEASE)


@pytest.mark.parametrize("act", ["delete_sent", "delete_answered", "record"])
def test_who_gave_the_lease_back_writes_nothing_any_more(ledger: Ledger, act: str) -> None:
    claim = claimed(ledger, expired())
    ledger.release(expired(), holder="h1", now=NOW)
    acts: dict[str, Callable[[], object]] = {
        "delete_sent": lambda: ledger.delete_sent(claim, cluster(), limit=9, now=NOW),
        "delete_answered": lambda: ledger.delete_answered(claim, Accepted(request_id=None), now=NOW),
        "record": lambda: ledger.record(claim, DELETED, completion(), now=NOW),
    }
    assert reason_of(acts[act]) == "in_progress"


def test_a_lease_that_ran_out_and_that_nobody_took_is_still_its_holders(ledger: Ledger) -> None:
    claim = claimed(ledger, expired())
    assert isinstance(ledger.delete_sent(claim, cluster(), limit=1, now=NOW + 2 * LEASE), Deletion)


def test_once_recorded_the_lease_is_short(ledger: Ledger) -> None:
    claim = claimed(ledger, expired())
    ledger.record(claim, DELETED, completion(), now=NOW)
    early, late = NOW + PUBLISHING_LEASE - SECOND, NOW + PUBLISHING_LEASE
    assert reason_of(lambda: ledger.claim(expired(), holder="h2", now=early)) == "in_progress"
    assert claimed(ledger, expired(), "h2", now=late).unpublished == completion()


def test_deliveries_are_counted_also_those_that_are_put_off(ledger: Ledger) -> None:
    claimed(ledger, expired())
    for _ in range(3):
        reason_of(lambda: ledger.claim(expired(), holder="h2", now=NOW))
    ledger.release(expired(), holder="h1", now=NOW)
    again = claimed(ledger, expired(), now=NOW + MINUTE)
    assert (again.attempt, again.received_at) == (5, NOW)


def test_each_event_counts_its_own_deliveries(ledger: Ledger) -> None:
    claimed(ledger, expired("e1"))
    ledger.release(expired("e1"), holder="h1", now=NOW)
    assert claimed(ledger, expired("e2"), now=NOW + MINUTE).attempt == 1


def test_a_rejected_event_takes_a_lease_of_its_own(ledger: Ledger) -> None:
    claim = claimed(ledger, rejected("e1"))
    assert (claim.expiry, claim.latest_expiry, claim.deletion) == (None, NOW, None)
    assert reason_of(lambda: ledger.claim(rejected("e1"), holder="h2", now=NOW)) == "in_progress"
    claimed(ledger, rejected("e2"), "h2")
    claimed(ledger, expired("e3"), "h3")
    ledger.release(rejected("e1"), holder="h1", now=NOW)
    again = claimed(ledger, rejected("e1"), "h4")
    outcome = rejected().asks
    assert isinstance(outcome, Rejected)
    ledger.record(again, outcome, completion(outcome="rejected"), now=NOW)
    ledger.published(again, now=NOW)
    assert ledger.claim(rejected("e1"), holder="h5", now=NOW) == Told(
        completion=completion(outcome="rejected"), duplicate=False
    )


def test_a_rejected_event_deletes_nothing(ledger: Ledger) -> None:
    claim = claimed(ledger, rejected())
    with pytest.raises(TypeError, match="deletes nothing"):
        ledger.delete_sent(claim, cluster(), limit=1, now=NOW)


# The latest expiry


def test_the_latest_expiry_that_was_told_is_remembered(ledger: Ledger) -> None:
    told(ledger, expired("e1", at=NOW + HOUR), SKIPPED)
    assert claimed(ledger, expired("e2")).latest_expiry == NOW + HOUR
    ledger.release(expired("e2"), holder="h1", now=NOW)
    assert claimed(ledger, expired("e3", at=NOW + 2 * HOUR)).latest_expiry == NOW + 2 * HOUR


def test_it_is_remembered_also_of_an_event_that_is_put_off(ledger: Ledger) -> None:
    claim = claimed(ledger, expired("e1"))
    later = expired("e2", at=NOW + HOUR)
    assert reason_of(lambda: ledger.claim(later, holder="h2", now=NOW)) == "in_progress"
    assert ledger.delete_sent(claim, cluster(), limit=1, now=NOW) == Superseded(NOW + HOUR)


def test_nothing_is_written_of_a_delete_that_is_superseded(ledger: Ledger, store: Store) -> None:
    claim = claimed(ledger, expired("e1"))
    reason_of(lambda: ledger.claim(expired("e2", at=NOW + HOUR), holder="h2", now=NOW))
    ledger.delete_sent(claim, cluster(), limit=1, now=NOW)
    assert counted(store) == 0
    assert cluster_entry(store).deletion is None


def test_an_earlier_expiry_supersedes_nothing(ledger: Ledger) -> None:
    claim = claimed(ledger, expired("e1"))
    reason_of(lambda: ledger.claim(expired("e2", at=EXPIRES_AT - HOUR), holder="h2", now=NOW))
    assert isinstance(ledger.delete_sent(claim, cluster(), limit=1, now=NOW), Deletion)


def test_the_expiry_of_another_cluster_supersedes_nothing(ledger: Ledger) -> None:
    other = expired("e2", at=NOW + HOUR, ref=replace(REF, cluster_id="c-2"))
    claimed(ledger, other, "h2")
    assert claimed(ledger, expired("e1")).latest_expiry == EXPIRES_AT


# The limit


def sent(ledger: Ledger, number: int, *, limit: int, now: datetime = NOW, project: str = "p1") -> Deletion | Superseded:
    ref = ClusterRef("cn-southwest-2", project, f"c-{number}")
    claim = claimed(ledger, expired(f"{project}-{number}", ref=ref), f"h-{number}", now=now)
    return ledger.delete_sent(claim, cluster(ref), limit=limit, now=now)


def test_the_limit_is_exact(ledger: Ledger, store: Store) -> None:
    for number in range(3):
        sent(ledger, number, limit=3)
    with pytest.raises(RetryLater, match=r"3 DELETEs .* 3 are allowed; .* 2126-07-15T13:00:00Z") as raised:
        sent(ledger, 3, limit=3)
    assert raised.value.reason == "deletion_limit"
    assert counted(store) == 3
    entry_of_the_last = cluster_entry(store, ClusterRef("cn-southwest-2", "p1", "c-3"))
    assert entry_of_the_last.deletion is None


def test_a_limit_of_none_allows_none(ledger: Ledger) -> None:
    with pytest.raises(RetryLater, match=r"0 DELETEs .* 0 are allowed$"):
        sent(ledger, 1, limit=0)


def test_the_window_is_an_hour_and_slides(ledger: Ledger, store: Store) -> None:
    sent(ledger, 1, limit=2)
    sent(ledger, 2, limit=2, now=NOW + 30 * MINUTE)
    assert reason_of(lambda: sent(ledger, 3, limit=2, now=NOW + HOUR - SECOND)) == "deletion_limit"
    ledger.release(
        expired("p1-3", ref=replace(REF, cluster_id="c-3")),
        holder="h-3",
        now=NOW + HOUR - SECOND,
    )
    sent(ledger, 3, limit=2, now=NOW + HOUR)
    assert counted(store) == 2
    assert reason_of(lambda: sent(ledger, 4, limit=2, now=NOW + HOUR)) == "deletion_limit"


def test_each_project_of_each_region_has_a_limit_of_its_own(ledger: Ledger) -> None:
    sent(ledger, 1, limit=1)
    sent(ledger, 1, limit=1, project="p2")
    ref = replace(REF, region="r2")
    claim = claimed(ledger, expired("r2", ref=ref))
    assert isinstance(ledger.delete_sent(claim, cluster(ref), limit=1, now=NOW), Deletion)


def test_a_delete_that_is_sent_again_counts_once(ledger: Ledger, store: Store) -> None:
    claim = claimed(ledger, expired())
    for _ in range(3):
        assert isinstance(ledger.delete_sent(claim, cluster(), limit=1, now=NOW), Deletion)
    again = claimed(ledger, expired(), "h2", now=NOW + LEASE)
    assert isinstance(ledger.delete_sent(again, cluster(), limit=1, now=NOW + LEASE), Deletion)
    assert counted(store) == 1


def test_the_delete_of_another_expiry_of_the_same_cluster_counts(ledger: Ledger, store: Store) -> None:
    first = claimed(ledger, expired("e1"))
    ledger.delete_sent(first, cluster(), limit=9, now=NOW)
    ledger.release(expired("e1"), holder="h1", now=NOW)
    second = claimed(ledger, expired("e2", at=NOW), now=NOW + 2 * HOUR)
    ledger.delete_sent(second, cluster(), limit=9, now=NOW + 2 * HOUR)
    found = entry(store, "limit:cn-southwest-2:p1")
    assert isinstance(found, LimitEntry)
    assert found.counted == (NOW + 2 * HOUR,)


@pytest.mark.parametrize("outcome", [REFUSED, STUCK, DELETED])
def test_after_its_end_has_been_told_another_delete_counts_again(
    ledger: Ledger, store: Store, outcome: Outcome
) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.delete_sent(claim, cluster(), limit=9, now=NOW)
    ledger.record(claim, outcome, completion(), now=NOW)
    ledger.published(claim, now=NOW)
    again = claimed(ledger, expired("e2", at=NOW), now=NOW + MINUTE)
    ledger.delete_sent(again, cluster(), limit=9, now=NOW + MINUTE)
    assert counted(store) == 2


# The deletion


def test_accepted_is_written_only_of_a_delete_that_was_sent(ledger: Ledger, store: Store) -> None:
    claim = claimed(ledger, expired())
    ledger.delete_answered(claim, Accepted(request_id="r-1"), now=NOW)
    assert cluster_entry(store).deletion is None


@pytest.mark.parametrize(
    ("outcome", "deletion"),
    [
        (DELETED, Deletion(expires_at=EXPIRES_AT, type="ECS", name="ci-a", sent_at=NOW, reported="gone")),
        (REFUSED, None),
        (SKIPPED, Deletion(expires_at=EXPIRES_AT, type="ECS", name="ci-a", sent_at=NOW)),
        (STUCK, Deletion(expires_at=EXPIRES_AT, type="ECS", name="ci-a", sent_at=NOW, reported="stuck")),
    ],
)
def test_a_deletion_is_remembered_with_what_was_told_of_it(
    ledger: Ledger, outcome: Outcome, deletion: Deletion | None
) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.delete_sent(claim, cluster(), limit=1, now=NOW)
    ledger.record(claim, outcome, completion(), now=NOW)
    ledger.published(claim, now=NOW)
    assert claimed(ledger, expired("e2", at=NOW), now=NOW + MINUTE).deletion == deletion


def test_stuck_without_a_deletion_writes_none(ledger: Ledger, store: Store) -> None:
    told(ledger, expired(), STUCK)
    assert cluster_entry(store).deletion is None


# Recorded and published


@pytest.mark.parametrize("outcome", [DELETED, GONE])
def test_what_closes_the_expiry_is_told_to_all_who_share_it(ledger: Ledger, outcome: Outcome) -> None:
    assert closes_expiry(outcome)
    told(ledger, expired("e1"), outcome)
    assert ledger.claim(expired("e1"), holder="h2", now=NOW) == Told(completion=completion("e1"), duplicate=False)
    assert ledger.claim(expired("e2"), holder="h2", now=NOW) == Told(completion=completion("e1"), duplicate=True)


@pytest.mark.parametrize("outcome", [SKIPPED, REFUSED, STUCK])
def test_what_closes_the_event_only_is_told_to_that_event_only(ledger: Ledger, outcome: Outcome) -> None:
    assert not closes_expiry(outcome)
    told(ledger, expired("e1"), outcome)
    assert ledger.claim(expired("e1"), holder="h2", now=NOW) == Told(completion=completion("e1"), duplicate=False)
    assert claimed(ledger, expired("e2"), "h2").unpublished is None


def test_told_counts_no_delivery_and_takes_no_lease(ledger: Ledger, store: Store) -> None:
    told(ledger, expired(), DELETED)
    before = (cluster_entry(store), entry(store, "event:e1"))
    ledger.claim(expired(), holder="h2", now=NOW)
    assert (cluster_entry(store), entry(store, "event:e1")) == before
    assert before[0].lease is None


def test_what_was_recorded_and_not_published_is_given_to_the_next_who_comes(ledger: Ledger) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.record(claim, DELETED, completion(), now=NOW)
    ledger.release(expired("e1"), holder="h1", now=NOW)
    same = claimed(ledger, expired("e1"))
    assert (same.unpublished, same.duplicate) == (completion(), False)
    ledger.release(expired("e1"), holder="h1", now=NOW)
    other = claimed(ledger, expired("e2"))
    assert (other.unpublished, other.duplicate) == (completion(), True)


def test_who_publishes_publishes_for_all_who_share_the_expiry(ledger: Ledger) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.record(claim, DELETED, completion(), now=NOW)
    ledger.release(expired("e1"), holder="h1", now=NOW)
    other = claimed(ledger, expired("e2"))
    ledger.published(other, now=NOW)
    assert ledger.claim(expired("e1"), holder="h3", now=NOW) == Told(completion=completion(), duplicate=False)
    assert ledger.claim(expired("e2"), holder="h3", now=NOW) == Told(completion=completion(), duplicate=True)
    assert ledger.claim(expired("e3"), holder="h3", now=NOW) == Told(completion=completion(), duplicate=True)


def test_an_event_with_an_end_of_its_own_is_not_published_by_who_closed_the_expiry(ledger: Ledger) -> None:
    skipped = completion("skip", "skipped")
    first = claimed(ledger, expired("e1"))
    ledger.record(first, SKIPPED, skipped, now=NOW)
    ledger.release(expired("e1"), holder="h1", now=NOW)
    second = claimed(ledger, expired("e2"), "h2")
    ledger.record(second, DELETED, completion(), now=NOW)
    ledger.release(expired("e2"), holder="h2", now=NOW)
    again = claimed(ledger, expired("e1"))
    assert (again.unpublished, again.duplicate) == (skipped, False)
    ledger.published(again, now=NOW)
    assert ledger.claim(expired("e1"), holder="h3", now=NOW) == Told(completion=skipped, duplicate=False)
    assert claimed(ledger, expired("e2"), "h2").unpublished == completion()


def test_publishing_gives_the_lease_back_and_works_after_it_was_lost(ledger: Ledger, store: Store) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.record(claim, DELETED, completion(), now=NOW)
    other = claimed(ledger, expired("e1"), "h2", now=NOW + PUBLISHING_LEASE)
    ledger.published(claim, now=NOW + PUBLISHING_LEASE)
    lease = cluster_entry(store).lease
    assert lease is not None
    assert lease.holder == other.holder
    ledger.published(other, now=NOW + PUBLISHING_LEASE)
    assert cluster_entry(store).lease is None


def test_publishing_what_was_never_recorded_marks_nothing(ledger: Ledger) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.published(claim, now=NOW)
    assert claimed(ledger, expired("e1")).unpublished is None


# What is forgotten


def test_an_entry_past_its_time_counts_as_absent(ledger: Ledger) -> None:
    told(ledger, expired("e1"), DELETED)
    last = NOW + KEPT - SECOND
    assert isinstance(ledger.claim(expired("e2"), holder="h2", now=last), Told)
    assert isinstance(ledger.claim(expired("e1"), holder="h2", now=last), Told)
    again = claimed(ledger, expired("e1"), "h2", now=NOW + KEPT)
    assert again.attempt == 1
    assert again.unpublished is None
    assert again.received_at == NOW + KEPT


def test_a_cluster_past_its_time_is_not_known_any_more(ledger: Ledger) -> None:
    claim = claimed(ledger, expired("e1"))
    ledger.delete_sent(claim, cluster(), limit=1, now=NOW)
    again = claimed(ledger, expired("e2", at=EXPIRES_AT - HOUR), "h2", now=NOW + KEPT)
    assert again.deletion is None
    assert again.latest_expiry == EXPIRES_AT - HOUR


def test_every_delivery_makes_the_ledger_remember_for_longer(ledger: Ledger) -> None:
    claimed(ledger, expired("e1"))
    ledger.release(expired("e1"), holder="h1", now=NOW)
    claimed(ledger, expired("e1"), now=NOW + KEPT / 2)
    ledger.release(expired("e1"), holder="h1", now=NOW + KEPT / 2)
    assert claimed(ledger, expired("e1"), now=NOW + KEPT).attempt == 3


def test_an_expiry_far_ahead_is_remembered_until_after_it(ledger: Ledger) -> None:
    far = NOW + timedelta(days=366)
    told(ledger, expired("e1", at=far), SKIPPED)
    assert claimed(ledger, expired("e2"), now=far + KEPT - SECOND).latest_expiry == far


def test_a_store_may_run_a_rule_more_than_once() -> None:
    class Racing(MemoryStore):
        def transact(self, keys: Sequence[str], change: Callable[[Entries], Any]) -> Any:
            change({key: self.entries.get(key) for key in keys})  # lost the race: its writes are dropped
            return super().transact(keys, change)

    store = Racing()
    ledger = Ledger(store)
    claim = claimed(ledger, expired())
    ledger.delete_sent(claim, cluster(), limit=1, now=NOW)
    ledger.delete_answered(claim, Accepted(request_id=None), now=NOW)
    ledger.record(claim, DELETED, completion(), now=NOW)
    ledger.published(claim, now=NOW)
    assert claim.attempt == 1
    assert counted(store) == 1
    assert ledger.claim(expired(), holder="h2", now=NOW) == Told(completion=completion(), duplicate=False)


# Any order of deliveries, crashes and time


@dataclass
class Delivery:
    """A delivery that holds a claim, and what it has done."""

    claim: Claim
    event: Event
    until: datetime
    sent: bool = False
    recorded: bool = False

    @property
    def ref(self) -> ClusterRef:
        assert self.claim.expiry
        return self.claim.expiry.ref


C_2 = replace(REF, cluster_id="c-2")
# Few, so that they meet.
EVENTS = [
    expired("a"),
    expired("b"),
    expired("later", at=EXPIRES_AT + MINUTE),
    expired("other", ref=C_2),
]
LIMIT = 1


class Deliveries(RuleBasedStateMachine):
    """Deliveries that come, work, are put off, end or are killed, in any order, and what must hold all the time."""

    @initialize()
    def start(self) -> None:
        self.store = MemoryStore()
        self.ledger = Ledger(self.store)
        self.now = NOW
        self.holders = 0
        self.recorded = 0
        self.alive: list[Delivery] = []
        self.holding: dict[ClusterRef, Delivery] = {}
        self.latest: dict[ClusterRef, datetime] = {}
        self.pending: dict[ClusterRef, datetime] = {}
        self.counted: list[datetime] = []
        self.ended: dict[str, CompletionEvent] = {}
        self.closed: dict[str, CompletionEvent] = {}
        self.published: set[CompletionEvent] = set()

    def _one(self, number: int) -> Delivery:
        return self.alive[number % len(self.alive)]

    def _asked(self, ask: Callable[[], object]) -> object:
        try:
            return ask()
        except RetryLater as retry:
            return retry.reason

    def _live_holder(self, ref: ClusterRef) -> Delivery | None:
        found = self.holding.get(ref)
        return found if found and found.until > self.now else None

    @rule(span=st.sampled_from([1, 15, 120, 3600]))
    def time_passes(self, span: int) -> None:
        self.now += timedelta(seconds=span)

    @rule(event=st.sampled_from(EVENTS))
    def comes(self, event: Event) -> None:
        expiry = event.asks
        assert not isinstance(expiry, Rejected)
        self.holders += 1
        known = self.ended.get(event.key) or self.closed.get(expiry.key)
        found = self._asked(lambda: self.ledger.claim(event, holder=f"h-{self.holders}", now=self.now))
        if found == "in_progress":
            assert self._live_holder(expiry.ref)
            assert known not in self.published
            self.latest[expiry.ref] = max(expiry.expires_at, self.latest.get(expiry.ref, expiry.expires_at))
            return
        if isinstance(found, Told):
            assert found.completion == known
            assert known in self.published
            assert found.duplicate == (event.key not in self.ended)
            return
        assert isinstance(found, Claim)
        self.latest[expiry.ref] = max(expiry.expires_at, self.latest.get(expiry.ref, expiry.expires_at))
        assert self._live_holder(expiry.ref) is None, "two live holders"
        assert known not in self.published
        assert found.unpublished == known
        assert found.latest_expiry == self.latest[expiry.ref]
        delivery = Delivery(claim=found, event=event, until=self.now + LEASE, recorded=known is not None)
        self.alive.append(delivery)
        self.holding[expiry.ref] = delivery

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9))
    def sends_a_delete(self, number: int) -> None:
        delivery = self._one(number)
        if delivery.recorded:
            return
        expiry = delivery.claim.expiry
        assert expiry
        holds = self.holding.get(delivery.ref) is delivery
        in_the_window = [at for at in self.counted if at > self.now - LIMIT_WINDOW]
        counts = self.pending.get(delivery.ref) != expiry.expires_at
        seen = cluster(delivery.ref)
        found = self._asked(lambda: self.ledger.delete_sent(delivery.claim, seen, limit=LIMIT, now=self.now))
        if found == "deletion_limit":
            assert holds
            assert counts
            assert len(in_the_window) == LIMIT
            return
        assert holds == (found != "in_progress")
        if not holds:
            return
        assert isinstance(found, Superseded) == (self.latest[delivery.ref] > expiry.expires_at)
        if isinstance(found, Deletion):
            delivery.sent = True
            self.pending[delivery.ref] = expiry.expires_at
            self.counted += [self.now] if counts else []

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9))
    def has_its_delete_accepted(self, number: int) -> None:
        delivery = self._one(number)
        if delivery.recorded or not delivery.sent:
            return
        try:
            self.ledger.delete_answered(delivery.claim, Accepted(request_id=None), now=self.now)
        except RetryLater:
            assert self.holding.get(delivery.ref) is not delivery
        else:
            assert self.holding.get(delivery.ref) is delivery

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9), outcome=st.sampled_from([DELETED, GONE, SKIPPED, REFUSED, STUCK]))
    def records(self, number: int, outcome: Outcome) -> None:
        delivery = self._one(number)
        if delivery.recorded:
            return
        self.recorded += 1
        told = completion(str(self.recorded))
        try:
            self.ledger.record(delivery.claim, outcome, told, now=self.now)
        except RetryLater:
            assert self.holding.get(delivery.ref) is not delivery
            return
        assert self.holding.get(delivery.ref) is delivery
        assert delivery.claim.expiry
        assert delivery.event.key not in self.ended
        delivery.recorded, delivery.until = True, self.now + PUBLISHING_LEASE
        self.ended[delivery.event.key] = told
        if closes_expiry(outcome):
            assert delivery.claim.expiry.key not in self.closed, "closed twice"
            self.closed[delivery.claim.expiry.key] = told
        if not isinstance(outcome, Skipped | AlreadyGone):
            self.pending.pop(delivery.ref, None)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9))
    def publishes(self, number: int) -> None:
        delivery = self._one(number)
        if not delivery.recorded:
            return
        assert delivery.claim.expiry
        told = self.ended.get(delivery.event.key) or self.closed[delivery.claim.expiry.key]
        self.ledger.published(delivery.claim, now=self.now)
        self.published.add(told)
        self._leaves(delivery, gives_back=True)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9))
    def is_put_off(self, number: int) -> None:
        delivery = self._one(number)
        self.ledger.release(delivery.event, holder=delivery.claim.holder, now=self.now)
        self._leaves(delivery, gives_back=True)

    @precondition(lambda self: self.alive)
    @rule(number=st.integers(0, 9))
    def is_killed(self, number: int) -> None:
        self._leaves(self._one(number), gives_back=False)

    def _leaves(self, delivery: Delivery, *, gives_back: bool) -> None:
        self.alive.remove(delivery)
        if gives_back and self.holding.get(delivery.ref) is delivery:
            del self.holding[delivery.ref]

    @invariant()
    def no_hour_has_more_deletes_than_the_limit(self) -> None:
        for at in getattr(self, "counted", ()):
            assert sum(at - LIMIT_WINDOW < other <= at for other in self.counted) <= LIMIT

    @invariant()
    def the_ledger_knows_the_holder(self) -> None:
        for ref, delivery in getattr(self, "holding", {}).items():
            lease = cluster_entry(self.store, ref).lease
            assert lease is not None
            assert (lease.holder, lease.until) == (delivery.claim.holder, delivery.until)


Deliveries.TestCase.settings = settings(stateful_step_count=25, deadline=None)
TestDeliveries = Deliveries.TestCase
