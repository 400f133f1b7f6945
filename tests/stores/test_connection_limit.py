"""A server that accepts fewer connections than a node may make."""

import asyncio
from collections.abc import AsyncIterator, Callable

import asyncpg
import pytest

from gregor.errors import SetupError, StorageUnavailable
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.postgresql.pool import RETRY_AFTER_TIMEOUT_SECONDS
from gregor.stores.sql.store_url import READ_CONNECTIONS, database_at
from tests.fleet.servers import PostgreSQL

SESSIONS = "FROM pg_stat_activity WHERE usename = 'limited'"


class LimitedRole:
    """A role of a server, for which it accepts few connections."""

    def __init__(self, server: PostgreSQL, admin: asyncpg.Connection, url: str) -> None:
        self.server = server
        self.url = url
        self._admin = admin

    async def limit(self, connections: int) -> None:
        await self._admin.execute(f"ALTER ROLE limited CONNECTION LIMIT {connections}")

    async def connections(self) -> int:
        count: int = await self._admin.fetchval(f"SELECT count(*) {SESSIONS}")
        return count

    async def break_all(self) -> None:
        await self._admin.execute(f"SELECT pg_terminate_backend(pid, 5000) {SESSIONS}")
        for _ in range(20):  # until the server's last messages are read
            await asyncio.sleep(0)


@pytest.fixture
async def role() -> AsyncIterator[LimitedRole]:
    async with PostgreSQL() as server:
        url = await server.create_database()
        admin = await asyncpg.connect(url)
        await admin.execute("CREATE ROLE limited LOGIN; GRANT ALL ON SCHEMA public TO limited")
        async with asyncio.timeout(60):
            yield LimitedRole(server, admin, url.replace("postgres@", "limited@"))
        await admin.close()


def sleep(seconds: float) -> Callable[[DatabaseConnection], None]:
    def work(connection: DatabaseConnection) -> None:
        connection.execute_sql(f"SELECT pg_sleep({seconds})")

    return work


def insert_user(uid: str) -> Callable[[DatabaseConnection], None]:
    def work(connection: DatabaseConnection) -> None:
        connection.execute_sql(f"INSERT INTO users (uid, ctime, bucket) VALUES ('{uid}', 0, 0)")

    return work


async def read_often(database: Database) -> None:
    """200 concurrent reads. Each of them must succeed."""
    async with asyncio.TaskGroup() as tasks:
        for _ in range(200):
            tasks.create_task(database.read(sleep(0.01)))


@pytest.mark.parametrize("connections", [1, 4])
async def test_reads_wait_for_the_connections_that_the_server_accepts(
    role: LimitedRole, connections: int
) -> None:
    async with database_at(role.url, migrate) as database:
        await role.limit(connections)
        await read_often(database)


async def test_reads_wait_after_connections_broke(role: LimitedRole) -> None:
    async with database_at(role.url, migrate) as database:
        await read_often(database)
        await role.limit(2)
        await role.break_all()
        await read_often(database)


async def test_writer_gets_a_connection_although_readers_have_all(role: LimitedRole) -> None:
    async with database_at(role.url, migrate) as database:
        await role.limit(3)
        await read_often(database)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read_often(database))
            tasks.create_task(database.write(insert_user("u")))
        await read_often(database)


async def test_pool_grows_again_when_the_limit_is_raised(role: LimitedRole) -> None:
    async with database_at(role.url, migrate) as database:
        await role.limit(1)
        await read_often(database)
        await role.limit(-1)
        while await role.connections() < READ_CONNECTIONS:
            await read_often(database)


async def test_pool_grows_again_when_a_silent_server_answers(role: LimitedRole) -> None:
    async with database_at(f"{role.url}?connect_timeout=1", migrate, seconds=3) as database:
        role.server.pause()
        reads = (database.read(sleep(0)) for _ in range(READ_CONNECTIONS))
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert all(isinstance(result, StorageUnavailable) for result in results)
        role.server.resume()
        async with asyncio.timeout(RETRY_AFTER_TIMEOUT_SECONDS / 2):
            while await role.connections() < READ_CONNECTIONS:
                await read_often(database)


async def test_first_connection_that_is_refused_is_an_error(role: LimitedRole) -> None:
    async with database_at(role.url, migrate) as database:
        await role.limit(0)
        with pytest.raises(StorageUnavailable, match="too many connections"):
            await database.read(sleep(0))


async def test_limit_is_named_at_the_start(role: LimitedRole) -> None:
    await role.limit(0)
    with pytest.raises(SetupError, match=r"too many connections .*raise this limit") as raised:
        async with database_at(role.url, migrate):
            pass
    assert "start PostgreSQL" not in raised.value.message
