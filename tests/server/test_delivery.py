"""Slow devices: they delay nobody, miss nothing, and are let go when they take nothing at all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from urllib.parse import urlsplit

from gregor.protocol.server import QUEUE_MESSAGES
from tests.server.world import Device, Served, narrow_socket, serving, to, until

BIG = "x" * 60_000
MANY = 120  # of them are more than the queue, uvicorn and the kernel hold together


@asynccontextmanager
async def unread(served: Served, uid: str) -> AsyncIterator[Device]:
    """A device that has connected, and from then on takes little from its socket."""
    port = urlsplit(served.url).port
    assert port is not None
    device = await Device.connected(served.url, narrow_socket(port))
    try:
        await device.say("hello", token=uid, device_id="slow", protocol=1)
        await device.heard("sync")
        yield device
    finally:
        device.connection.transport.abort()
        await device.connection.wait_closed()


async def flood(served: Served, uid: str, number: int = MANY) -> None:
    for first in range(0, number, 10):
        await served.post({"messages": [to(uid, body=BIG) for _ in range(first, first + 10)]})


async def everything(device: Device, number: int) -> list[str]:
    """The ids of so many messages, in the order in which the device was told of them."""
    ids: dict[str, None] = {}
    cursor = 0
    while len(ids) < number:
        frame = await device.hear()
        if frame["type"] == "messages":
            assert frame["prev"] == cursor
        cursor = frame["cursor"]
        ids.update(dict.fromkeys(entry["msg_id"] for entry in frame.get("messages", ())))
        ids.update(dict.fromkeys(entry["msg_id"] for entry in frame.get("items", ())))
    return list(ids)


async def test_a_slow_device_delays_no_other_and_misses_nothing() -> None:
    async with (
        serving() as served,
        unread(served, "u") as slow,
        await served.synced("u", "fast") as fast,
    ):
        await flood(served, "u")
        seen = await everything(fast, MANY)
        started = monotonic()
        await served.post(to("u", msg_id="one"))
        await served.post(to("u", msg_id="two"))
        assert len(await everything_after(fast, {"one", "two"})) == 2
        assert monotonic() - started < 2
        assert await served.metric("gregor_lagging_sessions ") == 1
        assert await served.metric("gregor_lags_total ") >= 1
        assert await everything(slow, MANY + 2) == [*seen, "one", "two"]
        assert await served.metric("gregor_lagging_sessions ") == 0


async def everything_after(device: Device, wanted: set[str]) -> set[str]:
    found: set[str] = set()
    while found != wanted:
        found |= {message["msg_id"] for message in (await device.hear())["messages"]} & wanted
    return found


async def test_one_that_accepts_nothing_is_let_go_and_the_others_are_not() -> None:
    async with (
        serving(slowest_seconds=0.3) as served,
        unread(served, "u"),
        await served.synced("u", "fast") as fast,
    ):
        await flood(served, "u")
        await everything(fast, MANY)
        await until(lambda: served.server.node.connected("u") == 1)
        await fast.works()
        assert await served.metric("gregor_connections ") == 1


async def test_one_that_was_let_go_comes_back_to_where_it_was() -> None:
    async with serving(slowest_seconds=0.3) as served:
        async with unread(served, "u"):
            await flood(served, "u")
            await until(lambda: served.server.node.connected("u") == 0)
        async with await served.device("u", "slow") as device:
            assert len(await everything(device, MANY)) == MANY


async def test_more_small_messages_than_a_queue_holds_arrive_in_order() -> None:
    async with serving() as served, AsyncExitStack() as stack:
        devices = [
            await stack.enter_async_context(await served.synced("u", f"d{n}")) for n in range(3)
        ]
        number = QUEUE_MESSAGES * 4
        for first in range(0, number, 256):
            ids = [f"{n:06}" for n in range(first, first + 256)]
            await served.post({"messages": [to("u", msg_id=id_) for id_ in ids]})
        for device in devices:
            assert await everything(device, number) == [f"{n:06}" for n in range(number)]


async def test_a_device_that_never_reads_its_answers_is_let_go() -> None:
    async def ask(device: Device) -> None:
        while True:  # each is answered with 500 reasons
            await device.say("consume", n=1, messages=[{}] * 500)

    async with serving(slowest_seconds=0.3) as served, unread(served, "u") as device:
        asking = asyncio.create_task(ask(device))
        await until(lambda: served.server.node.connected("u") == 0)
        asking.cancel()
        assert await served.metric("gregor_connections ") == 0
