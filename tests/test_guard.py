from collections.abc import Iterable
from datetime import timedelta

import pytest
from fakes import NOW, REF, a_policy, an_expiry
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup import guard
from modelarts_cleanup.guard import Finding, Policy
from modelarts_cleanup.model import Cluster, ClusterRef, Expiry, Member, RetryLater, Skipped, instant_text

SECOND = timedelta(seconds=1)
CLUSTER = Cluster(ref=REF, type="HPS", name="ci-a")
POSTPAID = Member(id="m-1", name="node", status="RUNNING", prepaid=False)
PREPAID = Member(id="m-2", name=None, status=None, prepaid=True)


def on_request(expiry: Expiry, latest: timedelta | None = None, **policy: object) -> Skipped | None:
    """Judge a request; `latest` is how much later than this expiry the latest one is."""
    latest_expiry = expiry.expires_at + (latest or timedelta())
    return guard.objection_to_request(expiry, policy=a_policy(**policy), latest_expiry=latest_expiry, now=NOW)


def on_cluster(
    cluster: Cluster = CLUSTER, *members: Member, expiry: Expiry | None = None, **policy: object
) -> Skipped | None:
    return guard.objection_to_cluster(cluster, expiry=expiry or an_expiry(), members=members, policy=a_policy(**policy))


def reason(skipped: Skipped | None) -> str | None:
    return skipped.reason if skipped else None


def named(name: str) -> Cluster:
    return Cluster(ref=REF, type="HPS", name=name)


# What is asked, before any call.


def test_an_allowed_and_expired_request_meets_no_objection() -> None:
    assert on_request(an_expiry()) is None


@pytest.mark.parametrize(
    ("changed", "policy", "latest", "expected", "detail"),
    [
        pytest.param(
            {"ref": ClusterRef("cn-southwest-2", "p2", "c-1")},
            {},
            None,
            "project_not_allowed",
            "project p2 is not one of the allowed ones",
            id="case 45: a project in no list",
        ),
        pytest.param(
            {},
            {"allowed_projects": ()},
            None,
            "project_not_allowed",
            "project p1 is not one of the allowed ones",
            id="an empty list is never everything",
        ),
        pytest.param(
            {},
            {"allowed_projects": ("p10", "P1", "*", "p?")},
            None,
            "project_not_allowed",
            "project p1 is not one of the allowed ones",
            id="case 46: projects are compared whole, never as globs",
        ),
        pytest.param(
            {"ref": ClusterRef("cn-north-4", "p1", "c-1")},
            {},
            None,
            "region_not_allowed",
            "the event is for region cn-north-4, this deployment serves cn-southwest-2",
            id="case 45: another region",
        ),
        pytest.param(
            {"protected": True},
            {},
            None,
            "cluster_protected",
            "the event says that the cluster is protected",
            id="the event protects",
        ),
        pytest.param(
            {},
            {"protected_clusters": ("x", "c-1")},
            None,
            "cluster_protected",
            "cluster_id c-1 is protected by c-1",
            id="case 44: the settings protect the id",
        ),
        pytest.param(
            {},
            {"protected_clusters": ("x-*", "c-*")},
            None,
            "cluster_protected",
            "cluster_id c-1 is protected by c-*",
            id="a glob protects the id",
        ),
        pytest.param(
            {"expires_at": NOW - 2 * SECOND},
            {},
            SECOND,
            "superseded",
            "the event's expiry is 2026-07-15T11:59:58Z, the latest one told for this cluster is 2026-07-15T11:59:59Z",
            id="case 20, 24: a later expiry was told",
        ),
        pytest.param(
            {"expires_at": NOW + timedelta(hours=1)},
            {},
            None,
            "not_expired",
            "expires at 2026-07-15T13:00:00Z, and it is 2026-07-15T12:00:00Z",
            id="case 33: early, by the very values that decided",
        ),
    ],
)
def test_a_request_is_kept_with_the_values_that_decided(
    changed: dict[str, object], policy: dict[str, object], latest: timedelta | None, expected: str, detail: str
) -> None:
    assert on_request(an_expiry(**changed), latest, **policy) == Skipped(reason=expected, detail=detail)  # type: ignore[arg-type]


