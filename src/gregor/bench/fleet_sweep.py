"""What ten thousand users on one node cost while nothing happens, and after Redis was away.

The sweep's question is timed where nobody else asks it: in this process, by a state machine like
the node's on the node's store. The node's own processor time is what it uses while nobody sends;
sweeps are in it, and so are the pings to all devices.

Then Redis is killed, some of the users have a message stored by a second node, and Redis comes
back, without having been away for long: a node that has knocked in vain for a while waits up to 5 s
between attempts. Told is how long the node takes from then on until /readyz says that it hears of
everybody again, and until each of those devices has its message.
"""

import asyncio
from collections.abc import Sequence
from statistics import median
from time import perf_counter, process_time
from typing import NamedTuple

import msgspec

from gregor.bench import fleet
from gregor.bench.load import BenchFailed, Device, chat_message, connect_all
from gregor.bench.report import Figure, Wanted
from gregor.bench.servers import Server
from gregor.clock import now
from gregor.core.message import new_msg_id
from gregor.node import SWEEP_SECONDS
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.engine import database_at

USERS, MISSED, TIMES, IDLE_SECONDS = 10_000, 500, 20, 20.0
POLL_SECONDS = 0.01
PATIENCE_SECONDS = 60.0


class Question(NamedTuple):
    """What the clocks of all users cost, in seconds."""

    duration: float
    cpu: float  # of the process that asks


class Return(NamedTuple):
    """Seconds after Redis is back."""

    ready: float
    healed: float
    before: int  # how many devices a sweep had told by then


async def measure(quick: bool) -> list[Figure]:
    users, missed, idle = (200, 20, 0.5) if quick else (USERS, MISSED, IDLE_SECONDS)
    uids = [f"user-{number}" for number in range(users)]
    async with fleet.place() as place:
        store = await place.store()
        async with place.nodes(2, store) as (node, other):
            await _tell(other, uids)  # everybody has a clock
            start = perf_counter()
            devices = await connect_all([(node.address, uid, "phone") for uid in uids])
            connecting = perf_counter() - start
            share = await _idle_share(node, idle)
            question = await _ask(store, uids)
            back = await _outage(place, node, other, devices[:missed])
            for device in devices:
                device.close()
    figures = [
        Figure(
            name=f"the question of a sweep over {users:,} users",
            measured=f"{question.duration * 1e3:.1f} ms, {question.cpu * 1e3:.1f} ms of them "
            "processor time of who asks",
            beside=f"it is asked every {SWEEP_SECONDS:g} s at the most",
            ratio=question.duration / SWEEP_SECONDS,
            wanted=Wanted.BELOW,
            threshold=0.1,
        ),
        Figure(
            name=f"Redis is back: {missed} of {users:,} users have missed a message",
            measured=f"all healed after {back.healed:.2f} s, ready after {back.ready:.2f} s",
            beside=f"a sweep alone: up to {SWEEP_SECONDS:g} s ({back.before} were told before)",
            ratio=back.healed / SWEEP_SECONDS,
            wanted=Wanted.BELOW,
            threshold=1,
        ),
    ]
    if share is not None:
        name = f"  {users:,} users connect, and do nothing"
        measured = f"{share:.1%} of a core while idle"
        beside = f"connected at {users / connecting:,.0f}/s"
        figures.append(Figure(name=name, measured=measured, beside=beside))
    return figures


async def _tell(server: Server, uids: Sequence[str]) -> None:
    """Store a message for each of the users."""
    message = msgspec.Raw(chat_message(new_msg_id(), 1))
    body = msgspec.json.encode({"uids": uids, "message": message})
    results = msgspec.json.decode(await server.post("/v1/messages", body))["results"]
    if any(result["status"] != "stored" for result in results):
        raise BenchFailed("not all was stored")


async def _idle_share(node: Server, seconds: float) -> float | None:
    """How much of a core the node uses while nobody sends."""
    await asyncio.sleep(seconds / 10)
    before, start = node.cpu_seconds(), perf_counter()
    await asyncio.sleep(seconds)
    after, end = node.cpu_seconds(), perf_counter()
    return None if before is None or after is None else (after - before) / (end - start)


async def _ask(store: str, uids: Sequence[str]) -> Question:
    costs = []
    async with database_at(store) as database, SQLStateMachine(database, now) as state_machine:
        for _ in range(1 + TIMES):
            start, cpu = perf_counter(), process_time()
            clocks = await state_machine.ctimes(uids)
            costs.append(Question(perf_counter() - start, process_time() - cpu))
    if not all(clocks.values()):
        raise BenchFailed("the clocks of some users are missing")
    # The first has made the connection.
    return Question(median(c.duration for c in costs[1:]), median(c.cpu for c in costs[1:]))


async def _outage(
    place: fleet.Place, node: Server, other: Server, devices: Sequence[Device]
) -> Return:
    untold = set(devices)
    healed: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def hear(device: Device) -> None:
        untold.discard(device)
        if not untold and not healed.done():
            healed.set_result(perf_counter())

    async with asyncio.timeout(PATIENCE_SECONDS):
        await place.redis.kill()
        for server in (node, other):
            await _until(server, ready=False)
        for device in devices:
            device.on_news = hear
        await _tell(other, [device.uid for device in devices])
        await place.redis.start()
        start, before = perf_counter(), len(devices) - len(untold)
        await _until(node, ready=True)
        ready = perf_counter() - start
        return Return(ready, max(0.0, await healed - start), before)


async def _until(server: Server, *, ready: bool) -> None:
    while await server.ready() is not ready:  # noqa: ASYNC110 (it is not told unasked)
        await asyncio.sleep(POLL_SECONDS)
