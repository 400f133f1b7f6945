"""A client and a producer with a real server, over real sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvicorn

from gregor.client import (
    Client,
    Created,
    Dismissed,
    Offline,
    OutOfBandReceived,
    Producer,
    SQLiteStore,
    Transport,
)
from gregor.client.websocket import websocket
from gregor.config import Settings
from gregor.server.app import Server
from tests.timeouts import TIMEOUT_SECONDS


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
        asyncio.timeout(TIMEOUT_SECONDS),
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


# Refused upgrades, and what else can stand between a device and its node

REFUSALS = {
    "wrong path": (b"404 Not Found\r\nContent-Length: 0", "404"),
    "maintenance": (b"503 Busy\r\nRetry-After: 86400\r\nContent-Length: 0", "503"),
    "delay in another script": (b"503 Busy\r\nRetry-After: \xc2\xb2\r\nContent-Length: 0", "503"),
    "two delays": (b"503 Busy\r\nRetry-After: 1\r\nRetry-After: 2\r\nContent-Length: 0", ""),
    "login page": (b"200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi", "200"),
    "endless redirect": (b"302 Found\r\nLocation: /v1/connect\r\nContent-Length: 0", "redirect"),
    "redirect to nowhere": (b"302 Found\r\nLocation: mailto:x\r\nContent-Length: 0", ""),
    "wrong handshake": (b"101 Switching Protocols\r\nUpgrade: websocket", ""),
    "not HTTP": (b"\r\n\0\0", ""),
}


@asynccontextmanager
async def refusing(status_and_headers: bytes) -> AsyncIterator[str]:
    """A server that answers every request like this."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 " + status_and_headers + b"\r\n\r\n")
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port: int = server.sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("name", REFUSALS)
async def test_refused_upgrade_is_reported_and_tried_again(url: str, name: str) -> None:
    status_and_headers, reason = REFUSALS[name]
    async with asyncio.timeout(TIMEOUT_SECONDS), refusing(status_and_headers) as refusing_url:
        refused, accepted = websocket(refusing_url), websocket(url)
        attempts = 0

        async def connect() -> Transport:
            nonlocal attempts
            attempts += 1
            return await (refused if attempts == 1 else accepted)()

        async with Client("http://unused", "alice", device_id="d", connect=connect) as laptop:
            event = await anext(laptop.events())
            assert isinstance(event, Offline)
            assert reason in event.reason
            error = laptop.status.last_error
            assert error is not None
            assert error.message == event.reason
            laptop.reconnect()
            await laptop.wait_synced()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),  # needs a library that is not installed
        ("HTTP_PROXY", "garbage:::"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
    ],
)
async def test_proxy_that_cannot_be_used_is_reported(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    for name in (variable, variable.lower()):
        monkeypatch.setenv(name, value)
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        Client("http://gregor.invalid:9911", "alice", device_id="d") as laptop,
    ):
        assert isinstance(await anext(laptop.events()), Offline)
        assert laptop.status.last_error is not None
        assert laptop.status.retry_at is not None


async def test_tls_to_a_server_without_it_is_reported(url: str) -> None:
    https = url.replace("http", "https")
    async with asyncio.timeout(TIMEOUT_SECONDS), Client(https, "alice", device_id="d") as laptop:
        assert isinstance(await anext(laptop.events()), Offline)
