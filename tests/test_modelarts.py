import gzip
import logging
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fakes import NOW, REF, FakeClock
from hypothesis import given, settings
from hypothesis import strategies as st
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.local.simulator import Answer, Call, Drip, Drop, Fault, Reset, Simulator, Slow
from modelarts_cleanup.model import (
    CLUSTER_ID,
    PROJECT_ID,
    Absent,
    Accepted,
    Cluster,
    ClusterRef,
    ClusterType,
    Member,
    NotFound,
    Refused,
    RetryLater,
)
from modelarts_cleanup.signing import Credentials
from msgspec.structs import replace
from served import free_port

CLUSTERS = "/v1/p1/dev-servers/hyper-clusters"
THE_CLUSTER = Cluster(ref=REF, type="HPS", name="ci-a")
BIG = b'{"id": "c-1", "name": "' + b"a" * 9_000_000 + b'"}'


@dataclass
class Keys:
    """A source of credentials that renews them from `next`, and counts."""

    now: Credentials
    next: list[Credentials] = field(default_factory=list)
    gets: int = 0
    renewals: int = 0

    def get(self) -> Credentials:
        self.gets += 1
        return self.now

    def renewed(self, stale: Credentials) -> Credentials:
        assert stale == self.now
        self.renewals += 1
        self.now = self.next.pop(0) if self.next else self.now
        return self.now


def key_pair(simulator: Simulator) -> Credentials:
    pair = simulator.key_pair
    return Credentials(pair.access_key, pair.secret_key, pair.security_token)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def simulator(clock: FakeClock) -> Iterator[Simulator]:
    with Simulator(clock=clock.now) as simulator:
        yield simulator


@pytest.fixture
def keys(simulator: Simulator) -> Keys:
    return Keys(key_pair(simulator))


@pytest.fixture
def modelarts(simulator: Simulator, keys: Keys) -> ModelArts:
    return ModelArts(simulator.url, keys, connect_seconds=0.3, read_seconds=0.3)


@pytest.fixture
def there(simulator: Simulator) -> None:
    """Have the cluster there."""
    simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a")


def asked(simulator: Simulator) -> list[tuple[str, str, dict[str, str]]]:
    return [(request.method, request.path, dict(request.query)) for request in simulator.requests]


ACTS: dict[Call, Callable[[ModelArts, FakeClock], object]] = {
    Call.SHOW_CLUSTER: lambda modelarts, clock: modelarts.look(REF, "HPS", clock=clock),
    Call.LIST_SUPERNODES: lambda modelarts, clock: modelarts.members(THE_CLUSTER, clock=clock),
    Call.LIST_CLUSTERS: lambda modelarts, clock: modelarts.listed("p1", "HPS", clock=clock),
    Call.DELETE_CLUSTER: lambda modelarts, clock: modelarts.delete(THE_CLUSTER, clock=clock),
}
EACH_CALL = pytest.mark.parametrize("call", ACTS)


def retried(act: Callable[[], object]) -> RetryLater:
    with pytest.raises(RetryLater) as raised:
        act()
    return raised.value


# The table of answers: what each call makes of a status and a code

