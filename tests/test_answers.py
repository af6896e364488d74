import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup.adapters.answers import (
    Answer,
    ClusterBody,
    ListBody,
    Meaning,
    SupernodesBody,
    meaning,
    retry,
    shaped,
    waiting_time,
)
from modelarts_cleanup.model import Member, RetryLater

NOW = datetime(2026, 7, 15, 12, 0, tzinfo=UTC)
CANARY = "canary-Secret/Key+0123456789="


def an_answer(body: object = None, *, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, content, headers or {})


# What a status and a code mean

MEANINGS: list[tuple[int, str | None, Meaning]] = [
    # No success, and no refusal either.
    (201, None, Meaning.FAULT),
    (202, None, Meaning.FAULT),
    (206, None, Meaning.FAULT),
    (301, None, Meaning.FAULT),
    (302, None, Meaning.FAULT),
    (307, None, Meaning.FAULT),
    (308, None, Meaning.FAULT),
    # ModelArts' own "not found" comes as 400.
    (400, "ModelArts.6404", Meaning.NOT_FOUND),
    (400, "ModelArts.6309", Meaning.NOT_FOUND),
    (404, "ModelArts.6404", Meaning.NOT_FOUND),
    (404, "ModelArts.6309", Meaning.NOT_FOUND),
    # Any other 404 says less.
    (404, None, Meaning.BARE_404),
    (404, "ModelArts.0101", Meaning.BARE_404),
    (404, "AICS.00001001", Meaning.BARE_404),
    (404, "APIGW.0101", Meaning.NO_SUCH_API),
    (404, "APIGW.0103", Meaning.NO_SUCH_API),
    (404, "APIGW.9999", Meaning.NO_SUCH_API),
    (400, "APIGW.0101", Meaning.NO_SUCH_API),
    (405, None, Meaning.NO_SUCH_API),
    (405, "APIGW.0501", Meaning.NO_SUCH_API),
    (405, "ModelArts.6404", Meaning.NO_SUCH_API),
    # Not found with a status that does not go with it is not believed.
    (500, "ModelArts.6404", Meaning.FAULT),
    (200, "ModelArts.6404", Meaning.FAULT),
    (302, "ModelArts.6404", Meaning.FAULT),
    # Credentials and rights.
    (401, None, Meaning.UNAUTHENTICATED),
    (401, "APIGW.0301", Meaning.UNAUTHENTICATED),
    (401, "APIGW.0307", Meaning.UNAUTHENTICATED),
    (401, "ModelArts.0203", Meaning.UNAUTHENTICATED),
    (401, "ModelArts.6404", Meaning.UNAUTHENTICATED),
    (403, "ModelArts.0108", Meaning.NO_RIGHTS),
    (403, "ModelArts.0112", Meaning.NO_RIGHTS),
    (403, "ModelArts.0203", Meaning.NO_RIGHTS),
    (403, "ModelArts.0206", Meaning.NO_RIGHTS),
    (403, "ModelArts.0208", Meaning.NO_RIGHTS),
    (403, "ModelArts.0210", Meaning.NO_RIGHTS),
    (403, "APIGW.0302", Meaning.NO_RIGHTS),
    (403, "APIGW.0802", Meaning.NO_RIGHTS),
    (403, "IAM.0002", Meaning.NO_RIGHTS),
    (403, "PAP5.0012", Meaning.NO_RIGHTS),
    # Patience.
    (429, None, Meaning.THROTTLED),
    (429, "APIGW.0308", Meaning.THROTTLED),
    (429, "ModelArts.6101", Meaning.THROTTLED),
    (400, "APIGW.0308", Meaning.THROTTLED),
    (403, "APIGW.0308", Meaning.THROTTLED),
    (400, "ModelArts.6355", Meaning.BUSY),
    (400, "ModelArts.6357", Meaning.BUSY),
    (409, "ModelArts.5044", Meaning.BUSY),
    (409, "ModelArts.6357", Meaning.BUSY),
    (409, None, Meaning.BUSY),
    (409, "APIGW.0001", Meaning.BUSY),
    # Refusals.
    (400, "ModelArts.6344", Meaning.REFUSED),
    (400, "ModelArts.6304", Meaning.REFUSED),
    (400, "ModelArts.6326", Meaning.REFUSED),
    (400, "ModelArts.0101", Meaning.REFUSED),
    (403, "ModelArts.6344", Meaning.REFUSED),
    (403, "AICS.00000004", Meaning.REFUSED),
    (403, None, Meaning.REFUSED),
    (409, "ModelArts.6344", Meaning.BUSY),
    # Whatever else there is.
    (400, None, Meaning.FAULT),
    (400, "APIGW.0106", Meaning.FAULT),
    (400, "AICS.00001001", Meaning.FAULT),
    (408, None, Meaning.FAULT),
    (413, "APIGW.0201", Meaning.FAULT),
    (418, None, Meaning.FAULT),
    (500, None, Meaning.FAULT),
    (500, "ModelArts.0010", Meaning.FAULT),
    (502, "APIGW.0201", Meaning.FAULT),
    (503, None, Meaning.FAULT),
    (504, "APIGW.0201", Meaning.FAULT),
    (599, None, Meaning.FAULT),
]


