"""The visible state of a client, and the events that it emits."""

import asyncio
from pathlib import Path

import pytest

from gregor.client import Created, MemoryStore, Offline, OutOfBandReceived, SQLiteStore
from gregor.client.events import Subscription
from gregor.client.store import RecordChanges
from gregor.core.instant import TimeOrOffset
from gregor.core.message import create, dismiss, dismiss_category, put
from gregor.errors import (
    Conflict,
    HistoryForgotten,
    InvalidMessage,
    SetupError,
    StorageUnavailable,
    Unavailable,
)
from gregor.testing import virtual_time
from tests.client.harness import categories, client_harness, event_summaries, on_virtual_time


@on_virtual_time
async def test_client_opens_and_writes_while_server_is_unreachable() -> None:
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            msg_id = await laptop.create("mail", {"from": "bob"})
            assert laptop.state().items[0].msg_id == msg_id
            assert laptop.state().items[0].body == {"from": "bob"}
            assert (laptop.count("ma"), laptop.count("x"), laptop.unsent_count) == (1, 0, 1)
            assert (laptop.count_by_segment(), laptop.count_by_segment("x")) == ({"mail": 1}, {})
            assert not laptop.online


@on_virtual_time
async def test_writes_of_two_devices_reach_each_other() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await phone.wait_synced()
        events = phone.events()
        msg_id = await laptop.create("mail")
        await phone.dismiss(await _first_created(events))
        await asyncio.sleep(1)
        assert msg_id not in laptop.state()
        assert len(await harness.state()) == 0


async def _first_created(events: Subscription) -> str:
    async for event in events:
        if isinstance(event, Created):
            return event.item.msg_id
    raise AssertionError("nothing was created")


@on_virtual_time
async def test_creation_that_arrives_repeatedly_is_reported_once() -> None:
    """From the outbox, a lost ack, the ack of a duplicate, a publication, and a sync."""
    async with client_harness() as harness, harness.device() as laptop:
        events = laptop.events()
        harness.lose_frame("ack")
        await laptop.create("mail")
        await laptop.flush()
        harness.server.cut_all()
        await laptop.create("chat")
        await laptop.flush()
        await asyncio.sleep(1)
        created = [text for text in event_summaries(events) if text.startswith("created")]
        assert created == ["created mail", "created chat"]
        assert len(await harness.state()) == 2


@on_virtual_time
async def test_restarted_device_does_not_report_known_items_again() -> None:
    async with client_harness() as harness:
        store = MemoryStore()
        async with harness.device(store=store) as laptop:
            await laptop.create("mail")
            await laptop.flush()
        async with harness.device(store=store) as laptop:
            events = laptop.events()
            await laptop.wait_synced()
            assert categories(laptop.state()) == ["mail"]
            assert event_summaries(events) == ["online", "synced"]


@on_virtual_time
async def test_offline_writes_survive_restart_and_are_delivered() -> None:
    async with client_harness() as harness:
        store = MemoryStore()
        harness.server.reachable = False
        async with harness.device(store=store) as laptop:
            await laptop.create("mail")
            await laptop.put("theme", "dark")
        harness.server.reachable = True
        async with harness.device(store=store) as laptop:
            await laptop.flush()
            assert categories(await harness.state()) == ["mail", "theme"]


@on_virtual_time
async def test_item_expiry_is_reported_when_it_is_due() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.create("typing", expires="90s")
        await laptop.flush()
        events = laptop.events()
        await asyncio.sleep(89)
        assert event_summaries(events) == []
        await asyncio.sleep(2)
        assert event_summaries(events) == ["expired typing"]
        assert len(laptop.state()) == 0


@on_virtual_time
async def test_offsets_count_from_when_a_message_is_written() -> None:
    """And not from when the device has a network again."""
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            events = laptop.events()
            await laptop.create("reminder", starts="1m", expires="2m")
            for expected in (["offline"], ["created reminder"], ["expired reminder"], []):
                assert event_summaries(events) == expected
                await asyncio.sleep(60)
            await laptop.create("reminder", starts="3m")
            await asyncio.sleep(120)
            harness.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(61)
            assert categories(await harness.state()) == ["reminder"]


