"""The example runs with the command in its docstring, and does what the docstring says."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.server.harness import RawDevice, http_client

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def running_shop(directory: Path) -> AsyncIterator[int]:
    """Run uvicorn with the example, and yield its port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "uvicorn", "examples.fastapi_app:app"),
            *("--fd", str(listener.fileno()), "--timeout-graceful-shutdown", "10"),
            cwd=ROOT,
            env={**os.environ, "GREGOR_STORE": f"sqlite:///{directory}/shop.db"},
            pass_fds=[listener.fileno()],
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            yield listener.getsockname()[1]  # the backlog holds connections until uvicorn is ready
        finally:
            process.terminate()
            _, log = await process.communicate()
            # After its shutdown uvicorn sends the signal to itself.
            assert process.returncode == -signal.SIGTERM, log.decode()
            assert b"Traceback" not in log, log.decode()


async def test_device_receives_messages_of_the_app_through_the_mount(tmp_path: Path) -> None:
    async with running_shop(tmp_path) as port, http_client(port) as http:
        url = f"ws://127.0.0.1:{port}/gregor/v1/connect"
        async with asyncio.timeout(30), await RawDevice.connect(url) as device:
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
    async with running_shop(tmp_path) as port, http_client(port) as http:
        await http.post("/orders", params={"customer": "alice", "item": "umbrella"}, timeout=30)
    async with running_shop(tmp_path) as port, http_client(port) as http:
        answer = await http.get("/gregor/v1/users/alice/count", timeout=30)
        assert answer.json()["counts"] == {"": 1}
