import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import pytest
from fakes import NOW, REF, FakeClock, FakeClusters, FakeSink, MemoryStore, a_policy, an_event
from hypothesis import given, settings
from hypothesis import strategies as st
from modelarts_cleanup.cleanup import World, cleanup
from modelarts_cleanup.entries import ClusterEntry, LimitEntry
from modelarts_cleanup.guard import Policy
from modelarts_cleanup.ledger import Ledger, Told
from modelarts_cleanup.model import (
    Accepted,
    Cause,
    Cluster,
    ClusterRef,
    ClusterType,
    CompletionEvent,
    Event,
    Member,
    NotFound,
    Original,
    Refused,
    Rejected,
    RetryLater,
    RetryReason,
)
from msgspec.structs import replace

CLUSTER_KEY = f"cluster:{REF.key}"
LIMIT_KEY = "limit:cn-southwest-2:p1"
OTHER = ClusterRef("cn-southwest-2", "p1", "c-2")
HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
A_MEMBER = Member(id="s-1", name="node", status="ACTIVE", prepaid=False)
UNDISTURBED = [
    "claim",
    "look",
    "members",
    "delete_sent",
    "delete",
    "delete_answered",
    "look",
    "record",
    "publish",
    "published",
]


class KilledError(BaseException):
    """The process is no more."""


@dataclass
class Steps:
    """The calls of all ports in their order; the one numbered `crash_at` goes wrong, before or after its effect."""

    names: list[str] = field(default_factory=list)
    crash_at: int | None = None
    after_effect: bool = False
    crash: BaseException = field(default_factory=KilledError)
    dead: bool = False

    def take(self, name: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self.dead:
            raise KilledError
        crashes = len(self.names) == self.crash_at
        self.names.append(name)
        found = call(*arguments, **named) if self.after_effect or not crashes else None
        if crashes:
            self.dead = isinstance(self.crash, KilledError)  # a killed process does not even give its lease back
            raise self.crash
        return found


class Stepped:
    """A port whose calls are steps."""

    def __init__(self, port: object, steps: Steps) -> None:
        self._port = port
        self._steps = steps

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return functools.partial(self._steps.take, name, getattr(self._port, name))


class CountingClusters(FakeClusters):
    """Counts the DELETEs that began a deletion."""

    effective: int = 0

    def delete(self, cluster: Cluster, *, clock: Any) -> Accepted | NotFound | Refused:
        began = cluster.ref.cluster_id in self.there and cluster.ref.cluster_id not in self._going
        answer = super().delete(cluster, clock=clock)
        self.effective += began and isinstance(answer, Accepted)
        return answer


@dataclass
class Bench:
    """The use case with fakes all around it, and one delivery after another."""

    clock: FakeClock = field(default_factory=FakeClock)
    store: MemoryStore = field(default_factory=MemoryStore)
    clusters: CountingClusters = field(default_factory=CountingClusters)
    sink: FakeSink = field(default_factory=FakeSink)
    policy: Policy = field(default_factory=a_policy)
    steps: Steps = field(default_factory=Steps)
    deliveries: int = 0

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.store)

    def deliver(self, event: Event, *, after: timedelta = MINUTE) -> Told:
        self.deliveries += 1
        if self.deliveries > 1:
            self.clock.next_delivery(after)
        world = World(
            policy=self.policy,
            clusters=cast("Any", Stepped(self.clusters, self.steps)),
            ledger=cast("Any", Stepped(self.ledger, self.steps)),
            sink=cast("Any", Stepped(self.sink, self.steps)),
        )
        return cleanup(event, holder=f"delivery-{self.deliveries}", world=world, clock=self.clock)

    def retried(self, event: Event, *, after: timedelta = MINUTE) -> RetryLater:
        with pytest.raises(RetryLater) as raised:
            self.deliver(event, after=after)
        return raised.value

    def brought_to_its_end(self, event: Event) -> Told:
        """Deliver again and again, as Pub/Sub does."""
        for _ in range(20):
            try:
                return self.deliver(event)
            except RetryLater:
                continue
        raise AssertionError("20 deliveries were not enough")

    @property
    def cluster_entry(self) -> ClusterEntry:
        entry = self.store.entries[CLUSTER_KEY]
        assert isinstance(entry, ClusterEntry)
        return entry

    @property
    def counted(self) -> int:
        entry = self.store.entries.get(LIMIT_KEY)
        return len(entry.counted) if isinstance(entry, LimitEntry) else 0


@pytest.fixture
def bench() -> Bench:
    return Bench()


def data(told: Told | CompletionEvent) -> dict[str, Any]:
    completion = told.completion if isinstance(told, Told) else told
    found: dict[str, Any] = json.loads(completion.data)
    return found


def ended(told: Told) -> tuple[str, str | None]:
    return told.completion.outcome, data(told)["reason"]


