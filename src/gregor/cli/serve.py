"""`gregor serve`."""

import logging
import sys
from typing import Annotated

import typer

from gregor.cli import options
from gregor.cli.running import run

DETAILS = "Details"
WORKER = (sys.executable, "-m", "gregor.cli", "worker")


def serve(
    ctx: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Port 0 takes a free one, and logs it.",
            show_default="127.0.0.1:9911",
        ),
    ] = None,
    store: options.Stores = None,
    pubsub: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="redis://HOST:PORT/DB or nats://HOST:PORT, over which servers on one PostgreSQL "
            "tell each other what is new.",
            show_default="none",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="So many processes on one address; they need PostgreSQL and a pub/sub.",
            show_default="1",
        ),
    ] = None,
    migrate: Annotated[
        bool | None,
        typer.Option(
            "--migrate",
            help="First do what [cyan]gregor migrate[/] does. A file is always brought up to date.",
        ),
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="open|jwt",
            help="[cyan]open[/] trusts everybody on this machine, [cyan]jwt[/] wants tokens, and "
            "GREGOR_JWT_SECRET to check them.",
            show_default="open",
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="console|json",
            help="How logs are written, on stderr.",
            show_default="console",
            rich_help_panel=DETAILS,
        ),
    ] = None,
    sweep_seconds: Annotated[
        float | None,
        typer.Option(
            help="How often it looks for what devices have missed.",
            show_default="5",
            rich_help_panel=DETAILS,
        ),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            help="How long it takes to send devices away when it stops.",
            show_default="5",
            rich_help_panel=DETAILS,
        ),
    ] = None,
    store_connections: Annotated[
        int | None,
        typer.Option(
            help="How many connections read from PostgreSQL at once, beside the one that writes; "
            "each worker has its own.",
            show_default="8",
            rich_help_panel=DETAILS,
        ),
    ] = None,
    store_seconds: Annotated[
        float | None,
        typer.Option(
            help="How long it waits for an answer of PostgreSQL.",
            show_default="10",
            rich_help_panel=DETAILS,
        ),
    ] = None,
) -> None:
    """Serve devices and backends, until SIGTERM or Ctrl-C.

    [dim]$[/] gregor serve --store postgresql:///gregor --pubsub redis://localhost
    [dim]$[/] gregor serve --store a=postgresql:///a --store b=postgresql:///b
    [dim]$[/] export GREGOR_JWT_SECRET=$(openssl rand -hex 32)
    [dim]$[/] gregor serve --auth jwt --listen 0.0.0.0:9911
    """
    settings = options.settings(
        ctx,
        quiet=False,
        listen=listen,
        store=tuple(store) if store else None,
        pubsub=pubsub,
        workers=workers,
        migrate=migrate,
        auth=auth,
        log_format=log_format,
        sweep_seconds=sweep_seconds,
        drain_seconds=drain_seconds,
        store_connections=store_connections,
        store_seconds=store_seconds,
    )
    if settings.workers == 1:
        from gregor.server.serving import serve

        run(serve(settings))
    else:
        from gregor.server.workers import supervise

        run(supervise(settings, WORKER))


def worker() -> None:
    """Be one of the workers of a server, who reads on stdin what to do."""
    from gregor.server.workers import Orders, work

    orders = Orders.read()
    options.log_to_stderr(orders.settings["log_format"], logging.INFO)
    run(work(orders))
