"""A server that was told to stop is unready at once, but serves for its lame-duck time."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest

from tests.examples.test_fastapi_app import UVICORN
from tests.fleet.servers import Redis
from tests.ports import free_port
from tests.server.harness import RawDevice, http_client, to

SERVE = ("gregor.cli", "serve", "--listen", "127.0.0.1:PORT", "--migrate")
ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0


async def answers(port: int, path: str, status: int) -> None:
    """Wait until a path answers with this status, over a new connection."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                async with http_client(port) as http:
                    if (await http.get(path)).status_code == status:
                        return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("command", "mount"),
    [
        (SERVE, ""),
        ((*SERVE, "--workers", "2"), ""),
        ((*UVICORN, "--port", "PORT"), "/gregor"),
    ],
    ids=["process", "workers", "mounted"],
)
async def test_lame_duck_accepts_devices_and_messages_until_a_second_signal(
    command: Sequence[str], mount: str, postgresql_url: str, redis_server: Redis
) -> None:
    port = free_port()
    settings = {
        "GREGOR_STORE": postgresql_url,
        "GREGOR_PUBSUB": redis_server.url,
        "GREGOR_MIGRATE": "true",
        "GREGOR_DRAIN_SECONDS": "0",
        "GREGOR_LAME_DUCK_SECONDS": "3600",
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", *(part.replace("PORT", str(port)) for part in command)),
        env={**os.environ, **settings},
        cwd=ROOT,
        stdin=DEVNULL,
        stderr=DEVNULL,
    )
    try:
        await answers(port, f"{mount}/readyz", 200)
        process.send_signal(signal.SIGTERM)
        await answers(port, f"{mount}/readyz", 503)
        for number in range(4):  # so that each worker gets one
            url = f"ws://127.0.0.1:{port}{mount}/v1/connect"
            async with await RawDevice.connect(url) as device, http_client(port) as http:
                await device.send("hello", token="u", device_id=f"d{number}", protocol=2)
                await device.receive_type("sync")
                answer = await http.post(f"{mount}/v1/messages", json=to("u", msg_id=f"m{number}"))
                assert answer.status_code == 200
                received = await device.receive_type("messages")
                assert received["messages"][0]["msg_id"] == f"m{number}"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_SECONDS):
            assert await process.wait() in (0, -signal.SIGTERM)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
