"""Slow consumers: they delay no other device, miss no message, and are disconnected if they accept
no data."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from websockets.frames import Opcode

from gregor.protocol.outbound_queue import QUEUE_MESSAGES
from gregor.server.service import Timeouts
from tests.server.harness import RawDevice, Served, serving, small_buffer_socket, to, until
from tests.server.test_websocket_frames import client_frame
from tests.timeouts import TIMEOUT_SECONDS

LARGE_BODY = "x" * 60_000
MUCH = 100_000_000  # bytes, more than the buffers of the kernel take
FLOOD_MESSAGES = 120  # more than fits into the session's queue and the buffers of the socket


@asynccontextmanager
async def slow_device(served: Served, uid: str) -> AsyncIterator[RawDevice]:
    """A device that connects with a small socket buffer, and then does not read."""
    port = urlsplit(served.url).port
    assert port is not None
    device = await RawDevice.connect(served.url, small_buffer_socket(port))
    try:
        await device.send("hello", token=uid, device_id="slow", protocol=2)
        await device.receive_type("sync")
        yield device
    finally:
        device.connection.transport.abort()
        await device.connection.wait_closed()


async def flood(served: Served, uid: str, number: int = FLOOD_MESSAGES) -> None:
    for _ in range(0, number, 10):
        await served.post({"messages": [to(uid, body=LARGE_BODY) for _ in range(10)]})


async def receive_ids(device: RawDevice, number: int) -> list[str]:
    """Receive this number of messages, and return their ids in the order of arrival."""
    ids: dict[str, None] = {}
    cursor = 0
    while len(ids) < number:
        frame = await device.receive()
        if frame["type"] == "messages":
            assert frame["prev"] == cursor
        cursor = frame["cursor"]
        ids.update(dict.fromkeys(entry["msg_id"] for entry in frame.get("messages", ())))
        ids.update(dict.fromkeys(entry["msg_id"] for entry in frame.get("items", ())))
    return list(ids)


async def test_slow_device_delays_no_other_and_misses_nothing() -> None:
    async with (
        serving() as served,
        slow_device(served, "u") as slow,
        await served.synced("u", "fast") as fast,
    ):
        await flood(served, "u")
        fast_ids = await receive_ids(fast, FLOOD_MESSAGES)
        await served.post(to("u", msg_id="one"))
        await served.post(to("u", msg_id="two"))
        assert len(await receive_wanted(fast, {"one", "two"})) == 2
        assert await served.metric("gregor_lagging_sessions ") == 1  # slow is still blocked
        assert await served.metric("gregor_slow_consumer_resets_total ") >= 1
        assert await receive_ids(slow, FLOOD_MESSAGES + 2) == [*fast_ids, "one", "two"]
        assert await served.metric("gregor_lagging_sessions ") == 0


async def receive_wanted(device: RawDevice, wanted: set[str]) -> set[str]:
    """Receive messages until all wanted ids have arrived."""
    found: set[str] = set()
    while found != wanted:
        found |= {message["msg_id"] for message in (await device.receive())["messages"]} & wanted
    return found


async def test_device_that_accepts_no_data_is_disconnected_and_others_stay() -> None:
    async with (
        serving(timeouts=Timeouts(write=0.3)) as served,
        slow_device(served, "u"),
        await served.synced("u", "fast") as fast,
    ):
        await flood(served, "u")
        await receive_ids(fast, FLOOD_MESSAGES)
        await until(lambda: served.server.node.device_count("u") == 1)
        await fast.assert_usable()
        assert await served.metric("gregor_connections ") == 1


async def test_disconnected_slow_device_receives_all_messages_after_reconnect() -> None:
    async with serving(timeouts=Timeouts(write=0.3)) as served:
        async with slow_device(served, "u"):
            await flood(served, "u")
            await until(lambda: served.server.node.device_count("u") == 0)
        async with await served.device("u", "slow") as device:
            assert len(await receive_ids(device, FLOOD_MESSAGES)) == FLOOD_MESSAGES


async def test_more_messages_than_fit_in_queue_arrive_in_order() -> None:
    async with serving() as served, AsyncExitStack() as stack:
        devices = [
            await stack.enter_async_context(await served.synced("u", f"d{n}")) for n in range(3)
        ]
        number = QUEUE_MESSAGES * 4
        for first in range(0, number, 256):
            ids = [f"{n:06}" for n in range(first, first + 256)]
            await served.post({"messages": [to("u", msg_id=id_) for id_ in ids]})
        for device in devices:
            assert await receive_ids(device, number) == [f"{n:06}" for n in range(number)]


async def test_device_that_never_reads_its_acks_is_disconnected() -> None:
    async def send_invalid_messages(device: RawDevice) -> None:
        while True:  # each ack contains 500 errors
            await device.send("consume", n=1, messages=[{}] * 500)

    async with serving(timeouts=Timeouts(write=0.3)) as served, slow_device(served, "u") as device:
        sender = asyncio.create_task(send_invalid_messages(device))
        await until(lambda: served.server.node.device_count("u") == 0)
        sender.cancel()
        assert await served.metric("gregor_connections ") == 0


async def test_peer_that_pings_and_reads_nothing_delays_nobody() -> None:
    pings = client_frame(Opcode.PING, b"p" * 125) * 2000
    patient = Timeouts(hello=TIMEOUT_SECONDS)  # the flooder says none
    async with serving(timeouts=patient) as served, await served.synced("u") as other:
        with await upgraded(served) as flooder:
            sent = refused = 0
            while refused < 20 and sent < MUCH:
                try:
                    sent += flooder.send(pings)
                except BlockingIOError:
                    refused += 1
                await other.assert_usable()


async def upgraded(served: Served) -> socket.socket:
    """A connected WebSocket on which nothing is read any more."""
    url = urlsplit(served.url)
    assert url.port is not None
    sock, loop = small_buffer_socket(url.port), asyncio.get_running_loop()
    request = (
        f"GET {url.path} HTTP/1.1\r\nHost: {url.netloc}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await loop.sock_sendall(sock, request.encode())
    assert (await loop.sock_recv(sock, 1000)).startswith(b"HTTP/1.1 101 ")
    return sock
