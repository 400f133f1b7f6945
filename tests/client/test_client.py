"""What a person sees on a device, and what a program hears of it."""

import asyncio

import pytest

from gregor.client import Created, MemoryStore, Offline, PassedBy
from gregor.client.events import Subscription
from gregor.client.store import Alterations
from gregor.core.message import create, dismiss, dismiss_category, replace
from gregor.errors import (
    Conflict,
    HistoryForgotten,
    InvalidMessage,
    StorageUnavailable,
    Unavailable,
)
from gregor.testing import virtual_time
from tests.client.world import categories, in_no_time, story, world


@in_no_time
async def test_a_client_opens_and_writes_without_a_server() -> None:
    async with world() as w:
        w.server.reachable = False
        async with w.device() as laptop:
            msg_id = await laptop.create("mail", {"from": "bob"})
            assert laptop.state().items[0].msg_id == msg_id
            assert laptop.state().items[0].body == {"from": "bob"}
            assert (laptop.count("ma"), laptop.count("x"), laptop.outbox) == (1, 0, 1)
            assert not laptop.online


@in_no_time
async def test_what_one_device_writes_the_others_show() -> None:
    async with world() as w, w.device("laptop") as laptop, w.device("phone") as phone:
        await phone.wait_synced()
        events = phone.events()
        msg_id = await laptop.create("mail")
        await phone.dismiss(await _created(events))
        await asyncio.sleep(1)
        assert msg_id not in laptop.state()
        assert len(await w.state()) == 0


async def _created(events: Subscription) -> str:
    async for event in events:
        if isinstance(event, Created):
            return event.item.msg_id
    raise AssertionError("nothing was created")


@in_no_time
async def test_one_creation_is_reported_once_however_often_it_arrives() -> None:
    """From the outbox, an ack that is lost, a duplicate's ack, the feed, and a resync."""
    async with world() as w, w.device() as laptop:
        events = laptop.events()
        w.lose("ack")
        await laptop.create("mail")
        await laptop.flush()
        w.server.cut_all()
        await laptop.create("chat")
        await laptop.flush()
        await asyncio.sleep(1)
        heard = [words for words in story(events) if words.startswith("created")]
        assert heard == ["created mail", "created chat"]
        assert len(await w.state()) == 2


@in_no_time
async def test_a_restarted_device_reports_nothing_that_it_has_shown_before() -> None:
    async with world() as w:
        store = MemoryStore()
        async with w.device(store=store) as laptop:
            await laptop.create("mail")
            await laptop.flush()
        async with w.device(store=store) as laptop:
            events = laptop.events()
            await laptop.wait_synced()
            assert categories(laptop.state()) == ["mail"]
            assert story(events) == ["online", "synced"]


@in_no_time
async def test_what_was_written_offline_survives_a_restart_and_is_delivered() -> None:
    async with world() as w:
        store = MemoryStore()
        w.server.reachable = False
        async with w.device(store=store) as laptop:
            await laptop.create("mail")
            await laptop.replace("theme", "dark")
        w.server.reachable = True
        async with w.device(store=store) as laptop:
            await laptop.flush()
            assert categories(await w.state()) == ["mail", "theme"]


@in_no_time
async def test_an_item_expires_when_its_time_comes_and_listeners_hear_of_it() -> None:
    async with world() as w, w.device() as laptop:
        await laptop.create("typing", dtime="90s")
        await laptop.flush()
        events = laptop.events()
        await asyncio.sleep(89)
        assert story(events) == []
        await asyncio.sleep(2)
        assert story(events) == ["expired typing"]
        assert len(laptop.state()) == 0


@in_no_time
async def test_the_offset_of_an_unsent_message_does_not_run() -> None:
    """It counts from the ctime, which the message does not have yet."""
    async with world() as w:
        w.server.reachable = False
        async with w.device() as laptop:
            events = laptop.events()
            await laptop.create("reminder", dtime="1m")
            await asyncio.sleep(3600)
            assert story(events) == ["created reminder"]
            w.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(61)
            assert [s for s in story(events) if "reminder" in s] == ["expired reminder"]


