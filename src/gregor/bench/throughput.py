"""How many messages are durable, acknowledged and delivered in a second, beside what SQLite takes.

100 users with 3 devices each; each user's sender has one frame of 20 messages under way, which is
what the conversation allows: a node reads a connection's next frame when the last is stored. The
limit is the same SQLite with nothing around it: the rows that the server has stored, in the order
in which it did, written by bare sqlite3 to a fresh file with the same tables, indexes and pragmas,
in batches of the size that the server's commits had. Figure and limit are measured in turn.
"""

import sqlite3
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

from gregor.bench import servers
from gregor.bench.crowd import DEVICES, Crowd
from gregor.bench.report import Figure
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from gregor.storage.sqlite import configure

USERS, ROUNDS, FRAMES, WARM_UP, MESSAGES = 100, 3, 60, 5, 20


class Round(NamedTuple):
    served: float  # messages per second
    bare: float
    batch: float  # messages per commit
    cpu: float | None  # of the server, in seconds per message
    lags: int


async def measure(quick: bool) -> list[Figure]:
    rounds = [await _round(4 if quick else FRAMES) for _ in range(1 if quick else ROUNDS)]
    served, bare = median(r.served for r in rounds), median(r.bare for r in rounds)
    figures = [
        Figure(
            name="durable, acknowledged, delivered to 3 devices each",
            measured=f"{served:,.0f} messages/s",
            beside=f"bare SQLite: {bare:,.0f} messages/s in batches of "
            f"{mean(r.batch for r in rounds):.0f}",
            ratio=median(r.served / r.bare for r in rounds),
            threshold=0.4,
        ),
        Figure(
            name="  their deliveries",
            measured=f"{served * DEVICES:,.0f} messages/s",
            beside=f"{sum(r.lags for r in rounds)} times told from the store for being too slow",
        ),
    ]
    cpu = [r.cpu for r in rounds if r.cpu is not None]
    if cpu:
        measured = f"{median(cpu) * 1e6:.0f} µs per message"
        figures.append(Figure(name="  the server's processor time", measured=measured))
    return figures


async def _round(frames: int) -> Round:
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "served.db")
        async with servers.gregor(store) as server:
            crowd = await Crowd.gather([server.address], USERS)
            await crowd.exchange(WARM_UP, MESSAGES)
            messages, commits = await server.commits()
            cpu = server.cpu_seconds()
            exchange = await crowd.exchange(frames, MESSAGES)
            cpu_after = server.cpu_seconds()
            messages_after, commits_after = await server.commits()
            crowd.close()
        stored = messages_after - messages
        batch = stored / (commits_after - commits)
        bare = await _bare(store, Path(directory, "bare.db"), round(batch))
        per_message = None
        if cpu is not None and cpu_after is not None:
            per_message = (cpu_after - cpu) / stored
        return Round(stored / exchange.seconds, bare, batch, per_message, crowd.lags)


async def _bare(served: Path, store: Path, batch: int) -> float:
    """How many of the served messages bare SQLite takes in a second."""
    with sqlite3.connect(served) as source:
        rows = source.execute("SELECT * FROM messages ORDER BY rowid").fetchall()
    source.close()
    async with database_at(f"sqlite:///{store}", migrate):
        pass
    connection = sqlite3.connect(store)
    configure(connection)
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    start = perf_counter()
    for each in batches:
        _commit(connection, each)
    seconds = perf_counter() - start
    connection.close()
    return len(rows) / seconds


def _commit(connection: sqlite3.Connection, rows: list[Any]) -> None:
    clocks = {row[0]: row[1] for row in rows}
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
    connection.executemany(
        "INSERT INTO users (uid, ctime) VALUES (?, ?) "
        "ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime",
        clocks.items(),
    )
    connection.execute("COMMIT")
