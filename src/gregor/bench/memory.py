"""How much memory an idle connected device costs, beside a bare echo on the same uvicorn."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from gregor.bench import servers
from gregor.bench.load import Connection, Device, connect_all
from gregor.bench.report import Figure, Wanted

DEVICES, WARM_UP = 2_000, 100
SETTLE_SECONDS = 1.0

Connect = Callable[[servers.Server, int], Awaitable[list[Device] | list[Connection]]]


async def measure(quick: bool) -> list[Figure]:
    devices = 100 if quick else DEVICES
    with TemporaryDirectory(prefix="gregor-bench-") as directory:
        async with servers.gregor(Path(directory, "gregor.db")) as server:
            served = await _kib_per_device(server, _devices, devices)
    async with servers.bare() as server:
        bare = await _kib_per_device(server, _connections, devices)
    return [
        Figure(
            name=f"memory per idle device, {devices:,} of as many users",
            measured=f"{served:.1f} KiB",
            beside=f"bare echo: {bare:.1f} KiB",
            ratio=served,
            wanted=Wanted.BELOW,
            threshold=32,
        )
    ]


async def _kib_per_device(server: servers.Server, connect: Connect, devices: int) -> float:
    # The first ones also pay for what is there once, whoever comes.
    connected = [*await connect(server, WARM_UP)]
    await asyncio.sleep(SETTLE_SECONDS)
    before = server.rss()
    connected += await connect(server, devices)
    await asyncio.sleep(SETTLE_SECONDS)
    grown = server.rss() - before
    for each in connected:
        each.close()
    return grown / devices / 1024


async def _devices(server: servers.Server, number: int) -> list[Device]:
    return await connect_all(
        [(server.address, f"user-{number}-{u}", "phone") for u in range(number)]
    )


async def _connections(server: servers.Server, number: int) -> list[Connection]:
    return [await Connection.open(server.address, "/", lambda _: None) for _ in range(number)]
