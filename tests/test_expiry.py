from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from modelarts_cleanup import expiry
from modelarts_cleanup.expiry import UnreadableError

FORM = r"^is not an RFC 3339 date and time with an offset or Z, like 2026-07-15T10:00:00Z$"
NOWHERE = r"^is a date or time that does not exist$"
OFFSET = r"^has an offset that no clock can have$"
ZERO = r"^is before 2000: a zero value, not an expiry$"
NO_DURATION = r"^is not a duration like 90m, 36h, 7d, 2w, 1d12h or PT90M$"
TOO_LONG = r"^is above the maximum of 366 days$"
TOO_SHORT = r"^is below the minimum of 1 minute$"


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        pytest.param("2026-07-15T10:00:00Z", at(2026, 7, 15, 10), id="case 8: no fraction"),
        pytest.param("2026-07-15T10:00:00.1Z", at(2026, 7, 15, 10, 0, 0, 100_000), id="case 8: one digit"),
        pytest.param("2026-07-15T10:00:00.5811478Z", at(2026, 7, 15, 10, 0, 0, 581_147), id="case 8: seven digits"),
        pytest.param("2026-07-15T10:00:00.123456789Z", at(2026, 7, 15, 10, 0, 0, 123_456), id="case 8: nine digits"),
        pytest.param("2026-07-15T10:00:00.999999999Z", at(2026, 7, 15, 10, 0, 0, 999_999), id="case 8: cut off"),
        pytest.param("2026-07-15T10:00:00.12Z", at(2026, 7, 15, 10, 0, 0, 120_000), id="case 29: two digits"),
        pytest.param("2026-07-15T10:00:00.1234Z", at(2026, 7, 15, 10, 0, 0, 123_400), id="case 29: four digits"),
        pytest.param("2026-07-15T10:00:00.000001Z", at(2026, 7, 15, 10, 0, 0, 1), id="six digits"),
        pytest.param("2026-07-15T18:00:00+08:00", at(2026, 7, 15, 10), id="an offset ahead of UTC"),
        pytest.param("2026-07-15T18:00:00-07:00", at(2026, 7, 16, 1), id="case 23: an offset behind UTC"),
        pytest.param("2026-07-15T10:00:00+00:00", at(2026, 7, 15, 10), id="offset zero"),
        pytest.param("2026-07-15T10:00:00-00:00", at(2026, 7, 15, 10), id="offset minus zero"),
        pytest.param("2026-07-15T10:00:00+05:45", at(2026, 7, 15, 4, 15), id="an offset with minutes"),
        pytest.param("2026-07-15T10:00:00+23:59", at(2026, 7, 14, 10, 1), id="the largest offset"),
        pytest.param("2026-07-15T10:00:00-23:59", at(2026, 7, 16, 9, 59), id="the smallest offset"),
        pytest.param("2026-10-25T02:30:00+01:00", at(2026, 10, 25, 1, 30), id="case 28: an hour that happens twice"),
        pytest.param("2024-02-29T23:59:59Z", at(2024, 2, 29, 23, 59, 59), id="a leap day"),
        pytest.param("2000-01-01T00:00:00Z", at(2000, 1, 1), id="the earliest"),
        pytest.param("9999-12-31T23:59:59.999999Z", at(9999, 12, 31, 23, 59, 59, 999_999), id="the latest"),
    ],
)
def test_an_instant_is_read_as_utc(text: str, instant: datetime) -> None:
    found = expiry.instant(text)
    assert found == instant
    assert found.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("2026-07-15 16:00 UTC", FORM, id="case 21: a zone in words"),
        pytest.param("2026-07-15", FORM, id="case 21, 30: a date only"),
        pytest.param("2026-07-15T18:00", FORM, id="case 23: naive, no seconds"),
        pytest.param("2026-10-25T02:30", FORM, id="case 28: a local time that happens twice"),
        pytest.param("2026-03-29T02:30", FORM, id="case 28: a local time that does not exist"),
        pytest.param("2026-07-15T10:00:00.000", FORM, id="case 37: naive, with a fraction"),
        pytest.param("2026-07-15T10:00:00", FORM, id="naive"),
        pytest.param("20260715", FORM, id="case 29: basic format"),
        pytest.param("20260715T100000Z", FORM, id="basic format with a time"),
        pytest.param("2026-W29-3", FORM, id="case 29: a week date"),
        pytest.param("2026-07-15T10", FORM, id="case 29: hours only"),
        pytest.param("2026-07-15T10:00Z", FORM, id="without seconds"),
        pytest.param("2026-07-15 10:00:00Z", FORM, id="case 29: a space instead of T"),
        pytest.param("2026-07-15T10:00:00z", FORM, id="case 29: z in lower case"),
        pytest.param("2026-07-15t10:00:00Z", FORM, id="t in lower case"),
        pytest.param("1790000000", FORM, id="case 31: seconds since 1970"),
        pytest.param("1790000000000", FORM, id="case 31: milliseconds since 1970"),
        pytest.param("-1", FORM, id="case 31: a negative number"),
        pytest.param("", FORM, id="case 22: empty"),
        pytest.param("0", FORM, id="case 22: zero"),
        pytest.param("yesterday-ish", FORM, id="case 7: words"),
        pytest.param(" 2026-07-15T10:00:00Z", FORM, id="a space before it"),
        pytest.param("2026-07-15T10:00:00Z\n", FORM, id="a line break after it"),
        pytest.param("2026-07-15T10:00:00.Z", FORM, id="a point without digits"),
        pytest.param("2026-07-15T10:00:00,5Z", FORM, id="a comma"),
        pytest.param("2026-07-15T10:00:00.1234567890Z", FORM, id="ten digits"),
        pytest.param("2026-07-15T10:00:00+8:00", FORM, id="an offset of one digit"),
        pytest.param("2026-07-15T10:00:00+0800", FORM, id="an offset without colon"),
        pytest.param("2026-07-15T10:00:00+08", FORM, id="an offset without minutes"),
        pytest.param("2026-07-15T10:00:00Z+08:00", FORM, id="two offsets"),
        pytest.param("2026-07-15T10:00:00−08:00", FORM, id="a minus of another script"),  # noqa: RUF001 - the point
        pytest.param("٢٠٢٦-07-15T10:00:00Z", FORM, id="digits that are not ASCII"),
        pytest.param("2026-07-15T10:00:00.٣Z", FORM, id="a fraction that is not ASCII"),
        pytest.param("2026-7-15T10:00:00Z", FORM, id="a month of one digit"),
        pytest.param("+2026-07-15T10:00:00Z", FORM, id="a sign"),
        pytest.param("2026-02-29T10:00:00Z", NOWHERE, id="29 February of a common year"),
        pytest.param("2026-13-01T10:00:00Z", NOWHERE, id="month 13"),
        pytest.param("2026-00-01T10:00:00Z", NOWHERE, id="month 0"),
        pytest.param("2026-07-32T10:00:00Z", NOWHERE, id="day 32"),
        pytest.param("2026-07-15T24:00:00Z", NOWHERE, id="case 29: hour 24"),
        pytest.param("2026-07-15T10:60:00Z", NOWHERE, id="minute 60"),
        pytest.param("2026-06-30T23:59:60Z", NOWHERE, id="case 29: second 60"),
        pytest.param("0000-07-15T10:00:00Z", NOWHERE, id="year 0"),
        pytest.param("9999-12-31T23:59:59-00:01", NOWHERE, id="case 27: after the last year"),
        pytest.param("0001-01-01T00:00:00+00:01", NOWHERE, id="before the first year"),
        pytest.param("2026-07-15T10:00:00+24:00", OFFSET, id="an offset of 24 hours"),
        pytest.param("2026-07-15T10:00:00-24:00", OFFSET, id="an offset of minus 24 hours"),
        pytest.param("2026-07-15T10:00:00+00:60", OFFSET, id="an offset of 60 minutes"),
        pytest.param("2026-07-15T10:00:00+99:99", OFFSET, id="an offset of 99 hours"),
        pytest.param("0001-01-01T00:00:00Z", ZERO, id="the zero of Go"),
        pytest.param("1970-01-01T00:00:00Z", ZERO, id="the zero of Unix"),
        pytest.param("1999-12-31T23:59:59.999999Z", ZERO, id="just before the earliest"),
        pytest.param("2000-01-01T00:00:00+00:01", ZERO, id="before the earliest by its offset"),
    ],
)
def test_what_could_mean_something_else_is_no_instant(text: str, problem: str) -> None:
    with pytest.raises(UnreadableError, match=problem):
        expiry.instant(text)


