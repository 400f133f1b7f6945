"""The cost of ten thousand idle users on one node, and the recovery after an outage of Redis.

The query of the sweep is measured in this process, without other load, with a state machine like
the node's on the node's store. The idle load is the processor time of the node while no messages
are sent; it includes sweeps, and pings to all devices.

Then Redis is killed, a second node stores a message for some of the users, and Redis is restarted.
The outage is short, because after a longer one a node waits up to 5 s between reconnect attempts.
Two times are reported, both from the restart: until /readyz of the node succeeds again, and until
each of these devices has its message.
"""

import asyncio
from collections.abc import Sequence
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import msgspec

from bench import fleet
from bench.load import BenchFailed, LoadDevice, chat_message, connect_all
from bench.report import Figure, Wanted
from bench.servers import ServerProcess
from gregor.clock import now
from gregor.core.message import new_msg_id
from gregor.node.gap_repair import SWEEP_SECONDS
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at

USERS, MISSED, QUERIES, IDLE_SECONDS = 10_000, 500, 20, 20.0
POLL_SECONDS = 0.01
RUN_TIMEOUT_SECONDS = 60.0


class QueryCost(NamedTuple):
    """The cost of one query for the clocks of all users, in seconds."""

    duration: float
    cpu: float  # processor time of the querying process


class RedisRecovery(NamedTuple):
    """The recovery after a restart of Redis; times in seconds after the restart."""

    ready: float
    current: float
    updated_before: int  # devices that a sweep had updated before the restart


async def measure(quick: bool) -> list[Figure]:
    users, missed, idle = (200, 20, 0.5) if quick else (USERS, MISSED, IDLE_SECONDS)
    uids = [f"user-{number}" for number in range(users)]
    async with fleet.backends() as backends:
        store = await backends.store()
        async with backends.nodes(2, store) as (node, other):
            await _store_messages(other, uids)  # so that each user has a clock
            start = perf_counter()
            devices = await connect_all([(node.address, uid, "phone") for uid in uids])
            connecting = perf_counter() - start
            core_share = await _idle_share(node, idle)
            query = await _query_clocks(store, uids)
            recovery = await _outage(backends, node, other, devices[:missed])
            for device in devices:
                device.close()
    figures = [
        Figure(
            name=f"the query of a sweep over {users:,} users",
            measured=f"{query.duration * 1e3:.1f} ms, of which {query.cpu * 1e3:.1f} ms are "
            "processor time of the querying process",
            beside=f"at most one query every {SWEEP_SECONDS:g} s",
            ratio=query.duration / SWEEP_SECONDS,
            wanted=Wanted.BELOW,
            threshold=0.1,
        ),
        Figure(
            name=f"Redis is back: {missed} of {users:,} users have missed a message",
            measured=f"all current after {recovery.current:.2f} s, "
            f"ready after {recovery.ready:.2f} s",
            beside=f"only a sweep: up to {SWEEP_SECONDS:g} s "
            f"({recovery.updated_before} updated before)",
            ratio=recovery.current / SWEEP_SECONDS,
            wanted=Wanted.BELOW,
            threshold=1,
        ),
    ]
    if core_share is not None:
        name = f"  {users:,} users connected, and idle"
        measured = f"{core_share:.1%} of a core while idle"
        beside = f"connected at {users / connecting:,.0f}/s"
        figures.append(Figure(name=name, measured=measured, beside=beside))
    return figures


async def _store_messages(server: ServerProcess, uids: Sequence[str]) -> None:
    """Store one message for each of the users."""
    message = msgspec.Raw(chat_message(new_msg_id(), 1))
    body = msgspec.json.encode({"uids": uids, "message": message})
    results = msgspec.json.decode(await server.post("/v1/messages", body))["results"]
    if any(result["status"] != "stored" for result in results):
        raise BenchFailed("not all messages were stored")


async def _idle_share(node: ServerProcess, seconds: float) -> float | None:
    """The share of a core that the node uses while no messages are sent; None if unknown."""
    await asyncio.sleep(seconds / 10)
    before, start = node.cpu_seconds(), perf_counter()
    await asyncio.sleep(seconds)
    after, end = node.cpu_seconds(), perf_counter()
    return None if before is None or after is None else (after - before) / (end - start)


async def _query_clocks(store: str, uids: Sequence[str]) -> QueryCost:
    costs = []
    async with database_at(store) as database, SQLStateMachine(database, now) as state_machine:
        for _ in range(1 + QUERIES):
            start, cpu = perf_counter(), process_time()
            clocks = await state_machine.ctimes(uids)
            costs.append(QueryCost(perf_counter() - start, process_time() - cpu))
    if not all(clocks.values()):
        raise BenchFailed("the clocks of some users are missing")
    # Without the first query, which opened the connection.
    return QueryCost(median(c.duration for c in costs[1:]), median(c.cpu for c in costs[1:]))


async def _outage(
    backends: fleet.BenchBackends,
    node: ServerProcess,
    other: ServerProcess,
    devices: Sequence[LoadDevice],
) -> RedisRecovery:
    outdated = set(devices)
    current: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def update(device: LoadDevice) -> None:
        outdated.discard(device)
        if not outdated and not current.done():
            current.set_result(perf_counter())

    async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
        await backends.redis.kill()
        for server in (node, other):
            await _wait_until(server, ready=False)
        for device in devices:
            device.on_update = update
        await _store_messages(other, [device.uid for device in devices])
        await backends.redis.start()
        start, updated_before = perf_counter(), len(devices) - len(outdated)
        await _wait_until(node, ready=True)
        ready = perf_counter() - start
        return RedisRecovery(ready, max(0.0, await current - start), updated_before)


async def _wait_until(server: ServerProcess, *, ready: bool) -> None:
    while await server.ready() is not ready:  # noqa: ASYNC110 (readiness can only be polled)
        await asyncio.sleep(POLL_SECONDS)
