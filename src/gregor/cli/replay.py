"""`gregor replay`: a recorded stream, sent to a running server."""

from collections.abc import AsyncIterator
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.running import run

if TYPE_CHECKING:
    from gregor.cli.lanes import Tally
    from gregor.cli.stream import Source
    from gregor.config import Settings

TOLD = 20


def replay(
    ctx: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="JSON Lines, .gz or not; - is stdin.", show_default=False
        ),
    ],
    url: options.ServerURL = None,
    token: options.Token = None,
    json: options.JSON = False,
) -> None:
    """Send a recorded stream to a running server. Sent again, it changes nothing.

    Each line is one JSON object, a creation or a dismissal:
    {"t", "uid", "msg_id", "create": {"category", "body", "dtime"?}}
    {"t", "uid", "msg_id", "dismiss": {"msg_ids"?, "ranges"?}}

    The lines of one user are sent in order. `t` is the sender's clock, in
    milliseconds, and sets no ctime: the server stamps what comes, when it
    comes. A time in a `dtime` or an `end_time` keeps its distance from `t`.

    [dim]$[/] gregor replay activity.jsonl.gz
    [dim]$[/] tail -f activity.jsonl | gregor replay -

    The exit status is 1 if a line was no message, or was rejected.
    """
    settings = options.settings(ctx, url=url, token=token)
    from gregor.cli import stream

    began = perf_counter()
    with stream.opened(file) as source:
        tally = run(_send(settings, source))
    _tell(tally, perf_counter() - began, json)
    if tally.problems:
        raise typer.Exit(1)


async def _send(settings: "Settings", source: "Source") -> "Tally":
    from gregor.cli.lanes import Tally, send_all
    from gregor.cli.remote import remote

    tally = Tally()
    async with remote(settings) as server:
        # A server that goes away is waited for; one that was never there is a mistake.
        await server.greet()
        await send_all(_shown(source, tally), server.send, tally)
    return tally


async def _shown(source: "Source", tally: "Tally") -> AsyncIterator[tuple[int, bytes]]:
    """The lines of the source; how far they have been read is drawn, on a terminal."""
    with output.progress() as progress:
        bar = progress.add_task("sending", total=source.size, said="")
        async for numbered in source.lines():
            progress.update(bar, completed=source.position, said=f"{tally.done:,} messages")
            yield numbered


def _tell(tally: "Tally", seconds: float, json: bool) -> None:
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
        output.document({**figures, "problems": [problem._asdict() for problem in tally.problems]})
        return
    for problem in tally.problems[:TOLD]:
        output.complain(f"line {problem.line}: {problem.reason}")
    untold = tally.bad + tally.rejected - TOLD
    if untold > 0:
        output.complain(f"and {untold:,} lines more")
    output.console().print(output.row(figures))
