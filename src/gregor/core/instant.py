"""Times and offsets in microseconds, and parsers for the notations that people use."""

import re
from datetime import UTC, datetime, timedelta
from typing import TypeAlias, TypeGuard, TypeVar

import msgspec
from msgspec import Struct

from gregor.errors import InvalidTime

Time: TypeAlias = int
"""Microseconds since the Unix epoch."""

MAX_TIME: Time = 2**53 - 1
"""The latest time that every JSON parser represents exactly (in the year 2255)."""

SECOND = 1_000_000
MAX_SHOWN = 40  # characters of an invalid text in an error

T = TypeVar("T")

_TIMES = (
    "a time is a datetime with a time zone, or text such as 2026-01-31T12:00:00Z; a duration is a"
    " timedelta, or text such as 90s or P1D"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(us|ms|s|m|h|d|w)")
_DIGITS = re.compile(r"[0-9]{1,20}")  # str.isdigit accepts the digits of all scripts
_DATE = re.compile(r"[0-9]{4}-")
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
            raise InvalidTime("give exactly one of `time` and `offset`", field="time")
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


def to_time(value: object) -> Time:
    """Microseconds since the epoch, from an integer, an RFC 3339 string or an aware datetime.
    Raises InvalidTime for anything else."""
    if isinstance(value, str):
        value = _parse(value, datetime, "an RFC 3339 time such as 2026-01-31T12:00:00Z", "time")
    if isinstance(value, datetime):
        if value.utcoffset() is None:
            raise InvalidTime("a time needs a time zone: 2026-01-31T12:00:00Z", field="time")
        value = (value - _EPOCH) // _MICROSECOND
    if not _is_integer(value):
        raise InvalidTime(f"a time is no {type(value).__name__}; {_TIMES}", field="time")
    if not 0 <= value <= MAX_TIME:
        raise InvalidTime(f"a time lies between 0 and {MAX_TIME} microseconds", field="time")
    return value


def to_microseconds(value: object) -> int:
    """Microseconds, from an integer, a timedelta, `90s`, `1h30m`, `-5m` or `P1D`. Raises
    InvalidTime for anything else."""
    if isinstance(value, str):
        value = _duration(value)
    if isinstance(value, timedelta):
        value = value // _MICROSECOND
    if not _is_integer(value):
        raise InvalidTime(f"an offset is no {type(value).__name__}; {_TIMES}", field="offset")
    if abs(value) > MAX_TIME:
        raise InvalidTime(f"an offset is at most {MAX_TIME} microseconds", field="offset")
    return value


def parse_time_or_offset(text: str) -> TimeOrOffset:
    """Parse typed text: `1767225600000000`, `2026-01-01T00:00:00Z`, `-90s` or `P1D`. Raises
    InvalidTime for anything else."""
    if _DIGITS.fullmatch(text):
        return TimeOrOffset(time=int(text))
    if _DATE.match(text):
        return TimeOrOffset(time=text)
    return TimeOrOffset(offset=text)


def as_time_or_offset(value: object) -> TimeOrOffset | None:
    """Convert a Python value: a datetime is a time, a timedelta is an offset, a string is either.
    Raises InvalidTime for a bare number, whose unit cannot be known, and for anything else."""
    match value:
        case None | TimeOrOffset():
            return value
        case str():
            return parse_time_or_offset(value)
        case timedelta():
            return TimeOrOffset(offset=to_microseconds(value))
        case datetime():
            return TimeOrOffset(time=to_time(value))
        case int() | float():
            raise InvalidTime(f"a bare number does not say its unit; {_TIMES}")
        case _:
            raise InvalidTime(f"a time is no {type(value).__name__}; {_TIMES}")


def to_rfc3339(time: Time) -> str:
    """The time as RFC 3339 in UTC, to the microsecond."""
    return (_EPOCH + time * _MICROSECOND).isoformat().replace("+00:00", "Z")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _duration(text: str) -> int | timedelta:
    sign, digits = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if digits.startswith("P"):
        return sign * _parse(digits, timedelta, "an ISO 8601 duration such as P1D", "offset")
    if not digits or _PARTS.sub("", digits):
        raise _not_a("a duration such as 90s, 1h30m or P1D", text, "offset")
    microseconds = sum(float(n) * _UNITS[unit] for n, unit in _PARTS.findall(digits))
    return sign * round(min(microseconds, MAX_TIME + 1))  # an infinity has no integer


def _parse(text: str, kind: type[T], expected: str, field: str) -> T:
    try:
        return msgspec.convert(text, kind)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise _not_a(expected, text, field) from error


def _not_a(expected: str, text: str, field: str) -> InvalidTime:
    shown = text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"
    return InvalidTime(f"{shown!r} is not {expected}", field=field)
