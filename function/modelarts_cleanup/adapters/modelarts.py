"""
Looks at hyper clusters and deletes them over HTTPS, each request signed afresh.

The calls: https://support.huaweicloud.com/intl/en-us/api-modelarts/ShowHyperCluster.html and its
neighbours; what their answers mean stands in `answers`.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol
from urllib.parse import urlencode

import requests
from requests.structures import CaseInsensitiveDict

from modelarts_cleanup.adapters.answers import (
    Answer,
    ClusterBody,
    ListBody,
    Meaning,
    SupernodesBody,
    meaning,
    retry,
    shaped,
    unavailable,
    waiting_time,
)
from modelarts_cleanup.adapters.direct import DirectSession
from modelarts_cleanup.cleanup import Clock
from modelarts_cleanup.model import (
    CLUSTER_TYPES,
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
from modelarts_cleanup.signing import Credentials, authorization, sdk_date

CONNECT_SECONDS = 5.0
READ_SECONDS = 10.0
LARGEST_ANSWER = 8 * 1024 * 1024


class CredentialsSource(Protocol):
    """Where the key pair comes from; each raises `RetryLater` with `credentials_unavailable`."""

    def get(self) -> Credentials:
        """Give the key pair, at most five minutes old."""
        ...

    def renewed(self, stale: Credentials) -> Credentials:
        """Read the key pair again, as ModelArts did not accept this one."""
        ...


class ModelArts:
    """The hyper clusters of one region. Holds one pooled session; safe to use from many threads."""

    def __init__(
        self,
        endpoint: str,
        credentials: CredentialsSource,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        read_seconds: float = READ_SECONDS,
    ) -> None:
        self._endpoint = endpoint
        self._timeouts = (connect_seconds, read_seconds)
        self._host = endpoint.partition("://")[2]
        self._credentials = credentials
        self._session = DirectSession()

    def look(self, ref: ClusterRef, cluster_type: ClusterType | None, *, clock: Clock) -> Cluster | Absent:
        """
        Read the cluster, now.

        It counts as absent only by ModelArts' own "not found", or by a bare 404 that the list of
        clusters confirms; without a type, for both types. Raises `RetryLater`.
        """
        absent = Absent()
        for one in (cluster_type,) if cluster_type else CLUSTER_TYPES:
            found = self._look(ref, one, clock)
            if isinstance(found, Cluster):
                return found
            absent = found
        return absent

    def members(self, cluster: Cluster, *, clock: Clock) -> tuple[Member, ...]:
        """
        Read the supernodes that name the cluster in `hps_cluster_id`; those that have ended are none.

        Raises `RetryLater`, also if not all supernodes could be read.
        """
        answer = self._call("GET", cluster.ref.project_id, "hyperinstance/all", None, clock)
        body = shaped(answer, "the list of supernodes", SupernodesBody)
        if body.total is not None and body.total > len(body.data):
            raise unavailable(f"{len(body.data)} of {body.total} supernodes were listed", answer)
        return body.members(cluster.ref.cluster_id)

    def delete(self, cluster: Cluster, *, clock: Clock) -> Accepted | NotFound | Refused:
        """Send the DELETE. Raises `RetryLater` if its answer is lost, a fault, or asks for patience."""
        ref = cluster.ref
        answer = self._call("DELETE", ref.project_id, f"hyper-clusters/{ref.cluster_id}", cluster.type, clock)
        if answer.status in (200, 204):
            return Accepted(request_id=answer.request_id)
        match meaning(answer.status, answer.code):
            case Meaning.NOT_FOUND | Meaning.BARE_404:
                return NotFound(request_id=answer.request_id)
            case Meaning.REFUSED:
                return Refused(status=answer.status, code=answer.code, request_id=answer.request_id)
            case _:
                raise retry(answer, "the DELETE")

    def listed(self, project_id: str, cluster_type: ClusterType, *, clock: Clock) -> frozenset[str]:
        """List the ids of the clusters of one type. Raises `RetryLater`."""
        answer = self._call("GET", project_id, "hyper-clusters", cluster_type, clock)
        return frozenset(cluster.id for cluster in shaped(answer, "the list of clusters", ListBody).hyper_clusters)

    def _look(self, ref: ClusterRef, cluster_type: ClusterType, clock: Clock) -> Cluster | Absent:
        answer = self._call("GET", ref.project_id, f"hyper-clusters/{ref.cluster_id}", cluster_type, clock)
        if answer.status == 200:
            body = shaped(answer, "the cluster", ClusterBody)
            if body.id != ref.cluster_id:
                raise unavailable("the answer is about another cluster than was asked for", answer)
            return Cluster(ref=ref, type=cluster_type, name=body.name)
        match meaning(answer.status, answer.code):
            case Meaning.NOT_FOUND:
                return Absent(request_id=answer.request_id)
            case Meaning.BARE_404:
                if ref.cluster_id in self.listed(ref.project_id, cluster_type, clock=clock):
                    raise unavailable("a cluster that is listed could not be shown", answer)
                return Absent(request_id=answer.request_id)
            case _:
                raise retry(answer, "the look at the cluster")

    def _call(self, method: str, project_id: str, what: str, cluster_type: ClusterType | None, clock: Clock) -> Answer:
        """
        Send a request and read its answer, whatever it is.

        It is sent again once with renewed credentials after a 401, and once after a wait that a 429
        asked for, if this delivery has the time; neither of them was carried out.
        """
        call = _Call(method, f"/v1/{project_id}/dev-servers/{what}", project_id, cluster_type)
        credentials = self._credentials.get()
        answer = self._send(call, credentials, clock)
        if answer.status == 401:
            credentials = self._credentials.renewed(credentials)
            answer = self._send(call, credentials, clock)
        if answer.status == 429:
            wait = waiting_time(answer.headers.get("Retry-After"), now=clock.now())
            # Without a time that is said and short, asking again would only count against the limit.
            if wait is not None and wait < clock.left():
                clock.sleep(wait)
                answer = self._send(call, credentials, clock)
        return answer

    def _send(self, call: "_Call", credentials: Credentials, clock: Clock) -> Answer:
        left = clock.left().total_seconds()
        if left <= 0:
            raise RetryLater("modelarts_unavailable", "the time of one delivery is up")
        try:
            # Prepared by hand, as nothing of it is left to be repaired or merged, which costs a millisecond.
            prepared = requests.PreparedRequest()
            prepared.method = call.method
            prepared.url = f"{self._endpoint}{call.path}?{urlencode(call.query)}".rstrip("?")
            prepared.headers = CaseInsensitiveDict(call.headers(self._host, credentials, clock))
            prepared.headers["Content-Length"] = "0"
            with self._session.send(
                prepared,
                timeout=(min(self._timeouts[0], left), min(self._timeouts[1], left)),
                allow_redirects=False,
                stream=True,
                proxies={},
            ) as response:
                return Answer(response.status_code, _body(response, clock), response.headers)
        except (OSError, ValueError) as error:  # what requests raises is one of them
            # The exception's text may hold the whole request; its kind is all that is told.
            raise RetryLater("modelarts_unavailable", f"no answer to {call.method}: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class _Call:
    method: str
    path: str
    project_id: str
    cluster_type: ClusterType | None

    @property
    def query(self) -> dict[str, str]:
        return {"type": self.cluster_type} if self.cluster_type else {}

    def headers(self, host: str, credentials: Credentials, clock: Clock) -> dict[str, str]:
        signed = {
            "Host": host,
            "Content-Type": "application/json",
            "X-Project-Id": self.project_id,
            "X-Sdk-Date": sdk_date(clock.now()),
        }
        if credentials.security_token:
            signed["X-Security-Token"] = credentials.security_token
        signature = authorization(
            self.method,
            self.path,
            query=self.query.items(),
            headers=signed,
            credentials=credentials,
        )
        return {**signed, "Authorization": signature, "Accept": "application/json", "User-Agent": "modelarts-cleanup"}


def _body(response: requests.Response, clock: Clock) -> bytes:
    chunks: list[bytes] = []
    size = 0
    for chunk in response.iter_content(64 * 1024):
        chunks.append(chunk)
        size += len(chunk)
        if size > LARGEST_ANSWER or clock.left() <= timedelta():
            raise RetryLater("modelarts_unavailable", "the answer is too large or too slow")
    return b"".join(chunks)
