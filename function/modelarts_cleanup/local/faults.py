"""Says what can go wrong with a request, and keeps the plan of what shall go wrong with which."""

import json
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import TypeAlias

from modelarts_cleanup.local.modelarts_api import Call


@dataclass(frozen=True, slots=True)
class Answer:
    """
    A fixed answer: any status, headers and body.

    `Content-Length` is added where it is not given. One that is given is sent as it stands, right or wrong,
    and the connection is closed after it.
    """

    status: int
    _: KW_ONLY
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, status: int, content: object, *, headers: Mapping[str, str] | None = None) -> "Answer":
        """Answer with `content` as JSON."""
        return cls(
            status,
            body=json.dumps(content).encode(),
            headers={"Content-Type": "application/json", **(headers or {})},
        )

    @classmethod
    def error(
        cls, status: int, code: str, *, message: str = "As planned.", headers: Mapping[str, str] | None = None
    ) -> "Answer":
        """Answer with an error in the shape of ModelArts."""
        return cls.json(status, {"error_code": code, "error_msg": message}, headers=headers)


@dataclass(frozen=True, slots=True)
class Slow:
    """The answer, genuine or the given one, comes after so many seconds."""

    seconds: float
    _: KW_ONLY
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Drip:
    """The answer's body comes byte by byte, `seconds` apart; with `headers`, so does all before it."""

    seconds: float
    _: KW_ONLY
    headers: bool = False
    answer: Answer | None = None


@dataclass(frozen=True, slots=True)
class Reset:
    """The connection is reset (TCP RST), after the first `sent` bytes of the genuine answer."""

    _: KW_ONLY
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """The connection is closed in good order, after the first `sent` bytes of the genuine answer."""

    _: KW_ONLY
    sent: int = 0


Fault: TypeAlias = Answer | Slow | Drip | Reset | Drop


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """
    A fault, and the requests it is meant for.

    `on` None means every call, `cluster_id` None every cluster, `times` None for ever; `fault` None that all is well.
    """

    fault: Fault | None
    on: Call | None = None
    cluster_id: str | None = None
    times: int | None = 1
    after_effect: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.fault, Reset | Drop) and self.fault.sent and not self.after_effect:
            raise ValueError("only after the effect is there an answer to send a part of")
        if self.times is not None and self.times < 1:
            raise ValueError("times is 1 or more, or None for ever")

    @property
    def answer(self) -> Answer | None:
        """The answer to give instead of the genuine one."""
        match self.fault:
            case Answer():
                return self.fault
            case Slow(answer=answer) | Drip(answer=answer):
                return answer
        return None

    @property
    def loses_answer(self) -> bool:
        """Whether the client gets no answer, or only a part of one."""
        return isinstance(self.fault, Reset | Drop)

    @property
    def prevents_effect(self) -> bool:
        """Whether ModelArts never gets to carry out the request."""
        return not self.after_effect and (self.loses_answer or self.answer is not None)

    def meets(self, call: Call, cluster_id: str | None) -> bool:
        """Tell whether such a request is meant."""
        return self.on in (None, call) and self.cluster_id in (None, cluster_id)


ALL_WELL = PlannedFault(fault=None)


class FaultPlan:
    """The faults to come, in order. Not thread safe: whoever holds it has the lock."""

    def __init__(self) -> None:
        self._planned: list[PlannedFault] = []
        self._taken: list[int] = []

    def add(self, planned: PlannedFault) -> None:
        """Put a fault behind those that are already planned."""
        self._planned.append(planned)
        self._taken.append(0)

    def clear(self) -> None:
        """Plan nothing any more."""
        self._planned.clear()
        self._taken.clear()

    def take(self, call: Call, cluster_id: str | None) -> PlannedFault:
        """Take the first fault that is meant for such a request and not used up, or ALL_WELL."""
        for number, planned in enumerate(self._planned):
            if planned.meets(call, cluster_id) and self._taken[number] != planned.times:
                self._taken[number] += 1
                return planned
        return ALL_WELL
