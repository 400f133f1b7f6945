"""Keys, starts and snoozes on devices: offline, on several of them, and by wrong clocks."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

import pytest

from gregor.client import Client, MemoryStore
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import Dismissal, Range, create, dismiss_key, put
from gregor.core.state import State
from gregor.errors import Conflict, InvalidMessage
from gregor.testing import virtual_time
from tests.client.harness import (
    ClientHarness,
    categories,
    client_harness,
    event_summaries,
    on_virtual_time,
)


def bodies(state: State) -> list[Any]:
    return [item.body for item in state]


def body_of(client: Client, key: str) -> Any:
    item = client.get(key)
    return None if item is None else item.body


def go_offline(harness: ClientHarness) -> None:
    harness.server.reachable = False
    harness.server.cut_all()


# Keys


@on_virtual_time
async def test_last_put_wins_on_all_devices() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await laptop.put("setting.theme", "dark", key="theme")
        await laptop.put("setting.theme", "light", key="theme")
        await laptop.flush()
        await phone.wait_synced()
        await asyncio.sleep(1)
        go_offline(harness)
        await phone.put("setting.color", "blue", key="theme")
        assert (body_of(phone, "theme"), body_of(laptop, "theme")) == ("blue", "light")
        harness.server.reachable = True
        await phone.flush()
        await laptop.wait_synced()
        await asyncio.sleep(1)
        states = [laptop.state(), phone.state(), await harness.state()]
        assert [bodies(state) for state in states] == [["blue"]] * 3


@on_virtual_time
async def test_value_of_this_device_comes_before_that_of_all() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await laptop.put("zoom", 150, this_device=True)
        await laptop.put("zoom", 100)
        await laptop.flush()
        await phone.wait_synced()
        await asyncio.sleep(1)
        assert (body_of(laptop, "zoom"), body_of(phone, "zoom")) == (150, 100)
        assert len(laptop.state()) == 2
        assert laptop.get("other") is None
        await laptop.hide(await _item_of(laptop, "zoom"))
        assert body_of(laptop, "zoom") == 100


async def _item_of(client: Client, key: str) -> str:
    item = client.get(key)
    assert item is not None
    return item.msg_id


@on_virtual_time
async def test_dismissed_key_leaves_what_this_device_has_not_seen_and_what_others_see() -> None:
    async with client_harness() as harness, harness.device("laptop") as laptop:
        await harness.inject(
            put("alice", "draft", "seen", msg_id="seen"),
            put("alice", "draft", "on the phone", device_id="phone"),
        )
        await laptop.wait_synced()
        go_offline(harness)
        await laptop.put("draft", "written here", starts="1h", device_id="laptop")
        await harness.inject(put("alice", "draft", "not seen", msg_id="later"))
        await laptop.dismiss_key("draft")
        assert (len(laptop.state()), body_of(laptop, "draft")) == (0, None)
        harness.server.reachable = True
        await laptop.flush()
        await laptop.wait_synced()
        await asyncio.sleep(3601)
        assert bodies(await harness.state()) == ["on the phone", "not seen"]
        assert bodies(laptop.state()) == ["not seen"]


@on_virtual_time
async def test_dismissals_of_a_device_spare_what_only_another_device_shows() -> None:
    async with client_harness() as harness, harness.device("laptop") as laptop:
        await harness.inject(create("alice", "chat", "theirs", device_id="phone"))
        await laptop.wait_synced()
        await laptop.create("chat", "ours")
        await laptop.dismiss_category("chat")
        await laptop.dismiss_category("chat", end_time="0s")
        await laptop.dismiss_category("chat", scheduled=True, end_time="0s")
        await laptop.flush()
        assert bodies(await harness.state()) == ["theirs"]


# Starts


@on_virtual_time
async def test_item_begins_on_devices_that_are_offline_at_that_moment() -> None:
    async with (
        client_harness() as harness,
        harness.device("laptop") as laptop,
        harness.device("phone") as phone,
    ):
        await harness.inject(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        await phone.wait_synced()
        await laptop.snooze("m", "1h")
        await laptop.flush()
        await asyncio.sleep(1)
        go_offline(harness)
        events = [device.events() for device in (laptop, phone)]
        await asyncio.sleep(3597)
        assert (laptop.count(), phone.count()) == (0, 0)
        [each.take_pending() for each in events]
        await asyncio.sleep(2)
        assert [event_summaries(each) for each in events] == [["created mail"]] * 2
        assert (laptop.count("mail"), phone.count("mail")) == (1, 1)


@on_virtual_time
async def test_start_is_waited_for_after_a_restart() -> None:
    store = MemoryStore()
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device(store=store) as laptop:
            await laptop.create("mail", starts="1h")
        async with harness.device(store=store) as laptop:
            events = laptop.events()
            await asyncio.sleep(3601)
            assert "created mail" in event_summaries(events)


@on_virtual_time
async def test_clock_that_is_set_back_hides_what_had_begun() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.create("mail", starts="1m")
        await laptop.flush()
        events = laptop.events()
        await asyncio.sleep(61)
        laptop.node_told_time(virtual_time.clock() - 30 * SECOND, laptop.clock.monotonic())
        assert (event_summaries(events), len(laptop.state())) == (
            ["created mail", "dismissed mail"],
            0,
        )
        await asyncio.sleep(30)
        assert (event_summaries(events), len(laptop.state())) == (["created mail"], 1)


@on_virtual_time
async def test_state_has_what_was_reported_while_it_was_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        begins = laptop.clock.now() + 5 * SECOND
        for time in (begins, begins + 1):
            await laptop.create("reminders", starts=TimeOrOffset(time=time))
        events = laptop.events()
        readings = count(begins)  # the clock goes on each time it is read
        monkeypatch.setattr(laptop.clock, "now", lambda: next(readings))
        state = laptop.state()
        assert event_summaries(events) == ["created reminders"] * len(state) != []


@on_virtual_time
async def test_state_of_a_later_time_has_what_begins_until_then() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.create("mail", starts="1m")
        assert categories(laptop.state()) == []
        assert categories(laptop.state(at="59s")) == []
        assert categories(laptop.state(at="1m")) == ["mail"]
        await laptop.flush()


# Snoozing


@on_virtual_time
async def test_snoozed_item_keeps_key_category_scope_body_and_expiry() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.put("mail", {"n": 1}, key="k", expires="2h", this_device=True)
        (before,) = laptop.state()
        new_id = await laptop.snooze(before.msg_id, "1h")
        assert (laptop.get("k"), len(laptop.state())) == (None, 0)
        await laptop.flush()
        await asyncio.sleep(3600)
        (after,) = laptop.state()
        for part in ("category", "body", "key", "device_id", "expires_at"):
            assert getattr(after, part) == getattr(before, part), part
        assert (after.msg_id, laptop.replica.facts.items.get(before.msg_id)) == (new_id, None)


@on_virtual_time
async def test_item_without_a_key_is_snoozed_by_one_message() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await harness.inject(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        events = laptop.events()
        await laptop.snooze("m", "1h", new_msg_id="again")
        (message,) = laptop.replica.unsent()
        assert (message.msg_id, message.dismissal) == ("again", Dismissal(("m",)))
        await laptop.flush()
        assert event_summaries(events) == ["replaced mail"]
        assert len(await harness.state()) == 0
        await asyncio.sleep(3601)
        assert event_summaries(events) == ["created mail"]


@on_virtual_time
async def test_snooze_that_cannot_be_is_refused_by_name() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await harness.inject(
            create("alice", "mail", expires="1h", msg_id="brief"),
            create("alice", "mail", starts="1h", msg_id="early"),
            create("alice", "mail", msg_id="hidden"),
        )
        await laptop.wait_synced()
        await laptop.hide("hidden")
        for msg_id in ("early", "hidden", "unknown"):
            with pytest.raises(InvalidMessage, match=msg_id):
                await laptop.snooze(msg_id, "1m")
        for until in ("1h", "2h"):
            with pytest.raises(InvalidMessage, match="until"):
                await laptop.snooze("brief", until)
        with pytest.raises(InvalidMessage, match="until"):
            await laptop.snooze("brief", None)
        assert laptop.unsent_count == 0
        assert await laptop.snooze("brief", "59m")


# What is meant


@on_virtual_time
async def test_everything_up_to_now_includes_what_is_not_yet_sent() -> None:
    async with client_harness() as harness:
        await harness.inject(create("alice", "chat", "not yet told"))
        harness.server.reachable = False
        async with harness.device() as laptop:
            await laptop.create("chat", "before", msg_id="before")
            await laptop.create("chat", "begins later", starts="1h", msg_id="scheduled")
            await asyncio.sleep(1)
            await laptop.dismiss_category("chat", end_time="0s", msg_id="d")
            now = virtual_time.clock()
            dismissal = laptop.replica.outbox["d"].message.dismissal
            end = TimeOrOffset(time=now)
            assert dismissal == Dismissal(("before",), (Range("chat", end_time=end),))
            await asyncio.sleep(1)
            await laptop.create("chat", "after")
            assert bodies(laptop.state()) == ["after"]
            await asyncio.sleep(1)
            await harness.inject(create("alice", "chat", "arrived since"))
            harness.server.reachable = True
            await laptop.flush()
            assert bodies(await harness.state()) == ["arrived since", "after"]
            await asyncio.sleep(3600)
            assert bodies(laptop.state()) == ["arrived since", "after", "begins later"]


@on_virtual_time
async def test_category_dismissal_takes_what_has_begun_since_the_device_was_told() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await harness.inject(
            create("alice", "mail", "begins", starts="1m", msg_id="m"),
            create("alice", "mail", "begins later", starts="1h"),
        )
        await laptop.wait_synced()
        await asyncio.sleep(61)
        await laptop.dismiss_category("mail", msg_id="d")
        dismissal = laptop.replica.outbox["d"].message.dismissal
        assert dismissal is not None
        assert dismissal.msg_ids == ("m",)
        await laptop.flush()
        await asyncio.sleep(3600)
        assert bodies(laptop.state()) == bodies(await harness.state()) == ["begins later"]
        await laptop.dismiss_category("mail", scheduled=True)
        assert len(laptop.state()) == 0


# The same message again

LATER = TimeOrOffset(time=virtual_time.START + 7201 * SECOND)


@on_virtual_time
async def test_same_message_with_offsets_is_idempotent_while_the_device_knows_it() -> None:
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            for _ in range(2):
                await laptop.create("mail", 1, starts="1h", expires="2h", msg_id="m")
                await laptop.dismiss_category("chat", end_time="-1m", msg_id="d")
                await laptop.dismiss_key("a", "b", msg_id="k")
                await asyncio.sleep(1)
            assert laptop.unsent_count == 3
            harness.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(1)
            assert not laptop.replica.outbox
            await laptop.create("mail", 1, starts="1h", expires="2h", msg_id="m")
            assert laptop.unsent_count == 0
            await laptop.create("mail", 1, starts="1h", expires=LATER, msg_id="m")
            assert laptop.unsent_count == 1  # the node decides: this expiry is another one


@on_virtual_time
async def test_other_message_with_the_same_id_is_a_conflict() -> None:
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            await laptop.create("mail", 1, expires="2h", msg_id="m")
            await laptop.dismiss_category("chat", end_time="-1m", msg_id="d")
            await laptop.dismiss_key("a", msg_id="k")
            attempts: tuple[Callable[[], Awaitable[str]], ...] = (
                lambda: laptop.create("mail", 1, expires="3h", msg_id="m"),
                lambda: laptop.create("mail", 2, expires="2h", msg_id="m"),
                lambda: laptop.put("mail", 1, expires="2h", msg_id="m"),
                lambda: laptop.create("mail", 1, starts="1h", expires="2h", msg_id="m"),
                lambda: laptop.dismiss_category("chat", end_time="-2m", msg_id="d"),
                lambda: laptop.dismiss_category("mail", end_time="-1m", msg_id="d"),
                lambda: laptop.dismiss_key("b", msg_id="k"),
                lambda: laptop.dismiss_key("a", end_time="0s", msg_id="k"),
                lambda: laptop.write(dismiss_key("alice", "a", msg_id="m")),
            )
            for again in attempts:
                with pytest.raises(Conflict):
                    await again()
            assert laptop.unsent_count == 3


@on_virtual_time
async def test_start_that_is_not_before_the_expiry_is_refused() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        soon = TimeOrOffset(time=virtual_time.clock() + 60 * SECOND)
        for starts, expires in (("1h", "1h"), ("1h", soon), (soon, "60s")):
            with pytest.raises(InvalidMessage, match="starts"):
                await laptop.create("mail", starts=starts, expires=expires)
        assert laptop.unsent_count == 0
