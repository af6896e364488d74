"""The command `explain`: the decision for an event under the present settings, rule by rule, without any call."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

import click
import msgspec

from modelarts_cleanup import envelope, events, expiry, guard
from modelarts_cleanup.guard import Finding, Policy
from modelarts_cleanup.local import effective
from modelarts_cleanup.local.delivery import Delivery, delivery, read_bytes
from modelarts_cleanup.local.screen import cell, screen, show, table, word, write_json
from modelarts_cleanup.model import (
    CLUSTER_TYPES,
    Cluster,
    ClusterType,
    Event,
    Expiry,
    Member,
    Original,
    Rejected,
    RetryLater,
    instant_text,
)
from modelarts_cleanup.settings import SettingsError

_BY_NAME: Final = ("name_differs", "name_not_allowed", "cluster_protected")
_BY_MEMBERS: Final = ("needs_unsubscribe", "has_members")
_NAME_OPEN: Final = "decided when looked at: what ModelArts calls the cluster (play with --name)"
_MEMBERS_OPEN: Final = "decided when looked at: the cluster's members (play with --members)"
_LATEST_OPEN: Final = "decided by the ledger: the latest expiry told for this cluster (play with --latest-expiry)"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a rule says of the event; `objects` is None where only a look, or the ledger, can tell."""

    rule: str
    objects: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Decision:
    """How the event would end; `unless` names the rules before it that are still open."""

    outcome: str
    reason: str | None
    detail: str
    unless: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a look would show, as far as the person who plays says."""

    now: datetime
    latest_expiry: datetime | None
    name: str | None
    type: ClusterType | None
    members: int | None
    prepaid: bool


class Instant(click.ParamType[datetime]):
    """An instant as events write it."""

    name = "instant"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Read it by the grammar of events."""
        try:
            return expiry.instant(str(value))
        except expiry.UnreadableError as error:
            self.fail(f"it {error}", param, ctx)


@click.command()
@click.argument("file")
@click.option("--now", type=Instant(), help="Decide as if it were then, like 2026-07-15T10:00:00Z.")
@click.option("--name", help="Decide as if ModelArts called the cluster so.")
@click.option("--type", "cluster_type", type=click.Choice(CLUSTER_TYPES), help="Decide as if it were of this type.")
@click.option("--members", type=click.IntRange(0, 10_000), help="Decide as if it had so many members.")
@click.option("--prepaid", is_flag=True, help="Decide as if its members were prepaid (one, without --members).")
@click.option("--latest-expiry", type=Instant(), help="Decide as if the ledger had been told this expiry before.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document instead of tables.")
def explain(
    file: str,
    *,
    now: datetime | None,
    name: str | None,
    cluster_type: ClusterType | None,
    members: int | None,
    prepaid: bool,
    latest_expiry: datetime | None,
    as_json: bool,
) -> None:
    """
    Explain how the event in FILE would end, rule by rule.

    The settings are those of the environment. Nothing is called, and no credentials are read: a rule that needs a
    look at the cluster is left open, unless an option says what the look would show. FILE is whatever `send` takes;
    `-` is standard input. Ends with 0 whatever the decision is, and with 2 if the settings or FILE cannot be read.
    """
    try:
        policy = effective.policy(os.environ)
    except SettingsError:
        raise effective.complaint(effective.problems(os.environ)) from None
    event = _event(delivery(read_bytes(file), event_id=None), policy)
    sight = Sight(
        now=now or datetime.now(UTC),
        latest_expiry=latest_expiry,
        name=name,
        type=cluster_type,
        members=1 if prepaid and members is None else members,
        prepaid=prepaid,
    )
    rules, decision = judged(event, policy, sight)
    settings = effective.policy_shown(os.environ, policy)
    notes = effective.problems(os.environ)
    if as_json:
        write_json(
            {
                "decision": asdict(decision),
                "rules": [asdict(rule) for rule in rules],
                "event": _told(event),
                "now": instant_text(sight.now),
                "settings": {shown.name: shown.value for shown in settings},
                "notes": list(notes),
            }
        )
    else:
        _show(event, rules, decision, settings=settings, notes=notes)


def judged(event: Event, policy: Policy, sight: Sight) -> tuple[list[Rule], Decision]:
    """Judge an event by the rules of the guard, in the order in which they count."""
    asks = event.asks
    if isinstance(asks, Rejected):
        return [], Decision("rejected", "invalid_event", f"{asks.field} {asks.problem}")
    if asks.type and sight.type and asks.type != sight.type:
        detail = f"the event asks for type {asks.type} only, and there is none: the cluster is of type {sight.type}"
        rules = list(_rules_on_request(asks, policy, sight))
        objection = _first_objection(rules)
        return rules, objection or Decision("already_gone", None, detail, _open(rules))
    rules = list(_rules_on_request(asks, policy, sight))
    rules += _rules_on_cluster(asks, policy, sight)
    objection = _first_objection(rules)
    return rules, objection or Decision("deleted", None, "no rule objects: the DELETE would be sent", _open(rules))


