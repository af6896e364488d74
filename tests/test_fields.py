import json
from datetime import UTC, datetime

import pytest
from modelarts_cleanup import events
from modelarts_cleanup.fields import LONGEST_TEXT, InvalidEventError
from modelarts_cleanup.model import Expiry

REGION = "cn-southwest-2"
AT = "2026-07-15T10:00:00Z"
LEAST: dict[str, object] = {"project_id": "p1", "cluster_id": "c-1", "expires_at": AT}


def asked(**changed: object) -> Expiry:
    """Parse the least that an event must hold, with changes; `...` leaves a field out."""
    given = {**LEAST, **changed}
    return events.parse({name: value for name, value in given.items() if value is not ...}, region=REGION)


def objection(**changed: object) -> tuple[str, str]:
    with pytest.raises(InvalidEventError) as caught:
        asked(**changed)
    assert str(caught.value) == f"{caught.value.field} {caught.value.problem}"
    return caught.value.field, caught.value.problem


@pytest.mark.parametrize(
    ("changed", "field", "problem"),
    [
        pytest.param({"project_id": ...}, "project_id", "is missing", id="case 11: no project"),
        pytest.param({"cluster_id": ...}, "cluster_id", "is missing", id="case 16: no cluster"),
        *(
            pytest.param(
                {"cluster_id": value},
                "cluster_id",
                "does not match [A-Za-z0-9_-]{1,64} as a whole",
                id=f"case 49: {id_}",
            )
            for value, id_ in (
                ("..", "two dots"),
                (".", "one dot"),
                ("../../servers/x", "dot segments"),
                ("a/b", "a slash"),
                ("x" * 65, "65 characters"),
                ("a%2Fb", "an encoded slash"),
                ("c-1\n", "a line break at the end"),
                (" c-1", "a space before it"),
                ("c:1", "a colon"),
                ("c-٣", "a digit that is not ASCII"),
            )
        ),
        pytest.param(
            {"cluster_id": ""}, "cluster_id", f"is not 1 to {LONGEST_TEXT} characters long", id="case 49: empty"
        ),
        pytest.param(
            {"project_id": "p_1"},
            "project_id",
            "does not match [A-Za-z0-9-]{1,64} as a whole",
            id="an underscore, project",
        ),
        pytest.param(
            {"region": "r_1"}, "region", "does not match [A-Za-z0-9-]{1,64} as a whole", id="an underscore, region"
        ),
        pytest.param({"region": ""}, "region", f"is not 1 to {LONGEST_TEXT} characters long", id="an empty region"),
        pytest.param({"project_id": 5}, "project_id", "is not a text", id="a project that is a number"),
        pytest.param({"cluster_id": True}, "cluster_id", "is not a text", id="a cluster that is true"),
        pytest.param({"cluster_id": ["c-1"]}, "cluster_id", "is not a text", id="a list of clusters"),
        pytest.param({"region": None}, "region", "is not a text", id="a region that is null"),
        pytest.param({"type": "hps"}, "type", "is not one of HPS, ECS", id="a type in lower case"),
        pytest.param({"type": ""}, "type", "is not one of HPS, ECS", id="an empty type"),
        pytest.param({"type": "BMS"}, "type", "is not one of HPS, ECS", id="another type"),
        pytest.param({"type": None}, "type", "is not a text", id="a type that is null"),
        pytest.param({"name": ""}, "name", f"is not 1 to {LONGEST_TEXT} characters long", id="an empty name"),
        pytest.param({"name": None}, "name", "is not a text", id="a name that is null"),
        pytest.param({"name": 7}, "name", "is not a text", id="a name that is a number"),
        pytest.param(
            {"name": "x" * (LONGEST_TEXT + 1)},
            "name",
            f"is not 1 to {LONGEST_TEXT} characters long",
            id="an endless name",
        ),
        pytest.param({"owner": 1}, "owner", "is not a text", id="an owner that is a number"),
        pytest.param({"owner": None}, "owner", "is not a text", id="an owner that is null"),
        pytest.param(
            {"owner": "x" * (LONGEST_TEXT + 1)},
            "owner",
            f"is not 0 to {LONGEST_TEXT} characters long",
            id="an endless owner",
        ),
        pytest.param({"reason": False}, "reason", "is not a text", id="a reason that is false"),
        pytest.param(
            {"reason": "x" * (LONGEST_TEXT + 1)},
            "reason",
            f"is not 0 to {LONGEST_TEXT} characters long",
            id="an endless reason",
        ),
    ],
)
def test_a_field_that_is_wrong_is_named_and_never_repaired(
    changed: dict[str, object], field: str, problem: str
) -> None:
    assert objection(**changed) == (field, problem)


@pytest.mark.parametrize("value", ["true", "false", "", 0, 1, None, [], {}])
def test_protection_is_strictly_true_or_false(value: object) -> None:
    assert objection(protected=value) == ("protected", "is not true or false")
    assert (asked(protected=True).protected, asked(protected=False).protected) == (True, False)


@pytest.mark.parametrize("field", ["name", "owner", "reason"])
def test_a_text_may_have_1024_characters(field: str) -> None:
    assert getattr(asked(**{field: "x" * LONGEST_TEXT}), field) == "x" * LONGEST_TEXT


@pytest.mark.parametrize("length", [1, 64])
def test_an_id_may_have_up_to_64_characters(length: int) -> None:
    assert asked(cluster_id="x" * length).ref.cluster_id == "x" * length


@pytest.mark.parametrize("type_", ["HPS", "ECS"])
def test_a_cluster_has_one_of_two_types(type_: str) -> None:
    assert asked(type=type_).type == type_


# When it expires.

