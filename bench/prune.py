"""What the past costs: the bytes of an id whose contents are forgotten, and the rate of writes
while a store is pruned; baselines: the messages with their contents, and a store that is not
pruned.

The ids are those of one user with one live item, which was replaced again and again: on an SQLite
file and on PostgreSQL. The writers are those of `throughput`. Their server is asked to prune many
messages of other users meanwhile; it does so as it does in the background. The servers with and
without that are measured alternately, each on a copy of the same file.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench import servers
from bench.load import BenchFailed
from bench.load_users import LoadUsers
from bench.report import Figure, Wanted
from bench.throughput import FRAMES, MESSAGES, ROUNDS, USERS, WARM_UP
from gregor.clock import now
from gregor.core.history import DAY, Retention
from gregor.core.message import put
from gregor.node.pruning import Pruner
from gregor.stores.sql.database import Database
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock
from tests.fleet.servers import PostgreSQL

PAST, PAST_ON_POSTGRESQL, PAST_OF_OTHERS, BATCH = 1_000_000, 100_000, 100_000, 500
BODY = "x" * 200
PRUNE = (
    b"POST /v1/prune HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 21\r\n\r\n{"older_than": "90d"}'
)


async def measure(quick: bool) -> list[Figure]:
    part = 50 if quick else 1
    return [
        *await _sizes_on_sqlite(PAST // part),
        await _size_on_postgresql(PAST_ON_POSTGRESQL // part),
        await _throughput(1 if quick else ROUNDS, 4 if quick else FRAMES, PAST_OF_OTHERS // part),
    ]


# Sizes


async def _sizes_on_sqlite(past: int) -> list[Figure]:
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        path = Path(directory, "gregor.db")
        async with _replaced(f"sqlite:///{path}", past) as (_, machine, clock):
            before = _bytes_of(path)
            await _prune(machine, clock, 100)
            with_ids = _bytes_of(path)
            await _prune(machine, clock, 1_000)
            after = _bytes_of(path)
        new = Path(directory, "new.db")
        async with _replaced(f"sqlite:///{new}", 1):
            constant = _bytes_of(new)
    return [
        _figure(f"{past:,} past ids of one live item, on SQLite", past, before, with_ids),
        Figure(
            name="  the file when these are forgotten as well",
            measured=f"{after / 1024:,.0f} KiB",
            beside=f"a new file: {constant / 1024:,.0f} KiB",
            ratio=after / constant,
            wanted=Wanted.BELOW,
            threshold=2,
        ),
    ]


def _bytes_of(path: Path) -> int:
    return path.stat().st_size


async def _size_on_postgresql(past: int) -> Figure:
    async with (
        PostgreSQL() as postgresql,
        _replaced(await postgresql.create_database(), past) as (database, machine, clock),
    ):
        before = await _relation_bytes(database, "messages")
        await _prune(machine, clock, 100)
        with_ids = await _relation_bytes(database, "pruned")
    return _figure(f"{past:,} past ids of one live item, on PostgreSQL", past, before, with_ids)


async def _relation_bytes(database: Database, table: str) -> int:
    """With indexes."""
    query = f"SELECT pg_total_relation_size('{table}')"
    ((size,),) = await database.read(lambda c: c.execute_sql(query))
    return int(size)


def _figure(name: str, past: int, before: int, with_ids: int) -> Figure:
    return Figure(
        name=name,
        measured=f"{with_ids / past:.0f} bytes each",
        beside=f"with contents: {before / past:.0f} bytes",
        ratio=with_ids / past,
        wanted=Wanted.BELOW,
        threshold=200,
    )


@asynccontextmanager
async def _replaced(
    url: str, times: int
) -> AsyncIterator[tuple[Database, SQLStateMachine, ManualClock]]:
    """A new store with an item that was replaced so many times, a hundred days ago."""
    clock = ManualClock(now() - 100 * DAY)
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        for start in range(0, times + 1, BATCH):
            numbers = range(start, min(start + BATCH, times + 1))
            await machine.consume_messages([put("ann", "badge", BODY) for _ in numbers])
        await database.scrub()
        yield database, machine, clock


async def _prune(machine: SQLStateMachine, clock: ManualClock, days: int) -> None:
    """Prune when so many days have passed."""
    clock.now += days * DAY
    await Pruner({"": machine}, Retention(), clock, pauses=0).prune()


# Throughput


async def _throughput(rounds: int, frames: int, past: int) -> Figure:
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "gregor.db")
        await _fill(store, past)
        rates = [
            [await _rate(store, frames, pruning) for pruning in (False, True)]
            for _ in range(rounds)
        ]
    idle, pruning = (median(rate) for rate in zip(*rates, strict=True))
    return Figure(
        name="durable, acknowledged, delivered, while the store is pruned",
        measured=f"{pruning:,.0f} messages/s",
        beside=f"without: {idle:,.0f} messages/s",
        ratio=median(pruning / idle for idle, pruning in rates),
        threshold=0.9,
    )


async def _fill(store: Path, past: int) -> None:
    """Make a store in which each of many users has replaced an item, long ago."""
    clock = ManualClock(now() - 200 * DAY)
    async with (
        database_at(f"sqlite:///{store}", migrate) as database,
        SQLStateMachine(database, clock) as machine,
    ):
        for number in range(past // BATCH):
            uid = f"past-{number}"
            await machine.consume_messages([put(uid, "badge", BODY) for _ in range(BATCH)])


async def _rate(filled: Path, frames: int, pruning: bool) -> float:
    """Messages per second, on a copy of the store."""
    store = filled.with_name("copy.db")
    shutil.copyfile(filled, store)
    async with servers.gregor(store) as server:
        users = await LoadUsers.connect([server.address], USERS)
        await users.run(WARM_UP, MESSAGES)
        if pruning:
            async with _being_pruned(server):
                run = await users.run(frames, MESSAGES)
        else:
            run = await users.run(frames, MESSAGES)
        users.close()
    return USERS * frames * MESSAGES / run.seconds


@asynccontextmanager
async def _being_pruned(server: servers.ServerProcess) -> AsyncIterator[None]:
    """While the block runs, the server prunes. Raises BenchFailed if it has ended before."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(PRUNE)
    answer = asyncio.create_task(reader.readline())
    yield
    if answer.done():
        raise BenchFailed(f"the server was done too soon: {answer.result().decode()}")
    answer.cancel()
    writer.close()
