"""
Says what an answer of ModelArts means: by one table for refusals and faults, by strict shapes for the rest.

The codes: https://support.huaweicloud.com/intl/en-us/api-modelarts/modelarts_03_0095.html and, for the
gateway in front of it, https://support.huaweicloud.com/intl/en-us/devg-apisign/api-sign-errorcode.html.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import Enum, auto
from typing import TypeVar

import msgspec

from modelarts_cleanup.model import Member, RetryLater, RetryReason

_T = TypeVar("_T")
_NOT_FOUND = frozenset({"ModelArts.6404", "ModelArts.6309"})
_NO_SUCH_API = frozenset({"APIGW.0101", "APIGW.0103"})
# 6357 also means "already in that state": a deletion that is already under way.
_BUSY = frozenset({"ModelArts.6355", "ModelArts.6357", "ModelArts.5044", "ModelArts.6101", "ModelArts.7008"})
_THROTTLED = frozenset({"APIGW.0308"})
_NO_RIGHTS = frozenset(
    {"ModelArts.0108", "ModelArts.0112", "ModelArts.0210", *(f"ModelArts.020{digit}" for digit in range(1, 9))},
)
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,31}\.[0-9A-Za-z.]{1,31}")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_ENDED = frozenset({"TERMINATED", "DELETED"})


class Meaning(Enum):
    """What an answer that is no plain success means."""

    NOT_FOUND = auto()
    BARE_404 = auto()
    NO_SUCH_API = auto()
    UNAUTHENTICATED = auto()
    NO_RIGHTS = auto()
    THROTTLED = auto()
    BUSY = auto()
    REFUSED = auto()
    FAULT = auto()


# The first row that fits counts; a code beats the status, and a message text is never read.
_TABLE: tuple[tuple[Callable[[int, str], bool], Meaning], ...] = (
    (lambda status, _: status < 400 or status >= 500, Meaning.FAULT),  # redirects too: none is followed
    (lambda status, _: status == 401, Meaning.UNAUTHENTICATED),
    (lambda status, code: status == 429 or code in _THROTTLED, Meaning.THROTTLED),
    # The gateway's 404 says that there is no such API at this address, nothing of the cluster.
    (lambda status, code: code in _NO_SUCH_API or (status == 404 and code.startswith("APIGW.")), Meaning.NO_SUCH_API),
    (lambda status, _: status == 405, Meaning.NO_SUCH_API),
    # "Not found" is mostly a 400 here.
    (lambda status, code: status in (400, 404) and code in _NOT_FOUND, Meaning.NOT_FOUND),
    (lambda status, _: status == 404, Meaning.BARE_404),
    (lambda _, code: code in _NO_RIGHTS, Meaning.NO_RIGHTS),
    (lambda status, code: status == 403 and code.startswith(("APIGW.", "IAM.", "PAP5.")), Meaning.NO_RIGHTS),
    (lambda _, code: code in _BUSY, Meaning.BUSY),
    # A conflict is with something that is under way, whatever it is called.
    (lambda status, _: status == 409, Meaning.BUSY),
    # Any other 403 may mean "in use", and so may a 400 with a code of ModelArts.
    (lambda status, code: status == 403 or code.startswith("ModelArts."), Meaning.REFUSED),
    (lambda _status, _code: True, Meaning.FAULT),
)


def meaning(status: int, code: str | None) -> Meaning:
    """Say what an answer means that is neither 200 nor 204."""
    return next(found for fits, found in _TABLE if fits(status, code or ""))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer over HTTP, read to its end."""

    status: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    @property
    def code(self) -> str | None:
        """The vendor's error code."""
        return None if self.status < 400 else _error_code(self.body)

    @property
    def request_id(self) -> str | None:
        """The id by which the vendor's support finds the request."""
        found = self.headers.get("X-Request-Id", "")
        return found if _REQUEST_ID.fullmatch(found) else None

    def __str__(self) -> str:
        """Name the answer by what cannot hold a secret."""
        return f"{self.status} {self.code or '(no code)'}" + (f", request {self.request_id}" if self.request_id else "")


