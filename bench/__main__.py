"""`python -m bench`: measures this machine."""

from typing import Annotated

import typer

from bench import run
from gregor.cli import options
from gregor.cli.main import Commands


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

    [dim]$[/] python -m bench --quick
    [dim]$[/] python -m bench --json > figures.json
    """
    raise typer.Exit(run(quick, figures or [], json))


if __name__ == "__main__":
    app = typer.Typer(cls=Commands, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command()(bench)
    app(prog_name="python -m bench")
