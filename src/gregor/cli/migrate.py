"""`gregor migrate`: creates stores and brings their schema up to date."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run

if TYPE_CHECKING:
    from gregor.stores.sql.schema import Schema

# For one statement: to create an index on hundreds of millions of rows takes long.
STATEMENT_TIMEOUT_SECONDS = 3600.0


def migrate(
    ctx: typer.Context,
    store: options.Stores = None,
    finish: Annotated[
        bool,
        typer.Option(
            "--finish",
            help="Then let only code of this schema write: no older version can be started again.",
        ),
    ] = False,
    rollback: Annotated[
        bool,
        typer.Option(
            "--rollback",
            help="Do not migrate, but let code start again that knows schema 0004 only.",
        ),
    ] = False,
    json: options.JSON = False,
) -> None:
    """Create stores, or migrate them to the newest schema. Idempotent.

    [dim]$[/] gregor migrate --store postgresql://gregor@db.internal/gregor
    [dim]$[/] gregor migrate --store a=postgresql:///a --store b=postgresql:///b

    Nodes may run meanwhile. If one is too old for the newest schema, nothing is
    changed and it is named. docs/upgrading.md has the steps.

    Named databases become the shards of one shard map. Empty databases share
    its buckets. A database that has users keeps all buckets; `gregor shards
    move` rebalances them later.
    """
    from gregor.config import name_and_url
    from gregor.urls import redacted

    given = [name_and_url(value) for value in store or ()]
    sharded = any(name is not None for name, _ in given)
    settings = options.load_settings(ctx, store=tuple(store) if store and sharded else None)
    logging.getLogger("gregor.store.sqlite").setLevel(logging.WARNING)  # a rewriting may take long
    stores = given if given and not sharded else list(settings.stores.items())
    if finish and rollback:
        raise typer.BadParameter("--finish and --rollback exclude each other")
    for name, url in stores:
        schema = run(_roll_back(url) if rollback else _migrate(url, finish))
        if json:
            shard = {} if name is None else {"shard": name}
            values = {"schema": schema.revision, "oldest_writer": schema.oldest_writer}
            output.print_json({**shard, "store": redacted(url), **values})
        else:
            print(
                f"{redacted(url)} has schema {schema.revision}; code of schema "
                f"{schema.oldest_writer} and newer may write to it"
            )
    if None not in dict(stores) and not rollback:
        run(_establish(settings.stores))


async def _establish(stores: Mapping[str | None, str]) -> None:
    from gregor.cli.shards import open_databases
    from gregor.shards.shard_map import establish

    async with open_databases(stores) as databases:
        await establish(databases)


async def _migrate(store: str, finishing: bool) -> "Schema":
    from gregor.stores.sql.migrations import finish, migrate
    from gregor.stores.sql.schema import existing_schema
    from gregor.stores.sql.store_url import database_at, naming

    async with database_at(store, migrate, seconds=STATEMENT_TIMEOUT_SECONDS) as database:
        if finishing:
            with naming(store):
                await database.write(finish)
        return await database.read(existing_schema)


async def _roll_back(store: str) -> "Schema":
    from gregor.stores.sql.migrations import roll_back
    from gregor.stores.sql.schema import existing_schema
    from gregor.stores.sql.store_url import database_at, naming

    async with database_at(store) as database:
        with naming(store):
            await database.write(roll_back)
        return await database.read(existing_schema)
