"""Answers the calls of ModelArts' API from a world in memory, once the signature has been checked."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from typing import Final, TypeGuard

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, MapAdapter, Rule
from werkzeug.wrappers import Request, Response

from modelarts_cleanup.local.signature_check import KeyPair, SignedRequest, objection_to_signature
from modelarts_cleanup.local.world import NO_LAG, Lag, SimulatedCluster, SimulatedSupernode, World, new_id
from modelarts_cleanup.model import CLUSTER_TYPES, ClusterType

_NAME = re.compile(r"[-_.a-zA-Z0-9]{1,64}")
_SUBNET_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAX_PAGE: Final = 1024


class Call(StrEnum):
    """The calls of the API that are answered; UNKNOWN is any other."""

    CREATE_CLUSTER = "create_cluster"
    LIST_CLUSTERS = "list_clusters"
    SHOW_CLUSTER = "show_cluster"
    DELETE_CLUSTER = "delete_cluster"
    LIST_SUPERNODES = "list_supernodes"
    PAGE_SUPERNODES = "page_supernodes"
    SHOW_SUPERNODE = "show_supernode"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error in the shape of ModelArts: HTTP status, code, text."""

    status: int
    code: str
    message: str


# The status and code of an absent cluster and of one in use are guesses: no live account has shown them.
ABSENT: Final = Refusal(400, "ModelArts.6404", "The resource is not found.")
IN_USE: Final = Refusal(403, "ModelArts.6344", "Delete the associated objects first.")
_INVALID: Final = Refusal(400, "ModelArts.0101", "Invalid argument.")
_OTHER_PROJECT: Final = Refusal(403, "ModelArts.0210", "The project ID in the URL differs from that of the credential.")
_NO_SUCH_API: Final = Refusal(404, "APIGW.0101", "The API does not exist or has not been published.")
_BAD_SIGNATURE: Final = Refusal(401, "APIGW.0301", "Incorrect IAM authentication information")


@dataclass(slots=True, kw_only=True)
class Manners:
    """What differs from one simulated ModelArts to another; may be changed while it serves."""

    key_pair: KeyPair
    lag: Lag = NO_LAG
    in_use: Refusal | None = IN_USE
    empty_list_is_error: bool = False
    no_supernodes_is_error: bool = False


@cache
def _routes() -> MapAdapter:
    clusters = "/v1/<project_id>/dev-servers/hyper-clusters"
    supernodes = "/v1/<project_id>/dev-servers/hyperinstance"
    rules = [
        Rule(clusters, endpoint=Call.CREATE_CLUSTER, methods=["POST"]),
        Rule(clusters, endpoint=Call.LIST_CLUSTERS, methods=["GET"]),
        Rule(f"{clusters}/<cluster_id>", endpoint=Call.SHOW_CLUSTER, methods=["GET"]),
        Rule(f"{clusters}/<cluster_id>", endpoint=Call.DELETE_CLUSTER, methods=["DELETE"]),
        Rule(supernodes, endpoint=Call.PAGE_SUPERNODES, methods=["GET"]),
        Rule(f"{supernodes}/all", endpoint=Call.LIST_SUPERNODES, methods=["GET"]),
        Rule(f"{supernodes}/<supernode_id>", endpoint=Call.SHOW_SUPERNODE, methods=["GET"]),
    ]
    return Map(rules, merge_slashes=False).bind("modelarts")


def identify(request: Request) -> tuple[Call, Mapping[str, str]]:
    """Tell which call a request makes, and with which ids in its path."""
    try:
        call, ids = _routes().match(request.path, method=request.method)
    except HTTPException:
        return Call.UNKNOWN, {}
    return Call(call), ids


