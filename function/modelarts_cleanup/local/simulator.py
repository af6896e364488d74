"""
ModelArts in memory over real HTTP: it checks signatures, remembers what it was asked, and fails on demand.

    with Simulator() as simulator:
        cluster = simulator.add_cluster(project_id="p1", name="ci-1")
        simulator.fail(Reset(), on=Call.DELETE_CLUSTER, after_effect=True)
        ...  # point the function at simulator.url, with simulator.credentials_json() as its secret
        assert cluster not in simulator
        assert simulator.count(Call.DELETE_CLUSTER) == 1
"""

import json
import secrets
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Self
from uuid import uuid4

from modelarts_cleanup.local.exchange import Exchange, Request
from modelarts_cleanup.local.faults import Answer, Drip, Drop, Fault, FaultPlan, PlannedFault, Reset, Slow
from modelarts_cleanup.local.modelarts_api import IN_USE, Call, Manners, ModelArtsApi, Refusal
from modelarts_cleanup.local.signature_check import KeyPair
from modelarts_cleanup.local.wire import Wire
from modelarts_cleanup.local.world import (
    NO_LAG,
    ChargingMode,
    Lag,
    SimulatedCluster,
    SimulatedSupernode,
    VisibleFor,
    VisibleForever,
    VisibleForLooks,
    World,
    new_id,
)
from modelarts_cleanup.model import ClusterType

__all__ = [
    "Answer",
    "Call",
    "Drip",
    "Drop",
    "Fault",
    "KeyPair",
    "Lag",
    "Refusal",
    "Request",
    "Reset",
    "SimulatedCluster",
    "SimulatedSupernode",
    "Simulator",
    "Slow",
    "VisibleFor",
    "VisibleForLooks",
    "VisibleForever",
]


def _nothing(_request: Request) -> None:
    pass


def _now() -> datetime:
    return datetime.now(UTC)