FORM = "is not an RFC 3339 date and time with an offset or Z, like 2026-07-15T10:00:00Z"
NO_DURATION = "is not a duration like 90m, 36h, 7d, 2w, 1d12h or PT90M"


@pytest.mark.parametrize(
    ("changed", "expires_at"),
    [
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": "36h"},
            datetime(2026, 7, 16, 22, tzinfo=UTC),
            id="from its creation",
        ),
        pytest.param(
            {"expires_at": "2026-07-15T11:30:00+01:00", "created_at": AT, "ttl": "30m"},
            datetime(2026, 7, 15, 10, 30, tzinfo=UTC),
            id="both, and they agree",
        ),
        pytest.param({"created_at": AT}, datetime(2026, 7, 15, 10, tzinfo=UTC), id="a creation that decides nothing"),
        pytest.param({"ttl": "7d"}, datetime(2026, 7, 15, 10, tzinfo=UTC), id="a duration that decides nothing"),
        pytest.param(
            {"expires_at": "2026-07-15T10:00:00.5811478Z"},
            datetime(2026, 7, 15, 10, 0, 0, 581_147, tzinfo=UTC),
            id="case 8: seven digits",
        ),
    ],
)
def test_the_expiry_is_told_or_computed_from_creation_and_duration(
    changed: dict[str, object], expires_at: datetime
) -> None:
    assert asked(**changed).expires_at == expires_at


@pytest.mark.parametrize(
    ("changed", "field", "problem"),
    [
        pytest.param(
            {"expires_at": ...},
            "expires_at",
            "is missing, and so are created_at and ttl",
            id="case 22: nothing is never now",
        ),
        pytest.param({"expires_at": None}, "expires_at", "is not a text", id="case 22: null"),
        pytest.param({"expires_at": ""}, "expires_at", FORM, id="case 22: empty"),
        pytest.param({"expires_at": 0}, "expires_at", "is not a text", id="case 22: zero"),
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": None}, "ttl", "is not a text", id="case 22: ttl is null"
        ),
        pytest.param({"expires_at": ..., "created_at": AT, "ttl": ""}, "ttl", NO_DURATION, id="case 22: ttl is empty"),
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": 0}, "ttl", "is not a text", id="case 22: ttl is zero"
        ),
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": "0m"},
            "ttl",
            "is below the minimum of 1 minute",
            id="case 22: zero minutes",
        ),
        pytest.param({"expires_at": "2026-07-15T18:00"}, "expires_at", FORM, id="case 23: naive"),
        pytest.param({"expires_at": "2026-07-15"}, "expires_at", FORM, id="case 30: a date only"),
        pytest.param({"expires_at": ..., "created_at": AT, "ttl": "P12Y"}, "ttl", NO_DURATION, id="case 25: years"),
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": "1M"}, "ttl", NO_DURATION, id="case 26: a month or not"
        ),
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": 90}, "ttl", "is not a text", id="case 26: a bare number"
        ),
        pytest.param(
            {"expires_at": ..., "ttl_seconds": 10**15},
            "expires_at",
            "is missing, and so are created_at and ttl",
            id="case 27: a field of another grammar",
        ),
        pytest.param(
            {"expires_at": ..., "created_at": AT, "ttl": "99999999999d"},
            "ttl",
            "is above the maximum of 366 days",
            id="case 27: huge",
        ),
        pytest.param(
            {"expires_at": ..., "created_at": "9999-12-31T00:00:00Z", "ttl": "366d"},
            "created_at",
            "with ttl is a date that does not exist",
            id="case 27: beyond the last year",
        ),
        *(
            pytest.param({"expires_at": value}, "expires_at", "is not a text", id=f"case 31: {json.dumps(value)}")
            for value in (1_790_000_000_000, 1_790_000_000, True, -1, 1.5)
        ),
        pytest.param({"expires_at": "1790000000"}, "expires_at", FORM, id="case 31: an epoch as text"),
        pytest.param(
            {"created_at": 1_790_000_000}, "created_at", "is not a text", id="case 31: a creation in epoch seconds"
        ),
        pytest.param(
            {"expires_at": ..., "ttl": "7d"},
            "created_at",
            "is missing, and there is no expires_at",
            id="case 34: an age that nobody knows",
        ),
        pytest.param(
            {"expires_at": ..., "created_at": AT},
            "ttl",
            "is missing, and there is no expires_at",
            id="a creation alone",
        ),
        pytest.param(
            {"expires_at": {"seconds": 1_790_000_000, "nanos": 5}},
            "expires_at",
            "is not a text",
            id="case 37: an object",
        ),
        pytest.param({"expires_at": "2026-07-15T10:00:00.000"}, "expires_at", FORM, id="case 37: a fraction, naive"),
        pytest.param(
            {"created_at": AT, "ttl": "1m"},
            "expires_at",
            "is not created_at + ttl; only one of them can be right",
            id="both, and they disagree",
        ),
        pytest.param(
            {"created_at": "2026-07-15"}, "created_at", FORM, id="a creation that decides nothing, but is wrong"
        ),
        pytest.param({"ttl": "soon"}, "ttl", NO_DURATION, id="a duration that decides nothing, but is wrong"),
    ],
)
def test_what_could_mean_another_expiry_is_none(changed: dict[str, object], field: str, problem: str) -> None:
    assert objection(**changed) == (field, problem)


def test_one_odd_event_changes_nothing_for_the_next() -> None:  # case 21
    for odd in ("2026-07-15 16:00 UTC", "2026-07-15"):
        assert objection(expires_at=odd) == ("expires_at", FORM)
        assert asked().expires_at == datetime(2026, 7, 15, 10, tzinfo=UTC)
