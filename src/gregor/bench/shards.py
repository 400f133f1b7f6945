"""What it costs that users are spread over several databases, and how fast they move.

The state machine is measured as a node calls it, in this process: 100 users, each with one batch
of 20 messages under way. Beside it, in turns, the same on one store that is not sharded. All
databases are of one PostgreSQL on this machine, so that more shards are not more power: told is
what they cost. What routing costs in this process is told by itself too, over a store that answers
at once, for the rates are noisy.

Then a third shard is added to two that are full, and buckets move to it while one writer for each
of 20 users writes on; told is what these have waited for a message at the longest.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from time import perf_counter, process_time

from gregor.bench.load import BenchFailed
from gregor.bench.report import Figure, Wanted
from gregor.clock import now
from gregor.core.message import InBandMessage, create
from gregor.interfaces import Outcome, StateMachineOfRecord, Stored
from gregor.state_machines.moving import Moved, Mover, establish
from gregor.state_machines.sharded import ShardedStateMachine
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.database import Database
from gregor.storage.engine import databases_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import PostgreSQL

USERS, BATCH, SECONDS, ROUNDS = 100, 20, 1.0, 20
CALLS = 5_000
SWEPT = 10_000
MOVING_USERS, EACH, WRITERS = 1_000, 20, 20
LONGEST_PAUSE = 0.5


async def measure(quick: bool) -> list[Figure]:
    seconds, rounds = (0.2, 1) if quick else (SECONDS, ROUNDS)
    async with PostgreSQL() as server:
        figures = await _throughput(server, seconds, rounds)
        figures.append(await _routing(server, 10 if quick else CALLS))
        figures.append(await _sweep(server, 200 if quick else SWEPT))
        figures.append(await _move(server, 50 if quick else MOVING_USERS))
    return figures


@asynccontextmanager
async def _databases(server: PostgreSQL, number: int) -> AsyncIterator[dict[str, Database]]:
    urls = {f"shard{n}": await server.create_database() for n in range(number)}
    async with databases_at(urls, migrate) as databases:
        yield databases


@asynccontextmanager
async def _sharded(databases: Mapping[str, Database]) -> AsyncIterator[ShardedStateMachine]:
    await establish(databases)
    machines = {name: SQLStateMachine(database, now) for name, database in databases.items()}
    async with ShardedStateMachine(machines) as machine:
        yield machine


async def _throughput(server: PostgreSQL, seconds: float, rounds: int) -> list[Figure]:
    rates: dict[int, list[float]] = {0: [], 1: [], 2: [], 4: []}
    async with AsyncExitStack() as stack:
        machines: dict[int, StateMachineOfRecord] = {}
        for shards in rates:
            databases = await stack.enter_async_context(_databases(server, max(1, shards)))
            opened = _sharded(databases) if shards else SQLStateMachine(databases["shard0"], now)
            machines[shards] = await stack.enter_async_context(opened)
        for number in range(1 + rounds):  # the first warms up
            # To and fro: what slows the machine down for a while then slows both of a pair.
            for shards in sorted(machines, reverse=number % 2 == 1):
                rates[shards].append(await _rate(machines[shards], seconds))
    rate = {shards: median(measured[1:]) for shards, measured in rates.items()}
    bare = f"one store that is not sharded: {rate[0]:,.0f} messages/s"
    cost = median(one / none for one, none in zip(rates[1][1:], rates[0][1:], strict=True))
    return [
        Figure(
            name="routing: one shard",
            measured=f"{rate[1]:,.0f} messages/s",
            beside=bare,
            ratio=cost,
            wanted=Wanted.AT_LEAST,
            threshold=0.95,
        ),
        *(
            Figure(
                name=f"  {shards} shards on the same machine",
                measured=f"{rate[shards]:,.0f} messages/s",
                beside=bare,
                ratio=rate[shards] / rate[0],
            )
            for shards in (2, 4)
        ),
    ]


async def _rate(machine: StateMachineOfRecord, seconds: float) -> float:
    start = perf_counter()
    stored = 0

    async def send(uid: str) -> None:
        nonlocal stored
        while perf_counter() - start < seconds:
            batch = [create(uid, "chat", number) for number in range(BATCH)]
            outcomes = await machine.consume_messages(batch)
            if not all(isinstance(outcome, Stored) for outcome in outcomes):
                raise BenchFailed("not all was stored")
            stored += len(outcomes)

    async with asyncio.TaskGroup() as senders:
        for number in range(USERS):
            senders.create_task(send(f"user-{number}"))
    return stored / (perf_counter() - start)


class _AtOnce(SQLStateMachine):
    """Stores nothing, so that what is left is what is done around it."""

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        return [Stored(message) for message in messages]


async def _routing(server: PostgreSQL, calls: int) -> Figure:
    async with _databases(server, 1) as databases:
        await establish(databases)
        alone = _AtOnce(databases["shard0"], now)
        async with ShardedStateMachine({"shard0": alone}) as sharded:
            batch = [create("user", "chat", number) for number in range(BATCH)]
            costs = []
            for machine in (sharded, alone):
                start = process_time()
                for _ in range(calls):
                    await machine.consume_messages(batch)
                costs.append((process_time() - start) / calls / BATCH)
    routed, straight = costs
    return Figure(
        name="what routing adds to a message",
        measured=f"{(routed - straight) * 1e6:.2f} µs of processor time",
        beside="a store that answers at once",
    )


async def _sweep(server: PostgreSQL, users: int) -> Figure:
    uids = [f"user-{number}" for number in range(users)]
    costs: dict[int, list[float]] = {1: [], 4: []}
    for shards, measured in costs.items():
        async with _databases(server, shards) as databases, _sharded(databases) as machine:
            await machine.consume_messages([create(uid, "chat") for uid in uids])
            for _ in range(11):
                start = perf_counter()
                clocks = await machine.ctimes(uids)
                measured.append(perf_counter() - start)
            if not all(clocks[uid] for uid in uids):
                raise BenchFailed("the clocks of some users are missing")
    one, four = (median(measured[1:]) for measured in costs.values())
    return Figure(
        name=f"the question of a sweep over {users:,} users, 4 shards",
        measured=f"{four * 1e3:.1f} ms",
        beside=f"1 shard: {one * 1e3:.1f} ms",
        ratio=four / one,
    )


async def _move(server: PostgreSQL, users: int) -> Figure:
    async with _databases(server, 3) as databases:
        await establish(dict(list(databases.items())[:2]))
        async with _sharded(databases) as machine:
            for number in range(EACH):
                await machine.consume_messages(
                    [create(f"user-{n}", "chat", number) for n in range(users)]
                )
            mover = Mover(databases)
            plan, moved, waits = await mover.plan(), list[Moved](), [0.0]
            over = asyncio.Event()

            async def write(uid: str) -> None:
                while not over.is_set():
                    start = perf_counter()
                    await machine.consume_message(create(uid, "chat"))
                    waits.append(perf_counter() - start)
                    await asyncio.sleep(0.01)

            async with asyncio.TaskGroup() as writers:
                for move in range(WRITERS):
                    writers.create_task(write(f"user-{move}"))
                start = perf_counter()
                await mover.move(plan, moved.append)
                took = perf_counter() - start
                over.set()
    there = sum(each.users for each in moved)
    return Figure(
        name=f"{there:,} users in {len(moved):,} buckets move, {EACH} messages each",
        measured=f"{there / took:,.0f} users/s; a writer waited {max(waits) * 1e3:.0f} ms at the "
        "longest",
        beside=f"allowed: {LONGEST_PAUSE * 1e3:.0f} ms",
        ratio=max(waits) / LONGEST_PAUSE,
        wanted=Wanted.BELOW,
        threshold=1,
    )
