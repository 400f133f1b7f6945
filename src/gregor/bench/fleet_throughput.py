"""How many messages a node on PostgreSQL takes in a second, beside what asyncpg takes.

As `throughput` does on a file: 100 users with 3 devices each, frames of 20, and the limit is the
same PostgreSQL with nothing around it: the rows that the node has stored, in the order of their
ctimes, written by bare asyncpg to fresh tables with multi-row inserts and the users' clocks, in
commits of the size that the node's had. Then the same through two nodes at once, over which the
devices of each user are spread, so that every message also walks through Redis.
"""

import os
from functools import cache
from statistics import mean, median
from time import perf_counter
from typing import Any, NamedTuple

import asyncpg

from gregor.bench import fleet
from gregor.bench.crowd import Crowd
from gregor.bench.report import Figure

USERS, ROUNDS, FRAMES, WARM_UP, MESSAGES = 100, 3, 40, 5, 20
ROWS = 500  # of one insert
COLUMNS = 9


class Round(NamedTuple):
    one: float  # node; messages per second
    bare: float
    two: float
    batch: float  # messages per commit of the one node
    cpu: float | None  # of the one node, in seconds per message


async def measure(quick: bool) -> list[Figure]:
    async with fleet.place() as place:
        exchanges = (1, 2) if quick else (WARM_UP, FRAMES)
        rounds = [await _round(place, *exchanges) for _ in range(1 if quick else ROUNDS)]
    one, two = median(r.one for r in rounds), median(r.two for r in rounds)
    figures = [
        Figure(
            name="one node on PostgreSQL: durable, acknowledged, delivered to 3 devices each",
            measured=f"{one:,.0f} messages/s",
            beside=f"bare asyncpg: {median(r.bare for r in rounds):,.0f} messages/s in batches of "
            f"{mean(r.batch for r in rounds):.0f}",
            ratio=median(r.one / r.bare for r in rounds),
            threshold=0.4,
        ),
        Figure(
            name="  two nodes at once, each user's devices on both",
            measured=f"{two:,.0f} messages/s",
            beside=f"one node: {one:,.0f} messages/s; nodes, PostgreSQL, Redis and the load share "
            f"{os.cpu_count()} cores",
            ratio=median(r.two / r.one for r in rounds),
        ),
    ]
    cpu = [r.cpu for r in rounds if r.cpu is not None]
    if cpu:
        measured = f"{median(cpu) * 1e6:.0f} µs per message"
        figures.append(Figure(name="  the one node's processor time", measured=measured))
    return figures


async def _round(place: fleet.Place, warm_up: int, frames: int) -> Round:
    store = await place.store()
    async with place.nodes(1, store) as (node,):
        crowd = await Crowd.gather([node.address], USERS)
        await crowd.exchange(warm_up, MESSAGES)
        messages, commits = await node.commits()
        cpu = node.cpu_seconds()
        exchange = await crowd.exchange(frames, MESSAGES)
        cpu_after = node.cpu_seconds()
        messages_after, commits_after = await node.commits()
        crowd.close()
    stored = messages_after - messages
    batch = stored / (commits_after - commits)
    bare = await _bare(store, await place.store(), round(batch))
    two = await _two(place, warm_up, frames)
    per_message = None
    if cpu is not None and cpu_after is not None:
        per_message = (cpu_after - cpu) / stored
    return Round(stored / exchange.seconds, bare, two, batch, per_message)


async def _two(place: fleet.Place, warm_up: int, frames: int) -> float:
    async with place.nodes(2, await place.store()) as nodes:
        crowd = await Crowd.gather([node.address for node in nodes], USERS)
        await crowd.exchange(warm_up, MESSAGES)
        exchange = await crowd.exchange(frames, MESSAGES)
        crowd.close()
    return USERS * frames * MESSAGES / exchange.seconds


async def _bare(served: str, store: str, batch: int) -> float:
    """How many of the served messages bare asyncpg takes in a second."""
    source = await asyncpg.connect(served)
    rows = [tuple(row) for row in await source.fetch("SELECT * FROM messages ORDER BY ctime")]
    await source.close()
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    connection = await asyncpg.connect(store)
    start = perf_counter()
    for each in batches:
        await _commit(connection, each)
    seconds = perf_counter() - start
    await connection.close()
    return len(rows) / seconds


async def _commit(connection: Any, rows: list[tuple[Any, ...]]) -> None:
    clocks = {row[0]: row[1] for row in rows}
    async with connection.transaction():
        for start in range(0, len(rows), ROWS):
            some = rows[start : start + ROWS]
            await connection.execute(_insert(len(some)), *(value for row in some for value in row))
        await connection.execute(
            "INSERT INTO users SELECT * FROM unnest($1::text[], $2::bigint[]) "
            "ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime",
            list(clocks),
            list(clocks.values()),
        )


@cache
def _insert(rows: int) -> str:
    groups = (
        ", ".join(f"${row * COLUMNS + column}" for column in range(1, COLUMNS + 1))
        for row in range(rows)
    )
    return f"INSERT INTO messages VALUES {', '.join(f'({group})' for group in groups)}"