ABSENT, NOT_FOUND, REFUSED, ACCEPTED = "Absent", "NotFound", "Refused", "Accepted"
TABLE: list[tuple[Any, ...]] = [
    # status, code, look, members or list, delete
    (400, "ModelArts.6404", ABSENT, "modelarts_unavailable", NOT_FOUND),
    (400, "ModelArts.6309", ABSENT, "modelarts_unavailable", NOT_FOUND),
    (404, "ModelArts.6404", ABSENT, "modelarts_unavailable", NOT_FOUND),
    (404, None, ABSENT, "modelarts_unavailable", NOT_FOUND),
    (404, "AICS.00001001", ABSENT, "modelarts_unavailable", NOT_FOUND),
    *((404, code, *["misconfigured_endpoint"] * 3) for code in ("APIGW.0101", "APIGW.0103")),
    *((405, code, *["misconfigured_endpoint"] * 3) for code in ("APIGW.0501", None)),
    *((401, code, *["credentials_refused"] * 3) for code in ("APIGW.0301", "ModelArts.0203", None)),
    *((403, f"ModelArts.{code}", *["credentials_refused"] * 3) for code in ("0108", "0112", "0206", "0210")),
    *((403, code, *["credentials_refused"] * 3) for code in ("APIGW.0302", "IAM.0002")),
    (403, "ModelArts.6344", "credentials_refused", "credentials_refused", REFUSED),
    (403, None, "credentials_refused", "credentials_refused", REFUSED),
    (400, "ModelArts.6344", "modelarts_unavailable", "modelarts_unavailable", REFUSED),
    (400, "ModelArts.6304", "modelarts_unavailable", "modelarts_unavailable", REFUSED),
    *(
        (status, code, *["busy"] * 3)
        for status, code in ((409, None), (409, "ModelArts.6344"), (409, "ModelArts.5044"), (400, "ModelArts.6357"))
    ),
    *((status, code, *["throttled"] * 3) for status, code in ((429, None), (429, "APIGW.0308"), (403, "APIGW.0308"))),
    *((status, None, *["modelarts_unavailable"] * 3) for status in (201, 202, 206, 301, 302, 303, 304, 307, 308)),
    *((status, None, *["modelarts_unavailable"] * 3) for status in (400, 408, 413, 418, 500, 502, 503, 504, 599)),
    (500, "ModelArts.6404", *["modelarts_unavailable"] * 3),
    (502, "APIGW.0201", *["modelarts_unavailable"] * 3),
    (204, None, "modelarts_unavailable", "modelarts_unavailable", ACCEPTED),
    (200, None, "modelarts_unavailable", "modelarts_unavailable", ACCEPTED),
]
ROWS = [
    pytest.param(call, status, code, made[min(number, 3) - (number > 1)], id=f"{call}-{status}-{code}")
    for status, code, *made in TABLE
    for number, call in enumerate(ACTS)
]


@pytest.mark.parametrize(("call", "status", "code", "made"), ROWS)
def test_what_a_call_makes_of_an_answer(call: Call, status: int, code: str | None, made: str) -> None:
    simulator, modelarts, clock = SHARED.parts()
    body = Answer.error(status, code) if code else Answer(status)
    simulator.fail(body, on=call, times=None)
    try:
        found = type(ACTS[call](modelarts, clock)).__name__
    except RetryLater as retry:
        found = retry.reason
    simulator.heal()
    assert found == made


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.usefixtures("there")
def test_a_delete_is_accepted_by_200_and_204_only_and_its_request_id_is_kept(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, status: int
) -> None:
    simulator.fail(Answer(status, headers={"X-Request-Id": "r-1"}), on=Call.DELETE_CLUSTER, after_effect=True)
    assert modelarts.delete(THE_CLUSTER, clock=clock) == Accepted(request_id="r-1")


