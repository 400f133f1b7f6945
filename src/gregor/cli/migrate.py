"""`gregor migrate`."""

from typing import Annotated

import typer

from gregor.cli import options, output
from gregor.cli.running import run
from gregor.errors import SetupError


def migrate(
    ctx: typer.Context,
    stores: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            metavar="URL",
            help="As for [cyan]gregor serve[/]; can be repeated.",
            show_default="sqlite:///gregor.db",
        ),
    ] = None,
    json: options.JSON = False,
) -> None:
    """Create stores, or bring them up to date. Those that are stay as they are.

    [dim]$[/] gregor migrate --store postgresql://gregor@db.internal/gregor
    [dim]$[/] gregor migrate --store postgresql:///a --store postgresql:///b
    """
    settings = options.settings(ctx)
    from gregor.storage.database import shown

    for store in stores or [settings.store]:
        schema = run(_migrate(store))
        if json:
            output.document({"store": shown(store), "schema": schema})
        else:
            print(f"{shown(store)} has schema {schema}, which is the newest")


async def _migrate(store: str) -> str | None:
    from gregor.storage.database import shown
    from gregor.storage.engine import database_at
    from gregor.storage.migrations import migrate, revision

    try:
        async with database_at(store, migrate) as database:
            return await database.read(revision)
    except SetupError as error:
        if shown(store) in error.message:
            raise
        raise SetupError(f"{shown(store)}: {error.message}") from error
