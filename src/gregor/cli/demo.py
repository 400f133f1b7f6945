"""`gregor demo`: replicas that converge under faults, on one machine, with a check at the end."""

from collections.abc import Callable, Coroutine
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.cli.log_format import QUIET, log_to_stderr
from gregor.cli.sample import SAMPLE
from gregor.extras import required_extra

if TYPE_CHECKING:
    from gregor.cli.demo_run import DemoResult

SAMPLE_SECONDS = 20.0


Devices = Annotated[int, typer.Option(min=1, max=5_000, help="Number of devices.")]
Seconds = Annotated[
    float, typer.Option(min=0, help="Duration of the stream; then the devices sync.")
]
Seed = Annotated[
    int | None,
    typer.Option(help="Seed of the random disconnects and writes.", show_default="a new one"),
]
File = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A stream in the format of `gregor replay`.",
        show_default="the sample",
    ),
]


def demo(
    devices: Devices = 300,
    seconds: Seconds = SAMPLE_SECONDS,
    seed: Seed = None,
    file: File = None,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Store the state in this file.", show_default="a temporary one"
        ),
    ] = None,
    json: options.JSON = False,
) -> None:
    """Hundreds of devices disconnect, reconnect and converge.

    It starts a server on a new SQLite file and replays recorded activity of an
    open-source project. The busiest users have several devices each. Every device
    goes offline and reconnects at random, and writes in between. At the end each user
    snoozes an item, which begins again on devices that are all offline by then; and
    the hash and the items of each replica are compared with the server's.

    [dim]$[/] gregor demo --devices 1000 --seconds 30 --seed 7

    The exit status is 1 if any replica differs from the server.
    """
    with required_extra("server"):
        from gregor.cli import demo_run

    def play(file: Path, seed: int) -> Coroutine[Any, Any, "DemoResult"]:
        return demo_run.run_demo(file, devices, seconds, seed, store)

    show_demo(play, file, devices, seed, json)


def show_demo(
    play: Callable[[Path, int], Coroutine[Any, Any, "DemoResult"]],
    file: Path | None,
    devices: int,
    seed: int | None,
    json: bool,
) -> None:
    """Play a demo with a file and a seed, and print its result; exit with status 1 if a replica
    differs from the server."""
    log_to_stderr("console", QUIET)
    seed = time_ns() % 1_000_000 if seed is None else seed
    if not json:
        print(f"{devices} devices, seed {seed}", flush=True)
    result = run(play(file or SAMPLE, seed))
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
