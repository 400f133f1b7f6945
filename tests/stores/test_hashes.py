"""The hashes that are kept: computed when they are first needed, and repaired if they differ."""

from collections.abc import AsyncIterator

import pytest

from gregor.core.instant import SECOND
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category, put
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql.database import Database
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock

EPOCH = 1_700_000_000 * SECOND
MESSAGES = [
    create("ann", "a", msg_id="1"),
    create("ann", "a", msg_id="2", device_id="d1"),
    create("ann", "a", msg_id="3", expires="60s"),
    put("ann", "k", device_id="d2"),
    create("bob", "a"),
]


class Stores:
    """A machine on an SQL database, and the reference beside it."""

    def __init__(self, database: Database, machine: SQLStateMachine, clock: ManualClock) -> None:
        self.clock = clock
        self.machine = machine
        self._database = database
        self._reference = MemoryStateMachine(clock)

    async def consume(self, *messages: InBandMessage) -> None:
        for store in (self.machine, self._reference):
            await store.consume_messages(messages)

    async def execute(self, text: str) -> list[tuple[object, ...]]:
        return await self._database.write(lambda c: c.execute_sql(text))

    async def differing(self) -> set[tuple[str, str | None]]:
        """The users and devices whose hash is not what it should be."""
        return {
            (uid, device_id)
            for uid in ("ann", "bob")
            for device_id in (None, "d1", "d2", "d3")
            if (await self.machine.sync(uid, device_id, 0)).hash
            != (await self._reference.sync(uid, device_id, 0)).hash
        }


@pytest.fixture
async def stores(url: str) -> AsyncIterator[Stores]:
    clock = ManualClock(EPOCH)
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        stores = Stores(database, machine, clock)
        await stores.consume(*MESSAGES)
        yield stores


async def test_hash_that_is_not_computed_yet_is_read_from_the_items(stores: Stores) -> None:
    """As after the migration, until the user's next message."""
    await stores.execute("UPDATE users SET hash = NULL")
    await stores.execute("DELETE FROM scope_hashes")
    assert await stores.differing() == set()
    await stores.consume(dismiss("ann", "1"), create("ann", "a", device_id="d1"))
    assert await stores.differing() == set()
    rows = await stores.execute("SELECT uid FROM users WHERE hash IS NULL")
    assert rows == [("bob",)]
    assert list(await stores.machine.check_hashes(["ann", "bob"])) == []
    assert await stores.execute("SELECT uid FROM users WHERE hash IS NULL") == []
    stores.clock.now += 100 * SECOND
    assert await stores.differing() == set()


WRONG = f"{7:064x}"


@pytest.mark.parametrize(
    ("damage", "differing"),
    [
        (
            f"UPDATE users SET hash = '{WRONG}' WHERE uid = 'ann'",
            {("ann", None), ("ann", "d1"), ("ann", "d2"), ("ann", "d3")},
        ),
        (
            f"UPDATE scope_hashes SET hash = '{WRONG}'",
            {("ann", None), ("ann", "d1"), ("ann", "d2")},
        ),
        ("DELETE FROM scope_hashes WHERE device_id = 'd1'", {("ann", None), ("ann", "d1")}),
        (
            f"INSERT INTO scope_hashes (uid, device_id, hash) VALUES ('ann', 'd3', '{WRONG}')",
            {("ann", None), ("ann", "d3")},
        ),
    ],
)
async def test_hash_that_differs_is_found_once_and_repaired(
    stores: Stores, damage: str, differing: set[tuple[str, str | None]]
) -> None:
    assert list(await stores.machine.check_hashes(["ann", "bob", "unknown"])) == []
    await stores.execute(damage)
    assert await stores.differing() == differing
    assert list(await stores.machine.check_hashes(["ann", "bob", "unknown"])) == ["ann"]
    assert await stores.differing() == set()
    assert list(await stores.machine.check_hashes(["ann", "bob", "unknown"])) == []


async def test_check_of_unknown_users_stores_nothing(stores: Stores) -> None:
    assert list(await stores.machine.check_hashes(["unknown"])) == []
    assert sorted(await stores.execute("SELECT uid FROM users")) == [("ann",), ("bob",)]


async def test_hash_is_moved_to_the_present_by_a_write_after_minutes(stores: Stores) -> None:
    """So a reader has few expired items to correct."""
    query = "SELECT hashed_until FROM users WHERE uid = 'ann'"
    for seconds, until in ((200, EPOCH), (200, EPOCH + 400 * SECOND)):
        stores.clock.now += seconds * SECOND
        await stores.consume(create("ann", "a"))
        assert await stores.execute(query) == [(until,)]
        assert await stores.differing() == set()


async def test_item_that_dies_earlier_than_was_known_is_subtracted_once(stores: Stores) -> None:
    stores.clock.now += 10 * SECOND
    for dismissal in (
        dismiss("ann", "1"),
        dismiss("ann", "1").stamp(EPOCH + 5 * SECOND, 0),
        dismiss_category("ann", "a").stamp(EPOCH + 3 * SECOND, 0),
        put("ann", "k", device_id="d2").stamp(EPOCH + 2 * SECOND, 0),
        put("ann", "k", device_id="d2").stamp(EPOCH - 2 * SECOND, 0),
    ):
        await stores.consume(dismissal)
        assert await stores.differing() == set()
