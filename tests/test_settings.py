from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelarts_cleanup import settings
from modelarts_cleanup.guard import Policy
from modelarts_cleanup.places import FilePlace, FirestorePlace, HttpPlace, SecretPlace, SqlitePlace, TopicPlace
from modelarts_cleanup.settings import NAMES, Settings, SettingsError, WebhookSettings

LEAST = {
    "MODELARTS_REGION": "cn-southwest-2",
    "ALLOWED_PROJECTS": "p1",
    "ALLOWED_NAMES": "ci-*",
    "CREDENTIALS": "secretmanager://projects/p/secrets/s",
    "COMPLETION_SINK": "pubsub://projects/p/topics/top",
    "LEDGER": "firestore://projects/p/databases/d",
}
WEBHOOK = {"EXPIRY_SINK": "file:///expiries.jsonl", "WEBHOOK_SECRETS": "file:///run/secrets"}


def problems(**changed: str | None) -> tuple[str, ...]:
    given = {**LEAST, **changed}
    with pytest.raises(SettingsError) as caught:
        settings.read({name: value for name, value in given.items() if value is not None})
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def policy(**changed: str) -> Policy:
    return settings.read({**LEAST, **changed}).policy


def test_the_least_that_must_be_set_is_a_safe_deployment() -> None:
    assert settings.read(LEAST) == Settings(
        policy=Policy(
            region="cn-southwest-2",
            allowed_projects=("p1",),
            allowed_names=("ci-*",),
            protected_clusters=(),
            dry_run=True,
            deletions_per_hour=10,
            require_empty=True,
        ),
        endpoint="https://modelarts.cn-southwest-2.myhuaweicloud.com",
        credentials=SecretPlace("projects/p/secrets/s/versions/latest"),
        completion_sink=TopicPlace("projects/p/topics/top"),
        ledger=FirestorePlace("p", "d"),
    )


def test_every_setting_is_honoured() -> None:
    given = {
        "MODELARTS_REGION": "eu-west-101",
        "MODELARTS_ENDPOINT": "http://127.0.0.1:8080/",
        "ALLOWED_PROJECTS": "p1, P2,0123456789abcdef0123456789abcdef",
        "ALLOWED_NAMES": " ci-* ,test-?,[ab]*",
        "PROTECTED_CLUSTERS": "prod-*,5b814cbf-4f2c-4d6a-9a1e-0255ac100084",
        "DRY_RUN": "false",
        "DELETIONS_PER_HOUR": "007",
        "REQUIRE_EMPTY": "false",
        "CREDENTIALS": "file:///run/credentials.json",
        "COMPLETION_SINK": "https://example.com/events",
        "LEDGER": "sqlite:///var/ledger.db",
    }
    assert settings.read(given) == Settings(
        policy=Policy(
            region="eu-west-101",
            allowed_projects=("p1", "P2", "0123456789abcdef0123456789abcdef"),
            allowed_names=("ci-*", "test-?", "[ab]*"),
            protected_clusters=("prod-*", "5b814cbf-4f2c-4d6a-9a1e-0255ac100084"),
            dry_run=False,
            deletions_per_hour=7,
            require_empty=False,
        ),
        endpoint="http://127.0.0.1:8080",
        credentials=FilePlace("/run/credentials.json"),
        completion_sink=HttpPlace("https://example.com/events"),
        ledger=SqlitePlace("/var/ledger.db"),
    )


def test_what_is_not_a_setting_of_ours_is_not_looked_at() -> None:
    assert settings.read({**LEAST, "PATH": "/bin", "dry_run": "false", "EXPIRY_SINK": "?"}) == settings.read(LEAST)


@pytest.mark.parametrize("name", LEAST)
def test_a_required_setting_that_is_missing_is_named(name: str) -> None:
    assert problems(**{name: None}) == (f"{name} is not set",)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in (*WEBHOOK, "PROTECTED_CLUSTERS")])
