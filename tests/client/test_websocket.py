"""A client and a producer with a real server, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import uvicorn

from gregor.client import Client, Created, Dismissed, OutOfBandReceived, Producer, SQLiteStore
from gregor.config import Settings
from gregor.server.app import Server


@pytest.fixture
async def url(tmp_path: Path) -> AsyncIterator[str]:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    async with Server.from_settings(
        Settings(store=f"sqlite:///{tmp_path / 'server.db'}")
    ) as server:
        config = uvicorn.Config(
            server.app, log_level="warning", lifespan="off", ws="websockets-sansio"
        )
        uvicorn_server = uvicorn.Server(config)
        task = asyncio.create_task(uvicorn_server.serve([listener]))
        yield f"http://127.0.0.1:{port}"
        await server.drain()
        uvicorn_server.should_exit = True
        await task


async def test_two_devices_and_a_backend_exchange_messages_over_sockets(
    url: str, tmp_path: Path
) -> None:
    store = SQLiteStore(tmp_path / "laptop.db")
    async with (
        asyncio.timeout(20),
        Client(url, "alice", device_id="laptop", store=store) as laptop,
        Client(url, "alice", device_id="phone") as phone,
    ):
        await laptop.wait_synced()
        await phone.wait_synced()
        async with phone.events() as phone_events, laptop.events() as laptop_events:
            await asyncio.to_thread(produce_mail, url)
            await laptop.out_of_band("typing", {"room": 7})
            received = [await anext(phone_events) for _ in range(2)]
            assert isinstance(received[0], Created)
            assert received[0].item.body == {"from": "bob"}
            assert received[1] == OutOfBandReceived("typing", {"room": 7})
            await phone.dismiss(received[0].item.msg_id)
            await phone.flush()
            while not isinstance(await anext(laptop_events), Dismissed):
                pass
        assert not laptop.state().items


def produce_mail(url: str) -> None:
    with Producer(url) as producer:
        producer.create("alice", "mail", {"from": "bob"})


async def test_unreachable_server_leaves_client_offline_and_writable(tmp_path: Path) -> None:
    async with Client("http://127.0.0.1:9", "alice", device_id="laptop") as laptop:
        await laptop.create("mail")
        await asyncio.sleep(0)
        assert (laptop.online, laptop.unsent_count, laptop.failure) == (False, 1, None)
