"""Fixtures: real servers, one of each kind for a test session, and new databases for each test.

`GREGOR_TEST_POSTGRES`, `GREGOR_TEST_REDIS` and `GREGOR_TEST_NATS` may name running servers. A test
that stops or damages its server starts its own.
"""

import asyncio
from collections.abc import Iterator, Mapping

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
async def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """A new, empty database."""
    return await postgresql_server.create_database()


@pytest.fixture(scope="session")
def migrated_template(postgresql_server: PostgreSQL) -> str:
    from tests.fleet.templates import migrated  # which imports gregor's stores

    return asyncio.run(migrated(postgresql_server))


@pytest.fixture(scope="session")
def shard_templates(postgresql_server: PostgreSQL) -> Mapping[str, str]:
    from tests.fleet.templates import established

    return asyncio.run(established(postgresql_server))


@pytest.fixture
async def migrated_url(postgresql_server: PostgreSQL, migrated_template: str) -> str:
    """A new database with the newest schema, without users."""
    return await postgresql_server.copy_of(migrated_template)


@pytest.fixture
async def shard_urls(
    postgresql_server: PostgreSQL, shard_templates: Mapping[str, str]
) -> Mapping[str, str]:
    """The new shards of one map, by name, without users."""
    return {name: await postgresql_server.copy_of(url) for name, url in shard_templates.items()}
