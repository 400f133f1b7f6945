"""`gregor shards`: how users are spread over databases, and how they are moved."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.running import run
from gregor.core.buckets import BUCKETS, Move
from gregor.errors import SetupError

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.state_machines.moving import Finding, Holding, Moved
    from gregor.storage.database import Database

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Show how users are spread over shards, and move them while servers run.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command()
def status(ctx: typer.Context, store: options.Stores = None, json: options.JSON = False) -> None:
    """What each shard holds.

    [dim]$[/] gregor shards status --store a=postgresql:///a --store b=postgresql:///b
    """
    holdings = run(_status(_sharded(ctx, store)))
    if json:
        output.document(
            {
                name: {"buckets": h.buckets, **h.held._asdict(), "left_over": h.left_over._asdict()}
                for name, h in holdings.items()
            }
        )
        return
    table = output.plain("shard", "buckets", "users", "messages", "bytes", "left over")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, holding in holdings.items():
        held, left = holding.held, holding.left_over
        table.add_row(
            output.printable(name),
            *(f"{n:,}" for n in (holding.buckets, *held)),
            f"{left.messages:,} messages" if left.messages else "",
        )
    output.console().print(table)


@app.command()
def plan(
    ctx: typer.Context,
    store: options.Stores = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="As if this shard were there as well."),
    ] = None,
    json: options.JSON = False,
) -> None:
    """What would have to move, so that each shard carries about as much. Changes nothing.

    [dim]$[/] gregor shards plan --store a=postgresql:///a --add b=postgresql:///b
    """
    added = [named.partition("=")[0] for named in add or ()]
    _tell_plan(run(_plan(_sharded(ctx, store), added)), json)


@app.command()
def move(
    ctx: typer.Context,
    store: options.Stores = None,
    bucket: Annotated[
        list[int] | None,
        typer.Option(
            min=0, max=BUCKETS - 1, help="Only these; else what `plan` says.", show_default=False
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Where these buckets are to go.", show_default=False),
    ] = None,
    json: options.JSON = False,
) -> None:
    """Move buckets from shard to shard, while servers run.

    Before it, every server must have been started with all of the shards. Stop it
    whenever you like, in whatever way: what has moved has moved, and the next run
    goes on from there.

    [dim]$[/] gregor shards move --store a=postgresql:///a --store b=postgresql:///b
    [dim]$[/] gregor shards move --store … --bucket 17 --bucket 18 --to b
    """
    settings = _sharded(ctx, store)
    if bool(bucket) != (to is not None):
        raise typer.BadParameter("--bucket and --to belong together")
    if to is not None and to not in settings.stores:
        raise typer.BadParameter(f"there is no --store {to}=URL")
    moved = run(_move(settings, bucket or (), to))
    users, longest = sum(m.users for m in moved), max((m.pause for m in moved), default=0.0)
    if json:
        output.document({"buckets": len(moved), "users": users, "longest_pause_seconds": longest})
    elif not moved:
        print("nothing to move")
    else:
        print(
            f"moved {len(moved):,} buckets with {users:,} users; "
            f"the longest that writers of one waited was {longest * 1000:.0f} ms"
        )


@app.command()
def verify(
    ctx: typer.Context,
    store: options.Stores = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove what has moved away, where nothing of it is missing."),
    ] = False,
    json: options.JSON = False,
) -> None:
    """Compare the map with what the shards have, and what was left behind by moves with what is
    where it went. The exit status is 1 if something is wrong.

    [dim]$[/] gregor shards verify --prune --store a=postgresql:///a --store b=postgresql:///b
    """
    findings, buckets = run(_verify(_sharded(ctx, store), prune))
    if json:
        counted = {"removed" if prune else "left_over": buckets}
        output.document({"findings": [f._asdict() for f in findings], **counted})
    else:
        for finding in findings:
            output.complain(f"shard {finding.shard}: {finding.what}")
        done, hint = ("removed", "") if prune else ("left behind", "; --prune removes them")
        print(f"copies of {buckets:,} buckets {done}{hint}" if buckets else f"no copies {done}")
    if findings:
        raise typer.Exit(1)


def _tell_plan(moves: Sequence[Move], json: bool) -> None:
    if json:
        output.document([move._asdict() for move in moves])
        return
    ways = Counter((move.source, move.target) for move in moves)
    for (source, target), number in sorted(ways.items()):
        print(f"{number:,} buckets from {source} to {target}")
    if not moves:
        print("nothing to move: each shard carries about as much")


def _sharded(ctx: typer.Context, store: Sequence[str] | None) -> "Settings":
    settings = options.settings(ctx, store=tuple(store) if store else None)
    if None in settings.stores:
        raise SetupError(
            "name the shards, each with its database: --store a=URL --store b=URL, or in the file "
            "of --config"
        )
    return settings


@asynccontextmanager
async def opened(stores: Mapping[str | None, str]) -> "AsyncIterator[dict[str, Database]]":
    """The databases of the shards, while the block runs."""
    from gregor.storage.engine import databases_at
    from gregor.storage.migrations import expect_newest

    async with databases_at({n or "": url for n, url in stores.items()}, expect_newest) as shards:
        yield shards


async def _status(settings: "Settings") -> "dict[str, Holding]":
    from gregor.state_machines.moving import Mover

    async with opened(settings.stores) as databases:
        return await Mover(databases).holdings()


async def _plan(settings: "Settings", added: Sequence[str]) -> list[Move]:
    from gregor.state_machines.moving import Mover

    async with opened(settings.stores) as databases:
        return await Mover(databases).plan(added)


async def _move(settings: "Settings", buckets: Sequence[int], to: str | None) -> "list[Moved]":
    from gregor.state_machines.moving import Mover

    done: list[Moved] = []
    async with opened(settings.stores) as databases:
        mover = Mover(databases)
        with output.counted("buckets") as count:
            moves = [Move(b, "", to or "") for b in buckets] if buckets else await mover.plan()

            def tell(moved: "Moved") -> None:
                done.append(moved)
                count(len(done), len(moves))

            await mover.move(moves, tell)
    return done


async def _verify(settings: "Settings", prune: bool) -> "tuple[list[Finding], int]":
    from gregor.state_machines.moving import Mover

    async with opened(settings.stores) as databases:
        with output.counted("buckets") as count:
            return await Mover(databases).verify(prune=prune, compared=count)
