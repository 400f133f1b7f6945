"""One message to 1,000 devices of one user, beside a bare loop that sends the same bytes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from gregor.bench import servers
from gregor.bench.load import Connection, chat_message, connect_all, consume_frame, text_frame
from gregor.bench.report import Figure

DEVICES, MESSAGES, WARM_UP = 1_000, 60, 10
PATIENCE_SECONDS = 30.0

Reach = Callable[[int], None]


async def measure(quick: bool) -> list[Figure]:
    devices, messages = (50, 5) if quick else (DEVICES, MESSAGES)
    served: list[float] = []
    sent: list[float] = []
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "gregor.db")
        async with servers.gregor(store) as gregor, servers.bare() as bare:
            by_gregor = await Audience.of_gregor(gregor.address, devices)
            by_loop = await Audience.of_bare(bare.address, devices, await by_gregor.frame_bytes())
            for number in range(WARM_UP + messages):
                served.append(await by_gregor.reach(number))
                sent.append(await by_loop.reach(number))
    ratios = [b / a for a, b in zip(served[WARM_UP:], sent[WARM_UP:], strict=True)]
    return [
        Figure(
            name=f"fan-out of one message to {devices:,} devices of one user",
            measured=f"{devices / median(served[WARM_UP:]):,.0f} deliveries/s",
            beside=f"bare loop: {devices / median(sent[WARM_UP:]):,.0f} deliveries/s",
            ratio=median(ratios),
            threshold=0.7,
        )
    ]


class Audience:
    """Connections that all hear what one of them says."""

    def __init__(self, size: int) -> None:
        self.say: Callable[[int], None]
        self._size = size
        self._missing = 0
        self._bytes = 0
        self._reached = asyncio.get_running_loop().create_future()

    @classmethod
    async def of_gregor(cls, address: servers.Address, size: int) -> "Audience":
        self = cls(size)
        devices = await connect_all([(address, "user", f"device-{d}") for d in range(size)])
        for device in devices:
            device.on_news = lambda device: self._hear(device.frame_bytes)
        self.say = lambda n: devices[0].send(consume_frame(n, [chat_message(f"{n:032x}", 7)]))
        return self

    @classmethod
    async def of_bare(cls, address: servers.Address, size: int, frame_bytes: int) -> "Audience":
        self = cls(size)
        connections = [
            await Connection.open(address, "/", lambda text: self._hear(len(text)))
            for _ in range(size)
        ]
        self.say = lambda n: connections[0].send(text_frame(b"!" * frame_bytes))
        return self

    async def reach(self, number: int) -> float:
        """How many seconds it takes until everybody has heard this message."""
        self._missing = self._size
        self._reached = asyncio.get_running_loop().create_future()
        start = perf_counter()
        self.say(number)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._reached
        return perf_counter() - start

    async def frame_bytes(self) -> int:
        """How large a frame everybody hears."""
        await self.reach(1 << 32)
        return self._bytes

    def _hear(self, frame_bytes: int) -> None:
        self._bytes = frame_bytes
        self._missing -= 1
        if not self._missing:
            self._reached.set_result(None)
