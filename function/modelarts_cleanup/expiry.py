"""
Reads instants and durations, and nothing that could mean something else.

The grammar is ours, so that every supported Python reads the same:

- an instant is RFC 3339 with seconds and an offset or `Z`, upper case, with 0 to 9 fraction digits
  (https://www.rfc-editor.org/rfc/rfc3339#section-5.6); digits beyond microseconds are cut off;
- a duration is `2w`, `7d`, `36h`, `90m`, `90s` or several of these in falling order (`1d12h`), or ISO 8601 with
  weeks, days, hours, minutes and seconds (`P7D`, `PT90M`). Months and years are no span of time.
"""

import re
from datetime import UTC, datetime, timedelta, timezone

MINIMUM = timedelta(minutes=1)
MAXIMUM = timedelta(days=366)
# Zero values of other languages' clocks (0001-01-01, 1970-01-01) would otherwise read as "long expired".
EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)


class UnreadableError(ValueError):
    """The text is no instant, or no duration; the message says why and does not quote it."""


_INSTANT = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]{1,9}))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))",
)
_SHORT = re.compile(
    r"(?=[0-9])(?:(?P<weeks>[0-9]+)w)?(?:(?P<days>[0-9]+)d)?(?:(?P<hours>[0-9]+)h)?"
    r"(?:(?P<minutes>[0-9]+)m)?(?:(?P<seconds>[0-9]+)s)?",
)
_ISO = re.compile(
    r"P(?=[0-9T])(?:(?P<weeks>[0-9]+)W)?(?:(?P<days>[0-9]+)D)?"
    r"(?:T(?=[0-9])(?:(?P<hours>[0-9]+)H)?(?:(?P<minutes>[0-9]+)M)?(?:(?P<seconds>[0-9]+)S)?)?",
)
_LONGEST_TEXT = 64
_LAST_HOUR = 23
_LAST_MINUTE = 59


def instant(text: str) -> datetime:
    """
    Read an instant as aware UTC.

    Raises `UnreadableError` that says what is wrong with the text.
    """
    found = _INSTANT.fullmatch(text)
    if not found:
        raise UnreadableError("is not an RFC 3339 date and time with an offset or Z, like 2026-07-15T10:00:00Z")
    *numbers, fraction, sign, hours, minutes = found.groups()
    year, month, day, hour, minute, second = map(int, numbers)
    ahead = timedelta(hours=int(hours or 0), minutes=int(minutes or 0))
    if int(hours or 0) > _LAST_HOUR or int(minutes or 0) > _LAST_MINUTE:
        raise UnreadableError("has an offset that no clock can have")
    # Cut, never rounded: a rounded fraction could carry into the next second.
    micro = int((fraction or "").ljust(6, "0")[:6])
    try:
        # The constructor, not a parser: what parsers take (hour 24, second 60) differs between Pythons.
        zone = timezone(-ahead if sign == "-" else ahead)
        utc = datetime(year, month, day, hour, minute, second, micro, zone).astimezone(UTC)
    except (ValueError, OverflowError):
        raise UnreadableError("is a date or time that does not exist") from None
    if utc < EARLIEST:
        raise UnreadableError(f"is before {EARLIEST.year}: a zero value, not an expiry")
    return utc


def duration(text: str) -> timedelta:
    """
    Read a duration between one minute and 366 days.

    Raises `UnreadableError` that says what is wrong with the text.
    """
    found = (_ISO.fullmatch(text) or _SHORT.fullmatch(text)) if len(text) <= _LONGEST_TEXT else None
    if not found:
        raise UnreadableError("is not a duration like 90m, 36h, 7d, 2w, 1d12h or PT90M")
    try:
        span = timedelta(**{unit: int(number) for unit, number in found.groupdict().items() if number})
    except OverflowError:
        span = timedelta.max
    if span > MAXIMUM:
        raise UnreadableError("is above the maximum of 366 days")
    if span < MINIMUM:
        raise UnreadableError("is below the minimum of 1 minute")
    return span
