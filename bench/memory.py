"""The memory per idle connected device; baseline: a bare echo server on the same uvicorn."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import servers
from bench.load import LoadConnection, LoadDevice, connect_all
from bench.report import Figure, Wanted

DEVICES, WARM_UP = 2_000, 100
SETTLE_SECONDS = 1.0

Connect = Callable[[servers.ServerProcess, int], Awaitable[list[LoadDevice] | list[LoadConnection]]]


async def measure(quick: bool) -> list[Figure]:
    devices = 100 if quick else DEVICES
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            gregor = await _kib_per_device(server, _devices, devices)
    async with servers.bare() as server:
        bare = await _kib_per_device(server, _connections, devices)
    return [
        Figure(
            name=f"memory per idle device, {devices:,} users with one device each",
            measured=f"{gregor:.1f} KiB",
            beside=f"bare echo: {bare:.1f} KiB",
            ratio=gregor,
            wanted=Wanted.BELOW,
            threshold=32,
        )
    ]


async def _kib_per_device(server: servers.ServerProcess, connect: Connect, devices: int) -> float:
    # The first connections also allocate what the server needs only once.
    connected = [*await connect(server, WARM_UP)]
    await asyncio.sleep(SETTLE_SECONDS)
    before = server.rss()
    connected += await connect(server, devices)
    await asyncio.sleep(SETTLE_SECONDS)
    grown = server.rss() - before
    for connection in connected:
        connection.close()
    return grown / devices / 1024


async def _devices(server: servers.ServerProcess, number: int) -> list[LoadDevice]:
    return await connect_all(
        [(server.address, f"user-{number}-{user}", "phone") for user in range(number)]
    )


async def _connections(server: servers.ServerProcess, number: int) -> list[LoadConnection]:
    return [await LoadConnection.open(server.address, "/", lambda _: None) for _ in range(number)]
