"""The demo on a fleet: nodes, shards and a pub/sub, all from wheels, on this machine."""

from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer

from demo.fleet_run import run_fleet_demo
from gregor.cli import options
from gregor.cli.demo import SAMPLE_SECONDS, Devices, File, Seconds, Seed, show_demo
from gregor.cli.demo_run import DemoResult
from gregor.cli.main import Commands


def demo(
    devices: Devices = 300,
    seconds: Seconds = SAMPLE_SECONDS,
    seed: Seed = None,
    file: File = None,
    nodes: Annotated[int, typer.Option(min=1, max=8, help="Number of nodes.")] = 2,
    shards: Annotated[
        int, typer.Option(min=1, max=8, help="Number of databases for the users.")
    ] = 1,
    add_shard: Annotated[
        bool,
        typer.Option(
            "--add-shard", help="Add one more shard during the stream, and move buckets to it."
        ),
    ] = False,
    pubsub: Annotated[
        str, typer.Option(metavar="redis|nats", help="The pub/sub between the nodes.")
    ] = "redis",
    json: options.JSON = False,
) -> None:
    """Hundreds of devices converge, over several nodes and databases.

    Like `gregor demo`, but on a fleet with its own PostgreSQL and pub/sub: each
    connection of a device goes to a random node.

    [dim]$[/] python -m demo --nodes 3 --pubsub nats
    [dim]$[/] python -m demo --shards 2 --add-shard
    """
    if add_shard and shards == 1:
        raise typer.BadParameter("--add-shard needs --shards 2 or more")

    def play(file: Path, seed: int) -> Coroutine[Any, Any, DemoResult]:
        return run_fleet_demo(
            file, devices, seconds, seed, nodes, pubsub, shards=shards, add_shard=add_shard
        )

    show_demo(play, file, devices, seed, json)


if __name__ == "__main__":
    app = typer.Typer(cls=Commands, rich_markup_mode="rich", pretty_exceptions_enable=False)
    app.command()(demo)
    app(prog_name="python -m demo")
