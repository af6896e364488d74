"""Remembers what a simulated ModelArts holds: clusters, supernodes, and how long a deleted cluster still shows."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias
from uuid import uuid4

from modelarts_cleanup.model import ClusterType

ChargingMode: TypeAlias = Literal["COMMON", "POST_PAID", "PRE_PAID"]

# Supernodes in one of these states belong to no cluster any more.
GONE_STATUSES = frozenset({"TERMINATED", "DELETED"})


@dataclass(frozen=True, slots=True)
class VisibleForLooks:
    """The cluster is shown so many times more (alone or in a list) after its DELETE was accepted."""

    looks: int


@dataclass(frozen=True, slots=True)
class VisibleFor:
    """The cluster is shown for so long after its DELETE was accepted."""

    span: timedelta


@dataclass(frozen=True, slots=True)
class VisibleForever:
    """The DELETE is accepted, and the cluster never goes."""


Lag: TypeAlias = VisibleForLooks | VisibleFor | VisibleForever

NO_LAG = VisibleForLooks(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCluster:
    """A hyper cluster: all that ModelArts keeps of one."""

    project_id: str
    cluster_id: str
    name: str
    type: ClusterType
    subnet_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSupernode:
    """A supernode with one server; `cluster_id` is None for one outside every cluster."""

    project_id: str
    supernode_id: str
    cluster_id: str | None
    name: str
    status: str
    charging_mode: ChargingMode
    order_id: str | None
    created_at: datetime
    hps_id: str
    server_id: str


@dataclass(slots=True)
class _Standing:
    cluster: SimulatedCluster
    lag: Lag
    deleted_at: datetime | None = None
    looks: int = 0

    def shows(self, now: datetime) -> bool:
        if self.deleted_at is None:
            return True
        match self.lag:
            case VisibleForLooks(looks):
                return self.looks < looks
            case VisibleFor(span):
                return now < self.deleted_at + span
        return True  # VisibleForever


class World:
    """
    The clusters and supernodes of all projects.

    Not thread safe: whoever holds it has the lock. The present is always an argument.
    """

    def __init__(self) -> None:
        self.deletions = 0  # clusters whose deletion has begun
        self._clusters: dict[tuple[str, str], _Standing] = {}
        self._supernodes: dict[str, SimulatedSupernode] = {}

    def put_cluster(self, cluster: SimulatedCluster, *, lag: Lag) -> None:
        """Add a cluster, or replace the one of that project and id."""
        self._clusters[cluster.project_id, cluster.cluster_id] = _Standing(cluster, lag)

    def clusters(self, *, now: datetime) -> Iterator[SimulatedCluster]:
        """Give every cluster that a look would show, of all projects, in the order of adding."""
        return (standing.cluster for standing in self._clusters.values() if standing.shows(now))

    def find_cluster(
        self,
        cluster_id: str,
        *,
        project_id: str,
        type: ClusterType,  # noqa: A002 - ModelArts' own word
        now: datetime,
    ) -> SimulatedCluster | None:
        """Find a cluster that a look would show; one of another type is not found."""
        standing = self._clusters.get((project_id, cluster_id))
        if standing is None or standing.cluster.type != type or not standing.shows(now):
            return None
        return standing.cluster

    def looked_at(self, cluster: SimulatedCluster) -> None:
        """Count that a cluster was shown: it uses up the lag of a deleted one."""
        standing = self._clusters[cluster.project_id, cluster.cluster_id]
        standing.looks += standing.deleted_at is not None

    def delete_cluster(self, cluster: SimulatedCluster, *, now: datetime) -> None:
        """Begin the deletion of a cluster, and with it its supernodes; a second time changes nothing."""
        standing = self._clusters[cluster.project_id, cluster.cluster_id]
        if standing.deleted_at is None:
            standing.deleted_at = now
            self.deletions += 1
            for member in self.members(cluster):
                self.remove_supernode(member.supernode_id)

    def remove_cluster(self, cluster: SimulatedCluster) -> None:
        """Forget a cluster at once, as if someone else had deleted it."""
        del self._clusters[cluster.project_id, cluster.cluster_id]

    def put_supernode(self, supernode: SimulatedSupernode) -> None:
        """Add a supernode, or replace the one of that id."""
        self._supernodes[supernode.supernode_id] = supernode

    def remove_supernode(self, supernode_id: str) -> None:
        """Forget a supernode; `KeyError` if there is none of that id."""
        del self._supernodes[supernode_id]

    def supernodes(self, project_id: str) -> tuple[SimulatedSupernode, ...]:
        """Give the supernodes of a project, in the order of adding."""
        return tuple(node for node in self._supernodes.values() if node.project_id == project_id)

    def members(self, cluster: SimulatedCluster) -> tuple[SimulatedSupernode, ...]:
        """Give the supernodes that are in the cluster and not gone."""
        return tuple(
            node
            for node in self.supernodes(cluster.project_id)
            if node.cluster_id == cluster.cluster_id and node.status not in GONE_STATUSES
        )


def new_id() -> str:
    """Make an id of the form that ModelArts uses."""
    return str(uuid4())
