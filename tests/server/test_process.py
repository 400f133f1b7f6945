"""A server process: graceful shutdown, `kill -9`, and its listening socket."""

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
from gregor.server.process import listen
from tests.server.replicas import LOG_QUERY, check_log, converge, replicas
from tests.timeouts import TIMEOUT_SECONDS

# Gregor's own log goes to stdout. Warnings and tracebacks of everything else go to stderr.
PROGRAM = """
import asyncio, logging, sys
from gregor.config import Settings
from gregor.server.process import serve
log = logging.getLogger("gregor")
log.addHandler(logging.StreamHandler(sys.stdout))
log.setLevel(logging.INFO)
asyncio.run(serve(Settings(listen=sys.argv[1], store=sys.argv[2], drain_seconds=1)))
"""


class RunningServer(NamedTuple):
    """A running server process. `log` is the file with its stderr."""

    process: Process
    url: str
    log: Path

    async def wait_ended(self) -> int:
        """Wait until the process ends, and return its exit status."""
        async with asyncio.timeout(TIMEOUT_SECONDS + 10):
            return await self.process.wait()


@asynccontextmanager
async def running_server(directory: Path) -> AsyncIterator[RunningServer]:
    """A server process with an SQLite file and a log file in this directory."""
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
        yield RunningServer(process, f"ws://127.0.0.1:{int(port[1])}/v1/connect", log)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def stored_messages(directory: Path) -> list[Any]:
    with closing(sqlite3.connect(directory / "gregor.db")) as database:
        return database.execute(LOG_QUERY).fetchall()


async def test_sigterm_sends_goaway_to_devices_and_loses_no_acknowledged_message(
    tmp_path: Path,
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    devices = replicas(random.Random(seed))
    async with running_server(tmp_path) as server, asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(device.run_connection(server.url))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while min(len(device.acked) for device in devices) < 20:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait_ended() == 0
    assert server.log.read_text() == ""
    assert [device.goaways for device in devices] == [1] * len(devices)
    assert [device.mismatches for device in devices] == [0] * len(devices)
    check_log(stored_messages(tmp_path), devices)
    async with running_server(tmp_path) as server:
        await converge(server.url, devices)


async def test_second_signal_ends_process_at_once(tmp_path: Path) -> None:
    async with running_server(tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        server.process.send_signal(signal.SIGINT)
        assert await server.wait_ended() == 0
    assert server.log.read_text() == ""


@pytest.mark.slow
async def test_server_killed_twenty_times_loses_no_acknowledged_message(
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("GREGOR_TEST_SEED") or now() % 2**32)
    print(f"repeat it with GREGOR_TEST_SEED={seed}")
    rng = random.Random(seed)
    devices = replicas(rng)
    acked_counts = []
    for _ in range(20):
        async with running_server(tmp_path) as server, asyncio.TaskGroup() as tasks:
            for device in devices:
                tasks.create_task(device.run_connection(server.url))
            await asyncio.sleep(rng.uniform(0.0, 0.8))
            server.process.kill()
            assert await server.wait_ended() == -signal.SIGKILL
        acked_counts.append(sum(len(device.acked) for device in devices))
    assert acked_counts[-1] > acked_counts[0]
    assert len(set(acked_counts)) > 10, acked_counts  # it was killed while it was working
    async with running_server(tmp_path) as server:
        await converge(server.url, devices)
        server.process.send_signal(signal.SIGTERM)
        assert await server.wait_ended() == 0
    stored = check_log(stored_messages(tmp_path), devices)
    print(f"{acked_counts[-1]} acknowledged, {stored} stored")


async def test_port_in_use_raises_setup_error_that_names_option() -> None:
    with listen("127.0.0.1", 0) as in_use:
        port = in_use.getsockname()[1]
        with pytest.raises(SetupError, match=f"127.0.0.1:{port}.*--listen"):
            listen("127.0.0.1", port)


async def test_address_of_another_machine_raises_setup_error() -> None:
    with pytest.raises(SetupError, match=r"192\.0\.2\.1:1"):
        listen("192.0.2.1", 1)


async def test_accepted_sockets_disable_nagles_algorithm() -> None:
    """Nagle's algorithm and delayed acknowledgements together cost 40 ms per frame."""
    no_delay: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = writer.get_extra_info("socket")
        no_delay.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    with listen("127.0.0.1", 0) as listener:
        async with await asyncio.start_server(accept, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            assert await no_delay == 1
            writer.close()
            await writer.wait_closed()
