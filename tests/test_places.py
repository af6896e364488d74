from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup import places
from modelarts_cleanup.places import FilePlace, FirestorePlace, HttpPlace, SecretPlace, SqlitePlace, TopicPlace

# The address of ModelArts.


@pytest.mark.parametrize(
    ("text", "url"),
    [
        pytest.param("https://modelarts.cn-southwest-2.myhuaweicloud.com", None, id="com"),
        pytest.param("https://modelarts.cn-southwest-2.myhuaweicloud.cn", None, id="cn"),
        pytest.param("https://modelarts.eu-west-101.myhuaweicloud.eu", None, id="eu"),
        pytest.param("https://a.myhuaweicloud.com/", "https://a.myhuaweicloud.com", id="a slash at the end"),
        pytest.param("https://a.myhuaweicloud.com:443", "https://a.myhuaweicloud.com", id="the usual port"),
        pytest.param("https://A.MyHuaweiCloud.com", "https://a.myhuaweicloud.com", id="a host has no case"),
        pytest.param("http://127.0.0.1:8080", None, id="loopback"),
        pytest.param("http://127.0.0.1:8080/", "http://127.0.0.1:8080", id="loopback with a slash at the end"),
        pytest.param("http://127.0.0.1", None, id="loopback without port"),
        pytest.param("http://127.8.9.10:1", None, id="all of 127"),
        pytest.param("http://localhost:8080", None, id="localhost"),
        pytest.param("http://[::1]:8080", None, id="loopback of IPv6"),
        pytest.param("http://[::1]", None, id="loopback of IPv6 without port"),
    ],
)
def test_modelarts_is_under_its_three_domains_or_on_this_machine(text: str, url: str | None) -> None:
    assert places.endpoint(text) == (url or text)


