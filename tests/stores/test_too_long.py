"""Messages that take too long to store cost the user who has sent them, and no other."""

import asyncio
from collections.abc import Sequence
from operator import methodcaller

import pytest

from gregor.clock import now
from gregor.core.message import create
from gregor.errors import Unavailable
from gregor.interfaces import Rejected, Slot, Stored, StoreOutcome
from gregor.stores.sql.database import Database, DatabaseConnection, TransactionTooLong
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.sqlite import SQLiteDatabase
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at

SECONDS = 0.2  # longer than what a user without slow messages needs

# What is stored for the users eve and mal takes the database some seconds.
SLOW_ON_SQLITE = (
    """
    CREATE TRIGGER slow AFTER INSERT ON messages WHEN new.uid IN ('eve', 'mal') BEGIN
        SELECT count(*) FROM (
            WITH RECURSIVE counted(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted)
            SELECT n FROM counted LIMIT 10000000
        );
    END
    """,
)
SLOW_ON_POSTGRESQL = (
    """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$
    """,
    """
    CREATE TRIGGER slow AFTER INSERT ON messages FOR EACH ROW
    WHEN (new.uid IN ('eve', 'mal')) EXECUTE FUNCTION wait()
    """,
)


async def outcomes_of(url: str, *uids: str) -> list[StoreOutcome | BaseException]:
    """What comes of a message to each of these users, sent at the same time."""
    async with database_at(url, migrate, seconds=1) as database:
        await slow_down(database)
        async with SQLStateMachine(database, now, transaction_seconds=SECONDS) as machine:
            sent = (machine.consume_messages([create(uid, "a")]) for uid in uids)
            results = await asyncio.gather(*sent, return_exceptions=True)
    return [result if isinstance(result, BaseException) else result[0] for result in results]


async def slow_down(database: Database) -> None:
    is_sqlite = isinstance(database, SQLiteDatabase)
    for statement in SLOW_ON_SQLITE if is_sqlite else SLOW_ON_POSTGRESQL:
        await database.write(methodcaller("execute_sql", statement))


async def test_user_whose_messages_take_too_long_fails_alone(url: str) -> None:
    ada, eve, bob = await outcomes_of(url, "ada", "eve", "bob")
    assert isinstance(ada, Stored)
    assert isinstance(eve, Rejected)
    assert isinstance(eve.error, Unavailable)
    assert isinstance(bob, Stored)


async def test_user_who_is_alone_is_told_and_the_store_stays_healthy(url: str) -> None:
    async with database_at(url, migrate, seconds=1) as database:
        await slow_down(database)
        async with SQLStateMachine(database, now, transaction_seconds=SECONDS) as machine:
            (eve,) = await machine.consume_messages([create("eve", "a")])
            assert await machine.problems() == []
    assert isinstance(eve, Rejected)
    assert isinstance(eve.error, TransactionTooLong)


async def test_several_users_whose_messages_take_too_long_fail_alone(url: str) -> None:
    eve, mal, ada = await outcomes_of(url, "eve", "mal", "ada")
    assert [type(outcome) for outcome in (eve, mal, ada)] == [Rejected, Rejected, Stored]


async def test_work_that_takes_too_long_stores_nothing() -> None:
    def insert_slowly(connection: DatabaseConnection) -> None:
        connection.give_up_after(SECONDS)
        connection.execute_sql(
            "INSERT INTO messages (uid, ctime, prev, msg_id, message) VALUES ('eve', 1, 0, 'm', '')"
        )

    async with database_at("sqlite://", migrate) as database:
        await slow_down(database)
        with pytest.raises(TransactionTooLong):
            await database.write(insert_slowly)
        count = await database.read(lambda c: c.execute_sql("SELECT count(*) FROM messages"))
        assert count == [(0,)]


@pytest.mark.parametrize("others", [0, 1])
async def test_nothing_is_stored_after_messages_that_took_too_long(
    url: str, monkeypatch: pytest.MonkeyPatch, others: int
) -> None:
    """A batch takes several commits, of which the first takes too long for one of its users."""
    commits = 0
    store = SQLStateMachine._store_slots

    async def slow_at_first(self: SQLStateMachine, slots: Sequence[Slot]) -> list[StoreOutcome]:
        nonlocal commits
        commits += 1
        if commits <= 2 and any(slot.message.uid == "eve" for slot in slots):
            raise TransactionTooLong("it takes too long")
        return await store(self, slots)

    monkeypatch.setattr(SQLStateMachine, "_store_slots", slow_at_first)
    uids = ["eve", *["ada"] * others]
    batch = [create(uid, "a") for _ in range(200) for uid in uids]
    async with database_at(url, migrate) as database, SQLStateMachine(database, now) as machine:
        outcomes, (bob,) = await asyncio.gather(
            machine.consume_messages(batch), machine.consume_messages([create("bob", "a")])
        )
        stored = {uid: len((await machine.state(uid)).items) for uid in uids}
    assert isinstance(bob, Stored)
    assert stored == {uid: 0 if uid == "eve" else 200 for uid in uids}
    for message, outcome in zip(batch, outcomes, strict=True):
        assert isinstance(outcome, Rejected if message.uid == "eve" else Stored)


async def test_statements_on_a_server_have_the_time_of_one_together(postgresql_url: str) -> None:
    """None of them is too slow for its session."""
    asked = 0

    def ask_again_and_again(connection: DatabaseConnection) -> None:
        nonlocal asked
        connection.give_up_after(SECONDS)
        while asked < 100:
            asked += 1
            connection.execute_sql("SELECT pg_sleep(0.05)")

    async with database_at(postgresql_url, migrate, seconds=1) as database:
        with pytest.raises(TransactionTooLong):
            await database.write(ask_again_and_again)
        assert 1 < asked <= 1 + 1 / 0.05
        assert await database.write(lambda c: c.execute_sql("SELECT 1")) == [(1,)]