@pytest.mark.parametrize("value", ["", " ", "\n"], ids=["empty", "a space", "a line break"])
def test_an_empty_setting_is_never_the_default(name: str, value: str) -> None:  # case 38, 40
    (problem,) = problems(**{name: value})
    assert problem.startswith(f"{name} ")


def test_all_problems_are_reported_together_in_the_order_of_the_settings() -> None:
    wrong = dict.fromkeys(NAMES, "!")
    assert [problem.split(" ")[0] for problem in problems(**wrong)] == [
        "MODELARTS_REGION",
        "ALLOWED_PROJECTS",
        "ALLOWED_NAMES",
        "PROTECTED_CLUSTERS",
        "DRY_RUN",
        "DELETIONS_PER_HOUR",
        "REQUIRE_EMPTY",
        "MODELARTS_ENDPOINT",
        "CREDENTIALS",
        "COMPLETION_SINK",
        "LEDGER",
    ]
    with pytest.raises(SettingsError) as caught:
        settings.read({})
    assert caught.value.problems == tuple(f"{name} is not set" for name in LEAST)


@pytest.mark.parametrize("name", ["DRY_RUN", "REQUIRE_EMPTY"])
@pytest.mark.parametrize(
    "value",
    ["False", "TRUE", "0", "1", "no", "yes", "", " true", " TRUE ", "true\n", "maybe", "on", "null", "\uff54rue"],
)
def test_a_switch_is_exactly_true_or_false(name: str, value: str) -> None:  # case 38
    assert problems(**{name: value}) == (f"{name} is not exactly true or false",)


@pytest.mark.parametrize(("value", "on"), [("true", True), ("false", False)])
def test_a_switch_means_what_it_says(*, value: str, on: bool) -> None:  # case 38
    assert policy(DRY_RUN=value).dry_run is on
    assert policy(REQUIRE_EMPTY=value).require_empty is on


@pytest.mark.parametrize("value", ["", "ten", "-1", "+1", "1.0", "1e3", "1_0", " 10", "10\n", "1234567", "٣", "0x10"])
def test_a_number_has_up_to_six_digits(value: str) -> None:
    assert problems(DELETIONS_PER_HOUR=value) == ("DELETIONS_PER_HOUR is not a whole number of at most 6 digits",)


@pytest.mark.parametrize(("value", "number"), [("0", 0), ("1", 1), ("999999", 999_999)])
def test_a_limit_may_be_none_at_all(value: str, number: int) -> None:
    assert policy(DELETIONS_PER_HOUR=value).deletions_per_hour == number


@pytest.mark.parametrize(
    "value", ["", "CN-north-4", "cn_north_4", "cn.north", "-cn", "cn-", "cn north", "cn\n", "é", "c" * 64]
)
def test_a_region_is_a_word_that_fits_into_the_name_of_a_host(value: str) -> None:
    assert problems(MODELARTS_REGION=value) == ("MODELARTS_REGION is not a region like cn-southwest-2",)


@pytest.mark.parametrize("value", ["c", "cn", "4", "c" * 63])
def test_a_region_names_the_endpoint_where_none_is_set(value: str) -> None:
    assert (
        settings.read({**LEAST, "MODELARTS_REGION": value}).endpoint == f"https://modelarts.{value}.myhuaweicloud.com"
    )


def test_an_unreadable_region_is_one_problem_not_two() -> None:
    assert len(problems(MODELARTS_REGION="!")) == 1


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        pytest.param("", "is an empty list", id="empty"),
        pytest.param(" ", "is an empty list", id="a space"),
        pytest.param(",", "is an empty list", id="a comma"),
        pytest.param(" , ,", "is an empty list", id="commas"),
        pytest.param("p1,", "has an empty item", id="a comma at the end"),
        pytest.param(",p1", "has an empty item", id="a comma in front"),
        pytest.param("p1,,p2", "has an empty item", id="two commas"),
    ],
)
@pytest.mark.parametrize("name", ["ALLOWED_PROJECTS", "ALLOWED_NAMES"])
def test_an_empty_list_is_a_problem_and_never_everything(name: str, value: str, problem: str) -> None:
    assert problems(**{name: value}) == (f"{name} {problem}",)