HUAWEI = r"^is not https under (\.myhuaweicloud\.\w+, ){3}nor http to a loopback address$"
MORE = r"^is more than a scheme and a host$"
NO_HOST = r"^is not a URL with a host and without user and fragment$"
NO_URL = r"^is not a URL$"
SAID = r"^(is|has) "
INVISIBLE = r"^has white space or characters that no URL has$"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("http://modelarts.cn-southwest-2.myhuaweicloud.com", HUAWEI, id="plain http"),
        pytest.param("https://example.com", HUAWEI, id="another domain"),
        pytest.param("https://myhuaweicloud.com", HUAWEI, id="the domain itself"),
        pytest.param("https://.myhuaweicloud.com", HUAWEI, id="a host that begins with a point"),
        pytest.param("https://a..myhuaweicloud.com", HUAWEI, id="two points"),
        pytest.param("https://evilmyhuaweicloud.com", HUAWEI, id="the domain without its point"),
        pytest.param("https://a.myhuaweicloud.com.example.com", HUAWEI, id="the domain inside another"),
        pytest.param("https://a.myhuaweicloud.com.", HUAWEI, id="a point at the end"),
        pytest.param("https://a.myhuaweicloud.org", HUAWEI, id="another top level"),
        pytest.param("https://example.com\\.myhuaweicloud.com", HUAWEI, id="a backslash"),
        pytest.param("https://a_b.myhuaweicloud.com", HUAWEI, id="a character that no host has"),
        pytest.param("https://a%2e.myhuaweicloud.com", HUAWEI, id="an escape in the host"),
        pytest.param("https://127.0.0.1", HUAWEI, id="https to loopback"),
        pytest.param("https://localhost:8080", HUAWEI, id="https to localhost"),
        pytest.param("http://10.0.0.1", HUAWEI, id="http to a private address"),
        pytest.param("http://0.0.0.0", HUAWEI, id="http to any address"),
        pytest.param("http://127.1", HUAWEI, id="a short form of loopback"),
        pytest.param("http://2130706433", HUAWEI, id="loopback as a number"),
        pytest.param("http://localhost.example.com", HUAWEI, id="localhost of another"),
        pytest.param("http://[::2]", HUAWEI, id="IPv6 that is no loopback"),
        pytest.param("ftp://a.myhuaweicloud.com", HUAWEI, id="another scheme"),
        pytest.param("ftp://127.0.0.1", HUAWEI, id="another scheme to loopback"),
        pytest.param("//a.myhuaweicloud.com", HUAWEI, id="no scheme"),
        pytest.param("https://a.myhuaweicloud.com:8443", HUAWEI, id="an odd port"),
        pytest.param("https://a.myhuaweicloud.com:80", HUAWEI, id="the port of http"),
        pytest.param("https://a.myhuaweicloud.com:0", SAID, id="port 0"),
        pytest.param("http://127.0.0.1:0", SAID, id="port 0 of loopback"),
        pytest.param("http://[::1]x:80", SAID, id="more behind the brackets"),
        pytest.param("http://[::1].example.com", SAID, id="a domain behind the brackets"),
        pytest.param("http://x[::1]", SAID, id="more before the brackets"),
        pytest.param("https://a.myhuaweicloud.com/v1", MORE, id="a path"),
        pytest.param("https://a.myhuaweicloud.com//", MORE, id="two slashes"),
        pytest.param("https://a.myhuaweicloud.com?x=1", MORE, id="a query"),
        pytest.param("http://127.0.0.1/x", MORE, id="a path at loopback"),
        pytest.param("http://127.0.0.1/?x", MORE, id="a query at loopback"),
        pytest.param("https://a.myhuaweicloud.com#x", NO_HOST, id="a fragment"),
        pytest.param("https://user@a.myhuaweicloud.com", NO_HOST, id="a user"),
        pytest.param("https://@a.myhuaweicloud.com", NO_HOST, id="an empty user"),
        pytest.param("https://user:pw@a.myhuaweicloud.com", NO_HOST, id="a user and a password"),
        pytest.param("https://example.com@a.myhuaweicloud.com", NO_HOST, id="a host as user"),
        pytest.param("http://u@127.0.0.1", NO_HOST, id="a user at loopback"),
        pytest.param("https://", NO_HOST, id="no host"),
        pytest.param("a.myhuaweicloud.com", NO_HOST, id="a host alone"),
        pytest.param("https://:443", NO_HOST, id="a port alone"),
        pytest.param("https://a.myhuaweicloud.com:x", NO_URL, id="a port that is no number"),
        pytest.param("https://a.myhuaweicloud.com:65536", NO_URL, id="a port too high"),
        pytest.param("https://a.myhuaweicloud.com:-443", NO_URL, id="a negative port"),
        pytest.param("http://[::1", NO_URL, id="a bracket that never ends"),
        pytest.param("", INVISIBLE, id="empty"),
        pytest.param(" https://a.myhuaweicloud.com", INVISIBLE, id="a space before it"),
        pytest.param("https://a.myhuaweicloud.com\n", INVISIBLE, id="a line break after it"),
        pytest.param("https://a.\tmyhuaweicloud.com", INVISIBLE, id="a tab inside"),
        pytest.param("https://ä.myhuaweicloud.com", INVISIBLE, id="not ASCII"),
        pytest.param("https://a。myhuaweicloud.com", INVISIBLE, id="a point of another script"),
        pytest.param("http://127.0.0.1:٨٠", INVISIBLE, id="a port of another script"),
    ],
)
def test_modelarts_is_nowhere_else(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        places.endpoint(text)


# Where secrets, events and the ledger are.

PROJECT_63 = "p" * 63


@pytest.mark.parametrize(
    ("read", "text", "place"),
    [
        pytest.param(
            places.secret,
            "secretmanager://projects/p-1/secrets/S_1",
            SecretPlace("projects/p-1/secrets/S_1/versions/latest"),
            id="a secret: its latest version",
        ),
        pytest.param(
            places.secret,
            "secretmanager://projects/p-1/secrets/S/versions/7",
            SecretPlace("projects/p-1/secrets/S/versions/7"),
            id="a secret: one version",
        ),
        pytest.param(
            places.secret,
            f"secretmanager://projects/{PROJECT_63}/secrets/{'s' * 255}/versions/latest",
            SecretPlace(f"projects/{PROJECT_63}/secrets/{'s' * 255}/versions/latest"),
            id="a secret: the longest",
        ),
        pytest.param(places.secret, "file:///run/secret.json", FilePlace("/run/secret.json"), id="a secret in a file"),
        pytest.param(
            places.sink, "pubsub://projects/p/topics/t.1~a", TopicPlace("projects/p/topics/t.1~a"), id="a topic"
        ),
        pytest.param(
            places.sink,
            "pubsub://projects/example.com:p/topics/top",
            TopicPlace("projects/example.com:p/topics/top"),
            id="a topic of a project under a domain",
        ),
        pytest.param(
            places.sink, "https://h.example.com:8443/a?b=c", HttpPlace("https://h.example.com:8443/a?b=c"), id="https"
        ),
        pytest.param(places.sink, "http://127.0.0.1:1/a", HttpPlace("http://127.0.0.1:1/a"), id="http to loopback"),
        pytest.param(places.sink, "http://localhost/", HttpPlace("http://localhost/"), id="http to localhost"),
        pytest.param(places.sink, "http://[::1]/", HttpPlace("http://[::1]/"), id="http to loopback of IPv6"),
        pytest.param(places.sink, "file:///a/b.jsonl", FilePlace("/a/b.jsonl"), id="a file of events"),
        pytest.param(places.sink, "file:///a%20b%25%C3%A9", FilePlace("/a b%é"), id="a file with escapes"),
        pytest.param(places.ledger, "sqlite:///a/b.db", SqlitePlace("/a/b.db"), id="a ledger in a file"),
        pytest.param(
            places.ledger,
            "firestore://projects/p/databases/d-1",
            FirestorePlace("p", "d-1"),
            id="a ledger in Firestore",
        ),
        pytest.param(
            places.ledger,
            "firestore://projects/p/databases/(default)",
            FirestorePlace("p", "(default)"),
            id="a ledger in the default database",
        ),
    ],
)
def test_a_url_says_where_something_is(read: Callable[[str], object], text: str, place: object) -> None:
    assert read(text) == place


SECRET = r"^is neither file:///path nor secretmanager://projects/P/secrets/S\[/versions/V\]$"  # noqa: S105 - a message
SINK = r"^is neither pubsub://projects/P/topics/T, https://…, nor file:///path \(http to loopback only\)$"
LEDGER = r"^is neither firestore://projects/P/databases/D nor sqlite:///path$"
PATH = r"^is not an absolute path to a file, like file:///path$"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        "S",
        "/run/secret.json",
        '{"access_key":"AK"}',
        "whsec_a2V5",
        "secretmanager://projects/p/secrets",
        "secretmanager://projects/p/secrets/",
        "secretmanager://projects/p/secrets/s/versions/",
        "secretmanager://projects/p/secrets/s/versions/1/x",
        "secretmanager://projects/p/secrets/s/",
        "secretmanager://projects//secrets/s",
        "secretmanager://projects/P/secrets/s",
        "secretmanager://projects/p/secrets/s.t",
        "secretmanager://projects/p/secrets/../s",
        "secretmanager://projects/p/secrets/s\n",
        " secretmanager://projects/p/secrets/s",
        pytest.param("secretmanager://projects/p/secrets/" + "s" * 256, id="endless"),
        "secretmanager:///projects/p/secrets/s",
        "SecretManager://projects/p/secrets/s",
        "projects/p/secrets/s",
        "https://example.com/secret",
        "pubsub://projects/p/topics/top",
        "sqlite:///a",
    ],
)
def test_a_secret_is_in_secret_manager_or_in_a_file(text: str) -> None:
    with pytest.raises(ValueError, match=SECRET):
        places.secret(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        "topic",
        "pubsub://projects/p/topics/",
        "pubsub://projects/p/topics/to",
        "pubsub://projects/p/topics/1op",
        "pubsub://projects/p/topics/a/b",
        "pubsub://projects/p/topics/top?x",
        pytest.param("pubsub://projects/p/topics/" + "t" * 256, id="endless"),
        "pubsub://projects/p/subscriptions/top",
        "projects/p/topics/top",
        "http://example.com/",
        "http://10.0.0.1/",
        "http://127.0.0.1.example.com/",
        "ftp://example.com/",
        "sqlite:///a",
        "secretmanager://projects/p/secrets/s",
    ],
)
def test_events_go_to_a_topic_over_https_or_into_a_file(text: str) -> None:
    with pytest.raises(ValueError, match=SINK):
        places.sink(text)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        "ledger.db",
        "sqlite:/a",
        "sqlite:a",
        "firestore://projects/p/databases/",
        "firestore://projects/p/databases/D",
        "firestore://projects/p/databases/(other)",
        "firestore://projects/p/databases/d/x",
        "firestore://projects/p",
        "file:///a",
        "pubsub://projects/p/topics/top",
        "https://example.com/",
    ],
)
def test_the_ledger_is_in_firestore_or_in_a_file(text: str) -> None:
    with pytest.raises(ValueError, match=LEDGER):
        places.ledger(text)


