"""What a connected device costs: its memory and processor time while it is idle, and its connect.
Baseline: a bare echo server on uvicorn, with the WebSocket that uvicorn has.

Processor time is measured, because the machine is noisy. A connect of a device includes its hello
and its first sync; that of the bare server is the handshake."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, TypeAlias

from bench import servers
from bench.load import LoadConnection, LoadDevice, connect_all
from bench.report import Figure, Wanted

DEVICES, WARM_UP, AT_ONCE = 2_000, 100, 50
SETTLE_SECONDS = 1.0
IDLE_SECONDS = 40.0  # twice the interval of pings

Connected: TypeAlias = list[LoadDevice] | list[LoadConnection]
Connect: TypeAlias = Callable[[servers.ServerProcess, str, int], Awaitable[Connected]]


class Cost(NamedTuple):
    """What a server spent on a device."""

    kib: float
    idle_microseconds: float  # of processor time a second
    connects: float  # per second of processor time


async def measure(quick: bool) -> list[Figure]:
    devices, seconds = (100, 0.5) if quick else (DEVICES, IDLE_SECONDS)
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            gregor = await _cost(server, _devices, devices, seconds)
        async with servers.gregor(Path(directory, "other.db")) as server:
            sockets = await _cost(server, _sockets_of_devices, devices, 0)
    async with servers.bare() as server:
        bare = await _cost(server, _sockets, devices, seconds)
    return [
        Figure(
            name=f"memory per idle device, {devices:,} users with one device each",
            measured=f"{gregor.kib:.1f} KiB",
            beside=f"bare echo: {bare.kib:.1f} KiB",
            ratio=gregor.kib,
            wanted=Wanted.BELOW,
            threshold=20,
        ),
        Figure(
            name="processor time per idle device, which is pinged every 20 s",
            measured=f"{gregor.idle_microseconds:.1f} µs/s",
            beside=f"bare echo: {bare.idle_microseconds:.1f} µs/s",
            ratio=gregor.idle_microseconds,
            wanted=Wanted.BELOW,
            threshold=3.5,
        ),
        Figure(
            name="handshakes of WebSockets per second of processor time",
            measured=f"{sockets.connects:,.0f}/s",
            beside=f"bare echo: {bare.connects:,.0f}/s",
            ratio=sockets.connects,
            threshold=2_500,
        ),
        Figure(
            name="connects of devices, with the hello and the first sync, the same",
            measured=f"{gregor.connects:,.0f}/s",
            beside=f"handshakes of a bare echo: {bare.connects:,.0f}/s",
            ratio=gregor.connects,
            threshold=2_500,
        ),
    ]


async def _cost(
    server: servers.ServerProcess, connect: Connect, devices: int, idle_seconds: float
) -> Cost:
    # The first connections also allocate what the server needs only once.
    connected = [*await connect(server, "warm-up", WARM_UP)]
    await asyncio.sleep(SETTLE_SECONDS)
    memory, begin = server.rss(), server.cpu_seconds() or 0.0
    connected += await connect(server, "device", devices)
    await asyncio.sleep(SETTLE_SECONDS)
    grown, settled = server.rss() - memory, server.cpu_seconds() or 0.0
    await asyncio.sleep(idle_seconds)
    idle = (server.cpu_seconds() or 0.0) - settled
    for connection in connected:
        connection.close()
    return Cost(
        kib=grown / devices / 1024,
        idle_microseconds=idle / (idle_seconds or 1) / len(connected) * 1e6,
        connects=devices / max(settled - begin, 0.01),
    )


async def _devices(server: servers.ServerProcess, name: str, number: int) -> list[LoadDevice]:
    return await connect_all(
        [(server.address, f"{name}-{user}", "phone") for user in range(number)]
    )


async def _sockets_of_devices(
    server: servers.ServerProcess, name: str, number: int
) -> list[LoadConnection]:
    """WebSockets to the endpoint of devices, on which no hello is sent."""
    return await _open(server, "/v1/connect", number)


async def _sockets(server: servers.ServerProcess, name: str, number: int) -> list[LoadConnection]:
    return await _open(server, "/", number)


async def _open(server: servers.ServerProcess, path: str, number: int) -> list[LoadConnection]:
    connections: list[LoadConnection] = []
    for _ in range(0, number, AT_ONCE):
        opening = (LoadConnection.open(server.address, path, _ignore) for _ in range(AT_ONCE))
        connections += await asyncio.gather(*opening)
    return connections


def _ignore(text: bytes) -> None:
    pass
