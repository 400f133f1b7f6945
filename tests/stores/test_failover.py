"""A store on PostgreSQL whose primary is lost or demoted, with a standby that takes over."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import asyncpg
import pytest

from gregor.clock import now
from gregor.core.message import create
from gregor.errors import SetupError, StorageUnavailable
from gregor.interfaces import Stored
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.postgresql.errors import NotPrimary
from gregor.stores.sql.postgresql.role import BEGIN_READ, UNKNOWN, Timeline, begin
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from tests.fleet.replication import ReplicatedPostgreSQL
from tests.timeouts import TIMEOUT_SECONDS


@pytest.fixture
async def servers() -> AsyncIterator[ReplicatedPostgreSQL]:
    async with ReplicatedPostgreSQL() as servers:
        yield servers


async def store(machine: SQLStateMachine, msg_id: str) -> None:
    (outcome,) = await machine.consume_messages([create("ann", "mail", "{}", msg_id=msg_id)])
    assert isinstance(outcome, Stored)


async def ids(machine: SQLStateMachine) -> list[str]:
    return [item.msg_id for item in (await machine.state("ann")).items]


def run(statement: str) -> Callable[[DatabaseConnection], object]:
    return lambda connection: connection.execute_sql(statement)


async def test_demoted_primary_that_answers_is_left_when_the_address_moves(
    servers: ReplicatedPostgreSQL,
) -> None:
    url = await servers.create_database()
    async with database_at(url, migrate) as database, SQLStateMachine(database, now) as machine:
        await store(machine, "a")
        await servers.standby.catch_up()
        await servers.primary.stop()
        servers.primary.demote()
        await servers.primary.start()
        # The address leads to the demoted server still: no reader and no writer stays with it.
        with pytest.raises(StorageUnavailable, match="standby, not the primary"):
            await store(machine, "b")
        with pytest.raises(StorageUnavailable, match="standby, not the primary"):
            await ids(machine)
        assert any("standby" in problem for problem in await machine.problems())
        await servers.fail_over()
        await store(machine, "c")
        assert await ids(machine) == ["a", "c"]
        # It does not take a write to find the new primary.
        async with database_at(url) as other, SQLStateMachine(other, now) as reader:
            assert await ids(reader) == ["a", "c"]


async def test_read_is_refused_on_a_connection_that_leads_to_a_standby(
    servers: ReplicatedPostgreSQL,
) -> None:
    """A pooler keeps its clients' connections, and leads them elsewhere."""
    connection = await asyncpg.connect(servers.standby.url)
    with pytest.raises(NotPrimary):
        await begin(connection, BEGIN_READ)
    await connection.close()


async def test_promotion_changes_the_history_and_replaces_all_connections(
    servers: ReplicatedPostgreSQL,
) -> None:
    async with database_at(await servers.create_database(), migrate) as database:
        before = database.history
        assert isinstance(before, Timeline)
        pid = await database.read(run("SELECT pg_backend_pid()"))
        await servers.standby.catch_up()
        await servers.fail_over()  # the old primary runs on, and the readers are connected to it
        assert database.history == before
        with suppress(StorageUnavailable):
            await database.write(run("SELECT pg_terminate_backend(pg_backend_pid())"))
        await database.write(run("SELECT 1"))
        assert database.history == Timeline(before.system, before.number + 1)
        assert await database.read(run("SELECT pg_backend_pid()")) != pid
        await database.check_role()


async def test_ordinary_role_may_ask_for_the_timeline(servers: ReplicatedPostgreSQL) -> None:
    url = await servers.create_database()
    async with database_at(url, migrate):
        pass
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE ROLE ann LOGIN")
    tables = "ALL TABLES IN SCHEMA public"
    await connection.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO ann")
    await connection.close()
    async with database_at(url.replace("postgres@", "ann@")) as database:
        assert isinstance(database.history, Timeline)
        await database.check_role()