def a_rejected_event(key: str = "e1") -> Event:
    original = Original(content_type="text/plain", head=b"x")
    return Event(key=key, cause=Cause(), asks=Rejected(field="data", problem="is not JSON", original=original))


# What ends well


def test_an_expired_cluster_is_looked_at_judged_deleted_looked_at_again_and_told(bench: Bench) -> None:
    bench.clusters.add()
    told = bench.deliver(an_event())
    assert ended(told) == ("deleted", None)
    assert not told.duplicate
    assert bench.steps.names == UNDISTURBED
    assert bench.sink.published == [told.completion]


def test_the_completion_event_says_what_was_seen_and_how_it_came_about(bench: Bench) -> None:
    bench.clusters.add(name="ci-b")
    told = data(bench.deliver(an_event(owner="team-a", reason="the branch was merged")))
    assert told["cluster"] == {
        "region": "cn-southwest-2",
        "project_id": "p1",
        "cluster_id": "c-1",
        "type": "HPS",
        "name": "ci-b",
    }
    assert told["modelarts_request_id"] == "delete-1"
    assert told["owner"] == "team-a"
    assert told["attempt"] == 1
    assert told["received_at"] == told["completed_at"] == "2026-07-15T12:00:00Z"
    assert "2026-07-15T12:00:00Z" in told["detail"]


def test_the_lease_is_given_back_at_the_end(bench: Bench) -> None:
    bench.clusters.add()
    bench.deliver(an_event())
    assert bench.cluster_entry.lease is None
    assert bench.cluster_entry.deletion
    assert bench.cluster_entry.deletion.reported == "gone"


def test_a_cluster_that_is_surely_absent_is_already_gone(bench: Bench) -> None:
    told = bench.deliver(an_event())
    assert ended(told) == ("already_gone", None)
    assert data(told)["modelarts_request_id"] == "look-1"
    assert bench.steps.names == ["claim", "look", "record", "publish", "published"]
    assert bench.clusters.deletes == 0


def test_the_type_that_the_event_names_is_the_one_that_is_looked_for(bench: Bench) -> None:
    bench.clusters.add(cluster_type="ECS")
    assert ended(bench.deliver(an_event(type="HPS"))) == ("already_gone", None)


@pytest.mark.parametrize("named", [None, "ECS"])
def test_members_of_a_cluster_of_type_ecs_are_not_looked_for(bench: Bench, named: ClusterType | None) -> None:
    bench.clusters.add(cluster_type="ECS")
    told = bench.deliver(an_event(type=named))
    assert ended(told) == ("deleted", None)
    assert data(told)["cluster"]["type"] == "ECS"
    assert "members" not in bench.steps.names


