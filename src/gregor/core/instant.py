"""Times and offsets in microseconds, and parsers for the notations that people use."""

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Struct

Time: TypeAlias = int
"""Microseconds since the Unix epoch."""

MAX_TIME: Time = 2**53 - 1
"""The latest time that every JSON parser represents exactly (in the year 2255)."""

SECOND = 1_000_000

T = TypeVar("T")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d|w)")
_DIGITS = re.compile(r"[0-9]+")  # str.isdigit accepts the digits of all scripts
_MAX_DIGITS = 32  # far beyond MAX_TIME; int() refuses more than 4,300 with another message
_UNITS = {
    "us": 1,
    "ms": 1_000,
    "s": SECOND,
    "m": 60 * SECOND,
    "h": 3600 * SECOND,
    "d": 86_400 * SECOND,
    "w": 7 * 86_400 * SECOND,
}


class TimeOrOffset(Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A time, or an offset from the ctime of the message that carries it (in a query: from now).

    Exactly one of the two is given. Strings and datetimes are converted to microseconds on
    construction, so all later code sees integers only.
    """

    time: Time | str | None = None
    offset: int | str | None = None

    def __post_init__(self) -> None:
        if (self.time is None) == (self.offset is None):
            raise ValueError("give exactly one of `time` and `offset`")
        if self.time is not None:
            msgspec.structs.force_setattr(self, "time", to_time(self.time))
        if self.offset is not None:
            msgspec.structs.force_setattr(self, "offset", to_microseconds(self.offset))

    def after(self, base: Time) -> Time:
        """The time; an offset counts from `base`. Capped at MAX_TIME."""
        if isinstance(self.time, int):
            return self.time
        assert isinstance(self.offset, int)  # __post_init__ converts it
        return min(base + self.offset, MAX_TIME)

    @property
    def text(self) -> str:
        """The notation that `parse_time_or_offset` reads."""
        return str(self.time) if self.offset is None else f"{self.offset}us"

    @property
    def is_negative_offset(self) -> bool:
        return isinstance(self.offset, int) and self.offset < 0


def to_time(value: Time | str | datetime) -> Time:
    """Microseconds since the epoch, from an integer, an RFC 3339 string or an aware datetime."""
    if isinstance(value, str):
        value = _parse(value, datetime, "an RFC 3339 time such as 2026-01-31T12:00:00Z")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ValueError("a time needs a time zone: 2026-01-31T12:00:00Z")
        value = (value - _EPOCH) // _MICROSECOND
    if not 0 <= value <= MAX_TIME:
        raise ValueError(f"a time lies between 0 and {MAX_TIME} microseconds")
    return value


def to_microseconds(value: int | str | timedelta) -> int:
    """Microseconds, from an integer, a timedelta, `90s`, `1h30m`, `-5m` or `P1D`."""
    if isinstance(value, str):
        value = _duration(value)
    if isinstance(value, timedelta):
        value = value // _MICROSECOND
    if abs(value) > MAX_TIME:
        raise ValueError(f"an offset is at most {MAX_TIME} microseconds")
    return value


def parse_time_or_offset(text: str) -> TimeOrOffset:
    """Parse typed text: `1767225600000000`, `2026-01-01T00:00:00Z`, `-90s` or `P1D`."""
    if _DIGITS.fullmatch(text):
        return TimeOrOffset(time=_integer(text))
    if _DIGITS.fullmatch(text[:4]) and text[4:5] == "-":
        return TimeOrOffset(time=text)
    return TimeOrOffset(offset=text)


def as_time_or_offset(
    value: "TimeOrOffset | Time | str | datetime | timedelta | None",
) -> TimeOrOffset | None:
    """Convert a Python value: an int or a datetime is a time, a timedelta is an offset, a string
    is either."""
    match value:
        case None | TimeOrOffset():
            return value
        case str():
            return parse_time_or_offset(value)
        case timedelta():
            return TimeOrOffset(offset=to_microseconds(value))
        case _:
            return TimeOrOffset(time=to_time(value))


def to_rfc3339(time: Time) -> str:
    """The time as RFC 3339 in UTC, to the microsecond."""
    return (_EPOCH + time * _MICROSECOND).isoformat().replace("+00:00", "Z")


def _duration(text: str) -> int | timedelta:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits.startswith("P"):
        return sign * _parse(digits, timedelta, "an ISO 8601 duration such as P1D")
    if not digits or _PARTS.sub("", digits):
        raise ValueError(f"{_shown(text)} is not a duration such as 90s, 1h30m or P1D")
    microseconds = sum(float(n) * _UNITS[unit] for n, unit in _PARTS.findall(digits))
    # A number of 400 digits is infinite as a float.
    return sign * round(min(microseconds, MAX_TIME + 1))


def _integer(digits: str) -> int:
    return int(digits) if len(digits) <= _MAX_DIGITS else MAX_TIME + 1


def _parse(text: str, kind: type[T], expected: str) -> T:
    try:
        return msgspec.convert(text, kind)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ValueError(f"{_shown(text)} is not {expected}") from error


def _shown(text: str) -> str:
    """The text for an error; a long one is cut off."""
    return repr(text) if len(text) <= _MAX_DIGITS else f"{text[:_MAX_DIGITS]!r}…"
