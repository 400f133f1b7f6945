"""`gregor demo`: replicas that converge under faults, on one machine, with a check at the end."""

from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run

if TYPE_CHECKING:
    from gregor.cli.demo_run import DemoResult

SAMPLE_SECONDS = 20.0


def demo(
    devices: Annotated[int, typer.Option(min=1, max=5_000, help="Number of devices.")] = 300,
    seconds: Annotated[
        float, typer.Option(min=0, help="Duration of the stream; then the devices sync.")
    ] = SAMPLE_SECONDS,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the random disconnects and writes.", show_default="a new one"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A stream in the format of `gregor replay`.",
            show_default="the sample",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Store the state in this file.", show_default="a temporary one"
        ),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            max=8,
            help="More than one: a fleet with its own PostgreSQL and pub/sub.",
        ),
    ] = 1,
    shards: Annotated[
        int,
        typer.Option(min=1, max=8, help="Number of databases for the users of a fleet."),
    ] = 1,
    add_shard: Annotated[
        bool,
        typer.Option(
            "--add-shard", help="Add one more shard during the stream, and move buckets to it."
        ),
    ] = False,
    pubsub: Annotated[
        str, typer.Option(metavar="redis|nats", help="The pub/sub between the nodes of a fleet.")
    ] = "redis",
    json: options.JSON = False,
) -> None:
    """Hundreds of devices disconnect, reconnect and converge.

    It starts a server on a new SQLite file and replays recorded activity of an
    open-source project. The busiest users have several devices each. Every device
    goes offline and reconnects at random, and writes in between. At the end the
    hash and the items of each replica are compared with the server's.

    With several nodes it also starts a PostgreSQL and a Redis, from the wheels of
    gregor-sync\\[dev], and each connection of a device goes to a random node.

    [dim]$[/] gregor demo --nodes 2
    [dim]$[/] gregor demo --nodes 2 --shards 2 --add-shard
    [dim]$[/] gregor demo --devices 1000 --seconds 30 --seed 7

    The exit status is 1 if any replica differs from the server.
    """
    options.log_to_stderr("console", options.QUIET)
    from gregor.cli import demo_run
    from gregor.data import SAMPLE

    seed = time_ns() % 1_000_000 if seed is None else seed
    if not json:
        print(f"{devices} devices, seed {seed}", flush=True)
    file = file or SAMPLE
    if add_shard and shards == 1:
        raise typer.BadParameter("--add-shard needs --shards 2 or more")
    if nodes > 1 or shards > 1:
        fleet = demo_run.FleetOptions(nodes, pubsub, shards, add_shard)
        demo_coroutine = demo_run.run_fleet_demo(file, devices, seconds, seed, fleet)
    else:
        demo_coroutine = demo_run.run_demo(file, devices, seconds, seed, store)
    result = run(demo_coroutine)
    if json:
        output.print_json(
            {
                "seed": seed,
                "users": result.users,
                **result.figures(),
                "differences": result.differences,
            }
        )
    else:
        _print_result(result)
    if not result.all_agree:
        raise typer.Exit(1)


def _print_result(result: "DemoResult") -> None:
    table = output.plain_table("", "", "")
    table.show_header = False
    table.columns[1].justify = "right"
    for name, figure, explanation in result.rows():
        table.add_row(name, figure, f"[dim]{explanation}[/]")
    output.console().print(table)
    for device, uid, what in result.differences:
        output.print_error(f"{device} of {uid} {what}")
    print(result.verdict())
