import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from modelarts_cleanup import credentials
from modelarts_cleanup.local.signature_check import KeyPair, SignedRequest, objection_to_signature
from modelarts_cleanup.local.simulator import (
    Answer,
    Call,
    Drip,
    Drop,
    Fault,
    Refusal,
    Request,
    Reset,
    Simulator,
    Slow,
    VisibleFor,
    VisibleForever,
    VisibleForLooks,
)
from modelarts_cleanup.model import ClusterType

# The SDK's signer asks for the time in a way that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings(r"ignore:datetime\.datetime\.utcnow:DeprecationWarning:huaweicloudsdkcore")

PROJECT = "0123456789abcdef0123456789abcdef"
CLUSTERS = f"/v1/{PROJECT}/dev-servers/hyper-clusters"
SUPERNODES = f"/v1/{PROJECT}/dev-servers/hyperinstance"


@pytest.fixture(scope="session")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    with pytest.MonkeyPatch.context() as patch:
        # Importing the SDK writes an id into the home directory.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        import huaweicloudsdkmodelarts.v1 as modelarts  # noqa: PLC0415 - only once HOME is elsewhere
        from huaweicloudsdkcore.auth.credentials import BasicCredentials  # noqa: PLC0415 - the same
        from huaweicloudsdkcore.exceptions import exceptions  # noqa: PLC0415 - the same
        from huaweicloudsdkcore.sdk_request import SdkRequest  # noqa: PLC0415 - the same
        from huaweicloudsdkcore.signer.signer import Signer  # noqa: PLC0415 - the same
    return SimpleNamespace(
        modelarts=modelarts,
        BasicCredentials=BasicCredentials,
        exceptions=exceptions,
        SdkRequest=SdkRequest,
        Signer=Signer,
    )


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as simulator:
        yield simulator


@pytest.fixture
def vendor(sdk: SimpleNamespace, simulator: Simulator) -> "Vendor":
    return Vendor(sdk, simulator)


@pytest.fixture
def plain(sdk: SimpleNamespace, simulator: Simulator) -> "Plain":
    return Plain(sdk, simulator)


class Vendor:
    """Calls the simulator as the vendor's own SDK does."""

    def __init__(self, sdk: SimpleNamespace, simulator: Simulator, *, key_pair: KeyPair | None = None) -> None:
        pair = key_pair or simulator.key_pair
        keys = sdk.BasicCredentials(pair.access_key, pair.secret_key, PROJECT)
        if pair.security_token is not None:
            keys = keys.with_security_token(pair.security_token)
        self._m = sdk.modelarts
        self._exceptions = sdk.exceptions
        self._client = (
            sdk.modelarts.ModelArtsClient.new_builder().with_credentials(keys).with_endpoints([simulator.url]).build()
        )

    def create(self, name: str, **more: str) -> Any:
        body = self._m.HyperClusterCreateRequest(name=name, **more)
        return self._client.create_hyper_cluster(self._m.CreateHyperClusterRequest(body=body))

    def show(self, cluster_id: str, **more: str) -> Any:
        return self._client.get_hyper_cluster(self._m.GetHyperClusterRequest(id=cluster_id, **more))

    def list(self, **more: str) -> Any:
        return self._client.list_hyper_cluster(self._m.ListHyperClusterRequest(**more)).hyper_clusters

    def delete(self, cluster_id: str, **more: str) -> Any:
        return self._client.delete_hyper_cluster(self._m.DeleteHyperClusterRequest(id=cluster_id, **more))

    def all_supernodes(self) -> Any:
        return self._client.list_all_hyperinstances(self._m.ListAllHyperinstancesRequest())

    def page_of_supernodes(self, **more: int) -> Any:
        return self._client.list_hyperinstances(self._m.ListHyperinstancesRequest(**more))

    def supernode(self, supernode_id: str) -> Any:
        return self._client.get_hyperinstance(self._m.GetHyperinstanceRequest(id=supernode_id))

    def refused(self, call: Callable[[], object]) -> tuple[int, str]:
        with pytest.raises(self._exceptions.ClientRequestException) as refusal:
            call()
        assert refusal.value.request_id
        return refusal.value.status_code, refusal.value.error_code

    def disconnected(self, call: Callable[[], object]) -> None:
        with pytest.raises(self._exceptions.ConnectionException):
            call()

    def sees(self, cluster_id: str) -> bool:
        try:
            self.show(cluster_id)
        except self._exceptions.ClientRequestException as refusal:
            answer = (refusal.status_code, refusal.error_code)
        else:
            return True
        assert answer == (400, "ModelArts.6404")
        return False


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        code: str = json.loads(self.body)["error_code"]
        return code


