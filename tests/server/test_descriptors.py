"""File descriptors: a real process with more clients than it may open keeps what it needs."""

import asyncio
import logging
import re
import resource
import socket
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from websockets.exceptions import InvalidHandshake, InvalidStatus

from gregor.errors import Unavailable
from gregor.server.descriptors import (
    FOR_FILES,
    FOR_REQUESTS,
    Descriptors,
    limit,
    open_descriptors,
)
from tests.fleet.servers import Redis
from tests.server.harness import JSON, RawDevice, http_client, serving, to
from tests.server.log_entries import next_log_entry
from tests.timeouts import TIMEOUT_SECONDS

SOFT, HARD = 64, 256

# `gregor serve` on the event loop that is the first argument.
PROGRAM = """
import asyncio, sys
from gregor.cli import event_loop
from gregor.cli.main import app
if sys.argv.pop(1) == "asyncio":
    sys.modules["uvloop"] = None
app(prog_name="gregor")
"""


class LimitedServer:
    """A server process that may open SOFT files, and can raise this to `hard`."""

    def __init__(self, process: Process, port: int, raised: JSON) -> None:
        self.process = process
        self.port = port
        self.raised = raised
        self.url = f"ws://127.0.0.1:{port}/v1/connect"

    async def metric(self, name: str) -> float:
        async with http_client(self.port) as http:
            page = (await http.get("/metrics")).text
        return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(name))


@asynccontextmanager
async def limited_server(
    *options: str, loop: str = "uvloop", hard: int = HARD
) -> AsyncIterator[LimitedServer]:
    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(SOFT, hard), hard))

    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, loop, "serve", "--listen", "127.0.0.1:0"),
        *("--log-format", "json", "--drain-seconds", "0", "--lame-duck-seconds", "0", *options),
        preexec_fn=set_limit,
        stdin=DEVNULL,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(60):
            raised = await next_log_entry(process, "raised the limit of file descriptors")
            url: str = (await next_log_entry(process, "serving"))["url"]
        yield LimitedServer(process, int(url.rpartition(":")[2]), raised)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def try_to_connect(server: LimitedServer, number: int) -> RawDevice | InvalidStatus | OSError:
    try:
        device = await RawDevice.connect(server.url)
    except InvalidStatus as error:
        return error
    except (OSError, EOFError, InvalidHandshake) as error:
        return OSError(str(error))
    await device.send("hello", token=f"u{number % 10}", device_id=f"d{number}", protocol=2)
    await device.receive_type("sync")
    return device


async def check_that_it_answers(server: LimitedServer, users: int) -> None:
    """Health, readiness, reads and writes, each over a new connection."""
    for path in ("/healthz", "/readyz", "/metrics", *(f"/v1/users/u{n}/state" for n in range(5))):
        async with http_client(server.port) as http:
            assert (await http.get(path)).status_code == 200, path
    for number in range(users):
        async with http_client(server.port) as http:
            answer = await http.post("/v1/messages", json=to(f"u{number}"))
            assert answer.json()["results"][0]["status"] == "stored"


async def crowd(server: LimitedServer, devices: int) -> list[RawDevice]:
    """Connect more devices than fit. Returns those that are connected; the others got 503."""
    connected: list[RawDevice] = []
    for number in range(devices):
        match await try_to_connect(server, number):
            case RawDevice() as device:
                connected.append(device)
            case InvalidStatus() as refused:
                assert refused.response.status_code == 503
            case OSError() as error:
                raise AssertionError(f"device {number} got no answer") from error
    return connected


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
async def test_more_devices_than_descriptors_leave_room_for_health_and_writes(
    loop: str, postgresql_url: str, redis_server: Redis
) -> None:
    store = ("--migrate", "--store", postgresql_url, "--pubsub", redis_server.url)
    async with limited_server(*store, loop=loop) as server:
        assert (server.raised["before"], server.raised["now"]) == (SOFT, HARD)
        connected = await crowd(server, HARD + 20)
        kept = FOR_FILES + 2 * 9 + FOR_REQUESTS
        assert HARD / 2 < len(connected) < HARD - kept
        await check_that_it_answers(server, users=10)
        refused = await server.metric("gregor_refused_connections_total")
        assert refused == HARD + 20 - len(connected)
        entry = await next_log_entry(
            server.process, "connections refused: file descriptors run out"
        )
        assert (entry["refused"], entry["limit"]) == (1, HARD)
        await connected.pop().close()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while not isinstance(device := await try_to_connect(server, 1000), RawDevice):
                pass
        await device.assert_usable()


async def test_silent_connections_do_not_take_the_reserved_descriptors() -> None:
    async with limited_server("--store", "sqlite://", hard=128) as server:
        silent = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(200)]
        async with asyncio.timeout(60):  # those that took the last ones are closed after 5 s
            while True:
                with suppress(Exception):
                    await check_that_it_answers(server, users=1)
                    break
                await asyncio.sleep(0.1)
        for _, writer in silent:
            writer.close()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_limit_that_leaves_none_for_devices_is_one_sentence_at_start(
    workers: str, postgresql_url: str, redis_server: Redis
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gregor.cli", "serve", "--listen", "127.0.0.1:0", "--migrate"),
        *("--store", postgresql_url, "--pubsub", redis_server.url, "--workers", workers),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80)),
        stdin=DEVNULL,
        stderr=PIPE,
    )
    async with asyncio.timeout(60):
        _, log = await process.communicate()
    assert process.returncode == 1
    assert re.search(r"may open 80 files.*`ulimit -n`.*LimitNOFILE", log.decode(), re.DOTALL)
    assert b"Traceback" not in log


async def test_event_stream_is_refused_as_an_event_that_says_when_to_come_back() -> None:
    async with serving() as served:
        await served.http.get("/healthz")  # opens the connection
        with limited_to(FOR_FILES + FOR_REQUESTS):
            answer = await served.http.get("/v1/users/u/events")
        assert (answer.status_code, answer.text.count("event: error")) == (200, 1)
        assert "no more room for devices" in answer.text


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_open_descriptors_are_counted_where_the_system_tells(
    platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    before = open_descriptors()
    with socket.socket():
        assert open_descriptors() == before + 1
    assert open_descriptors("/a/folder/that/is/not/there") == 0


def test_refusals_are_logged_once_and_then_as_a_rate(caplog: pytest.LogCaptureFixture) -> None:
    clock = [0.0]
    full = Descriptors(reserved=limit(), clock=lambda: clock[0])
    with caplog.at_level(logging.ERROR, "gregor.server"):
        for clock[0] in (0.0, 1.0, 58.0, 61.0):
            with pytest.raises(Unavailable):
                full.require_one_for_device()
    logged: list[Any] = [record.msg for record in caplog.records]
    assert [entry.fields["refused"] for entry in logged] == [1, 3]
    assert full.refused == 4


@contextmanager
def limited_to(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
