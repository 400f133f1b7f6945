"""Options that several commands share, and the settings they produce."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gregor.cli.log_format import QUIET, log_to_stderr, requested_log_format
from gregor.core.instant import TimeOrOffset, parse_time_or_offset

if TYPE_CHECKING:  # the import takes 0.25 s, too long for `gregor --help`
    from gregor.config import Settings

TIME_HELP = "a time (2026-01-31T12:00:00Z, or microseconds) or an offset from now (-90s, -1h, P1D)"


def not_empty(text: str | None) -> str | None:
    """The value of an option that may be left out, but not be empty: that is often a variable that
    is not set."""
    if text == "":
        raise typer.BadParameter("must not be empty")
    return text


UserID = Annotated[str, typer.Argument(metavar="UID", help="The user.", show_default=False)]
Category = Annotated[
    str,
    typer.Argument(
        metavar="CATEGORY", help="Dotted, for example chat.unread.room7.", show_default=False
    ),
]
Body = Annotated[
    str,
    typer.Argument(metavar="BODY", help="JSON, or plain text; - reads stdin.", show_default=False),
]
Text = Annotated[
    bool, typer.Option("--text", help="BODY is plain text, even if it looks like JSON.")
]
Starts = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="When it begins: a duration such as 2h, or a time such as 2027-01-31T12:00:00Z.",
        show_default="at once",
    ),
]
Expires = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="When it ends: a duration such as 90s, or a time.",
        show_default="never",
    ),
]
Scope = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="ID",
        callback=not_empty,
        help="Show it on this device only.",
        show_default=False,
    ),
]
MessageID = Annotated[
    str | None,
    typer.Option(
        "--msg-id",
        metavar="ID",
        callback=not_empty,
        help="Sending is idempotent: a message with the same id is stored once.",
        show_default="a new one",
    ),
]
ServerURL = Annotated[
    str | None,
    typer.Option("--url", help="The server's URL.", show_default="http://127.0.0.1:9911"),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="A token from `gregor token`; not needed with --auth open.",
        show_default=False,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="sqlite:///FILE, sqlite:// in memory, postgresql://USER@HOST/DATABASE, or "
        "file:///PATH of a file that holds one.",
        show_default="sqlite:///gregor.db",
    ),
]
Stores = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="sqlite:///FILE, sqlite:// in memory, postgresql://USER@HOST/DATABASE, or "
        "file:///PATH of a file that holds one. Repeat it as NAME=URL for shards.",
        show_default="sqlite:///gregor.db",
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="ID",
        callback=not_empty,
        help="Show what this device sees.",
        show_default=False,
    ),
]
Prefix = Annotated[
    str,
    typer.Option(
        metavar="TEXT", help="Only categories that begin with this text.", show_default=False
    ),
]
Prefixes = Annotated[
    list[str] | None,
    typer.Option(
        "--prefix",
        metavar="TEXT",
        help="Only categories that begin with this text; can be repeated.",
        show_default=False,
    ),
]


def load_settings(ctx: typer.Context, *, quiet: bool = True, **given: Any) -> "Settings":
    """Load the settings: the `given` options, then `GREGOR_…` variables, then the file. First
    configures logging, in which an invalid setting is reported. Raises SetupError."""
    from gregor.config import load

    file = ctx.find_root().obj if isinstance(ctx.find_root().obj, Path) else None
    log_format = requested_log_format(file, given.get("log_format"))
    log_to_stderr(log_format, QUIET if quiet else logging.INFO)
    return load(file, **given)


def parse_time(text: str | None) -> TimeOrOffset | None:
    """Parse the value of a TIME option. Raises BadParameter, which typer reports as wrong usage."""
    if text is None:
        return None
    try:
        return parse_time_or_offset(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
