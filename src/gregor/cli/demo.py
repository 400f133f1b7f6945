"""`gregor demo`: the main job, all alone, and whether it was done."""

from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.running import run

if TYPE_CHECKING:
    from gregor.cli.rehearsal import Outcome

SAMPLE_SECONDS = 20.0


def demo(
    devices: Annotated[int, typer.Option(min=1, max=5_000, help="How many.")] = 300,
    seconds: Annotated[
        float, typer.Option(min=0, help="How long the stream takes; then they settle.")
    ] = SAMPLE_SECONDS,
    seed: Annotated[
        int | None,
        typer.Option(help="Who drops off when, and does what.", show_default="a new one"),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Another stream; see `gregor replay`.",
            show_default="the sample",
        ),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Keep the state in this file.", show_default="a temporary one"
        ),
    ] = None,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            max=8,
            help="More than one: a fleet over a PostgreSQL and a pub/sub of its own.",
        ),
    ] = 1,
    shards: Annotated[
        int,
        typer.Option(min=1, max=8, help="Databases over which the users of a fleet are spread."),
    ] = 1,
    add_shard: Annotated[
        bool,
        typer.Option(
            "--add-shard", help="Take one more into use while the stream is played, by moving."
        ),
    ] = False,
    pubsub: Annotated[
        str, typer.Option(metavar="redis|nats", help="What is between the nodes of a fleet.")
    ] = "redis",
    json: options.JSON = False,
) -> None:
    """Hundreds of devices drop off, come back, and agree.

    It starts a server on a fresh SQLite file, and sends it what happened around an
    open-source project. The busiest users have several devices each; every device
    goes offline and comes back at random, and is used meanwhile. In the end each
    replica is compared with the server, hash and items.

    With several nodes it starts a PostgreSQL and a Redis as well, from the wheels
    of gregor-sync\\[dev], and each device connects now to one node, now to another.

    [dim]$[/] gregor demo --nodes 2
    [dim]$[/] gregor demo --nodes 2 --shards 2 --add-shard
    [dim]$[/] gregor demo --devices 1000 --seconds 30 --seed 7

    The exit status is 1 if any replica does not agree.
    """
    options.log_to_stderr("console", options.QUIET)
    from gregor.cli import rehearsal
    from gregor.data import SAMPLE

    seed = time_ns() % 1_000_000 if seed is None else seed
    if not json:
        print(f"{devices} devices, seed {seed}", flush=True)
    file = file or SAMPLE
    if add_shard and shards == 1:
        raise typer.BadParameter("--add-shard adds to --shards 2 or more")
    if nodes > 1 or shards > 1:
        place = rehearsal.Place(nodes, pubsub, shards, add_shard)
        rehearsing = rehearsal.rehearse_fleet(file, devices, seconds, seed, place)
    else:
        rehearsing = rehearsal.rehearse(file, devices, seconds, seed, store)
    outcome = run(rehearsing)
    if json:
        output.document(
            {
                "seed": seed,
                "users": outcome.users,
                **outcome.figures(),
                "differences": outcome.differences,
            }
        )
    else:
        _tell(outcome)
    if not outcome.all_agree:
        raise typer.Exit(1)


def _tell(outcome: "Outcome") -> None:
    table = output.plain("", "", "")
    table.show_header = False
    table.columns[1].justify = "right"
    for name, figure, words in outcome.rows():
        table.add_row(name, figure, f"[dim]{words}[/]")
    output.console().print(table)
    for device, uid, what in outcome.differences:
        output.complain(f"{device} of {uid} {what}")
    print(outcome.verdict())