async def test_server_need_not_tell_its_timeline(servers: ReplicatedPostgreSQL) -> None:
    url = await servers.create_database()
    async with database_at(url, migrate) as database:
        connection = await asyncpg.connect(url)
        for function in ("pg_control_system()", "pg_walfile_name(pg_lsn)"):
            await connection.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC")
        await connection.execute("CREATE ROLE bob LOGIN")
        await connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO bob")
        await connection.close()
        async with database_at(url.replace("postgres@", "bob@")) as of_bob:
            assert of_bob.history == UNKNOWN
            await of_bob.check_role()
        assert isinstance(database.history, Timeline)


async def test_check_of_the_role_leaves_no_transaction_open(servers: ReplicatedPostgreSQL) -> None:
    complaints: list[object] = []  # of asyncpg, which would roll the transaction back
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    async with database_at(await servers.create_database(), migrate) as database:
        await database.check_role()
    assert not complaints


async def test_standby_as_the_only_store_is_refused(servers: ReplicatedPostgreSQL) -> None:
    with pytest.raises(SetupError, match=r"in recovery: a standby, .* promote"):
        async with database_at(servers.standby.url):
            pass


async def test_commit_is_not_acknowledged_before_the_synchronous_standby_has_it() -> None:
    async with ReplicatedPostgreSQL(synchronous=True) as servers:
        url = await servers.create_database()
        async with (
            database_at(url, migrate, seconds=0.5) as database,
            SQLStateMachine(database, now) as machine,
        ):
            servers.standby.pause()
            storing = asyncio.create_task(store(machine, "a"))
            done, _ = await asyncio.wait({storing}, timeout=4)  # several attempts
            assert not done
            servers.standby.resume()
            await storing
            await servers.primary.kill()
            await servers.fail_over()
            with suppress(StorageUnavailable):
                await ids(machine)
            assert await ids(machine) == ["a"]


async def set_on_primary(servers: ReplicatedPostgreSQL, setting: str) -> None:
    connection = await asyncpg.connect(servers.primary.url)
    await connection.execute(f"ALTER SYSTEM SET {setting}")
    await connection.execute("SELECT pg_reload_conf()")
    await connection.close()


async def test_commit_whose_wait_for_the_standby_was_cancelled_is_not_acknowledged() -> None:
    async with ReplicatedPostgreSQL(synchronous=True) as servers:
        url = await servers.create_database()
        async with database_at(url, migrate) as database, SQLStateMachine(database, now) as machine:
            await store(machine, "a")
            servers.standby.pause()
            storing = asyncio.create_task(store(machine, "b"))
            await cancel_wait_for_standby(servers.primary.url, storing)
            await cancel_wait_for_standby(servers.primary.url, storing)  # the outcome's look-up
            assert not storing.done()
            servers.standby.resume()
            await storing
            assert await ids(machine) == ["a", "b"]


async def cancel_wait_for_standby(url: str, storing: "asyncio.Task[None]") -> None:
    """Cancel the commit that waits for the standby, as an operator may do, while it is stored."""
    connection = await asyncpg.connect(url)
    waiting = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not await connection.fetch(waiting):
            assert not storing.done()
            await asyncio.sleep(0.01)
        while await connection.fetch(waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await connection.close()


async def test_one_of_two_named_standbys_may_be_missing(servers: ReplicatedPostgreSQL) -> None:
    url = await servers.create_database()
    async with database_at(url, migrate) as database, SQLStateMachine(database, now) as machine:
        names = "synchronous_standby_names = 'ANY 1 (standby1, standby2)'"
        await set_on_primary(servers, names)
        await store(machine, "a")
        assert await ids(machine) == ["a"]


async def test_commits_that_do_not_wait_for_the_standby_are_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ReplicatedPostgreSQL(synchronous=True) as servers:
        url = await servers.create_database()
        connection = await asyncpg.connect(url)
        name = url.rpartition("/")[2]
        await connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = 'local'")
        await connection.close()
        with caplog.at_level(logging.WARNING, "gregor.store"):
            async with database_at(url):
                pass
        assert "before the standby has them" in caplog.text
