"""The example is run as its first lines say, and does what they say."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.server.world import Device, http_client

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def shop(directory: Path) -> AsyncIterator[int]:
    """uvicorn with the example, on a port of its own, which is given when it answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "examples.fastapi_app:app"),
            *("--fd", str(listening.fileno()), "--timeout-graceful-shutdown", "10"),
            cwd=ROOT,
            env={**os.environ, "GREGOR_STORE": f"sqlite:///{directory}/shop.db"},
            pass_fds=[listening.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield listening.getsockname()[1]  # who comes too early waits in its backlog
        finally:
            process.terminate()
            _, log = await process.communicate()
            # uvicorn, once done, passes the signal on to itself.
            assert process.returncode == -signal.SIGTERM, log.decode()
            assert b"Traceback" not in log, log.decode()


async def test_a_device_hears_through_the_mount_of_what_the_app_does(tmp_path: Path) -> None:
    async with shop(tmp_path) as port, http_client(port) as http:
        url = f"ws://127.0.0.1:{port}/gregor/v1/connect"
        async with asyncio.timeout(30), await Device.connected(url) as device:
            await device.say("hello", token="alice", device_id="phone", protocol=1)
            await device.heard("sync")
            answer = await http.post("/orders", params={"customer": "alice", "item": "umbrella"})
            (message,) = (await device.heard("messages"))["messages"]
            assert message["msg_id"] == answer.json()["order"]
            assert message["creation"] == {"category": "order.placed", "body": {"item": "umbrella"}}
            state = (await http.get("/gregor/v1/users/alice/state")).json()
            assert [item["msg_id"] for item in state["items"]] == [message["msg_id"]]
            await device.close()


async def test_what_was_ordered_is_there_after_a_restart(tmp_path: Path) -> None:
    async with shop(tmp_path) as port, http_client(port) as http:
        await http.post("/orders", params={"customer": "alice", "item": "umbrella"}, timeout=30)
    async with shop(tmp_path) as port, http_client(port) as http:
        answer = await http.get("/gregor/v1/users/alice/count", timeout=30)
        assert answer.json()["counts"] == {"": 1}
