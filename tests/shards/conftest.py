"""Shards on databases of each kind."""

from collections.abc import AsyncIterator

import pytest

from tests.fleet.servers import PostgreSQL
from tests.shards.harness import ShardHarness, opened


@pytest.fixture(params=["SQLite", "PostgreSQL"])
async def harness(
    request: pytest.FixtureRequest, postgresql_server: PostgreSQL
) -> AsyncIterator[ShardHarness]:
    if request.param == "SQLite":
        urls = dict.fromkeys("abc", "sqlite://")
    else:
        urls = {name: await postgresql_server.create_database() for name in "abc"}
    async with opened(urls) as harness:
        yield harness