def test_a_latest_expiry_that_is_not_later_supersedes_nothing() -> None:
    assert on_request(an_expiry(), latest=timedelta()) is None
    assert on_request(an_expiry(), latest=-SECOND) is None


# Everything that can be wrong with a request, in the order of the rules.
REQUEST_WRONGS: tuple[tuple[str, dict[str, object], dict[str, object], timedelta], ...] = (
    ("project_not_allowed", {}, {"allowed_projects": ("p9",)}, timedelta()),
    ("region_not_allowed", {}, {"region": "cn-north-4"}, timedelta()),
    ("cluster_protected", {"protected": True}, {}, timedelta()),
    ("superseded", {}, {}, SECOND),
    ("not_expired", {"expires_at": NOW + timedelta(days=1)}, {}, timedelta()),
)


@pytest.mark.parametrize("first", range(len(REQUEST_WRONGS)), ids=[wrong[0] for wrong in REQUEST_WRONGS])
def test_the_rules_for_a_request_speak_in_order_project_region_protection_clock(first: int) -> None:
    expiry: dict[str, object] = {}
    policy: dict[str, object] = {}
    latest = timedelta()
    for _, more_expiry, more_policy, later in REQUEST_WRONGS[first:]:
        expiry |= more_expiry
        policy |= more_policy
        latest += later
    assert reason(on_request(an_expiry(**expiry), latest, **policy)) == REQUEST_WRONGS[first][0]


@pytest.mark.parametrize("wrong", REQUEST_WRONGS[:4], ids=[wrong[0] for wrong in REQUEST_WRONGS[:4]])
def test_a_request_that_is_kept_anyway_is_not_sent_for_again(
    wrong: tuple[str, dict[str, object], dict[str, object], timedelta],
) -> None:
    expected, expiry, policy, latest = wrong
    soon = an_expiry(**{"expires_at": NOW + SECOND, **expiry})
    assert reason(on_request(soon, latest, **policy)) == expected


@pytest.mark.parametrize(
    ("early", "expected"),
    [
        pytest.param(-timedelta(days=400), None, id="long ago"),
        pytest.param(-timedelta.resolution, None, id="just past"),
        pytest.param(timedelta(), None, id="this very moment"),
        pytest.param(timedelta.resolution, "retry", id="in a microsecond"),
        pytest.param(timedelta(seconds=20), "retry", id="case 36: a clock that is a little behind"),
        pytest.param(timedelta(seconds=60) - timedelta.resolution, "retry", id="in just under a minute"),
        pytest.param(timedelta(seconds=60), "not_expired", id="in exactly a minute"),
        pytest.param(timedelta(days=15), "not_expired", id="in days"),
    ],
)
def test_nothing_is_deleted_before_our_own_clock_says_so(early: timedelta, expected: str | None) -> None:
    expiry = an_expiry(expires_at=NOW + early)
    if expected == "retry":
        with pytest.raises(RetryLater) as caught:
            on_request(expiry)
        assert caught.value.reason == "expires_soon"
        assert caught.value.detail == f"expires at {instant_text(expiry.expires_at)}, in less than a minute"
    else:
        assert reason(on_request(expiry)) == expected


def test_protection_in_the_settings_holds_whatever_the_event_says() -> None:
    assert reason(on_request(an_expiry(protected=False), protected_clusters=("c-1",))) == "cluster_protected"


# What was seen.


def test_an_allowed_cluster_without_members_meets_no_objection() -> None:
    assert on_cluster() is None
    assert on_cluster(expiry=an_expiry(name="ci-a")) is None


