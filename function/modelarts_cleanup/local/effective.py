"""Reads settings for a person: what counts, what is a default, and all that is wrong, without showing a secret."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from modelarts_cleanup import settings
from modelarts_cleanup.guard import Policy
from modelarts_cleanup.local.screen import CommandError

POLICY: Final = (
    "MODELARTS_REGION",
    "ALLOWED_PROJECTS",
    "ALLOWED_NAMES",
    "PROTECTED_CLUSTERS",
    "DRY_RUN",
    "DELETIONS_PER_HOUR",
    "REQUIRE_EMPTY",
)
_PLACES: Final = ("CREDENTIALS", "COMPLETION_SINK", "LEDGER", "EXPIRY_SINK", "WEBHOOK_SECRETS")
# No decision depends on where these are.
_STAND_IN: Final = {"CREDENTIALS": "file:///-", "COMPLETION_SINK": "file:///-", "LEDGER": "sqlite:///-"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One setting with the value that counts."""

    name: str
    value: str
    is_default: bool


def policy(environment: Mapping[str, str]) -> Policy:
    """Read what decides about an event, whatever else is missing. Raises `SettingsError`."""
    deciding = {name: environment[name] for name in POLICY if name in environment}
    return settings.read({**deciding, **_STAND_IN}).policy


def problems(environment: Mapping[str, str]) -> tuple[str, ...]:
    """List everything that is wrong with the settings of `cleanup`."""
    try:
        settings.read(environment)
    except settings.SettingsError as error:
        return error.problems
    return ()


def complaint(found: tuple[str, ...]) -> CommandError:
    """Say all that is wrong with settings at once."""
    lines = "".join(f"\n  {problem}" for problem in found)
    return CommandError(f"{len(found)} of the settings in the environment cannot be used:{lines}")


def policy_shown(environment: Mapping[str, str], given: Policy) -> list[Shown]:
    """Show each setting of the policy, with those that nobody set."""
    values = (
        given.region,
        ",".join(given.allowed_projects),
        ",".join(given.allowed_names),
        ",".join(given.protected_clusters),
        str(given.dry_run).lower(),
        str(given.deletions_per_hour),
        str(given.require_empty).lower(),
    )
    return [Shown(name, value, name not in environment) for name, value in zip(POLICY, values, strict=True)]


def places_shown(environment: Mapping[str, str], endpoint: str) -> Iterator[Shown]:
    """Show where things are, of readable settings; of a web address only the host, as its path may be a secret."""
    yield Shown("MODELARTS_ENDPOINT", endpoint, "MODELARTS_ENDPOINT" not in environment)
    for name in _PLACES:
        if name in environment:
            url = urlsplit(environment[name])
            of_web = url.scheme in ("http", "https")
            yield Shown(name, f"{url.scheme}://{url.netloc}/…" if of_web else environment[name], is_default=False)