@pytest.mark.parametrize(("value", "problem"), [(",", "is an empty list"), ("x,", "has an empty item")])
def test_protection_that_is_half_written_is_a_problem(value: str, problem: str) -> None:
    assert problems(PROTECTED_CLUSTERS=value) == (f"PROTECTED_CLUSTERS {problem}",)


@pytest.mark.parametrize("value", ["", " ", "\n"])
def test_protection_may_be_empty(value: str) -> None:
    assert policy(PROTECTED_CLUSTERS=value).protected_clusters == ()


@pytest.mark.parametrize(
    ("value", "number"),
    [
        pytest.param("*", 1, id="a star"),
        pytest.param("p1,p?", 2, id="a glob"),
        pytest.param("p1,p2,p_3", 3, id="an underscore"),
        pytest.param("p1 p2", 1, id="a space instead of a comma"),
        pytest.param("p1;p2", 1, id="a semicolon"),
        pytest.param('["p1"]', 1, id="JSON"),
        pytest.param("p" * 65, 1, id="65 characters"),
        pytest.param("é", 1, id="not ASCII"),
        pytest.param("../p", 1, id="dot segments"),
    ],
)
def test_a_project_is_a_plain_id_and_never_a_glob(value: str, number: int) -> None:  # case 45
    total = value.count(",") + 1
    problem = f"ALLOWED_PROJECTS has an item that is no project id (number {number} of {total})"
    assert problems(ALLOWED_PROJECTS=value) == (problem,)


@pytest.mark.parametrize("name", ["ALLOWED_NAMES", "PROTECTED_CLUSTERS"])
@pytest.mark.parametrize(
    ("value", "number"),
    [
        pytest.param("ci *", 1, id="a space inside"),
        pytest.param("ci-*;test-*", 1, id="a semicolon"),
        pytest.param("ci-*,test/*", 2, id="a slash"),
        pytest.param("a,b,é", 3, id="not ASCII"),
        pytest.param('"ci-*"', 1, id="quotes"),
        pytest.param('["ci-*"]', 1, id="JSON"),
        pytest.param("^ci-.*$", 1, id="a regular expression"),
        pytest.param("ci-[/]", 1, id="a set of what no name has"),
        pytest.param("ci-[", 1, id="a bracket that never ends"),
        pytest.param("ci-[]", 1, id="an empty set"),
        pytest.param("ci-[!]", 1, id="an empty set of others"),
        pytest.param("[z-a]", 1, id="a range backwards"),
        pytest.param("[!A-Za-z0-9_.-]", 1, id="a set that leaves nothing"),
        pytest.param("a" * 65, 1, id="65 characters"),
        pytest.param("?" * 65, 1, id="65 question marks"),
        pytest.param("*" + "[ab]" * 65, 1, id="65 sets"),
        pytest.param("a\nb", 1, id="a line break inside"),
        pytest.param("a\\*", 1, id="an escape"),
    ],
)
def test_an_item_that_can_match_nothing_is_a_problem(name: str, value: str, number: int) -> None:
    total = value.count(",") + 1
    assert problems(**{name: value}) == (
        f"{name} has an item that no id or name can match (number {number} of {total})",
    )


@pytest.mark.parametrize(
    "value",
    [
        pytest.param("*", id="everything, but said"),
        pytest.param("**", id="two stars"),
        pytest.param("a" * 64, id="64 characters"),
        pytest.param("*" + "?" * 64 + "*", id="64 question marks"),
        pytest.param("[ab]" * 64, id="64 sets"),
        pytest.param("[]a]*", id="a set that begins with its bracket"),
        pytest.param("[!]]", id="a set of all but a bracket"),
        pytest.param("[!a]", id="a set of others"),
        pytest.param("[0-9a-f]*", id="ranges"),
        pytest.param("-_.Z9", id="every kind of character"),
    ],
)
def test_an_item_that_can_match_something_is_taken_as_it_stands(value: str) -> None:
    assert policy(ALLOWED_NAMES=value).allowed_names == (value,)
    assert policy(PROTECTED_CLUSTERS=f"x, {value}").protected_clusters == ("x", value)


