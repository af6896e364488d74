"""
Reads JSON text, and nothing that two readers could read differently.

RFC 8259 leaves open what a repeated name, a number that is none, or an unpaired surrogate means
(https://www.rfc-editor.org/rfc/rfc8259#section-4). An id that is about to be deleted must not depend on it.
"""

import json
import math
from typing import NoReturn

_LONGEST_NUMBER = 300


def read(text: bytes) -> object:
    """
    Read one JSON text in UTF-8.

    Raises `ValueError` that says where it is broken, without quoting it.
    """
    try:
        value: object = json.loads(
            text.decode(),
            object_pairs_hook=_distinct,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_bounded,
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start})") from None
    except UnicodeEncodeError:
        raise ValueError("has an unpaired surrogate") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    return value


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("has the same name twice in one object")
    return found


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        _no_number(text)
    return number


def _bounded(text: str) -> int:
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"has a number of more than {_LONGEST_NUMBER} digits")
    return int(text)


def _no_number(_text: str) -> NoReturn:
    raise ValueError("has a number that is none")
