"""The real servers that the tests stand on."""

import asyncio
import os

import asyncpg
import pytest

from gregor.errors import SetupError
from gregor.testing.backends import NATS, Backend, PostgreSQL, Redis

KINDS = [PostgreSQL, Redis, NATS]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_server_that_was_killed_starts_again_at_the_same_address(
    kind: type[Backend],
) -> None:
    async with kind() as server:
        before, url, home = server.pid, server.url, server.home
        await server.kill()
        with pytest.raises(ProcessLookupError):
            os.kill(before, 0)
        await server.start()
        assert server.url == url
        assert server.pid != before
    assert not home.exists()


@pytest.mark.parametrize(
    ("kind", "options"),
    [(PostgreSQL, ["--nonsense"]), (Redis, ["--nonsense"]), (NATS, ["--config", "/nonsense"])],
)
async def test_one_that_cannot_start_says_why(kind: type[Backend], options: list[str]) -> None:
    with pytest.raises(SetupError, match=r"does not answer at .*\n(.*\n)*.*nonsense"):
        async with kind(*options):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_already_runs_is_left_running(kind: type[Backend]) -> None:
    async with kind() as server:
        async with kind(url=server.url) as same:
            with pytest.raises(SetupError):
                await same.kill()
            await same.start()
        os.kill(server.pid, 0)


async def test_what_was_committed_survives_a_kill() -> None:
    async with PostgreSQL() as server:
        url = await server.create_database()
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE t AS SELECT 7 AS n")
        await server.kill()
        await server.start()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT n FROM t") == 7
        await connection.close()


async def test_a_paused_server_keeps_its_connections_and_says_nothing() -> None:
    async with PostgreSQL() as server:
        connection = await asyncpg.connect(server.url)
        server.pause()
        answer = asyncio.create_task(connection.fetchval("SELECT 7"))
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done
        server.resume()
        assert await answer == 7
        await connection.close()


async def test_each_database_is_empty(postgresql_server: PostgreSQL, postgresql_url: str) -> None:
    assert postgresql_url not in {postgresql_server.url, await postgresql_server.create_database()}
