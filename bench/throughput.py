"""The rate of messages that are durable, acknowledged and delivered; baseline: bare SQLite.

There are 100 users with 3 devices each. Each user's sender has one frame of 20 messages in flight,
which is what the conversation allows: a node reads the next frame of a connection after it has
stored the last one. The baseline is the same SQLite without Gregor: bare sqlite3 writes the rows
that the server has stored, in the same order, to a new file with the same tables, indexes and
pragmas, in batches of the same size as the server's commits. Figure and baseline are measured
alternately.
"""

import sqlite3
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

from bench import servers
from bench.load_users import DEVICES, LoadUsers
from bench.report import Figure
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.sqlite import configure
from gregor.stores.sql.store_url import database_at

USERS, ROUNDS, FRAMES, WARM_UP, MESSAGES = 100, 3, 60, 5, 20


class ThroughputRound(NamedTuple):
    gregor: float  # messages per second
    bare: float
    batch: float  # messages per commit
    cpu: float | None  # processor seconds of the server per message
    catch_up_syncs: int  # of slow consumers


async def measure(quick: bool) -> list[Figure]:
    rounds = [await _round(4 if quick else FRAMES) for _ in range(1 if quick else ROUNDS)]
    gregor, bare = median(r.gregor for r in rounds), median(r.bare for r in rounds)
    figures = [
        Figure(
            name="durable, acknowledged, delivered to 3 devices each",
            measured=f"{gregor:,.0f} messages/s",
            beside=f"bare SQLite: {bare:,.0f} messages/s in batches of "
            f"{mean(r.batch for r in rounds):.0f}",
            ratio=median(r.gregor / r.bare for r in rounds),
            threshold=0.4,
        ),
        Figure(
            name="  deliveries",
            measured=f"{gregor * DEVICES:,.0f} messages/s",
            beside=f"{sum(r.catch_up_syncs for r in rounds)} syncs of slow consumers",
        ),
    ]
    cpu = [r.cpu for r in rounds if r.cpu is not None]
    if cpu:
        measured = f"{median(cpu) * 1e6:.0f} µs per message"
        figures.append(Figure(name="  processor time of the server", measured=measured))
    return figures


async def _round(frames: int) -> ThroughputRound:
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "served.db")
        async with servers.gregor(store) as server:
            users = await LoadUsers.connect([server.address], USERS)
            await users.run(WARM_UP, MESSAGES)
            messages, commits = await server.commits()
            cpu = server.cpu_seconds()
            run = await users.run(frames, MESSAGES)
            cpu_after = server.cpu_seconds()
            messages_after, commits_after = await server.commits()
            users.close()
        stored = messages_after - messages
        batch = stored / (commits_after - commits)
        bare = await _bare(store, Path(directory, "bare.db"), round(batch))
        per_message = None
        if cpu is not None and cpu_after is not None:
            per_message = (cpu_after - cpu) / stored
        return ThroughputRound(stored / run.seconds, bare, batch, per_message, users.catch_up_syncs)


async def _bare(served: Path, store: Path, batch: int) -> float:
    """The rate at which bare SQLite writes the messages of the server, in messages per second."""
    with sqlite3.connect(served) as source:
        rows = source.execute("SELECT * FROM messages ORDER BY rowid").fetchall()
    source.close()
    async with database_at(f"sqlite:///{store}", migrate):
        pass
    connection = sqlite3.connect(store)
    configure(connection)
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    start = perf_counter()
    for rows_of_batch in batches:
        _commit(connection, rows_of_batch)
    seconds = perf_counter() - start
    connection.close()
    return len(rows) / seconds


def _commit(connection: sqlite3.Connection, rows: list[Any]) -> None:
    clocks = {row[0]: row[1] for row in rows}
    connection.execute("BEGIN IMMEDIATE")
    places = ", ".join("?" * len(rows[0]))
    connection.executemany(f"INSERT INTO messages VALUES ({places})", rows)
    connection.executemany(
        "INSERT INTO users (uid, ctime, bucket) VALUES (?, ?, 0) "
        "ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime",
        clocks.items(),
    )
    connection.execute("COMMIT")
