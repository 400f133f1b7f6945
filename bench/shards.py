"""The cost of shards: routing, sweeps, and moving users between shards.

The state machine is called in this process, as a node calls it: 100 users, each with one batch of
20 messages in flight. The baseline, measured alternately, is one store without shards. All
databases are on one PostgreSQL server on this machine, so more shards give no more capacity, and
the figures show only their cost. The rates are noisy; so the cost of routing is also measured
separately, with a store that returns at once.

Then a third shard is added to two full ones, and buckets move to it while one writer for each of
20 users continues to write. The longest time that a writer waited for a message is reported.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median
from time import perf_counter, process_time

from bench.load import BenchFailed
from bench.report import Figure, Wanted
from gregor.clock import now
from gregor.core.message import create
from gregor.interfaces import Slot, StateMachineOfRecord, Stored
from gregor.shards.rebalance import Moved, Rebalancer
from gregor.shards.shard_map import establish
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql.database import Database
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import databases_at
from tests.fleet.servers import PostgreSQL

USERS, BATCH, SECONDS, ROUNDS = 100, 20, 1.0, 20
CALLS = 5_000
SWEPT = 10_000
MOVING_USERS, MESSAGES_PER_USER, WRITERS = 1_000, 20, 20
MAX_WRITE_SECONDS = 0.5


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
            # In alternating order, so that a slowdown of the machine affects both of a pair.
            for shards in sorted(machines, reverse=number % 2 == 1):
                rates[shards].append(await _rate(machines[shards], seconds))
    rate = {shards: median(measured[1:]) for shards, measured in rates.items()}
    baseline = f"one store without shards: {rate[0]:,.0f} messages/s"
    pairs = zip(rates[1][1:], rates[0][1:], strict=True)
    one_shard = median(sharded / unsharded for sharded, unsharded in pairs)
    return [
        Figure(
            name="routing: one shard",
            measured=f"{rate[1]:,.0f} messages/s",
            beside=baseline,
            ratio=one_shard,
            wanted=Wanted.AT_LEAST,
            threshold=0.95,
        ),
        *(
            Figure(
                name=f"  {shards} shards on the same machine",
                measured=f"{rate[shards]:,.0f} messages/s",
                beside=baseline,
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
                raise BenchFailed("not all messages were stored")
            stored += len(outcomes)

    async with asyncio.TaskGroup() as senders:
        for number in range(USERS):
            senders.create_task(send(f"user-{number}"))
    return stored / (perf_counter() - start)


class _NoOpStateMachine(SQLStateMachine):
    """Stores nothing, so that only the cost of routing remains."""

    async def store(self, slots: Sequence[Slot]) -> None:
        for slot in slots:
            slot.outcome = Stored(slot.message)


async def _routing(server: PostgreSQL, calls: int) -> Figure:
    async with _databases(server, 1) as databases:
        await establish(databases)
        unsharded = _NoOpStateMachine(databases["shard0"], now)
        async with ShardedStateMachine({"shard0": unsharded}) as sharded:
            batch = [create("user", "chat", number) for number in range(BATCH)]
            costs = []
            for machine in (sharded, unsharded):
                start = process_time()
                for _ in range(calls):
                    await machine.consume_messages(batch)
                costs.append((process_time() - start) / calls / BATCH)
    routed, direct = costs
    return Figure(
        name="what routing adds to a message",
        measured=f"{(routed - direct) * 1e6:.2f} µs of processor time",
        beside="a store that returns at once",
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
        name=f"the query of a sweep over {users:,} users, 4 shards",
        measured=f"{four * 1e3:.1f} ms",
        beside=f"1 shard: {one * 1e3:.1f} ms",
        ratio=four / one,
    )


async def _move(server: PostgreSQL, users: int) -> Figure:
    async with _databases(server, 3) as databases:
        await establish(dict(list(databases.items())[:2]))
        async with _sharded(databases) as machine:
            for number in range(MESSAGES_PER_USER):
                await machine.consume_messages(
                    [create(f"user-{n}", "chat", number) for n in range(users)]
                )
            rebalancer = Rebalancer(databases)
            plan, moved, waits = await rebalancer.plan(), list[Moved](), [0.0]
            finished = asyncio.Event()

            async def write(uid: str) -> None:
                while not finished.is_set():
                    start = perf_counter()
                    await machine.consume_message(create(uid, "chat"))
                    waits.append(perf_counter() - start)
                    await asyncio.sleep(0.01)

            async with asyncio.TaskGroup() as writers:
                for number in range(WRITERS):
                    writers.create_task(write(f"user-{number}"))
                start = perf_counter()
                await rebalancer.move(plan, moved.append)
                seconds = perf_counter() - start
                finished.set()
    moved_users = sum(move.users for move in moved)
    return Figure(
        name=f"{moved_users:,} users in {len(moved):,} buckets move, "
        f"{MESSAGES_PER_USER} messages each",
        measured=f"{moved_users / seconds:,.0f} users/s; longest wait of a writer: "
        f"{max(waits) * 1e3:.0f} ms",
        beside=f"allowed: {MAX_WRITE_SECONDS * 1e3:.0f} ms",
        ratio=max(waits) / MAX_WRITE_SECONDS,
        wanted=Wanted.BELOW,
        threshold=1,
    )