class ModelArtsApi:
    """
    The API over a world.

    Not thread safe: whoever asks it has the lock of the world.
    """

    def __init__(self, world: World, manners: Manners, *, clock: Callable[[], datetime]) -> None:
        self._world = world
        self._manners = manners
        self._clock = clock
        self._views: Mapping[Call, Callable[..., Response]] = {
            Call.CREATE_CLUSTER: self._create_cluster,
            Call.LIST_CLUSTERS: self._list_clusters,
            Call.SHOW_CLUSTER: self._show_cluster,
            Call.DELETE_CLUSTER: self._delete_cluster,
            Call.LIST_SUPERNODES: self._list_supernodes,
            Call.PAGE_SUPERNODES: self._page_supernodes,
            Call.SHOW_SUPERNODE: self._show_supernode,
        }

    @property
    def deletions(self) -> int:
        """How many clusters' deletion has begun."""
        return self._world.deletions

    def answer(self, request: Request, call: Call, ids: Mapping[str, str], *, request_id: str) -> Response:
        """Answer a request of which `identify` told the call and the ids."""
        if call is Call.UNKNOWN:  # the gateway says so before it looks at a signature
            return _gateway_refuses(_NO_SUCH_API, "check method and path", request_id=request_id)
        signed = SignedRequest(
            method=request.method,
            target=request.environ["RAW_URI"],
            headers={name.lower(): value for name, value in request.headers},
            body=request.get_data(),
        )
        objection = objection_to_signature(signed, key_pair=self._manners.key_pair, now=self._clock())
        if objection is not None:
            return _gateway_refuses(_BAD_SIGNATURE, objection, request_id=request_id)
        if request.headers.get("X-Project-Id", ids["project_id"]) != ids["project_id"]:
            return _refuse(_OTHER_PROJECT)
        return self._views[call](request, **ids)

    def _create_cluster(self, request: Request, project_id: str) -> Response:
        body = request.get_json(force=True, silent=True)
        asked: dict[str, object] = body if isinstance(body, dict) else {}
        name, type_ = asked.get("name"), asked.get("type", "HPS")
        subnet_id = asked.get("hyper_cluster_subnet_id", new_id())
        if not (_fits(name, _NAME) and _fits(subnet_id, _SUBNET_ID) and _is_type(type_)):
            return _refuse(_INVALID)
        cluster = SimulatedCluster(
            project_id=project_id, cluster_id=new_id(), name=name, type=type_, subnet_id=subnet_id
        )
        self._world.put_cluster(cluster, lag=self._manners.lag)
        return _json(_cluster(cluster))

    def _list_clusters(self, request: Request, project_id: str) -> Response:
        type_ = request.args.get("type", "HPS")
        if not _is_type(type_):
            return _refuse(_INVALID)
        shown = [
            cluster
            for cluster in self._world.clusters(now=self._clock())
            if (cluster.project_id, cluster.type) == (project_id, type_)
        ]
        for cluster in shown:
            self._world.looked_at(cluster)
        if not shown and self._manners.empty_list_is_error:
            return _refuse(ABSENT)
        return _json({"hyper_clusters": [_cluster(cluster) for cluster in shown]})

    def _show_cluster(self, request: Request, project_id: str, cluster_id: str) -> Response:
        found = self._find(request, project_id, cluster_id)
        if isinstance(found, Refusal):
            return _refuse(found)
        self._world.looked_at(found)
        return _json(_cluster(found))

    def _delete_cluster(self, request: Request, project_id: str, cluster_id: str) -> Response:
        found = self._find(request, project_id, cluster_id)
        if isinstance(found, Refusal):
            return _refuse(found)
        if self._manners.in_use is not None and self._world.members(found):
            return _refuse(self._manners.in_use)
        self._world.delete_cluster(found, now=self._clock())
        return Response(status=204)

    def _find(self, request: Request, project_id: str, cluster_id: str) -> SimulatedCluster | Refusal:
        type_ = request.args.get("type", "HPS")
        if not _is_type(type_):
            return _INVALID
        found = self._world.find_cluster(cluster_id, project_id=project_id, type=type_, now=self._clock())
        return found or ABSENT

    def _list_supernodes(self, _request: Request, project_id: str) -> Response:
        supernodes = self._world.supernodes(project_id)
        if not supernodes and self._manners.no_supernodes_is_error:
            return _refuse(ABSENT)
        return _json(
            {
                "current": 1,
                "data": [_supernode(node) for node in supernodes],
                "pages": 1,
                "size": len(supernodes),
                "total": len(supernodes),
            }
        )

    def _page_supernodes(self, request: Request, project_id: str) -> Response:
        limit = request.args.get("limit", "10")
        offset = request.args.get("offset", "0")
        if not (limit.isdecimal() and offset.isdecimal() and 1 <= int(limit) <= _MAX_PAGE):
            return _refuse(_INVALID)
        size, start = int(limit), int(offset)
        supernodes = self._world.supernodes(project_id)
        return _json(
            {
                "current": start // size + 1,
                "data": [_supernode(node) for node in supernodes[start : start + size]],
                "pages": -(-len(supernodes) // size),
                "size": size,
                "total": len(supernodes),
            }
        )

    def _show_supernode(self, _request: Request, project_id: str, supernode_id: str) -> Response:
        for node in self._world.supernodes(project_id):
            if node.supernode_id == supernode_id:
                return _json(_supernode(node))
        return _refuse(ABSENT)


def _fits(value: object, pattern: re.Pattern[str]) -> TypeGuard[str]:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_type(value: object) -> TypeGuard[ClusterType]:
    return value in CLUSTER_TYPES


def _cluster(cluster: SimulatedCluster) -> dict[str, object]:
    return {
        "id": cluster.cluster_id,
        "name": cluster.name,
        "network_info": [{"hyper_cluster_subnet_id": cluster.subnet_id, "is_default": True}],
    }


def _supernode(node: SimulatedSupernode) -> dict[str, object]:
    moment = int(node.created_at.timestamp() * 1000)
    shared = {"name": node.name, "order_id": node.order_id, "create_at": moment, "update_at": moment}
    return {
        **shared,
        "id": node.supernode_id,
        "hps_id": node.hps_id,
        "hps_cluster_id": node.cluster_id,
        "status": node.status,
        "servers": [
            {
                **shared,
                "id": node.server_id,
                "status": "RUNNING",
                "charging_mode": node.charging_mode,
                "category": "HPS",
                "cloud_server": {"id": node.server_id, "type": "HPS", "hps_id": node.hps_id},
                "server_hps": {"id": node.supernode_id, "name": node.name},
            }
        ],
    }


def _json(content: object, *, status: int = 200) -> Response:
    return Response(json.dumps(content), status=status, content_type="application/json")


def _refuse(refusal: Refusal) -> Response:
    return _json({"error_code": refusal.code, "error_msg": refusal.message}, status=refusal.status)


def _gateway_refuses(refusal: Refusal, detail: str, *, request_id: str) -> Response:
    body = {"error_code": refusal.code, "error_msg": f"{refusal.message}: {detail}", "request_id": request_id}
    return _json(body, status=refusal.status)
