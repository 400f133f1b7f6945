"""The arguments of Python callers, as the values that messages hold.

Each function returns the value that was certainly meant, or raises InvalidMessage, which names the
parameter. Nothing else is converted: what is stored is what the caller wrote.
"""

from collections.abc import Iterable, Mapping, Sequence
from uuid import UUID

import msgspec
from msgspec import Raw

from gregor.core.admission import (
    check_expiry,
    check_id,
    check_query_time,
    check_text,
    check_time,
    kind_of,
)
from gregor.core.instant import (
    MAX_TIME,
    Time,
    TimeOrOffset,
    as_time_or_offset,
    to_microseconds,
)
from gregor.errors import InvalidMessage, InvalidTime, TooLarge

MAX_ID_BITS = 2_048  # more digits than any id may have
MAX_DEPTH = 128

_INFINITY = float("inf")


def text(name: str, value: object, limit: int) -> str:
    """Text of 1 to `limit` bytes."""
    check_text(name, value, limit)
    return str.__str__(value)


def identifier(name: str, value: object, limit: int) -> str:
    """A new id, from text, an integer or a UUID."""
    id_ = known_id(name, value, limit)
    check_id(name, id_)
    return id_


def optional_identifier(name: str, value: object, limit: int) -> str | None:
    return None if value is None else identifier(name, value, limit)


def known_id(name: str, value: object, limit: int) -> str:
    """The id of what exists; it may be from before the rules for new ids."""
    match value:
        case bool():
            pass
        case int() if value.bit_length() <= MAX_ID_BITS:
            value = str(int(value))
        case UUID():
            value = str(value)
    return text(name, value, limit)


def known_ids(name: str, values: object, limit: int) -> tuple[str, ...]:
    """Ids from an iterable of them."""
    return tuple(known_id(name, value, limit) for value in many(name, values))


def many(name: str, values: object) -> Iterable[object]:
    """Several values. A string is not that: its characters are no ids."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | bytearray | Mapping):
        raise InvalidMessage(f"`{name}` must be a list, not {kind_of(values)}", field=name)
    return values


def prefix(name: str, value: object, limit: int) -> str:
    """Text that others begin with: the empty one, too."""
    return "" if value == "" else text(name, value, limit)


def flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidMessage(f"`{name}` must be True or False, not {kind_of(value)}", field=name)
    return value


def function(name: str, value: object) -> None:
    """Raise InvalidMessage unless it can be called."""
    if not callable(value):
        raise InvalidMessage(f"`{name}` must be a function, not {kind_of(value)}", field=name)


def positive_number(name: str, value: object, kind: type[float | int]) -> float | int:
    """A number of this kind, above zero and not absurd."""
    if not isinstance(value, kind | int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise InvalidMessage(f"`{name}` must be a positive {kind.__name__}", field=name)
    return value


def cursor(name: str, value: object) -> Time:
    """A cursor that a server has given."""
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TIME:
        raise InvalidMessage(f"`{name}` must be a cursor, as a server gives it", field=name)
    return value


# Times


def instant(name: str, value: object) -> TimeOrOffset | None:
    """A time or an offset, as it is written."""
    try:
        return as_time_or_offset(value)
    except InvalidTime as error:
        raise InvalidMessage(f"`{name}`: {error.message}", field=name) from error


def expiry(name: str, value: object) -> TimeOrOffset | None:
    expires = instant(name, value)
    check_expiry(name, expires)
    return expires


def time(name: str, value: object) -> TimeOrOffset | None:
    when = instant(name, value)
    check_time(name, when)
    return when


def duration(name: str, value: object) -> Time:
    """Microseconds, from text such as 30d or P30D; 0, which has no unit to mistake, is 0."""
    match value:
        case str() if value and not value.strip("0"):
            return 0
        case str() if value.isdecimal():
            raise InvalidMessage(
                f"`{name}`: a bare number does not say its unit; give a duration such as 30d",
                field=name,
            )
        case str():
            pass
        case _:
            raise InvalidMessage(
                f"`{name}` must be text such as 30d, not {kind_of(value)}", field=name
            )
    try:
        return to_microseconds(value)
    except InvalidTime as error:
        raise InvalidMessage(f"`{name}`: {error.message}", field=name) from error


def query_time(name: str, value: object) -> TimeOrOffset | None:
    """A time to ask for; the integer 0, which has no unit to mistake, is the beginning."""
    if type(value) is int and value == 0:
        return TimeOrOffset(time=0)
    when = instant(name, value)
    check_query_time(name, when)
    return when


# Bodies


def body(name: str, value: object, limit: int) -> Raw:
    """The value as JSON, of up to `limit` bytes. A Raw holds JSON already, which stays as it is."""
    try:
        if isinstance(value, Raw):
            msgspec.json.decode(value)
            return value
        return Raw(msgspec.json.encode(_Plain(name, limit).value_of(value, MAX_DEPTH)))
    except (InvalidMessage, TooLarge):
        raise
    except UnicodeError as error:
        raise InvalidMessage(f"`{name}` is not valid Unicode", field=name) from error
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"`{name}` is not JSON: {error}", field=name) from error


class _Plain:
    """One body as plain types only, which have one form in JSON.

    A value that is in a list twice is in its JSON twice, so a small object may stand for more JSON
    than there is memory. Each value and each character takes at least a byte of JSON: the work ends
    when there are more of them than bytes allowed.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = self._bytes_left = limit

    def value_of(self, value: object, levels: int) -> object:
        self._spend(1)
        match value:
            case None | bool():
                return value
            case str():
                return self._text(value)
            case int():
                return int(value)
            case float() if -_INFINITY < value < _INFINITY:
                return float(value)
            case float():
                raise self._invalid(f"holds {value}, which JSON cannot say")
            case Mapping() | Sequence() if levels == 0:
                raise self._invalid(f"is nested more than {MAX_DEPTH} levels deep")
            case Mapping():
                return {self._key(k): self.value_of(v, levels - 1) for k, v in value.items()}
            case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
                return [self.value_of(element, levels - 1) for element in value]
            case _:
                raise self._invalid(f"holds a {kind_of(value)}, which JSON does not have")

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            raise self._invalid(f"has a key that is no text, but a {kind_of(key)}")
        return self._text(key)

    def _text(self, value: str) -> str:
        self._spend(len(value))
        return str.__str__(value)

    def _spend(self, size: int) -> None:
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise TooLarge(
                f"`{self._name}` is more than {self._limit} bytes of JSON, which is the limit",
                field=self._name,
            )

    def _invalid(self, reason: str) -> InvalidMessage:
        return InvalidMessage(f"`{self._name}` {reason}", field=self._name)
