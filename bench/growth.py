"""The cost per message for a user with 8,000 messages, compared with 1,000: it must not grow.

The cost includes one dismissal, one state and one sync at the end."""

from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import NamedTuple

import msgspec

from bench import servers
from bench.load import BenchFailed, LoadDevice, chat_message
from bench.report import Figure, Wanted

SMALL_HISTORY, LARGE_HISTORY, BATCH, ROUNDS = 1_000, 8_000, 100, 5
ROOMS = 10


class Cost(NamedTuple):
    """The duration of each part, in seconds."""

    messages: float
    dismissal: float
    state: float
    sync: float


async def measure(quick: bool) -> list[Figure]:
    small_history, large_history, rounds = (
        (200, 400, 1) if quick else (SMALL_HISTORY, LARGE_HISTORY, ROUNDS)
    )
    small: list[Cost] = []
    large: list[Cost] = []
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            await _cost(server, "warm-up", small_history)
            for number in range(rounds):
                small.append(await _cost(server, f"small-{number}", small_history))
                large.append(await _cost(server, f"large-{number}", large_history))
    before = median(sum(cost) for cost in small) / small_history
    after = median(sum(cost) for cost in large) / large_history
    return [
        Figure(
            name=f"{large_history:,} messages into one user, a dismissal, a state and a sync",
            measured=f"{after * 1e6:.0f} µs per message ({_parts(large)})",
            beside=f"with {small_history:,}: {before * 1e6:.0f} µs per message ({_parts(small)})",
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


async def _cost(server: servers.ServerProcess, uid: str, messages: int) -> Cost:
    device = await LoadDevice.connect(server.address, uid, "phone")
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
        raise BenchFailed("the dismissal left a wrong number of items")
    return Cost(*(after - before for before, after in pairwise(times)))


def _dismissal() -> bytes:
    """A dismissal of all items of one room."""
    ranges = [{"category": "chat.unread.room3"}]
    return msgspec.json.encode({"msg_id": "read", "dismissal": {"ranges": ranges}})
