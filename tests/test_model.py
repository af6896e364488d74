from datetime import UTC, datetime, timedelta, timezone

import pytest
from fakes import an_expiry
from hypothesis import example, given
from hypothesis import strategies as st
from modelarts_cleanup.model import ClusterRef, RetryLater, instant_text

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
ALLOWED = {
    "region": LETTERS + DIGITS + "-",
    "project_id": LETTERS + DIGITS + "-",
    "cluster_id": LETTERS + DIGITS + "-_",
}
IDS = {name: st.text(alphabet, min_size=1, max_size=64) for name, alphabet in ALLOWED.items()}
NEARLY_IDS = st.text(st.sampled_from(LETTERS + DIGITS + "-_./:%\n ٣é"), max_size=70)


def a_ref(**changed: str) -> ClusterRef:
    return ClusterRef(**{"region": "r1", "project_id": "p1", "cluster_id": "c1", **changed})


@pytest.mark.parametrize("field", ["region", "project_id", "cluster_id"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="case 49: empty"),
        pytest.param(".", id="case 49: one dot"),
        pytest.param("..", id="case 49: two dots"),
        pytest.param("../../servers/x", id="case 49: dot segments"),
        pytest.param("a/b", id="case 49: a slash"),
        pytest.param("x" * 65, id="case 49: 65 characters"),
        pytest.param("a%2Fb", id="an encoded slash"),
        pytest.param("a\n", id="a line break at the end"),
        pytest.param(" a", id="a space before it"),
        pytest.param("a:b", id="the separator of keys"),
        pytest.param("c-٣", id="a digit that is not ASCII"),
        pytest.param("é", id="a letter that is not ASCII"),
        pytest.param("a\0", id="a null"),
    ],
)
def test_a_reference_that_is_no_plain_id_cannot_exist(field: str, text: str) -> None:
    with pytest.raises(ValueError, match=f"^{field} is not an id$"):
        a_ref(**{field: text})


@pytest.mark.parametrize("field", ["region", "project_id"])
def test_an_underscore_belongs_to_ids_of_clusters_only(field: str) -> None:
    assert a_ref(cluster_id="a_b").cluster_id == "a_b"
    with pytest.raises(ValueError, match=f"^{field} is not an id$"):
        a_ref(**{field: "a_b"})


@pytest.mark.parametrize("field", ["region", "project_id", "cluster_id"])
def test_an_id_has_up_to_64_characters(field: str) -> None:
    assert getattr(a_ref(**{field: "x" * 64}), field) == "x" * 64


@given(field=st.sampled_from(sorted(ALLOWED)), text=st.text() | NEARLY_IDS)
@example(field="cluster_id", text="c-1\n")
def test_nothing_outside_the_pattern_of_the_contract_is_ever_an_id(field: str, text: str) -> None:
    plain = 1 <= len(text) <= 64 and all(character in ALLOWED[field] for character in text)
    if plain:
        assert getattr(a_ref(**{field: text}), field) == text
    else:
        with pytest.raises(ValueError, match="is not an id"):
            a_ref(**{field: text})


@given(one=st.tuples(*IDS.values()), other=st.tuples(*IDS.values()))
def test_two_clusters_never_share_a_key(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    assert (ClusterRef(*one).key == ClusterRef(*other).key) == (one == other)


def test_a_logical_expiry_is_region_project_cluster_and_instant() -> None:
    at = datetime(2026, 7, 15, 10, tzinfo=UTC)
    expiry = an_expiry(ref=a_ref(), expires_at=at)
    assert expiry.key == "r1:p1:c1:2026-07-15T10:00:00Z"
    elsewhere = at.astimezone(timezone(timedelta(hours=8)))
    same = an_expiry(ref=a_ref(), expires_at=elsewhere, type="HPS", name="n", protected=True, owner="o", reason="r")
    assert same.key == expiry.key


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"ref": a_ref(region="r2")}, id="another region"),
        pytest.param({"ref": a_ref(project_id="p2")}, id="another project"),
        pytest.param({"ref": a_ref(cluster_id="c2")}, id="another cluster"),
        pytest.param({"expires_at": datetime(2026, 7, 15, 10, 0, 0, 1, tzinfo=UTC)}, id="a microsecond later"),
    ],
)
def test_another_cluster_or_instant_is_another_logical_expiry(changed: dict[str, object]) -> None:
    given = {"ref": a_ref(), "expires_at": datetime(2026, 7, 15, 10, tzinfo=UTC)}
    assert an_expiry(**{**given, **changed}).key != an_expiry(**given).key


@pytest.mark.parametrize(
    ("instant", "text"),
    [
        pytest.param(datetime(2026, 7, 15, 10, tzinfo=UTC), "2026-07-15T10:00:00Z", id="whole seconds"),
        pytest.param(datetime(2026, 7, 15, 10, 0, 0, 50, tzinfo=UTC), "2026-07-15T10:00:00.000050Z", id="a fraction"),
        pytest.param(
            datetime(2026, 7, 15, 18, tzinfo=timezone(timedelta(hours=8))), "2026-07-15T10:00:00Z", id="another zone"
        ),
        pytest.param(
            datetime(2026, 7, 15, 0, 30, tzinfo=timezone(timedelta(hours=1))),
            "2026-07-14T23:30:00Z",
            id="another zone, another day",
        ),
    ],
)
def test_an_instant_is_written_in_utc_and_in_one_way_only(instant: datetime, text: str) -> None:
    assert instant_text(instant) == text


def test_a_wish_for_another_delivery_says_why_and_knows_no_delivery_yet() -> None:
    wish = RetryLater("throttled", "slow down", problems=("one", "two"))
    assert str(wish) == "throttled: slow down"
    assert (wish.reason, wish.detail, wish.problems, wish.attempt) == ("throttled", "slow down", ("one", "two"), None)
    assert RetryLater("busy", "later").problems == ()