@pytest.mark.parametrize(
    ("cluster", "members", "changed", "policy", "expected", "detail"),
    [
        pytest.param(
            named("prod-x"),
            (),
            {"name": "ci-a"},
            {"allowed_names": ("*",)},
            "name_differs",
            "the cluster is called prod-x, the event says ci-a",
            id="case 48: the id belongs to another cluster now",
        ),
        pytest.param(
            named("ci-a"),
            (),
            {"name": "CI-A"},
            {},
            "name_differs",
            "the cluster is called ci-a, the event says CI-A",
            id="names differ by case",
        ),
        pytest.param(
            named("ci-a"),
            (),
            {"name": "ci-*"},
            {},
            "name_differs",
            "the cluster is called ci-a, the event says ci-*",
            id="the event's name is no glob",
        ),
        pytest.param(
            named("prod-x"),
            (),
            {},
            {},
            "name_not_allowed",
            "the name prod-x matches none of the allowed patterns",
            id="no pattern allows it",
        ),
        pytest.param(
            named("ci-a"),
            (),
            {},
            {"protected_clusters": ("z", "*-a")},
            "cluster_protected",
            "name ci-a is protected by *-a",
            id="case 44: protected by its name",
        ),
        pytest.param(
            named("ci-a"),
            (POSTPAID, PREPAID, PREPAID),
            {},
            {},
            "needs_unsubscribe",
            "prepaid members, which can only be unsubscribed: 2",
            id="case 56: prepaid members",
        ),
        pytest.param(named("ci-a"), (POSTPAID, POSTPAID), {}, {}, "has_members", "members: 2", id="case 43: members"),
        pytest.param(
            named("ci-a"),
            (),
            {},
            {"dry_run": True},
            "dry_run",
            "DRY_RUN is true: this cluster would have been deleted",
            id="case 40: a dry run",
        ),
    ],
)
def test_a_cluster_is_kept_with_the_values_that_decided(
    *,
    cluster: Cluster,
    members: tuple[Member, ...],
    changed: dict[str, object],
    policy: dict[str, object],
    expected: str,
    detail: str,
) -> None:
    assert on_cluster(cluster, *members, expiry=an_expiry(**changed), **policy) == Skipped(
        reason=expected,  # type: ignore[arg-type]
        detail=detail,
        cluster=cluster,
        members=members,
    )


def test_members_are_named_only_where_they_decided_it() -> None:
    skipped = on_cluster(named("prod-x"), POSTPAID, PREPAID)
    assert skipped is not None
    assert (skipped.reason, skipped.members) == ("name_not_allowed", ())


# Everything that can be wrong with a cluster, in the order of the rules.
CLUSTER_WRONGS: tuple[tuple[str, dict[str, object], tuple[Member, ...], dict[str, object]], ...] = (
    ("name_differs", {"name": "ci-b"}, (), {}),
    ("name_not_allowed", {}, (), {"allowed_names": ("test-*",)}),
    ("cluster_protected", {}, (), {"protected_clusters": ("ci-a",)}),
    ("needs_unsubscribe", {}, (PREPAID,), {}),
    ("has_members", {}, (POSTPAID,), {}),
    ("dry_run", {}, (), {"dry_run": True}),
)


@pytest.mark.parametrize("first", range(len(CLUSTER_WRONGS)), ids=[wrong[0] for wrong in CLUSTER_WRONGS])
def test_the_rules_for_a_cluster_speak_in_order_and_the_dry_run_last(first: int) -> None:
    expiry: dict[str, object] = {}
    members: tuple[Member, ...] = ()
    policy: dict[str, object] = {}
    for _, more_expiry, more_members, more_policy in CLUSTER_WRONGS[first:]:
        expiry |= more_expiry
        members += more_members
        policy |= more_policy
    assert reason(on_cluster(CLUSTER, *members, expiry=an_expiry(**expiry), **policy)) == CLUSTER_WRONGS[first][0]


