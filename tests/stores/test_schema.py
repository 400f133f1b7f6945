"""Which code may write to a database, and which nodes run on it (decision 29)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gregor.clock import now
from gregor.core.message import create
from gregor.errors import Action, NodeTooOld, NotMigrated, SetupError, StorageUnavailable
from gregor.shards.shard_map import merge_placements
from gregor.stores.sql import statements, tables
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.migrations import finish, migrate, roll_back
from gregor.stores.sql.migrations.upgrade import Upgrade
from gregor.stores.sql.schema import SILENCE, Schema, existing_schema, register, running_nodes
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import NodeRow
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.tables import NEWEST_REVISION, OLDEST_WRITERS
from tests.stores.sqlalchemy_migration import OnSQLAlchemy
from tests.timeouts import TIMEOUT_SECONDS

NEXT = f"{int(NEWEST_REVISION) + 1:04}"  # code of the next version
PREVIOUS = f"{int(NEWEST_REVISION) - 1:04}"
TOO_OLD = f"{int(OLDEST_WRITERS[NEWEST_REVISION]) - 1:04}"


def allow_only(revision: str) -> Callable[[DatabaseConnection], object]:
    """What `gregor migrate --finish` does, run by the code of this revision."""
    return lambda c: c.execute(statements.SET_OLDEST_WRITER, revision=revision)


def run_node(name: str, revision: str) -> Callable[[DatabaseConnection], object]:
    """Register a node with this code."""
    return lambda c: c.execute_rows(statements.REGISTER_NODE, [NodeRow(name, revision)])


def found(connection: DatabaseConnection) -> list[NodeRow]:
    return running_nodes(connection, NEWEST_REVISION)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Database, SQLStateMachine]]:
    async with (
        database_at(url, migrate) as database,
        SQLStateMachine(database, now, clock_check_seconds=1_000) as machine,
    ):
        yield database, machine


# Who may write


async def test_node_that_has_become_too_old_writes_nothing_and_says_why(url: str) -> None:
    async with opened(url) as (database, machine):
        await machine.consume_message(create("ann", "mail"))
        await database.write(allow_only(NEXT))
        with pytest.raises(NodeTooOld, match=f"schema {NEWEST_REVISION}.*{NEXT}.*upgrade") as error:
            await machine.consume_message(create("ann", "mail"))
        assert (error.value.code, error.value.action) == ("unavailable", Action.RETRY)
        assert await machine.problems() == [error.value.message]
        with pytest.raises(NodeTooOld):
            await database.write(lambda c: merge_placements(c, []))
        assert len(await machine.state("ann")) == 1  # it still reads


async def test_batch_that_waited_for_the_switch_of_the_oldest_writer_is_refused(
    postgresql_url: str,
) -> None:
    """The switch waits for the batches under way, and later ones wait for it and see it."""
    async with opened(postgresql_url) as (_, machine):
        switching = await asyncpg.connect(postgresql_url)
        await switching.execute("BEGIN; LOCK TABLE users IN SHARE MODE")
        sending = asyncio.create_task(machine.consume_message(create("ann", "mail")))
        waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not await switching.fetchval(waiting):  # noqa: ASYNC110 (no event to wait for)
                await asyncio.sleep(0.01)
        await switching.execute(f"UPDATE oldest_writer SET revision = '{NEXT}'; COMMIT")
        with pytest.raises(NodeTooOld):
            await sending
        await switching.close()


async def test_switch_of_the_oldest_writer_waits_for_batches_under_way(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate) as database:
        writing = await asyncpg.connect(postgresql_url)
        await writing.execute("BEGIN; INSERT INTO users (uid, ctime, bucket) VALUES ('u', 0, 1)")
        with pytest.raises(StorageUnavailable, match="lock timeout"):
            await database.write(finish)
        await writing.execute("COMMIT")
        await writing.close()
        await database.write(finish)
        schema = await database.read(existing_schema)
        assert schema == Schema(NEWEST_REVISION, NEWEST_REVISION)


async def test_batch_asks_for_the_oldest_writer_without_a_statement_of_its_own() -> None:
    """The statements of the ack path are counted: each is a round trip to PostgreSQL."""
    executed: list[str] = []

    def recording(connection: DatabaseConnection) -> None:
        connection.driver.set_trace_callback(executed.append)  # type: ignore[attr-defined]

    async with (
        database_at("sqlite://", migrate) as database,
        SQLStateMachine(database, now, may_become_shard=False) as machine,
    ):
        await database.read(recording)
        await machine.consume_message(create("ann", "mail"))
    texts = [text for text in executed if not text.startswith("--")]
    assert sum("oldest_writer" in text for text in texts) == 1
    # BEGIN, the users, the message, the clock, COMMIT; after the COMMIT of `recording`.
    assert len(texts) == 6


# What a node may rely on


async def test_what_a_later_schema_adds_is_refused_until_the_database_has_it(url: str) -> None:
    async with opened(url) as (database, machine):
        await machine.require_schema(NEWEST_REVISION)
        with pytest.raises(NotMigrated, match=f"schema {NEXT}.*gregor migrate") as error:
            await machine.require_schema(NEXT)
        assert (error.value.code, error.value.action) == ("unavailable", Action.RETRY)
        await database.write(lambda c: c.execute(statements.SET_REVISION, revision=NEXT))
        await machine.require_schema(NEXT)


# Which nodes run


async def test_node_is_registered_while_it_runs(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate) as database:
        async with SQLStateMachine(database, now, clock_check_seconds=1_000):
            (node,) = await database.read(found)
            assert node.revision == NEWEST_REVISION
        assert await database.read(found) == []


async def test_node_that_was_killed_is_forgotten(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate) as database:
        await database.write(run_node("killed", PREVIOUS))
        assert await database.read(found) == [NodeRow("killed", PREVIOUS)]
        await database.write(grow_older)
        assert await database.read(found) == []
        await database.write(lambda c: register(c, "other"))
        rows = await database.read(lambda c: c.execute_sql("SELECT name FROM nodes"))
        assert rows == [("other",)]


def grow_older(connection: DatabaseConnection) -> None:
    connection.execute_sql(f"UPDATE nodes SET seen_at = seen_at - {SILENCE + 1}")


async def test_node_that_cannot_register_is_not_ready_until_it_can(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate) as database:
        await database.write(lambda c: c.execute_sql("ALTER TABLE nodes RENAME TO hidden"))
        async with SQLStateMachine(database, now, clock_check_seconds=0.01) as machine:
            (problem,) = await machine.problems()
            assert "not registered" in problem
            await database.write(lambda c: c.execute_sql("ALTER TABLE hidden RENAME TO nodes"))
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while await machine.problems():  # noqa: ASYNC110 (no event to wait for)
                    await asyncio.sleep(0.01)


async def test_code_that_does_not_register_is_known_by_its_sessions(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate) as database:
        old = await asyncpg.connect(postgresql_url, server_settings={"application_name": "gregor"})
        (node,) = await database.read(found)
        assert node.revision == "0004"
        assert "1 connections from" in node.name
        await old.close()


# What `gregor migrate` refuses


async def test_older_node_that_runs_keeps_the_oldest_writer_from_being_raised(
    postgresql_url: str,
) -> None:
    async with database_at(postgresql_url, migrate) as database:
        before = await database.read(existing_schema)
        await database.write(run_node("web-1", PREVIOUS))
        await database.write(run_node("web-2", NEWEST_REVISION))
        with pytest.raises(SetupError, match=rf"web-1 \(schema {PREVIOUS}\); upgrade or stop") as e:
            await database.write(finish)
        assert "web-2" not in e.value.message
        assert await database.read(existing_schema) == before


async def test_migration_that_running_nodes_cannot_bear_is_refused_and_changes_nothing(
    postgresql_url: str,
) -> None:
    async with database_at(postgresql_url, OnSQLAlchemy(Upgrade(PREVIOUS).run)) as database:
        before = await database.read(existing_schema)
        await database.write(run_node("web-1", TOO_OLD))
        with pytest.raises(SetupError, match="web-1"):
            async with database_at(postgresql_url, migrate):
                pass
        assert await database.read(existing_schema) == before
        await database.write(run_node("web-1", PREVIOUS))
        async with database_at(postgresql_url, migrate):
            pass
        schema = await database.read(existing_schema)
        assert schema == Schema(NEWEST_REVISION, OLDEST_WRITERS[NEWEST_REVISION])


# Back to older code


async def test_older_code_does_not_come_back_and_the_reason_is_said(url: str) -> None:
    """Code of schema 0007 does not look at floors and epochs."""
    async with opened(url) as (database, machine):
        await machine.consume_message(create("ann", "mail"))
        before = Schema(NEWEST_REVISION, OLDEST_WRITERS[NEWEST_REVISION])
        assert await database.read(existing_schema) == before
        with pytest.raises(SetupError, match="may not write to this database any more"):
            await database.write(roll_back)
        before = Schema(NEWEST_REVISION, OLDEST_WRITERS[NEWEST_REVISION])
        assert await database.read(existing_schema) == before


def test_new_file_accepts_the_same_writers_as_a_migrated_one() -> None:
    inserts = [text for text in tables.CREATE_TABLES if "INTO oldest_writer" in text]
    assert [OLDEST_WRITERS[NEWEST_REVISION] in text for text in inserts] == [True]