@pytest.mark.parametrize(("status", "code", "expected"), MEANINGS)
def test_status_and_code_mean(status: int, code: str | None, expected: Meaning) -> None:
    assert meaning(status, code) is expected


@given(st.integers(100, 599), st.one_of(st.none(), st.from_regex(r"(ModelArts|APIGW|X)\.[0-9]{4}", fullmatch=True)))
def test_every_status_and_code_mean_something(status: int, code: str | None) -> None:
    found = meaning(status, code)
    if found is Meaning.NOT_FOUND:
        assert status in (400, 404)
        assert code in ("ModelArts.6404", "ModelArts.6309")


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [
        (302, None, "modelarts_unavailable"),
        (400, None, "modelarts_unavailable"),
        (400, "ModelArts.0101", "modelarts_unavailable"),
        (400, "ModelArts.6404", "modelarts_unavailable"),
        (401, None, "credentials_refused"),
        (403, None, "credentials_refused"),
        (403, "ModelArts.6344", "credentials_refused"),
        (403, "ModelArts.0112", "credentials_refused"),
        (404, None, "modelarts_unavailable"),
        (404, "APIGW.0101", "misconfigured_endpoint"),
        (409, None, "busy"),
        (429, None, "throttled"),
        (503, None, "modelarts_unavailable"),
    ],
)
def test_an_answer_that_decides_nothing_is_a_reason_to_come_again(status: int, code: str | None, reason: str) -> None:
    found = retry(an_answer({"error_code": code}, status=status), "the look")
    assert found.reason == reason
    assert found.detail == f"the look was answered with {status} {code or '(no code)'}"


# Where the code stands


@pytest.mark.parametrize(
    "body",
    [
        {"error_code": "ModelArts.6404", "error_msg": "The resource is not found."},
        {"error_code": "ModelArts.6404", "error_msg": "…", "request_id": "r", "encoded_authorization_message": "x"},
        {"errorCode": "ModelArts.6404", "errorMsg": "…"},
        {"code": "ModelArts.6404", "message": "…"},
        {"error": {"code": "ModelArts.6404", "message": "…", "title": "…"}},
        {"error": {"error_code": "ModelArts.6404"}},
        {"request_id": "r", "errors": [], "error": {"errorCode": "ModelArts.6404"}},
        {"error_code": None, "code": "ModelArts.6404"},
        {"error_code": 404, "code": "ModelArts.6404"},
        {"code": "not a code", "error": {"code": "ModelArts.6404"}},
    ],
)
def test_the_code_is_found_under_each_of_its_names_at_top_level_or_one_below(body: object) -> None:
    assert an_answer(body, status=400).code == "ModelArts.6404"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>502 Bad Gateway</body></html>",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"ModelArts.6404"',
        b"404",
        b"[" * 100_000,
        {},
        {"error_msg": "ModelArts.6404"},
        {"error_code": "6404"},
        {"error_code": ""},
        {"error_code": "ModelArts.6404 "},
        {"error_code": "ModelArts." + "6" * 100},
        {"error_code": ["ModelArts.6404"]},
        {"error_code": f"x.{CANARY}"},
        {"deeper": {"error": {"error_code": "ModelArts.6404"}}},
        [{"error_code": "ModelArts.6404"}],
    ],
)
def test_what_is_no_code_is_none(body: object) -> None:
    assert an_answer(body, status=400).code is None