class Plain:
    """Calls the simulator as a plain HTTP client does, with headers that the vendor's signer made."""

    def __init__(self, sdk: SimpleNamespace, simulator: Simulator) -> None:
        self._sdk = sdk
        self._simulator = simulator
        self.host = urlsplit(simulator.url).netloc

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, timeout=5)

    def headers(self, method: str, path: str, *, body: str = "", **more: str) -> dict[str, str]:
        pair = self._simulator.key_pair
        request = self._sdk.SdkRequest(
            method=method,
            schema="http",
            host=self.host,
            resource_path=path,
            query_params=[],
            header_params={name.replace("_", "-"): value for name, value in more.items()},
            body=body,
        )
        keys = self._sdk.BasicCredentials(pair.access_key, pair.secret_key, PROJECT)
        signed: dict[str, str] = self._sdk.Signer(keys).sign(request).header_params
        return signed

    def ask(self, method: str, path: str, *, on: http.client.HTTPConnection | None = None, **more: str) -> Reply:
        connection = on or self.connect()
        connection.request(method, path, headers=self.headers(method, path, **more))
        answer = connection.getresponse()
        try:
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            if on is None:
                connection.close()

    def raw(self, method: str, path: str, version: str = "1.1") -> bytes:
        """Give every byte that comes until the server closes."""
        headers = {**self.headers(method, path), "Connection": "close"}
        lines = [f"{method} {path} HTTP/{version}", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        host, port = self.host.split(":")
        received = b""
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall("\r\n".join(lines).encode())
            while part := connection.recv(65536):
                received += part
        return received


# The signature check against what the vendor's signer made

VECTORS = json.loads((Path(__file__).parent / "data" / "signing_vectors.json").read_text())
SIGNED_AT = datetime(2026, 1, 30, 8, 15, 30, tzinfo=UTC)


def from_vector(vector: dict[str, Any]) -> tuple[SignedRequest, KeyPair]:
    headers = {name.lower(): value for name, value in vector["headers_after_signing"].items()}
    request = SignedRequest(
        method=vector["input"]["method"],
        target=vector["request_target"],
        headers=headers,
        body=(vector["input"]["body"] or "").encode(),
    )
    return request, KeyPair(
        access_key=VECTORS["access_key"],
        secret_key=VECTORS["secret_key"],
        security_token=headers.get("x-security-token"),
    )


def example(name: str = "delete_type_ecs_security_token") -> tuple[SignedRequest, KeyPair]:
    return from_vector(next(vector for vector in VECTORS["vectors"] if vector["name"] == name))


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_what_the_vendors_signer_signed_is_accepted(vector: dict[str, Any]) -> None:
    request, key_pair = from_vector(vector)
    assert objection_to_signature(request, key_pair=key_pair, now=SIGNED_AT) is None


def test_the_example_that_the_vendor_published_is_accepted() -> None:
    published = VECTORS["published_example"]
    given = published["input"]
    request = SignedRequest(
        method=given["method"],
        target=given["resource_path"] + "?" + "&".join(f"{name}={value}" for name, value in given["query"]),
        headers={
            "host": given["host"],
            "authorization": published["authorization"],
            **{name.lower(): value for name, value in given["headers"].items()},
        },
    )
    key_pair = KeyPair(access_key=published["access_key"], secret_key=published["secret_key"])
    now = datetime(2019, 11, 15, 3, 36, 55, tzinfo=UTC)
    assert objection_to_signature(request, key_pair=key_pair, now=now) is None


@pytest.mark.parametrize(
    ("header", "value", "objection"),
    [
        ("authorization", None, "the Authorization header is missing or cannot be read"),
        ("authorization", "Bearer abc", "the Authorization header is missing or cannot be read"),
        (
            "authorization",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=x-sdk-date, Signature=00",
            "the header host is not signed",
        ),
        (
            "authorization",
            "SDK-HMAC-SHA256 Access=A, SignedHeaders=host, Signature=00",
            "the header x-sdk-date is not signed",
        ),
        ("content-type", None, "the signed header content-type is not there"),
        ("content-type", "text/plain", "the signature does not match"),
        ("host", "elsewhere.example", "the signature does not match"),
        ("x-sdk-date", "yesterday", "X-Sdk-Date is not a time"),
        ("x-sdk-date", "20261301T000000Z", "X-Sdk-Date is not a time"),
        ("x-sdk-date", "20260130T081531Z", "the signature does not match"),
        ("x-security-token", "another", "X-Security-Token is another one"),
    ],
)
def test_a_request_with_another_header_is_objected_to(header: str, value: str | None, objection: str) -> None:
    request, key_pair = example()
    headers = {name: text for name, text in request.headers.items() if name != header}
    changed = replace(request, headers=headers if value is None else {**headers, header: value})
    assert objection_to_signature(changed, key_pair=key_pair, now=SIGNED_AT) == objection


@pytest.mark.parametrize(
    "change", [{"method": "GET"}, {"target": "/v1/p/dev-servers/hyper-clusters/x?type=ECS"}, {"body": b"{}"}]
)
def test_a_request_that_was_changed_on_its_way_is_objected_to(change: dict[str, Any]) -> None:
    request, key_pair = example()
    changed = replace(request, **change)
    assert objection_to_signature(changed, key_pair=key_pair, now=SIGNED_AT) == "the signature does not match"


@pytest.mark.parametrize(
    ("change", "objection"),
    [
        ({"access_key": "OTHER"}, "the access key is not known"),
        ({"secret_key": "other"}, "the signature does not match"),
        ({"security_token": None}, "X-Security-Token is missing, or sent with keys that have none"),
    ],
)
def test_a_request_signed_with_other_keys_is_objected_to(change: dict[str, Any], objection: str) -> None:
    request, key_pair = example()
    assert objection_to_signature(request, key_pair=replace(key_pair, **change), now=SIGNED_AT) == objection


def test_a_request_without_the_security_token_is_objected_to() -> None:
    request, key_pair = example("delete_no_query")
    objection = objection_to_signature(request, key_pair=replace(key_pair, security_token="t"), now=SIGNED_AT)  # noqa: S106 - made up
    assert objection == "X-Security-Token is missing, or sent with keys that have none"


@pytest.mark.parametrize("direction", [1, -1])
def test_a_signature_holds_fifteen_minutes_and_no_longer(direction: int) -> None:
    request, key_pair = example()
    edge = timedelta(minutes=15)
    late = edge + timedelta(seconds=1)
    assert objection_to_signature(request, key_pair=key_pair, now=SIGNED_AT + direction * edge) is None
    objection = objection_to_signature(request, key_pair=key_pair, now=SIGNED_AT + direction * late)
    assert objection == "the signature has expired"


def test_no_secret_shows_in_what_is_printed() -> None:
    request, key_pair = example()
    assert VECTORS["secret_key"] not in repr(key_pair)
    assert "STS.token" not in repr(key_pair) + repr(request)


# Clusters, through the vendor's SDK


@pytest.mark.parametrize("type_", ["HPS", "ECS"])
def test_a_cluster_is_created_listed_shown_and_deleted(
    simulator: Simulator, vendor: Vendor, type_: ClusterType
) -> None:
    subnet = "5b814cbf-4f2c-4d6a-9a1e-0255ac100084"
    made = vendor.create("ci-1", type=type_, hyper_cluster_subnet_id=subnet)
    assert made.name == "ci-1"
    assert [(one.hyper_cluster_subnet_id, one.is_default) for one in made.network_info] == [(subnet, True)]
    assert [one.id for one in vendor.list(type=type_)] == [made.id]
    assert vendor.show(made.id, type=type_).name == "ci-1"
    assert [(one.cluster_id, one.type) for one in simulator.clusters(PROJECT)] == [(made.id, type_)]

    assert vendor.delete(made.id, type=type_).status_code == 204

    assert made.id not in simulator
    assert vendor.list(type=type_) == []
    assert vendor.refused(lambda: vendor.show(made.id, type=type_)) == (400, "ModelArts.6404")
    assert vendor.refused(lambda: vendor.delete(made.id, type=type_)) == (400, "ModelArts.6404")


def test_a_cluster_is_hps_where_no_type_is_said(simulator: Simulator, vendor: Vendor) -> None:
    made = vendor.create("ci-1")
    assert simulator.clusters(PROJECT)[0].type == "HPS"
    assert [one.id for one in vendor.list()] == [made.id]
    assert vendor.sees(made.id)


@pytest.mark.parametrize(("is_", "asked"), [("HPS", "ECS"), ("ECS", "HPS")])
def test_a_cluster_of_the_other_type_reads_as_not_found(
    simulator: Simulator, vendor: Vendor, is_: ClusterType, asked: str
) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1", type=is_)
    assert vendor.refused(lambda: vendor.show(cluster.cluster_id, type=asked)) == (400, "ModelArts.6404")
    assert vendor.refused(lambda: vendor.delete(cluster.cluster_id, type=asked)) == (400, "ModelArts.6404")
    assert vendor.list(type=asked) == []
    assert cluster in simulator


def test_another_projects_cluster_reads_as_not_found(simulator: Simulator, vendor: Vendor) -> None:
    other = simulator.add_cluster(project_id="another", name="ci-1")
    assert not vendor.sees(other.cluster_id)
    assert vendor.list() == []
    assert simulator.clusters(PROJECT) == ()
    assert simulator.clusters("another") == (other,)


@pytest.mark.parametrize("call", ["show", "delete"])
def test_a_type_that_does_not_exist_is_invalid(vendor: Vendor, call: str) -> None:
    assert vendor.refused(lambda: getattr(vendor, call)("any", type="BMS")) == (400, "ModelArts.0101")
    assert vendor.refused(lambda: vendor.list(type="BMS")) == (400, "ModelArts.0101")


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{",
        '{"name":""}',
        '{"name":7}',
        '{"name":"a b"}',
        '{"name":"a","type":"BMS"}',
        '{"name":"a","type":["HPS"]}',
        '{"name":"a","hyper_cluster_subnet_id":"x"}',
    ],
)
def test_a_cluster_that_makes_no_sense_is_not_created(simulator: Simulator, plain: Plain, body: str) -> None:
    with closing(plain.connect()) as connection:
        connection.request("POST", CLUSTERS, body=body, headers=plain.headers("POST", CLUSTERS, body=body))
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error_code"]) == (400, "ModelArts.0101")
    assert simulator.clusters(PROJECT) == ()