@on_virtual_time
async def test_replaced_value_is_reported_as_replaced_on_all_devices() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await laptop.put("theme", "dark")
        await laptop.flush()
        await phone.wait_synced()
        await asyncio.sleep(1)
        laptop_events, phone_events = laptop.events(), phone.events()
        await laptop.put("theme", "light")
        await asyncio.sleep(1)
        expected = ["replaced theme", "created theme"]
        assert event_summaries(laptop_events) == event_summaries(phone_events) == expected
        assert [item.body for item in phone.state()] == ["light"]


@on_virtual_time
async def test_hidden_item_stays_visible_on_other_devices() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        events = laptop.events()
        await laptop.hide(msg_id)
        assert event_summaries(events) == ["dismissed mail"]
        assert (laptop.count(), phone.count()) == (0, 1)


@on_virtual_time
async def test_device_scoped_item_is_visible_on_its_device_only() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await phone.wait_synced()
        await laptop.create("window", {"x": 1}, this_device=True)
        await laptop.create("call", device_id="phone")
        await laptop.flush()
        await asyncio.sleep(1)
        assert categories(laptop.state()) == ["window"]
        assert categories(phone.state()) == ["call"]


@on_virtual_time
async def test_dismiss_category_with_prefix_includes_subcategories() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        for category in ("chat", "chat.room", "mail"):
            await laptop.create(category)
        await laptop.dismiss_category("chat", prefix=True)
        assert categories(laptop.state()) == ["mail"]
        await laptop.flush()
        assert categories(await harness.state()) == ["mail"]


@on_virtual_time
async def test_all_marked_as_read_offline_leaves_what_arrived_meanwhile() -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        await harness.inject(create("alice", "chat", "seen"))
        async with harness.device("phone", store=store) as phone:
            await phone.wait_synced()
            harness.server.reachable = False
            harness.server.cut_all()
            await phone.create("chat", "written offline")
            await phone.dismiss_category("chat")
            assert len(phone.state()) == 0
            await harness.inject(create("alice", "chat", "never seen"))
            harness.server.reachable = True
            await phone.flush()
            await phone.wait_synced()
            assert [item.body for item in phone.state()] == ["never seen"]
        assert [item.body for item in await harness.state()] == ["never seen"]


@on_virtual_time
async def test_category_dismissed_before_the_first_sync_takes_own_items_only() -> None:
    async with client_harness() as harness:
        await harness.inject(create("alice", "chat", "not yet seen"))
        async with harness.device() as laptop:
            await laptop.create("chat", "own")
            await laptop.dismiss_category("chat")
            await laptop.flush()
            assert [item.body for item in await harness.state()] == ["not yet seen"]
            await laptop.dismiss_category("chat", end_time="0s")
            await laptop.flush()
            assert len(await harness.state()) == 0


@on_virtual_time
async def test_out_of_band_message_needs_connection_and_arrives_once() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        with pytest.raises(Unavailable):
            await laptop.out_of_band("typing", {"room": 7})
        await laptop.wait_synced()
        await phone.wait_synced()
        events = phone.events()
        await laptop.out_of_band("typing", {"room": 7})
        await asyncio.sleep(1)
        assert events.take_pending() == [OutOfBandReceived("typing", {"room": 7})]


@on_virtual_time
async def test_out_of_band_message_with_lost_ack_is_not_retried() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await laptop.wait_synced()
        await phone.wait_synced()
        events = phone.events()
        harness.lose_frame("ack")
        with pytest.raises(Unavailable):
            await laptop.out_of_band("typing")
        await asyncio.sleep(60)
        assert event_summaries(events) == ["out of band typing"]


@on_virtual_time
async def test_past_state_is_exact_or_forgotten() -> None:
    """A device forgets the past with the items of it, and while it is away."""
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        await asyncio.sleep(1)
        before = TimeOrOffset(time=virtual_time.clock())
        await asyncio.sleep(1)
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        assert categories(laptop.state()) == ["mail"]
        assert categories(laptop.state(at=before)) == []
        await laptop.dismiss(msg_id)
        await laptop.flush()
        await asyncio.sleep(1)
        with pytest.raises(HistoryForgotten):
            laptop.state(at=before)
        since_then = TimeOrOffset(time=virtual_time.clock())
        assert categories(laptop.state(at=since_then)) == []
        await asyncio.sleep(1)
        harness.server.cut_all()
        await harness.inject(create("alice", "chat"))
        await asyncio.sleep(10)
        with pytest.raises(HistoryForgotten):
            laptop.state(at=since_then)


