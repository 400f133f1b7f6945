"""An inbox, as a thin layer over items with keys: `spec/inbox.md`.

A notification is an item of the category `inbox.<topic>` with a key. While it is unread, there is a
second item, its marker, of the category `unread.<topic>` under the key `unread:` + its key. So the
badge is a count of markers, and what is done to a notification is a dismissal or a `put` by key.

Pure: it says which messages an action consists of, and what a list of items means.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeAlias

from msgspec import Struct

from gregor.core import arguments
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    JSON,
    MAX_BODY,
    MAX_CATEGORY,
    MAX_KEY,
    MAX_MSG_ID,
    AnyID,
    DeviceID,
    InBandMessage,
    Key,
    MsgID,
    Range,
    When,
    new_msg_id,
    put,
    value_of,
)
from gregor.core.notification_body import check_body, valid_fields
from gregor.core.state import Item
from gregor.errors import InvalidMessage

Topic: TypeAlias = str
"""What a notification is about: the rest of its category, dotted like it."""
Place: TypeAlias = tuple[Key, DeviceID | None]
"""The key of a notification, and its scope: its marker has the same scope."""

ITEMS = "inbox."
MARKERS = "unread."
MARKER = "unread:"  # before the key and the msg_id of a notification: those of its marker

MAX_TOPIC = MAX_CATEGORY - len(MARKERS) - len(".")  # the topics below it are a range, too
MAX_ITEM_KEY = MAX_KEY - len(MARKER)
MAX_ITEM_ID = MAX_MSG_ID - len(MARKER)


# What a backend writes


def notification(
    uid: AnyID,
    topic: Topic,
    body: JSON,
    *,
    key: Key | None = None,
    msg_id: AnyID | None = None,
    starts: When = None,
    expires: When = None,
    device_id: AnyID | None = None,
) -> tuple[InBandMessage, InBandMessage]:
    """The messages that create a notification and its marker, in the order in which they are to be
    stored: who knows the marker then knows what it marks."""
    topic = valid_topic(topic)
    raw_body = arguments.body("body", body, MAX_BODY)
    check_body(value_of(raw_body))
    id_ = new_msg_id() if msg_id is None else _markable(arguments.identifier, "msg_id", msg_id)
    own_key = id_ if key is None else _markable(arguments.text, "key", key)
    item = put(
        uid,
        ITEMS + topic,
        raw_body,
        key=own_key,
        starts=starts,
        expires=expires,
        device_id=device_id,
        msg_id=id_,
    )
    marker = put(
        uid,
        MARKERS + topic,
        key=MARKER + own_key,
        starts=starts,
        expires=expires,
        device_id=device_id,
        msg_id=MARKER + id_,
    )
    return item, marker


def _markable(check: Callable[[str, object, int], str], name: str, value: object) -> str:
    """The key or the msg_id of a notification. That of its marker must not be too long either, and
    not that of another notification."""
    limit = MAX_ITEM_KEY if name == "key" else MAX_ITEM_ID
    try:
        checked = check(name, value, limit)
    except InvalidMessage as error:
        raise InvalidMessage(
            f"{error.message}; that of its marker has `{MARKER}` before it", field=name
        ) from error
    if checked.startswith(MARKER):
        raise InvalidMessage(
            f"`{name}` must not begin with `{MARKER}`, as those of markers do", field=name
        )
    return checked


def valid_topic(topic: Topic) -> Topic:
    """Raises InvalidMessage unless it is one or more segments, with a dot between them."""
    checked = arguments.text("topic", topic, MAX_TOPIC)
    if "" in checked.split("."):
        raise InvalidMessage("`topic` has an empty segment before or after a dot", field="topic")
    return checked


# What a device shows


class InboxEntry(Struct, frozen=True):
    """A notification that is shown, and its marker while it is unread."""

    item: Item
    marker: Item | None

    @property
    def key(self) -> Key:
        return self.item.key or ""

    @property
    def topic(self) -> Topic:
        return self.item.category.removeprefix(ITEMS)

    @property
    def body(self) -> JSON:
        """The body as a Python value, decoded on each access."""
        return self.item.body

    @property
    def fields(self) -> dict[str, JSON]:
        """What may be shown of the body: its fields, without those that no `notification` has,
        such as a `url` that is a script."""
        return valid_fields(self.body)

    @property
    def unread(self) -> bool:
        return self.marker is not None


def entries(items: Iterable[Item], topic: Topic | None = None) -> list[InboxEntry]:
    """The notifications among the visible items, the newest first; with `topic`, those of it and
    of the topics below it."""
    shown = list(items)
    markers = {_place(item): item for item in shown if is_marker(item)}
    found = [InboxEntry(item, markers.get(_place(item))) for item in shown if _is_entry(item)]
    chosen = [entry for entry in found if topic is None or _is_within(entry.topic, topic)]
    return sorted(chosen, key=_order, reverse=True)


def unread_by_topic(shown: Iterable[InboxEntry]) -> dict[Topic, int]:
    """How many of the entries are unread, by the first segment of their topics."""
    topics = (entry.topic.partition(".")[0] for entry in shown if entry.unread)
    return dict(sorted(Counter(topics).items()))


def is_marker(item: Item) -> bool:
    return item.category.startswith(MARKERS) and (item.key or "").startswith(MARKER)


def is_of_inbox(item: Item) -> bool:
    """Whether it is a notification or a marker."""
    return is_marker(item) or _is_entry(item)


def _is_entry(item: Item) -> bool:
    """Whether it is an item as `notification` creates them."""
    key, topic = item.key or MARKER, item.category.removeprefix(ITEMS)
    is_short = len(key.encode()) <= MAX_ITEM_KEY and len(topic.encode()) <= MAX_TOPIC
    return item.category.startswith(ITEMS) and is_short and not key.startswith(MARKER)


def _place(item: Item) -> Place:
    """The place of a notification, or that of what a marker marks."""
    key = item.key or ""
    return key.removeprefix(MARKER) if is_marker(item) else key, item.device_id


def _is_within(topic: Topic, wanted: Topic) -> bool:
    return topic == wanted or topic.startswith(f"{wanted}.")


def _order(entry: InboxEntry) -> tuple[Time, MsgID]:
    return entry.item.order()


# What a person does


class Undo(Struct, frozen=True):
    """How to undo what was done to notifications: the items that it took away, and the msg_ids of
    those that it put in their place. It is false if nothing was done."""

    items: tuple[Item, ...] = ()
    written: tuple[MsgID, ...] = ()

    @property
    def keys(self) -> list[Key]:
        """The keys of the notifications."""
        return list(dict.fromkeys(_place(item)[0] for item in self.items))

    def __bool__(self) -> bool:
        return bool(self.items)


def marker_key(key: Key) -> Key:
    """The key of the marker of a notification."""
    return MARKER + key


def keys_of(keys: Iterable[Key]) -> list[Key]:
    """The keys of notifications, each followed by that of its marker."""
    return [each for key in keys for each in (key, marker_key(key))]


def marker_ranges(topic: Topic | None) -> tuple[Range, ...]:
    """The ranges of all markers, or of those of a topic and of the topics below it."""
    if topic is None:
        return (Range(MARKERS, prefix=True),)
    return Range(MARKERS + topic), Range(f"{MARKERS}{topic}.", prefix=True)


def markers_of(items: Iterable[Item], topic: Topic | None) -> list[Item]:
    """The markers that these ranges cover."""
    markers = (item for item in items if is_marker(item))
    return [
        item
        for item in markers
        if topic is None or _is_within(item.category.removeprefix(MARKERS), topic)
    ]


def marked_unread(uid: AnyID, live: Iterable[Item], now: Time) -> list[InBandMessage]:
    """The messages that create the markers that these notifications lack."""
    known = list(live)
    marked = {_place(item) for item in known if is_marker(item)}
    return [
        put(
            uid,
            MARKERS + item.category.removeprefix(ITEMS),
            key=MARKER + (item.key or ""),
            starts=_still_to_come(item.starts_at, now),
            expires=_instant(item.expires_at),
            device_id=item.device_id,
        )
        for item in known
        if _is_entry(item) and _place(item) not in marked
    ]


def undone(uid: AnyID, undo: Undo, live: Iterable[Item], now: Time) -> list[InBandMessage]:
    """The messages that undo something, given what is live under its keys now.

    What another device or the backend has put under a key since is newer, and stays. A marker goes
    only where a notification is, or comes back.
    """
    known = {(_place(item), is_marker(item)): item for item in live}
    kept = {place for place, item in known.items() if item.msg_id not in undo.written}
    missing = [
        item
        for item in in_order(undo.items)
        if not item.expired(now) and (_place(item), is_marker(item)) not in kept
    ]
    there = {place for place, _ in known} | {_place(i) for i in missing if not is_marker(i)}
    return [
        _put_again(uid, item, _still_to_come(item.starts_at, now))
        for item in missing
        if not is_marker(item) or _place(item) in there
    ]


def _put_again(uid: AnyID, item: Item, starts: TimeOrOffset | None) -> InBandMessage:
    return put(
        uid,
        item.category,
        item.raw_body,
        key=item.key,
        starts=starts,
        expires=_instant(item.expires_at),
        device_id=item.device_id,
    )


def in_order(items: Iterable[Item]) -> list[Item]:
    """In the order in which they are to be stored: the notifications before the markers."""
    return sorted(items, key=lambda item: (is_marker(item), item.order()))


def _still_to_come(starts_at: Time | None, now: Time) -> TimeOrOffset | None:
    return None if starts_at is None or starts_at <= now else _instant(starts_at)


def _instant(time: Time | None) -> TimeOrOffset | None:
    return None if time is None else TimeOrOffset(time=time)
