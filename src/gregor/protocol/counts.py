"""How many of its parts one message may have: counted before it is read, which costs more."""

from typing import Any

import msgspec
from msgspec import DecodeError, Raw, Struct, ValidationError

from gregor.core.message import MAX_MESSAGE
from gregor.errors import InvalidMessage, LimitExceeded
from gregor.limits import Limits

SMALLEST_PART = 3
"""How many bytes of JSON each part adds at least."""


class _Counted(Struct):
    """What is counted of a message; the rest is skipped."""

    dismissal: Any = None


_decoder = msgspec.json.Decoder(_Counted)


class CountCheck:
    """Counts the parts of messages, to hold them against these limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        maxima = (limits.ranges, limits.msg_ids, limits.keys, limits.skip_msg_ids)
        smallest = min(filter(None, maxima), default=MAX_MESSAGE)
        self._harmless = smallest * SMALLEST_PART  # so many bytes are never too many parts

    def check(self, json: Raw) -> None:
        """Raise LimitExceeded if the message has too many parts of one kind, and InvalidMessage if
        it is no JSON. What else is wrong with it is found when it is read."""
        if self._harmless < len(memoryview(json)) <= MAX_MESSAGE:
            _check(json, self._limits)


def _check(json: Raw, limits: Limits) -> None:
    try:
        dismissal = _decoder.decode(json).dismissal
    except ValidationError:
        return
    except (DecodeError, UnicodeError) as error:
        raise InvalidMessage(f"not the JSON of a message: {error}") from error
    except RecursionError as error:
        raise InvalidMessage("the JSON is nested too deeply") from error
    if isinstance(dismissal, dict):
        _check_dismissal(dismissal, limits)


def _check_dismissal(dismissal: dict[str, Any], limits: Limits) -> None:
    ranges = _list(dismissal, "ranges")
    skipped = sum(len(_list(range_, "skip_msg_ids")) for range_ in ranges)
    check_count("ranges", len(ranges), limits, "dismissal.ranges")
    check_count("msg_ids", len(_list(dismissal, "msg_ids")), limits, "dismissal.msg_ids")
    check_count("keys", len(_list(dismissal, "keys")), limits, "dismissal.keys")
    check_count("skip_msg_ids", skipped, limits, "dismissal.ranges.skip_msg_ids")


def _list(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, list) else []


def check_count(name: str, count: int, limits: Limits, field: str) -> None:
    """Raise LimitExceeded if there are more than the limit of this name allows."""
    maximum: int = getattr(limits, name)
    if maximum and count > maximum:
        raise LimitExceeded(
            f"`{name}` takes at most {maximum}, not {count}; send several",
            field=field,
            limit=name,
            maximum=maximum,
        )
