"""Databases of which tests get copies: a copy takes a fifth of the time of the migrations."""

from collections.abc import Mapping

from gregor.shards.shard_map import establish
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.store_url import database_at, databases_at
from tests.fleet.servers import PostgreSQL

SHARDS = ("a", "b", "c")


async def migrated(server: PostgreSQL) -> str:
    """A database without users, with the newest schema."""
    url = await server.create_database()
    async with database_at(url, migrate):
        return url


async def established(server: PostgreSQL) -> Mapping[str, str]:
    """The shards of one map, without users."""
    urls = {name: await server.create_database() for name in SHARDS}
    async with databases_at(urls, migrate) as databases:
        await establish(databases)
    return urls