def test_a_refusal_and_a_not_found_name_what_modelarts_said(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    simulator.fail(Answer.error(403, "ModelArts.6344", headers={"X-Request-Id": "r-1"}), on=Call.DELETE_CLUSTER)
    refused = Refused(status=403, code="ModelArts.6344", request_id="r-1")
    assert modelarts.delete(THE_CLUSTER, clock=clock) == refused
    simulator.fail(Answer.error(404, "ModelArts.6404", headers={"X-Request-Id": "r-2"}), on=Call.DELETE_CLUSTER)
    assert modelarts.delete(THE_CLUSTER, clock=clock) == NotFound(request_id="r-2")


def test_a_retry_says_which_call_was_answered_how(simulator: Simulator, modelarts: ModelArts, clock: FakeClock) -> None:
    for call, what in ((Call.SHOW_CLUSTER, "the look at the cluster"), (Call.DELETE_CLUSTER, "the DELETE")):
        simulator.fail(Answer.error(500, "ModelArts.0010", headers={"X-Request-Id": "r-1"}), on=call)
        retry = retried(lambda: ACTS[call](modelarts, clock))  # noqa: B023 - called at once
        assert retry.detail == f"{what} was answered with 500 ModelArts.0010, request r-1"


# Looking


@pytest.mark.usefixtures("there")
def test_a_look_asks_for_the_cluster_with_its_type(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    assert modelarts.look(REF, "HPS", clock=clock) == THE_CLUSTER
    assert asked(simulator) == [("GET", f"{CLUSTERS}/c-1", {"type": "HPS"})]


@pytest.mark.parametrize(
    ("there_as", "given", "queries"),
    [
        ("HPS", None, ["HPS"]),
        ("ECS", None, ["HPS", "ECS"]),
        (None, None, ["HPS", "ECS"]),
        ("ECS", "ECS", ["ECS"]),
        ("ECS", "HPS", ["HPS"]),
        (None, "ECS", ["ECS"]),
    ],
)
def test_without_a_type_hps_and_then_ecs_are_looked_for(
    simulator: Simulator,
    modelarts: ModelArts,
    clock: FakeClock,
    *,
    there_as: ClusterType | None,
    given: ClusterType | None,
    queries: list[str],
) -> None:
    if there_as:
        simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a", type=there_as)
    found = modelarts.look(REF, given, clock=clock)
    assert [query["type"] for _, _, query in asked(simulator)] == queries
    if there_as and queries[-1] == there_as:
        assert found == replace(THE_CLUSTER, type=there_as)
    else:
        assert found == Absent(request_id=simulator.requests[-1].request_id)


def test_a_fault_of_one_look_is_not_mended_by_the_other(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a", type="ECS")
    simulator.fail(Answer(500), on=Call.SHOW_CLUSTER)
    assert retried(lambda: modelarts.look(REF, None, clock=clock)).reason == "modelarts_unavailable"
    assert len(simulator.requests) == 1


@pytest.mark.parametrize("given", ["HPS", "ECS"])
def test_a_bare_404_is_confirmed_by_the_list_of_that_type(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, given: ClusterType
) -> None:
    simulator.add_cluster(project_id="p1", cluster_id="c-2", name="ci-b", type=given)
    simulator.fail(Answer(404, headers={"X-Request-Id": "r-1"}), on=Call.SHOW_CLUSTER)
    assert modelarts.look(REF, given, clock=clock) == Absent(request_id="r-1")
    assert asked(simulator)[1] == ("GET", CLUSTERS, {"type": given})


@pytest.mark.usefixtures("there")
def test_a_bare_404_of_a_cluster_that_is_listed_is_a_fault(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    simulator.fail(Answer(404), on=Call.SHOW_CLUSTER)
    retry = retried(lambda: modelarts.look(REF, "HPS", clock=clock))
    assert retry.reason == "modelarts_unavailable"
    assert "listed" in retry.detail


@pytest.mark.parametrize(
    ("listing", "reason"),
    [
        (Answer.error(400, "ModelArts.6404"), "modelarts_unavailable"),
        (Answer(404), "modelarts_unavailable"),
        (Answer.error(404, "APIGW.0101"), "misconfigured_endpoint"),
        (Answer(403), "credentials_refused"),
        (Answer(204), "modelarts_unavailable"),
        (Answer.json(200, {}), "modelarts_unavailable"),
        (Answer.json(200, {"hyper_clusters": [{"id": None}]}), "modelarts_unavailable"),
        (Reset(), "modelarts_unavailable"),
    ],
)
def test_a_bare_404_is_believed_only_if_the_list_can_be_read(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, listing: Fault, reason: str
) -> None:
    simulator.fail(Answer(404), on=Call.SHOW_CLUSTER)
    simulator.fail(listing, on=Call.LIST_CLUSTERS)
    assert retried(lambda: modelarts.look(REF, "HPS", clock=clock)).reason == reason


@pytest.mark.parametrize("other", ["c-2", "C-1", "c-1 ", ""])
def test_an_answer_about_another_cluster_is_not_believed(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, other: str
) -> None:
    simulator.fail(Answer.json(200, {"id": other, "name": "ci-a"}), on=Call.SHOW_CLUSTER)
    retry = retried(lambda: modelarts.look(REF, "HPS", clock=clock))
    assert (retry.reason, "another cluster" in retry.detail) == ("modelarts_unavailable", True)


def test_the_list_gives_the_ids_of_one_type(simulator: Simulator, modelarts: ModelArts, clock: FakeClock) -> None:
    for number, one in enumerate(("HPS", "HPS", "ECS")):
        simulator.add_cluster(project_id="p1", cluster_id=f"c-{number}", name="x", type=one)  # type: ignore[arg-type]
    simulator.add_cluster(project_id="p2", cluster_id="c-9", name="x")
    assert modelarts.listed("p1", "HPS", clock=clock) == {"c-0", "c-1"}
    assert modelarts.listed("p1", "ECS", clock=clock) == {"c-2"}
    assert modelarts.listed("p3", "ECS", clock=clock) == frozenset()


# Members


def test_members_are_the_supernodes_that_name_the_cluster(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    simulator.add_supernode(project_id="p1", cluster_id="c-1", supernode_id="s-1", name="a", status="ERROR")
    simulator.add_supernode(project_id="p1", cluster_id="c-1", supernode_id="s-2", charging_mode="PRE_PAID")
    simulator.add_supernode(project_id="p1", cluster_id="c-1", status="TERMINATED")
    simulator.add_supernode(project_id="p1", cluster_id="c-1", status="DELETED")
    simulator.add_supernode(project_id="p1", cluster_id="c-10")
    simulator.add_supernode(project_id="p1", cluster_id=None)
    simulator.add_supernode(project_id="p2", cluster_id="c-1")
    assert modelarts.members(THE_CLUSTER, clock=clock) == (
        Member(id="s-1", name="a", status="ERROR", prepaid=False),
        Member(id="s-2", name="supernode", status="ACTIVE", prepaid=True),
    )
    assert asked(simulator) == [("GET", "/v1/p1/dev-servers/hyperinstance/all", {})]


@pytest.mark.parametrize(("total", "believed"), [(None, True), (0, True), (1, True), (2, False), (1000, False)])
def test_members_are_not_read_when_all_was_not_all(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, total: int | None, *, believed: bool
) -> None:
    answer = Answer.json(200, {"data": [{"id": "s-1", "hps_cluster_id": "c-1"}], "total": total})
    simulator.fail(answer, on=Call.LIST_SUPERNODES)
    if believed:
        assert len(modelarts.members(THE_CLUSTER, clock=clock)) == 1
    else:
        retry = retried(lambda: modelarts.members(THE_CLUSTER, clock=clock))
        assert (retry.reason, f"1 of {total}" in retry.detail) == ("modelarts_unavailable", True)


def test_an_error_instead_of_an_empty_list_means_that_members_were_not_read(clock: FakeClock) -> None:
    with Simulator(no_supernodes_is_error=True, clock=clock.now) as simulator:
        modelarts = ModelArts(simulator.url, Keys(key_pair(simulator)))
        assert retried(lambda: modelarts.members(THE_CLUSTER, clock=clock)).reason == "modelarts_unavailable"


# Deleting


@pytest.mark.parametrize("given", ["HPS", "ECS"])
def test_a_delete_names_the_cluster_and_its_type(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, given: ClusterType
) -> None:
    cluster = simulator.add_cluster(project_id="p1", cluster_id="c-1", name="ci-a", type=given)
    answer = modelarts.delete(replace(THE_CLUSTER, type=given), clock=clock)
    assert answer == Accepted(request_id=simulator.requests[0].request_id)
    assert cluster not in simulator
    assert asked(simulator) == [("DELETE", f"{CLUSTERS}/c-1", {"type": given})]


@settings(max_examples=20)
@given(st.from_regex(PROJECT_ID, fullmatch=True), st.from_regex(CLUSTER_ID, fullmatch=True))
def test_nothing_but_that_very_cluster_is_ever_deleted(project_id: str, cluster_id: str) -> None:
    simulator, modelarts, clock = SHARED.parts()
    ref = ClusterRef("cn-southwest-2", project_id, cluster_id)
    before = len(simulator.requests)
    modelarts.look(ref, None, clock=clock)
    modelarts.members(replace(THE_CLUSTER, ref=ref), clock=clock)
    modelarts.listed(project_id, "HPS", clock=clock)
    modelarts.delete(replace(THE_CLUSTER, ref=ref), clock=clock)
    requests = simulator.requests[before:]
    deletes = [request.path for request in requests if request.method != "GET"]
    assert deletes == [f"/v1/{project_id}/dev-servers/hyper-clusters/{cluster_id}"]
    assert {request.call for request in requests} == {
        Call.SHOW_CLUSTER,
        Call.LIST_SUPERNODES,
        Call.LIST_CLUSTERS,
        Call.DELETE_CLUSTER,
    }


@pytest.mark.parametrize(
    "bad", ["", ".", "..", "../../servers/x", "a/b", "a%2Fb", "a?b", "a#b", "a b", "ä", "a\n", "a" * 65]
)
@pytest.mark.parametrize("name", ["project_id", "cluster_id"])
def test_what_is_no_id_never_becomes_part_of_a_path(name: str, bad: str) -> None:
    with pytest.raises(ValueError, match=name):
        replace(REF, **{name: bad})


@dataclass
class Shared:
    """One simulator for all examples of a property."""

    simulator: Simulator | None = None

    def parts(self) -> tuple[Simulator, ModelArts, FakeClock]:
        assert self.simulator
        return self.simulator, ModelArts(self.simulator.url, Keys(key_pair(self.simulator))), FakeClock()


SHARED = Shared()


@pytest.fixture(scope="module", autouse=True)
def _shared() -> Iterator[None]:
    with Simulator(clock=FakeClock().now) as SHARED.simulator:
        yield


# Signing


@pytest.mark.usefixtures("there")
def test_every_call_is_signed_and_names_its_project(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    for act in ACTS.values():
        act(modelarts, clock)
    for request in simulator.requests:
        assert request.status in (200, 204)
        assert request.headers["x-project-id"] == "p1"
        assert request.headers["x-sdk-date"] == "20260715T120000Z"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["host"] == simulator.url.removeprefix("http://")
        signed = re.search("SignedHeaders=([^,]*)", request.headers["authorization"])
        assert signed
        assert signed[1] == "content-type;host;x-project-id;x-sdk-date"
        assert set(request.headers) <= {
            *signed[1].split(";"),
            *("authorization", "accept", "accept-encoding", "user-agent", "connection", "content-length"),
        }


@pytest.mark.usefixtures("there")
def test_every_request_is_signed_afresh_also_one_that_is_sent_again(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    simulator.fail(Answer(429, headers={"Retry-After": "2"}), on=Call.SHOW_CLUSTER)
    assert modelarts.look(REF, "HPS", clock=clock) == THE_CLUSTER
    clock.sleep(timedelta(minutes=16))
    clock.next_delivery()
    assert modelarts.look(REF, "HPS", clock=clock) == THE_CLUSTER
    dates = [request.headers["x-sdk-date"] for request in simulator.requests]
    assert dates == ["20260715T120000Z", "20260715T120002Z", "20260715T121602Z"]
    assert len({request.headers["authorization"] for request in simulator.requests}) == 3


@pytest.mark.usefixtures("there")
def test_temporary_keys_bring_their_security_token_signed(
    simulator: Simulator, modelarts: ModelArts, keys: Keys, clock: FakeClock
) -> None:
    simulator.rotate(security_token="token+/=" * 200)
    keys.now = key_pair(simulator)
    for act in ACTS.values():
        act(modelarts, clock)
    assert {request.status for request in simulator.requests} == {200, 204}
    for request in simulator.requests:
        assert "x-sdk-date;x-security-token" in request.headers["authorization"]


# Credentials


@EACH_CALL
@pytest.mark.usefixtures("there")
def test_after_a_401_the_credentials_are_renewed_once(
    simulator: Simulator, modelarts: ModelArts, keys: Keys, clock: FakeClock, call: Call
) -> None:
    simulator.rotate()
    keys.next = [key_pair(simulator)]
    ACTS[call](modelarts, clock)
    assert simulator.requests[0].status == 401
    assert simulator.count(call) == 2
    assert keys.renewals == 1
    ACTS[Call.LIST_CLUSTERS](modelarts, clock)
    assert keys.renewals == 1


@EACH_CALL
def test_a_second_401_is_final_for_this_delivery(
    simulator: Simulator, modelarts: ModelArts, keys: Keys, clock: FakeClock, call: Call
) -> None:
    simulator.rotate()
    assert retried(lambda: ACTS[call](modelarts, clock)).reason == "credentials_refused"
    assert simulator.count(call) == 2
    assert keys.renewals == 1


@pytest.mark.parametrize("when", ["get", "renewed"])
def test_without_credentials_nothing_is_sent(simulator: Simulator, clock: FakeClock, keys: Keys, when: str) -> None:
    def missing(*_: object) -> Credentials:
        raise RetryLater("credentials_unavailable", "the secret x is empty")

    setattr(keys, when, missing)
    simulator.rotate()
    modelarts = ModelArts(simulator.url, keys)
    assert retried(lambda: modelarts.look(REF, "HPS", clock=clock)).reason == "credentials_unavailable"
    assert len(simulator.requests) == (when == "renewed")


# Patience


@EACH_CALL
@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [
        ("7", 7),
        ("0", 1),
        ("Wed, 15 Jul 2026 12:00:07 GMT", 7),
        ("Wed, 15 Jul 2026 11:00:00 GMT", 1),
        ("39", 39),
        ("40", None),
        ("86400", None),
        ("Thu, 16 Jul 2026 12:00:00 GMT", None),
        ("soon", None),
        ("-1", None),
        ("Wed, 15 Jul 2026 12:00:07 +99999999999999999999", None),
        (None, None),
    ],
)
@pytest.mark.usefixtures("there")
def test_a_429_is_waited_out_once_if_it_says_for_how_long_and_there_is_time(
    simulator: Simulator,
    modelarts: ModelArts,
    clock: FakeClock,
    *,
    call: Call,
    retry_after: str | None,
    waited: int | None,
) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    simulator.fail(Answer(429, headers=headers), on=call)
    if waited is None:
        assert retried(lambda: ACTS[call](modelarts, clock)).reason == "throttled"
        assert simulator.count(call) == 1
    else:
        ACTS[call](modelarts, clock)
        assert simulator.count(call) == 2
    assert clock.now() - NOW == timedelta(seconds=waited or 0)


def test_a_second_429_is_final_for_this_delivery(simulator: Simulator, modelarts: ModelArts, clock: FakeClock) -> None:
    simulator.fail(Answer(429, headers={"Retry-After": "1"}), on=Call.DELETE_CLUSTER, times=None)
    assert retried(lambda: modelarts.delete(THE_CLUSTER, clock=clock)).reason == "throttled"
    assert simulator.count(Call.DELETE_CLUSTER) == 2


def test_when_the_time_of_the_delivery_is_up_nothing_is_sent_any_more(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock
) -> None:
    clock.sleep(timedelta(seconds=40))
    assert retried(lambda: modelarts.delete(THE_CLUSTER, clock=clock)).reason == "modelarts_unavailable"
    assert simulator.requests == ()


# Faults of the line

LOST: dict[str, Fault] = {
    "reset": Reset(),
    "dropped": Drop(),
    "slow": Slow(3.0),
    "dripping_head": Drip(1.0, headers=True),
    "dripping_body": Drip(1.0, answer=Answer(200, body=b"{}")),
    "html": Answer(200, body=b"<html><body>Welcome</body></html>", headers={"Content-Type": "text/html"}),
    "empty": Answer(200),
    "broken_json": Answer(200, body=b'{"id": "c-1", "na'),
    "list_instead": Answer.json(200, [{"id": "c-1", "name": "ci-a"}]),
    "huge": Answer(200, body=BIG),
    "bomb": Answer(200, body=gzip.compress(b" " * 20_000_000, 1), headers={"Content-Encoding": "gzip"}),
    "no_gzip": Answer(200, body=b"{}" * 50, headers={"Content-Encoding": "gzip"}),
    "cut_short": Answer(200, body=b'{"id"', headers={"Content-Length": "500"}),
    "no_length": Answer(200, body=b"{}", headers={"Content-Length": "-5"}),
    "redirected": Answer(302, headers={"Location": "/v1/p1/dev-servers/hyper-clusters"}),
    "redirected_to_nowhere": Answer(302, headers={"Location": "http://["}),
    "redirected_to_no_text": Answer(308, headers={"Location": "/\xff"}),
    "redirected_with_a_huge_body": Answer(307, body=BIG, headers={"Location": "/"}),
}
# A DELETE that is answered with 200 is accepted, whatever stands in the body.
FOR_A_GET = {"html", "empty", "broken_json", "list_instead", "no_length"}


@pytest.mark.parametrize("fault", LOST)
@pytest.mark.parametrize("call", [Call.SHOW_CLUSTER, Call.DELETE_CLUSTER])
@pytest.mark.usefixtures("there")
def test_an_answer_that_is_lost_or_cannot_be_read_is_a_fault_and_the_call_is_not_repeated(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, call: Call, fault: str
) -> None:
    simulator.fail(LOST[fault], on=call)
    if call is Call.DELETE_CLUSTER and fault in FOR_A_GET:
        assert isinstance(modelarts.delete(THE_CLUSTER, clock=clock), Accepted)
    else:
        retry = retried(lambda: ACTS[call](modelarts, clock))
        assert retry.reason == "modelarts_unavailable"
    assert simulator.count(call) == 1
    assert len(simulator.requests) == 1


@pytest.mark.parametrize(
    "fault", [Reset(sent=30), Reset(sent=5), Drop(sent=11), Drop(sent=5), Reset(), Drop(), Slow(1.0)]
)
@pytest.mark.usefixtures("there")
def test_a_delete_that_was_carried_out_and_whose_answer_was_lost_is_a_fault(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, fault: Fault
) -> None:
    simulator.fail(fault, on=Call.DELETE_CLUSTER, after_effect=True)
    assert retried(lambda: modelarts.delete(THE_CLUSTER, clock=clock)).reason == "modelarts_unavailable"
    assert simulator.count_effective_deletes() == 1
    assert simulator.count(Call.DELETE_CLUSTER) == 1
    assert isinstance(modelarts.look(REF, "HPS", clock=clock), Absent)


@pytest.mark.usefixtures("there")
def test_a_slow_answer_that_is_in_time_is_read(simulator: Simulator, modelarts: ModelArts, clock: FakeClock) -> None:
    simulator.fail(Drip(0.001), on=Call.SHOW_CLUSTER)
    assert modelarts.look(REF, "HPS", clock=clock) == THE_CLUSTER


@pytest.mark.usefixtures("there")
def test_a_dripping_answer_is_not_believed_once_the_time_is_up(simulator: Simulator, keys: Keys) -> None:
    class RealClock(FakeClock):
        until = time.monotonic() + 0.5

        def left(self) -> timedelta:
            return timedelta(seconds=self.until - time.monotonic())

    simulator.fail(Drip(0.01), on=Call.SHOW_CLUSTER)
    modelarts = ModelArts(simulator.url, keys)
    retry = retried(lambda: modelarts.look(REF, "HPS", clock=RealClock()))
    assert (retry.reason, "too slow" in retry.detail) == ("modelarts_unavailable", True)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_where_nobody_answers_is_a_fault(simulator: Simulator, keys: Keys, clock: FakeClock, scheme: str) -> None:
    # A port where nobody listens, and one where nobody speaks TLS.
    url = f"http://127.0.0.1:{free_port()}" if scheme == "http" else simulator.url.replace("http", "https")
    modelarts = ModelArts(url, keys)
    assert retried(lambda: modelarts.look(REF, "HPS", clock=clock)).reason == "modelarts_unavailable"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@EACH_CALL
def test_a_redirect_is_never_followed(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, call: Call, status: int
) -> None:
    with Simulator() as elsewhere:
        simulator.fail(Answer(status, headers={"Location": f"{elsewhere.url}{CLUSTERS}/c-1"}), on=call)
        assert retried(lambda: ACTS[call](modelarts, clock)).reason == "modelarts_unavailable"
        assert elsewhere.requests == ()
    assert len(simulator.requests) == 1


def test_no_cookie_is_kept(simulator: Simulator, modelarts: ModelArts, clock: FakeClock) -> None:
    simulator.fail(Answer(500, headers={"Set-Cookie": "session=1; Path=/"}))
    retried(lambda: modelarts.look(REF, "HPS", clock=clock))
    modelarts.look(REF, "HPS", clock=clock)
    assert "cookie" not in simulator.requests[-1].headers


@settings(max_examples=30)
@given(
    st.sampled_from([200, 204, 301, 400, 401, 403, 404, 409, 429, 500]),
    st.one_of(st.binary(max_size=60), st.sampled_from([b'{"id":"c-1","name":"a"}', b'{"data":[]}', b'{"data":[{}]}'])),
    st.dictionaries(
        st.sampled_from(["Retry-After", "Location", "Content-Type", "X-Request-Id", "Set-Cookie", "Content-Encoding"]),
        st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20),
    ),
)
def test_whatever_is_answered_a_call_ends_in_our_words(status: int, body: bytes, headers: dict[str, str]) -> None:
    simulator, modelarts, clock = SHARED.parts()
    for act in ACTS.values():
        simulator.fail(Answer(status, body=body, headers=headers))
        try:
            found = act(modelarts, clock)
        except RetryLater:
            continue
        finally:
            simulator.heal()
        assert isinstance(found, Cluster | Absent | Accepted | NotFound | Refused | tuple | frozenset)


@pytest.mark.usefixtures("there")
def test_many_threads_share_it(simulator: Simulator, keys: Keys, clock: FakeClock) -> None:
    modelarts = ModelArts(simulator.url, keys)
    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(lambda _: modelarts.look(REF, "HPS", clock=clock), range(64)))
    assert found == [THE_CLUSTER] * 64
    assert {request.status for request in simulator.requests} == {200}


# What the environment cannot change


@pytest.mark.usefixtures("there")
def test_neither_proxy_nor_netrc_is_used(
    simulator: Simulator, keys: Keys, clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login someone password canary\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    modelarts = ModelArts(simulator.url, keys)
    assert modelarts.look(REF, "HPS", clock=clock) == THE_CLUSTER
    assert simulator.requests[0].headers["authorization"].startswith("SDK-HMAC-SHA256 ")


# What must not be shown

CANARIES = Credentials("CANARYACCESSKEY", "canary-secret-key", "canary-security-token-" + "x" * 300)


@contextmanager
def echoing(answer: Callable[[dict[str, str]], tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """Serve a ModelArts that answers with what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answer({name.lower(): value for name, value in self.headers.items()})
            self.send_response(status, headers.pop("reason", None))
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_DELETE = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _json(sent: dict[str, str], name: str) -> bytes:
    text = " ".join(f"{key}: {value}" for key, value in sent.items()).replace('"', "'")
    return f'{{"{name}": "{text}"}}'.encode()


ECHOES: dict[str, Callable[[dict[str, str]], tuple[int, dict[str, str], bytes]]] = {
    "error_msg": lambda sent: (401, {}, _json(sent, "error_msg")),
    "error_code": lambda sent: (403, {}, _json(sent, "error_code")),
    "token_as_code": lambda sent: (400, {}, f'{{"code": "x.{sent["x-security-token"]}"}}'.encode()),
    "html": lambda sent: (502, {}, b"<html>" + _json(sent, "x")),
    "success": lambda sent: (200, {}, _json(sent, "id")),
    "location": lambda sent: (302, {"Location": f"/?{sent['authorization']}"}, b""),
    "request_id": lambda sent: (500, {"X-Request-Id": sent["authorization"]}, b""),
    "token_as_request_id": lambda sent: (500, {"X-Request-Id": sent["x-security-token"]}, b""),
    "retry_after": lambda sent: (429, {"Retry-After": sent["x-security-token"]}, b""),
    "status_line": lambda sent: (500, {"reason": sent["authorization"]}, b""),
    "no_gzip": lambda sent: (200, {"Content-Encoding": "gzip"}, _json(sent, "id")),
}


@EACH_CALL
@pytest.mark.parametrize("echo", ECHOES)
def test_no_secret_and_no_header_is_shown_whatever_the_answer_holds(echo: str, call: Call, clock: FakeClock) -> None:
    with echoing(ECHOES[echo]) as url:
        modelarts = ModelArts(url, Keys(CANARIES))
        try:
            shown = repr(ACTS[call](modelarts, clock))
        except RetryLater as retry:
            shown = "".join(traceback.format_exception(retry)) + repr(retry) + str(vars(retry))
    for secret in ("CANARY", "canary", "SDK-HMAC", "Signature"):
        assert secret not in shown


class Heard(logging.Handler):
    """What reaches the root logger, which is where the framework listens (LOG_EXECUTION_ID)."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(logging.Formatter().format(record))


@pytest.fixture
def heard() -> Iterator[Heard]:
    handler = Heard()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize("fault", [Drop(sent=22), Reset(sent=22)])
@pytest.mark.usefixtures("there")
def test_no_library_logs_what_stands_in_an_answer(
    simulator: Simulator, modelarts: ModelArts, clock: FakeClock, fault: Fault, heard: Heard
) -> None:
    simulator.fail(fault, on=Call.SHOW_CLUSTER, after_effect=True)
    assert retried(lambda: modelarts.look(REF, "HPS", clock=clock)).reason == "modelarts_unavailable"
    assert heard.texts == []


@pytest.mark.parametrize("fault", ["reset", "dropped", "slow", "no_gzip", "cut_short"])
def test_no_secret_is_shown_when_the_line_fails(
    simulator: Simulator, keys: Keys, modelarts: ModelArts, clock: FakeClock, fault: str
) -> None:
    keys.now = CANARIES
    simulator.fail(LOST[fault])
    retry: Any = retried(lambda: modelarts.look(REF, "HPS", clock=clock))
    shown = "".join(traceback.format_exception(retry)) + repr(retry) + repr(modelarts) + repr(CANARIES)
    assert "anary" not in shown.lower()