@pytest.mark.parametrize("wrong", CLUSTER_WRONGS[:5], ids=[wrong[0] for wrong in CLUSTER_WRONGS[:5]])
def test_a_dry_run_shows_the_real_decision(
    wrong: tuple[str, dict[str, object], tuple[Member, ...], dict[str, object]],
) -> None:  # case 39
    _, changed, members, policy = wrong
    expiry = an_expiry(**changed)
    dry = on_cluster(CLUSTER, *members, expiry=expiry, dry_run=True, **policy)
    assert dry is not None
    assert dry == on_cluster(CLUSTER, *members, expiry=expiry, dry_run=False, **policy)


# Globs.


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        pytest.param("ci-1", "ci-1", True, id="itself"),
        pytest.param("ci-1", "ci-10", False, id="case 46: ci-1 is not ci-10"),
        pytest.param("ci-10", "ci-1", False, id="case 46: nor the other way round"),
        pytest.param("ci-1", "my-ci-1", False, id="anchored at the beginning"),
        pytest.param("feat", "feature-login", False, id="case 46: feat is not feature-login"),
        pytest.param("ci-*", "ci-", True, id="a star is nothing too"),
        pytest.param("ci-*", "ci-a.b_c-d", True, id="a star is any characters"),
        pytest.param("ci-*", "xci-a", False, id="a star is anchored too"),
        pytest.param("*-ci", "a-ci", True, id="a star in front"),
        pytest.param("*-ci", "a-ci-b", False, id="anchored at the end"),
        pytest.param("ci-?", "ci-1", True, id="a question mark"),
        pytest.param("ci-?", "ci-10", False, id="a question mark is one character"),
        pytest.param("ci-?", "ci-", False, id="a question mark is not nothing"),
        pytest.param("ci-[ab]", "ci-b", True, id="a set"),
        pytest.param("ci-[!ab]", "ci-b", False, id="a set of others"),
        pytest.param("ci-[0-9]", "ci-7", True, id="a range"),
        pytest.param("ci-*", "CI-a", False, id="case sensitive"),
        pytest.param("CI-*", "ci-a", False, id="case sensitive both ways"),
        pytest.param("ci.a", "ci-a", False, id="a point is a point"),
        pytest.param("ci+", "cii", False, id="no regular expressions"),
        pytest.param("", "ci-a", False, id="nothing matches nothing"),
    ],
)
def test_globs_are_anchored_and_case_sensitive(*, pattern: str, name: str, matches: bool) -> None:
    allowed = reason(on_cluster(named(name), allowed_names=(pattern,))) != "name_not_allowed"
    protected = reason(on_cluster(named(name), allowed_names=("*",), protected_clusters=(pattern,)))
    assert allowed is matches
    assert protected == ("cluster_protected" if matches else None)


@given(name=st.text("abAB01-_.", min_size=1, max_size=20), tail=st.text("abAB01-_.", min_size=1, max_size=5))
def test_a_plain_pattern_matches_its_own_name_and_no_longer_one(name: str, tail: str) -> None:  # case 46
    assert on_cluster(named(name), allowed_names=(name,)) is None
    for longer in (name + tail, tail + name):
        assert reason(on_cluster(named(longer), allowed_names=(name,))) == "name_not_allowed"
        assert on_cluster(named(longer), allowed_names=("*",), protected_clusters=(name,)) is None


def test_any_one_of_several_patterns_is_enough() -> None:
    assert on_cluster(allowed_names=("test-*", "ci-*")) is None


@pytest.mark.parametrize("pattern", ["ci-a", "*", "ci-*"])
def test_protection_wins_over_permission(pattern: str) -> None:
    skipped = on_cluster(allowed_names=("*", pattern), protected_clusters=(pattern,))
    assert reason(skipped) == "cluster_protected"


def test_an_empty_list_of_names_allows_nothing_and_an_empty_list_of_protected_ones_protects_nothing() -> None:
    assert reason(on_cluster(allowed_names=())) == "name_not_allowed"
    assert on_cluster(protected_clusters=()) is None


# The findings, as `explain` shows them.