class ClusterBody(msgspec.Struct):
    """One cluster (https://support.huaweicloud.com/intl/en-us/api-modelarts/ShowHyperCluster.html)."""

    id: str
    name: str


class ListBody(msgspec.Struct):
    """The clusters of one type (https://support.huaweicloud.com/intl/en-us/api-modelarts/ListHyperCluster.html)."""

    hyper_clusters: list[ClusterBody]


class _ServerBody(msgspec.Struct):
    charging_mode: str | None = None


class _SupernodeBody(msgspec.Struct):
    id: str
    name: str | None = None
    status: str | None = None
    hps_cluster_id: str | None = None
    order_id: str | None = None
    charging_mode: str | None = None
    servers: list[_ServerBody] | None = None


class SupernodesBody(msgspec.Struct):
    """All supernodes of a project, whichever cluster they belong to, if any."""

    data: list[_SupernodeBody]
    total: int | None = None

    def members(self, cluster_id: str) -> tuple[Member, ...]:
        """Give those of one cluster, less those that have ended; an unknown status counts as alive."""
        return tuple(
            Member(id=node.id, name=node.name, status=node.status, prepaid=_is_prepaid(node))
            for node in self.data
            if node.hps_cluster_id == cluster_id and node.status not in _ENDED
        )


def shaped(answer: Answer, what: str, shape: type[_T]) -> _T:
    """Read the body of a success strictly. Raises `RetryLater` if it is none, or has another shape."""
    if answer.status != 200:
        raise retry(answer, what)
    try:
        return msgspec.json.decode(answer.body, type=shape)
    except (msgspec.DecodeError, RecursionError):
        raise unavailable(f"{what} has a shape that cannot be read", answer) from None


def waiting_time(retry_after: str | None, *, now: datetime) -> timedelta | None:
    """
    Read `Retry-After`, as seconds or as an HTTP date; None if it is missing or neither.

    https://www.rfc-editor.org/rfc/rfc9110#field.retry-after
    """
    text = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]{1,9}", text):
        return max(timedelta(seconds=int(text)), timedelta(seconds=1))
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(at - now, timedelta(seconds=1))


def _error_code(body: bytes) -> str | None:
    """Find the vendor's error code: at top level or one level down, under any of its three names."""
    try:
        given = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return None
    levels = [given, *given.values()] if isinstance(given, dict) else []
    for level in levels:
        if isinstance(level, Mapping):
            for name in ("error_code", "errorCode", "code"):
                code = level.get(name)
                if isinstance(code, str) and _CODE.fullmatch(code):
                    return code
    return None


def _is_prepaid(node: _SupernodeBody) -> bool:
    modes = {node.charging_mode, *(server.charging_mode for server in node.servers or ())} - {None}
    # A supernode has no charging mode of its own; where its servers name none, an order speaks for prepaid.
    return "PRE_PAID" in modes or (not modes and bool(node.order_id))


_RETRY: Mapping[Meaning, RetryReason] = {
    Meaning.NO_SUCH_API: "misconfigured_endpoint",
    Meaning.UNAUTHENTICATED: "credentials_refused",
    Meaning.NO_RIGHTS: "credentials_refused",
    Meaning.THROTTLED: "throttled",
    Meaning.BUSY: "busy",
}


def retry(answer: Answer, what: str) -> RetryLater:
    """Turn an answer that lets nothing be decided into the reason to be delivered again."""
    found = meaning(answer.status, answer.code)
    # Reading cannot be refused because something is in use: a 403 to it is about rights.
    if found is Meaning.REFUSED and answer.status == 403:
        found = Meaning.NO_RIGHTS
    return RetryLater(_RETRY.get(found, "modelarts_unavailable"), f"{what} was answered with {answer}")


def unavailable(problem: str, answer: Answer) -> RetryLater:
    """Say that an answer cannot be believed."""
    return RetryLater("modelarts_unavailable", f"{problem} ({answer})")
