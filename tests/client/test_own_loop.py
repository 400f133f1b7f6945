"""A client used from another event loop, or from a thread without one, says so at once."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gregor.client import Client
from gregor.core.message import create
from gregor.errors import WrongEventLoop
from tests.client.harness import client_harness
from tests.timeouts import TIMEOUT_SECONDS

CALLS: dict[str, Callable[[Client], Awaitable[Any]]] = {
    "create": lambda client: client.create("mail"),
    "dismiss": lambda client: client.dismiss("m"),
    "dismiss_category": lambda client: client.dismiss_category("mail"),
    "put": lambda client: client.put("mail", 1),
    "snooze": lambda client: client.snooze("m", "1h"),
    "dismiss_key": lambda client: client.dismiss_key("mail"),
    "write": lambda client: client.write(create("alice", "mail")),
    "write_all": lambda client: client.write_all([create("alice", "mail")]),
    "hide": lambda client: client.hide("m"),
    "out_of_band": lambda client: client.out_of_band("typing"),
    "discard": lambda client: client.discard("m"),
    "wait_synced": lambda client: client.wait_synced(),
    "flush": lambda client: client.flush(),
    "change": lambda client: client.change(lambda replica, now: replica),
    "__aexit__": lambda client: client.__aexit__(None, None, None),
}


def test_every_method_that_waits_is_tried_here() -> None:
    waiting = {name for name, value in vars(Client).items() if inspect.iscoroutinefunction(value)}
    public = {name for name in waiting if not name.startswith("_")}
    assert public == {name for name in CALLS if not name.startswith("_")}


@pytest.mark.parametrize("name", CALLS)
async def test_call_from_another_event_loop_raises_at_once_and_harms_nothing(name: str) -> None:
    def in_another_loop() -> None:
        async def call() -> None:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await CALLS[name](laptop)

        with pytest.raises(WrongEventLoop, match="run_coroutine_threadsafe"):
            asyncio.run(call())

    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        client_harness() as harness,
        harness.device() as laptop,
    ):
        await asyncio.to_thread(in_another_loop)
        await laptop.create("mail")
        await laptop.flush()
        assert len(await harness.state()) == 1


async def test_events_and_reconnect_from_a_thread_raise_at_once() -> None:
    def in_a_thread() -> None:
        with pytest.raises(WrongEventLoop):
            laptop.events()
        with pytest.raises(WrongEventLoop):
            laptop.reconnect()

        async def next_event() -> None:
            await anext(events)

        with pytest.raises(WrongEventLoop):
            asyncio.run(next_event())

    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        client_harness() as harness,
        harness.device() as laptop,
    ):
        await laptop.wait_synced()
        events = laptop.events()
        await asyncio.to_thread(in_a_thread)


async def test_what_is_known_can_be_read_from_a_thread() -> None:
    def in_a_thread() -> tuple[int, int, bool]:
        return laptop.count(), len(laptop.state()), laptop.status.online

    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        client_harness() as harness,
        harness.device() as laptop,
    ):
        await laptop.create("mail")
        await laptop.wait_synced()
        assert await asyncio.to_thread(in_a_thread) == (1, 1, True)
