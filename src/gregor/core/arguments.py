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
from gregor.core.instant import MAX_TIME, Time, TimeOrOffset, as_time_or_offset
from gregor.errors import InvalidMessage, InvalidTime

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


def query_time(name: str, value: object) -> TimeOrOffset | None:
    """A time to ask for; the integer 0, which has no unit to mistake, is the beginning."""
    if type(value) is int and value == 0:
        return TimeOrOffset(time=0)
    when = instant(name, value)
    check_query_time(name, when)
    return when


# Bodies


def body(name: str, value: object) -> Raw:
    """The value as JSON. A Raw holds JSON already, which is kept byte for byte."""
    try:
        if isinstance(value, Raw):
            msgspec.json.decode(value)
            return value
        return Raw(msgspec.json.encode(_plain(name, value, MAX_DEPTH)))
    except UnicodeError as error:
        raise InvalidMessage(f"`{name}` is not valid Unicode", field=name) from error
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidMessage(f"`{name}` is not JSON: {error}", field=name) from error


def _plain(name: str, value: object, levels: int) -> object:
    """The same value of plain types only, which have one form in JSON."""
    match value:
        case None | bool():
            return value
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case float() if -_INFINITY < value < _INFINITY:
            return float(value)
        case float():
            raise InvalidMessage(f"`{name}` holds {value}, which JSON cannot say", field=name)
        case Mapping() | Sequence() if levels == 0:
            raise InvalidMessage(
                f"`{name}` is nested more than {MAX_DEPTH} levels deep", field=name
            )
        case Mapping():
            return {_key(name, k): _plain(name, v, levels - 1) for k, v in value.items()}
        case Sequence() if not isinstance(value, bytes | bytearray | memoryview):
            return [_plain(name, element, levels - 1) for element in value]
        case _:
            raise InvalidMessage(
                f"`{name}` holds a {kind_of(value)}, which JSON does not have", field=name
            )


def _key(name: str, key: object) -> str:
    if not isinstance(key, str):
        raise InvalidMessage(
            f"`{name}` has a key that is no text, but a {kind_of(key)}", field=name
        )
    return str.__str__(key)
