"""Where a fleet is measured: a real PostgreSQL and a real Redis, and nodes on them.

Their programs come from wheels of the dev extra. Without them, SetupError says so.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from gregor.bench import servers
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import PostgreSQL, Redis


class Place(NamedTuple):
    """What nodes are started on."""

    postgresql: PostgreSQL
    redis: Redis

    async def store(self) -> str:
        """The URL of a new store."""
        url = await self.postgresql.create_database()
        async with database_at(url, migrate):
            return url

    @asynccontextmanager
    async def nodes(self, number: int, store: str) -> AsyncIterator[list[servers.Server]]:
        """So many nodes of one fleet."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(servers.node(store, self.redis.url))
                for _ in range(number)
            ]


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    """PostgreSQL and Redis, while the block runs."""
    async with PostgreSQL() as postgresql, Redis() as redis:
        yield Place(postgresql, redis)
