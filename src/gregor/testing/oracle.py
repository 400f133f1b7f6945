"""The oracle: sections 4 and 5 of `spec/semantics.md`, visibility, without optimisation.

It shares no code with `gregor.core`, so a bug in one of the two shows as a difference.
"""

from collections.abc import Collection, Iterator

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import Creation, DeviceID, InBandMessage, MsgID, Range

ItemName = tuple[Time, MsgID]


def visible(
    messages: Collection[InBandMessage],
    device_id: DeviceID | None,
    now: Time,
    at: Time | None = None,
) -> list[ItemName]:
    """The (ctime, msg_id) of the items of these stamped messages that the device sees, in order:
    at the time `at`, or `now` if `at` is None."""
    names = []
    for message in messages:
        if message.creation is None:
            continue
        t = now if at is None else at
        in_scope = device_id is None or message.device_id is None or message.device_id == device_id
        created = at is None or message.ctime <= at
        dead = any(at is None or death <= at for death in _deaths(message, messages))
        if in_scope and created and not dead and not _expired(message, message.creation, t):
            names.append((message.ctime, message.msg_id))
    return sorted(set(names))


def _deaths(item: InBandMessage, messages: Collection[InBandMessage]) -> Iterator[Time]:
    for message in messages:
        if message.dismissal is not None:
            named = item.msg_id in message.dismissal.msg_ids
            if named or any(_covers(range_, message, item) for range_ in message.dismissal.ranges):
                yield message.ctime


def _covers(range_: Range, dismissal: InBandMessage, item: InBandMessage) -> bool:
    assert item.creation is not None
    pattern, category = range_.category.encode(), item.creation.category.encode()
    matches = category[: len(pattern)] == pattern if range_.prefix else category == pattern
    end = dismissal.ctime if range_.end_time is None else _time(range_.end_time, dismissal.ctime)
    in_time = item.ctime <= end and item.ctime <= dismissal.ctime
    return matches and in_time and item.msg_id not in range_.skip_msg_ids


def _expired(item: InBandMessage, creation: Creation, t: Time) -> bool:
    return creation.expires is not None and _time(creation.expires, item.ctime) <= t


def _time(when: TimeOrOffset, ctime: Time) -> Time:
    if when.time is not None:
        return int(when.time)
    assert when.offset is not None
    return ctime + int(when.offset)
