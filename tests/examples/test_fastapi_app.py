"""The example runs with the command in its docstring, and does what the docstring says."""

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import hypercorn.config
import pytest
import uvicorn

from tests.ports import free_port
from tests.server.harness import RawDevice, http_client
from tests.timeouts import TIMEOUT_SECONDS

ROOT = Path(__file__).parents[2]
UVICORN = ("uvicorn", "examples.fastapi_app:app", "--no-access-log")


class Shop(NamedTuple):
    process: Process
    port: int


def command(*arguments: str) -> Sequence[str]:
    """Runs a module of this Python."""
    return (sys.executable, "-m", *arguments)


@asynccontextmanager
async def running_shop(directory: Path, **settings: str) -> AsyncIterator[Shop]:
    """Run uvicorn with the example."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = await asyncio.create_subprocess_exec(
            *command(*UVICORN, "--fd", str(listener.fileno())),
            cwd=ROOT,
            env={**os.environ, "GREGOR_STORE": f"sqlite:///{directory}/shop.db", **settings},
            pass_fds=[listener.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            # The backlog holds connections until uvicorn is ready.
            yield Shop(process, listener.getsockname()[1])
        finally:
            if process.returncode is None:
                process.terminate()
            _, log = await process.communicate()
            # After its shutdown uvicorn sends the signal to itself.
            assert process.returncode == -signal.SIGTERM, log.decode()
            assert b"Traceback" not in log, log.decode()


async def test_device_receives_messages_of_the_app_through_the_mount(tmp_path: Path) -> None:
    async with running_shop(tmp_path) as shop, http_client(shop.port) as http:
        url = f"ws://127.0.0.1:{shop.port}/gregor/v1/connect"
        async with asyncio.timeout(TIMEOUT_SECONDS), await RawDevice.connect(url) as device:
            await device.send("hello", token="alice", device_id="phone", protocol=2)
            await device.receive_type("sync")
            answer = await http.post("/orders", params={"customer": "alice", "item": "umbrella"})
            (message,) = (await device.receive_type("messages"))["messages"]
            assert message["msg_id"] == answer.json()["order"]
            assert message["creation"] == {"category": "order.placed", "body": {"item": "umbrella"}}
            state = (await http.get("/gregor/v1/users/alice/state")).json()
            assert [item["msg_id"] for item in state["items"]] == [message["msg_id"]]
            await device.close()


async def test_order_is_stored_across_a_restart(tmp_path: Path) -> None:
    async with running_shop(tmp_path) as shop, http_client(shop.port) as http:
        await http.post("/orders", params={"customer": "alice", "item": "umbrella"})
    async with running_shop(tmp_path) as shop, http_client(shop.port) as http:
        answer = await http.get("/gregor/v1/users/alice/count")
        assert answer.json()["counts"] == {"": 1}


async def test_device_with_a_token_of_the_shop_is_notified_of_a_shipment(tmp_path: Path) -> None:
    needs_tokens = {"GREGOR_AUTH": "jwt", "GREGOR_JWT_SECRET": "0123456789abcdef" * 2}
    async with running_shop(tmp_path, **needs_tokens) as shop, http_client(shop.port) as http:
        answer = await http.post("/token", params={"customer": "alice"})
        url = f"ws://127.0.0.1:{shop.port}/gregor/v1/connect"
        async with asyncio.timeout(TIMEOUT_SECONDS), await RawDevice.connect(url) as device:
            token = answer.json()["token"]
            await device.send("hello", token=token, device_id="phone", protocol=2)
            await device.receive_type("sync")
            await http.post("/shipments", params={"customer": "alice", "item": "umbrella"})
            frames = [await device.receive_type("messages") for _ in ("item", "marker")]
            keys = [frame["messages"][0]["creation"]["category"] for frame in frames]
            assert keys == ["inbox.shipments", "unread.shipments"]
            await device.close()


async def test_shop_serves_its_page_or_says_how_to_build_it(tmp_path: Path) -> None:
    async with running_shop(tmp_path) as shop, http_client(shop.port) as http:
        answer = await http.get("/shop")
        if answer.is_success:
            assert "<title>The shop</title>" in answer.text
        else:
            assert "npm run example" in answer.json()["detail"]


# Stopping, under each server that docs/operations.md names, with the settings that it names


class HostServer(NamedTuple):
    """`sends_goaway`: whether it leaves connections open while the shop drains."""

    command: Sequence[str]
    drain_seconds: str = "5"
    sends_goaway: bool = True


HOSTS = {
    "uvicorn": HostServer((*UVICORN, "--port", "PORT")),
    "uvicorn --reload": HostServer((*UVICORN, "--port", "PORT", "--reload")),
    "uvicorn --workers": HostServer((*UVICORN, "--port", "PORT", "--workers", "1")),
    "hypercorn": HostServer(
        ("hypercorn", UVICORN[1], "--bind", "127.0.0.1:PORT", "--workers", "0"), drain_seconds="1"
    ),
    "hypercorn --workers": HostServer(
        ("hypercorn", UVICORN[1], "--bind", "127.0.0.1:PORT", "--workers", "1"),
        drain_seconds="1",
        sends_goaway=False,
    ),
    "granian": HostServer(
        ("granian", "--interface", "asgi", UVICORN[1], "--port", "PORT"),
        drain_seconds="0",
        sends_goaway=False,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTS)
async def test_host_that_is_stopped_sends_its_devices_away_and_ends(
    tmp_path: Path, name: str
) -> None:
    async with hosted(HOSTS[name], tmp_path) as shop, http_client(shop.port) as http:
        device = await RawDevice.connect(f"ws://127.0.0.1:{shop.port}/gregor/v1/connect")
        await device.send("hello", token="alice", device_id="phone", protocol=2)
        await device.receive_type("sync")
        async with http.stream("GET", "/gregor/v1/users/alice/events") as response:
            lines = response.aiter_lines()
            await read_until(lines, "event: sync")
            shop.process.terminate()
            if HOSTS[name].sends_goaway:
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await read_until(lines, "event: goaway")
                    await device.receive_type("goaway")
            await device.wait_ended()
        async with asyncio.timeout(TIMEOUT_SECONDS):
            assert await shop.process.wait() in (0, -signal.SIGTERM)


def test_defaults_of_hosts_are_those_that_the_operations_page_changes() -> None:
    assert uvicorn.Config("app").timeout_keep_alive == 5
    assert hypercorn.config.Config().keep_alive_timeout == 5
    assert hypercorn.config.Config().graceful_timeout == 3


@asynccontextmanager
async def hosted(host: HostServer, directory: Path) -> AsyncIterator[Shop]:
    """The shop under this server, when it answers. Nothing of it is left afterwards."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *command(*(part.replace("PORT", str(port)) for part in host.command)),
        cwd=ROOT,
        env={
            **os.environ,
            "GREGOR_STORE": f"sqlite:///{directory}/shop.db",
            "GREGOR_DRAIN_SECONDS": host.drain_seconds,
        },
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await answering(port)
        yield Shop(process, port)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


async def answering(port: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS), http_client(port) as http:
        while True:
            try:
                await http.get("/gregor/healthz")
            except httpx.TransportError:
                await asyncio.sleep(0.05)
            else:
                return


async def read_until(lines: AsyncIterator[str], expected: str) -> None:
    async for line in lines:
        if line == expected:
            return
    raise AssertionError(f"the stream ended before {expected}")
