"""The oracle: sections 4 and 5 of `spec/semantics.md`, visibility, and what section 10 forgets,
without optimisation.

It shares no code with `gregor.core`, so a bug in one of the two shows as a difference.
"""

from collections.abc import Collection, Iterator

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import Creation, DeviceID, Dismissal, InBandMessage, MsgID, Range

ItemName = tuple[Time, MsgID]


def visible(
    messages: Collection[InBandMessage],
    device_id: DeviceID | None,
    now: Time,
    at: Time | None = None,
) -> list[ItemName]:
    """The (time, msg_id) of the items of these stamped messages that the device sees, in order:
    at the time `at`, or `now` if `at` is None."""
    t = now if at is None else at
    names = {
        (_item_time(message, creation), message.msg_id)
        for message, creation in _live(messages, device_id, t, at)
        if creation.starts is None or _time(creation.starts, message.ctime) <= t
    }
    return sorted(names)


def live(
    messages: Collection[InBandMessage], device_id: DeviceID | None, now: Time
) -> list[ItemName]:
    """The (ctime, msg_id) of the items that are live for the device now, begun or not: what a
    hash is of."""
    return sorted({(m.ctime, m.msg_id) for m, _ in _live(messages, device_id, now, None)})


def past(messages: Collection[InBandMessage], floor: Time) -> set[MsgID]:
    """The ids of those of these messages that lose their contents when the history up to the floor
    is forgotten."""
    return {m.msg_id for m in messages if m.ctime <= floor and _is_over(m, messages, floor)}


def _is_over(message: InBandMessage, messages: Collection[InBandMessage], floor: Time) -> bool:
    if message.creation is None or _expired(message, message.creation, floor):
        return True
    return any(death <= floor for death in _deaths(message, messages))


def _live(
    messages: Collection[InBandMessage], device_id: DeviceID | None, t: Time, at: Time | None
) -> Iterator[tuple[InBandMessage, Creation]]:
    for message in messages:
        if message.creation is None:
            continue
        created = at is None or message.ctime <= at
        dead = any(at is None or death <= at for death in _deaths(message, messages))
        expired = _expired(message, message.creation, t)
        if _sees(device_id, message.device_id) and created and not dead and not expired:
            yield message, message.creation


def _sees(device_id: DeviceID | None, scope: DeviceID | None) -> bool:
    return device_id is None or scope is None or scope == device_id


def _deaths(item: InBandMessage, messages: Collection[InBandMessage]) -> Iterator[Time]:
    for message in messages:
        if message.dismissal is not None and _dismisses(message, message.dismissal, item):
            yield message.ctime
        if _replaces(message, item):
            yield message.ctime


def _replaces(message: InBandMessage, item: InBandMessage) -> bool:
    assert item.creation is not None
    key, scope = item.creation.key, item.device_id
    if key is None or message.creation is None or message.ctime <= item.ctime:
        return False
    return (message.creation.key, message.device_id) == (key, scope)


def _dismisses(message: InBandMessage, dismissal: Dismissal, item: InBandMessage) -> bool:
    assert item.creation is not None
    if item.msg_id in dismissal.msg_ids:
        return True
    if item.msg_id == message.msg_id or not _sees(message.device_id, item.device_id):
        return False
    keys = [
        key
        for key in dismissal.keys
        if key.key == item.creation.key and item.ctime <= _end(key.end_time, message.ctime)
    ]
    return bool(keys) or any(_covers(range_, message, item) for range_ in dismissal.ranges)


def _covers(range_: Range, dismissal: InBandMessage, item: InBandMessage) -> bool:
    assert item.creation is not None
    pattern, category = range_.category.encode(), item.creation.category.encode()
    matches = category[: len(pattern)] == pattern if range_.prefix else category == pattern
    compared = item.ctime if range_.scheduled else _item_time(item, item.creation)
    in_time = compared <= _end(range_.end_time, dismissal.ctime)
    return matches and in_time and item.msg_id not in range_.skip_msg_ids


def _end(stated: TimeOrOffset | None, ctime: Time) -> Time:
    return ctime if stated is None else min(_time(stated, ctime), ctime)


def _item_time(item: InBandMessage, creation: Creation) -> Time:
    if creation.starts is None:
        return item.ctime
    return max(item.ctime, _time(creation.starts, item.ctime))


def _expired(item: InBandMessage, creation: Creation, t: Time) -> bool:
    return creation.expires is not None and _time(creation.expires, item.ctime) <= t


def _time(when: TimeOrOffset, ctime: Time) -> Time:
    if when.time is not None:
        return int(when.time)
    assert when.offset is not None
    return ctime + int(when.offset)
