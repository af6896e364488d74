import json
import string
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup import signing
from modelarts_cleanup.signing import Credentials

# The vendor's signer asks for the time in a way that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings(r"ignore:datetime\.datetime\.utcnow:DeprecationWarning:huaweicloudsdkcore")

KNOWN = json.loads((Path(__file__).parent / "data" / "signing_vectors.json").read_text())
PUBLISHED = KNOWN["published_example"]
KEYS = Credentials("AK", "SK")
HEADERS = {"Host": "h.example.com", "X-Sdk-Date": "20260130T081530Z"}

Pairs: TypeAlias = list[tuple[str, str]]
Oracle: TypeAlias = Callable[..., str]


@pytest.fixture(scope="module")
def vendor(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """Give the vendor's own signer, as a function of the same arguments as ours."""
    with pytest.MonkeyPatch.context() as patch:
        # Importing the SDK writes an id into the home directory.
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        from huaweicloudsdkcore.auth.credentials import BasicCredentials  # noqa: PLC0415 - only once HOME is elsewhere
        from huaweicloudsdkcore.sdk_request import SdkRequest  # noqa: PLC0415 - the same
        from huaweicloudsdkcore.signer.signer import Signer  # noqa: PLC0415 - the same

    def authorization(
        method: str, path: str, *, query: Pairs, headers: Mapping[str, str], body: bytes, credentials: Credentials
    ) -> str:
        request = SdkRequest(
            method=method,
            host=headers["Host"],
            resource_path=path,
            query_params=list(query),
            header_params=dict(headers),
            body=body,
        )
        keys = BasicCredentials(credentials.access_key, credentials.secret_key, "p1")
        signed: str = Signer(keys).sign(request).header_params["Authorization"]
        return signed

    return authorization


def flat(query: list[list[Any]]) -> Pairs:
    """Write a query as pairs of texts, as the vendor's signer does with lists, booleans and numbers."""
    found: Pairs = []
    for name, value in query:
        for each in value if isinstance(value, list) else [value]:
            found.append((name, str(each).lower() if isinstance(each, bool) else str(each)))
    return found


@pytest.mark.parametrize("vector", KNOWN["vectors"], ids=[vector["name"] for vector in KNOWN["vectors"]])
def test_signatures_are_those_of_the_known_answers(vector: dict[str, Any]) -> None:
    asked = vector["input"]
    headers = {"Host": asked["host"], **asked["headers"]}
    if "X-Sdk-Content-Sha256" in vector["headers_after_signing"]:  # the vendor's SDK adds it by itself
        headers["X-Sdk-Content-Sha256"] = vector["headers_after_signing"]["X-Sdk-Content-Sha256"]
    signed = signing.authorization(
        asked["method"],
        asked["resource_path"],
        query=flat(asked["query"]),
        headers=headers,
        body=(asked["body"] or "").encode(),
        credentials=Credentials(KNOWN["access_key"], KNOWN["secret_key"]),
    )
    assert signed == vector["authorization"]


def test_the_signature_of_the_published_example_is_the_published_one() -> None:
    asked = PUBLISHED["input"]
    signed = signing.authorization(
        asked["method"],
        asked["resource_path"],
        query=flat(asked["query"]),
        headers={"Host": asked["host"], **asked["headers"]},
        credentials=Credentials(PUBLISHED["access_key"], PUBLISHED["secret_key"]),
    )
    assert signed == PUBLISHED["authorization"]
    assert signed.endswith(PUBLISHED["signature"])


TEXTS = st.text(st.characters(codec="utf-8"), max_size=12)
NAMES = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=8)
VALUES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=12)
CONTENT = st.fixed_dictionaries(
    {},
    optional={
        "Content-Type": st.sampled_from(["application/json", "application/json;charset=UTF-8", "application/bson"]),
        "X-Sdk-Content-Sha256": st.sampled_from(["UNSIGNED-PAYLOAD", "0" * 64, ""]),
        "X-Security-Token": VALUES,
    },
)
TAKEN = {"host", "x-sdk-date", "content-type", "x-sdk-content-sha256", "x-security-token", "authorization"}


