"""Fixtures: real servers, one of each kind for a test session, and new databases for each test.

`GREGOR_TEST_POSTGRES`, `GREGOR_TEST_REDIS` and `GREGOR_TEST_NATS` may name running servers. A test
that stops or damages its server starts its own.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.fleet.servers import NATS, B, PostgreSQL, Redis, server_for_tests


def _session_server(server_type: type[B]) -> Iterator[B]:
    # Its own event loop, because a session outlives the loops of its tests.
    with asyncio.Runner() as runner:
        server = runner.run(server_for_tests(server_type).__aenter__())
        yield server
        runner.run(server.__aexit__())


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    yield from _session_server(PostgreSQL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    yield from _session_server(Redis)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NATS]:
    yield from _session_server(NATS)


@pytest.fixture
async def postgresql_url(postgresql_server: PostgreSQL) -> AsyncIterator[str]:
    """A new, empty database."""
    async with _dropped(postgresql_server, await postgresql_server.create_database()) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgresql_server: PostgreSQL) -> str:
    from tests.fleet.templates import migrated  # which imports gregor's stores

    return asyncio.run(migrated(postgresql_server))


@pytest.fixture(scope="session")
def shard_templates(postgresql_server: PostgreSQL) -> Mapping[str, str]:
    from tests.fleet.templates import established

    return asyncio.run(established(postgresql_server))


@pytest.fixture
async def migrated_url(postgresql_server: PostgreSQL, migrated_template: str) -> AsyncIterator[str]:
    """A new database with the newest schema, without users."""
    copy = await postgresql_server.copy_of(migrated_template)
    async with _dropped(postgresql_server, copy) as url:
        yield url


@pytest.fixture
async def shard_urls(
    postgresql_server: PostgreSQL, shard_templates: Mapping[str, str]
) -> AsyncIterator[Mapping[str, str]]:
    """The new shards of one map, by name, without users."""
    async with AsyncExitStack() as stack:
        urls = {}
        for name, template in shard_templates.items():
            copy = await postgresql_server.copy_of(template)
            urls[name] = await stack.enter_async_context(_dropped(postgresql_server, copy))
        yield urls


@asynccontextmanager
async def _dropped(server: PostgreSQL, url: str) -> AsyncIterator[str]:
    """The database, which is dropped afterwards: all those of a run would be 10 GB."""
    try:
        yield url
    finally:
        await server.drop_database(url)
