"""A database that does not have schema 0008 yet is served, and its migration is noticed at once."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import asyncpg
import pytest
from sqlalchemy import Connection

from gregor.core.history import DAY, Cutoff
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    InBandMessage,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
)
from gregor.core.state_page import StateQuery
from gregor.core.sync import After, PageLimits, Since
from gregor.errors import NotMigrated, SetupError
from gregor.interfaces import Erasure, Rejected, Slot, StateMachineOfRecord, Stored
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.migrations.upgrade import NEWEST, Upgrade
from gregor.stores.sql.sqlite import SQLiteConnection
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock
from tests.stores.sqlalchemy_migration import OnSQLAlchemy

EPOCH = 1_700_000_000 * SECOND
schema_0007 = Upgrade("0007")


class ServedBefore(NamedTuple):
    """A machine on a database of schema 0007, the reference beside it, and how to migrate."""

    url: str
    database: Database
    machine: SQLStateMachine
    reference: MemoryStateMachine
    clock: ManualClock

    async def consume(self, messages: Sequence[InBandMessage]) -> None:
        """Store messages in both, with equal outcomes."""
        outcomes = await self.machine.consume_messages(messages)
        assert outcomes == await self.reference.consume_messages(messages)

    async def migrate(self) -> None:
        """Migrate while the machine serves. It has not read the schema again."""
        if self.url == "sqlite://":
            NEWEST.on_sqlite(await self.database.read(driver_of))
        else:
            async with database_at(self.url, migrate):
                pass


def driver_of(connection: DatabaseConnection) -> sqlite3.Connection:
    assert isinstance(connection, SQLiteConnection)
    return connection.driver


@pytest.fixture
async def served(url: str) -> AsyncIterator[ServedBefore]:
    clock = ManualClock(EPOCH)
    async with (
        database_at(url, OnSQLAlchemy(schema_0007.run)) as database,
        SQLStateMachine(database, clock) as machine,
    ):
        yield ServedBefore(url, database, machine, MemoryStateMachine(clock), clock)


OLD = [
    create("ann", "a", 1, msg_id="1"),
    create("ann", "a", 2, msg_id="2", expires="10s"),
    create("ann", "b", 3, msg_id="3", device_id="d1"),
    create("bob", "a", 4, msg_id="4", device_id="d2"),
    dismiss("ann", "later"),
    create("ann", "a", 5, msg_id="5").stamp(EPOCH - 5 * SECOND, 0),
    dismiss_category("ann", "a", end_time=TimeOrOffset(time=EPOCH - SECOND), device_id="d1"),
    create("ann", "c", 6, msg_id="later"),
    create("ann", "a", 7, msg_id="7").stamp(EPOCH - 3 * SECOND, 0),
    create("ann", "a", 1, msg_id="1"),
    put("ann", "k", 1, msg_id="8"),
    put("ann", "k", 2, msg_id="9", starts="90s"),
    dismiss_key("ann", "z"),
    dismiss_category("ann", "z", scheduled=True),
]


async def read_all(machine: StateMachineOfRecord) -> list[object]:
    """What each method reads."""
    results: list[object] = []
    past, limits = TimeOrOffset(time=EPOCH), PageLimits(2, 1_000_000)
    for uid in ("ann", "bob"):
        for device_id in (None, "d1"):
            query = StateQuery(device_id, limit=2)
            page = await machine.state_page(uid, query)
            results += [page, await machine.state_page(uid, query, past)]
            if page.next is not None:
                results.append(await machine.state_page(uid, query, start=page.next))
            results.append(await machine.state_page(uid, StateQuery(device_id, key="a")))
            results.append(await machine.count(uid, device_id, ["", "a"]))
            results.append(list(await machine.in_band_messages_since(uid, device_id, past)))
            results.append(await machine.messages_page(uid, device_id, Since(0), limits))
            results.append(await machine.sync(uid, device_id, 0))
            clock = (await machine.ctimes([uid]))[uid]
            results.append(await machine.messages_page(uid, device_id, After(clock), limits))
            results.append(await machine.sync(uid, device_id, clock))
        results += [await machine.item_history(uid, msg_id) for msg_id in ("1", "4", "8", "later")]
    return results


async def test_what_there_was_before_is_served_before_and_after_the_migration(
    served: ServedBefore,
) -> None:
    await served.consume(OLD)
    assert await read_all(served.machine) == await read_all(served.reference)
    assert list(await served.machine.check_hashes(["ann", "bob"])) == []
    await served.migrate()
    assert await read_all(served.machine) == await read_all(served.reference)
    served.clock.now += 20 * SECOND
    new = create("ann", "b", msg_id="new")
    await served.consume([new, dismiss("ann", "1"), dismiss("bob", "4")])
    assert await read_all(served.machine) == await read_all(served.reference)
    await served.machine.read_schema()
    assert list(await served.machine.check_hashes(["ann", "bob"])) == []
    assert await read_all(served.machine) == await read_all(served.reference)


async def test_what_needs_the_migration_is_refused_until_it_has_happened(
    served: ServedBefore,
) -> None:
    machine, cutoff = served.machine, Cutoff(EPOCH - DAY, EPOCH - 2 * DAY)
    await served.consume(OLD)
    for refused in (lambda: machine.prune(cutoff), lambda: machine.erase("ann")):
        with pytest.raises(NotMigrated, match="run `gregor migrate`; retry"):
            await refused()
    assert await machine.erasure("ann") == Erasure()
    assert await read_all(machine) == await read_all(served.reference)
    await served.migrate()
    await machine.read_schema()
    assert (await machine.prune(cutoff)).last is not None
    erased = await machine.erase("ann")
    assert await machine.erasure("ann") == erased.erasure


async def test_author_is_stored_from_the_migration_on(served: ServedBefore) -> None:
    """The machine has not read the schema again."""
    for number in range(2):
        slot = Slot(create("ann", "a", msg_id=str(number)), author="service:mail")
        await served.machine.store([slot])
        assert isinstance(slot.outcome, Stored)
        if number == 0:
            await served.migrate()
    query = "SELECT author FROM messages ORDER BY ctime"
    authors = await served.database.read(lambda c: c.execute_sql(query))
    assert authors == [(None,), ("service:mail",)]


async def test_epoch_is_checked_before_the_migration_too(served: ServedBefore) -> None:
    """Nobody was ever erased: 0 is the epoch of all."""
    for epoch, kind in ((0, Stored), (None, Stored), (5, Rejected)):
        slot = Slot(create("ann", "a"), epoch=epoch)
        await served.machine.store([slot])
        assert isinstance(slot.outcome, kind)


async def test_migration_that_waits_for_a_batch_is_not_overtaken(
    postgresql_url: str,
) -> None:
    """The batch keeps the schema that it has asked for until its commit."""
    async with database_at(postgresql_url, OnSQLAlchemy(schema_0007.run)):
        pass
    batch = await asyncpg.connect(postgresql_url)
    await batch.execute("BEGIN; LOCK TABLE users IN ROW EXCLUSIVE MODE")
    with pytest.raises(SetupError, match="nothing has changed; try again"):
        async with database_at(postgresql_url, migrate):
            pass
    await batch.close()


async def test_batch_that_waits_for_the_migration_stores_its_author(postgresql_url: str) -> None:
    clock = ManualClock(EPOCH)
    async with (
        database_at(postgresql_url, OnSQLAlchemy(schema_0007.run)) as database,
        SQLStateMachine(database, clock) as machine,
    ):
        await machine.consume_message(create("ann", "a"))
        waiting: list[asyncio.Task[None]] = []

        def migrate_while_a_batch_waits(connection: Connection) -> None:
            NEWEST.run(connection)
            slot = Slot(put("ann", "a"), author="service:mail")
            waiting.append(asyncio.create_task(machine.store([slot])))
            is_waiting = "SELECT count(*) FROM pg_locks, pg_sleep(0.01) WHERE NOT granted"
            while not connection.exec_driver_sql(is_waiting).scalar_one():
                pass

        async with database_at(postgresql_url, OnSQLAlchemy(migrate_while_a_batch_waits)):
            await asyncio.gather(*waiting)
        query = "SELECT author FROM messages ORDER BY ctime"
        authors = await database.read(lambda c: c.execute_sql(query))
        assert authors == [(None,), ("service:mail",)]
        assert len(await machine.state("ann")) == 2
