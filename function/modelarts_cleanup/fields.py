"""Reads the fields of an event's data, one by one, strictly: nothing is repaired."""

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import TypeVar

from modelarts_cleanup import expiry
from modelarts_cleanup.model import CLUSTER_TYPES, ClusterType

LONGEST_TEXT = 1024

_T = TypeVar("_T")


class InvalidEventError(ValueError):
    """The data of an event cannot be understood; `field` names what is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field} {problem}")
        self.field = field
        self.problem = problem


def identifier(given: Mapping[str, object], name: str, pattern: re.Pattern[str]) -> str:
    """Read an id that matches a pattern as a whole. Raises `InvalidEventError`, as all here do."""
    value = text(given, name, shortest=1)
    if not pattern.fullmatch(value):
        raise InvalidEventError(name, f"does not match {pattern.pattern} as a whole")
    return value


def text(given: Mapping[str, object], name: str, shortest: int = 0) -> str:
    """Read a text of `shortest` to 1024 characters."""
    value = _given(given, name)
    if not isinstance(value, str):
        raise InvalidEventError(name, "is not a text")
    if not shortest <= len(value) <= LONGEST_TEXT:
        raise InvalidEventError(name, f"is not {shortest} to {LONGEST_TEXT} characters long")
    return value


def boolean(given: Mapping[str, object], name: str) -> bool:
    """Read `true` or `false`."""
    value = _given(given, name)
    if not isinstance(value, bool):
        raise InvalidEventError(name, "is not true or false")
    return value


def cluster_type(given: Mapping[str, object]) -> ClusterType:
    """Read the field `type`."""
    value = text(given, "type")
    for known in CLUSTER_TYPES:
        if value == known:
            return known
    raise InvalidEventError("type", f"is not one of {', '.join(CLUSTER_TYPES)}")


def expires_at(given: Mapping[str, object]) -> datetime:
    """Read when the time is up: as told, or when it was created and how long it may live."""
    told = instant(given, "expires_at") if "expires_at" in given else None
    created = instant(given, "created_at") if "created_at" in given else None
    ttl = duration(given, "ttl") if "ttl" in given else None
    if created is not None and ttl is not None:
        try:
            computed = created + ttl
        except OverflowError:
            raise InvalidEventError("created_at", "with ttl is a date that does not exist") from None
        if told not in (None, computed):
            raise InvalidEventError("expires_at", "is not created_at + ttl; only one of them can be right")
        return computed
    if told is not None:
        return told
    if created is None and ttl is None:
        raise InvalidEventError("expires_at", "is missing, and so are created_at and ttl")
    raise InvalidEventError("created_at" if created is None else "ttl", "is missing, and there is no expires_at")


def instant(given: Mapping[str, object], name: str) -> datetime:
    """Read an instant of RFC 3339."""
    try:
        return expiry.instant(text(given, name))
    except expiry.UnreadableError as error:
        raise InvalidEventError(name, str(error)) from None


def duration(given: Mapping[str, object], name: str) -> timedelta:
    """Read a duration."""
    try:
        return expiry.duration(text(given, name))
    except expiry.UnreadableError as error:
        raise InvalidEventError(name, str(error)) from None


def if_readable(read: Callable[..., _T], given: Mapping[str, object], *arguments: object) -> _T | None:
    """Read a field with one of the above; None if it cannot be read."""
    try:
        return read(given, *arguments)
    except InvalidEventError:
        return None


def _given(given: Mapping[str, object], name: str) -> object:
    if name not in given:
        raise InvalidEventError(name, "is missing")
    return given[name]
