"""`gregor bench`."""

from typing import Annotated

import typer

from gregor.cli import options


def bench(
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIGURE]...", help="Only these.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less exact, in a tenth of the time.")] = (
        False
    ),
    json: options.JSON = False,
) -> None:
    """Measure this machine: each figure beside the limit measured in the same run.

    [dim]$[/] gregor bench --quick
    [dim]$[/] gregor bench --json > figures.json
    """
    from gregor.bench import run

    raise typer.Exit(run(quick, figures or [], json))
