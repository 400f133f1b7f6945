"""Fan-out of one message to 1,000 devices of a user; baseline: a bare loop with the same bytes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from bench import servers
from bench.load import LoadConnection, chat_message, connect_all, consume_frame, text_frame
from bench.report import Figure

DEVICES, MESSAGES, WARM_UP = 1_000, 60, 10
RUN_TIMEOUT_SECONDS = 30.0


async def measure(quick: bool) -> list[Figure]:
    devices, messages = (50, 5) if quick else (DEVICES, MESSAGES)
    gregor_seconds: list[float] = []
    bare_seconds: list[float] = []
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        store = Path(directory, "gregor.db")
        async with servers.gregor(store) as gregor, servers.bare() as bare:
            gregor_receivers = await Receivers.of_gregor(gregor.address, devices)
            bare_receivers = await Receivers.of_bare(
                bare.address, devices, await gregor_receivers.frame_bytes()
            )
            for number in range(WARM_UP + messages):
                gregor_seconds.append(await gregor_receivers.measure(number))
                bare_seconds.append(await bare_receivers.measure(number))
    measured, baseline = gregor_seconds[WARM_UP:], bare_seconds[WARM_UP:]
    ratios = [bare / gregor for gregor, bare in zip(measured, baseline, strict=True)]
    return [
        Figure(
            name=f"fan-out of one message to {devices:,} devices of one user",
            measured=f"{devices / median(measured):,.0f} deliveries/s",
            beside=f"bare loop: {devices / median(baseline):,.0f} deliveries/s",
            ratio=median(ratios),
            threshold=0.7,
        )
    ]


class Receivers:
    """Connections that all receive what one of them sends."""

    def __init__(self, size: int) -> None:
        self._send: Callable[[int], None]
        self._size = size
        self._missing = 0
        self._bytes = 0
        self._complete = asyncio.get_running_loop().create_future()

    @classmethod
    async def of_gregor(cls, address: servers.Address, size: int) -> "Receivers":
        self = cls(size)
        devices = await connect_all([(address, "user", f"device-{d}") for d in range(size)])
        for device in devices:
            device.on_update = lambda device: self._receive(device.frame_bytes)
        self._send = lambda n: devices[0].send(consume_frame(n, [chat_message(f"{n:032x}", 7)]))
        return self

    @classmethod
    async def of_bare(cls, address: servers.Address, size: int, frame_bytes: int) -> "Receivers":
        self = cls(size)
        connections = [
            await LoadConnection.open(address, "/", lambda text: self._receive(len(text)))
            for _ in range(size)
        ]
        self._send = lambda n: connections[0].send(text_frame(b"!" * frame_bytes))
        return self

    async def measure(self, number: int) -> float:
        """Send a message; the seconds until all connections have received it."""
        self._missing = self._size
        self._complete = asyncio.get_running_loop().create_future()
        start = perf_counter()
        self._send(number)
        async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
            await self._complete
        return perf_counter() - start

    async def frame_bytes(self) -> int:
        """The size of the frame that each connection receives."""
        await self.measure(1 << 32)
        return self._bytes

    def _receive(self, frame_bytes: int) -> None:
        self._bytes = frame_bytes
        self._missing -= 1
        if not self._missing:
            self._complete.set_result(None)