def test_a_request_without_fault_is_explained_rule_by_rule() -> None:
    found = guard.findings_on_request(an_expiry(), policy=a_policy(), latest_expiry=NOW, now=NOW + SECOND)
    assert explained(found) == [
        ("project_not_allowed", False, "project p1 is one of the allowed ones"),
        ("region_not_allowed", False, "the event is for region cn-southwest-2, this deployment serves cn-southwest-2"),
        ("cluster_protected", False, "cluster_id c-1 is not protected"),
        (
            "superseded",
            True,
            "the event's expiry is 2026-07-15T11:00:00Z, the latest one told for this cluster is 2026-07-15T12:00:00Z",
        ),
        ("not_expired", False, "expires at 2026-07-15T11:00:00Z, and it is 2026-07-15T12:00:01Z"),
    ]


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        pytest.param(
            None,
            {},
            [
                ("name_differs", False, "the cluster is called ci-a"),
                ("name_not_allowed", False, "the name ci-a matches ci-*"),
                ("cluster_protected", False, "name ci-a is not protected"),
                ("needs_unsubscribe", False, "prepaid members, which can only be unsubscribed: 0"),
                ("has_members", False, "members: 0"),
                ("dry_run", False, "DRY_RUN is false"),
            ],
            id="members are looked at",
        ),
        pytest.param(
            "ci-a",
            {"require_empty": False, "protected_clusters": ("ci-b", "prod-*")},
            [
                ("name_differs", False, "the cluster is called ci-a, the event says ci-a"),
                ("name_not_allowed", False, "the name ci-a matches ci-*"),
                ("cluster_protected", False, "name ci-a is not protected"),
                ("needs_unsubscribe", False, "prepaid members, which can only be unsubscribed: 0"),
                ("has_members", False, "members are not looked at (REQUIRE_EMPTY=false)"),
                ("dry_run", False, "DRY_RUN is false"),
            ],
            id="case 40: members are not looked at, and the setting is named",
        ),
    ],
)
def test_a_cluster_without_fault_is_explained_rule_by_rule(
    name: str | None, policy: dict[str, object], expected: list[tuple[str, bool, str]]
) -> None:
    found = guard.findings_on_cluster(CLUSTER, expiry=an_expiry(name=name), members=iter(()), policy=a_policy(**policy))
    assert explained(found) == expected


def test_members_may_be_given_once_only() -> None:
    found = guard.findings_on_cluster(CLUSTER, expiry=an_expiry(), members=iter((POSTPAID, PREPAID)), policy=a_policy())
    assert [finding.detail for finding in found if finding.objects] == [
        "prepaid members, which can only be unsubscribed: 1",
        "members: 2",
    ]


def test_a_policy_is_a_dry_run_with_a_limit_and_looks_at_members_unless_told_otherwise() -> None:
    policy = Policy(region="r", allowed_projects=("p",), allowed_names=("n",))
    assert (policy.dry_run, policy.deletions_per_hour, policy.require_empty) == (True, 10, True)
    assert policy.protected_clusters == ()


@given(
    protected=st.booleans(),
    early=st.timedeltas(-timedelta(days=3), timedelta(days=3)),
    latest=st.timedeltas(-timedelta(days=3), timedelta(days=3)),
    project=st.sampled_from(["p1", "p2"]),
    region=st.sampled_from(["cn-southwest-2", "cn-north-4"]),
)
def test_a_request_passes_only_if_every_rule_lets_it(
    *, protected: bool, early: timedelta, latest: timedelta, project: str, region: str
) -> None:
    expiry = an_expiry(ref=ClusterRef(region, project, "c-1"), protected=protected, expires_at=NOW + early)
    harmless = project == "p1" and region == "cn-southwest-2" and not protected and latest <= timedelta()
    try:
        passed = on_request(expiry, latest) is None
    except RetryLater:
        passed = False
    assert passed == (harmless and early <= timedelta())


def explained(found: Iterable[Finding]) -> list[tuple[str, bool, str]]:
    return [(finding.reason, finding.objects, finding.detail) for finding in found]
