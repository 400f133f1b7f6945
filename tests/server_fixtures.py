"""Fixtures: real servers, one of each kind for a test session, and a new database for each test.

`GREGOR_TEST_POSTGRES`, `GREGOR_TEST_REDIS` and `GREGOR_TEST_NATS` may name running servers. A test
that stops or damages its server starts its own.
"""

import asyncio
from collections.abc import Iterator

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
