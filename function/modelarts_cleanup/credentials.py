"""Reads the text of a secret into a key pair: our JSON, or the `credentials.csv` that the Huawei console hands out."""

import re

from modelarts_cleanup import strict_json
from modelarts_cleanup.signing import Credentials

# A key becomes part of a header: visible ASCII only.
_KEY = re.compile(r"[!-~]{1,8192}")
_COLUMNS = ("access key id", "secret access key")


def read(text: bytes) -> Credentials:
    """
    Read a key pair; white space around the text and around each key is dropped.

    Raises `ValueError` that says what is wrong and shows nothing of the secret.
    """
    text = text.removeprefix(b"\xef\xbb\xbf").strip()
    if not text:
        raise ValueError("is empty")
    found = _from_json(text) if text.startswith(b"{") else _from_csv(text)
    for name, value in found.items():
        if not _KEY.fullmatch(value):
            raise ValueError(f"has an empty {name}, or one with characters that no key has")
    return Credentials(found["access_key"], found["secret_key"], found.get("security_token"))


def _from_json(text: bytes) -> dict[str, str]:
    given = strict_json.read(text)
    found: dict[str, str] = {}
    for name in ("access_key", "secret_key", "security_token"):
        value = given.get(name) if isinstance(given, dict) else None
        if value is None and name == "security_token":
            continue
        if not isinstance(value, str):
            raise ValueError(f"has no text {name}")
        found[name] = value.strip()
    return found


def _from_csv(text: bytes) -> dict[str, str]:
    import csv  # noqa: PLC0415 - most secrets are JSON, and start-up counts

    try:
        # A line break inside quotes stays in the key that way, and is refused.
        rows = list(csv.reader(text.decode().splitlines(keepends=True), strict=True))
    except (csv.Error, UnicodeDecodeError):
        raise ValueError("is neither JSON nor a credentials.csv") from None
    columns = [name.strip().lower() for name in rows[0]]
    keys = [row for row in rows[1:] if row]
    if not all(name in columns for name in _COLUMNS):
        raise ValueError('is neither JSON nor a credentials.csv with "Access Key Id" and "Secret Access Key"')
    if len(keys) != 1 or len(keys[0]) != len(columns):
        raise ValueError("does not hold exactly one key pair")
    access_key, secret_key = (keys[0][columns.index(name)].strip() for name in _COLUMNS)
    return {"access_key": access_key, "secret_key": secret_key}
