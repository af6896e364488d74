"""
Objects to what must not be deleted, given policy, time and what was seen.

Each rule answers with a finding in words, whether it objects or not, so that `explain` can show the
very judgement that decides. What is not known is no ground to delete: unknown means keep.
"""

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from fnmatch import fnmatchcase

import msgspec

from modelarts_cleanup.model import Cluster, Expiry, Member, RetryLater, Skipped, SkipReason, instant_text

# So close to the expiry another delivery is cheaper than another event, whoever's clock is wrong.
SOON = timedelta(seconds=60)


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What this deployment may delete. Nothing is allowed that is not listed."""

    region: str
    allowed_projects: tuple[str, ...]
    allowed_names: tuple[str, ...]
    protected_clusters: tuple[str, ...] = ()
    dry_run: bool = True
    deletions_per_hour: int = 10
    require_empty: bool = True


class Finding(msgspec.Struct, frozen=True):
    """What one rule found: the values that decided, and whether it objects."""

    reason: SkipReason
    objects: bool
    detail: str


def findings_on_request(
    expiry: Expiry,
    *,
    policy: Policy,
    latest_expiry: datetime,
    now: datetime,
) -> Iterator[Finding]:
    """
    Judge what is asked, before any call, one finding a rule.

    `latest_expiry` is the latest that was ever told for this cluster. Raises `RetryLater`
    for an expiry less than a minute ahead.
    """
    ref = expiry.ref
    allowed = ref.project_id in policy.allowed_projects
    yield Finding(
        "project_not_allowed",
        not allowed,
        f"project {ref.project_id} is {'' if allowed else 'not '}one of the allowed ones",
    )
    yield Finding(
        "region_not_allowed",
        ref.region != policy.region,
        f"the event is for region {ref.region}, this deployment serves {policy.region}",
    )
    if expiry.protected:
        yield Finding("cluster_protected", objects=True, detail="the event says that the cluster is protected")
    else:
        yield _protection("cluster_id", ref.cluster_id, policy)
    yield Finding(
        "superseded",
        latest_expiry > expiry.expires_at,
        f"the event's expiry is {instant_text(expiry.expires_at)}, the latest one told for this cluster is "
        f"{instant_text(latest_expiry)}",
    )
    early = expiry.expires_at - now
    if timedelta() < early < SOON:
        raise RetryLater("expires_soon", f"expires at {instant_text(expiry.expires_at)}, in less than a minute")
    yield Finding(
        "not_expired",
        early > timedelta(),
        f"expires at {instant_text(expiry.expires_at)}, and it is {instant_text(now)}",
    )


def findings_on_cluster(
    cluster: Cluster,
    *,
    expiry: Expiry,
    members: Iterable[Member],
    policy: Policy,
) -> Iterator[Finding]:
    """Judge what was seen, one finding a rule; the dry run comes last, so that it shows the real decision."""
    yield Finding(
        "name_differs",
        expiry.name is not None and expiry.name != cluster.name,
        f"the cluster is called {cluster.name}" + ("" if expiry.name is None else f", the event says {expiry.name}"),
    )
    allowed = _first_match(cluster.name, policy.allowed_names)
    yield Finding(
        "name_not_allowed",
        allowed is None,
        f"the name {cluster.name} matches {'none of the allowed patterns' if allowed is None else allowed}",
    )
    yield _protection("name", cluster.name, policy)
    members = tuple(members)
    prepaid = sum(member.prepaid for member in members)
    yield Finding(
        "needs_unsubscribe",
        prepaid > 0,
        f"prepaid members, which can only be unsubscribed: {prepaid}",
    )
    yield Finding(
        "has_members",
        bool(members),
        f"members: {len(members)}" if policy.require_empty else "members are not looked at (REQUIRE_EMPTY=false)",
    )
    yield Finding(
        "dry_run",
        policy.dry_run,
        f"DRY_RUN is {'true: this cluster would have been deleted' if policy.dry_run else 'false'}",
    )


def objection_to_request(
    expiry: Expiry,
    *,
    policy: Policy,
    latest_expiry: datetime,
    now: datetime,
) -> Skipped | None:
    """Object to what is asked, before any call, or not. Raises as `findings_on_request`."""
    for finding in findings_on_request(expiry, policy=policy, latest_expiry=latest_expiry, now=now):
        if finding.objects:
            return Skipped(reason=finding.reason, detail=finding.detail)
    return None


def objection_to_cluster(
    cluster: Cluster,
    *,
    expiry: Expiry,
    members: tuple[Member, ...],
    policy: Policy,
) -> Skipped | None:
    """Object to deleting what was seen, or not."""
    for finding in findings_on_cluster(cluster, expiry=expiry, members=members, policy=policy):
        if finding.objects:
            decisive = members if finding.reason in ("has_members", "needs_unsubscribe") else ()
            return Skipped(reason=finding.reason, detail=finding.detail, cluster=cluster, members=decisive)
    return None


def _protection(field: str, value: str, policy: Policy) -> Finding:
    # An item may be an id or a name, and protects whichever it matches.
    item = _first_match(value, policy.protected_clusters)
    return Finding(
        "cluster_protected",
        item is not None,
        f"{field} {value} is {'not protected' if item is None else f'protected by {item}'}",
    )


def _first_match(value: str, patterns: tuple[str, ...]) -> str | None:
    # fnmatchcase anchors at both ends: `ci-1` does not match `ci-10`.
    return next((pattern for pattern in patterns if fnmatchcase(value, pattern)), None)
