"""Several worker processes on one listening socket, and their supervisor."""

import asyncio
import os
import random
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import httpx
import psutil
import pytest

from gregor.errors import SetupError
from gregor.server.workers import private_folder
from tests.fleet.servers import Redis
from tests.server.harness import JSON, RawDevice, creation, http_client
from tests.server.log_entries import next_log_entry
from tests.server.replicas import LOG_QUERY, RawReplica, check_log, converge, replicas
from tests.timeouts import TIMEOUT_SECONDS

WORKERS = 2


class RunningWorkers:
    """A supervisor whose workers are running, and their log."""

    def __init__(self, process: Process, port: int) -> None:
        self.process = process
        self.url = f"ws://127.0.0.1:{port}/v1/connect"
        self._port = port

    async def wait_log(self, event: str) -> JSON:
        """The next log entry with this event."""
        async with asyncio.timeout(60):
            return await next_log_entry(self.process, event)

    async def wait_ended(self) -> int:
        """Wait until the supervisor ends, and return its exit status."""
        async with asyncio.timeout(TIMEOUT_SECONDS + 10):
            return await self.process.wait()

    def workers(self) -> list[psutil.Process]:
        children: list[psutil.Process] = psutil.Process(self.process.pid).children()
        return children

    def http(self) -> httpx.AsyncClient:
        """A client that is connected to any one of the workers."""
        return http_client(self._port)

    async def metric(self, name: str) -> dict[str, float]:
        """The values of a metric, by worker."""
        async with self.http() as http:
            page = (await http.get("/metrics")).text
        samples = re.findall(rf'^{name}{{.*worker="(\d+)".*}} (.+)$', page, re.MULTILINE)
        return {worker: float(value) for worker, value in samples}

    async def device(self, uid: str, device_id: str) -> RawDevice:
        device = await RawDevice.connect(self.url)
        await device.send("hello", token=uid, device_id=device_id, protocol=2)
        await device.receive_type("sync")
        return device


@asynccontextmanager
async def running_workers(store: str, pubsub: str) -> AsyncIterator[RunningWorkers]:
    options = {
        "listen": "127.0.0.1:0",
        "workers": str(WORKERS),
        "store": store,
        "pubsub": pubsub,
        "log-format": "json",
        "lame-duck-seconds": "0",
        "drain-seconds": "1",
        "sweep-seconds": "1000",  # so that only the pub/sub can deliver messages in time
    }
    arguments = [argument for name, value in options.items() for argument in (f"--{name}", value)]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "serve", "--migrate", *arguments),
        env={k: v for k, v in os.environ.items() if not k.startswith("GREGOR_")},
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(60):
            url: str = (await next_log_entry(process, "serving"))["url"]
            for _ in range(WORKERS):
                await next_log_entry(process, "working")
        yield RunningWorkers(process, int(url.rpartition(":")[2]))
    finally:
        with suppress(ProcessLookupError):
            process.kill()  # ends the workers too
        await process.communicate()


async def on_both_workers(server: RunningWorkers, uid: str) -> list[RawDevice]:
    """Connect devices of the user until each worker has at least one."""
    devices: list[RawDevice] = []
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not all((await server.metric("gregor_users")).values()):
            devices.append(await server.device(uid, f"d{len(devices)}"))
    return devices


async def test_devices_on_different_workers_receive_each_others_messages(
    postgresql_url: str, redis_server: Redis
) -> None:
    async with running_workers(postgresql_url, redis_server.url) as server:
        devices = await on_both_workers(server, "u")
        for number, device in enumerate(devices):
            ack = await device.consume(creation(body=number, msg_id=f"m{number}"))
            assert ack["results"][0]["status"] == "stored"
        for device in devices:
            received: list[str] = []
            while len(received) < len(devices):
                frame = await device.receive_type("messages")
                received += [message["msg_id"] for message in frame["messages"]]
            assert received == [f"m{number}" for number in range(len(devices))]
        assert await server.metric("gregor_worker_up") == {"1": 1, "2": 1}
        counted = await server.metric("gregor_messages_total")
        assert sum(counted.values()) == len(devices)
        assert (await server.metric("gregor_commit_seconds_count")).keys() == {"1", "2"}
        starts = await server.metric("process_start_time_seconds")
        created = {p.pid: p.create_time() for p in server.workers()}
        assert sorted(starts.values()) == pytest.approx(sorted(created.values()), abs=1)
        waiting = await server.metric("gregor_store_connections_waiting")
        assert waiting == {"1": 0, "2": 0}
        for device in devices:
            await device.close()


