"""A server as a process of its own: it is asked to stop, and it is killed."""

import asyncio
import os
import random
import re
import signal
import socket
import sqlite3
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from gregor.clock import now
from gregor.errors import SetupError
from gregor.server.serving import listen
from tests.server.replicas import LOG, check_log, converge, replicas
from tests.server.world import PATIENCE

PROGRAM = """
import asyncio, sys
from gregor.config import Settings
from gregor.server.serving import serve
asyncio.run(serve(Settings(listen=sys.argv[1], store=sys.argv[2], drain_seconds=1)))
"""


class Running(NamedTuple):
    """A server process that answers."""

    process: Process
    url: str
    log: Path

    async def ended(self) -> int:
        async with asyncio.timeout(PATIENCE + 10):
            return await self.process.wait()


@asynccontextmanager
async def server(directory: Path) -> AsyncIterator[Running]:
    """A server on a file of that directory. Whatever it has written is in `log` afterwards."""
    log = directory / "log"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, "127.0.0.1:0", f"sqlite:///{directory}/gregor.db"),
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            stdin=DEVNULL,
        )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            while not (
                port := re.search(rb"127\.0\.0\.1:(\d+)", line := await process.stdout.readline())
            ):
                assert line, log.read_text()
        yield Running(process, f"ws://127.0.0.1:{int(port[1])}/v1/connect", log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def stored_in(directory: Path) -> list[Any]:
    with closing(sqlite3.connect(directory / "gregor.db")) as database:
        return database.execute(LOG).fetchall()


async def test_a_server_that_is_asked_to_stop_loses_nothing_and_says_goodbye(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    devices = replicas(random.Random(seed))
    async with server(tmp_path) as running, asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(device.live(running.url))
        async with asyncio.timeout(PATIENCE):
            while min(len(device.acked) for device in devices) < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    assert running.log.read_text() == ""
    assert [device.sent_away for device in devices] == [1] * len(devices)
    assert [device.mismatches for device in devices] == [0] * len(devices)
    check_log(stored_in(tmp_path), devices)
    async with server(tmp_path) as running:
        await converge(running.url, devices)


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        running.process.send_signal(signal.SIGINT)
        running.process.send_signal(signal.SIGINT)
        assert await running.ended() == 0
    assert running.log.read_text() == ""


@pytest.mark.slow
async def test_a_server_that_is_killed_twenty_times_loses_nothing_that_it_acknowledged(
    tmp_path: Path,
) -> None:
    number = int(os.environ.get("GREGOR_TEST_SEED") or now() % 2**32)
    print(f"repeat it with GREGOR_TEST_SEED={number}")
    seed = random.Random(number)
    devices = replicas(seed)
    lengths = []
    for _ in range(20):
        async with server(tmp_path) as running, asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(device.live(running.url))
            await asyncio.sleep(seed.uniform(0.0, 0.8))
            running.process.kill()
            assert await running.ended() == -signal.SIGKILL
        lengths.append(sum(len(device.acked) for device in devices))
    assert lengths[-1] > lengths[0]
    assert len(set(lengths)) > 10, lengths  # it was killed at work
    async with server(tmp_path) as running:
        await converge(running.url, devices)
        running.process.send_signal(signal.SIGTERM)
        assert await running.ended() == 0
    stored = check_log(stored_in(tmp_path), devices)
    print(f"{lengths[-1]} acknowledged, {stored} stored")


async def test_a_port_that_is_taken_is_named_with_a_way_out() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}.*--listen"):
            listen("127.0.0.1", port)


async def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(SetupError, match=r"192\.0\.2\.1:1"):
        listen("192.0.2.1", 1)


async def test_small_frames_are_not_held_back_for_larger_ones() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms a frame."""
    without_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        without_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen("127.0.0.1", 0) as listening:
        async with await asyncio.start_server(accept, sock=listening):
            _, writer = await asyncio.open_connection(*listening.getsockname())
            assert await without_delay == 1
            writer.close()
            await writer.wait_closed()
