"""`gregor replay`: sends a recorded stream to a running server."""

from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run

if TYPE_CHECKING:
    from gregor.cli.ordered_sender import Tally
    from gregor.cli.stream import Source
    from gregor.config import Settings

MAX_PRINTED_PROBLEMS = 20


def replay(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON Lines, optionally .gz; - reads stdin.", show_default=False
        ),
    ],
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Send a recorded stream to a running server. Idempotent.

    Each line is one JSON object, a creation or a dismissal:
    {"t", "uid", "msg_id", "create": {"category", "body"}}
    {"t", "uid", "msg_id", "dismiss": {"msg_ids"?, "ranges"?, "keys"?}}

    A creation may have a `key`, `starts` and `expires` as well.

    The lines of one user are sent in order. `t` is the sender's clock, in
    milliseconds. It does not set the ctime: the server assigns that on
    arrival. A time in `starts`, `expires` or `end_time` keeps its offset
    from `t`.

    [dim]$[/] gregor replay activity.jsonl.gz
    [dim]$[/] tail -f activity.jsonl | gregor replay -

    The exit status is 1 if a line is not a valid message or is rejected.
    """
    settings = options.load_settings(ctx, url=url, token=token)
    from gregor.cli import stream

    began = perf_counter()
    with stream.open_stream(file) as source:
        tally = run(_send(settings, source))
    _print_tally(tally, perf_counter() - began, json)
    if tally.problems:
        raise typer.Exit(1)


async def _send(settings: "Settings", source: "Source") -> "Tally":
    from gregor.cli.ordered_sender import Tally, send_all
    from gregor.cli.remote import REPLAY_ATTEMPTS, CommandProducer, producer, request

    tally = Tally()
    # If the server goes away, sending is retried. If none answers at the start, fail at once.
    await request(settings, CommandProducer.check_server)
    async with producer(settings, max_attempts=REPLAY_ATTEMPTS) as server:
        await send_all(_lines_with_progress(source, tally), server.send, tally)
    return tally


async def _lines_with_progress(
    source: "Source", tally: "Tally"
) -> AsyncIterator[tuple[int, bytes]]:
    """The lines of the source; shows a progress bar on a terminal."""
    with output.progress() as progress:
        bar = progress.add_task("sending", total=source.size, status="")
        async for numbered in source.lines():
            progress.update(bar, completed=source.position, status=f"{tally.done:,} messages")
            yield numbered


def _print_tally(tally: "Tally", seconds: float, json: bool) -> None:
    figures = {
        "lines": tally.lines,
        "stored": tally.stored,
        "duplicates": tally.duplicates,
        "rejected": tally.rejected,
        "bad": tally.bad,
        "seconds": round(seconds, 3),
        "messages_per_second": round(tally.done / seconds),
    }
    if json:
        output.print_json(
            {**figures, "problems": [problem._asdict() for problem in tally.problems]}
        )
        return
    for problem in tally.problems[:MAX_PRINTED_PROBLEMS]:
        output.print_error(f"line {problem.line}: {problem.reason}")
    omitted = tally.bad + tally.rejected - MAX_PRINTED_PROBLEMS
    if omitted > 0:
        output.print_error(f"and {omitted:,} more lines")
    output.console().print(output.figures_table(figures))
