"""The command `gregor`: its subcommands, and how it reports errors.

A command is a thin function: it reads its options and calls the package. Modules that are slow to
import are imported inside the functions, so that `gregor --help` starts fast.
"""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gregor.cli import (
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
from gregor.cli.values_once import ValuesOnce, refuse_repeated_values
from gregor.errors import GregorError


class Commands(TyperGroup):
    """The subcommands. An expected error is printed as one line, with exit status 1."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated_values(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (GregorError, BaseExceptionGroup) as error:
            output.print_error(error_message(error))
            raise typer.Exit(1) from error


def error_message(error: GregorError | BaseExceptionGroup[BaseException]) -> str:
    """The message for the user. In a group it is that of the first GregorError; a group without
    one is a bug and is raised unchanged."""
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


def _print_version(requested: bool) -> None:
    if requested:
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
            help='A TOML file with settings, such as [cyan]listen = "127.0.0.1:9911"[/].',
        ),
    ] = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A small state per user, the same on all of that user's devices.

    [dim]$[/] gregor demo                                 [dim]see it work on this machine[/]
    [dim]$[/] gregor serve                                [dim]start a server[/]
    [dim]$[/] gregor send alice invoices '{"id": 17}'     [dim]send to all devices of alice[/]

    Each setting is an option, an environment variable ([cyan]--store[/] is
    [cyan]GREGOR_STORE[/]) and a key in the [cyan]--config[/] file. An option takes precedence
    over a variable, and a variable over the file.
    """
    ctx.obj = config


SERVER_PANEL, CLIENT_PANEL, DEMO_PANEL = "Server", "Users and devices", "Demo"

command = partial(app.command, cls=ValuesOnce)
command(rich_help_panel=SERVER_PANEL)(serve.serve)
command(hidden=True)(serve.worker)
command(rich_help_panel=SERVER_PANEL)(migrate.migrate)
app.add_typer(shards.app, name="shards", rich_help_panel=SERVER_PANEL)
command(rich_help_panel=SERVER_PANEL)(token.token)
command(rich_help_panel=CLIENT_PANEL)(send.send)
command(rich_help_panel=CLIENT_PANEL)(send.dismiss)
command(rich_help_panel=CLIENT_PANEL)(queries.state)
command(rich_help_panel=CLIENT_PANEL)(queries.count)
command(rich_help_panel=CLIENT_PANEL)(queries.log)
command(rich_help_panel=CLIENT_PANEL)(watch.watch)
command(rich_help_panel=CLIENT_PANEL)(replay.replay)
command(rich_help_panel=DEMO_PANEL)(demo.demo)