@in_no_time
async def test_a_replaced_value_is_reported_as_replaced_here_and_elsewhere() -> None:
    async with world() as w, w.device("laptop") as laptop, w.device("phone") as phone:
        await laptop.replace("theme", "dark")
        await laptop.flush()
        await phone.wait_synced()
        await asyncio.sleep(1)
        here, there = laptop.events(), phone.events()
        await laptop.replace("theme", "light")
        await asyncio.sleep(1)
        assert story(here) == story(there) == ["replaced theme", "created theme"]
        assert [item.body for item in phone.state()] == ["light"]


@in_no_time
async def test_a_hidden_item_stays_on_the_other_devices() -> None:
    async with world() as w, w.device("laptop") as laptop, w.device("phone") as phone:
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        events = laptop.events()
        await laptop.hide(msg_id)
        assert story(events) == ["dismissed mail"]
        assert (laptop.count(), phone.count()) == (0, 1)


@in_no_time
async def test_an_item_for_this_device_is_nobody_elses() -> None:
    async with world() as w, w.device("laptop") as laptop, w.device("phone") as phone:
        await phone.wait_synced()
        await laptop.create("window", {"x": 1}, this_device=True)
        await laptop.create("call", device_id="phone")
        await laptop.flush()
        await asyncio.sleep(1)
        assert categories(laptop.state()) == ["window"]
        assert categories(phone.state()) == ["call"]


@in_no_time
async def test_a_category_is_dismissed_with_all_below_it() -> None:
    async with world() as w, w.device() as laptop:
        for category in ("chat", "chat.room", "mail"):
            await laptop.create(category)
        await laptop.dismiss_category("chat", prefix=True)
        assert categories(laptop.state()) == ["mail"]
        await laptop.flush()
        assert categories(await w.state()) == ["mail"]


@in_no_time
async def test_out_of_band_messages_go_once_and_only_when_connected() -> None:
    async with world() as w, w.device("laptop") as laptop, w.device("phone") as phone:
        with pytest.raises(Unavailable):
            await laptop.out_of_band("typing", {"room": 7})
        await laptop.wait_synced()
        await phone.wait_synced()
        events = phone.events()
        await laptop.out_of_band("typing", {"room": 7})
        await asyncio.sleep(1)
        assert events.waiting() == [PassedBy("typing", {"room": 7})]


@in_no_time
async def test_an_out_of_band_message_whose_fate_is_unknown_is_not_sent_again() -> None:
    async with world() as w, w.device("laptop") as laptop, w.device("phone") as phone:
        await laptop.wait_synced()
        await phone.wait_synced()
        events = phone.events()
        w.lose("ack")
        with pytest.raises(Unavailable):
            await laptop.out_of_band("typing")
        await asyncio.sleep(60)
        assert story(events) == ["passedby"]


@in_no_time
async def test_the_past_is_exact_back_to_the_last_sync_and_not_further() -> None:
    async with world() as w, w.device() as laptop:
        await laptop.wait_synced()
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        shown = virtual_time.clock()
        await asyncio.sleep(1)
        await laptop.dismiss(msg_id)
        await laptop.flush()
        await asyncio.sleep(1)
        assert categories(laptop.state()) == []
        assert categories(laptop.state(at=shown)) == ["mail"]
        w.server.cut_all()
        await asyncio.sleep(10)
        with pytest.raises(HistoryForgotten):
            laptop.state(at=shown)


@in_no_time
async def test_what_the_data_model_forbids_is_refused_at_once() -> None:
    async with world() as w, w.device() as laptop:
        with pytest.raises(InvalidMessage):
            await laptop.create("")
        await laptop.create("mail", 1, msg_id="m")
        assert await laptop.create("mail", 1, msg_id="m") == "m"
        with pytest.raises(Conflict):
            await laptop.create("mail", 2, msg_id="m")
        assert laptop.outbox == 1


