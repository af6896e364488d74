"""In-memory stand-ins for the ports of the use case, and a clock that only moves when told."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from modelarts_cleanup.cleanup import Clock
from modelarts_cleanup.entries import Entries, Entry
from modelarts_cleanup.guard import Policy
from modelarts_cleanup.model import (
    Absent,
    Accepted,
    Cause,
    Cluster,
    ClusterRef,
    ClusterType,
    CompletionEvent,
    Event,
    Expiry,
    Member,
    NotFound,
    Refused,
    RetryLater,
)

T = TypeVar("T")

NOW = datetime(2026, 7, 15, 12, 0, tzinfo=UTC)
REF = ClusterRef("cn-southwest-2", "p1", "c-1")


class FakeClock:
    """A clock at `NOW`; sleeping moves it on, and `left` falls with it."""

    def __init__(self, now: datetime = NOW, left: timedelta = timedelta(seconds=40)) -> None:
        self._now = now
        self._until = now + left

    def now(self) -> datetime:
        return self._now

    def left(self) -> timedelta:
        return self._until - self._now

    def sleep(self, span: timedelta) -> None:
        self._now += span

    def next_delivery(self, after: timedelta = timedelta()) -> None:
        self._now += after
        self._until = self._now + timedelta(seconds=40)


class MemoryStore:
    """A ledger's entries in a dict; `down` makes the n-th transaction from now fail, before or after it was written."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.fail_at: int | None = None
        self.lose_answer = False
        self.transactions = 0

    def transact(self, keys: Sequence[str], change: Callable[[Entries], T]) -> T:
        self.transactions += 1
        failing = self.fail_at == self.transactions
        if failing and not self.lose_answer:
            raise RetryLater("ledger_unavailable", "down")
        entries: Entries = {key: copy.deepcopy(self.entries.get(key)) for key in keys}
        found = change(entries)
        assert set(entries) == set(keys), "a rule touched an entry that it did not ask for"
        self.entries |= {key: entry for key, entry in entries.items() if entry is not None}
        if failing:
            raise RetryLater("ledger_unavailable", "answer lost")
        return found


@dataclass
class FakeClusters:
    """The clusters of ModelArts as a dict; answers to the next calls can be put first."""

    there: dict[str, Cluster] = field(default_factory=dict)
    of: dict[str, tuple[Member, ...]] = field(default_factory=dict)
    looks_after_delete: int = 0
    answer_to_delete: Accepted | NotFound | Refused | RetryLater | None = None
    fault_on_look: RetryLater | None = None
    fault_on_members: RetryLater | None = None
    calls: list[str] = field(default_factory=list)
    _going: dict[str, int] = field(default_factory=dict)

    def add(self, ref: ClusterRef = REF, name: str = "ci-a", cluster_type: ClusterType = "HPS") -> Cluster:
        cluster = Cluster(ref=ref, type=cluster_type, name=name)
        self.there[ref.cluster_id] = cluster
        return cluster

    def look(self, ref: ClusterRef, cluster_type: ClusterType | None, *, clock: Clock) -> Cluster | Absent:
        self.calls.append("look")
        if self.fault_on_look:
            raise self.fault_on_look
        if ref.cluster_id in self._going:
            if self._going[ref.cluster_id] == 0:
                self.there.pop(ref.cluster_id, None)
            self._going[ref.cluster_id] -= 1
        found = self.there.get(ref.cluster_id)
        if found is None or cluster_type not in (None, found.type):
            return Absent(request_id="look-1")
        return found

    def members(self, cluster: Cluster, *, clock: Clock) -> tuple[Member, ...]:
        self.calls.append("members")
        if self.fault_on_members:
            raise self.fault_on_members
        return self.of.get(cluster.ref.cluster_id, ())

    def delete(self, cluster: Cluster, *, clock: Clock) -> Accepted | NotFound | Refused:
        self.calls.append("delete")
        if isinstance(self.answer_to_delete, RetryLater):
            raise self.answer_to_delete
        if isinstance(self.answer_to_delete, NotFound | Refused):
            return self.answer_to_delete
        self._going[cluster.ref.cluster_id] = self.looks_after_delete
        return Accepted(request_id="delete-1")

    @property
    def deletes(self) -> int:
        return self.calls.count("delete")


@dataclass
class FakeSink:
    """Keeps what was published; `down` refuses."""

    published: list[CompletionEvent] = field(default_factory=list)
    down: bool = False

    def publish(self, completion: CompletionEvent) -> None:
        if self.down:
            raise RetryLater("sink_unavailable", "down")
        self.published.append(completion)


def an_expiry(**changed: object) -> Expiry:
    given: dict[str, object] = {"ref": REF, "expires_at": NOW - timedelta(hours=1), **changed}
    return Expiry(**given)  # type: ignore[arg-type]


def an_event(key: str = "e1", **changed: object) -> Event:
    cause = Cause(id=key, source="//test", type="dev.modelarts-cleanup.cluster.expired.v1")
    return Event(key=key, cause=cause, asks=an_expiry(**changed))


def a_policy(**changed: object) -> Policy:
    given: dict[str, object] = {
        "region": "cn-southwest-2",
        "allowed_projects": ("p1",),
        "allowed_names": ("ci-*",),
        "dry_run": False,
        **changed,
    }
    return Policy(**given)  # type: ignore[arg-type]