@pytest.mark.parametrize("rest", ["", "/", "a", "./a", "localhost/a", "/a/", "/a%2F", "/a%00b", "/a?b", ":80/a"])
def test_a_file_is_named_by_an_absolute_path_and_nothing_else(rest: str) -> None:
    for read, scheme in ((places.secret, "file"), (places.sink, "file"), (places.ledger, "sqlite")):
        with pytest.raises(ValueError, match=PATH):
            read(f"{scheme}://{rest}")


@pytest.mark.parametrize(
    ("read", "text", "problem"),
    [
        pytest.param(places.sink, "file:///a#b", NO_HOST, id="a file with a fragment"),
        pytest.param(places.sink, "file:///a b", INVISIBLE, id="a file with a space"),
        pytest.param(places.ledger, "sqlite:///é", INVISIBLE, id="a ledger, not ASCII"),
        pytest.param(places.secret, "file:///a\n", INVISIBLE, id="a file with a line break"),
        pytest.param(places.sink, "https://user:pw@example.com/", NO_HOST, id="a sink with a user"),
        pytest.param(places.sink, "https://example.com/#x", NO_HOST, id="a sink with a fragment"),
        pytest.param(places.sink, "https:///path", NO_HOST, id="a sink without a host"),
        pytest.param(places.sink, "https://example.com:x/", NO_URL, id="a sink with no port"),
        pytest.param(places.sink, "https://example.com/ x", INVISIBLE, id="a sink with a space"),
        pytest.param(places.sink, "http://[::1]x/", SAID, id="a sink with more behind the brackets"),
    ],
)
def test_a_url_of_another_form_says_nothing(read: Callable[[str], object], text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        read(text)


SCHEMES = ["http", "https", "file", "sqlite", "pubsub", "secretmanager", "firestore"]
MARKS = ["://", ":", "/", "//", "[", "]", "@", "#", "?", "%00", "%", "\\", "0"]
NAMES = ["projects/p", "/topics/top", "/secrets/s", "127.0.0.1", "::1", "localhost", "a.myhuaweicloud.com"]
PIECES = st.sampled_from([*SCHEMES, *MARKS, *NAMES])


@given(
    read=st.sampled_from([places.endpoint, places.secret, places.sink, places.ledger]),
    text=st.text() | st.lists(PIECES, max_size=8).map("".join),
)
def test_any_text_is_a_place_or_refused_in_words_that_quote_nothing(read: Callable[[str], object], text: str) -> None:
    canary = text + "canary"
    assert "canary" not in (problem_of(read, canary) or "")


def problem_of(read: Callable[[str], object], text: str) -> str | None:
    try:
        read(text)
    except ValueError as error:
        return f"{error!r} {error.__cause__!r}"
    return None