def test_a_success_has_no_code() -> None:
    assert an_answer({"code": "ModelArts.6404"}).code is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"X-Request-Id": "0123abc"}, "0123abc"),
        ({"X-Request-Id": "a" * 128}, "a" * 128),
        ({"X-Request-Id": "a" * 129}, None),
        ({"X-Request-Id": "two words"}, None),
        ({"X-Request-Id": "ä"}, None),
        ({"X-Request-Id": ""}, None),
        ({}, None),
    ],
)
def test_the_request_id_is_taken_only_if_it_looks_like_one(headers: dict[str, str], expected: str | None) -> None:
    assert an_answer(headers=headers).request_id == expected


def test_an_answer_is_named_by_what_cannot_hold_a_secret() -> None:
    answer = an_answer({"error_code": "APIGW.0301", "error_msg": CANARY}, status=401, headers={"X-Request-Id": "r-1"})
    assert str(answer) == "401 APIGW.0301, request r-1"
    assert CANARY not in repr(answer)
    assert str(an_answer(CANARY, status=502, headers={"Set-Cookie": CANARY})) == "502 (no code)"
    assert CANARY not in str(retry(answer, "the look"))


# The shape of a success


def test_a_cluster_is_read_whatever_else_is_said_of_it() -> None:
    body = {"id": "c-1", "name": "ci-a", "network_info": [{"is_default": True}], "new": None}
    assert shaped(an_answer(body), "the cluster", ClusterBody) == ClusterBody(id="c-1", name="ci-a")


def clusters(*bodies: object) -> list[object]:
    return [{"hyper_clusters": [body]} for body in bodies]


def supernodes(*bodies: object) -> list[object]:
    return [{"data": [body]} for body in bodies]


SHAPES: dict[type, list[object]] = {
    ClusterBody: [
        *({}, [], None, "c-1", [{"id": "c", "name": "a"}], {"hyper_clusters": []}),
        *({"name": "a"}, {"id": "c"}, {"id": 7, "name": "a"}, {"id": "c", "name": None}),
        *(b"", b"{", b"\xff", b'{"id":"\xff","name":"a"}', b"<html></html>", b"[" * 100_000),
        *(b'{"id":"c","name":"\\ud800"}', b'{"id":"c","name":"a"} x'),
    ],
    ListBody: [
        *({}, [], {"hyper_clusters": None}, {"hyper_clusters": {}}, {"clusters": []}),
        *clusters(None, {}, {"id": "c"}, {"name": "a"}, "c"),
    ],
    SupernodesBody: [
        *({}, {"data": None}, {"data": {}}, {"total": 0}, [], {"data": [], "total": "0"}),
        *supernodes(None, {}, "s", {"id": 7}, {"id": "s", "hps_cluster_id": 7}, {"id": "s", "status": 5}),
        *supernodes({"id": "s", "name": []}, {"id": "s", "order_id": 5}, {"id": "s", "servers": {}}),
        *supernodes({"id": "s", "servers": [None]}, {"id": "s", "servers": [{"charging_mode": 1}]}),
    ],
}


@pytest.mark.parametrize(("shape", "body"), [(shape, body) for shape, bodies in SHAPES.items() for body in bodies])
def test_another_shape_is_not_believed(shape: type, body: object) -> None:
    with pytest.raises(RetryLater, match="the answer has a shape that cannot be read") as raised:
        shaped(an_answer(body), "the answer", shape)
    assert raised.value.reason == "modelarts_unavailable"
    assert raised.value.__suppress_context__


@pytest.mark.parametrize(
    ("status", "reason"), [(204, "modelarts_unavailable"), (302, "modelarts_unavailable"), (429, "throttled")]
)
def test_only_200_has_a_shape(status: int, reason: str) -> None:
    with pytest.raises(RetryLater) as raised:
        shaped(an_answer({"hyper_clusters": []}, status=status), "the list", ListBody)
    assert raised.value.reason == reason


# Members


def members(*nodes: dict[str, object], of: str = "c-1") -> tuple[Member, ...]:
    body = shaped(an_answer({"data": nodes, "total": len(nodes)}), "the supernodes", SupernodesBody)
    return body.members(of)


def test_only_supernodes_that_name_the_cluster_are_members() -> None:
    of = ("c-1", "c-10", "C-1", "", None)
    named: list[dict[str, object]] = [{"id": f"s-{number}", "hps_cluster_id": one} for number, one in enumerate(of)]
    assert [member.id for member in members(*named, {"id": "s-9"})] == ["s-0"]