# The settings of `webhook`.


def test_the_webhook_needs_its_two_settings_and_reads_nothing_else() -> None:
    expected = WebhookSettings(
        expiry_sink=FilePlace("/expiries.jsonl"),
        webhook_secrets=FilePlace("/run/secrets"),
    )
    wrong = dict.fromkeys(NAMES, "!")
    assert settings.read_webhook(WEBHOOK) == settings.read_webhook({**wrong, **WEBHOOK}) == expected


def test_a_webhook_without_settings_is_never_an_open_door() -> None:  # case 72
    with pytest.raises(SettingsError) as caught:
        settings.read_webhook(LEAST)
    assert caught.value.problems == ("EXPIRY_SINK is not set", "WEBHOOK_SECRETS is not set")


@pytest.mark.parametrize("value", ["", "whsec_a2V5a2V5a2V5a2V5", "plain-text-secret", "whsec_", "https://example.com"])
def test_a_secret_pasted_where_its_place_belongs_is_refused_and_not_shown(value: str) -> None:  # case 73
    with pytest.raises(SettingsError) as caught:
        settings.read_webhook({**WEBHOOK, "WEBHOOK_SECRETS": value})
    problem = "WEBHOOK_SECRETS is neither file:///path nor secretmanager://projects/P/secrets/S[/versions/V]"
    assert caught.value.problems == (problem,)


# Whatever is set.

PIECES = st.sampled_from(
    [*LEAST.values(), "*", "[", "]", "!", "-", ",", "?", "&&", "--", "~~", "||", "\\", " ", "true", "7", "://"]
)
VALUES = st.text(max_size=30) | st.lists(PIECES, max_size=6).map("".join)
ENVIRONMENTS = st.dictionaries(st.sampled_from(NAMES), VALUES)
PLACES = ("MODELARTS_ENDPOINT", "CREDENTIALS", "COMPLETION_SINK", "LEDGER", "EXPIRY_SINK", "WEBHOOK_SECRETS")


@given(ENVIRONMENTS.map(lambda given: {**LEAST, **given}))
@example({**LEAST, "ALLOWED_NAMES": "[[a]"})
@example({**LEAST, "ALLOWED_NAMES": "[a--b]"})
@example({**LEAST, "ALLOWED_NAMES": "[a&&b]"})
def test_any_environment_is_settings_or_a_list_of_problems(environment: dict[str, str]) -> None:
    for read in (settings.read, settings.read_webhook):
        assert all(problem.split(" ")[0] in NAMES for problem in problems_of(read, environment))


@given(
    name=st.sampled_from(PLACES),
    before=VALUES,
    after=VALUES,
)
@example(name="CREDENTIALS", before='{"access_key":"', after='"}')
@example(name="CREDENTIALS", before="secretmanager://", after="")
@example(name="MODELARTS_ENDPOINT", before="https://user:", after="@example.com")
@example(name="MODELARTS_ENDPOINT", before="https://h:", after="")
@example(name="COMPLETION_SINK", before="http://[", after="")
def test_no_value_of_a_place_is_ever_shown(name: str, before: str, after: str) -> None:
    environment = {**LEAST, **WEBHOOK, name: f"{before}canary{after}"}
    for read in (settings.read, settings.read_webhook):
        assert "canary" not in repr(problems_of(read, environment))


def problems_of(read: Callable[[dict[str, str]], object], environment: dict[str, str]) -> tuple[str, ...]:
    try:
        read(environment)
    except SettingsError as error:
        return (*error.problems, *(str(more) for more in (error.__cause__, error.__context__) if more))
    return ()
