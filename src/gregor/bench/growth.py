"""8,000 messages into one user, then one dismissal, a state and a sync: what a message costs must
not grow with what is there already."""

from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import msgspec

from gregor.bench import servers
from gregor.bench.load import BenchFailed, Device, chat_message
from gregor.bench.report import Figure, Wanted

FEW, MANY, BATCH, ROUNDS = 1_000, 8_000, 100, 5
ROOMS = 10


class Cost(NamedTuple):
    """What it all took, in seconds."""

    messages: float
    dismissal: float
    state: float
    sync: float


async def measure(quick: bool) -> list[Figure]:
    few, many, rounds = (200, 400, 1) if quick else (FEW, MANY, ROUNDS)
    small: list[Cost] = []
    large: list[Cost] = []
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            await _cost(server, "warm-up", few)
            for number in range(rounds):
                small.append(await _cost(server, f"few-{number}", few))
                large.append(await _cost(server, f"many-{number}", many))
    before = median(sum(cost) for cost in small) / few
    after = median(sum(cost) for cost in large) / many
    return [
        Figure(
            name=f"{many:,} messages into one user, a dismissal, a state and a sync",
            measured=f"{after * 1e6:.0f} µs per message ({_parts(large)})",
            beside=f"with {few:,}: {before * 1e6:.0f} µs per message ({_parts(small)})",
            ratio=after / before,
            wanted=Wanted.BELOW,
            threshold=1.5,
        )
    ]


def _parts(costs: list[Cost]) -> str:
    """The median of each part, in milliseconds."""
    parts = (
        f"{name} {median(getattr(cost, name) for cost in costs) * 1e3:.1f} ms"
        for name in Cost._fields
    )
    return ", ".join(parts)


async def _cost(server: servers.Server, uid: str, messages: int) -> Cost:
    device = await Device.connect(server.address, uid, "phone")
    times = [perf_counter()]
    for number in range(0, messages, BATCH):
        batch = [chat_message(f"{n:032x}", n % ROOMS) for n in range(number, number + BATCH)]
        await device.consume(number, batch)
    times.append(perf_counter())
    await device.consume(messages, [_dismissal()])
    times.append(perf_counter())
    state = msgspec.json.decode(await server.get(f"/v1/users/{uid}/state"))
    times.append(perf_counter())
    await device.sync(0)
    times.append(perf_counter())
    device.close()
    if not len(state["items"]) == device.messages == messages - messages // ROOMS:
        raise BenchFailed("the dismissal has left another number of items than it should")
    return Cost(*(after - before for before, after in pairwise(times)))


def _dismissal() -> bytes:
    """One room has been read."""
    ranges = [{"category": "chat.unread.room3"}]
    return msgspec.json.encode({"msg_id": "read", "dismissal": {"ranges": ranges}})
