"""The inbox of a device: its notifications, and what a person does to them. `spec/inbox.md`.

It stands on what a Client offers to every app: an app could have written it.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from gregor.client.connection import Operation
from gregor.client.replica import Replica
from gregor.client.snooze import snoozed
from gregor.client.writing import UNKNOWN_UID
from gregor.core import arguments
from gregor.core.admission import check_type
from gregor.core.inbox import (
    MAX_ITEM_KEY,
    InboxEntry,
    Topic,
    Undo,
    entries,
    in_order,
    is_of_inbox,
    keys_of,
    marked_unread,
    marker_key,
    marker_ranges,
    markers_of,
    undone,
    unread_by_topic,
    valid_topic,
)
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    DeviceID,
    Dismissal,
    InBandMessage,
    Key,
    MsgID,
    When,
    new_msg_id,
)
from gregor.core.state import Item, State
from gregor.errors import InvalidMessage


class Device(Protocol):
    """What an inbox needs of a Client."""

    @property
    def device_id(self) -> DeviceID: ...
    @property
    def replica(self) -> Replica: ...
    def state(self) -> State: ...
    async def dismiss_key(self, *keys: Key) -> MsgID: ...
    async def write_all(self, messages: Sequence[InBandMessage]) -> None: ...
    async def change(
        self, operation: Operation, messages: Sequence[InBandMessage] = ()
    ) -> None: ...


class Inbox:
    """The notifications that a device shows, each read or unread.

    What is read comes from the replica, without waiting. What is written is durable on the device
    when the call returns, in one transaction, and is sent as soon as there is a connection.

    A key names a notification. A key that the inbox does not have is left out: another device may
    just have archived it. What is done reaches what this device has been told: a newer notification
    under the same key stays, and stays unread.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    # Reading

    def list(self, topic: Topic | None = None, *, limit: int | None = None) -> Sequence[InboxEntry]:
        """The notifications, the newest first; with `topic`, those of it and of the topics below it
        (of `likes`, also `likes.photo7`); with `limit`, the first so many."""
        most = None if limit is None else int(arguments.positive_number("limit", limit, int))
        return self._entries(topic)[:most]

    def unread_count(self, topic: Topic | None = None) -> int:
        """How many notifications are unread; with `topic`, of it and of the topics below it."""
        return sum(entry.unread for entry in self._entries(topic))

    def unread_by_topic(self) -> dict[Topic, int]:
        """How many notifications are unread, by the first segment of their topics."""
        return unread_by_topic(self._entries(None))

    def _entries(self, topic: Topic | None) -> Sequence[InboxEntry]:
        return entries(self._device.state(), None if topic is None else valid_topic(topic))

    # Writing. What can be undone returns how, for `undo`; it is false if there was nothing to do.

    async def read(self, *keys: Key) -> Undo:
        """Mark notifications as read, on all devices."""
        return await self._dismiss(marker_key(key) for key in _checked(keys))

    async def read_all(self, topic: Topic | None = None) -> Undo:
        """Mark all notifications that this device shows as read, on all devices; with `topic`,
        those of it and of the topics below it. What this device has not been told of stays unread,
        and so does what has not begun."""
        within = None if topic is None else valid_topic(topic)
        taken = markers_of(self._device.state(), within)
        if taken:
            dismissal = Dismissal(ranges=marker_ranges(within))
            message = InBandMessage(
                UNKNOWN_UID, new_msg_id(), device_id=self._device.device_id, dismissal=dismissal
            )
            await self._device.change(
                lambda replica, now: replica.dismiss_seen(message, now), [message]
            )
        return Undo(tuple(taken))

    async def archive(self, *keys: Key) -> Undo:
        """Remove notifications, on all devices."""
        checked = _checked(keys)
        return await self._dismiss([*checked, *map(marker_key, checked)])

    async def unread(self, *keys: Key) -> bool:
        """Mark notifications as unread, on all devices. Returns whether any of them was read."""
        live = self._live(keys_of(_checked(keys)))
        return await self._write(marked_unread(UNKNOWN_UID, live, self._now()))

    async def snooze(self, key: Key, until: When) -> Undo:
        """Hide a notification until later, on all devices, also on those that are offline then. If
        it is unread, it is unread when it comes back. An offset counts from now. Raises
        InvalidMessage if it is not before the expiry of the notification."""
        checked = arguments.text("key", key, MAX_ITEM_KEY)
        live, now = self._live(keys_of([checked])), self._now()
        begins = arguments.time("until", until)
        if begins is None:
            raise InvalidMessage("`until` must be a time or a duration, not None", field="until")
        instant = TimeOrOffset(time=begins.after(now))
        messages = [snoozed(UNKNOWN_UID, item, instant, now) for item in in_order(live)]
        await self._write(messages)
        return Undo(tuple(live), tuple(message.msg_id for message in messages))

    async def undo(self, undo: Undo) -> bool:
        """Put again what was taken away, as new messages: what was archived comes back as the
        newest. What another device or the backend has put under a key since then stays. Returns
        whether anything came back. Idempotent."""
        check_type("undo", undo, Undo)
        live = self._live(keys_of(undo.keys))
        return await self._write(undone(UNKNOWN_UID, undo, live, self._now()))

    async def _dismiss(self, keys: Iterable[Key]) -> Undo:
        taken = self._live(keys)
        if taken:
            await self._device.dismiss_key(*dict.fromkeys(item.key or "" for item in taken))
        return Undo(tuple(taken))

    async def _write(self, messages: Sequence[InBandMessage]) -> bool:
        if messages:
            await self._device.write_all(messages)
        return bool(messages)

    def _now(self) -> Time:
        return self._device.state().as_of

    def _live(self, keys: Iterable[Key]) -> Sequence[Item]:
        """What the inbox has under these keys, begun or not. It has nothing that is hidden."""
        replica, now = self._device.replica, self._now()
        return [
            item
            for key in dict.fromkeys(keys)
            for item in replica.live_with_key(key, now)
            if is_of_inbox(item)
        ]


def _checked(keys: Iterable[Key]) -> Sequence[Key]:
    return [arguments.text("keys", key, MAX_ITEM_KEY) for key in keys]
