"""Defects of the original Gregor's clients, which this client does not have."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gregor.client import MemoryStore, SQLiteStore
from gregor.client.replica import Replica
from gregor.client.store import RecordChanges, changed_records
from gregor.core.message import create, dismiss, dismiss_category
from gregor.errors import StorageUnavailable
from tests.client.harness import categories, client_harness, event_summaries, on_virtual_time
from tests.client.test_connection import FailingStateMachine, corrupt_replica


@on_virtual_time
async def test_d13_resync_keeps_outbox() -> None:
    """On a hash mismatch, the original cleared everything before it fetched the state again: it
    lost the messages written offline, and showed the hidden items again."""
    async with (
        client_harness(machine_type=FailingStateMachine) as harness,
        harness.device() as laptop,
    ):
        await harness.inject(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        await laptop.hide("m")
        await corrupt_replica(laptop)
        assert isinstance(harness.machine, FailingStateMachine)
        harness.machine.failures = 3
        await laptop.create("unsent")
        harness.server.cut_all()
        await asyncio.sleep(0.1)
        await laptop.wait_synced()
        assert (laptop.mismatches, laptop.unsent_count) == (1, 1)
        assert categories(laptop.state()) == ["unsent"]


@on_virtual_time
async def test_d14_resync_of_one_user_does_not_affect_another() -> None:
    """The original kept all users of a device in one state machine, and cleared it for all. Here
    each user has a client and a store, and a store records its user."""
    async with (
        client_harness() as harness,
        harness.device(token="alice") as alice,
        harness.device(token="bob") as bob,
    ):
        await alice.wait_synced()
        await bob.wait_synced()
        await alice.create("mail")
        await bob.create("chat")
        await bob.flush()
        await corrupt_replica(alice)
        harness.server.cut_all()
        await asyncio.sleep(10)
        assert (alice.mismatches, bob.mismatches) == (1, 0)
        assert categories(bob.state()) == ["chat"]


@on_virtual_time
async def test_d17_rejected_message_does_not_block_later_ones() -> None:
    """In the original, a message that the server refused, for example a duplicate after a lost
    answer, stayed first in the outbox and blocked all later ones forever."""
    async with client_harness() as harness:
        await harness.inject(create("alice", "stored", msg_id="known"))
        async with harness.device() as laptop:
            await laptop.wait_synced()
            harness.lose_frame("ack")
            await laptop.create("stored, but the ack is lost")
            await laptop.create("conflicting", msg_id="known")
            await laptop.create("later")
            await laptop.flush()
            assert categories(await harness.state())[-1] == "later"
            assert [r.message.msg_id for r in laptop.rejected()] == ["known"]


@on_virtual_time
async def test_d17_duplicate_message_leaves_outbox() -> None:
    """The original skipped such a message but did not remove it from the outbox. As soon as the
    item was dismissed, the message was sent again, and shown again on top of the state."""
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        harness.lose_frame("ack")
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        assert not laptop.replica.outbox
        events = laptop.events()
        await harness.inject(dismiss("alice", msg_id))
        await asyncio.sleep(60)
        assert categories(laptop.state()) == []
        assert event_summaries(events) == ["dismissed mail"]


@on_virtual_time
async def test_d21_dismissals_by_sync_and_by_category_are_reported() -> None:
    """The original looked a dismissed item up in a state that no longer had it, and did not look
    at all for a category: the dismissals were not reported."""
    async with client_harness() as harness, harness.device() as laptop:
        await harness.inject(*(create("alice", c, msg_id=c) for c in ("a", "b.x", "b.y", "c")))
        await laptop.wait_synced()
        events = laptop.events()
        harness.server.reachable = False
        harness.server.cut_all()
        await harness.inject(dismiss("alice", "a"), dismiss_category("alice", "b", prefix=True))
        harness.server.reachable = True
        await asyncio.sleep(1)
        await laptop.wait_synced()
        reported = [text for text in event_summaries(events) if text.startswith("dismissed")]
        assert reported == ["dismissed a", "dismissed b.x", "dismissed b.y"]


def test_d22_creation_repeated_after_dismissal_is_not_shown() -> None:
    """The original looked for repeated creations among the live items only."""
    creation = create("u", "mail", msg_id="m").stamp(10, 0)
    replica = Replica("laptop").apply([creation], 10)
    replica = replica.apply([dismiss("u", "m").stamp(11, 10)], 11)
    assert not replica.apply([creation], 11).visible(20)


@on_virtual_time
async def test_d24_hidden_ids_are_forgotten_with_their_items() -> None:
    """In the original, a hidden id was removed only by a dismissal of its id while the item was
    known: not by a resync, an expiry, or the dismissal of its category."""
    store = MemoryStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        for n, category in enumerate(("by id", "by category", "by resync")):
            await harness.inject(create("alice", category, msg_id=f"m{n}"))
        await harness.inject(create("alice", "by expiry", expires="1s", msg_id="m3"))
        await laptop.wait_synced()
        for n in range(4):
            await laptop.hide(f"m{n}")
        await laptop.hide("unknown")
        assert len(laptop.replica.hidden) == 4
        await harness.inject(dismiss("alice", "m0"), dismiss_category("alice", "by category"))
        await asyncio.sleep(120)
        harness.server.reachable = False
        harness.server.cut_all()
        await harness.inject(dismiss("alice", "m2"), *(create("alice", "x") for _ in range(200)))
        harness.server.reachable = True
        await asyncio.sleep(60)
        assert not laptop.replica.hidden
        assert not [key for key in store.records if key[0] == "hidden"]


class SaveCountingStore(MemoryStore):
    """Counts the saves: each is one transaction."""

    saves = 0

    async def save(self, changes: RecordChanges) -> None:
        self.saves += 1
        await super().save(changes)


@on_virtual_time
async def test_d25_change_is_saved_in_one_transaction() -> None:
    """The original saved the state and the outbox in two steps: a crash between them lost a
    message, or sent it twice."""
    store = SaveCountingStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await laptop.wait_synced()
        msg_id = await laptop.create("mail")
        await laptop.flush()
        await asyncio.sleep(1)
        assert not laptop.replica.outbox
        replica = laptop.replica
        store.saves = 0
        received = [dismiss("alice", msg_id).stamp(replica.cursor + 1, replica.cursor)]
        await laptop.change(lambda current, now: current.apply(received, replica.cursor + 1))
        assert store.saves == 1
        kinds = {key[0] for key in changed_records(replica, laptop.replica)}
        assert kinds == {"device", "item"}  # the cursor is saved with the facts


async def test_d25_failed_save_changes_nothing(tmp_path: Path) -> None:
    """A change is atomic: a store saves all of its records or none."""
    async with SQLiteStore(tmp_path / "device.db") as store:
        await store.save({("item", "a"): b"1"})
        invalid_key: Any = ("item", None)
        with pytest.raises(StorageUnavailable):
            await store.save({("item", "b"): b"2", invalid_key: b"3", ("item", "a"): None})
        assert await store.load() == {("item", "a"): b"1"}
