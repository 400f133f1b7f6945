"""Defects of the original Gregor that its clients suffered from, and that this one has not."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gregor.client import MemoryStore, SQLiteStore
from gregor.client.replica import Replica
from gregor.client.store import Alterations, alterations
from gregor.core.message import create, dismiss, dismiss_category
from gregor.errors import StorageUnavailable
from tests.client.test_connection import Failing, lie_to
from tests.client.world import categories, in_no_time, story, world


@in_no_time
async def test_d13_a_resync_does_not_wipe_the_outbox() -> None:
    """On a hash mismatch the original cleared everything before it fetched the state anew: what
    was written offline and not yet sent was gone, and what was hidden was back."""
    async with world(machine=Failing) as w, w.device() as laptop:
        await w.backend(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        await laptop.hide("m")
        await lie_to(laptop)
        assert isinstance(w.machine, Failing)
        w.machine.failures = 3
        await laptop.create("unsent")
        w.server.cut_all()
        await asyncio.sleep(0.1)
        await laptop.wait_synced()
        assert (laptop.mismatches, laptop.outbox) == (1, 1)
        assert categories(laptop.state()) == ["unsent"]


@in_no_time
async def test_d14_a_resync_of_one_user_leaves_the_others_alone() -> None:
    """The original kept all users of a device in one state machine, and cleared it for all. Here
    each user has a client and a store, and a store knows whose it is."""
    async with world() as w, w.device(token="alice") as alices, w.device(token="bob") as bobs:
        await alices.wait_synced()
        await bobs.wait_synced()
        await alices.create("mail")
        await bobs.create("chat")
        await bobs.flush()
        await lie_to(alices)
        w.server.cut_all()
        await asyncio.sleep(10)
        assert (alices.mismatches, bobs.mismatches) == (1, 0)
        assert categories(bobs.state()) == ["chat"]


@in_no_time
async def test_d17_a_rejected_message_does_not_block_those_behind_it() -> None:
    """In the original a message that the server refused, for example a duplicate after a lost
    answer, stayed first in the outbox, and all later ones behind it, for ever."""
    async with world() as w:
        await w.backend(create("alice", "theirs", msg_id="taken"))
        async with w.device() as laptop:
            await laptop.wait_synced()
            w.lose("ack")
            await laptop.create("stored, but we did not hear of it")
            await laptop.create("refused", msg_id="taken")
            await laptop.create("behind")
            await laptop.flush()
            assert categories(await w.state())[-1] == "behind"
            assert [r.message.msg_id for r in laptop.rejected()] == ["taken"]


@in_no_time
async def test_d17_a_message_that_is_known_already_leaves_the_outbox() -> None:
    """In the original such a message was skipped but not removed, to be sent again, and shown
    again on top of the state, as soon as its item was dismissed."""
    async with world() as w, w.device() as laptop:
        await laptop.wait_synced()
        w.lose("ack")
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        assert not laptop.replica.outbox
        events = laptop.events()
        await w.backend(dismiss("alice", msg_id))
        await asyncio.sleep(60)
        assert categories(laptop.state()) == []
        assert story(events) == ["dismissed mail"]


@in_no_time
async def test_d21_dismissals_learned_by_a_sync_and_by_category_are_reported() -> None:
    """The original looked a dismissed item up in a state from which it had gone already, and for
    a category it did not look at all: nobody was told."""
    async with world() as w, w.device() as laptop:
        await w.backend(*(create("alice", c, msg_id=c) for c in ("a", "b.x", "b.y", "c")))
        await laptop.wait_synced()
        events = laptop.events()
        w.server.reachable = False
        w.server.cut_all()
        await w.backend(dismiss("alice", "a"), dismiss_category("alice", "b", prefix=True))
        w.server.reachable = True
        await asyncio.sleep(1)
        await laptop.wait_synced()
        told = [words for words in story(events) if words.startswith("dismissed")]
        assert told == ["dismissed a", "dismissed b.x", "dismissed b.y"]


def test_d22_a_creation_that_comes_again_after_its_dismissal_is_not_reported_again() -> None:
    """The original looked for repetitions among the live items only."""
    creation = create("u", "mail", msg_id="m").stamp(10, 0)
    replica = Replica("laptop").told([creation], 10, 20)
    replica = replica.told([dismiss("u", "m").stamp(11, 10)], 11, 20)
    for known in (replica, replica.forget(20)):
        assert not known.told([creation], 11, 20).visible(20)


@in_no_time
async def test_d24_what_is_hidden_does_not_grow_for_ever() -> None:
    """In the original a hidden id stayed unless a dismissal hit the item while it was there:
    not after a resync, an expiry, or the dismissal of its category."""
    store = MemoryStore()
    async with world() as w, w.device(store=store) as laptop:
        for n, category in enumerate(("by id", "by category", "by resync")):
            await w.backend(create("alice", category, msg_id=f"m{n}"))
        await w.backend(create("alice", "by time", dtime="1s", msg_id="m3"))
        await laptop.wait_synced()
        for n in range(4):
            await laptop.hide(f"m{n}")
        await laptop.hide("of nothing")
        assert len(laptop.replica.hidden) == 4
        await w.backend(dismiss("alice", "m0"), dismiss_category("alice", "by category"))
        await asyncio.sleep(120)
        w.server.reachable = False
        w.server.cut_all()
        await w.backend(dismiss("alice", "m2"), *(create("alice", "x") for _ in range(200)))
        w.server.reachable = True
        await asyncio.sleep(60)
        assert not laptop.replica.hidden
        assert not [key for key in store.records if key[0] == "hidden"]


class Torn(MemoryStore):
    """Counts how many saves there are, for one change must be one."""

    saves = 0

    async def save(self, changed: Alterations) -> None:
        self.saves += 1
        await super().save(changed)


@in_no_time
async def test_d25_a_change_is_saved_in_one_piece() -> None:
    """The original wrote the state and the outbox one after the other: a crash between the two
    lost a message, or sent it twice."""
    store = Torn()
    async with world() as w, w.device(store=store) as laptop:
        await laptop.wait_synced()
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        assert not laptop.replica.outbox
        replica = laptop.replica
        store.saves = 0
        told = [dismiss("alice", msg_id).stamp(replica.cursor + 1, replica.cursor)]
        await laptop.change(lambda r, now: r.told(told, replica.cursor + 1, now))
        assert store.saves == 1
        kinds = {key[0] for key in alterations(replica, laptop.replica)}
        assert kinds == {"device", "item"}  # the cursor moves with what it stands for


async def test_d25_a_save_that_fails_changes_nothing(tmp_path: Path) -> None:
    """All of a change, or none of it."""
    async with SQLiteStore(tmp_path / "device.db") as store:
        await store.save({("item", "a"): b"1"})
        bad: Any = ("item", None)
        with pytest.raises(StorageUnavailable):
            await store.save({("item", "b"): b"2", bad: b"3", ("item", "a"): None})
        assert await store.load() == {("item", "a"): b"1"}
