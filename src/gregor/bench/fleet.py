"""What a fleet does, on a real PostgreSQL and a real Redis, beside what those do by themselves.

Throughput: 100 users with 3 devices each, as on SQLite, through one node; the limit is asyncpg,
which writes the rows that the node has stored, in the order in which it did, to the same tables
with multi-row inserts, in batches of the size that its commits had. Then through two nodes at once,
each with half of the users, whose devices are on both: on 2 cores that shows what a second node
costs, not what it brings.

Latency: a sender on one node, a device of the same user on the other, one message under way. The
time from the sender's ack to the delivery, which may come first, counts from 0; beside it what a
bare Redis takes from publish to receive.

The sweep: many users on one node; the store's answer to a sweep's question. Then Redis is killed,
some users are sent messages through another node, Redis comes back, and the clock stops when all
of them have heard.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from statistics import median, quantiles
from time import perf_counter
from typing import Any, NamedTuple

import asyncpg
from redis.asyncio import Redis as RedisClient

from gregor.bench import servers
from gregor.bench.crowd import Crowd
from gregor.bench.load import Device, chat_message, connect_all
from gregor.bench.report import Figure, Wanted
from gregor.core.message import new_msg_id
from gregor.server.app import now
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import PostgreSQL, Redis

USERS, FRAMES, WARM_UP, MESSAGES, ROWS = 100, 40, 5, 20, 500
SEEN, MANY, FEW, SWEPT = 500, 10_000, 200, 20
PATIENCE_SECONDS = 60.0


class Place(NamedTuple):
    """Where a fleet lives."""

    postgresql: PostgreSQL
    redis: Redis
    store: str


@asynccontextmanager
async def _place() -> AsyncIterator[Place]:
    async with PostgreSQL() as postgresql, Redis() as redis:
        yield Place(postgresql, redis, await _store(postgresql))


async def _store(postgresql: PostgreSQL) -> str:
    store = await postgresql.create_database()
    async with database_at(store, migrate):
        return store


@asynccontextmanager
async def _nodes(place: Place, number: int) -> AsyncIterator[list[servers.Server]]:
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(servers.node(place.store, place.redis.url))
            for _ in range(number)
        ]


# Throughput


async def measure_throughput(quick: bool) -> list[Figure]:
    frames = 4 if quick else FRAMES
    async with _place() as place:
        async with _nodes(place, 1) as (node,):
            one, batch = await _served(node, frames)
        bare = await _bare(place, round(batch))
        place = place._replace(store=await _store(place.postgresql))
        async with _nodes(place, 2) as nodes:
            two = await _served_by_two(nodes, frames)
    return [
        Figure(
            name="one node on PostgreSQL: durable, acknowledged, delivered to 3 devices each",
            measured=f"{one:,.0f} messages/s",
            beside=f"bare asyncpg: {bare:,.0f} messages/s in batches of {batch:.0f}",
            ratio=one / bare,
            threshold=0.4,
        ),
        Figure(
            name="two nodes at once, on the same cores",
            measured=f"{two:,.0f} messages/s",
            beside=f"one node: {one:,.0f} messages/s",
            ratio=two / one,
        ),
    ]


async def _served(node: servers.Server, frames: int) -> tuple[float, float]:
    """Messages per second, and per commit."""
    crowd = await Crowd.gather(node.address, USERS)
    await crowd.exchange(WARM_UP, MESSAGES)
    messages, commits = await node.commits()
    exchange = await crowd.exchange(frames, MESSAGES)
    messages_after, commits_after = await node.commits()
    crowd.close()
    stored = messages_after - messages
    return stored / exchange.seconds, stored / (commits_after - commits)


async def _served_by_two(nodes: list[servers.Server], frames: int) -> float:
    """Messages per second, of users whose devices are on both."""
    devices: list[Device] = []
    for user in range(USERS):
        for number in range(3):
            name = (f"user-{user}", f"device-{number}")
            devices += await connect_all(nodes[(user + number) % 2].address, [name])
    crowd = Crowd(devices)
    await crowd.exchange(WARM_UP, MESSAGES)
    exchange = await crowd.exchange(frames, MESSAGES)
    crowd.close()
    return USERS * frames * MESSAGES / exchange.seconds


async def _bare(place: Place, batch: int) -> float:
    """How many of the served messages asyncpg takes in a second."""
    served = await asyncpg.connect(place.store)
    rows = [tuple(row) for row in await served.fetch("SELECT * FROM messages ORDER BY ctime")]
    await served.close()
    connection = await asyncpg.connect(await _store(place.postgresql))
    start = perf_counter()
    for first in range(0, len(rows), batch):
        async with connection.transaction():
            await _write(connection, rows[first : first + batch])
    seconds = perf_counter() - start
    await connection.close()
    return len(rows) / seconds


async def _write(connection: asyncpg.Connection, rows: list[tuple[Any, ...]]) -> None:
    for first in range(0, len(rows), ROWS):
        some = rows[first : first + ROWS]
        await connection.execute(_insert(len(some)), *(value for row in some for value in row))
    clocks = {row[0]: row[1] for row in rows}
    await connection.execute(
        "INSERT INTO users SELECT * FROM unnest($1::text[], $2::bigint[]) "
        "ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime",
        list(clocks),
        list(clocks.values()),
    )


def _insert(rows: int, width: int = 9) -> str:
    groups = (
        ", ".join(f"${row * width + place + 1}" for place in range(width)) for row in range(rows)
    )
    return f"INSERT INTO messages VALUES {', '.join(f'({group})' for group in groups)}"


# Latency


async def measure_latency(quick: bool) -> list[Figure]:
    number = 50 if quick else SEEN
    async with _place() as place, _nodes(place, 2) as (here, there):
        sender = await Device.connect(here.address, "user", "sender")
        listener = await Device.connect(there.address, "user", "listener")
        walks = [await _walk(sender, listener, n) for n in range(number + WARM_UP)][WARM_UP:]
        sender.close()
        listener.close()
        bare = await _bare_redis(place.redis.url, listener.frame_bytes, number)
    acked, delivered = ([walk[place] for walk in walks] for place in (0, 1))
    after_ack = [max(0.0, there - here) for here, there in walks]
    return [
        Figure(
            name="from sent to delivered on the other node",
            measured=f"p50 {_p50(delivered)}, p99 {_p99(delivered)}",
            beside=f"from sent to acknowledged: p50 {_p50(acked)}",
            ratio=median(delivered) / median(acked),
        ),
        Figure(
            name="from acknowledged to delivered on the other node",
            measured=f"p50 {_p50(after_ack)}, p99 {_p99(after_ack)}",
            beside=f"bare Redis, publish to receive: p50 {_p50(bare)}, p99 {_p99(bare)}",
            ratio=median(after_ack) / median(bare),
            wanted=Wanted.BELOW,
            threshold=3,
        ),
    ]


async def _walk(sender: Device, listener: Device, n: int) -> tuple[float, float]:
    """How long after it was sent a message is acknowledged here, and delivered there."""
    delivered: asyncio.Future[float] = asyncio.get_running_loop().create_future()
    listener.on_news = lambda _: delivered.set_result(perf_counter())
    start = perf_counter()
    await sender.consume(n, [chat_message(new_msg_id(), n)])
    acked = perf_counter()
    async with asyncio.timeout(PATIENCE_SECONDS):
        return acked - start, await delivered - start


async def _bare_redis(url: str, size: int, number: int) -> list[float]:
    times = []
    async with RedisClient.from_url(url) as redis, redis.pubsub() as subscriber:
        await subscriber.subscribe("channel")
        await subscriber.get_message(timeout=PATIENCE_SECONDS)
        for _ in range(number + WARM_UP):
            start = perf_counter()
            await asyncio.gather(
                redis.publish("channel", b"x" * size),
                subscriber.get_message(timeout=PATIENCE_SECONDS),
            )
            times.append(perf_counter() - start)
    return times[WARM_UP:]


def _p50(times: list[float]) -> str:
    return f"{median(times) * 1e3:.2f} ms"


def _p99(times: list[float]) -> str:
    return f"{quantiles(times, n=100)[98] * 1e3:.2f} ms"


# The sweep


async def measure_sweep(quick: bool) -> list[Figure]:
    users, missed = (FEW, SWEPT) if quick else (MANY, SEEN)
    names = [(f"user-{number}", "device") for number in range(users)]
    async with _place() as place, _nodes(place, 2) as (here, there):
        crowd = await connect_all(here.address, names)
        senders = await connect_all(there.address, [(uid, "sender") for uid, _ in names[:missed]])
        for sender in senders:
            await sender.consume(1, [chat_message(new_msg_id(), 1)])
        swept = await _sweep(place.store, [uid for uid, _ in names])
        healed = await _return(place.redis, crowd[:missed], senders)
        for device in crowd + senders:
            device.close()
    return [
        Figure(
            name=f"a sweep, {users:,} users on a node",
            measured=f"{swept * 1e3:.0f} ms for its question",
            beside="every 5 s",
            ratio=swept / 5,
            wanted=Wanted.BELOW,
            threshold=0.1,
        ),
        Figure(
            name=f"Redis is back: {users:,} channels subscribed, {missed} users healed",
            measured=f"{healed:.2f} s after its start",
            beside="a sweep's 5 s and its reconnecting",
            ratio=healed / 10,
            wanted=Wanted.BELOW,
            threshold=1,
        ),
    ]


async def _sweep(store: str, uids: list[str]) -> float:
    """How long the clocks of all these users take."""
    async with database_at(store) as database, SQLStateMachine(database, now) as machine:
        await machine.ctimes(uids)
        start = perf_counter()
        await machine.ctimes(uids)
        return perf_counter() - start


async def _return(redis: Redis, devices: list[Device], senders: list[Device]) -> float:
    """How long after Redis is back the devices have what was sent while it was away."""
    heard = {device: asyncio.Event() for device in devices}
    for device in devices:
        device.on_news = lambda device: heard[device].set()
    await redis.kill()
    for sender in senders:
        await sender.consume(2, [chat_message(new_msg_id(), 2)])
    start = perf_counter()
    await redis.start()
    async with asyncio.timeout(PATIENCE_SECONDS):
        for event in heard.values():
            await event.wait()
    return perf_counter() - start
