import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelarts_cleanup import strict_json

TEXTS = st.text(st.characters(codec="utf-8"))
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b"", r"is not JSON \(line 1, column 1\)", id="nothing"),
        pytest.param(b'{"cluster_id":abc}', r"is not JSON \(line 1, column 15\)", id="case 5: a value without quotes"),
        pytest.param(b'{\n "a": 1,\n}', r"is not JSON \(line 3, column 1\)", id="the line is counted"),
        pytest.param(b"{} {}", r"is not JSON \(line 1, column 4\)", id="two texts"),
        pytest.param(b'{"a":"\n"}', r"is not JSON \(line 1, column 7\)", id="a control character"),
        pytest.param(b"{'a':1}", r"is not JSON \(line 1, column 2\)", id="single quotes"),
        pytest.param(b"\xef\xbb\xbf{}", r"is not JSON \(line 1, column 1\)", id="a byte order mark"),
        pytest.param(b"\x78\x9c\xab\x56", r"is not UTF-8 \(byte 1\)", id="case 4: compressed"),
        pytest.param(b'{"a":"\xe9"}', r"is not UTF-8 \(byte 6\)", id="case 9: Latin-1"),
        pytest.param(b'"\xed\xa0\x80"', r"is not UTF-8 \(byte 1\)", id="a surrogate in UTF-8"),
        pytest.param('{"a":1}'.encode("utf-16"), r"is not UTF-8 \(byte 0\)", id="UTF-16"),
        pytest.param(b'"\\ud800"', r"has an unpaired surrogate", id="half a pair"),
        pytest.param(b'{"\\udc00":1}', r"has an unpaired surrogate", id="half a pair in a name"),
        pytest.param(b'{"a":1,"a":1}', r"has the same name twice in one object", id="a name twice"),
        pytest.param(b'[{"b":{"a":1,"\\u0061":2}}]', r"has the same name twice in one object", id="twice, escaped"),
        pytest.param(b"NaN", r"has a number that is none", id="NaN"),
        pytest.param(b'{"a":Infinity}', r"has a number that is none", id="Infinity"),
        pytest.param(b"[-Infinity]", r"has a number that is none", id="minus Infinity"),
        pytest.param(b"1e999", r"has a number .*", id="a number beyond every float"),
        pytest.param(b'{"a":[-1e999]}', r"has a number .*", id="a number below every float"),
        pytest.param(b"1" * 5000, r"has a number .*", id="more digits than Python turns into a number"),
        pytest.param(b"[" * 100_000, r"is nested too deeply", id="deep lists"),
        pytest.param(b'{"a":' * 100_000, r"is nested too deeply", id="deep objects"),
    ],
)
def test_what_two_readers_could_read_differently_is_refused_with_its_place(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"^{problem}$"):
        strict_json.read(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        pytest.param(b"null", None, id="case 5: null"),
        pytest.param(b"[]", [], id="case 5: a list"),
        pytest.param(b'"x"', "x", id="case 5: a text"),
        pytest.param(b"5", 5, id="case 5: a number"),
        pytest.param(b' {"a" : [ true, 1.5 ] }\r\n', {"a": [True, 1.5]}, id="white space"),
        pytest.param('{"é":"测试"}'.encode(), {"é": "测试"}, id="UTF-8"),
        pytest.param(b'"\\ud83d\\ude00"', "\U0001f600", id="a whole pair of surrogates"),
        pytest.param(b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}], id="a name in two objects"),
    ],
)
def test_every_other_json_text_is_read_as_it_stands(text: bytes, value: object) -> None:
    assert strict_json.read(text) == value


@given(value=VALUES, ascii_only=st.booleans())
def test_any_value_round_trips(value: object, ascii_only: bool) -> None:  # noqa: FBT001 - given by hypothesis
    assert strict_json.read(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary() | st.text('{}[]",:\\u0dD8ea1-.NInfity ', max_size=30).map(str.encode))
def test_any_bytes_are_read_or_refused_in_words_that_quote_nothing(text: bytes) -> None:
    problem = problem_of(text)
    assert problem is None or re.match(r"(is|has) ", problem)
    assert problem is None or len(text) < 12 or text.decode(errors="replace") not in problem


def problem_of(text: bytes) -> str | None:
    try:
        strict_json.read(text)
    except ValueError as error:
        return str(error)
    return None