@given(
    method=st.sampled_from(["GET", "DELETE", "POST", "PUT", "PATCH", "HEAD"]),
    path=(TEXTS | st.text("/%~+ 2FfEe9cC3aéz.-_", max_size=20)).map(lambda rest: "/" + rest),
    query=st.lists(st.tuples(TEXTS | st.sampled_from("ab"), TEXTS | st.sampled_from("12")), max_size=5),
    more=st.dictionaries(NAMES, VALUES, max_size=4),
    content=CONTENT,
    at=st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds are naive
    body=st.binary(max_size=40),
    keys=st.tuples(st.text(string.printable.strip(), min_size=1), st.text(string.printable.strip(), min_size=1)),
)
def test_any_request_is_signed_as_the_vendor_signs_it(
    *,
    vendor: Oracle,
    method: str,
    path: str,
    query: Pairs,
    more: dict[str, str],
    content: dict[str, str],
    at: datetime,
    body: bytes,
    keys: tuple[str, str],
) -> None:
    distinct = {name.lower(): (name, value) for name, value in more.items() if name.lower() not in TAKEN}
    headers = {**HEADERS, "X-Sdk-Date": signing.sdk_date(at), **content, **dict(distinct.values())}
    asked: dict[str, Any] = {
        "query": query,
        "headers": headers,
        "body": body,
        "credentials": Credentials(*keys),
    }
    assert signing.authorization(method, path, **asked) == vendor(method, path, **asked)


def test_a_request_without_query_and_body_needs_neither() -> None:
    bare = signing.authorization("GET", "/v1/x", headers=HEADERS, credentials=KEYS)
    assert bare == signing.authorization("GET", "/v1/x", query=[], headers=HEADERS, body=b"", credentials=KEYS)


@pytest.mark.parametrize("text", ["/", "~", "a b", "+", "%2F", "=&", "*", "é"])
def test_what_is_special_in_a_query_is_signed_as_the_vendor_signs_it(vendor: Oracle, text: str) -> None:
    asked: dict[str, Any] = {"query": [(text, "1"), ("a", text)], "headers": HEADERS, "body": b"", "credentials": KEYS}
    assert signing.authorization("GET", "/", **asked) == vendor("GET", "/", **asked)


def test_the_query_may_come_in_any_order_and_once_only() -> None:
    query = [("b", "1"), ("a", "2"), ("a", "1")]
    forwards = signing.authorization("GET", "/", query=iter(query), headers=HEADERS, credentials=KEYS)
    assert forwards == signing.authorization("GET", "/", query=sorted(query), headers=HEADERS, credentials=KEYS)


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"method": "DELETE"}, id="method"),
        pytest.param({"path": "/v1/y"}, id="path"),
        pytest.param({"query": [("type", "HPS")]}, id="query"),
        pytest.param({"headers": {**HEADERS, "Host": "other.example.com"}}, id="host"),
        pytest.param({"headers": {**HEADERS, "X-Sdk-Date": "20260130T081531Z"}}, id="case 63: a second later"),
        pytest.param({"headers": {**HEADERS, "X-Security-Token": "t"}}, id="security token"),
        pytest.param({"body": b"{}"}, id="body"),
        pytest.param({"credentials": Credentials("AK", "SK2")}, id="secret key"),
        pytest.param({"credentials": Credentials("AK2", "SK")}, id="access key"),
    ],
)
def test_another_request_has_another_signature(changed: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"method": "GET", "path": "/v1/x", "headers": HEADERS, "credentials": KEYS}
    first, second = ({**asked, **more} for more in ({}, changed))
    assert signing.authorization(first.pop("method"), first.pop("path"), **first) != signing.authorization(
        second.pop("method"), second.pop("path"), **second
    )


def test_neither_secret_key_nor_security_token_stands_in_the_header_or_in_a_repr() -> None:
    keys = Credentials("AK-visible", "SK-canary", "ST-canary")
    signed = signing.authorization("GET", "/", headers=HEADERS, credentials=keys)
    assert "Access=AK-visible" in signed
    assert "canary" not in signed
    assert repr(keys) == str(keys) == "Credentials(…)"


@pytest.fixture
def _far_east() -> Iterator[None]:
    """Put this process eight hours ahead of UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "XXX-8")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_east")
@pytest.mark.parametrize(
    ("at", "text"),
    [
        pytest.param(datetime(2026, 1, 30, 8, 15, 30, 999_999, tzinfo=UTC), "20260130T081530Z", id="cut to the second"),
        pytest.param(
            datetime(2026, 1, 30, 0, 15, 30, tzinfo=timezone(timedelta(hours=8))), "20260129T161530Z", id="another zone"
        ),
    ],
)
def test_the_moment_of_signing_is_written_in_utc_wherever_we_run(at: datetime, text: str) -> None:
    assert signing.sdk_date(at) == text
