"""Several processes on one socket: a device does not know on which of them it is."""

import asyncio
import json
import os
import random
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import asyncpg
import httpx
import psutil

from gregor.testing.backends import Redis
from tests.server.replicas import LOG, Replica, check_log, converge, replicas
from tests.server.world import JSON, PATIENCE, Device, creation, http_client

WORKERS = 2


class Running:
    """A parent whose workers answer, and what they log."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"ws://127.0.0.1:{port}/v1/connect"
        self._port = port

    async def says(self, event: str) -> JSON:
        """The next line of the log with this event."""
        async with asyncio.timeout(60):
            return await _line(self.process, event)

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE + 10):
            return await self.process.wait()

    def workers(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children

    def ask(self) -> httpx.AsyncClient:
        """Whoever takes the connection answers."""
        return http_client(self._port)

    async def metric(self, name: str) -> dict[str, float]:
        """The values of a metric, by worker."""
        async with self.ask() as http:
            page = (await http.get("/metrics")).text
        found = re.findall(rf'^{name}{{.*worker="(\d+)".*}} (.+)$', page, re.MULTILINE)
        return {worker: float(value) for worker, value in found}

    async def device(self, uid: str, device_id: str) -> Device:
        device = await Device.connected(self.url)
        await device.say("hello", token=uid, device_id=device_id, protocol=1)
        await device.heard("sync")
        return device


async def _line(process: Process, event: str) -> JSON:
    assert process.stderr is not None
    while line := await process.stderr.readline():
        said: JSON = json.loads(line)
        if said["event"] == event:
            return said
    raise AssertionError(f"it has ended before it said {event!r}")


@asynccontextmanager
async def running(store: str, pubsub: str) -> AsyncIterator[Running]:
    options = {
        "listen": "127.0.0.1:0",
        "workers": str(WORKERS),
        "store": store,
        "pubsub": pubsub,
        "log-format": "json",
        "drain-seconds": "1",
        "sweep-seconds": "1000",  # what is heard at once is heard over the pub/sub
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "serve", "--migrate", *words),
        env={k: v for k, v in os.environ.items() if not k.startswith("GREGOR_")},
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(60):
            url: str = (await _line(process, "serving"))["url"]
            for _ in range(WORKERS):
                await _line(process, "working")
        yield Running(process, int(url.rpartition(":")[2]))
    finally:
        with suppress(ProcessLookupError):
            process.kill()  # the workers follow
        await process.communicate()


async def on_both_workers(server: Running, uid: str) -> list[Device]:
    """So many devices of the user that each worker has some of them."""
    devices: list[Device] = []
    async with asyncio.timeout(PATIENCE):
        while not all((await server.metric("gregor_users")).values()):
            devices.append(await server.device(uid, f"d{len(devices)}"))
    return devices


async def test_devices_on_different_workers_hear_each_other(
    postgresql_url: str, redis_server: Redis
) -> None:
    async with running(postgresql_url, redis_server.url) as server:
        devices = await on_both_workers(server, "u")
        for number, device in enumerate(devices):
            ack = await device.consume(creation(body=number, msg_id=f"m{number}"))
            assert ack["results"][0]["status"] == "stored"
        for device in devices:
            heard: list[str] = []
            while len(heard) < len(devices):
                frame = await device.heard("messages")
                heard += [message["msg_id"] for message in frame["messages"]]
            assert heard == [f"m{number}" for number in range(len(devices))]
        assert await server.metric("gregor_worker_up") == {"1": 1, "2": 1}
        counted = await server.metric("gregor_messages_total")
        assert sum(counted.values()) == len(devices)
        assert (await server.metric("gregor_commit_seconds_count")).keys() == {"1", "2"}
        for device in devices:
            await device.close()


async def test_a_frozen_worker_is_nothing_to_the_others(
    postgresql_url: str, redis_server: Redis
) -> None:
    async with running(postgresql_url, redis_server.url) as server:
        server.workers()[0].suspend()
        for number in range(5):
            async with await server.device("u", f"d{number}") as device:
                await device.works()
        assert sorted((await server.metric("gregor_worker_up")).values()) == [0, 1]
        server.process.send_signal(signal.SIGTERM)
        await server.says("stopping")
        server.process.send_signal(signal.SIGTERM)  # which kills also those that cannot hear
        assert await server.ended() == 0


async def stay(url: str, device: Replica) -> None:
    """Come back whenever the connection ends."""
    while True:
        await device.live(url)
        await asyncio.sleep(0.05)


async def progress(devices: list[Replica], messages: int) -> None:
    """Until each of them has been told of so many more messages that they are stored."""
    wanted = [len(device.acked) + messages for device in devices]
    async with asyncio.timeout(60):
        while any(len(d.acked) < number for d, number in zip(devices, wanted, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def check(store: str, devices: list[Replica]) -> None:
    connection = await asyncpg.connect(store)
    check_log(await connection.fetch(LOG), devices)
    await connection.close()
    assert [device.mismatches for device in devices] == [0] * len(devices)


async def test_a_worker_that_is_killed_comes_back_and_nothing_acknowledged_is_lost(
    postgresql_url: str, redis_server: Redis
) -> None:
    devices = replicas(random.Random(7))
    async with running(postgresql_url, redis_server.url) as server:
        async with asyncio.TaskGroup() as tasks:
            staying = [tasks.create_task(stay(server.url, device)) for device in devices]
            for victim in range(WORKERS):
                await progress(devices, 10)
                server.workers()[victim].kill()
                ended = await server.says("a worker has ended")
                assert ended["status"] == -signal.SIGKILL
                assert (await server.says("working"))["worker"] == ended["worker"]
            await progress(devices, 10)
            for task in staying:
                task.cancel()
        await converge(server.url, devices)
        await check(postgresql_url, devices)


async def test_all_workers_say_goodbye_and_nothing_acknowledged_is_lost(
    postgresql_url: str, redis_server: Redis
) -> None:
    devices = replicas(random.Random(8))
    async with running(postgresql_url, redis_server.url) as server, asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(device.live(server.url))
        await progress(devices, 10)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
    assert [device.sent_away for device in devices] == [1] * len(devices)
    await check(postgresql_url, devices)
    async with running(postgresql_url, redis_server.url) as server:
        await converge(server.url, devices)


async def test_workers_do_not_outlive_their_parent(
    postgresql_url: str, redis_server: Redis
) -> None:
    async with running(postgresql_url, redis_server.url) as server:
        server.process.kill()
        assert server.process.stderr is not None
        async with asyncio.timeout(PATIENCE + 10):
            rest = await server.process.stderr.read()  # to its end, which is that of the last
        assert rest.decode().count('"stopping"') == WORKERS