def test_members_are_not_looked_at_when_the_cluster_need_not_be_empty(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.of["c-1"] = (A_MEMBER,)
    bench.policy = a_policy(require_empty=False)
    assert ended(bench.deliver(an_event())) == ("deleted", None)
    assert "members" not in bench.steps.names


# Whoever asks twice


def test_a_redelivery_is_answered_with_what_was_recorded_and_does_nothing(bench: Bench) -> None:
    bench.clusters.add()
    first = bench.deliver(an_event())
    bench.steps.names.clear()
    assert bench.deliver(an_event()) == first
    assert bench.steps.names == ["claim"]
    assert bench.sink.published == [first.completion]


def test_another_event_for_the_same_expiry_is_a_duplicate(bench: Bench) -> None:
    bench.clusters.add()
    first = bench.deliver(an_event("e1"))
    second = bench.deliver(an_event("e2"))
    assert second == Told(completion=first.completion, duplicate=True)
    assert bench.deliver(an_event("e2")) == second
    assert bench.sink.published == [first.completion]
    assert bench.clusters.deletes == 1


def test_already_gone_closes_the_expiry_too(bench: Bench) -> None:
    first = bench.deliver(an_event("e1"))
    bench.clusters.add()
    assert bench.deliver(an_event("e2")) == Told(completion=first.completion, duplicate=True)
    assert bench.clusters.deletes == 0


def test_a_later_expiry_of_the_same_cluster_is_work_of_its_own(bench: Bench) -> None:
    bench.deliver(an_event("e1"))
    bench.clusters.add()
    told = bench.deliver(an_event("e2", expires_at=NOW - MINUTE))
    assert ended(told) == ("deleted", None)
    assert len({completion.id for completion in bench.sink.published}) == 2


def test_a_skipped_event_closes_only_itself(bench: Bench) -> None:
    bench.clusters.add()
    skipped = bench.deliver(an_event("e1", protected=True))
    assert ended(skipped) == ("skipped", "cluster_protected")
    assert ended(bench.deliver(an_event("e2"))) == ("deleted", None)
    assert bench.deliver(an_event("e1", protected=True)) == skipped
    assert [completion.outcome for completion in bench.sink.published] == ["skipped", "deleted"]


def test_the_id_is_derived_from_the_expiry_only_where_it_is_closed(bench: Bench) -> None:
    gone = bench.deliver(an_event("e1")).completion
    again = Bench().deliver(an_event("e9")).completion
    assert gone.id == again.id
    kept = Bench().deliver(an_event("e1", protected=True)).completion
    other = Bench().deliver(an_event("e2", protected=True)).completion
    assert len({gone.id, kept.id, other.id}) == 3


def test_while_a_delivery_is_at_work_another_one_is_put_off(bench: Bench) -> None:
    bench.clusters.add()
    bench.ledger.claim(an_event(), holder="another", now=NOW)
    assert bench.retried(an_event()).reason == "in_progress"
    assert bench.retried(an_event("e2"), after=timedelta(seconds=119)).reason == "in_progress"
    assert set(bench.steps.names) == {"claim", "release"}
    assert bench.cluster_entry.lease is not None
    assert bench.cluster_entry.lease.holder == "another"


def test_a_lease_that_has_run_out_is_taken_over(bench: Bench) -> None:
    bench.clusters.add()
    bench.ledger.claim(an_event(), holder="another", now=NOW)
    bench.deliveries = 1
    told = bench.deliver(an_event(), after=timedelta(seconds=120))
    assert ended(told) == ("deleted", None)
    assert data(told)["attempt"] == 2


# What is kept


@pytest.mark.parametrize(
    ("changed", "policy", "reason"),
    [
        ({"ref": replace(REF, project_id="p2")}, {}, "project_not_allowed"),
        ({"ref": replace(REF, region="cn-north-4")}, {}, "region_not_allowed"),
        ({"protected": True}, {}, "cluster_protected"),
        ({}, {"protected_clusters": ("c-?",)}, "cluster_protected"),
        ({"expires_at": NOW + HOUR}, {}, "not_expired"),
    ],
)
def test_a_request_that_must_not_be_granted_is_kept_before_any_call(
    bench: Bench, changed: dict[str, Any], policy: dict[str, Any], reason: str
) -> None:
    bench.clusters.add()
    bench.policy = a_policy(**policy)
    assert ended(bench.deliver(an_event(**changed))) == ("skipped", reason)
    assert bench.steps.names == ["claim", "record", "publish", "published"]
    assert bench.clusters.calls == []


@pytest.mark.parametrize(
    ("changed", "policy", "members", "reason"),
    [
        ({"name": "ci-b"}, {}, (), "name_differs"),
        ({}, {"allowed_names": ("ci",)}, (), "name_not_allowed"),
        ({}, {"protected_clusters": ("ci-a",)}, (), "cluster_protected"),
        ({}, {}, (A_MEMBER,), "has_members"),
        ({}, {}, (A_MEMBER, replace(A_MEMBER, prepaid=True)), "needs_unsubscribe"),
        ({}, {"dry_run": True}, (), "dry_run"),
    ],
)
def test_a_cluster_that_must_not_be_deleted_is_kept_once_it_was_seen(
    bench: Bench,
    changed: dict[str, Any],
    policy: dict[str, Any],
    members: tuple[Member, ...],
    reason: str,
) -> None:
    bench.clusters.add()
    bench.clusters.of["c-1"] = members
    bench.policy = a_policy(**policy)
    told = bench.deliver(an_event(**changed))
    assert ended(told) == ("skipped", reason)
    assert bench.steps.names == ["claim", "look", "members", "record", "publish", "published"]
    assert len(data(told).get("members", ())) == len(members)
    assert data(told)["cluster"]["name"] == "ci-a"
    assert bench.counted == 0


def test_protection_wins_over_a_name_that_is_not_allowed(bench: Bench) -> None:
    bench.clusters.add()
    bench.policy = a_policy(allowed_projects=("p2",), protected_clusters=("c-1",))
    assert ended(bench.deliver(an_event()))[0] == "skipped"
    assert bench.clusters.calls == []


@pytest.mark.parametrize(
    ("changed", "members", "reason"),
    [
        ({}, (A_MEMBER,), "has_members"),
        ({"name": "other"}, (), "name_differs"),
        ({"protected": True}, (), "cluster_protected"),
    ],
)
def test_a_dry_run_shows_the_real_decision(
    bench: Bench, changed: dict[str, Any], members: tuple[Member, ...], reason: str
) -> None:
    bench.clusters.add()
    bench.clusters.of["c-1"] = members
    bench.policy = a_policy(dry_run=True)
    assert ended(bench.deliver(an_event(**changed))) == ("skipped", reason)
    assert bench.clusters.deletes == 0


def test_a_dry_run_says_already_gone_of_what_is_gone(bench: Bench) -> None:
    bench.policy = a_policy(dry_run=True)
    assert ended(bench.deliver(an_event())) == ("already_gone", None)


def test_an_expiry_less_than_a_minute_ahead_comes_again(bench: Bench) -> None:
    bench.clusters.add()
    event = an_event(expires_at=NOW + timedelta(seconds=30))
    assert bench.retried(event).reason == "expires_soon"
    assert bench.clusters.calls == []
    assert ended(bench.deliver(event, after=timedelta(seconds=30))) == ("deleted", None)


def test_an_event_is_superseded_by_a_later_expiry_that_was_told_before(bench: Bench) -> None:
    bench.clusters.add()
    assert ended(bench.deliver(an_event("e2", expires_at=NOW + HOUR))) == ("skipped", "not_expired")
    told = bench.deliver(an_event("e1"))
    assert ended(told) == ("skipped", "superseded")
    assert "2026-07-15T13:00:00Z" in data(told)["detail"]
    assert "2026-07-15T11:00:00Z" in data(told)["detail"]
    assert bench.clusters.calls == []


def test_an_event_is_superseded_by_a_later_expiry_that_is_told_while_it_is_judged(bench: Bench) -> None:
    class Meanwhile(CountingClusters):
        def members(self, cluster: Cluster, *, clock: Any) -> tuple[Member, ...]:
            with pytest.raises(RetryLater, match="in_progress"):
                bench.ledger.claim(an_event("e2", expires_at=NOW + HOUR), holder="another", now=clock.now())
            return super().members(cluster, clock=clock)

    bench.clusters = Meanwhile()
    bench.clusters.add()
    told = bench.deliver(an_event("e1"))
    assert ended(told) == ("skipped", "superseded")
    assert "2026-07-15T13:00:00Z" in data(told)["detail"]
    assert data(told)["cluster"]["name"] == "ci-a"
    assert bench.clusters.deletes == 0
    assert bench.counted == 0


def test_an_event_that_cannot_be_understood_is_told_without_any_call(bench: Bench) -> None:
    told = bench.deliver(a_rejected_event())
    assert ended(told) == ("rejected", "invalid_event")
    assert bench.steps.names == ["claim", "record", "publish", "published"]
    assert bench.deliver(a_rejected_event()) == told
    assert bench.sink.published == [told.completion]


# The limit


def test_the_limit_puts_off_what_is_beyond_it_and_gives_the_lease_back(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.add(OTHER)
    bench.policy = a_policy(deletions_per_hour=1)
    assert ended(bench.deliver(an_event("e1"))) == ("deleted", None)
    late = an_event("e2", ref=OTHER)
    retry = bench.retried(late)
    assert retry.reason == "deletion_limit"
    assert "2026-07-15T13:00:00Z" in retry.detail
    assert bench.clusters.deletes == 1
    entry = bench.store.entries[f"cluster:{OTHER.key}"]
    assert isinstance(entry, ClusterEntry)
    assert entry.lease is None
    assert ended(bench.deliver(late, after=HOUR)) == ("deleted", None)


def test_a_limit_of_none_an_hour_deletes_nothing(bench: Bench) -> None:
    bench.clusters.add()
    bench.policy = a_policy(deletions_per_hour=0)
    assert bench.retried(an_event()).reason == "deletion_limit"
    assert bench.clusters.deletes == 0


def test_the_limit_does_not_keep_what_is_gone_or_kept_from_being_told(bench: Bench) -> None:
    bench.policy = a_policy(deletions_per_hour=0)
    assert ended(bench.deliver(an_event("e1"))) == ("already_gone", None)
    bench.clusters.add(OTHER, name="other")
    assert ended(bench.deliver(an_event("e2", ref=OTHER))) == ("skipped", "name_not_allowed")


# The DELETE and what follows


def a_fault(reason: RetryReason = "modelarts_unavailable") -> RetryLater:
    return RetryLater(reason, "no answer to DELETE: ReadTimeout")


def test_a_delete_whose_answer_was_lost_is_sent_again_and_counts_once(bench: Bench) -> None:
    bench.clusters.add()
    bench.policy = a_policy(deletions_per_hour=1)
    bench.clusters.answer_to_delete = a_fault()
    assert bench.retried(an_event()).reason == "modelarts_unavailable"
    assert bench.retried(an_event()).reason == "modelarts_unavailable"
    bench.clusters.answer_to_delete = None
    told = bench.deliver(an_event())
    assert ended(told) == ("deleted", None)
    assert data(told)["attempt"] == 3
    assert bench.clusters.deletes == 3
    assert bench.counted == 1


def test_a_delete_whose_answer_was_lost_is_not_sent_again_once_the_cluster_is_gone(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = a_fault()
    bench.retried(an_event())
    bench.clusters.there.clear()
    told = bench.deliver(an_event())
    assert ended(told) == ("deleted", None)
    assert data(told)["cluster"] == {**data(told)["cluster"], "type": "HPS", "name": "ci-a"}
    assert bench.clusters.deletes == 1


@pytest.mark.parametrize(
    ("changed", "policy", "reason"),
    [
        ({}, {"protected_clusters": ("ci-a",)}, "cluster_protected"),
        ({}, {"protected_clusters": ("c-1",)}, "cluster_protected"),
        ({}, {"dry_run": True}, "dry_run"),
    ],
)
def test_before_a_delete_is_sent_again_every_rule_is_asked_again(
    bench: Bench, changed: dict[str, Any], policy: dict[str, Any], reason: str
) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = a_fault()
    bench.retried(an_event(**changed))
    bench.policy = a_policy(**policy)
    assert ended(bench.deliver(an_event(**changed))) == ("skipped", reason)
    assert bench.clusters.deletes == 1


def test_a_later_expiry_told_after_a_lost_answer_keeps_the_delete_from_being_sent_again(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = a_fault()
    bench.retried(an_event("e1"))
    assert ended(bench.deliver(an_event("e2", expires_at=NOW + HOUR))) == ("skipped", "not_expired")
    assert ended(bench.deliver(an_event("e1"))) == ("skipped", "superseded")
    assert bench.clusters.deletes == 1


@pytest.mark.parametrize("reason", ["throttled", "busy", "credentials_refused", "misconfigured_endpoint"])
def test_a_fault_of_the_delete_puts_the_event_off_for_the_same_reason(bench: Bench, reason: RetryReason) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = a_fault(reason)
    retry = bench.retried(an_event())
    assert retry.reason == reason
    assert retry.attempt == 1
    assert bench.cluster_entry.lease is None


def test_a_delete_that_modelarts_accepted_is_never_sent_again(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 10_000
    reasons = [bench.retried(an_event()).reason for _ in range(5)]
    assert reasons == ["still_deleting"] * 5
    assert bench.clusters.deletes == 1
    bench.clusters.there.clear()
    told = bench.deliver(an_event())
    assert ended(told) == ("deleted", None)
    assert data(told)["attempt"] == 6
    assert data(told)["modelarts_request_id"] == "delete-1"
    assert bench.clusters.deletes == 1


def test_looking_goes_on_within_one_delivery_until_the_cluster_is_gone(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 5
    assert ended(bench.deliver(an_event())) == ("deleted", None)
    assert bench.steps.names.count("look") == 7
    assert NOW < bench.clock.now() < NOW + timedelta(seconds=30)


def test_looking_ends_while_there_is_time_left_to_answer(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 10_000
    bench.retried(an_event())
    assert timedelta(seconds=20) < bench.clock.now() - NOW <= timedelta(seconds=30)


def test_looking_ends_with_the_time_of_the_delivery(bench: Bench) -> None:
    bench.clock = FakeClock(left=timedelta(seconds=5))
    bench.clusters.add()
    bench.clusters.looks_after_delete = 10_000
    assert bench.retried(an_event()).reason == "still_deleting"
    assert bench.clock.left() > timedelta()


def test_a_fault_of_the_look_after_the_delete_does_not_send_it_again(bench: Bench) -> None:
    class Blind(CountingClusters):
        def delete(self, cluster: Cluster, *, clock: Any) -> Accepted | NotFound | Refused:
            self.fault_on_look = RetryLater("throttled", "429")
            return super().delete(cluster, clock=clock)

    bench.clusters = Blind()
    bench.clusters.add()
    assert bench.retried(an_event()).reason == "throttled"
    bench.clusters.fault_on_look = None
    assert ended(bench.deliver(an_event())) == ("deleted", None)
    assert bench.clusters.deletes == 1


@pytest.mark.parametrize("step", ["look", "members"])
def test_what_cannot_be_read_is_no_ground_to_delete(bench: Bench, step: str) -> None:
    bench.clusters.add()
    setattr(bench.clusters, f"fault_on_{step}", a_fault())
    assert bench.retried(an_event()).reason == "modelarts_unavailable"
    assert bench.clusters.deletes == 0
    assert bench.sink.published == []
    assert bench.cluster_entry.lease is None


def test_not_found_as_answer_to_the_delete_is_confirmed_by_the_look_after_it(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = NotFound(request_id="delete-2")
    assert bench.retried(an_event()).reason == "still_deleting"
    bench.clusters.there.clear()
    told = bench.deliver(an_event())
    assert ended(told) == ("deleted", None)


def test_not_found_as_answer_to_the_delete_of_what_is_gone_by_then_is_deleted(bench: Bench) -> None:
    class GoneMeanwhile(CountingClusters):
        def delete(self, cluster: Cluster, *, clock: Any) -> Accepted | NotFound | Refused:
            self.there.clear()
            return super().delete(cluster, clock=clock)

    bench.clusters = GoneMeanwhile()
    bench.clusters.add()
    bench.clusters.answer_to_delete = NotFound(request_id="delete-2")
    told = bench.deliver(an_event())
    assert ended(told) == ("deleted", None)
    assert data(told)["modelarts_request_id"] == "delete-2"


def test_not_found_for_an_hour_while_the_cluster_is_shown_is_stuck(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = NotFound()
    assert bench.retried(an_event()).reason == "still_deleting"
    assert bench.retried(an_event(), after=timedelta(minutes=30)).reason == "still_deleting"
    assert ended(bench.deliver(an_event(), after=timedelta(minutes=30))) == ("failed", "stuck")


def test_a_delete_that_modelarts_refuses_has_failed(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = Refused(status=403, code="ModelArts.6344", request_id="delete-3")
    told = bench.deliver(an_event())
    assert ended(told) == ("failed", "refused")
    assert data(told)["modelarts_request_id"] == "delete-3"
    assert "403 ModelArts.6344" in data(told)["detail"]
    assert bench.steps.names[-4:] == ["delete", "record", "publish", "published"]


def test_a_refusal_without_a_code_says_so(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = Refused(status=403, code=None)
    assert "403 (no code)" in data(bench.deliver(an_event()))["detail"]


def test_after_a_refusal_another_event_may_try_again_and_is_counted_again(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = Refused(status=403, code=None)
    bench.deliver(an_event("e1"))
    bench.clusters.answer_to_delete = None
    assert ended(bench.deliver(an_event("e2"))) == ("deleted", None)
    assert bench.counted == 2


def test_a_cluster_that_someone_else_removed_after_a_refusal_is_already_gone(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = Refused(status=403, code=None)
    bench.deliver(an_event("e1"))
    bench.clusters.there.clear()
    assert ended(bench.deliver(an_event("e2"))) == ("already_gone", None)


def made_stuck(bench: Bench) -> Told:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 10_000
    assert bench.retried(an_event("e1")).reason == "still_deleting"
    assert bench.retried(an_event("e1"), after=timedelta(minutes=58)).reason == "still_deleting"
    return bench.deliver(an_event("e1"))


def test_an_hour_after_the_delete_a_cluster_that_is_still_there_is_stuck(bench: Bench) -> None:
    told = made_stuck(bench)
    assert ended(told) == ("failed", "stuck")
    assert "2026-07-15T12:00:00Z" in data(told)["detail"]
    assert data(told)["modelarts_request_id"] == "delete-1"
    assert bench.clusters.deletes == 1
    assert bench.deliver(an_event("e1")) == told


def test_after_stuck_another_event_may_try_again_and_is_counted_again(bench: Bench) -> None:
    made_stuck(bench)
    bench.clusters.looks_after_delete = 0
    assert ended(bench.deliver(an_event("e2"))) == ("deleted", None)
    assert bench.clusters.deletes == 2
    assert bench.counted == 1  # the first one left the window


def test_after_stuck_another_event_is_judged_by_every_rule(bench: Bench) -> None:
    made_stuck(bench)
    bench.policy = a_policy(protected_clusters=("ci-*",))
    assert ended(bench.deliver(an_event("e2"))) == ("skipped", "cluster_protected")
    assert bench.clusters.deletes == 1


def test_a_cluster_found_gone_after_stuck_is_still_our_doing(bench: Bench) -> None:
    made_stuck(bench)
    bench.clusters.there.clear()
    assert ended(bench.deliver(an_event("e2"))) == ("deleted", None)
    assert bench.clusters.deletes == 1


def test_a_cluster_found_gone_after_the_delete_of_another_expiry_is_deleted(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 10_000
    bench.retried(an_event("e1"))
    bench.clusters.there.clear()
    assert ended(bench.deliver(an_event("e2", expires_at=NOW - MINUTE))) == ("deleted", None)


def test_an_expiry_that_sent_the_delete_is_followed_to_its_end_whatever_was_told_meanwhile(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 10_000
    bench.retried(an_event("e1"))
    bench.deliver(an_event("e2", expires_at=NOW + HOUR))
    bench.clusters.there.clear()
    assert ended(bench.deliver(an_event("e1"))) == ("deleted", None)


# Recorded, and then told


@pytest.mark.parametrize("outcome", ["deleted", "already_gone", "skipped", "failed", "rejected"])
def test_while_the_sink_is_down_the_event_comes_again_and_the_same_bytes_are_published(
    bench: Bench, outcome: str
) -> None:
    event = a_rejected_event() if outcome == "rejected" else an_event(protected=outcome == "skipped")
    if outcome in ("deleted", "failed"):
        bench.clusters.add()
    if outcome == "failed":
        bench.clusters.answer_to_delete = Refused(status=403, code=None)
    bench.sink.down = True
    retry = bench.retried(event)
    assert retry.reason == "sink_unavailable"
    assert retry.attempt == 1
    deletes = bench.clusters.deletes
    recorded = bench.ledger.claim(event, holder="looking", now=bench.clock.now())
    assert not isinstance(recorded, Told)
    bench.ledger.release(event, holder="looking", now=bench.clock.now())
    bench.sink.down = False
    bench.steps.names.clear()
    told = bench.deliver(event, after=timedelta())
    assert told.completion == recorded.unpublished
    assert told.completion.outcome == outcome
    assert bench.steps.names == ["claim", "publish", "published"]
    assert bench.sink.published == [told.completion]
    assert bench.clusters.deletes == deletes


def test_a_duplicate_publishes_what_another_event_could_not(bench: Bench) -> None:
    bench.clusters.add()
    bench.sink.down = True
    bench.retried(an_event("e1"))
    bench.sink.down = False
    second = bench.deliver(an_event("e2"))
    assert second.duplicate
    assert bench.sink.published == [second.completion]
    first = bench.deliver(an_event("e1"))
    assert first == Told(completion=second.completion, duplicate=False)
    assert bench.sink.published == [second.completion]


def test_the_lease_is_given_back_after_every_way_out(bench: Bench) -> None:
    bench.clusters.add()
    bench.steps.crash_at = 2
    bench.steps.crash = RuntimeError("a mistake of ours")
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        bench.deliver(an_event())
    assert bench.steps.names == ["claim", "look", "members", "release"]
    assert bench.cluster_entry.lease is None


def test_what_went_wrong_first_is_the_answer_even_if_the_lease_cannot_be_given_back(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.fault_on_look = RetryLater("throttled", "429")
    bench.store.fail_at = 2
    assert bench.retried(an_event()).reason == "throttled"
    assert bench.cluster_entry.lease is not None


@pytest.mark.parametrize("lose_answer", [False, True], ids=["not-written", "answer-lost"])
@pytest.mark.parametrize("transaction", range(1, 6))
def test_a_ledger_that_fails_at_any_transaction_puts_the_event_off(
    bench: Bench, transaction: int, *, lose_answer: bool
) -> None:
    bench.clusters.add()
    bench.store.fail_at, bench.store.lose_answer = transaction, lose_answer
    assert bench.retried(an_event()).reason == "ledger_unavailable"
    told = bench.deliver(an_event(), after=timedelta(seconds=121))
    assert ended(told) == ("deleted", None)
    assert set(bench.sink.published) == {told.completion}
    assert bench.clusters.effective == 1
    assert bench.counted == 1


def test_a_delivery_that_lost_its_lease_neither_deletes_nor_records(bench: Bench) -> None:
    class SoSlow(CountingClusters):
        def look(self, ref: ClusterRef, cluster_type: ClusterType | None, *, clock: Any) -> Any:
            bench.clock.next_delivery(timedelta(seconds=121))
            bench.ledger.claim(an_event(), holder="another", now=clock.now())
            return super().look(ref, cluster_type, clock=clock)

    bench.clusters = SoSlow()
    bench.clusters.add()
    assert bench.retried(an_event()).reason == "in_progress"
    assert bench.clusters.deletes == 0
    assert bench.cluster_entry.lease is not None
    assert bench.cluster_entry.lease.holder == "another"
    bench.clusters.there.clear()
    assert bench.retried(an_event(), after=timedelta(seconds=121)).reason == "in_progress"
    assert bench.sink.published == []


# A process that ends at any step


@dataclass(frozen=True)
class Scenario:
    """One event, what stands before it, and how it must end whatever happens in between."""

    outcome: str
    reason: str | None = None
    event: Event = field(default_factory=an_event)
    policy: dict[str, Any] = field(default_factory=dict)
    there: bool = True
    looks: int = 0
    answer: NotFound | Refused | None = None
    members: tuple[Member, ...] = ()

    def set_up(self) -> Bench:
        bench = Bench(policy=a_policy(deletions_per_hour=1, **self.policy))
        if self.there:
            bench.clusters.add()
        bench.clusters.looks_after_delete = self.looks
        bench.clusters.answer_to_delete = self.answer
        bench.clusters.of["c-1"] = self.members
        return bench

    def steps(self) -> list[str]:
        bench = self.set_up()
        bench.deliver(self.event)
        return bench.steps.names


SCENARIOS = {
    "deleted": Scenario("deleted"),
    "deleted_slowly": Scenario("deleted", looks=2),
    "already_gone": Scenario("already_gone", there=False),
    "kept": Scenario("skipped", "has_members", members=(A_MEMBER,)),
    "dry_run": Scenario("skipped", "dry_run", policy={"dry_run": True}),
    "refused": Scenario("failed", "refused", answer=Refused(status=403, code=None)),
    "rejected": Scenario("rejected", "invalid_event", event=a_rejected_event()),
}
CRASHES = [
    pytest.param(scenario, number, after_effect, id=f"{name}-{'after' if after_effect else 'at'}-{number}-{step}")
    for name, scenario in SCENARIOS.items()
    for number, step in enumerate(scenario.steps())
    for after_effect in (False, True)
]


def assert_told_once(bench: Bench, scenario: Scenario, told: Told) -> None:
    assert ended(told) == (scenario.outcome, scenario.reason)
    assert set(bench.sink.published) == {told.completion}
    assert bench.clusters.effective == (scenario.outcome == "deleted")
    assert bench.counted == (scenario.outcome in ("deleted", "failed"))
    published, deletes = list(bench.sink.published), bench.clusters.deletes
    assert bench.deliver(scenario.event) == told
    assert bench.sink.published == published
    assert bench.clusters.deletes == deletes


@pytest.mark.parametrize(("scenario", "number", "after_effect"), CRASHES)
def test_a_process_killed_at_any_step_leaves_what_a_redelivery_brings_to_the_same_end(
    scenario: Scenario, number: int, *, after_effect: bool
) -> None:
    bench = scenario.set_up()
    bench.steps = Steps(crash_at=number, after_effect=after_effect)
    with pytest.raises(KilledError):
        bench.deliver(scenario.event)
    bench.steps = Steps()
    assert_told_once(bench, scenario, bench.brought_to_its_end(scenario.event))
    assert bench.deliveries <= 4 + (number == 0)


@pytest.mark.parametrize(("scenario", "number", "after_effect"), CRASHES)
def test_an_exception_out_of_any_step_gives_the_lease_back_and_the_next_delivery_ends_the_work(
    scenario: Scenario, number: int, *, after_effect: bool
) -> None:
    bench = scenario.set_up()
    bench.steps = Steps(crash_at=number, after_effect=after_effect, crash=SystemExit())
    with pytest.raises(SystemExit):
        bench.deliver(scenario.event)
    bench.steps = Steps()
    # Only a lease whose claim was never answered is left to run out.
    lost_claim = number == 0 and after_effect
    told = bench.deliver(scenario.event, after=timedelta(seconds=120 if lost_claim else 1))
    assert_told_once(bench, scenario, told)


@settings(deadline=None)
@given(
    st.sampled_from(sorted(SCENARIOS)),
    st.lists(st.tuples(st.integers(0, 12), st.booleans(), st.booleans()), max_size=6),
)
def test_however_often_processes_end_the_event_is_told_once(name: str, crashes: list[tuple[int, bool, bool]]) -> None:
    scenario = SCENARIOS[name]
    bench = scenario.set_up()
    for number, after_effect, killed in crashes:
        crash = KilledError() if killed else SystemExit()
        bench.steps = Steps(crash_at=number, after_effect=after_effect, crash=crash)
        try:
            bench.deliver(scenario.event)
        except (KilledError, SystemExit, RetryLater):
            continue
    bench.steps = Steps()
    assert_told_once(bench, scenario, bench.brought_to_its_end(scenario.event))


def test_a_delete_that_finds_nothing_is_sent_again_while_the_cluster_is_shown_and_is_stuck_after_an_hour(
    bench: Bench,
) -> None:
    bench.clusters.add()
    bench.clusters.answer_to_delete = NotFound(request_id="delete-1")
    for _ in range(2):
        with pytest.raises(RetryLater, match="still_deleting"):
            bench.deliver(an_event())
        bench.clock.next_delivery(after=timedelta(minutes=20))
    assert bench.clusters.deletes == 2
    bench.clock.next_delivery(after=timedelta(minutes=20))
    assert ended(bench.deliver(an_event())) == ("failed", "stuck")


def test_what_an_expirys_own_delete_did_is_deleted_though_another_expiry_told_it_first(bench: Bench) -> None:
    bench.clusters.add()
    bench.clusters.looks_after_delete = 100
    with pytest.raises(RetryLater, match="still_deleting"):
        bench.deliver(an_event("a"))
    del bench.clusters.there[REF.cluster_id]
    later, latest = (NOW - timedelta(minutes=minutes) for minutes in (30, 20))
    assert ended(bench.deliver(an_event("b", expires_at=later))) == ("deleted", None)
    assert ended(bench.deliver(an_event("a"))) == ("deleted", None)
    assert ended(bench.deliver(an_event("c", expires_at=latest))) == ("already_gone", None)
    assert bench.clusters.deletes == 1
