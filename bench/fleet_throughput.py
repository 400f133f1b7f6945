"""The throughput of a node on PostgreSQL; baseline: bare asyncpg.

The load is that of `throughput`: 100 users with 3 devices each, and frames of 20 messages. The
baseline is the same PostgreSQL without Gregor: bare asyncpg writes the rows that the node has
stored, in the order of their ctimes, to new tables, with multi-row inserts and the users' clocks,
in commits of the same size as the node's. Then the same load is sent to two nodes at once. The
devices of each user are connected to both, so every message also passes through Redis.
"""

import os
from functools import cache
from statistics import mean, median
from time import perf_counter
from typing import Any, NamedTuple

import asyncpg

from bench import fleet
from bench.load_users import LoadUsers
from bench.report import Figure

USERS, ROUNDS, FRAMES, WARM_UP, MESSAGES = 100, 3, 40, 5, 20
ROWS_PER_INSERT = 500


class FleetRound(NamedTuple):
    """Rates in messages per second."""

    one_node: float
    bare: float
    two_nodes: float
    batch: float  # messages per commit of the single node
    cpu: float | None  # processor seconds of the single node per message


async def measure(quick: bool) -> list[Figure]:
    async with fleet.backends() as backends:
        frames = (1, 2) if quick else (WARM_UP, FRAMES)
        rounds = [await _round(backends, *frames) for _ in range(1 if quick else ROUNDS)]
    one_node = median(r.one_node for r in rounds)
    two_nodes = median(r.two_nodes for r in rounds)
    figures = [
        Figure(
            name="one node on PostgreSQL: durable, acknowledged, delivered to 3 devices each",
            measured=f"{one_node:,.0f} messages/s",
            beside=f"bare asyncpg: {median(r.bare for r in rounds):,.0f} messages/s in batches of "
            f"{mean(r.batch for r in rounds):.0f}",
            ratio=median(r.one_node / r.bare for r in rounds),
            threshold=0.4,
        ),
        Figure(
            name="  two nodes at once, each user's devices on both",
            measured=f"{two_nodes:,.0f} messages/s",
            beside=f"one node: {one_node:,.0f} messages/s; nodes, PostgreSQL, Redis and the load "
            f"share {os.cpu_count()} cores",
            ratio=median(r.two_nodes / r.one_node for r in rounds),
        ),
    ]
    cpu = [r.cpu for r in rounds if r.cpu is not None]
    if cpu:
        measured = f"{median(cpu) * 1e6:.0f} µs per message"
        figures.append(Figure(name="  processor time of the single node", measured=measured))
    return figures


async def _round(backends: fleet.BenchBackends, warm_up: int, frames: int) -> FleetRound:
    store = await backends.store()
    async with backends.nodes(1, store) as (node,):
        users = await LoadUsers.connect([node.address], USERS)
        await users.run(warm_up, MESSAGES)
        messages, commits = await node.commits()
        cpu = node.cpu_seconds()
        run = await users.run(frames, MESSAGES)
        cpu_after = node.cpu_seconds()
        messages_after, commits_after = await node.commits()
        users.close()
    stored = messages_after - messages
    batch = stored / (commits_after - commits)
    bare = await _bare(store, await backends.store(), round(batch))
    two_nodes = await _two_nodes(backends, warm_up, frames)
    per_message = None
    if cpu is not None and cpu_after is not None:
        per_message = (cpu_after - cpu) / stored
    return FleetRound(stored / run.seconds, bare, two_nodes, batch, per_message)


async def _two_nodes(backends: fleet.BenchBackends, warm_up: int, frames: int) -> float:
    async with backends.nodes(2, await backends.store()) as nodes:
        users = await LoadUsers.connect([node.address for node in nodes], USERS)
        await users.run(warm_up, MESSAGES)
        run = await users.run(frames, MESSAGES)
        users.close()
    return USERS * frames * MESSAGES / run.seconds


async def _bare(served: str, store: str, batch: int) -> float:
    """The rate at which bare asyncpg writes the messages of the node, in messages per second."""
    source = await asyncpg.connect(served)
    rows = [tuple(row) for row in await source.fetch("SELECT * FROM messages ORDER BY ctime")]
    await source.close()
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    connection = await asyncpg.connect(store)
    start = perf_counter()
    for rows_of_batch in batches:
        await _commit(connection, rows_of_batch)
    seconds = perf_counter() - start
    await connection.close()
    return len(rows) / seconds


async def _commit(connection: Any, rows: list[tuple[Any, ...]]) -> None:
    clocks = {row[0]: row[1] for row in rows}
    async with connection.transaction():
        for start in range(0, len(rows), ROWS_PER_INSERT):
            chunk = rows[start : start + ROWS_PER_INSERT]
            values = (value for row in chunk for value in row)
            await connection.execute(_insert(len(chunk), len(rows[0])), *values)
        await connection.execute(
            "INSERT INTO users (uid, ctime, bucket)"
            " SELECT *, 0 FROM unnest($1::text[], $2::bigint[]) "
            "ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime",
            list(clocks),
            list(clocks.values()),
        )


@cache
def _insert(rows: int, columns: int) -> str:
    groups = (
        ", ".join(f"${row * columns + column}" for column in range(1, columns + 1))
        for row in range(rows)
    )
    return f"INSERT INTO messages VALUES {', '.join(f'({group})' for group in groups)}"
