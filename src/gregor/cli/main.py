"""The command `gregor`: what it can do, and how it says that something went wrong.

A command is a thin function: it reads its options, and leaves the work to the package. What is
heavy to import is imported inside, so that `gregor --help` answers at once.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gregor.cli import (
    bench,
    demo,
    migrate,
    output,
    queries,
    replay,
    send,
    serve,
    shards,
    token,
    watch,
)
from gregor.errors import GregorError


class Commands(TyperGroup):
    """The commands. An error that was to be expected is one line, and exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (GregorError, BaseExceptionGroup) as error:
            output.complain(reason(error))
            raise typer.Exit(1) from error


def reason(error: GregorError | BaseExceptionGroup[BaseException]) -> str:
    """What went wrong, in words. Among several failures at once it is the first that we raised
    on purpose; if there is none, that is a defect, and goes on as it is."""
    if isinstance(error, GregorError):
        return error.message
    expected = error.subgroup(GregorError)
    if expected is None:
        raise error
    leaf: BaseException = expected
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return str(leaf)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"gregor {version('gregor-sync')}")
        raise typer.Exit


@app.callback()
def gregor(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar="GREGOR_CONFIG",
            help='A TOML file of settings, such as [cyan]listen = "127.0.0.1:9911"[/].',
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which this is.")
    ] = False,
) -> None:
    """A small state per user, equal on all of that user's devices.

    [dim]$[/] gregor demo                                 [dim]see it work, all alone[/]
    [dim]$[/] gregor serve                                [dim]start a server[/]
    [dim]$[/] gregor send alice invoices '{"id": 17}'     [dim]tell all devices of alice[/]

    Each setting is an option, a variable ([cyan]--store[/] is [cyan]GREGOR_STORE[/]) and a key in
    the file of [cyan]--config[/]; the option goes first, then the variable, then the file.
    """
    ctx.obj = config


SERVER, CLIENT, PROOF = "A server", "Users and their devices", "See it, measure it"

app.command(rich_help_panel=SERVER)(serve.serve)
app.command(hidden=True)(serve.worker)
app.command(rich_help_panel=SERVER)(migrate.migrate)
app.add_typer(shards.app, name="shards", rich_help_panel=SERVER)
app.command(rich_help_panel=SERVER)(token.token)
app.command(rich_help_panel=CLIENT)(send.send)
app.command(rich_help_panel=CLIENT)(send.dismiss)
app.command(rich_help_panel=CLIENT)(queries.state)
app.command(rich_help_panel=CLIENT)(queries.count)
app.command(rich_help_panel=CLIENT)(queries.log)
app.command(rich_help_panel=CLIENT)(watch.watch)
app.command(rich_help_panel=CLIENT)(replay.replay)
app.command(rich_help_panel=PROOF)(demo.demo)
app.command(rich_help_panel=PROOF)(bench.bench)


def main() -> None:
    """The entry point."""
    app(prog_name="gregor")