def test_a_body_may_come_in_chunks(simulator: Simulator, plain: Plain) -> None:
    body = '{"name":"ci-1"}'
    headers = {**plain.headers("POST", CLUSTERS, body=body), "Transfer-Encoding": "chunked"}
    with closing(plain.connect()) as connection:
        connection.request("POST", CLUSTERS, body=iter([b'{"name"', b':"ci-1"}']), headers=headers, encode_chunked=True)
        assert connection.getresponse().status == 200
    assert [one.name for one in simulator.clusters(PROJECT)] == ["ci-1"]


def test_an_empty_list_of_clusters_can_be_an_error(sdk: SimpleNamespace) -> None:
    with Simulator(empty_list_is_error=True) as simulator:
        vendor = Vendor(sdk, simulator)
        simulator.add_cluster(project_id=PROJECT, name="ci-1", type="ECS")
        assert vendor.refused(vendor.list) == (400, "ModelArts.6404")
        assert len(vendor.list(type="ECS")) == 1


def test_a_cluster_can_be_renamed_and_taken_away_behind_our_back(simulator: Simulator, vendor: Vendor) -> None:
    simulator.add_cluster(project_id=PROJECT, cluster_id="c-1", name="ci-1")
    cluster = simulator.add_cluster(project_id=PROJECT, cluster_id="c-1", name="prod-1")
    assert vendor.show("c-1").name == "prod-1"
    simulator.remove_cluster(cluster)
    assert not vendor.sees("c-1")
    assert simulator.count_effective_deletes() == 0


