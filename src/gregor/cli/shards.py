"""`gregor shards`: shows how users are distributed over shards, and moves them."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from gregor.cli import options, output
from gregor.cli.event_loop import run
from gregor.cli.values_once import ValuesOnce
from gregor.core.buckets import BUCKETS, Move
from gregor.errors import SetupError

if TYPE_CHECKING:
    from gregor.config import Settings
    from gregor.shards.rebalance import Finding, Holding, Moved
    from gregor.stores.sql.database import Database

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    help="Show how users are distributed over shards, and rebalance them while servers run.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command(cls=ValuesOnce)
def status(ctx: typer.Context, store: options.Stores = None, json: options.JSON = False) -> None:
    """Show what each shard holds.

    [dim]$[/] gregor shards status --store a=postgresql:///a --store b=postgresql:///b
    """

    holdings = run(_status(_sharded_settings(ctx, store)))
    if json:
        output.print_json(
            {
                name: {"buckets": h.buckets, **h.held._asdict(), "left_over": h.left_over._asdict()}
                for name, h in holdings.items()
            }
        )
        return
    table = output.plain_table(
        "shard", "buckets", "users", "messages", "pruned", "bytes", "left over"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for name, holding in holdings.items():
        held, left_over = holding.held, holding.left_over
        table.add_row(
            output.printable(name),
            *(f"{n:,}" for n in (holding.buckets, *held)),
            f"{left_over.messages:,} messages" if left_over.users else "",
        )
    output.console().print(table)


@app.command(cls=ValuesOnce)
def plan(
    ctx: typer.Context,
    store: options.Stores = None,
    add: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=URL", help="Plan as if this shard existed too."),
    ] = None,
    json: options.JSON = False,
) -> None:
    """Show which buckets to move so that the shards are balanced. Changes nothing.

    [dim]$[/] gregor shards plan --store a=postgresql:///a --add b=postgresql:///b
    """
    added = [value.partition("=")[0] for value in add or ()]
    _print_plan(run(_plan(_sharded_settings(ctx, store), added)), json)


@app.command(cls=ValuesOnce)
def move(
    ctx: typer.Context,
    store: options.Stores = None,
    bucket: Annotated[
        list[int] | None,
        typer.Option(
            min=0,
            max=BUCKETS - 1,
            help="Move only this bucket (can be repeated) instead of what `plan` shows.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The shard that these buckets move to.", show_default=False
        ),
    ] = None,
    json: options.JSON = False,
) -> None:
    """Move buckets between shards while servers run.

    First start every server with all of the shards. You can interrupt the move at
    any time, in any way: buckets that have moved stay moved, and the next run
    continues from there.

    [dim]$[/] gregor shards move --store a=postgresql:///a --store b=postgresql:///b
    [dim]$[/] gregor shards move --store … --bucket 17 --bucket 18 --to b
    """
    settings = _sharded_settings(ctx, store)
    if bool(bucket) != (to is not None):
        raise typer.BadParameter("--bucket and --to must be given together")
    if to is not None and to not in settings.stores:
        raise typer.BadParameter(f"there is no --store {to}=URL")
    moved = run(_move(settings, bucket or (), to))
    users, longest = sum(m.users for m in moved), max((m.pause for m in moved), default=0.0)
    if json:
        output.print_json({"buckets": len(moved), "users": users, "longest_pause_seconds": longest})
    elif not moved:
        print("nothing to move")
    else:
        print(
            f"moved {len(moved):,} buckets with {users:,} users; "
            f"the longest pause for the writers of a bucket was {longest * 1000:.0f} ms"
        )


@app.command(cls=ValuesOnce)
def verify(
    ctx: typer.Context,
    store: options.Stores = None,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Remove an old copy if the holder has all its messages."),
    ] = False,
    json: options.JSON = False,
) -> None:
    """Check the shard map against the shards, and the old copies of buckets that have moved
    against their new holders. The exit status is 1 if something is wrong.

    [dim]$[/] gregor shards verify --prune --store a=postgresql:///a --store b=postgresql:///b
    """
    findings, buckets = run(_verify(_sharded_settings(ctx, store), prune))
    if json:
        copies = {"removed" if prune else "left_over": buckets}
        output.print_json({"findings": [f._asdict() for f in findings], **copies})
    else:
        for finding in findings:
            output.print_error(f"shard {finding.shard}: {finding.what}")
        done, hint = ("removed", "") if prune else ("left behind", "; --prune removes them")
        print(f"copies of {buckets:,} buckets {done}{hint}" if buckets else f"no copies {done}")
    if findings:
        raise typer.Exit(1)


def _print_plan(moves: Sequence[Move], json: bool) -> None:
    if json:
        output.print_json([move._asdict() for move in moves])
        return
    routes = Counter((move.source, move.target) for move in moves)
    for (source, target), number in sorted(routes.items()):
        print(f"{number:,} buckets from {source} to {target}")
    if not moves:
        print("nothing to move: the shards are balanced")


def _sharded_settings(ctx: typer.Context, store: Sequence[str] | None) -> "Settings":
    settings = options.load_settings(ctx, store=tuple(store) if store else None)
    if None in settings.stores:
        raise SetupError(
            "name the shards, each with its database: --store a=URL --store b=URL, or in the "
            "--config file"
        )
    return settings


@asynccontextmanager
async def open_databases(stores: Mapping[str | None, str]) -> "AsyncIterator[dict[str, Database]]":
    """Open the databases of the shards. Raises SetupError if this code does not serve a schema."""
    from gregor.stores.sql.migrations import require_served
    from gregor.stores.sql.store_url import databases_at

    urls = {name or "": url for name, url in stores.items()}
    async with databases_at(urls, require_served) as databases:
        yield databases


async def _status(settings: "Settings") -> "dict[str, Holding]":
    from gregor.shards.rebalance import Rebalancer

    async with open_databases(settings.stores) as databases:
        return await Rebalancer(databases).holdings()


async def _plan(settings: "Settings", added: Sequence[str]) -> list[Move]:
    from gregor.shards.rebalance import Rebalancer

    async with open_databases(settings.stores) as databases:
        return await Rebalancer(databases).plan(added)


async def _move(settings: "Settings", buckets: Sequence[int], to: str | None) -> "list[Moved]":
    from gregor.server.composition import retention_of
    from gregor.shards.rebalance import Rebalancer

    done: list[Moved] = []
    async with open_databases(settings.stores) as databases:
        rebalancer = Rebalancer(databases, retention=retention_of(settings))
        with output.counting_progress("buckets") as show_progress:
            moves = [Move(b, "", to or "") for b in buckets] if buckets else await rebalancer.plan()

            def on_moved(moved: "Moved") -> None:
                done.append(moved)
                show_progress(len(done), len(moves))

            await rebalancer.move(moves, on_moved)
    return done


async def _verify(settings: "Settings", prune: bool) -> "tuple[list[Finding], int]":
    from gregor.server.composition import retention_of
    from gregor.shards.rebalance import Rebalancer

    async with open_databases(settings.stores) as databases:
        with output.counting_progress("buckets") as show_progress:
            rebalancer = Rebalancer(databases, retention=retention_of(settings))
            return await rebalancer.verify(prune=prune, compared=show_progress)
