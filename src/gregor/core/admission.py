"""What is admitted: text that every store accepts, ids for URLs, and times in the right unit.

`check_text` holds for every message. The other rules are for what a sender writes now: they catch
what is surely a mistake, before it is stored without effect. Messages from before a rule stay as
they are, so nothing that reads, replays or passes on stored messages applies it.
"""

from gregor.core.instant import SECOND, Time, TimeOrOffset, to_rfc3339
from gregor.errors import InvalidMessage

EARLIEST_TIME: Time = 978_307_200 * SECOND
"""2001-01-01: seconds or milliseconds that are taken for microseconds lie before it."""

SHORTEST_EXPIRY = SECOND

_UNIT = "a number counts microseconds, not seconds or milliseconds"


def check_text(name: str, value: object, limit: int) -> None:
    """Raise InvalidMessage unless it is text of 1 to `limit` bytes that every store accepts."""
    if not isinstance(value, str):
        raise InvalidMessage(f"`{name}` must be text, not {kind_of(value)}", field=name)
    try:
        size = len(value) if value.isascii() else len(value.encode())
    except UnicodeEncodeError as error:
        raise InvalidMessage(f"`{name}` is not valid Unicode", field=name) from error
    if not 0 < size <= limit:
        raise InvalidMessage(
            f"`{name}` must be 1 to {limit} bytes of UTF-8, not {size}", field=name
        )
    if "\0" in value:
        raise InvalidMessage(f"`{name}` must not contain the character NUL", field=name)


def check_texts(name: str, values: tuple[str, ...], limit: int) -> None:
    """The same for each of many, at a fraction of the cost: they may be a hundred thousand."""
    try:
        together = "".join(values)
        lengths = set(map(len, values))
        if together.isascii() and "\0" not in together and not lengths - set(range(1, limit + 1)):
            return
    except TypeError:
        pass  # one of them is not text
    for value in values:
        check_text(name, value, limit)


def check_type(name: str, value: object, *types: type) -> None:
    """Raise InvalidMessage unless the value is of one of these types. A bool is not an int."""
    if type(value) in types:
        return
    if isinstance(value, types) and type(value) is not bool:
        return
    expected = " or ".join(type_.__name__ for type_ in types)
    raise InvalidMessage(f"`{name}` must be {expected}, not {kind_of(value)}", field=name)


def check_id(name: str, value: str | None) -> None:
    """Raise InvalidMessage if no URL can have it in its path: clients resolve `.` and `..`."""
    if value in (".", ".."):
        raise InvalidMessage(f"`{name}` is {value!r}, which no URL can contain", field=name)


def check_time(name: str, instant: TimeOrOffset | None) -> None:
    """Raise InvalidMessage for a time before 2001; an offset may be any."""
    if instant is not None and isinstance(instant.time, int) and instant.time < EARLIEST_TIME:
        raise InvalidMessage(
            f"`{name}` is {to_rfc3339(instant.time)}, which is before 2001; {_UNIT}", field=name
        )


def check_query_time(name: str, instant: TimeOrOffset | None) -> None:
    """As `check_time`, for a time that is asked for: 0 is the beginning, in every unit."""
    if instant is not None and instant.time != 0:
        check_time(name, instant)


def check_expiry(name: str, expires: TimeOrOffset | None) -> None:
    """Raise InvalidMessage for a time before 2001, and for an offset under a second."""
    check_time(name, expires)
    if expires is None or not isinstance(expires.offset, int):
        return
    if expires.offset < SHORTEST_EXPIRY:
        raise InvalidMessage(
            f"`{name}` is an offset of {expires.offset} µs, which is under a second; {_UNIT}",
            field=name,
        )


def kind_of(value: object) -> str:
    """The type of a value, for an error."""
    return "None" if value is None else type(value).__name__
