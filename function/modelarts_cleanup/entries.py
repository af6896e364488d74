"""What the ledger keeps, entry by entry, and what it asks of the store that keeps them."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, Protocol, TypeAlias, TypeVar

import msgspec

from modelarts_cleanup.model import ClusterType, CompletionEvent

_T = TypeVar("_T")


class Lease(msgspec.Struct, frozen=True):
    """Who works on a cluster, and until when nobody else may."""

    holder: str
    until: datetime


class Deletion(msgspec.Struct, frozen=True):
    """The last DELETE that was sent for a cluster: for which expiry, what ModelArts said, and what was told of it."""

    expires_at: datetime
    type: ClusterType
    name: str
    sent_at: datetime
    accepted: bool = False
    not_found: bool = False
    request_id: str | None = None
    reported: Literal["gone", "stuck"] | None = None


class ClusterEntry(msgspec.Struct, frozen=True, tag="cluster", tag_field="kind"):
    """What is known of a cluster. A rejected event, which has none, takes its lease on an entry of its own."""

    forget_at: datetime
    lease: Lease | None = None
    latest_expiry: datetime | None = None
    deletion: Deletion | None = None


class EventEntry(msgspec.Struct, frozen=True, tag="event", tag_field="kind"):
    """What is known of one event: its deliveries, and its end."""

    forget_at: datetime
    received_at: datetime
    deliveries: int = 0
    completion: CompletionEvent | None = None
    published: bool = False


class ExpiryEntry(msgspec.Struct, frozen=True, tag="expiry", tag_field="kind"):
    """How a logical expiry was closed, whichever event closed it."""

    forget_at: datetime
    completion: CompletionEvent
    published: bool = False


class LimitEntry(msgspec.Struct, frozen=True, tag="limit", tag_field="kind"):
    """When DELETEs were counted in a project within the last hour."""

    forget_at: datetime
    counted: tuple[datetime, ...] = ()


Entry: TypeAlias = ClusterEntry | EventEntry | ExpiryEntry | LimitEntry
Entries: TypeAlias = dict[str, Entry | None]


class Store(Protocol):
    """Where entries live, by key."""

    def transact(self, keys: Sequence[str], change: Callable[[Entries], _T]) -> _T:
        """
        Read entries, let `change` replace some in place, and write those, all or nothing.

        `change` may be called more than once. Raises `RetryLater` with `ledger_unavailable`.
        """
        ...
