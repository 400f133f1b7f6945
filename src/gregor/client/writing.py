"""What a device writes, as it is meant when it is written.

"In one hour" means from now, and not from when the train has left the tunnel: so offsets become
instants, by the node's clock as the device estimates it. And what a person dismisses is what that
person saw.
"""

from collections.abc import Iterator
from typing import TypeAlias

from msgspec import structs

from gregor.core.instant import MAX_TIME, Time, TimeOrOffset
from gregor.core.message import (
    UID,
    Creation,
    Dismissal,
    InBandMessage,
    KeyDismissal,
    MsgID,
    Range,
    canonical,
)
from gregor.core.state import Item

UNKNOWN_UID: UID = "self"
"""The uid in messages that are written before a node has reported the device's real uid."""

Clause: TypeAlias = Range | KeyDismissal
"""A part of a dismissal that has an end."""


def clauses(message: InBandMessage) -> tuple[Clause, ...]:
    dismissal = message.dismissal
    return () if dismissal is None else (*dismissal.ranges, *dismissal.keys)


def alone(message: InBandMessage, clause: Clause) -> InBandMessage:
    """A message that does nothing but what this clause of the message does, and has no end."""
    endless = structs.replace(clause, end_time=None)
    match endless:
        case Range():
            dismissal = Dismissal(ranges=(endless,))
        case KeyDismissal():
            dismissal = Dismissal(keys=(endless,))
    return structs.replace(message, creation=None, dismissal=dismissal).stamp(MAX_TIME, 0)


def compares_time(clause: Clause) -> bool:
    """Whether the clause leaves what has not begun; otherwise it compares the ctime alone."""
    return isinstance(clause, Range) and not clause.scheduled


def with_ends(message: InBandMessage, end: TimeOrOffset | None) -> InBandMessage:
    """The message with this end (None: without an end) in all clauses."""
    dismissal = message.dismissal or Dismissal()
    ended = structs.replace(
        dismissal,
        ranges=tuple(structs.replace(range_, end_time=end) for range_ in dismissal.ranges),
        keys=tuple(structs.replace(key, end_time=end) for key in dismissal.keys),
    )
    return structs.replace(message, dismissal=ended)


def naming_also(message: InBandMessage, msg_ids: Iterator[MsgID]) -> InBandMessage:
    """The message that also dismisses these ids: they follow those that its sender named."""
    dismissal = message.dismissal or Dismissal()
    added = [id_ for id_ in dict.fromkeys(msg_ids) if id_ not in dismissal.msg_ids]
    ids = (*dismissal.msg_ids, *added)
    return structs.replace(message, dismissal=structs.replace(dismissal, msg_ids=ids))


# Instants


def with_instants(message: InBandMessage, now: Time) -> InBandMessage:
    """The message with the instants that its offsets mean, counted from now. Raises InvalidMessage
    if its item would not begin before it expires."""
    creation, dismissal = message.creation, message.dismissal
    if creation is not None and _has_offsets(creation):
        creation = structs.replace(
            creation, starts=_instant(creation.starts, now), expires=_instant(creation.expires, now)
        )
    if dismissal is not None and has_offset_ends(message):
        dismissal = structs.replace(
            dismissal,
            ranges=tuple(_ended(range_, now) for range_ in dismissal.ranges),
            keys=tuple(_ended(key, now) for key in dismissal.keys),
        )
    if creation is message.creation and dismissal is message.dismissal:
        return message
    return structs.replace(message, creation=creation, dismissal=dismissal)


def has_offset_ends(message: InBandMessage) -> bool:
    return any(_is_offset(clause.end_time) for clause in clauses(message))


def _ended(clause: Clause, now: Time) -> Clause:
    return structs.replace(clause, end_time=_instant(clause.end_time, now))


def _instant(when: TimeOrOffset | None, now: Time) -> TimeOrOffset | None:
    if when is None or not _is_offset(when):
        return when
    return TimeOrOffset(time=max(0, when.after(now)))


def _is_offset(when: TimeOrOffset | None) -> bool:
    return when is not None and when.offset is not None


def _has_offsets(creation: Creation) -> bool:
    return _is_offset(creation.starts) or _is_offset(creation.expires)


# The same message again


def repeats(written: InBandMessage, at: Time, message: InBandMessage) -> bool:
    """Whether the message was given before, at this time, and written like this."""
    if written.same_contents(message):
        return True
    meant = with_instants(message, at)
    given = _as_given(written, message) if has_offset_ends(message) else written
    return given.same_contents(meant)


def repeats_open(written: InBandMessage, message: InBandMessage) -> bool:
    """The same for a dismissal whose ends the device has set."""
    return with_ends(_as_given(written, message), None).same_contents(message)


def repeats_item(item: Item, message: InBandMessage) -> bool:
    """Whether the message, which has offsets, may have created this item: it has the same contents
    but for these times, of which nobody knows any more from when they counted."""
    creation = message.creation
    if creation is None or not _has_offsets(creation):
        return False
    given = creation.category, creation.key, message.device_id, canonical(creation.body)
    return (
        given == (item.category, item.key, item.device_id, canonical(item.body))
        and _may_mean(creation.starts, item.starts_at)
        and _may_mean(creation.expires, item.expires_at)
    )


def _may_mean(given: TimeOrOffset | None, instant: Time | None) -> bool:
    """Whether this time, or offset from an unknown time, is the instant."""
    if given is None or instant is None:
        return given is None and instant is None
    return _is_offset(given) or given.time == instant


def _as_given(written: InBandMessage, message: InBandMessage) -> InBandMessage:
    """A written message without the ids that the device has added to those of its sender."""
    if written.dismissal is None or message.dismissal is None:
        return written
    given = written.dismissal.msg_ids[: len(message.dismissal.msg_ids)]
    dismissal = structs.replace(written.dismissal, msg_ids=given)
    return written.reduced(written.creation, dismissal) or written
