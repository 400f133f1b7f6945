"""Reads the messages that a caller sends: each is accepted or rejected by itself."""

from collections.abc import Callable, Iterable

from msgspec import Raw

from gregor.core.message import UID, Message, parse_message
from gregor.errors import Forbidden, InvalidMessage, TooLarge
from gregor.interfaces import Rejected


def read_entries(
    raw: Iterable[Raw], may_write: Callable[[UID], bool], *, uid: UID | None = None
) -> list[Message | Rejected]:
    """The messages in order; in the place of an invalid or forbidden one, its rejection.

    `may_write` says whether the caller may write for a user. `uid` is the default for messages
    without one.
    """
    return [_read_entry(json, may_write, uid) for json in raw]


def _read_entry(json: Raw, may_write: Callable[[UID], bool], uid: UID | None) -> Message | Rejected:
    try:
        message = parse_message(json, uid=uid)
    except (InvalidMessage, TooLarge) as error:
        return Rejected(None, error)
    if not may_write(message.uid):
        return Rejected(None, Forbidden("this token belongs to another user", field="uid"))
    return message
