"""MemoryPubSub passes the conformance suite, and reports an overflow of its queue."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from gregor.pubsub.incoming import MAX_QUEUED_EVENTS
from gregor.pubsub.interface import Interrupted, PubSub, Received
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.testing.pubsub_conformance import Connect, PubSubConformance


class TestMemoryPubSub(PubSubConformance):
    @pytest.fixture
    def connect(self) -> Connect:
        exchange = Exchange()

        @asynccontextmanager
        async def open_pubsub() -> AsyncIterator[PubSub]:
            yield MemoryPubSub(exchange)

        return open_pubsub


async def test_slow_reader_receives_interrupted_and_later_payloads() -> None:
    pubsub = MemoryPubSub(Exchange())
    await pubsub.subscribe("c")
    for number in range(MAX_QUEUED_EVENTS + 5):
        await pubsub.publish("c", b"%d" % number)
    events = pubsub.received()
    assert await anext(events) == Interrupted()
    assert await anext(events) == Received("c", b"%d" % (MAX_QUEUED_EVENTS + 1))


async def test_channel_is_removed_with_its_last_subscriber() -> None:
    exchange = Exchange()
    pubsub_a, pubsub_b = MemoryPubSub(exchange), MemoryPubSub(exchange)
    for pubsub in (pubsub_a, pubsub_b):
        await pubsub.subscribe("c")
    await pubsub_a.unsubscribe("c")
    assert "c" in exchange.channels
    await pubsub_b.unsubscribe("c")
    assert exchange.channels == {}