@given(
    day=st.dates(min_value=date(2000, 1, 3), max_value=date(9999, 12, 29)),
    clock=st.tuples(st.integers(0, 23), st.integers(0, 59), st.integers(0, 59)),
    fraction=st.text("0123456789", max_size=9),
    sign=st.sampled_from("+-"),
    offset=st.none() | st.tuples(st.integers(0, 23), st.integers(0, 59)),
)
@example(day=date(2026, 12, 31), clock=(23, 59, 59), fraction="999999999", sign="-", offset=(0, 0))
def test_any_instant_equals_an_independent_computation_with_its_fraction_cut(
    day: date, clock: tuple[int, int, int], fraction: str, sign: str, offset: tuple[int, int] | None
) -> None:
    hour, minute, second = clock
    written = f"{day}T{hour:02}:{minute:02}:{second:02}" + (f".{fraction}" if fraction else "")
    ahead = 0 if offset is None else (offset[0] * 60 + offset[1]) * (-1 if sign == "-" else 1)
    found = expiry.instant(written + ("Z" if offset is None else f"{sign}{offset[0]:02}:{offset[1]:02}"))

    seconds = (day.toordinal() - date(1970, 1, 1).toordinal()) * 86400 + hour * 3600 + (minute - ahead) * 60 + second
    microseconds = seconds * 1_000_000 + (int(fraction) * 10**6 // 10 ** len(fraction) if fraction else 0)
    assert (found - at(1970, 1, 1)) // timedelta(microseconds=1) == microseconds


@given(st.text() | st.text("0123456789-:.TZ+", max_size=40))
def test_any_text_is_an_aware_instant_or_unreadable(text: str) -> None:
    try:
        found = expiry.instant(text)
    except UnreadableError:
        return
    assert found.tzinfo is UTC
    assert text.isascii()


@pytest.mark.parametrize(
    ("text", "span"),
    [
        pytest.param("90m", timedelta(minutes=90), id="minutes"),
        pytest.param("36h", timedelta(hours=36), id="hours"),
        pytest.param("7d", timedelta(days=7), id="days"),
        pytest.param("2w", timedelta(weeks=2), id="weeks"),
        pytest.param("90s", timedelta(seconds=90), id="seconds"),
        pytest.param("1d12h", timedelta(days=1, hours=12), id="days and hours"),
        pytest.param("1w1d1h1m1s", timedelta(weeks=1, days=1, hours=1, minutes=1, seconds=1), id="all of them"),
        pytest.param("1m", timedelta(minutes=1), id="case 26: m is a minute"),
        pytest.param("PT1M", timedelta(minutes=1), id="case 26: M after T is a minute"),
        pytest.param("45d", timedelta(days=45), id="case 19: longer than 720 hours"),
        pytest.param("P7D", timedelta(days=7), id="ISO days"),
        pytest.param("P2W", timedelta(weeks=2), id="ISO weeks"),
        pytest.param("PT90M", timedelta(minutes=90), id="ISO minutes"),
        pytest.param("PT36H", timedelta(hours=36), id="ISO hours"),
        pytest.param("PT3600S", timedelta(hours=1), id="ISO seconds"),
        pytest.param("P1W2DT3H4M5S", timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5), id="ISO, all of them"),
        pytest.param("0d60s", timedelta(minutes=1), id="the minimum"),
        pytest.param("366d", timedelta(days=366), id="the maximum"),
        pytest.param("P366D", timedelta(days=366), id="the maximum in ISO"),
        pytest.param("007d", timedelta(days=7), id="leading zeros"),
        pytest.param("7d" + "0" * 61 + "h", timedelta(days=7), id="64 characters"),
    ],
)
def test_a_duration_is_read(text: str, span: timedelta) -> None:
    assert expiry.duration(text) == span


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("P12Y", NO_DURATION, id="case 25: years"),
        pytest.param("P1M", NO_DURATION, id="case 25, 26: an ISO month"),
        pytest.param("1M", NO_DURATION, id="case 26: M in upper case"),
        pytest.param("1:30", NO_DURATION, id="case 26: a colon"),
        pytest.param("-1h", NO_DURATION, id="case 26: negative"),
        pytest.param("-PT1H", NO_DURATION, id="negative, ISO"),
        pytest.param("PT-1H", NO_DURATION, id="negative inside ISO"),
        pytest.param("+1h", NO_DURATION, id="a sign"),
        pytest.param("1.5h", NO_DURATION, id="case 26: a fraction"),
        pytest.param("PT1.5H", NO_DURATION, id="an ISO fraction"),
        pytest.param("PT1,5H", NO_DURATION, id="an ISO fraction with a comma"),
        pytest.param("90", NO_DURATION, id="case 26: a bare number"),
        pytest.param("", NO_DURATION, id="case 22: empty"),
        pytest.param("0", NO_DURATION, id="case 22: a bare zero"),
        pytest.param("P", NO_DURATION, id="nothing after P"),
        pytest.param("PT", NO_DURATION, id="nothing after PT"),
        pytest.param("P1DT", NO_DURATION, id="nothing after T"),
        pytest.param("P1H", NO_DURATION, id="hours without T"),
        pytest.param("PT1D", NO_DURATION, id="days after T"),
        pytest.param("p7d", NO_DURATION, id="ISO in lower case"),
        pytest.param("PT5m", NO_DURATION, id="ISO, partly in lower case"),
        pytest.param("7D", NO_DURATION, id="days in upper case"),
        pytest.param("12h1d", NO_DURATION, id="rising order"),
        pytest.param("1d1d", NO_DURATION, id="a unit twice"),
        pytest.param("1d 12h", NO_DURATION, id="a space inside"),
        pytest.param(" 7d", NO_DURATION, id="a space before it"),
        pytest.param("7d\n", NO_DURATION, id="a line break after it"),
        pytest.param("d", NO_DURATION, id="a unit alone"),
        pytest.param("7days", NO_DURATION, id="a word"),
        pytest.param("7y", NO_DURATION, id="years"),
        pytest.param("1000ms", NO_DURATION, id="milliseconds"),
        pytest.param("\u0667d", NO_DURATION, id="a digit that is not ASCII"),
        pytest.param("P\u0667D", NO_DURATION, id="an ISO digit that is not ASCII"),
        pytest.param("7d" + "0" * 62 + "h", NO_DURATION, id="65 characters"),
        pytest.param("9" * 5000 + "d", NO_DURATION, id="case 27: more digits than Python turns into a number"),
        pytest.param("367d", TOO_LONG, id="367 days"),
        pytest.param("366d1s", TOO_LONG, id="a second above the maximum"),
        pytest.param("99999999999d", TOO_LONG, id="case 27: huge"),
        pytest.param("1000000000000000s", TOO_LONG, id="case 27: huge, in seconds"),
        pytest.param("9" * 60 + "w", TOO_LONG, id="case 27: 60 digits"),
        pytest.param("59s", TOO_SHORT, id="a second below the minimum"),
        pytest.param("0d", TOO_SHORT, id="case 22: zero days"),
        pytest.param("PT0S", TOO_SHORT, id="ISO zero"),
    ],
)
def test_what_could_mean_something_else_is_no_duration(text: str, problem: str) -> None:
    with pytest.raises(UnreadableError, match=problem):
        expiry.duration(text)