@in_no_time
async def test_a_rejected_message_is_reported_and_holds_up_nothing() -> None:
    async with world() as w:
        await w.backend(create("alice", "theirs", msg_id="taken"))
        w.server.reachable = False
        async with w.device() as laptop:
            events = laptop.events()
            await laptop.create("before")
            await laptop.create("mine", msg_id="taken")
            await laptop.create("after")
            w.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(1)
            assert categories(laptop.state()) == ["theirs", "before", "after"]
            (rejected,) = laptop.rejected()
            assert (rejected.message.msg_id, rejected.error.code) == ("taken", "conflict")
            assert "rejected" in story(events)
            await laptop.discard("taken")
            assert laptop.rejected() == []


@in_no_time
async def test_events_that_a_message_did_not_cause_are_not_blamed_on_it() -> None:
    async with world() as w, w.device() as laptop:
        await w.backend(create("alice", "a", msg_id="a"), create("alice", "b", msg_id="b"))
        await laptop.wait_synced()
        events = laptop.events()
        await w.backend(dismiss("alice", "a"), replace("alice", "c", 1))
        await w.backend(dismiss_category("alice", "b"))
        await asyncio.sleep(1)
        assert sorted(story(events)) == ["created c", "dismissed a", "dismissed b"]


class Full(MemoryStore):
    """A store on a disk that is full for a while."""

    full = False

    async def save(self, alterations: Alterations) -> None:
        if self.full:
            raise StorageUnavailable("the disk is full")
        await super().save(alterations)


@in_no_time
async def test_what_cannot_be_saved_is_neither_shown_nor_sent() -> None:
    store = Full()
    async with world() as w, w.device(store=store) as laptop:
        await laptop.wait_synced()
        store.full = True
        with pytest.raises(StorageUnavailable):
            await laptop.create("mail")
        assert (len(laptop.state()), laptop.outbox) == (0, 0)
        await w.backend(create("alice", "chat"))
        await asyncio.sleep(10)
        assert len(laptop.state()) == 0
        store.full = False
        await laptop.wait_synced()
        assert categories(laptop.state()) == ["chat"]


@in_no_time
async def test_writes_that_wait_together_are_saved_together() -> None:
    store = Full()
    async with world() as w, w.device(store=store) as laptop:
        await asyncio.gather(*(laptop.create("mail", n) for n in range(100)))
        assert [item.body for item in laptop.state()] == list(range(100))
        with pytest.raises(Conflict):
            await asyncio.gather(
                laptop.create("mail", 1, msg_id="m"),
                laptop.create("mail", 2, msg_id="m"),
                laptop.create("mail", 3, msg_id="n"),
            )
        assert laptop.count() == 102


@in_no_time
async def test_a_client_that_is_closed_takes_nothing_and_ends_its_events() -> None:
    async with world() as w:
        async with w.device() as laptop:
            events = laptop.events()
        assert [event async for event in events] == []
        with pytest.raises(Unavailable):
            await laptop.create("mail")


@in_no_time
async def test_what_the_block_raises_leaves_it_as_it_is() -> None:
    async with world() as w:
        with pytest.raises(KeyError):
            async with w.device():
                raise KeyError("the caller's own")


@in_no_time
async def test_a_defect_in_the_background_cancels_the_block() -> None:
    async def connect() -> object:
        raise ZeroDivisionError("a defect")

    async with world() as w:
        with pytest.raises(ExceptionGroup) as caught:
            async with w.device(connect=connect):  # type: ignore[arg-type]
                await asyncio.sleep(3600)
        assert caught.group_contains(ZeroDivisionError)


@in_no_time
async def test_listeners_hear_when_the_connection_comes_and_goes() -> None:
    async with world() as w, w.device() as laptop:
        events = laptop.events()
        await laptop.wait_synced()
        w.server.cut_all()
        await asyncio.sleep(60)
        assert story(events) == ["online", "synced", "offline", "online", "synced"]
        assert Offline("x") != Offline("x", final=True)
