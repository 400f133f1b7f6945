"""Times, offsets and durations in all accepted notations."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.instant import (
    MAX_TIME,
    SECOND,
    TimeOrOffset,
    as_time_or_offset,
    parse_time_or_offset,
    to_microseconds,
    to_rfc3339,
    to_time,
)

NEW_YEAR = 1_767_225_600 * SECOND


@given(
    st.builds(TimeOrOffset, time=st.integers(0, MAX_TIME))
    | st.builds(TimeOrOffset, offset=st.integers(-MAX_TIME, MAX_TIME))
)
def test_text_of_a_time_or_offset_is_parsed_as_the_same(instant: TimeOrOffset) -> None:
    assert parse_time_or_offset(instant.text) == instant


@pytest.mark.parametrize(
    "notation",
    [
        NEW_YEAR,
        "2026-01-01T00:00:00Z",
        "2026-01-01T01:00:00+01:00",
        "2026-01-01T00:00:00.000000Z",
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2025, 12, 31, 19, tzinfo=timezone(timedelta(hours=-5))),
    ],
)
def test_time_is_accepted_in_every_notation(notation: int | str | datetime) -> None:
    assert to_time(notation) == NEW_YEAR


@pytest.mark.parametrize(
    ("notation", "microseconds"),
    [
        ("90s", 90 * SECOND),
        ("1h30m", 5400 * SECOND),
        ("1.5h", 5400 * SECOND),
        ("-5m", -300 * SECOND),
        ("+5m", 300 * SECOND),
        ("2d", 172_800 * SECOND),
        ("1w", 604_800 * SECOND),
        ("3ms", 3_000),
        ("7us", 7),
        ("P1D", 86_400 * SECOND),
        ("PT1H30M", 5400 * SECOND),
        ("-P1D", -86_400 * SECOND),
        (timedelta(seconds=1, microseconds=1), SECOND + 1),
        (12, 12),
    ],
)
def test_duration_is_accepted_in_every_notation(
    notation: int | str | timedelta, microseconds: int
) -> None:
    assert to_microseconds(notation) == microseconds


@pytest.mark.parametrize("notation", ["", "-", "soon", "5", "5x", "1h-3m", "P", "1 h"])
def test_invalid_duration_is_rejected(notation: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        to_microseconds(notation)


@pytest.mark.parametrize(
    "notation",
    ["tomorrow", "2026-01-01", "2026-01-01T00:00:00", -1, MAX_TIME + 1, datetime(2026, 1, 1)],
)
def test_invalid_time_is_rejected(notation: int | str | datetime) -> None:
    with pytest.raises(ValueError, match="time"):
        to_time(notation)


@given(st.integers(0, MAX_TIME))
def test_law_time_survives_a_round_trip_through_rfc3339(time: int) -> None:
    assert to_time(to_rfc3339(time)) == time


def test_notation_decides_between_time_and_offset() -> None:
    assert parse_time_or_offset("5") == TimeOrOffset(time=5)
    assert parse_time_or_offset("2026-01-01T00:00:00Z") == TimeOrOffset(time=NEW_YEAR)
    assert parse_time_or_offset("-90s") == TimeOrOffset(offset=-90 * SECOND)
    assert as_time_or_offset(timedelta(seconds=1)) == TimeOrOffset(offset=SECOND)
    assert as_time_or_offset("P1D") == TimeOrOffset(offset=86_400 * SECOND)
    assert as_time_or_offset(None) is None


def test_time_and_offset_together_or_neither_is_rejected() -> None:
    for arguments in ({}, {"time": 1, "offset": 1}):
        with pytest.raises(ValueError, match="exactly one"):
            TimeOrOffset(**arguments)


def test_offset_counts_from_its_base_and_is_capped_at_max_time() -> None:
    assert TimeOrOffset(offset=-3).after(10) == 7
    assert TimeOrOffset(time=3).after(10) == 3
    assert TimeOrOffset(offset=MAX_TIME).after(10) == MAX_TIME


@pytest.mark.parametrize(
    "text",
    [
        *("9" * 400 + "s", "1" * 300 + "w", "9" * 5000, "9" * 5000 + "us", "9" * 40 + "d1us"),
        *("P" + "9" * 400 + "D", "P999999999D", "-P999999999DT999999H", "PT" + "9" * 300 + "S"),
        *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "9" * 400 + "-01-01"),
        *("\N{ARABIC-INDIC DIGIT ONE}", "\N{ARABIC-INDIC DIGIT ONE}s", "\N{SUPERSCRIPT TWO}"),
    ],
)
def test_absurd_times_and_offsets_are_refused(text: str) -> None:
    for parse in (parse_time_or_offset, to_time, to_microseconds):
        with pytest.raises(ValueError, match=r"time|offset|duration") as refused:
            parse(text)
        assert len(str(refused.value)) < 200
