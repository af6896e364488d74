"""Takes one request through hook, fault and effect to its answer, and remembers it."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from werkzeug.wrappers import Request as WsgiRequest
from werkzeug.wrappers import Response

from modelarts_cleanup.local.faults import Answer, Fault, FaultPlan, PlannedFault, Slow
from modelarts_cleanup.local.modelarts_api import Call, ModelArtsApi, identify

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment  # exists for type checkers only


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """
    A request that came in, and what became of it.

    `status` and `request_id` are None as long as it has no answer, and for ever if the answer is lost.
    `effective` is true for the DELETE that began the deletion of a cluster. Names in `headers` are lower-case.
    """

    call: Call
    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str] = field(repr=False)
    at: datetime
    project_id: str | None
    cluster_id: str | None
    status: int | None = None
    request_id: str | None = None
    effective: bool = False
    fault: Fault | None = None


class Hooks(Protocol):
    """Whoever wants to know of each request: before anything has happened, and before anything is sent."""

    on_request: Callable[[Request], None]
    on_answer: Callable[[Request], None]


class Exchange:
    """
    What happens to a request between its arrival and its answer.

    The lock guards the world, the plan and the record; neither hooks nor waits hold it.
    """

    def __init__(
        self,
        api: ModelArtsApi,
        plan: FaultPlan,
        *,
        hooks: Hooks,
        lock: threading.Lock,
        clock: Callable[[], datetime],
    ) -> None:
        self._api = api
        self._plan = plan
        self._lock = lock
        self._clock = clock
        self._hooks = hooks
        self._requests: list[Request] = []
        self._hurry = threading.Event()

    @property
    def requests(self) -> tuple[Request, ...]:
        """Every request so far, in the order of arrival."""
        with self._lock:
            return tuple(self._requests)

    def hurry(self) -> None:
        """End every wait, and wait no more."""
        self._hurry.set()

    def resume(self) -> None:
        """Wait again where a fault says so."""
        self._hurry.clear()

    def run(self, environ: "WSGIEnvironment") -> tuple[Answer | None, Fault | None]:
        """Give the answer to a request, if there is one, and the fault to send it with."""
        came = WsgiRequest(environ)
        call, ids = identify(came)
        request = Request(
            call=call,
            method=came.method,
            path=environ["RAW_URI"].partition("?")[0],
            query=MappingProxyType(came.args.to_dict()),
            headers=MappingProxyType({name.lower(): value for name, value in came.headers}),
            at=self._clock(),
            project_id=ids.get("project_id"),
            cluster_id=ids.get("cluster_id"),
        )
        with self._lock:
            number = len(self._requests)
            self._requests.append(request)
        self._hooks.on_request(request)
        with self._lock:
            planned = self._plan.take(request.call, request.cluster_id)
        if not planned.after_effect:
            self._wait(planned.fault)
        request_id = uuid4().hex
        answer, effective = planned.answer, False
        if not planned.prevents_effect:
            with self._lock:
                before = self._api.deletions
                genuine = self._api.answer(came, call, ids, request_id=request_id)
                effective = self._api.deletions > before
            answer = answer or _as_answer(genuine)
        if answer is not None:
            answer = _with_request_id(answer, request_id)
        self._leave(number, request, answer=answer, effective=effective, planned=planned)
        if planned.after_effect:
            self._wait(planned.fault)
        return answer, planned.fault

    def _leave(
        self, number: int, request: Request, *, answer: Answer | None, effective: bool, planned: PlannedFault
    ) -> None:
        done = replace(request, effective=effective, fault=planned.fault)
        if answer is not None and not planned.loses_answer:
            named = {name.lower(): value for name, value in answer.headers.items()}
            done = replace(done, status=answer.status, request_id=named["x-request-id"])
        with self._lock:
            self._requests[number] = done
        self._hooks.on_answer(done)

    def _wait(self, fault: Fault | None) -> None:
        if isinstance(fault, Slow):
            self._hurry.wait(fault.seconds)


def _as_answer(response: Response) -> Answer:
    headers = {name: value for name, value in response.headers if name != "Content-Length"}
    return Answer(response.status_code, body=response.get_data(), headers=headers)


def _with_request_id(answer: Answer, request_id: str) -> Answer:
    if any(name.lower() == "x-request-id" for name in answer.headers):
        return answer
    return replace(answer, headers={**answer.headers, "X-Request-Id": request_id})
