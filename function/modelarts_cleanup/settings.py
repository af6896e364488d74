"""Reads the whole environment into one frozen value, or lists everything that is wrong with it."""

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar, cast

import msgspec

from modelarts_cleanup import places
from modelarts_cleanup.guard import Policy
from modelarts_cleanup.model import PROJECT_ID

NAMES = (
    "MODELARTS_REGION",
    "MODELARTS_ENDPOINT",
    "ALLOWED_PROJECTS",
    "ALLOWED_NAMES",
    "PROTECTED_CLUSTERS",
    "DRY_RUN",
    "DELETIONS_PER_HOUR",
    "REQUIRE_EMPTY",
    "CREDENTIALS",
    "COMPLETION_SINK",
    "LEDGER",
    "EXPIRY_SINK",
    "WEBHOOK_SECRETS",
)

_REGION = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]{1,6}")
# Every character of an id or a name, and the longest of them.
_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
_LONGEST = 64
_GLOB = re.compile(r"[A-Za-z0-9_.*?\[\]!-]+")
_GLOB_PART = re.compile(r"\[!?\]?[^\]]*\]|.", re.DOTALL)

_T = TypeVar("_T")


class SettingsError(ValueError):
    """Settings cannot be used; `problems` names all of them and shows no value that could be a secret."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the entry point `cleanup` needs to know."""

    policy: Policy
    endpoint: str
    credentials: places.SecretUrl
    completion_sink: places.SinkUrl
    ledger: places.LedgerUrl


class WebhookSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the entry point `webhook` needs to know, and nothing else."""

    expiry_sink: places.SinkUrl
    webhook_secrets: places.SecretUrl


def read(environment: Mapping[str, str]) -> Settings:
    """Read the settings of `cleanup`. Raises `SettingsError` with all problems at once."""
    reader = _Reader(environment)
    region = reader.required("MODELARTS_REGION", _region)
    settings = Settings(
        policy=Policy(
            region=region,
            allowed_projects=reader.required("ALLOWED_PROJECTS", _projects),
            allowed_names=reader.required("ALLOWED_NAMES", _globs),
            protected_clusters=reader.optional("PROTECTED_CLUSTERS", _globs_or_none, ()),
            dry_run=reader.optional("DRY_RUN", _boolean, default=True),
            deletions_per_hour=reader.optional("DELETIONS_PER_HOUR", _number, 10),
            require_empty=reader.optional("REQUIRE_EMPTY", _boolean, default=True),
        ),
        endpoint=reader.optional(
            "MODELARTS_ENDPOINT", places.endpoint, f"https://modelarts.{region}.myhuaweicloud.com"
        ),
        credentials=reader.required("CREDENTIALS", places.secret),
        completion_sink=reader.required("COMPLETION_SINK", places.sink),
        ledger=reader.required("LEDGER", places.ledger),
    )
    reader.finish()
    return settings


def read_webhook(environment: Mapping[str, str]) -> WebhookSettings:
    """Read the settings of `webhook`; no other one is looked at. Raises `SettingsError`."""
    reader = _Reader(environment)
    settings = WebhookSettings(
        expiry_sink=reader.required("EXPIRY_SINK", places.sink),
        webhook_secrets=reader.required("WEBHOOK_SECRETS", places.secret),
    )
    reader.finish()
    return settings


class _Reader:
    """Reads settings one by one and keeps what is wrong; no value read is used before `finish` has passed."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._problems: list[str] = []

    def required(self, name: str, read: Callable[[str], _T]) -> _T:
        if name in self._environment:
            return self._read(name, read)
        self._problems.append(f"{name} is not set")
        return cast("_T", None)

    def optional(self, name: str, read: Callable[[str], _T], default: _T) -> _T:
        return self._read(name, read) if name in self._environment else default

    def finish(self) -> None:
        if self._problems:
            raise SettingsError(tuple(self._problems))

    def _read(self, name: str, read: Callable[[str], _T]) -> _T:
        try:
            return read(self._environment[name])
        except ValueError as error:
            self._problems.append(f"{name} {error}")
            return cast("_T", None)


def _region(text: str) -> str:
    if not _REGION.fullmatch(text):
        raise ValueError("is not a region like cn-southwest-2")
    return text


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("is not exactly true or false")
    return text == "true"


def _number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError("is not a whole number of at most 6 digits")
    return int(text)


def _items(text: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(","))
    if not any(items):
        raise ValueError("is an empty list")
    if not all(items):
        raise ValueError("has an empty item")
    return items


def _projects(text: str) -> tuple[str, ...]:
    items = _items(text)
    wrong = [number for number, item in enumerate(items, 1) if not PROJECT_ID.fullmatch(item)]
    if wrong:
        raise ValueError(f"has an item that is no project id (number {wrong[0]} of {len(items)})")
    return items


def _globs(text: str) -> tuple[str, ...]:
    items = _items(text)
    wrong = [number for number, item in enumerate(items, 1) if not _can_match(item)]
    if wrong:
        raise ValueError(f"has an item that no id or name can match (number {wrong[0]} of {len(items)})")
    return items


def _globs_or_none(text: str) -> tuple[str, ...]:
    return _globs(text) if text.strip() else ()


def _can_match(glob: str) -> bool:
    # A JSON list of one item would otherwise be taken for a set of characters.
    if not _GLOB.fullmatch(glob):
        return False
    parts = [part for part in _GLOB_PART.findall(glob) if part != "*"]
    return len(parts) <= _LONGEST and all(any(fnmatchcase(char, part) for char in _CHARACTERS) for part in parts)