def _rules_on_request(asks: Expiry, policy: Policy, sight: Sight) -> Iterator[Rule]:
    latest = max(asks.expires_at, sight.latest_expiry or asks.expires_at)
    try:
        for finding in guard.findings_on_request(asks, policy=policy, latest_expiry=latest, now=sight.now):
            if finding.reason == "superseded" and sight.latest_expiry is None:
                yield Rule(finding.reason, None, _LATEST_OPEN)
            else:
                yield _rule(finding)
    except RetryLater as error:
        yield Rule(error.reason, objects=True, detail=error.detail)


def _rules_on_cluster(asks: Expiry, policy: Policy, sight: Sight) -> Iterator[Rule]:
    seen = sight.type or asks.type
    cluster = Cluster(ref=asks.ref, type=seen or "HPS", name=sight.name or "")
    looks_at_members = policy.require_empty and cluster.type == "HPS"
    count = sight.members or 0 if looks_at_members else 0
    members = [Member(id=str(number), name=None, status=None, prepaid=sight.prepaid) for number in range(count)]
    for finding in guard.findings_on_cluster(cluster, expiry=asks, members=members, policy=policy):
        if finding.reason in _BY_NAME and sight.name is None:
            yield Rule(finding.reason, None, _NAME_OPEN)
        elif finding.reason in _BY_MEMBERS and looks_at_members and sight.members is None:
            yield Rule(finding.reason, None, _MEMBERS_OPEN)
        elif finding.reason in _BY_MEMBERS and cluster.type == "ECS":
            yield Rule(finding.reason, objects=False, detail="members are not looked at for a cluster of type ECS")
        else:
            yield _rule(finding)


def _rule(finding: Finding) -> Rule:
    return Rule(finding.reason, finding.objects, finding.detail)


def _first_objection(rules: list[Rule]) -> Decision | None:
    for number, rule in enumerate(rules):
        if rule.objects:
            outcome = "retry" if rule.rule == "expires_soon" else "skipped"
            return Decision(outcome, rule.rule, rule.detail, _open(rules[:number]))
    return None


def _open(rules: list[Rule]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rule.rule for rule in rules if rule.objects is None))


def _event(sent: Delivery, policy: Policy) -> Event:
    asked = sent.as_read()
    found = envelope.read(asked)
    original = Original(content_type=None, head=b"")
    return events.read(found, key=envelope.identity(found, asked), region=policy.region, original=original)


def _told(event: Event) -> Mapping[str, object]:
    told: dict[str, object] = {"id": event.cause.id, "source": event.cause.source}
    asks = event.asks
    if isinstance(asks, Expiry):
        told |= msgspec.structs.asdict(asks.ref) | {"expires_at": instant_text(asks.expires_at)}
        told |= {"type": asks.type, "name": asks.name, "protected": asks.protected}
        return told | {"owner": asks.owner, "reason": asks.reason}
    return told | {"field": asks.field, "problem": asks.problem}


def _show(
    event: Event,
    rules: list[Rule],
    decision: Decision,
    *,
    settings: list[effective.Shown],
    notes: tuple[str, ...],
) -> None:
    shown = screen()
    about = table("field", "value")
    for field, value in _told(event).items():
        if value is not None:
            about.add_row(field, cell(value))
    show(shown, "The event", about)
    deciding = table("setting", "value", "")
    for setting in settings:
        deciding.add_row(setting.name, cell(setting.value), cell("default" if setting.is_default else "", "dim"))
    show(shown, "The settings that decide", deciding)
    if rules:
        judging = table("rule", "", "what decided")
        for rule in rules:
            state = "open" if rule.objects is None else "objects" if rule.objects else "passes"
            judging.add_row(rule.rule, word(state), cell(rule.detail, "dim" if state == "open" else ""))
        show(shown, "The rules, in the order in which they count", judging)
    shown.print(word(decision.outcome, decision.reason), cell(f": {decision.detail}"), sep="")
    if decision.unless:
        shown.print(cell(f"unless one of these, left open above, says otherwise: {', '.join(decision.unless)}"))
    for note in notes:
        shown.print(cell(f"Note, not needed for the decision: {note}", "dim"))
