"""`gregor bench`: measures this machine."""

from typing import Annotated

import typer

from gregor.cli import options


def bench(
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIGURE]...", help="Measure only these.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less exact; takes a tenth of the time.")
    ] = (False),
    json: options.JSON = False,
) -> None:
    """Measure Gregor on this machine, each figure beside a baseline from the same run.

    [dim]$[/] gregor bench --quick
    [dim]$[/] gregor bench --json > figures.json
    """
    from gregor.bench import run

    raise typer.Exit(run(quick, figures or [], json))
