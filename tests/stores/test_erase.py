"""Erased users: what goes, what stays, and who is before or after."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from gregor.core.instant import SECOND
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category, dismiss_key, put
from gregor.core.sync import Snapshot
from gregor.errors import Erased, HistoryForgotten, Resync
from gregor.interfaces import Erasure, Rejected, Slot, Stored
from gregor.stores.sql import erase, statements
from gregor.stores.sql.database import Database
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import TABLES_OF_BUCKETS, PrunedMessage
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock

START = 1_700_000_000 * SECOND


class ErasingStore(NamedTuple):
    database: Database
    machine: SQLStateMachine
    clock: ManualClock

    async def rows(self, table: str, uid: str) -> int:
        query = f"SELECT count(*) FROM {table} WHERE uid = '{uid}'"
        ((rows,),) = await self.database.read(lambda c: c.execute_sql(query))
        assert isinstance(rows, int)
        return rows


@pytest.fixture
async def store(url: str) -> AsyncIterator[ErasingStore]:
    clock = ManualClock(START)
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        yield ErasingStore(database, machine, clock)


def everything(uid: str) -> list[InBandMessage]:
    """Messages that leave rows in every table of a user."""
    return [
        create(uid, "mail", "a body", msg_id="1"),
        create(uid, "mail", device_id="phone", msg_id="2"),
        put(uid, "volume", 1),
        put(uid, "volume", 2),
        dismiss(uid, "1"),
        dismiss(uid, "arrives later"),
        dismiss_category(uid, "chat"),
        dismiss_key(uid, "volume"),
    ]


async def fill(store: ErasingStore, uid: str) -> None:
    await store.machine.consume_messages(everything(uid))
    pruned = PrunedMessage(uid, "pruned", 5, "digest")
    await store.database.write(lambda c: c.insert(statements.INSERT_PRUNED, [pruned]))
    assert all([await store.rows(table, uid) for table in TABLES_OF_BUCKETS])


async def test_everything_of_the_user_goes_but_the_clock_and_the_erasure(
    store: ErasingStore,
) -> None:
    for uid in ("ann", "bob"):
        await fill(store, uid)
    bob = await store.machine.sync("bob", None, 0)
    assert await store.machine.erasure("ann") == Erasure()
    store.clock.now += SECOND
    result = await store.machine.erase("ann")
    assert result.erasure == Erasure(store.clock.now, store.clock.now)
    assert result.pending == ()
    left = {table: await store.rows(table, "ann") for table in TABLES_OF_BUCKETS}
    assert left == dict.fromkeys(TABLES_OF_BUCKETS, 0) | {"users": 1}
    assert await store.machine.erasure("ann") == result.erasure
    assert await store.machine.ctime("ann") == result.erasure.epoch
    assert (await store.machine.sync("bob", None, 0)).hash == bob.hash


async def test_user_with_many_rows_is_erased_in_parts(
    store: ErasingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement is limited in time, and a user may have a million ids."""
    monkeypatch.setattr(erase, "MAX_ROWS_DELETED", 2)
    for number in range(5):
        await store.machine.consume_messages(
            [create("ann", "mail"), dismiss("ann", f"{number}"), dismiss_category("ann", "chat")]
        )
    pruned = [PrunedMessage("ann", f"pruned {n}", n, "digest") for n in range(1, 6)]
    await store.database.write(lambda c: c.insert(statements.INSERT_PRUNED, pruned))
    await fill(store, "bob")
    await store.machine.erase("ann")
    left = {table: await store.rows(table, "ann") for table in TABLES_OF_BUCKETS}
    assert left == dict.fromkeys(TABLES_OF_BUCKETS, 0) | {"users": 1}
    assert all([await store.rows(table, "bob") for table in TABLES_OF_BUCKETS])


async def test_erased_user_begins_a_new_life(store: ErasingStore) -> None:
    await fill(store, "ann")
    epoch = (await store.machine.erase("ann")).erasure.epoch
    sync = await store.machine.sync("ann", None, 0)
    assert (sync.epoch, sync.cursor, sync.content) == (epoch, epoch, Snapshot())
    (again,) = await store.machine.consume_messages([create("ann", "mail", msg_id="1")])
    assert isinstance(again, Stored)  # its id and its dismissal are forgotten
    assert (again.message.prev, again.dead) == (epoch, False)
    assert again.message.ctime > epoch
    assert len(await store.machine.state("ann")) == 1
    assert await store.machine.check_hashes(["ann"]) == []


async def test_each_erase_begins_a_new_epoch(store: ErasingStore) -> None:
    """Also of a user who is not known, and while the clock stands still."""
    first = (await store.machine.erase("zoe")).erasure
    second = (await store.machine.erase("zoe")).erasure
    assert first == Erasure(START, START)
    assert second == Erasure(START + 1, START)
    assert await store.machine.erasure("zoe") == second


async def test_epoch_is_after_all_that_was_stored_although_the_clock_goes_back(
    store: ErasingStore,
) -> None:
    (sent,) = await store.machine.consume_messages([create("ann", "mail")])
    assert isinstance(sent, Stored)
    store.clock.now -= 5 * SECOND
    erasure = (await store.machine.erase("ann")).erasure
    assert erasure == Erasure(sent.message.ctime + 1, store.clock.now)
    assert len(await store.machine.state("ann")) == 0


async def test_message_of_an_earlier_epoch_is_refused(store: ErasingStore) -> None:
    epoch = (await store.machine.erase("ann")).erasure.epoch
    slots = [Slot(create("ann", "mail"), epoch=known) for known in (0, epoch, epoch + 1, None)]
    await store.machine.store(slots)
    early, current, late, unchecked = (slot.outcome for slot in slots)
    assert isinstance(early, Rejected)
    assert isinstance(early.error, Erased)
    assert early.error.epoch == epoch
    assert isinstance(late, Rejected)
    assert isinstance(late.error, Resync)
    assert isinstance(current, Stored)
    assert isinstance(unchecked, Stored)


async def test_message_stamped_before_the_erase_is_refused(store: ErasingStore) -> None:
    epoch = (await store.machine.erase("ann")).erasure.epoch
    (outcome,) = await store.machine.consume_messages([create("ann", "mail").stamp(epoch, 0)])
    assert isinstance(outcome, Rejected)
    assert isinstance(outcome.error, HistoryForgotten)


async def test_messages_stored_during_an_erase_are_before_or_after_it(store: ErasingStore) -> None:
    """Each is gone, or is part of the new life; a batch is never torn."""
    for _ in range(20):
        batches = [[Slot(create("ann", "mail")), Slot(create("ann", "chat"))] for _ in range(6)]
        async with asyncio.TaskGroup() as tasks:
            for batch in batches[:3]:
                tasks.create_task(store.machine.store(batch))
            erasing = tasks.create_task(store.machine.erase("ann"))
            for batch in batches[3:]:
                tasks.create_task(store.machine.store(batch))
        epoch = erasing.result().erasure.epoch
        left = {item.msg_id for item in (await store.machine.state("ann")).items}
        for batch in batches:
            ctimes = [stored_message(slot).ctime for slot in batch]
            assert len({ctime > epoch for ctime in ctimes}) == 1
            for slot in batch:
                assert (slot.message.msg_id in left) == (stored_message(slot).ctime > epoch)
        assert await store.machine.check_hashes(["ann"]) == []


def stored_message(slot: Slot) -> InBandMessage:
    assert isinstance(slot.outcome, Stored), slot.outcome
    return slot.outcome.message
