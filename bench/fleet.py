"""The environment of the fleet figures: a real PostgreSQL, a real Redis, and nodes that use them.

The programs come from wheels of the dev extra. Without these, SetupError is raised.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from bench import servers
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.store_url import database_at
from tests.fleet.servers import PostgreSQL, Redis


class BenchBackends(NamedTuple):
    """The servers that the nodes use."""

    postgresql: PostgreSQL
    redis: Redis

    async def store(self) -> str:
        """Create a store with the current schema; its URL."""
        url = await self.postgresql.create_database()
        async with database_at(url, migrate):
            return url

    @asynccontextmanager
    async def nodes(self, number: int, store: str) -> AsyncIterator[list[servers.ServerProcess]]:
        """Start this number of nodes of one fleet."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(servers.node(store, self.redis.url))
                for _ in range(number)
            ]


@asynccontextmanager
async def backends() -> AsyncIterator[BenchBackends]:
    """Run PostgreSQL and Redis while the block runs."""
    async with PostgreSQL() as postgresql, Redis() as redis:
        yield BenchBackends(postgresql, redis)