@pytest.mark.parametrize(
    ("status", "alive"),
    [
        ("ACTIVE", True),
        ("RUNNING", True),
        ("PROVISIONING", True),
        ("TERMINATING", True),
        ("DELETING", True),
        ("DELETE_FAILED", True),
        ("ERROR", True),
        ("SOMETHING_NEW", True),
        ("terminated", True),
        ("", True),
        (None, True),
        ("TERMINATED", False),
        ("DELETED", False),
    ],
)
def test_only_what_has_surely_ended_is_no_member_any_more(status: str | None, *, alive: bool) -> None:
    assert bool(members({"id": "s-1", "hps_cluster_id": "c-1", "status": status})) is alive


@pytest.mark.parametrize(
    ("more", "prepaid"),
    [
        ({}, False),
        ({"servers": None}, False),
        ({"servers": []}, False),
        ({"servers": [{}]}, False),
        ({"servers": [{"charging_mode": "POST_PAID"}]}, False),
        ({"servers": [{"charging_mode": "COMMON"}], "order_id": "CS1"}, False),
        ({"servers": [{"charging_mode": "PRE_PAID"}]}, True),
        ({"servers": [{"charging_mode": "POST_PAID"}, {"charging_mode": "PRE_PAID"}]}, True),
        ({"charging_mode": "PRE_PAID"}, True),
        ({"charging_mode": "POST_PAID", "order_id": "CS1"}, False),
        ({"order_id": "CS1"}, True),
        ({"order_id": "CS1", "servers": [{"charging_mode": None}]}, True),
        ({"order_id": ""}, False),
    ],
)
def test_prepaid_is_said_by_a_server_or_by_an_order_alone(more: dict[str, object], *, prepaid: bool) -> None:
    [member] = members({"id": "s-1", "name": "n", "hps_cluster_id": "c-1", "status": "ACTIVE", **more})
    assert member == Member(id="s-1", name="n", status="ACTIVE", prepaid=prepaid)


# Retry-After


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("007", 7),
        ("0", 1),
        ("86400", 86400),
        ("999999999", 999_999_999),
        ("Wed, 15 Jul 2026 12:00:07 GMT", 7),
        ("Wednesday, 15-Jul-26 12:00:07 GMT", 7),
        ("Wed Jul 15 12:00:07 2026", 7),
        ("Wed, 15 Jul 2026 12:00:07 +0000", 7),
        ("Wed, 15 Jul 2026 12:00:07 -0000", 7),
        ("Wed, 15 Jul 2026 14:00:07 +0200", 7),
        ("Thu, 16 Jul 2026 12:00:00 GMT", 86400),
        ("Wed, 15 Jul 2026 11:59:59 GMT", 1),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 1),
        ("Mon, 01 Jan 0001 00:00:00 +2300", 1),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(text: str, seconds: int) -> None:
    assert waiting_time(text, now=NOW) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        " ",
        "soon",
        "-1",
        "+7",
        "1.5",
        "7s",
        "7, 7",
        "\N{ARABIC-INDIC DIGIT SEVEN}",
        "9999999999",
        "1e3",
        "PT7S",
        "2026-07-15T12:00:07Z",
        "Wed, 15 Jul 2026 25:00:07 GMT",
        "Wed, 32 Jul 2026 12:00:07 GMT",
        "Wed, 15 Jul 99999 12:00:07 GMT",
        "Wed, 15 Jul 2026 12:00:07 +99999999999999999999",
        "Wed, 15 Jul 2026 99999999999999999999:00:07 GMT",
        "Wed, 15 Jul 2026 12:00:07 +9999",
    ],
)
def test_nonsense_in_retry_after_is_nothing(text: str | None) -> None:
    assert waiting_time(text, now=NOW) is None


WORDS = "Wed , 15 Jul 2026 12:00:07 GMT +0000 -0000 +99999999999999999999 - : 99 . a ( ) ; 0 7"


@given(st.one_of(st.text(max_size=40), st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join)))
def test_whatever_retry_after_says_it_is_a_time_to_wait_or_nothing(text: str) -> None:
    found = waiting_time(text, now=NOW)
    assert found is None or found >= timedelta(seconds=1)
