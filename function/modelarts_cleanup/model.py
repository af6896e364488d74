"""The nouns: ids, the expiry, the cluster with its members, and the closed set of outcomes."""

import re
from datetime import UTC, datetime
from typing import Literal, TypeAlias

import msgspec

REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
PROJECT_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
CLUSTER_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

ClusterType: TypeAlias = Literal["HPS", "ECS"]
CLUSTER_TYPES: tuple[ClusterType, ...] = ("HPS", "ECS")

SkipReason: TypeAlias = Literal[
    "project_not_allowed",
    "region_not_allowed",
    "name_not_allowed",
    "cluster_protected",
    "not_expired",
    "superseded",
    "name_differs",
    "has_members",
    "needs_unsubscribe",
    "dry_run",
]
FailReason: TypeAlias = Literal["refused", "stuck"]
RetryReason: TypeAlias = Literal[
    "in_progress",
    "still_deleting",
    "modelarts_unavailable",
    "throttled",
    "busy",
    "credentials_unavailable",
    "credentials_refused",
    "misconfigured_endpoint",
    "deletion_limit",
    "expires_soon",
    "sink_unavailable",
    "ledger_unavailable",
    "misconfigured",
    "internal_error",
    "request_cut_off",
]


class RetryLater(Exception):  # noqa: N818 - it is no error: it asks for another delivery
    """
    Ask for another delivery: nothing is decided, nothing is lost.

    The only way out of the work sideways. It becomes the answer 503, and nothing else does.
    """

    def __init__(self, reason: RetryReason, detail: str, *, problems: tuple[str, ...] = ()) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.problems = problems
        # Which delivery of its event this was, from 1; None where that is not known.
        self.attempt: int | None = None


class ClusterRef(msgspec.Struct, frozen=True):
    """
    Say which cluster is meant.

    An id becomes part of a path that is signed and deleted, so a reference that is not
    a plain id cannot exist: the constructor raises `ValueError` naming the field.
    """

    region: str
    project_id: str
    cluster_id: str

    def __post_init__(self) -> None:
        for name, pattern in (("region", REGION), ("project_id", PROJECT_ID), ("cluster_id", CLUSTER_ID)):
            if not pattern.fullmatch(getattr(self, name)):
                raise ValueError(f"{name} is not an id")

    @property
    def key(self) -> str:
        """The cluster's name in the ledger; `:` occurs in no id."""
        return f"{self.region}:{self.project_id}:{self.cluster_id}"


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """One cluster whose time is up, as an event asks it."""

    ref: ClusterRef
    expires_at: datetime
    type: ClusterType | None = None
    name: str | None = None
    protected: bool = False
    owner: str | None = None
    reason: str | None = None

    @property
    def key(self) -> str:
        """The logical expiry: events that share it are one piece of work."""
        return f"{self.ref.key}:{instant_text(self.expires_at)}"


class Original(msgspec.Struct, frozen=True, kw_only=True):
    """What came in, as far as it is kept: for a person who asks why it was rejected."""

    content_type: str | None
    head: bytes


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """The attributes of the event that came in; None where it had none that can be read."""

    id: str | None = None
    source: str | None = None
    type: str | None = None
    time: str | None = None
    reason: str | None = None


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """No later delivery could help: the event cannot be understood."""

    field: str
    problem: str
    original: Original
    region: str | None = None
    project_id: str | None = None
    cluster_id: str | None = None


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """
    One event that came in: who it is, and what it asks.

    `key` is its identity, made of `source` and `id`, or of the body where it has none.
    """

    key: str
    cause: Cause
    asks: "Expiry | Rejected"


class Cluster(msgspec.Struct, frozen=True, kw_only=True):
    """A hyper cluster as ModelArts showed it at one look."""

    ref: ClusterRef
    type: ClusterType
    name: str


class Absent(msgspec.Struct, frozen=True, kw_only=True):
    """ModelArts surely has no such cluster, by the answer with this request id."""

    request_id: str | None = None


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A supernode that belongs to a cluster; `prepaid` ones can only be unsubscribed."""

    id: str
    name: str | None
    status: str | None
    prepaid: bool


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """ModelArts took the DELETE. That is not yet gone."""

    request_id: str | None = None


class NotFound(msgspec.Struct, frozen=True, kw_only=True):
    """ModelArts answered the DELETE with "not found"; the look after it will tell."""

    request_id: str | None = None


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """ModelArts will not carry out the DELETE."""

    status: int
    code: str | None
    request_id: str | None = None


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """We sent the DELETE, and the cluster has been seen to be gone."""

    detail: str
    cluster: Cluster | None = None
    request_id: str | None = None


class AlreadyGone(msgspec.Struct, frozen=True, kw_only=True):
    """Surely absent before we asked."""

    detail: str
    request_id: str | None = None


class Skipped(msgspec.Struct, frozen=True, kw_only=True):
    """Our own rules kept the cluster."""

    reason: SkipReason
    detail: str
    cluster: Cluster | None = None
    members: tuple[Member, ...] = ()


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """ModelArts will not delete the cluster; a person must look."""

    reason: FailReason
    detail: str
    cluster: Cluster | None = None
    request_id: str | None = None


Outcome: TypeAlias = Deleted | AlreadyGone | Skipped | Failed | Rejected


class CompletionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """
    The event that reports an outcome, finished: it is stored before it is published.

    `data` is JSON text. A repeated publish sends these very values again.
    """

    id: str
    source: str
    subject: str | None
    time: str
    outcome: str
    data: str


def instant_text(instant: datetime) -> str:
    """Write an instant the one way we write it: RFC 3339, UTC, microseconds only where there are some."""
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
