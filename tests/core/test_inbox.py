"""The inbox: the messages of a notification, what is unread, and what an undo restores."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.facts import Facts
from gregor.core.inbox import (
    MAX_ITEM_ID,
    MAX_ITEM_KEY,
    MAX_TOPIC,
    Undo,
    entries,
    marked_unread,
    marker_ranges,
    notification,
    undone,
    unread_by_topic,
)
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import JSON, InBandMessage, create, dismiss_key, put
from gregor.core.state import Item
from gregor.errors import InvalidMessage, TooLarge

NOW = 1_767_225_600 * SECOND
HOUR = 3_600 * SECOND
BODY: JSON = {"title": "Ann liked your photo"}


def facts_of(*messages: InBandMessage) -> Facts:
    """The facts after these messages, which are stored one after the other from NOW on."""
    facts = Facts()
    for number, message in enumerate(messages):
        facts = facts.replay(message.stamp(NOW + number, 0))
    return facts


def items_of(*messages: InBandMessage) -> tuple[Item, ...]:
    """What is visible once these are stored."""
    return facts_of(*messages).state(None, NOW + len(messages)).items


def shown(*messages: InBandMessage) -> list[tuple[str, bool]]:
    return [(entry.key, entry.unread) for entry in entries(items_of(*messages))]


# What a backend writes


def test_notification_is_an_item_and_its_marker() -> None:
    assert notification("alice", "likes", BODY, key="photo7", msg_id="m1") == (
        put("alice", "inbox.likes", BODY, key="photo7", msg_id="m1"),
        put("alice", "unread.likes", None, key="unread:photo7", msg_id="unread:m1"),
    )


def test_default_key_is_the_msg_id() -> None:
    item, marker = notification("alice", "likes", BODY)
    assert item.key == item.msg_id
    assert marker.key == marker.msg_id == f"unread:{item.msg_id}"


def test_marker_begins_and_ends_with_its_item_on_the_same_device() -> None:
    item, marker = notification("alice", "likes", BODY, starts="1h", expires="2h", device_id="d1")
    assert item.creation is not None
    assert marker.creation is not None
    assert item.creation.starts == marker.creation.starts == TimeOrOffset(offset=HOUR)
    assert item.creation.expires == marker.creation.expires == TimeOrOffset(offset=2 * HOUR)
    assert item.device_id == marker.device_id == "d1"


def test_notification_under_a_known_key_takes_its_place_and_is_unread_again() -> None:
    first, second = (notification("alice", "likes", BODY, key="photo7") for _ in range(2))
    read = dismiss_key("alice", "unread:photo7")
    assert shown(*first, read) == [("photo7", False)]
    assert shown(*first, read, *second) == [("photo7", True)]


def test_longest_key_and_msg_id_leave_room_for_those_of_the_marker() -> None:
    key, msg_id = "ö" * (MAX_ITEM_KEY // 2), "x" * MAX_ITEM_ID
    _, marker = notification("alice", "likes", BODY, key=key, msg_id=msg_id)
    assert marker.key is not None
    assert (len(marker.key.encode()), len(marker.msg_id)) == (255, 64)


def test_longest_topic_leaves_room_for_the_topics_below_it() -> None:
    topic = "ö" * (MAX_TOPIC // 2) + "x"
    _, marker = notification("alice", topic, BODY)
    exact, below = marker_ranges(topic)
    assert marker.creation is not None
    assert exact.category == marker.creation.category
    assert (below.category, len(below.category.encode())) == (f"{exact.category}.", 255)


@pytest.mark.parametrize(
    ("arguments", "field", "reason"),
    [
        ({"key": "x" * 249}, "key", "1 to 248 bytes of UTF-8, not 249; that of its marker has"),
        ({"key": "x" * 256}, "key", "1 to 248 bytes"),
        ({"key": ""}, "key", "1 to 248 bytes"),
        ({"key": 7}, "key", "must be text"),
        ({"key": "unread:photo7"}, "key", "must not begin with `unread:`"),
        ({"msg_id": "x" * 58}, "msg_id", "1 to 57 bytes of UTF-8, not 58; that of its marker has"),
        ({"msg_id": "unread:m1"}, "msg_id", "must not begin with `unread:`"),
        ({"topic": ""}, "topic", "1 to 247 bytes"),
        ({"topic": "x" * 248}, "topic", "1 to 247 bytes"),
        ({"topic": "likes."}, "topic", "empty segment"),
        ({"topic": ".likes"}, "topic", "empty segment"),
        ({"topic": "likes..photo7"}, "topic", "empty segment"),
        ({"topic": None}, "topic", "must be text"),
        ({"uid": ""}, "uid", "1 to 128 bytes"),
        ({"body": {"url": "javascript:alert(1)"}}, "body.url", "must begin with http://"),
        ({"body": "text"}, "body", "must be an object"),
        ({"body": {"a": float("nan")}}, "body", "JSON cannot say"),
        ({"starts": 7}, "starts", "does not say its unit"),
        ({"expires": "1ms"}, "expires", "under a second"),
        ({"starts": "2h", "expires": "1h"}, "starts", "not before the expiry"),
    ],
)
def test_error_names_the_argument_and_says_what_is_wrong(
    arguments: dict[str, object], field: str, reason: str
) -> None:
    given = {"uid": "alice", "topic": "likes", "body": BODY, **arguments}
    with pytest.raises(InvalidMessage, match=reason) as raised:
        notification(**given)  # type: ignore[arg-type]
    assert raised.value.field == field


def test_large_body_is_refused() -> None:
    with pytest.raises(TooLarge) as raised:
        notification("alice", "likes", {"data": "x" * 70_000})
    assert raised.value.field == "body"


# What a device shows


def test_entries_are_the_newest_first_by_time() -> None:
    later = notification("alice", "likes", BODY, key="later", starts=TimeOrOffset(time=NOW + 5))
    old = notification("alice", "likes", BODY, key="old")
    state = facts_of(*later, *old).state(None, NOW + 10)
    assert [entry.key for entry in entries(state)] == ["later", "old"]


def test_what_is_no_notification_is_no_entry() -> None:
    assert (
        shown(
            create("alice", "inbox.likes", BODY),
            put("alice", "inboxes", BODY, key="a"),
            put("alice", "inbox.likes", BODY, key="x" * 249),
            put("alice", "inbox.likes", BODY, key="unread:b"),
            put("alice", "inbox." + "x" * 248, BODY, key="d"),
            put("alice", "settings", BODY, key="c"),
        )
        == []
    )


def test_marker_counts_only_with_its_notification() -> None:
    item, marker = notification("alice", "likes", BODY, key="a")
    assert shown(marker) == []
    assert shown(item) == [("a", False)]
    assert shown(item, put("alice", "unread.likes", key="a", msg_id="m")) == []  # takes its place
    assert shown(item, create("alice", "unread.likes")) == [("a", False)]


def test_marker_marks_the_notification_of_its_scope() -> None:
    item, _ = notification("alice", "likes", BODY, key="a")
    own = notification("alice", "likes", BODY, key="a", device_id="phone")
    assert shown(item, *own) == [("a", True), ("a", False)]


def test_topic_includes_the_topics_below_it() -> None:
    topics = ["likes", "likes.photo7", "likesome", "chat"]
    items = items_of(*(m for topic in topics for m in notification("alice", topic, BODY)))
    assert [entry.topic for entry in entries(items, "likes")] == ["likes.photo7", "likes"]
    assert unread_by_topic(entries(items)) == {"chat": 1, "likes": 2, "likesome": 1}


# Marking as unread


def test_marks_only_what_is_read_for_as_long_as_the_notification_lasts() -> None:
    item, _ = notification("alice", "likes", BODY, key="a", expires="1h", device_id="phone")
    unread = notification("alice", "chat", BODY, key="b")
    live = items_of(item, *unread)
    (message,) = marked_unread("alice", live, NOW + 10)
    assert message == put(
        "alice",
        "unread.likes",
        key="unread:a",
        expires=TimeOrOffset(time=NOW + HOUR),
        device_id="phone",
        msg_id=message.msg_id,
    )


def test_what_has_not_begun_is_marked_from_its_start_on() -> None:
    item, _ = notification("alice", "likes", BODY, key="a", starts="1h")
    (message,) = marked_unread("alice", facts_of(item).items.values(), NOW)
    assert message.creation is not None
    assert message.creation.starts == TimeOrOffset(time=NOW + HOUR)


# Undo


def undo_of(*taken: Item, live: tuple[Item, ...] = (), written: tuple[str, ...] = ()) -> list[str]:
    """The keys that an undo puts again."""
    messages = undone("alice", Undo(taken, written), live, NOW + 10)
    return [message.key or "" for message in messages]


def test_undo_puts_the_same_again() -> None:
    item, marker = items_of(
        *notification("alice", "likes", BODY, key="a", expires="1h", device_id="phone")
    )
    again = undone("alice", Undo((marker, item)), (), NOW + 10)
    assert [(m.key, m.device_id) for m in again] == [("a", "phone"), ("unread:a", "phone")]
    returned = [Item.of(message.stamp(NOW + 20 + n, 0)) for n, message in enumerate(again)]
    for old, new in zip((item, marker), returned, strict=True):
        assert new is not None
        assert new == msgspec.structs.replace(old, msg_id=new.msg_id, ctime=new.ctime)


def test_undo_leaves_what_is_newer() -> None:
    old = items_of(*notification("alice", "likes", BODY, key="a"))
    newer = items_of(*notification("alice", "likes", BODY, key="a"))
    assert undo_of(*old) == ["a", "unread:a"]
    assert undo_of(*old, live=newer) == []
    assert undo_of(*old, live=newer, written=tuple(i.msg_id for i in newer)) == ["a", "unread:a"]


def test_undo_returns_a_marker_only_where_its_notification_is() -> None:
    item, marker = items_of(*notification("alice", "likes", BODY, key="a"))
    assert undo_of(marker) == []
    assert undo_of(marker, live=(item,)) == ["unread:a"]


def test_undo_forgets_what_has_expired() -> None:
    taken = facts_of(*notification("alice", "likes", BODY, key="a", expires="1h")).items.values()
    undo = Undo(tuple(taken))
    assert len(undone("alice", undo, (), NOW + HOUR - 1)) == 2
    assert undone("alice", undo, (), NOW + HOUR + 1) == []


def test_undo_restores_a_start_that_is_still_to_come() -> None:
    taken = facts_of(*notification("alice", "likes", BODY, key="a", starts="1h")).items.values()
    (first, second) = undone("alice", Undo(tuple(taken)), (), NOW)
    assert [first.starts_at, second.starts_at] == [NOW + HOUR, NOW + HOUR + 1]


# Laws


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["likes", "chat.room1"]))))
def test_badge_is_the_count_of_markers(sent: list[tuple[str, str]]) -> None:
    """A backend counts the prefix `unread.`; a device counts its unread entries."""
    messages = [m for key, topic in sent for m in notification("alice", topic, BODY, key=key)]
    state = facts_of(*messages).state(None, NOW + len(messages))
    found = entries(state)
    assert sum(entry.unread for entry in found) == state.count("unread.")
    assert len(found) == len({key for key, _ in sent})
    assert sum(unread_by_topic(found).values()) == state.count("unread.")
