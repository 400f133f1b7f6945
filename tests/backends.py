"""Fixtures: the real servers, one of each for a session, and a database of its own for a test.

`GREGOR_TEST_POSTGRES`, `GREGOR_TEST_REDIS` and `GREGOR_TEST_NATS` may name servers that already
run. A test that hurts its server starts one for itself.
"""

import asyncio
from collections.abc import Iterator

import pytest

from gregor.testing.backends import NATS, B, PostgreSQL, Redis, for_tests


def _for_session(kind: type[B]) -> Iterator[B]:
    # In a loop of its own: a session outlives the loops of its tests.
    with asyncio.Runner() as runner:
        server = runner.run(for_tests(kind).__aenter__())
        yield server
        runner.run(server.__aexit__())


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgreSQL]:
    yield from _for_session(PostgreSQL)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    yield from _for_session(Redis)


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NATS]:
    yield from _for_session(NATS)


@pytest.fixture
async def postgresql_url(postgresql_server: PostgreSQL) -> str:
    """A new, empty database."""
    return await postgresql_server.create_database()