class Simulator:
    """
    A ModelArts on a port of loopback.

    Everything may be called from any thread, at any time, also before it serves. `lag` is for clusters that bring
    none of their own. `in_use` refuses the DELETE of a cluster with members; None deletes them with it, which is
    what the vendor's page can be read to say. `empty_list_is_error` and `no_supernodes_is_error` make the lists of
    clusters and of all supernodes answer an error instead of an empty list, as their pages say.

    `on_request` is called when a request has come in and nothing has happened yet, `on_answer` when all has
    happened and nothing is sent yet. Both are attributes that may be set at any time; they hold up only their own
    request, and may call the simulator.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        key_pair: KeyPair | None = None,
        lag: Lag = NO_LAG,
        in_use: Refusal | None = IN_USE,
        empty_list_is_error: bool = False,
        no_supernodes_is_error: bool = False,
        on_request: Callable[[Request], None] = _nothing,
        on_answer: Callable[[Request], None] = _nothing,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.on_request = on_request
        self.on_answer = on_answer
        self._address = (host, port)
        self._clock = clock
        self._lock = threading.Lock()
        self._manners = Manners(
            key_pair=key_pair or _new_key_pair(),
            lag=lag,
            in_use=in_use,
            empty_list_is_error=empty_list_is_error,
            no_supernodes_is_error=no_supernodes_is_error,
        )
        self._world = World()
        self._plan = FaultPlan()
        self._exchange = Exchange(
            ModelArtsApi(self._world, self._manners, clock=clock),
            self._plan,
            hooks=self,
            lock=self._lock,
            clock=clock,
        )
        self._wire: Wire | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Serve, on threads that end with the process; `OSError` if the port is taken, `RuntimeError` if it serves."""
        if self._wire is not None:
            raise RuntimeError("the simulator is serving already")
        host, port = self._address
        self._exchange.resume()
        self._wire = Wire(self._exchange.run, host=host, port=port)

    def close(self) -> None:
        """Stop serving: end every wait, cut every connection. What was remembered stays."""
        self._exchange.hurry()
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    @property
    def url(self) -> str:
        """Where it serves, without a slash at the end; `RuntimeError` if it does not."""
        if self._wire is None:
            raise RuntimeError("the simulator is not serving")
        return self._wire.url

    # The keys

    @property
    def key_pair(self) -> KeyPair:
        """The one key pair that is accepted now."""
        return self._manners.key_pair

    def rotate(
        self, *, access_key: str | None = None, secret_key: str | None = None, security_token: str | None = None
    ) -> KeyPair:
        """Accept another key pair from now on, and no longer the old one; what is not given is made up."""
        made_up = _new_key_pair()
        self._manners.key_pair = KeyPair(
            access_key=access_key or made_up.access_key,
            secret_key=secret_key or made_up.secret_key,
            security_token=security_token,
        )
        return self.key_pair

    def credentials_json(self) -> str:
        """Give the key pair as the text of a credentials file."""
        pair = self.key_pair
        keys = {"access_key": pair.access_key, "secret_key": pair.secret_key, "security_token": pair.security_token}
        return json.dumps({name: value for name, value in keys.items() if value is not None})

    # The world

    def add_cluster(
        self,
        *,
        project_id: str,
        name: str,
        cluster_id: str | None = None,
        type: ClusterType = "HPS",  # noqa: A002 - ModelArts' own word
        subnet_id: str | None = None,
        lag: Lag | None = None,
    ) -> SimulatedCluster:
        """Add a cluster, or replace the one of that project and id; ids that are not given are made up."""
        cluster = SimulatedCluster(
            project_id=project_id,
            cluster_id=cluster_id or new_id(),
            name=name,
            type=type,
            subnet_id=subnet_id or new_id(),
        )
        with self._lock:
            self._world.put_cluster(cluster, lag=lag or self._manners.lag)
        return cluster

    def remove_cluster(self, cluster: SimulatedCluster) -> None:
        """Take a cluster away at once, as if someone else had deleted it; `KeyError` if it is not there."""
        with self._lock:
            self._world.remove_cluster(cluster)

    def clusters(self, project_id: str) -> tuple[SimulatedCluster, ...]:
        """Give the clusters of a project, of both types: what a look would show now, without being one."""
        return tuple(cluster for cluster in self._visible() if cluster.project_id == project_id)

    def __contains__(self, cluster: object) -> bool:
        """Tell whether a look would show a cluster, given itself or by its id."""
        return any(cluster in (standing, standing.cluster_id) for standing in self._visible())

    def _visible(self) -> tuple[SimulatedCluster, ...]:
        with self._lock:
            return tuple(self._world.clusters(now=self._clock()))

    def add_supernode(
        self,
        *,
        project_id: str,
        cluster_id: str | None,
        name: str = "supernode",
        supernode_id: str | None = None,
        status: str = "ACTIVE",
        charging_mode: ChargingMode = "POST_PAID",
        order_id: str | None = None,
    ) -> SimulatedSupernode:
        """Add a supernode, or replace the one of that id; a prepaid one is given an order."""
        order = "CS" + uuid4().hex[:16].upper() if charging_mode == "PRE_PAID" else None
        supernode = SimulatedSupernode(
            project_id=project_id,
            supernode_id=supernode_id or new_id(),
            cluster_id=cluster_id,
            name=name,
            status=status,
            charging_mode=charging_mode,
            order_id=order_id or order,
            created_at=self._clock(),
            hps_id=new_id(),
            server_id=new_id(),
        )
        with self._lock:
            self._world.put_supernode(supernode)
        return supernode

    def remove_supernode(self, supernode: SimulatedSupernode) -> None:
        """Take a supernode away; `KeyError` if it is not there."""
        with self._lock:
            self._world.remove_supernode(supernode.supernode_id)

    def supernodes(self, project_id: str) -> tuple[SimulatedSupernode, ...]:
        """Give the supernodes of a project."""
        with self._lock:
            return self._world.supernodes(project_id)

    # The faults

    def fail(
        self,
        fault: Fault,
        *,
        on: Call | None = None,
        cluster_id: str | None = None,
        times: int | None = 1,
        after_effect: bool = False,
    ) -> None:
        """
        Plan a fault for the next `times` requests that make the call `on`, for that cluster; None means any or ever.

        A request meets one fault at most: the first that is planned for it and not used up. Unless `after_effect`,
        a fault that has an answer of its own, or none, comes before the request is carried out, which never happens.
        `ValueError` for a part of an answer that does not exist before the effect, and for `times` below 1.
        """
        planned = PlannedFault(fault=fault, on=on, cluster_id=cluster_id, times=times, after_effect=after_effect)
        with self._lock:
            self._plan.add(planned)

    def heal(self) -> None:
        """Forget every fault that is still planned."""
        with self._lock:
            self._plan.clear()

    # The record

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request that has come in, in that order, also those that wait for their answer."""
        return self._exchange.requests

    def count(self, call: Call, *, cluster_id: str | None = None) -> int:
        """Count the requests that made a call, for any cluster or for one."""
        return sum(seen.call is call and cluster_id in (None, seen.cluster_id) for seen in self.requests)

    def count_effective_deletes(self, *, cluster_id: str | None = None) -> int:
        """Count the DELETEs that began the deletion of a cluster, whether or not their answer got through."""
        return sum(seen.effective and cluster_id in (None, seen.cluster_id) for seen in self.requests)


def _new_key_pair() -> KeyPair:
    return KeyPair(access_key=secrets.token_hex(10).upper(), secret_key=secrets.token_urlsafe(30))