async def test_frozen_worker_does_not_affect_others_and_is_killed_on_second_stop(
    postgresql_url: str, redis_server: Redis
) -> None:
    async with running_workers(postgresql_url, redis_server.url) as server:
        server.workers()[0].suspend()
        for number in range(5):
            async with await server.device("u", f"d{number}") as device:
                await device.assert_usable()
        assert sorted((await server.metric("gregor_worker_up")).values()) == [0, 1]
        server.process.send_signal(signal.SIGTERM)
        await server.wait_log("stopping")
        server.process.send_signal(signal.SIGTERM)  # the second one kills also a frozen worker
        assert await server.wait_ended() == 0


async def keep_connected(url: str, device: RawReplica) -> None:
    """Reconnect whenever the connection ends."""
    while True:
        await device.run_connection(url)
        await asyncio.sleep(0.05)


async def wait_progress(devices: list[RawReplica], messages: int) -> None:
    """Wait until this number of additional messages is acknowledged to each device."""
    wanted = [len(device.acked) + messages for device in devices]
    async with asyncio.timeout(60):
        while any(len(d.acked) < number for d, number in zip(devices, wanted, strict=True)):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def check(store: str, devices: list[RawReplica]) -> None:
    connection = await asyncpg.connect(store)
    check_log(await connection.fetch(LOG_QUERY), devices)
    await connection.close()
    assert [device.mismatches for device in devices] == [0] * len(devices)


async def test_killed_worker_is_restarted_and_no_acknowledged_message_is_lost(
    postgresql_url: str, redis_server: Redis
) -> None:
    devices = replicas(random.Random(7))
    async with running_workers(postgresql_url, redis_server.url) as server:
        async with asyncio.TaskGroup() as tasks:
            connections = [
                tasks.create_task(keep_connected(server.url, device)) for device in devices
            ]
            for victim in range(WORKERS):
                await wait_progress(devices, 10)
                server.workers()[victim].kill()
                ended = await server.wait_log("worker ended")
                assert ended["status"] == -signal.SIGKILL
                assert (await server.wait_log("working"))["worker"] == ended["worker"]
            await wait_progress(devices, 10)
            for task in connections:
                task.cancel()
        await converge(server.url, devices)
        await check(postgresql_url, devices)


async def test_sigterm_makes_all_workers_send_goaway_and_loses_no_acknowledged_message(
    postgresql_url: str, redis_server: Redis
) -> None:
    devices = replicas(random.Random(8))
    async with (
        running_workers(postgresql_url, redis_server.url) as server,
        asyncio.TaskGroup() as tasks,
    ):
        for device in devices:
            tasks.create_task(device.run_connection(server.url))
        await wait_progress(devices, 10)
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait_ended() == 0
    assert [device.goaways for device in devices] == [1] * len(devices)
    await check(postgresql_url, devices)
    async with running_workers(postgresql_url, redis_server.url) as server:
        await converge(server.url, devices)


async def test_workers_stop_when_supervisor_is_killed(
    postgresql_url: str, redis_server: Redis
) -> None:
    async with running_workers(postgresql_url, redis_server.url) as server:
        server.process.kill()
        assert server.process.stderr is not None
        async with asyncio.timeout(TIMEOUT_SECONDS + 10):
            log = await server.process.stderr.read()  # until the last worker closes stderr
        assert log.decode().count('"stopping"') == WORKERS


def test_sockets_of_workers_are_in_the_first_folder_that_allows_it(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 100)
    too_long.mkdir()
    with private_folder([f"{tmp_path}/missing", str(too_long), str(tmp_path)]) as folder:
        assert Path(folder).parent == tmp_path
    assert list(tmp_path.iterdir()) == [too_long]


def test_no_writable_folder_for_workers_is_one_sentence_that_names_tmpdir(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"cannot do so in {tmp_path}/a, {tmp_path}/b; set TMPDIR"):
        private_folder([f"{tmp_path}/a", f"{tmp_path}/b"])
