"""`gregor migrate`."""

from typing import TYPE_CHECKING

import typer

from gregor.cli import options, output
from gregor.cli.running import run

if TYPE_CHECKING:
    from gregor.config import Settings


def migrate(ctx: typer.Context, store: options.Store = None, json: options.JSON = False) -> None:
    """Create a store, or bring it up to date. `gregor serve` does the same when it starts.

    [dim]$[/] gregor migrate
    [dim]$[/] gregor migrate --store sqlite:////var/lib/gregor/gregor.db
    """
    settings = options.settings(ctx, store=store)
    schema = run(_migrate(settings))
    if json:
        output.document({"store": settings.store, "schema": schema})
    else:
        print(f"{settings.store} has schema {schema}, which is the newest")


async def _migrate(settings: "Settings") -> str | None:
    from gregor.storage.engine import database_at
    from gregor.storage.migrations import migrate, revision

    async with database_at(settings.store, migrate) as database:
        return await database.read(revision)
