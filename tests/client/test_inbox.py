"""The inbox of devices: what is done on one is seen on all, and what is not seen stays unread.

Which messages an action writes is tested with the vectors of the inbox.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.client import Client, Inbox, MemoryStore
from gregor.client.store import RecordChanges
from gregor.core.inbox import Undo, notification
from gregor.core.instant import SECOND
from gregor.core.message import create, dismiss, dismiss_key, put
from gregor.errors import Conflict, InvalidMessage, StorageUnavailable
from tests.client.harness import ClientHarness, client_harness, event_summaries, on_virtual_time
from tests.vectors.inbox import ReplicaDevice

BODY = {"title": "Ann liked your photo"}


async def notify(harness: ClientHarness, *keys: str, topic: str = "likes", **options: Any) -> None:
    for key in keys:
        await harness.inject(*notification("alice", topic, BODY, key=key, **options))


def shown(device: Client) -> list[tuple[str, bool]]:
    """The keys that the inbox shows, and whether each is unread."""
    return [(entry.key, entry.unread) for entry in device.inbox.list()]


async def settled(*devices: Client) -> None:
    """Wait until all that was written has arrived everywhere."""
    for device in devices:
        await device.flush()
    for device in devices:
        await device.wait_synced()
    await asyncio.sleep(1)


@contextmanager
def offline(harness: ClientHarness) -> Iterator[None]:
    """While the block runs, no device has a connection."""
    harness.server.reachable = False
    harness.server.cut_all()
    yield
    harness.server.reachable = True


@on_virtual_time
async def test_what_is_done_on_one_device_is_seen_on_all() -> None:
    async with (
        client_harness() as harness,
        harness.device("phone") as phone,
        harness.device("laptop") as laptop,
    ):
        await notify(harness, "a", "b", "c")
        await settled(phone, laptop)
        assert shown(laptop) == [("c", True), ("b", True), ("a", True)]
        await phone.inbox.read("a", "b")
        await settled(phone)
        assert shown(laptop) == [("c", True), ("b", False), ("a", False)]
        await phone.inbox.unread("a")
        await phone.inbox.archive("c")
        await settled(phone)
        assert shown(laptop) == shown(phone) == [("b", False), ("a", True)]
        assert (await harness.state()).count("unread.") == laptop.inbox.unread_count() == 1


@on_virtual_time
async def test_read_all_offline_leaves_what_came_in_meanwhile() -> None:
    async with (
        client_harness() as harness,
        harness.device("phone") as phone,
        harness.device("laptop") as laptop,
    ):
        await notify(harness, "a", "b")
        await settled(phone, laptop)
        with offline(harness):
            assert await phone.inbox.read_all()
            assert phone.inbox.unread_count() == 0
            await notify(harness, "b", "c")  # b again
        await settled(phone, laptop)
        assert shown(phone) == shown(laptop) == [("c", True), ("b", True), ("a", False)]
        assert not await phone.inbox.read_all("chat")
        assert await phone.inbox.read_all("likes")
        await settled(phone)
        assert laptop.inbox.unread_count() == 0


@on_virtual_time
async def test_archive_offline_leaves_what_came_in_under_the_key() -> None:
    async with client_harness() as harness, harness.device("phone") as phone:
        await notify(harness, "a", "b")
        await settled(phone)
        with offline(harness):
            await phone.inbox.archive("a", "b")
            await notify(harness, "a")
        await settled(phone)
        assert shown(phone) == [("a", True)]


@on_virtual_time
async def test_snoozed_notification_comes_back_unread_on_devices_that_are_offline() -> None:
    async with (
        client_harness() as harness,
        harness.device("phone") as phone,
        harness.device("laptop") as laptop,
    ):
        await notify(harness, "a", "b", expires="1d")
        await settled(phone, laptop)
        assert await phone.inbox.snooze("a", "1h")
        await settled(phone)
        assert shown(phone) == shown(laptop) == [("b", True)]
        with offline(harness):
            events = laptop.events()
            await asyncio.sleep(3_590)
            assert laptop.inbox.unread_count() == 1
            await asyncio.sleep(10)
            assert shown(phone) == shown(laptop) == [("a", True), ("b", True)]
            created = [text for text in event_summaries(events) if "created" in text]
            assert sorted(created) == ["created inbox.likes", "created unread.likes"]


@on_virtual_time
async def test_snooze_can_be_undone_on_the_device_and_not_where_it_was_not_done() -> None:
    async with (
        client_harness() as harness,
        harness.device("phone") as phone,
        harness.device("laptop") as laptop,
    ):
        await notify(harness, "a")
        await settled(phone, laptop)
        undo = await phone.inbox.snooze("a", "1h")
        await settled(phone)
        assert await phone.inbox.undo(undo)
        await settled(phone)
        assert shown(phone) == shown(laptop) == [("a", True)]
        assert not await phone.inbox.undo(undo)
        assert not await phone.inbox.undo(Undo())


@on_virtual_time
async def test_undo_of_an_archive_spares_what_another_device_or_the_backend_has_sent() -> None:
    async with (
        client_harness() as harness,
        harness.device("phone") as phone,
        harness.device("laptop") as laptop,
    ):
        await notify(harness, "a", "b", "c")
        await settled(phone, laptop)
        undo = await phone.inbox.archive("a", "b", "c")
        await settled(phone)
        newer = put("alice", "inbox.likes", {"title": "newer"}, key="a")
        await harness.inject(newer)
        await settled(phone, laptop)
        assert await phone.inbox.undo(undo)
        await settled(phone, laptop)
        assert shown(laptop) == [("c", True), ("b", True), ("a", True)]
        assert laptop.inbox.list()[-1].body == {"title": "newer"}


@on_virtual_time
async def test_archived_on_one_device_and_marked_as_unread_on_another_is_not_counted() -> None:
    """The marker that remains is in the count of the server. Read all removes it."""
    async with (
        client_harness() as harness,
        harness.device("phone") as phone,
        harness.device("laptop") as laptop,
    ):
        await notify(harness, "a")
        await settled(phone, laptop)
        await phone.inbox.read("a")
        await settled(phone, laptop)
        with offline(harness):
            await phone.inbox.archive("a")
            await laptop.inbox.unread("a")
        await settled(phone, laptop)
        assert shown(phone) == shown(laptop) == []
        assert phone.inbox.unread_count() == 0
        assert phone.count("unread.") == 1
        await phone.inbox.read_all()
        await settled(phone)
        assert (await harness.state()).count() == 0


@on_virtual_time
async def test_hidden_notification_is_not_counted_on_its_device() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await notify(harness, "a", "b", msg_id=None)
        await settled(laptop)
        await laptop.hide(laptop.inbox.list()[0].item.msg_id)
        assert shown(laptop) == [("a", True)]
        assert laptop.inbox.unread_count() == 1


@on_virtual_time
async def test_action_leaves_a_hidden_notification_hidden() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await notify(harness, "a")
        await settled(laptop)
        await laptop.hide(laptop.inbox.list()[0].item.msg_id)
        assert not await laptop.inbox.undo(await laptop.inbox.archive("a"))
        assert not await laptop.inbox.unread("a")
        await settled(laptop)
        assert laptop.inbox.list() == []
        assert laptop.inbox.unread_count() == (await harness.state()).count("unread.") == 0


@on_virtual_time
async def test_counts_are_by_topic() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await notify(harness, "a", topic="likes.photo7")
        await notify(harness, "b", "c", topic="chat")
        await settled(laptop)
        await laptop.inbox.read("c")
        assert laptop.inbox.unread_by_topic() == {"chat": 1, "likes": 1}
        assert [laptop.inbox.unread_count(topic) for topic in ("likes", "chat", "mail")] == [
            1,
            1,
            0,
        ]
        assert [entry.key for entry in laptop.inbox.list("chat", limit=1)] == ["c"]


# A law

KEYS = st.sampled_from("abcd")
SENT = st.lists(st.tuples(KEYS, st.sampled_from(["likes", "likes.photo7", "chat"])), max_size=6)
BEFORE = st.lists(st.tuples(st.sampled_from(["read", "unread", "archive"]), KEYS), max_size=4)
UNDOABLE: list[tuple[str, tuple[Any, ...]]] = [
    ("read", ("a", "b")),
    ("read_all", ()),
    ("read_all", ("likes",)),
    ("archive", ("a", "c")),
    ("snooze", ("a", "1h")),
]


@given(SENT, BEFORE, st.sampled_from(UNDOABLE), st.booleans())
def test_undo_restores_what_was_shown(
    sent: list[tuple[str, str]],
    before: list[tuple[str, str]],
    action: tuple[str, tuple[Any, ...]],
    told: bool,
) -> None:
    """Whatever is in the inbox, and whether a node has told of it or the device has written it."""

    async def play() -> None:
        device = ReplicaDevice()
        messages = [m for key, topic in sent for m in notification("alice", topic, BODY, key=key)]
        if told:
            stamped = [m.stamp(device.now + n, 0) for n, m in enumerate(messages, start=1)]
            await device.change(lambda replica, _: replica.apply(stamped, device.now + 100))
        else:
            await device.write_all(messages)
        inbox = Inbox(device)
        for name, key in before:
            await getattr(inbox, name)(key)
        device.now += SECOND
        shown_before = {(entry.key, entry.unread) for entry in inbox.list()}
        name, arguments = action
        undo = await getattr(inbox, name)(*arguments)
        changed = {(entry.key, entry.unread) for entry in inbox.list()} != shown_before
        assert bool(undo) == changed
        assert await inbox.undo(undo) == changed
        assert {(entry.key, entry.unread) for entry in inbox.list()} == shown_before
        assert not await inbox.undo(undo)

    asyncio.run(play())


# One transaction


class CountingStore(MemoryStore):
    """Counts the saves that have changed the outbox, and fails on request."""

    fails = False

    def __init__(self) -> None:
        super().__init__()
        self.saves: list[int] = []  # how many messages each has added

    async def save(self, changes: RecordChanges) -> None:
        if self.fails:
            raise StorageUnavailable("the disk is full")
        self.saves.append(
            sum(kind == "outbox" and v is not None for (kind, _), v in changes.items())
        )
        await super().save(changes)


Act = Callable[[Inbox], Any]
ACTIONS: dict[str, tuple[Act, int]] = {
    "read": (lambda inbox: inbox.read("a", "b"), 1),
    "read all": (lambda inbox: inbox.read_all(), 1),
    "archive": (lambda inbox: inbox.archive("a", "b"), 1),
    "snooze": (lambda inbox: inbox.snooze("a", "1h"), 2),
    "unread": (lambda inbox: inbox.unread("c", "d"), 2),
}


@pytest.mark.parametrize("name", ACTIONS)
@on_virtual_time
async def test_action_is_one_transaction_of_the_store_and_one_frame(name: str) -> None:
    act, messages = ACTIONS[name]
    store = CountingStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await notify(harness, "a", "b", "c", "d")
        await harness.inject(dismiss_key("alice", "unread:c", "unread:d"))
        await settled(laptop)
        store.saves.clear()
        frames = consumes(harness)
        assert await act(laptop.inbox)
        assert [count for count in store.saves if count] == [messages]
        await settled(laptop)
        assert [len(frame["messages"]) for frame in frames] == [messages]


@pytest.mark.parametrize("name", ACTIONS)
@on_virtual_time
async def test_action_that_cannot_be_saved_changes_nothing(name: str) -> None:
    act, _ = ACTIONS[name]
    store = CountingStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await notify(harness, "a", "b", "c", "d")
        await harness.inject(dismiss_key("alice", "unread:c", "unread:d"))
        await settled(laptop)
        before, store.fails = shown(laptop), True
        with pytest.raises(StorageUnavailable):
            await act(laptop.inbox)
        assert shown(laptop) == before
        assert laptop.unsent_count == 0
        store.fails = False


@on_virtual_time
async def test_nothing_is_written_when_there_is_nothing_to_do() -> None:
    store = CountingStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await notify(harness, "a")
        await laptop.create("inbox.likes", BODY)
        await settled(laptop)
        store.saves.clear()
        for done in (
            await laptop.inbox.read("unknown"),
            await laptop.inbox.read(),
            await laptop.inbox.archive("unknown", "likes"),
            await laptop.inbox.snooze("unknown", "1h"),
            await laptop.inbox.unread("a", "unknown"),
            await laptop.inbox.read_all("chat"),
        ):
            assert not done
        assert not any(store.saves)


@on_virtual_time
async def test_actions_survive_a_restart() -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        await notify(harness, "a", "b")
        async with harness.device(store=store) as laptop:
            await settled(laptop)
            with offline(harness):
                await laptop.inbox.snooze("a", "1h")
                await laptop.inbox.read("b")
                await laptop.__aexit__(None, None, None)
            async with harness.device(store=store) as again:
                assert shown(again) == [("b", False)]
                await settled(again)
                await asyncio.sleep(3_600)
                assert shown(again) == [("a", True), ("b", False)]


@on_virtual_time
async def test_write_all_writes_all_messages_or_none() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        harness.server.reachable = False
        known = create("self", "mail", 1, msg_id="m1")
        await laptop.write(known)
        with pytest.raises(Conflict):
            await laptop.write_all(
                [create("self", "mail", msg_id="m2"), create("self", "mail", 2, msg_id="m1")]
            )
        assert [message.msg_id for message in laptop.replica.unsent()] == ["m1"]
        await laptop.write_all([known, dismiss("self", "m1", msg_id="m3")])
        assert [message.msg_id for message in laptop.replica.unsent()] == ["m1", "m3"]
        assert len(laptop.state()) == 0


@pytest.mark.parametrize(
    ("act", "field"),
    [
        (lambda inbox: inbox.read("x" * 249), "keys"),
        (lambda inbox: inbox.archive(7), "keys"),
        (lambda inbox: inbox.unread(""), "keys"),
        (lambda inbox: inbox.read_all("likes."), "topic"),
        (lambda inbox: inbox.snooze("a", "2h"), "until"),
        (lambda inbox: inbox.snooze("a", "-1s"), "until"),
        (lambda inbox: inbox.snooze("a", None), "until"),
        (lambda inbox: inbox.snooze("a", 7), "until"),
    ],
)
@on_virtual_time
async def test_error_names_the_argument(act: Act, field: str) -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await notify(harness, "a", expires="2h")
        await settled(laptop)
        with pytest.raises(InvalidMessage) as raised:
            await act(laptop.inbox)
        assert raised.value.field == field
        for wrong in ({"limit": 0}, {"limit": "1"}, {"topic": ""}):
            with pytest.raises(InvalidMessage):
                laptop.inbox.list(**wrong)


def consumes(harness: ClientHarness) -> list[Any]:
    """The consume frames that are sent from now on."""
    frames: list[Any] = []

    def note(frame: str) -> bool:
        decoded = msgspec.json.decode(frame)
        if decoded["type"] == "consume":
            frames.append(decoded)
        return False

    harness.server.lost = note
    return frames