@on_virtual_time
async def test_invalid_or_conflicting_write_is_refused_at_once() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        with pytest.raises(InvalidMessage):
            await laptop.create("")
        await laptop.create("mail", 1, msg_id="m")
        assert await laptop.create("mail", 1, msg_id="m") == "m"
        with pytest.raises(Conflict):
            await laptop.create("mail", 2, msg_id="m")
        assert laptop.unsent_count == 1


@on_virtual_time
async def test_rejected_message_is_reported_and_does_not_block_outbox() -> None:
    async with client_harness() as harness:
        await harness.inject(create("alice", "stored", msg_id="known"))
        harness.server.reachable = False
        async with harness.device() as laptop:
            events = laptop.events()
            await laptop.create("before")
            await laptop.create("conflicting", msg_id="known")
            await laptop.create("after")
            harness.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(1)
            assert categories(laptop.state()) == ["stored", "before", "after"]
            (rejected,) = laptop.rejected()
            assert (rejected.message.msg_id, rejected.error.code) == ("known", "conflict")
            assert "rejected known" in event_summaries(events)
            await laptop.discard("known")
            assert laptop.rejected() == []


@on_virtual_time
async def test_dismissals_by_other_messages_are_not_reported_as_replaced() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await harness.inject(create("alice", "a", msg_id="a"), create("alice", "b", msg_id="b"))
        await laptop.wait_synced()
        events = laptop.events()
        await harness.inject(dismiss("alice", "a"), put("alice", "c", 1))
        await harness.inject(dismiss_category("alice", "b"))
        await asyncio.sleep(1)
        assert sorted(event_summaries(events)) == ["created c", "dismissed a", "dismissed b"]


class StoreOnFullDisk(MemoryStore):
    """A store whose saves fail while `is_full` is set."""

    is_full = False

    async def save(self, changes: RecordChanges) -> None:
        if self.is_full:
            raise StorageUnavailable("the disk is full")
        await super().save(changes)


@on_virtual_time
async def test_change_that_cannot_be_saved_is_neither_shown_nor_sent() -> None:
    store = StoreOnFullDisk()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await laptop.wait_synced()
        store.is_full = True
        with pytest.raises(StorageUnavailable):
            await laptop.create("mail")
        assert (len(laptop.state()), laptop.unsent_count) == (0, 0)
        await harness.inject(create("alice", "chat"))
        await asyncio.sleep(10)
        assert len(laptop.state()) == 0
        store.is_full = False
        await laptop.wait_synced()
        assert categories(laptop.state()) == ["chat"]


@on_virtual_time
async def test_concurrent_writes_keep_order_and_conflict_fails_alone() -> None:
    store = StoreOnFullDisk()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await asyncio.gather(*(laptop.create("mail", n) for n in range(100)))
        assert [item.body for item in laptop.state()] == list(range(100))
        with pytest.raises(Conflict):
            await asyncio.gather(
                laptop.create("mail", 1, msg_id="m"),
                laptop.create("mail", 2, msg_id="m"),
                laptop.create("mail", 3, msg_id="n"),
            )
        assert laptop.count() == 102


async def test_client_that_is_opened_twice_is_refused_and_goes_on(tmp_path: Path) -> None:
    async with client_harness() as harness:
        store = SQLiteStore(tmp_path / "device.db")
        async with harness.device(store=store) as laptop:
            with pytest.raises(SetupError, match="opened once"):
                await laptop.__aenter__()
            await laptop.create("mail")
            await laptop.flush()
        with pytest.raises(SetupError, match="opened once"):
            async with laptop:
                pass


@on_virtual_time
async def test_closed_client_refuses_writes_and_ends_subscriptions() -> None:
    async with client_harness() as harness:
        async with harness.device() as laptop:
            events = laptop.events()
        assert [event async for event in events] == []
        with pytest.raises(Unavailable):
            await laptop.create("mail")


@on_virtual_time
async def test_exception_of_caller_leaves_client_block_unwrapped() -> None:
    async with client_harness() as harness:
        with pytest.raises(KeyError):
            async with harness.device():
                raise KeyError("the caller's own")


@on_virtual_time
async def test_reconnect_is_reported_as_offline_online_and_synced() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        events = laptop.events()
        await laptop.wait_synced()
        harness.server.cut_all()
        await asyncio.sleep(60)
        assert event_summaries(events) == ["online", "synced", "offline", "online", "synced"]
        assert Offline("x") != Offline("x", final=True)
