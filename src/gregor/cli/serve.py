"""`gregor serve`: starts a server, or with --workers several processes of one server."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gregor.cli import options
from gregor.cli.event_loop import run
from gregor.cli.log_format import log_to_stderr

CONNECTIONS_PANEL, DETAILS_PANEL, LIMITS_PANEL = "Connections", "Details", "Limits"
WORKER_COMMAND = (sys.executable, "-m", "gregor.cli", "worker")


def _limit(what: str, default: int) -> Any:
    """The option of a limit."""
    return typer.Option(
        metavar="N",
        help=what,
        show_default=str(default) if default else "none",
        rich_help_panel=LIMITS_PANEL,
    )


def serve(
    ctx: typer.Context,
    listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="Port 0 takes a free port and logs it.",
            show_default="127.0.0.1:9911",
        ),
    ] = None,
    admin_listen: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="For operators: /metrics, /openapi.json and the reasons of /readyz, without a "
            'token. "" is nowhere.',
            show_default="127.0.0.1:9912 with --auth jwt, else as --listen",
        ),
    ] = None,
    store: options.Stores = None,
    pubsub: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="redis://HOST:PORT/DB, redis+sentinel://HOST,HOST/MASTER, "
            "redis+cluster://HOST,HOST or nats://HOST,HOST, for servers that share a PostgreSQL: "
            "they publish new messages to each other.",
            show_default="none",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Number of processes on one address; more than 1 need PostgreSQL and a pub/sub.",
            show_default="1",
        ),
    ] = None,
    migrate: Annotated[
        bool | None,
        typer.Option(
            "--migrate",
            help="Run [cyan]gregor migrate[/] first. An SQLite file is always migrated.",
        ),
    ] = None,
    auth: Annotated[
        str | None,
        typer.Option(
            metavar="open|jwt",
            help="[cyan]open[/] trusts every process on this machine; [cyan]jwt[/] requires tokens "
            "and GREGOR_JWT_SECRET to verify them.",
            show_default="open",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Web pages that may use the server, besides those of its own origin: "
            "https://app.example.com, or https://*.example.com for all names below. Can be "
            "repeated.",
            show_default="none",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST",
            help="Names by which this machine may be asked for what needs no token, besides "
            "localhost and loopback addresses. Can be repeated.",
            show_default="none",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="console|json",
            help="The format of the logs on stderr.",
            show_default="console",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    history: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long to keep what is past: dismissed, replaced or expired; 0 is for ever.",
            show_default="90d",
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="DURATION",
            help="How long to know the ids of what is forgotten, so that none is stored twice.",
            show_default="400d",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    sweep_seconds: Annotated[
        float | None,
        typer.Option(
            help="How often to look for messages that devices missed.",
            show_default="5",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    lame_duck_seconds: Annotated[
        float | None,
        typer.Option(
            help="How long a server that shuts down still serves, while it is unready: load "
            "balancers notice in this time.",
            show_default="2 with --pubsub, else 0",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            help="How long a graceful shutdown takes to disconnect the devices.",
            show_default="5",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            help="Connections of clients that are open at a time; each worker has as many.",
            show_default="what the file descriptors allow",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    connections_per_address: Annotated[
        int | None,
        typer.Option(
            help="Of these, connections of one address, or of one IPv6 network /64; 0 is any "
            "number. Loopback addresses and trusted proxies are not counted.",
            show_default="1000",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    head_seconds: Annotated[
        float | None,
        typer.Option(
            help="Time-out for the head of a request, and for a TLS handshake.",
            show_default="10",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    body_seconds: Annotated[
        float | None,
        typer.Option(
            help="Time-out for the body of a request; 16 KiB of it give it one second more.",
            show_default="30",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    keep_alive_seconds: Annotated[
        int | None,
        typer.Option(
            help="When idle HTTP connections are closed; longer than a load balancer keeps them.",
            show_default="75",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK",
            help="Proxies that say whose requests they forward, such as 10.0.0.0/8: their "
            "X-Forwarded-For or Forwarded is believed, and no other. Can be repeated.",
            show_default="none",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    proxy_protocol: Annotated[
        bool | None,
        typer.Option(
            "--proxy-protocol",
            help="Each connection begins with a header of the PROXY protocol, version 1 or 2; only "
            "trusted proxies may connect.",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    tls_cert: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Serve TLS with this certificate, and those between it and its root, in PEM. It "
            "is read again when it changes, and at SIGHUP.",
            show_default="none",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    tls_key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The key of the certificate, in PEM, without a password.",
            show_default="none",
            rich_help_panel=CONNECTIONS_PANEL,
        ),
    ] = None,
    store_connections: Annotated[
        int | None,
        typer.Option(
            help="Connections that read from PostgreSQL, in addition to one that writes; each "
            "worker has its own.",
            show_default="8",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    store_seconds: Annotated[
        float | None,
        typer.Option(
            help="Time-out for an answer from PostgreSQL.",
            show_default="10",
            rich_help_panel=DETAILS_PANEL,
        ),
    ] = None,
    ranges: Annotated[int | None, _limit("Ranges in one message.", 500)] = None,
    msg_ids: Annotated[int | None, _limit("Ids that one message dismisses.", 1000)] = None,
    keys: Annotated[int | None, _limit("Keys that one message dismisses.", 500)] = None,
    skip_msg_ids: Annotated[
        int | None, _limit("Ids that the ranges of one message skip.", 1000)
    ] = None,
    prefixes: Annotated[int | None, _limit("Prefixes in one request.", 100)] = None,
    uids: Annotated[int | None, _limit("Users in one request.", 10000)] = None,
    live_items: Annotated[int | None, _limit("Live items of one user.", 20000)] = None,
    live_bytes: Annotated[
        int | None, _limit("Bytes of JSON of the live items of one user.", 67108864)
    ] = None,
    tombstones: Annotated[
        int | None, _limit("Ids that one user has dismissed and that have not arrived.", 100000)
    ] = None,
    scheduled_items: Annotated[
        int | None, _limit("Items of one user that have not begun.", 2000)
    ] = None,
    connections: Annotated[
        int | None, _limit("WebSockets and event streams of one user on this server.", 100)
    ] = None,
    streams: Annotated[int | None, _limit("Event streams of one user on this server.", 20)] = None,
    consumes_in_flight: Annotated[
        int | None, _limit("Consumes of one connection that wait for their ack.", 16)
    ] = None,
    messages_per_second: Annotated[
        int | None, _limit("Messages of one user's devices.", 100)
    ] = None,
    bytes_per_second: Annotated[
        int | None, _limit("Bytes of messages of one user's devices.", 262144)
    ] = None,
    syncs_per_second: Annotated[
        int | None, _limit("Syncs and reads of whole states of one user's devices.", 2)
    ] = None,
    frames_per_second: Annotated[
        int | None, _limit("Frames and requests of one user's devices.", 100)
    ] = None,
    requests_per_second: Annotated[int | None, _limit("Requests of one service.", 0)] = None,
) -> None:
    """Serve devices and backends until SIGTERM or Ctrl-C.

    [dim]$[/] gregor serve --store postgresql:///gregor --pubsub redis://localhost
    [dim]$[/] gregor serve --store a=postgresql:///a --store b=postgresql:///b
    [dim]$[/] export GREGOR_JWT_SECRET=$(openssl rand -hex 32)
    [dim]$[/] gregor serve --auth jwt --listen 0.0.0.0:9911
    """
    settings = options.load_settings(
        ctx,
        quiet=False,
        listen=listen,
        admin_listen=admin_listen,
        store=tuple(store) if store else None,
        pubsub=pubsub,
        workers=workers,
        migrate=migrate,
        auth=auth,
        allow_origin=tuple(allow_origin) if allow_origin else None,
        allow_host=tuple(allow_host) if allow_host else None,
        log_format=log_format,
        history=history,
        ids=ids,
        sweep_seconds=sweep_seconds,
        lame_duck_seconds=lame_duck_seconds,
        drain_seconds=drain_seconds,
        max_connections=max_connections,
        connections_per_address=connections_per_address,
        head_seconds=head_seconds,
        body_seconds=body_seconds,
        keep_alive_seconds=keep_alive_seconds,
        trusted_proxy=tuple(trusted_proxy) if trusted_proxy else None,
        proxy_protocol=proxy_protocol,
        tls_cert=tls_cert,
        tls_key=tls_key,
        store_connections=store_connections,
        store_seconds=store_seconds,
        ranges=ranges,
        msg_ids=msg_ids,
        keys=keys,
        skip_msg_ids=skip_msg_ids,
        prefixes=prefixes,
        uids=uids,
        live_items=live_items,
        live_bytes=live_bytes,
        tombstones=tombstones,
        scheduled_items=scheduled_items,
        connections=connections,
        streams=streams,
        consumes_in_flight=consumes_in_flight,
        messages_per_second=messages_per_second,
        bytes_per_second=bytes_per_second,
        syncs_per_second=syncs_per_second,
        frames_per_second=frames_per_second,
        requests_per_second=requests_per_second,
    )
    if settings.workers == 1:
        from gregor.server.process import serve

        run(serve(settings))
    else:
        from gregor.server.workers import supervise

        run(supervise(settings, WORKER_COMMAND))


def worker() -> None:
    """Run one worker process of a server; it reads its configuration from stdin."""
    from gregor.server.workers import WorkerConfig, work

    config = WorkerConfig.read()
    log_to_stderr(config.settings["log_format"], logging.INFO, worker=config.number)
    run(work(config))
