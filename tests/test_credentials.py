import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelarts_cleanup import credentials
from modelarts_cleanup.signing import Credentials

PAIR = b'{"access_key":"AK","secret_key":"SK"}'
CSV = b"User Name,Access Key Id,Secret Access Key\r\nme,AK,SK\r\n"
NEITHER = r"^is neither JSON nor a credentials\.csv"
NOT_ONE = r"^does not hold exactly one key pair$"


def keys(found: Credentials) -> tuple[str, str, str | None]:
    return found.access_key, found.secret_key, found.security_token


def a_secret(**changed: object) -> bytes:
    given: dict[str, object] = {"access_key": "AK", "secret_key": "SK", **changed}
    return json.dumps({name: value for name, value in given.items() if value is not ...}).encode()


@pytest.mark.parametrize(
    ("text", "token"),
    [
        pytest.param(PAIR, None, id="our JSON"),
        pytest.param(a_secret(security_token="ST"), "ST", id="a temporary key pair"),  # noqa: S106 - not a real one
        pytest.param(a_secret(security_token=None), None, id="a security token that is null"),
        pytest.param(a_secret(comment="x", expires_at=5), None, id="other fields"),
        pytest.param(PAIR + b"\n", None, id="case 60: a line break at the end"),
        pytest.param(PAIR + b"\r\n", None, id="case 60: a Windows line break at the end"),
        pytest.param(b" \t\n" + PAIR, None, id="case 60: white space before it"),
        pytest.param(b"\xef\xbb\xbf" + PAIR, None, id="a byte order mark"),
        pytest.param(
            b'{"access_key":" AK\\n","secret_key":"\\tSK\\r\\n"}', None, id="case 60: white space around the keys"
        ),
        pytest.param(CSV, None, id="the console's file"),
        pytest.param(b"\xef\xbb\xbf" + CSV, None, id="the console's file with a byte order mark"),
        pytest.param(CSV.replace(b"\r\n", b"\n").strip(), None, id="the console's file, re-saved"),
        pytest.param(b'"User Name","Access Key Id","Secret Access Key"\n"me, myself","AK","SK"\n', None, id="quoted"),
        pytest.param(b"secret access key,ACCESS KEY ID\nSK,AK", None, id="other order, other case, no user"),
        pytest.param(b"Access Key Id , Secret Access Key\n AK , SK ", None, id="spaces around fields"),
        pytest.param(CSV + b"\r\n\r\n", None, id="empty lines at the end"),
        pytest.param(CSV.replace(b"me,", b"\xc3\xa9,"), None, id="a user name that is not ASCII"),
    ],
)
def test_a_key_pair_is_read(text: bytes, token: str | None) -> None:
    assert keys(credentials.read(text)) == ("AK", "SK", token)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param(b"", r"^is empty$", id="case 60: empty"),
        pytest.param(b" \r\n", r"^is empty$", id="case 60: white space only"),
        pytest.param(b"\xef\xbb\xbf\n", r"^is empty$", id="a byte order mark only"),
        pytest.param(b"plain-text-secret", NEITHER, id="case 73: plain text"),
        pytest.param(b"whsec_a2V5a2V5a2V5a2V5", NEITHER, id="case 73: the secret of a webhook"),
        pytest.param(b"AK,SK", NEITHER, id="a CSV without its first line"),
        pytest.param(b"Access Key Id,Password\nAK,SK", NEITHER, id="a CSV of something else"),
        pytest.param(b'["AK","SK"]', NEITHER, id="a JSON list"),
        pytest.param(b"\xff\xfe", NEITHER, id="no UTF-8"),
        pytest.param("{}".encode("utf-16"), NEITHER, id="UTF-16"),
        pytest.param(b'Access Key Id,Secret Access Key\nAK,"SK', NEITHER, id="a quote that never ends"),
        pytest.param(b'Access Key Id,Secret Access Key\nAK,"S"K', NEITHER, id="a quote inside"),
        pytest.param(b"\xe2\x80\xa8", NEITHER, id="a line separator only"),
        pytest.param(b"Access Key Id,Secret Access Key", NOT_ONE, id="a CSV without keys"),
        pytest.param(CSV + b"me,AK2,SK2\r\n", NOT_ONE, id="two key pairs"),
        pytest.param(b"Access Key Id,Secret Access Key\nAK", NOT_ONE, id="a field too few"),
        pytest.param(b"Access Key Id,Secret Access Key\nAK,SK,x", NOT_ONE, id="a field too many"),
        pytest.param(b'{"access_key":"AK"', r"^is not JSON \(line 1, column 19\)$", id="broken JSON"),
        pytest.param(
            b'{"access_key":"AK","access_key":"B"}', r"^has the same name twice in one object$", id="a key twice"
        ),
        pytest.param(b"{}", r"^has no text access_key$", id="no keys"),
        pytest.param(a_secret(secret_key=...), r"^has no text secret_key$", id="no secret key"),
        pytest.param(a_secret(access_key=None), r"^has no text access_key$", id="null"),
        pytest.param(a_secret(secret_key=5), r"^has no text secret_key$", id="a number"),
        pytest.param(a_secret(security_token=5), r"^has no text security_token$", id="a token that is a number"),
        *(
            pytest.param(
                a_secret(**{name: value}), rf"^has an empty {name}, or one with characters that no key has$", id=id_
            )
            for name, value, id_ in (
                ("access_key", "", "an empty access key"),
                ("secret_key", " \n", "a secret key of white space"),
                ("security_token", "", "an empty security token"),
                ("secret_key", "S K", "a space inside"),
                ("secret_key", "S\nK", "a line break inside"),
                ("access_key", "A\r\nX-Injected: 1", "a header inside"),
                ("access_key", "A\0K", "a null inside"),
                ("secret_key", "S\x7fK", "a control character inside"),
                ("secret_key", "SKé", "not ASCII"),
                ("security_token", "x" * 8193, "endless"),
            )
        ),
        *(
            pytest.param(
                f'Access Key Id,Secret Access Key\nAK,"S{value}K"\n'.encode(),
                r"^has an empty secret_key, or one with characters that no key has$",
                id=f"a CSV, quoted, {id_} inside",
            )
            for value, id_ in (
                ("\n", "a line break"),
                ("\r\n", "a Windows line break"),
                ("\x0b", "a vertical tab"),
                ("\x1c", "a file separator"),
                ("\0", "a null"),
                ("\x85", "a next line"),
                ("\u2028", "a line separator"),
            )
        ),
        pytest.param(
            b"Access Key Id,Secret Access Key\n,SK",
            r"^has an empty access_key, or one with characters that no key has$",
            id="a CSV with an empty key",
        ),
    ],
)
def test_what_is_no_key_pair_is_refused_with_its_fault(text: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        credentials.read(text)


def test_the_longest_security_token_is_read() -> None:
    token = "x" * 8192
    assert credentials.read(a_secret(security_token=token)).security_token == token


PARTS = st.sampled_from(
    [
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"\n",
        b"\r",
        b"access_key",
        b"secret_key",
        b"Access Key Id",
        b"Secret Access Key",
        b"canary-1",
    ]
)


@given(st.binary(max_size=60) | st.lists(PARTS, max_size=14).map(b"".join))
@example(b"Access Key Id,Secret Access Key\n" + b'"' + b"x" * 140_000 + b'",canary-1')
def test_any_bytes_are_a_key_pair_of_visible_characters_or_refused(text: bytes) -> None:
    try:
        found = credentials.read(text)
    except ValueError:
        return
    assert all(key.isascii() and key.isprintable() and key and " " not in key for key in keys(found) if key is not None)


@given(
    before=st.sampled_from(
        [b"", b"{", PAIR[:-1] + b',"x":', b"Access Key Id,Secret Access Key\nAK,", b"\xff", b'{"secret_key":"']
    ),
    after=st.sampled_from([b"", b"}", b'"}', b"\n", b",", b"\0", b'"', b"\xff", b' canary"}']),
)
def test_no_part_of_a_secret_is_shown_by_what_refuses_it(before: bytes, after: bytes) -> None:  # case 79
    try:
        shown = repr(credentials.read(before + b"canary" + after))
    except ValueError as error:
        shown = f"{error!r} {error.__cause__!r}"
    assert "canary" not in shown
