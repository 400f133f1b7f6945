"""A client and a producer at a real server, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn

from gregor.client import Client, Created, Dismissed, PassedBy, Producer, SQLiteStore
from gregor.config import Settings
from gregor.server.app import Server


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    async with Server(Settings(store=f"sqlite:///{tmp_path / 'server.db'}")) as server:
        config = uvicorn.Config(
            server.app, log_level="warning", lifespan="off", ws="websockets-sansio"
        )
        serving = uvicorn.Server(config)
        task = asyncio.create_task(serving.serve([listening]))
        yield f"http://127.0.0.1:{port}"
        await server.drain()
        serving.should_exit = True
        await task


async def test_a_day_with_two_devices_and_a_backend(url: str, tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "laptop.db")
    async with (
        asyncio.timeout(20),
        Client(url, "alice", device_id="laptop", store=store) as laptop,
        Client(url, "alice", device_id="phone") as phone,
    ):
        await laptop.wait_synced()
        await phone.wait_synced()
        async with phone.events() as on_phone, laptop.events() as on_laptop:
            await asyncio.to_thread(produce, url)
            await laptop.out_of_band("typing", {"room": 7})
            heard = [await anext(on_phone) for _ in range(2)]
            assert isinstance(heard[0], Created)
            assert heard[0].item.body == {"from": "bob"}
            assert heard[1] == PassedBy("typing", {"room": 7})
            await phone.dismiss(heard[0].item.msg_id)
            await phone.flush()
            while not isinstance(await anext(on_laptop), Dismissed):
                pass
        assert not laptop.state().items


def produce(url: str) -> None:
    with Producer(url) as producer:
        producer.create("alice", "mail", {"from": "bob"})


async def test_a_server_that_is_not_there_is_only_offline(tmp_path: Path) -> None:
    async with Client("http://127.0.0.1:9", "alice", device_id="laptop") as laptop:
        await laptop.create("mail")
        await asyncio.sleep(0)
        assert (laptop.online, laptop.outbox, laptop.failure) == (False, 1, None)
