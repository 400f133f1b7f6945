"""A store that refuses writes says so, and why, until it commits one again."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest

from gregor.clock import now
from gregor.core.buckets import bucket_of
from gregor.core.history import Cutoff
from gregor.core.message import create
from gregor.errors import SetupError, Unavailable
from gregor.interfaces import Duplicate
from gregor.shards.shard_map import establish
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql.database import Database
from gregor.stores.sql.migrations import migrate, require_served
from gregor.stores.sql.postgresql.start_checks import READ_TABLES, WRITTEN_TABLES
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at, databases_at
from gregor.stores.sql.tables import CREATE_TABLES
from gregor.stores.sql.write_health import WriteHealth
from tests.fleet.servers import PostgreSQL
from tests.server.harness import until

DISK_FULL = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN RAISE EXCEPTION 'could not extend file: No space left' USING ERRCODE = '53100'; END $$;
CREATE TRIGGER full_disk BEFORE INSERT ON messages FOR EACH STATEMENT EXECUTE FUNCTION refuse()
"""
DISK_FREED = "DROP TRIGGER full_disk ON messages"


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@asynccontextmanager
async def machine_on(database: Database) -> AsyncIterator[SQLStateMachine]:
    async with database, SQLStateMachine(database, now) as machine:
        yield machine


async def assert_refused(machine: SQLStateMachine, reason: str) -> None:
    with pytest.raises(Unavailable, match=reason):
        await machine.consume_message(create("ann", "mail"))
    (problem,) = await machine.problems()
    assert problem.startswith("writes fail: ")
    assert reason in problem


async def test_full_disk_under_postgresql_is_a_problem_until_there_is_room(
    postgresql_url: str,
) -> None:
    async with machine_on(database_at(postgresql_url, migrate)) as machine:
        await execute(postgresql_url, DISK_FULL)
        await assert_refused(machine, "No space left")
        await execute(postgresql_url, DISK_FREED)
        # Without another message: a probe commits, and leaves nothing.
        await until(lambda: not machine.writes.problems())
        assert await machine.problems() == []
        assert (await machine.state("ann")).items == ()
        assert await machine.ctime("ann") == 0
        leases = await machine.database.read(lambda c: c.execute_sql("SELECT name FROM leases"))
        assert leases == []


async def test_full_sqlite_file_is_a_problem_until_there_is_room() -> None:
    async with machine_on(database_at("sqlite://", migrate)) as machine:
        database = machine.database
        known = create("ann", "mail")
        await machine.consume_message(known)
        (pages,) = await database.write(lambda c: c.execute_sql("PRAGMA page_count"))
        await database.read(lambda c: c.execute_sql(f"PRAGMA max_page_count = {pages[0]}"))
        with pytest.raises(Unavailable, match="disk is full"):
            await machine.consume_message(create("ann", "mail", '"' + "x" * 60_000 + '"'))
        assert isinstance((await machine.consume_messages([known]))[0], Duplicate)
        assert machine.writes.failing.is_set()
        await database.read(lambda c: c.execute_sql("PRAGMA max_page_count = 1000000"))
        await until(lambda: not machine.writes.problems())
        await machine.consume_message(create("ann", "mail"))


def test_privileges_are_asked_for_on_every_table() -> None:
    created = {table for text in CREATE_TABLES for table in re.findall(r"CREATE TABLE (\w+)", text)}
    assert {*WRITTEN_TABLES, *READ_TABLES} == created


async def test_role_without_a_privilege_is_refused_with_the_grant_to_type(
    postgresql_url: str,
) -> None:
    async with database_at(postgresql_url, migrate):
        pass
    tables = "users, messages, dismissed_ids, dismissed_ranges, shard, buckets, nodes"
    await execute(
        postgresql_url,
        "DROP ROLE IF EXISTS writer",
        "CREATE ROLE writer LOGIN",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO writer",
        f"GRANT INSERT, DELETE ON {tables} TO writer",
    )
    url = postgresql_url.replace("postgres@", "writer@")
    with pytest.raises(SetupError, match="GRANT UPDATE ON users TO writer") as refused:
        async with database_at(url, require_served):
            pass
    grants = refused.value.message.partition("owner: ")[2].split("; ")
    assert "GRANT UPDATE ON messages TO writer" in grants
    await execute(postgresql_url, *grants)
    async with machine_on(database_at(url, require_served)) as machine:
        await machine.consume_message(create("ann", "mail"))
        await machine.prune(Cutoff(now(), 0))
        await execute(postgresql_url, "REVOKE UPDATE ON users FROM writer")
        await assert_refused(machine, "permission denied")
        await execute(postgresql_url, "GRANT UPDATE ON users TO writer")
        await until(lambda: not machine.writes.problems())
    await execute(postgresql_url, "DROP OWNED BY writer", "DROP ROLE writer")


async def test_shard_that_refuses_writes_is_named_and_the_server_stays_ready(
    postgresql_server: PostgreSQL,
) -> None:
    urls = {name: await postgresql_server.create_database() for name in "ab"}
    async with databases_at(urls, migrate) as databases:
        await establish(databases)
        machines = {name: SQLStateMachine(database, now) for name, database in databases.items()}
        async with ShardedStateMachine(machines) as machine:
            user = next(u for u in map(str, range(99)) if holder(machine, u) == "a")
            await execute(urls["a"], DISK_FULL)
            with pytest.raises(Unavailable):
                await machine.consume_message(create(user, "mail"))
            (problem,) = machine.partial_problems()
            assert problem.startswith("shard 'a': writes fail: ")
            assert await machine.problems() == []
            assert (await machine.state(user)).items == ()


def holder(machine: ShardedStateMachine, uid: str) -> str:
    return machine._map[bucket_of(uid)].shard


def test_failures_are_logged_once_and_then_at_most_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seconds = iter([0.0, 1.0, 2.0, 61.0, 62.0])
    health = WriteHealth(lambda: next(seconds))
    with caplog.at_level(logging.INFO, "gregor.store"):
        for _ in range(5):
            health.failed("the disk is full")
        health.succeeded()
        health.succeeded()
    assert [record.getMessage() for record in caplog.records] == [
        "writes fail reason='the disk is full'",
        "writes still fail more=3 seconds=61 reason='the disk is full'",
        "writes succeed again more=1",
    ]
