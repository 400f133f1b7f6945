"""The command `gregor`: its subcommands, and how it reports errors.

A command is a thin function: it reads its options and calls the package. Modules that are slow to
import are imported inside the functions, so that `gregor --help` starts fast.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gregor.cli import (
    demo,
    erase,
    explain,
    export,
    inbox,
    migrate,
    output,
    prune,
    queries,
    replay,
    send,
    serve,
    shards,
    token,
    watch,
)
from gregor.cli.log_format import (
    QUIET,
    log_failure,
    log_to_stderr,
    logs_are_json,
    requested_log_format,
)
from gregor.cli.values_once import ValuesOnce, refuse_repeated_values
from gregor.errors import GregorError
from gregor.log_event import LogEvent

log = logging.getLogger("gregor.cli")

WRONG_USAGE: Any = typer.BadParameter.__bases__


class Commands(TyperGroup):
    """The subcommands. An expected error is printed as one line, with exit status 1. Where logs are
    JSON, this line is a log entry, and so is what is said of wrong usage and of a defect."""

    def make_context(self, *args: Any, **extra: Any) -> Any:
        log_to_stderr(requested_log_format(), QUIET)
        with errors_reported():
            return super().make_context(*args, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        refuse_repeated_values(self, ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        with errors_reported():
            return super().invoke(ctx)


@contextmanager
def errors_reported() -> Iterator[None]:
    """Report an error that ends the command, and raise typer.Exit with its status."""
    try:
        with expected_errors_reported():
            yield
    except (typer.Exit, typer.Abort, BrokenPipeError):
        raise
    except Exception as error:
        if not logs_are_json():
            raise  # typer explains wrong usage; Python prints the traceback of a defect
        raise typer.Exit(_log_unexpected(error)) from error


@contextmanager
def expected_errors_reported() -> Iterator[None]:
    try:
        yield
    except (GregorError, BaseExceptionGroup) as error:
        message = error_message(error)
        if not log_failure(message):
            output.print_error(message)
        raise typer.Exit(1) from error


def _log_unexpected(error: Any) -> int:
    """Log wrong usage, or a defect with its traceback; the exit status."""
    if isinstance(error, WRONG_USAGE):
        log_failure(error.format_message())
        status: int = error.exit_code
        return status
    log.critical(LogEvent("crashed"), exc_info=error)
    return 1


def error_message(error: GregorError | BaseExceptionGroup[BaseException]) -> str:
    """The message for the user. In a group it is that of the first GregorError; a group without
    one is a bug and is raised unchanged."""
    if isinstance(error, GregorError):
        return str(error)
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
command(rich_help_panel=SERVER_PANEL)(prune.prune)
app.add_typer(shards.app, name="shards", rich_help_panel=SERVER_PANEL)
command(rich_help_panel=SERVER_PANEL)(erase.erase)
command(rich_help_panel=SERVER_PANEL)(export.export)
command("import", rich_help_panel=SERVER_PANEL)(export.import_)
command(rich_help_panel=SERVER_PANEL)(export.backup)
command(rich_help_panel=SERVER_PANEL)(token.token)
command(rich_help_panel=CLIENT_PANEL)(send.send)
command(rich_help_panel=CLIENT_PANEL)(send.put)
command(rich_help_panel=CLIENT_PANEL)(send.snooze)
command(rich_help_panel=CLIENT_PANEL)(send.dismiss)
command(rich_help_panel=CLIENT_PANEL)(inbox.notify)
command(rich_help_panel=CLIENT_PANEL)(queries.state)
command(rich_help_panel=CLIENT_PANEL)(queries.get)
command(rich_help_panel=CLIENT_PANEL)(queries.count)
command(rich_help_panel=CLIENT_PANEL)(inbox.inbox)
command(rich_help_panel=CLIENT_PANEL)(queries.log)
command(rich_help_panel=CLIENT_PANEL)(explain.explain)
command(rich_help_panel=CLIENT_PANEL)(watch.watch)
command(rich_help_panel=CLIENT_PANEL)(replay.replay)
command(rich_help_panel=DEMO_PANEL)(demo.demo)