# Supernodes, and clusters that have some


def test_supernodes_have_the_shape_that_the_vendors_models_read(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    prepaid = simulator.add_supernode(
        project_id=PROJECT, cluster_id=cluster.cluster_id, name="node-1", charging_mode="PRE_PAID"
    )
    alone = simulator.add_supernode(project_id=PROJECT, cluster_id=None, status="ERROR", order_id="CS7")
    simulator.add_supernode(project_id="another", cluster_id=None)

    answer = vendor.all_supernodes()

    assert (answer.current, answer.pages, answer.size, answer.total) == (1, 1, 2, 2)
    one, two = answer.data
    assert (one.id, one.name, one.hps_cluster_id, one.status) == (
        prepaid.supernode_id,
        "node-1",
        cluster.cluster_id,
        "ACTIVE",
    )
    assert [server.charging_mode for server in one.servers] == ["PRE_PAID"]
    assert one.order_id == prepaid.order_id
    assert one.servers[0].server_hps.id == one.id
    assert one.servers[0].cloud_server.hps_id == one.hps_id
    assert one.create_at == one.update_at == int(prepaid.created_at.timestamp() * 1000)
    assert (two.id, two.hps_cluster_id, two.status, two.order_id) == (alone.supernode_id, None, "ERROR", "CS7")
    assert vendor.supernode(alone.supernode_id).id == alone.supernode_id
    assert vendor.refused(lambda: vendor.supernode("another-one")) == (400, "ModelArts.6404")
    assert simulator.supernodes(PROJECT) == (prepaid, alone)


def test_supernodes_come_in_pages_of_ten(simulator: Simulator, vendor: Vendor) -> None:
    ids = [simulator.add_supernode(project_id=PROJECT, cluster_id=None).supernode_id for _ in range(12)]
    first = vendor.page_of_supernodes()
    last = vendor.page_of_supernodes(limit=5, offset=10)
    assert [one.id for one in first.data] == ids[:10]
    assert (first.current, first.pages, first.size, first.total) == (1, 2, 10, 12)
    assert [one.id for one in last.data] == ids[10:]
    assert (last.current, last.pages, last.size, last.total) == (3, 3, 5, 12)
    for limit, offset in ((0, 0), (1025, 0), (1, -1)):
        assert vendor.refused(partial(vendor.page_of_supernodes, limit=limit, offset=offset)) == (400, "ModelArts.0101")


def test_no_supernodes_at_all_can_be_an_error(sdk: SimpleNamespace, vendor: Vendor) -> None:
    assert vendor.all_supernodes().data == []
    with Simulator(no_supernodes_is_error=True) as strict:
        strict_vendor = Vendor(sdk, strict)
        assert strict_vendor.refused(strict_vendor.all_supernodes) == (400, "ModelArts.6404")
        strict.add_supernode(project_id=PROJECT, cluster_id=None)
        assert strict_vendor.all_supernodes().total == 1


def test_a_cluster_with_members_is_not_deleted_until_they_are_gone(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.add_supernode(project_id=PROJECT, cluster_id="another")
    member = simulator.add_supernode(project_id=PROJECT, cluster_id=cluster.cluster_id)
    assert vendor.refused(lambda: vendor.delete(cluster.cluster_id)) == (403, "ModelArts.6344")
    assert cluster in simulator
    assert simulator.count_effective_deletes() == 0

    simulator.add_supernode(
        project_id=PROJECT, cluster_id=cluster.cluster_id, supernode_id=member.supernode_id, status="TERMINATED"
    )
    vendor.delete(cluster.cluster_id)
    assert cluster not in simulator


def test_members_can_be_taken_away(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.remove_supernode(simulator.add_supernode(project_id=PROJECT, cluster_id=cluster.cluster_id))
    vendor.delete(cluster.cluster_id)
    assert cluster not in simulator


def test_the_refusal_of_a_cluster_in_use_can_be_another(sdk: SimpleNamespace) -> None:
    with Simulator(in_use=Refusal(409, "ModelArts.5044", "Busy.")) as simulator:
        vendor = Vendor(sdk, simulator)
        cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
        simulator.add_supernode(project_id=PROJECT, cluster_id=cluster.cluster_id)
        assert vendor.refused(lambda: vendor.delete(cluster.cluster_id)) == (409, "ModelArts.5044")


def test_without_a_refusal_the_members_go_with_their_cluster(sdk: SimpleNamespace) -> None:
    with Simulator(in_use=None) as simulator:
        cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
        simulator.add_supernode(project_id=PROJECT, cluster_id=cluster.cluster_id)
        alone = simulator.add_supernode(project_id=PROJECT, cluster_id=None)
        Vendor(sdk, simulator).delete(cluster.cluster_id)
        assert cluster not in simulator
        assert simulator.supernodes(PROJECT) == (alone,)


# Lag


def test_a_deleted_cluster_stays_for_some_looks(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1", lag=VisibleForLooks(2))
    assert vendor.sees(cluster.cluster_id)  # a look before the DELETE uses up nothing
    vendor.delete(cluster.cluster_id)
    assert cluster in simulator
    assert vendor.sees(cluster.cluster_id)
    assert [one.id for one in vendor.list()] == [cluster.cluster_id]
    assert cluster not in simulator
    assert not vendor.sees(cluster.cluster_id)


def test_a_deleted_cluster_stays_for_some_time(sdk: SimpleNamespace) -> None:
    now = datetime.now(UTC)
    with Simulator(lag=VisibleFor(timedelta(seconds=30)), clock=lambda: now) as simulator:
        vendor = Vendor(sdk, simulator)
        made = vendor.create("ci-1")
        added = simulator.add_cluster(project_id=PROJECT, name="ci-2")
        vendor.delete(made.id)
        vendor.delete(added.cluster_id)
        now += timedelta(seconds=29)
        assert vendor.sees(made.id)
        assert vendor.sees(added.cluster_id)
        now += timedelta(seconds=1)
        assert not vendor.sees(made.id)
        assert not vendor.sees(added.cluster_id)


def test_a_deleted_cluster_can_stay_for_ever_and_is_deleted_but_once(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1", lag=VisibleForever())
    for _ in range(3):
        assert vendor.delete(cluster.cluster_id).status_code == 204
        assert vendor.sees(cluster.cluster_id)
    assert simulator.count(Call.DELETE_CLUSTER) == 3
    assert simulator.count_effective_deletes() == 1


# Keys


def test_other_keys_are_refused(sdk: SimpleNamespace, simulator: Simulator) -> None:
    pair = simulator.key_pair
    for wrong in (replace(pair, access_key="OTHER"), replace(pair, secret_key="other")):  # noqa: S106 - made up
        stranger = Vendor(sdk, simulator, key_pair=wrong)
        assert stranger.refused(partial(stranger.delete, "any")) == (401, "APIGW.0301")
    assert [seen.status for seen in simulator.requests] == [401, 401]


def test_keys_can_be_rotated_to_temporary_ones(sdk: SimpleNamespace, simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    assert vendor.sees(cluster.cluster_id)
    pair = simulator.rotate(security_token="STS.token+with/specials==")  # noqa: S106 - made up
    assert vendor.refused(lambda: vendor.show(cluster.cluster_id)) == (401, "APIGW.0301")
    assert Vendor(sdk, simulator).sees(cluster.cluster_id)
    forgetful = Vendor(sdk, simulator, key_pair=replace(pair, security_token=None))
    assert forgetful.refused(lambda: forgetful.show(cluster.cluster_id)) == (401, "APIGW.0301")


def test_keys_can_be_chosen(sdk: SimpleNamespace) -> None:
    chosen = KeyPair(access_key="AK", secret_key="SK")  # noqa: S106 - made up
    with Simulator(key_pair=chosen) as simulator:
        assert Vendor(sdk, simulator, key_pair=chosen).list() == []
        rotated = simulator.rotate(access_key="AK2", secret_key="SK2")  # noqa: S106 - made up
        assert rotated == simulator.key_pair == KeyPair(access_key="AK2", secret_key="SK2")  # noqa: S106 - made up


def test_the_credentials_file_is_one_that_the_product_reads(simulator: Simulator) -> None:
    for token in (None, "STS.t"):
        pair = simulator.rotate(security_token=token)
        read = credentials.read(simulator.credentials_json().encode())
        assert (read.access_key, read.secret_key, read.security_token) == (pair.access_key, pair.secret_key, token)


def test_a_clock_that_is_off_is_refused(sdk: SimpleNamespace) -> None:
    with Simulator(clock=lambda: datetime.now(UTC) + timedelta(minutes=16)) as simulator:
        vendor = Vendor(sdk, simulator)
        assert vendor.refused(vendor.list) == (401, "APIGW.0301")


def test_another_project_than_the_credentials_one_is_refused(plain: Plain) -> None:
    answer = plain.ask("GET", CLUSTERS, X_Project_Id="another")
    assert (answer.status, answer.code) == (403, "ModelArts.0210")
    assert plain.ask("GET", CLUSTERS, X_Project_Id=PROJECT).status == 200
    assert plain.ask("GET", CLUSTERS).status == 200


# HTTP


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v2/p/dev-servers/hyper-clusters"),
        ("GET", f"{CLUSTERS}/"),
        ("GET", CLUSTERS.replace("/dev", "//dev")),
        ("GET", f"{CLUSTERS}/a/b"),
        ("PUT", f"{CLUSTERS}/a"),
        ("OPTIONS", CLUSTERS),
        ("DELETE", SUPERNODES),
    ],
)
def test_a_path_that_is_no_api_is_the_gateways_404(simulator: Simulator, plain: Plain, method: str, path: str) -> None:
    answer = plain.ask(method, path)
    assert (answer.status, answer.code) == (404, "APIGW.0101")
    assert json.loads(answer.body)["request_id"] == answer.headers["x-request-id"]
    assert simulator.requests[0].call is Call.UNKNOWN
    assert simulator.requests[0].project_id is None


def test_every_answer_has_a_request_id_of_its_own(simulator: Simulator, plain: Plain) -> None:
    simulator.fail(Answer(502), on=Call.SHOW_CLUSTER)
    answers = [plain.ask("GET", path) for path in (CLUSTERS, f"{CLUSTERS}/a", f"{CLUSTERS}/a", "/nowhere", CLUSTERS)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 5
    assert [seen.request_id for seen in simulator.requests] == ids


def test_one_connection_carries_many_requests(simulator: Simulator, plain: Plain) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    path = f"{CLUSTERS}/{cluster.cluster_id}"
    with closing(plain.connect()) as connection:
        connection.connect()
        used = connection.sock
        statuses = [plain.ask(*one, on=connection).status for one in (("GET", path), ("DELETE", path), ("GET", path))]
        assert connection.sock is used
    assert statuses == [200, 204, 400]


def test_a_deletion_answers_nothing_but_204(simulator: Simulator, plain: Plain) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    answer = plain.raw("DELETE", f"{CLUSTERS}/{cluster.cluster_id}")
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert answer.endswith(b"\r\n\r\n")
    assert b"content-length" not in answer.lower()


def test_a_head_request_has_no_body(plain: Plain) -> None:
    answer = plain.raw("HEAD", CLUSTERS)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


def test_an_old_client_is_served_and_disconnected(plain: Plain) -> None:
    assert plain.raw("GET", CLUSTERS, version="1.0").endswith(b'{"hyper_clusters": []}')


def test_nothing_is_logged(plain: Plain, capfd: pytest.CaptureFixture[str]) -> None:
    plain.ask("GET", CLUSTERS)
    plain.ask("GET", "/nowhere")
    with socket.create_connection(("127.0.0.1", int(plain.host.split(":")[1])), timeout=5) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        connection.recv(65536)
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_an_error_and_a_free_one_is_used(simulator: Simulator) -> None:
    port = int(simulator.url.rsplit(":", 1)[1])
    with pytest.raises(OSError, match="in use"):
        Simulator(port=port).start()
    simulator.close()
    with Simulator(port=port) as next_one:
        assert next_one.url == f"http://127.0.0.1:{port}"


def test_it_is_filled_before_it_serves_and_remembers_after(sdk: SimpleNamespace) -> None:
    simulator = Simulator()
    with pytest.raises(RuntimeError, match="not serving"):
        _ = simulator.url
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    for _ in range(2):
        with simulator:
            assert Vendor(sdk, simulator).sees(cluster.cluster_id)
            with pytest.raises(RuntimeError, match="already"):
                simulator.start()
    simulator.close()
    assert simulator.count(Call.SHOW_CLUSTER) == 2
    assert cluster in simulator


def test_closing_cuts_a_connection_that_idles(simulator: Simulator, plain: Plain) -> None:
    with closing(plain.connect()) as connection:
        plain.ask("GET", CLUSTERS, on=connection)
        simulator.close()
        assert connection.sock.recv(1) == b""


def test_closing_ends_a_wait(simulator: Simulator, vendor: Vendor) -> None:
    waiting = threading.Event()
    simulator.on_answer = lambda _request: waiting.set()
    simulator.fail(Slow(600), after_effect=True)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(lambda: vendor.disconnected(vendor.list))
        assert waiting.wait(5)
        simulator.close()
        # Whether the answer or the cut is quicker is open; that the wait ends is not.
        call.exception(timeout=5)


# The record


def test_requests_are_remembered(simulator: Simulator, vendor: Vendor) -> None:
    before = datetime.now(UTC)
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1", type="ECS")
    vendor.show(cluster.cluster_id, type="ECS")
    vendor.delete(cluster.cluster_id, type="ECS")
    vendor.list()
    vendor.all_supernodes()
    vendor.page_of_supernodes()
    vendor.refused(lambda: vendor.supernode("s-1"))
    vendor.create("ci-2")
    assert [seen.call for seen in simulator.requests] == [
        Call.SHOW_CLUSTER,
        Call.DELETE_CLUSTER,
        Call.LIST_CLUSTERS,
        Call.LIST_SUPERNODES,
        Call.PAGE_SUPERNODES,
        Call.SHOW_SUPERNODE,
        Call.CREATE_CLUSTER,
    ]
    delete = simulator.requests[1]
    assert (delete.method, delete.path) == ("DELETE", f"{CLUSTERS}/{cluster.cluster_id}")
    assert (delete.project_id, delete.cluster_id) == (PROJECT, cluster.cluster_id)
    assert delete.query == {"type": "ECS"}
    assert delete.headers["x-project-id"] == PROJECT
    assert (delete.status, delete.effective, delete.fault) == (204, True, None)
    assert before <= delete.at <= datetime.now(UTC)
    assert "SDK-HMAC-SHA256" not in repr(delete)
    assert simulator.count(Call.DELETE_CLUSTER) == 1
    assert simulator.count(Call.DELETE_CLUSTER, cluster_id="another") == 0
    assert simulator.count_effective_deletes(cluster_id=cluster.cluster_id) == 1
    assert simulator.count_effective_deletes(cluster_id="another") == 0


def test_of_many_deletes_at_once_one_is_effective(sdk: SimpleNamespace, simulator: Simulator) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1", lag=VisibleForever())
    vendors = [Vendor(sdk, simulator) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda vendor: vendor.delete(cluster.cluster_id).status_code, vendors))
    assert answers == [204] * 8
    assert simulator.count(Call.DELETE_CLUSTER, cluster_id=cluster.cluster_id) == 8
    assert simulator.count_effective_deletes() == 1


# Hooks


def test_a_request_can_be_held_before_anything_happens(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    arrived, go_on = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if request.call is Call.DELETE_CLUSTER:
            arrived.set()
            assert go_on.wait(5)

    simulator.on_request = hold
    with ThreadPoolExecutor() as pool:
        call = pool.submit(vendor.delete, cluster.cluster_id)
        assert arrived.wait(5)
        assert cluster in simulator
        assert [(seen.call, seen.status) for seen in simulator.requests] == [(Call.DELETE_CLUSTER, None)]
        assert vendor.sees(cluster.cluster_id)  # only its own request is held up
        go_on.set()
        assert call.result(5).status_code == 204
    assert cluster not in simulator


def test_a_request_can_be_held_when_all_has_happened(sdk: SimpleNamespace) -> None:
    told: list[tuple[Request, bool]] = []

    def tell(request: Request) -> None:
        told.append((request, "c-1" in served))

    served = Simulator(on_answer=tell)
    with served as simulator:
        simulator.add_cluster(project_id=PROJECT, cluster_id="c-1", name="ci-1")
        Vendor(sdk, simulator).delete("c-1")
        assert told == [(simulator.requests[0], False)]
        assert (told[0][0].status, told[0][0].effective) == (204, True)


def test_a_hook_can_plan_the_fault_of_its_own_request(simulator: Simulator, plain: Plain) -> None:
    simulator.on_request = lambda _request: simulator.fail(Answer.error(429, "APIGW.0308"))
    assert plain.ask("GET", CLUSTERS).status == 429


# Faults


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, body=b"<html>proxy</html>", headers={"Content-Type": "text/html"}),
        Answer(200, body=b'{"id":'),
        Answer(200, body=b"\xff\x00"),
        Answer(302, headers={"Location": "http://127.0.0.1:1/"}),
        Answer(429, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        Answer(503, headers={"Retry-After": "-1", "X-Request-Id": "mine"}),
        Answer(599, body=b"x"),
        Answer(404),
        Answer.json(200, [1, {"id": None}]),
        Answer.error(409, "ModelArts.5044", message="Busy.", headers={"Retry-After": "7"}),
    ],
    ids=repr,
)
def test_a_fixed_answer_arrives_as_it_is(simulator: Simulator, plain: Plain, answer: Answer) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.fail(answer, on=Call.DELETE_CLUSTER)
    got = plain.ask("DELETE", f"{CLUSTERS}/{cluster.cluster_id}")
    assert (got.status, got.body) == (answer.status, answer.body)
    assert {name.lower(): value for name, value in answer.headers.items()}.items() <= got.headers.items()
    assert cluster in simulator
    assert (simulator.requests[0].status, simulator.requests[0].fault) == (answer.status, answer)


def test_a_wrong_length_is_sent_as_it_stands(simulator: Simulator, plain: Plain) -> None:
    simulator.fail(Answer(200, body=b"{}", headers={"content-length": "9"}))
    with pytest.raises(http.client.IncompleteRead):
        plain.ask("GET", CLUSTERS)


def test_an_answer_without_a_body_has_none(simulator: Simulator, plain: Plain) -> None:
    simulator.fail(Answer(204, body=b"ignored"))
    assert plain.raw("GET", CLUSTERS).endswith(b"\r\n\r\n")


def test_an_answer_can_replace_the_genuine_one_after_the_effect(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.fail(Answer.error(400, "ModelArts.6404"), on=Call.DELETE_CLUSTER, after_effect=True)
    assert vendor.refused(lambda: vendor.delete(cluster.cluster_id)) == (400, "ModelArts.6404")
    assert cluster not in simulator
    assert (simulator.requests[0].status, simulator.requests[0].effective) == (400, True)


@pytest.mark.parametrize("fault", [Reset(), Drop()], ids=repr)
@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
def test_an_answer_can_be_lost_before_and_after_the_effect(
    simulator: Simulator, vendor: Vendor, fault: Fault, *, after_effect: bool
) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.fail(fault, on=Call.DELETE_CLUSTER, after_effect=after_effect)
    vendor.disconnected(lambda: vendor.delete(cluster.cluster_id))
    assert (cluster not in simulator) is after_effect
    assert simulator.count_effective_deletes() == after_effect
    lost = simulator.requests[0]
    assert (lost.status, lost.request_id, lost.effective, lost.fault) == (None, None, after_effect, fault)


def test_a_reset_is_a_reset_and_a_drop_is_none(simulator: Simulator, plain: Plain) -> None:
    simulator.fail(Reset())
    simulator.fail(Drop())
    with pytest.raises(ConnectionResetError):
        plain.raw("GET", CLUSTERS)
    assert plain.raw("GET", CLUSTERS) == b""
    assert plain.raw("GET", CLUSTERS).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("sent", [7, 60])
def test_an_answer_can_be_cut(simulator: Simulator, plain: Plain, sent: int) -> None:
    simulator.fail(Drop(sent=sent), after_effect=True)
    simulator.fail(Reset(sent=sent), after_effect=True)
    whole = plain.raw("GET", CLUSTERS)
    assert whole == b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Request-Id: "[:sent]
    with pytest.raises(ConnectionResetError):
        plain.raw("GET", CLUSTERS)


@pytest.mark.parametrize("after_effect", [False, True], ids=["before", "after"])
def test_an_answer_can_be_slow(simulator: Simulator, vendor: Vendor, *, after_effect: bool) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.fail(Slow(0.2), on=Call.DELETE_CLUSTER, after_effect=after_effect)
    with ThreadPoolExecutor() as pool:
        call = pool.submit(vendor.delete, cluster.cluster_id)
        time.sleep(0.1)
        assert (cluster not in simulator) is after_effect
        assert not call.done()
        assert call.result(5).status_code == 204
    assert cluster not in simulator


def test_a_slow_answer_can_be_another_one(simulator: Simulator, vendor: Vendor) -> None:
    cluster = simulator.add_cluster(project_id=PROJECT, name="ci-1")
    simulator.fail(Slow(0.01, answer=Answer.error(403, "ModelArts.0112")), on=Call.DELETE_CLUSTER)
    assert vendor.refused(lambda: vendor.delete(cluster.cluster_id)) == (403, "ModelArts.0112")
    assert cluster in simulator


@pytest.mark.parametrize("headers", [False, True], ids=["body", "all"])
def test_an_answer_can_drip(simulator: Simulator, plain: Plain, *, headers: bool) -> None:
    simulator.fail(Drip(0.001, headers=headers))
    simulator.fail(Drip(0.001, headers=headers, answer=Answer(502, body=b"<html>" * 5)))
    started = time.monotonic()
    answer = plain.ask("GET", CLUSTERS)
    took = time.monotonic() - started
    assert (answer.status, json.loads(answer.body)) == (200, {"hyper_clusters": []})
    assert took > 0.001 * (len(answer.body) + (100 if headers else 0))
    assert plain.ask("GET", CLUSTERS).body == b"<html>" * 5


def test_a_client_that_leaves_while_it_drips_is_nobodys_trouble(
    simulator: Simulator, plain: Plain, capfd: pytest.CaptureFixture[str]
) -> None:
    simulator.fail(Drip(0.001, answer=Answer(200, body=b"x" * 1000)))
    with closing(plain.connect()) as connection:
        connection.request("GET", CLUSTERS, headers=plain.headers("GET", CLUSTERS))
        connection.getresponse().close()
    assert plain.ask("GET", CLUSTERS).status == 200
    assert capfd.readouterr() == ("", "")


def test_faults_come_in_order_for_the_calls_and_clusters_they_are_meant_for(simulator: Simulator, plain: Plain) -> None:
    for name in ("a", "b"):
        simulator.add_cluster(project_id=PROJECT, cluster_id=name, name=name)
    simulator.fail(Answer(500), on=Call.SHOW_CLUSTER, cluster_id="a", times=2)
    simulator.fail(Answer(429), on=Call.SHOW_CLUSTER)
    simulator.fail(Answer(503), times=None)

    def statuses(*paths: str) -> list[int]:
        return [plain.ask("GET", path).status for path in paths]

    a, b = f"{CLUSTERS}/a", f"{CLUSTERS}/b"
    assert statuses(CLUSTERS, a, b, a, b, a, CLUSTERS) == [503, 500, 429, 500, 503, 503, 503]
    simulator.heal()
    assert statuses(CLUSTERS, a, b) == [200, 200, 200]


def test_a_fault_that_makes_no_sense_is_not_planned(simulator: Simulator) -> None:
    for fault in (Reset(sent=1), Drop(sent=1)):
        with pytest.raises(ValueError, match="after the effect"):
            simulator.fail(fault)
    with pytest.raises(ValueError, match="times"):
        simulator.fail(Drop(), times=0)
