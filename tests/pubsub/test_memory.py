"""The pub/sub of one process keeps the promises of all, and owns up when it cannot."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gregor.pubsub.arrivals import QUEUE
from gregor.pubsub.interface import Interrupted, PubSub, Received
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.testing.pubsub_conformance import Connect, PubSubConformance


class TestMemoryPubSub(PubSubConformance):
    @pytest.fixture
    def connect(self) -> Connect:
        exchange = Exchange()

        @asynccontextmanager
        async def end() -> AsyncIterator[PubSub]:
            yield MemoryPubSub(exchange)

        return end


async def test_who_does_not_keep_up_is_told_so_and_hears_on() -> None:
    end = MemoryPubSub(Exchange())
    await end.subscribe("c")
    for number in range(QUEUE + 5):
        await end.publish("c", b"%d" % number)
    events = end.received()
    assert await anext(events) == Interrupted()
    assert await anext(events) == Received("c", b"%d" % (QUEUE + 1))


async def test_the_last_to_leave_a_channel_leaves_nothing_behind() -> None:
    exchange = Exchange()
    one, two = MemoryPubSub(exchange), MemoryPubSub(exchange)
    for end in (one, two):
        await end.subscribe("c")
    await one.unsubscribe("c")
    assert "c" in exchange.channels
    await two.unsubscribe("c")
    assert exchange.channels == {}
