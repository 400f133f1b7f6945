"""The options that several commands share, and the settings that they add up to."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gregor.core.instant import TimeOrOffset, parse_time_or_offset

if TYPE_CHECKING:  # it takes a quarter of a second, which `gregor --help` need not wait for
    from gregor.config import Settings

QUIET = logging.CRITICAL  # a client command says itself what matters
TIME = "a time (2026-01-31T12:00:00Z, or microseconds) or an offset from now (-90s, -1h, P1D)"

UserID = Annotated[str, typer.Argument(metavar="UID", help="The user.", show_default=False)]
ServerURL = Annotated[
    str | None,
    typer.Option("--url", help="The server.", show_default="http://127.0.0.1:9911"),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        help="What `gregor token` made; a server with --auth open needs none.",
        show_default=False,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="sqlite:///FILE, sqlite:// in memory, or postgresql://USER@HOST/DATABASE.",
        show_default="sqlite:///gregor.db",
    ),
]
Stores = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="sqlite:///FILE, sqlite:// in memory, or postgresql://USER@HOST/DATABASE. Repeated, "
        "as NAME=URL, for shards.",
        show_default="sqlite:///gregor.db",
    ),
]
JSON = Annotated[bool, typer.Option("--json", help="Print JSON, for a script.")]
Device = Annotated[
    str | None,
    typer.Option("--device", metavar="ID", help="As this device sees it.", show_default=False),
]
Prefix = Annotated[
    str,
    typer.Option(metavar="TEXT", help="Only categories that begin with it.", show_default=False),
]


def settings(ctx: typer.Context, *, quiet: bool = True, **given: Any) -> "Settings":
    """The settings: what was given as options, then `GREGOR_…` variables, then the file.
    From here on, logs are written as they say. Raises SetupError."""
    from gregor.config import load

    file = ctx.find_root().obj
    loaded = load(file if isinstance(file, Path) else None, **given)
    log_to_stderr(loaded.log_format, QUIET if quiet else logging.INFO)
    return loaded


def log_to_stderr(format_: str, level: int) -> None:
    """Everything that is logged, ours and that of libraries, in one form."""
    import structlog

    stamps: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    last: list[Any]
    if format_ == "json":
        last = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    form = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=stamps,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(form)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("gregor").setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *stamps,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def when(text: str | None) -> TimeOrOffset | None:
    """What was typed for a time. Raises BadParameter, which typer shows as wrong usage."""
    if text is None:
        return None
    try:
        return parse_time_or_offset(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