@given(
    numbers=st.lists(st.none() | st.integers(0, 400), min_size=5, max_size=5).filter(
        lambda numbers: any(number is not None for number in numbers)
    ),
)
def test_a_duration_round_trips_in_both_forms(numbers: list[int | None]) -> None:
    weeks, days, hours, minutes, seconds = (number or 0 for number in numbers)
    span = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
    short = "".join(f"{number}{unit}" for number, unit in zip(numbers, "wdhms", strict=True) if number is not None)
    parts = [f"{number}{unit}" if number is not None else "" for number, unit in zip(numbers, "WDHMS", strict=True)]
    clock = "".join(parts[2:])
    for text in (short, f"P{parts[0]}{parts[1]}" + (f"T{clock}" if clock else "")):
        if timedelta(minutes=1) <= span <= timedelta(days=366):
            assert expiry.duration(text) == span
        else:
            with pytest.raises(UnreadableError, match=TOO_LONG if span > timedelta(days=1) else TOO_SHORT):
                expiry.duration(text)


@given(st.text() | st.text("0123456789wdhmsPTWDHMS", max_size=70))
def test_any_text_is_a_span_within_the_limits_or_unreadable(text: str) -> None:
    try:
        span = expiry.duration(text)
    except UnreadableError:
        return
    assert timedelta(minutes=1) <= span <= timedelta(days=366)
