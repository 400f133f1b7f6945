"""The real servers that other tests use."""

import asyncio
import os

import asyncpg
import pytest

from gregor.errors import SetupError
from tests.fleet.servers import NATS, ManagedServer, PostgreSQL, Redis

KINDS = [PostgreSQL, Redis, NATS]


@pytest.mark.parametrize("kind", KINDS)
async def test_killed_server_restarts_on_the_same_address(
    kind: type[ManagedServer],
) -> None:
    async with kind() as server:
        pid, url, directory = server.pid, server.url, server.directory
        await server.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        await server.start()
        assert server.url == url
        assert server.pid != pid
    assert not directory.exists()


@pytest.mark.parametrize(
    ("kind", "options"),
    [(PostgreSQL, ["--nonsense"]), (Redis, ["--nonsense"]), (NATS, ["--config", "/nonsense"])],
)
async def test_server_that_cannot_start_raises_an_error_with_its_log(
    kind: type[ManagedServer], options: list[str]
) -> None:
    with pytest.raises(SetupError, match=r"does not answer at .*\n(.*\n)*.*nonsense"):
        async with kind(*options):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_server_given_by_url_is_neither_started_nor_stopped(
    kind: type[ManagedServer],
) -> None:
    async with kind() as server:
        async with kind(url=server.url) as same:
            with pytest.raises(SetupError):
                await same.kill()
            await same.start()
        os.kill(server.pid, 0)


async def test_committed_rows_survive_a_kill() -> None:
    async with PostgreSQL() as server:
        url = await server.create_database()
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE t AS SELECT 7 AS n")
        await server.kill()
        await server.start()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT n FROM t") == 7
        await connection.close()


async def test_paused_server_keeps_its_connections_and_does_not_answer() -> None:
    async with PostgreSQL() as server:
        connection = await asyncpg.connect(server.url)
        server.pause()
        query = asyncio.create_task(connection.fetchval("SELECT 7"))
        done, _ = await asyncio.wait([query], timeout=0.1)
        assert not done
        server.resume()
        assert await query == 7
        await connection.close()


async def test_each_test_database_is_new(
    postgresql_server: PostgreSQL, postgresql_url: str
) -> None:
    assert postgresql_url not in {postgresql_server.url, await postgresql_server.create_database()}
