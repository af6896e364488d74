"""The command `check`: says what is wrong with a deployment, in words to act on, and changes nothing."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Final

import click

from modelarts_cleanup import credentials, places, settings, webhook, world
from modelarts_cleanup.adapters.modelarts import ModelArts
from modelarts_cleanup.deadline import DeliveryClock
from modelarts_cleanup.local import effective, looks
from modelarts_cleanup.local.screen import cell, screen, show, table, word, write_json
from modelarts_cleanup.model import CLUSTER_TYPES, Cluster, ClusterRef, RetryLater, RetryReason

_WEBHOOK: Final = ("EXPIRY_SINK", "WEBHOOK_SECRETS")
# No cluster of this id is asked for: the members of all clusters come in one list.
_NO_CLUSTER: Final = "none"
_STAND_IN: Final = {"COMPLETION_SINK": "file:///-", "LEDGER": "sqlite:///-"}
_HINTS: Final[Mapping[RetryReason, str]] = {
    "credentials_refused": "the key pair is not accepted (401), its user lacks the right to read hyper clusters (403), "
    "or it belongs to another project (ModelArts.0210)",
    "misconfigured_endpoint": "MODELARTS_ENDPOINT has no such API: it names another service, or another region",
    "modelarts_unavailable": "ModelArts cannot be reached from here, or fails; it may answer so, too, for a project "
    "that has none of these",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found at one place: it is well, or what is wrong."""

    place: str
    well: bool
    detail: str


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document instead of a table.")
def check(*, as_json: bool) -> None:
    """
    Check a deployment, and change nothing.

    The deployment is the one that the settings in the environment describe. It reads the settings, the secrets, the
    ledger and the lists of clusters and supernodes of every allowed project, and sees whether the sinks take events,
    without sending one. What cannot be known without writing, like the right to delete clusters, it does not claim.
    The settings of `webhook` are looked at if one of them is set, and alone if no other one is.

    Ends with 0 only if all is well.
    """
    found = list(findings(os.environ))
    well = all(one.well for one in found)
    if as_json:
        write_json({"ok": well, "findings": [asdict(one) for one in found]})
    else:
        rows = table("place", "", "what was found")
        for one in found:
            rows.add_row(one.place, word("ok" if one.well else "wrong"), cell(one.detail))
        shown = screen()
        show(shown, "The deployment that these settings describe", rows)
        wrong = sum(not one.well for one in found)
        shown.print(word("ok").append(": all is well", "") if well else word("wrong").append(f": {wrong} of these", ""))
    if not well:
        click.get_current_context().exit(1)


def findings(environment: Mapping[str, str]) -> Iterator[Finding]:
    """Look at one place after the other; one that is wrong keeps no other from being looked at."""
    of_webhook = any(name in environment for name in _WEBHOOK)
    of_cleanup = not of_webhook or any(name in environment for name in settings.NAMES if name not in _WEBHOOK)
    problems = effective.problems(environment) if of_cleanup else ()
    problems += _webhook_problems(environment) if of_webhook else ()
    for problem in problems:
        name, _, wrong = problem.partition(" ")
        yield Finding(name, well=False, detail=wrong)
    if not problems:
        yield Finding("settings", well=True, detail="all can be read")
    unusable = {problem.partition(" ")[0] for problem in problems}
    for name, look in _LOOKS.items():
        if name in environment and name not in unusable:
            yield _looked(name, partial(look, environment[name]))
    if of_cleanup and not unusable - {*_WEBHOOK, *_STAND_IN}:
        yield from _modelarts(settings.read({**environment, **_STAND_IN}))


def _key_pair(url: str) -> str:
    world.secret(places.secret(url), read=credentials.read).get()
    return "can be read, and holds a key pair"


def _webhook_secrets(url: str) -> str:
    found = world.secret(places.secret(url), read=webhook.secrets).get()
    return f"can be read, and holds {len(found)} webhook secret{'s' if len(found) > 1 else ''}"


def _ledger(url: str) -> str:
    return looks.ledger(places.ledger(url))


def _sink(url: str) -> str:
    return looks.sink(places.sink(url))


_LOOKS: Final[Mapping[str, Callable[[str], str]]] = {
    "CREDENTIALS": _key_pair,
    "LEDGER": _ledger,
    "COMPLETION_SINK": _sink,
    "EXPIRY_SINK": _sink,
    "WEBHOOK_SECRETS": _webhook_secrets,
}


def _webhook_problems(environment: Mapping[str, str]) -> tuple[str, ...]:
    try:
        settings.read_webhook(environment)
    except settings.SettingsError as error:
        return error.problems
    return ()


def _modelarts(given: settings.Settings) -> Iterator[Finding]:
    """Read what the function reads of every allowed project, by the very client that it uses."""
    clusters = ModelArts(given.endpoint, world.secret(given.credentials, read=credentials.read))
    for project in given.policy.allowed_projects:
        yield _looked(f"clusters of {project}", partial(_listed, clusters, project))
        if given.policy.require_empty:
            ref = ClusterRef(given.policy.region, project, _NO_CLUSTER)
            cluster = Cluster(ref=ref, type="HPS", name=_NO_CLUSTER)
            yield _looked(f"supernodes of {project}", partial(_members, clusters, cluster))


def _listed(clusters: ModelArts, project: str) -> str:
    count = {one: len(clusters.listed(project, one, clock=DeliveryClock())) for one in CLUSTER_TYPES}
    return "can be listed: " + ", ".join(f"{number} of type {one}" for one, number in count.items())


def _members(clusters: ModelArts, cluster: Cluster) -> str:
    clusters.members(cluster, clock=DeliveryClock())
    return "can be listed"


def _looked(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, well=True, detail=look())
    except RetryLater as error:
        hint = _HINTS.get(error.reason)
        return Finding(name, well=False, detail=error.detail + (f"; {hint}" if hint else ""))
    except looks.WrongError as error:
        return Finding(name, well=False, detail=str(error))
