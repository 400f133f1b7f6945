"""`gregor migrate`."""

from collections.abc import Mapping

import typer

from gregor.cli import options, output
from gregor.cli.running import run

AN_HOUR = 3600.0  # for one statement: an index for hundreds of millions of rows takes its time


def migrate(
    ctx: typer.Context,
    store: options.Stores = None,
    json: options.JSON = False,
) -> None:
    """Create stores, or bring them up to date. Those that are stay as they are.

    [dim]$[/] gregor migrate --store postgresql://gregor@db.internal/gregor
    [dim]$[/] gregor migrate --store a=postgresql:///a --store b=postgresql:///b

    Databases with names become the shards of one map. Empty ones share its
    buckets; one that has users keeps them all, and `gregor shards move` levels
    them later.
    """
    from gregor.config import name_and_url
    from gregor.storage.database import shown

    given = [name_and_url(each) for each in store or ()]
    shards = any(name is not None for name, _ in given)
    settings = options.settings(ctx, store=tuple(store) if store and shards else None)
    stores = given if given and not shards else list(settings.stores.items())
    for name, url in stores:
        schema = run(_migrate(url))
        if json:
            shard = {} if name is None else {"shard": name}
            output.document({**shard, "store": shown(url), "schema": schema})
        else:
            print(f"{shown(url)} has schema {schema}, which is the newest")
    if None not in dict(stores):
        run(_establish(settings.stores))


async def _establish(stores: Mapping[str | None, str]) -> None:
    from gregor.cli.shards import opened
    from gregor.state_machines.moving import establish

    async with opened(stores) as databases:
        await establish(databases)


async def _migrate(store: str) -> str | None:
    from gregor.storage.engine import database_at
    from gregor.storage.migrations import migrate, revision

    async with database_at(store, migrate, seconds=AN_HOUR) as database:
        return await database.read(revision)
