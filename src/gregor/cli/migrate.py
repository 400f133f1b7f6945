"""`gregor migrate`: creates stores and brings their schema up to date."""

from collections.abc import Mapping

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run

# For one statement: to create an index on hundreds of millions of rows takes long.
STATEMENT_TIMEOUT_SECONDS = 3600.0


def migrate(
    ctx: typer.Context,
    store: options.Stores = None,
    json: options.JSON = False,
) -> None:
    """Create stores, or migrate them to the newest schema. Idempotent.

    [dim]$[/] gregor migrate --store postgresql://gregor@db.internal/gregor
    [dim]$[/] gregor migrate --store a=postgresql:///a --store b=postgresql:///b

    Named databases become the shards of one shard map. Empty databases share
    its buckets. A database that has users keeps all buckets; `gregor shards
    move` rebalances them later.
    """
    from gregor.config import name_and_url
    from gregor.urls import redacted

    given = [name_and_url(value) for value in store or ()]
    sharded = any(name is not None for name, _ in given)
    settings = options.load_settings(ctx, store=tuple(store) if store and sharded else None)
    stores = given if given and not sharded else list(settings.stores.items())
    for name, url in stores:
        schema = run(_migrate(url))
        if json:
            shard = {} if name is None else {"shard": name}
            output.print_json({**shard, "store": redacted(url), "schema": schema})
        else:
            print(f"{redacted(url)} has schema {schema}, the newest")
    if None not in dict(stores):
        run(_establish(settings.stores))


async def _establish(stores: Mapping[str | None, str]) -> None:
    from gregor.cli.shards import open_databases
    from gregor.shards.shard_map import establish

    async with open_databases(stores) as databases:
        await establish(databases)


async def _migrate(store: str) -> str:
    from gregor.stores.sql.migrations import migrate
    from gregor.stores.sql.statements import SCHEMA_REVISION
    from gregor.stores.sql.store_url import database_at

    async with database_at(store, migrate, seconds=STATEMENT_TIMEOUT_SECONDS) as database:
        (revision,) = await database.read(lambda c: c.execute(SCHEMA_REVISION))
        return revision.version
