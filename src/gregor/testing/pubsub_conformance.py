"""The conformance suite for pub/subs: it tests the contract in `gregor.pubsub.interface`.

To test an implementation, subclass the suite, name the class `Test…`, and define the fixture
`connect`: a function that opens one more client of the same pub/sub:

    class TestMine(PubSubConformance):
        @pytest.fixture
        def connect(self) -> Connect:
            return my_pubsub  # my_pubsub() is an async context manager

The suite needs pytest, and pytest-asyncio in auto mode.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias
from uuid import uuid4

from gregor.extras import required_extra
from gregor.pubsub.interface import Event, PubSub, Received

with required_extra("testing"):
    import pytest

TIMEOUT_SECONDS = 10.0
CHANNELS = 5_000

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[PubSub]]

UNUSUAL_CHANNELS = ["plain", "with spaces", "slash/and:colon", "*", "a?[b]", "ü日本", "x" * 140]


class PubSubConformance:
    """The suite for all pub/subs. The subclass defines the fixture `connect`."""

    @pytest.fixture
    def channel(self) -> str:
        """A channel that no other test uses."""
        return f"test:{uuid4().hex}"

    @pytest.mark.parametrize("name", UNUSUAL_CHANNELS)
    async def test_publication_arrives_at_every_subscriber(
        self, connect: Connect, channel: str, name: str
    ) -> None:
        channel += name
        async with connect() as publisher, connect() as first, connect() as second:
            for subscriber in (first, second):
                await subscriber.subscribe(channel)
            await publisher.publish(channel, b"hello")
            for subscriber in (first, second):
                assert await _next(subscriber) == Received(channel, b"hello")

    async def test_publisher_receives_its_own_publications(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.publish(channel, b"hello")
            assert await _next(pubsub) == Received(channel, b"hello")

    @pytest.mark.parametrize("payload", [b"", b"\0\xff\r\n", b"x" * 200_000])
    async def test_payload_may_be_any_bytes(
        self, connect: Connect, channel: str, payload: bytes
    ) -> None:
        async with connect() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.publish(channel, payload)
            assert await _next(pubsub) == Received(channel, payload)

    async def test_no_publication_is_missed_after_subscribe_returns(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as publisher, connect() as subscriber:
            for number in range(20):
                await subscriber.subscribe(f"{channel}{number}")
                await publisher.publish(f"{channel}{number}", b"at once")
                assert await _next(subscriber) == Received(f"{channel}{number}", b"at once")

    async def test_repeated_subscribe_does_not_duplicate_publications(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.subscribe(channel)
            for payload in (b"1", b"2"):
                await pubsub.publish(channel, payload)
            assert [await _next(pubsub), await _next(pubsub)] == [
                Received(channel, b"1"),
                Received(channel, b"2"),
            ]

    async def test_publications_on_other_channels_are_not_received(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.publish(channel + "x", b"another channel")
            await pubsub.publish(channel[:-1], b"another channel")
            await pubsub.publish(channel, b"hello")
            assert await _next(pubsub) == Received(channel, b"hello")

    async def test_publications_on_an_unsubscribed_channel_are_not_received(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            for name in ("left", "kept"):
                await pubsub.subscribe(channel + name)
            await pubsub.unsubscribe(channel + "left")
            await pubsub.unsubscribe(channel + "left")
            await pubsub.unsubscribe(channel + "never subscribed")
            await pubsub.publish(channel + "kept", b"marker")
            assert await _next(pubsub) == Received(channel + "kept", b"marker")
            await pubsub.publish(channel + "left", b"not received")
            await pubsub.publish(channel + "kept", b"marker")
            assert await _next(pubsub) == Received(channel + "kept", b"marker")

    async def test_publications_are_received_after_subscribing_again(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            await pubsub.subscribe(channel)
            await pubsub.unsubscribe(channel)
            await pubsub.subscribe(channel)
            await pubsub.publish(channel, b"back")
            assert await _next(pubsub) == Received(channel, b"back")

    async def test_publications_before_subscribe_are_not_received(
        self, connect: Connect, channel: str
    ) -> None:
        # In a cluster, the servers receive a publication one after the other. What follows it on
        # the same way shows that all have; braces let a Redis Cluster send both the same way.
        follower = f"{{{channel}}}follower"
        async with connect() as publisher, connect() as subscriber:
            await publisher.subscribe(channel)
            await subscriber.subscribe(follower)
            await publisher.publish(channel, b"before")
            await publisher.publish(follower, b"follower")
            assert await _next(publisher) == Received(channel, b"before")
            assert await _next(subscriber) == Received(follower, b"follower")
            await subscriber.subscribe(channel)
            await publisher.publish(channel, b"after")
            assert await _next(subscriber) == Received(channel, b"after")

    @pytest.mark.parametrize("steps", range(1, 12))
    async def test_last_of_overlapping_calls_wins(
        self, connect: Connect, channel: str, steps: int
    ) -> None:
        # Braces let a Redis Cluster send both the same way: what was published on the one before it
        # was subscribed to again would else arrive late, after what follows on the other.
        subscribed, unsubscribed = f"{{{channel}}}subscribed", f"{{{channel}}}unsubscribed"
        async with connect() as pubsub, asyncio.TaskGroup() as tasks:
            await pubsub.subscribe(subscribed)
            for _ in range(5):
                tasks.create_task(pubsub.unsubscribe(subscribed))
                tasks.create_task(pubsub.subscribe(unsubscribed))
                for _ in range(steps):
                    await asyncio.sleep(0)
                unsubscribing = tasks.create_task(pubsub.unsubscribe(unsubscribed))
                await pubsub.subscribe(subscribed)
                await unsubscribing
                for name in (unsubscribed, subscribed):
                    await pubsub.publish(name, b"hello")
                assert await _next(pubsub) == Received(subscribed, b"hello")

    async def test_thousands_of_concurrent_subscriptions_take_effect(
        self, connect: Connect, channel: str
    ) -> None:
        channels = [f"{channel}{number}" for number in range(CHANNELS)]
        async with connect() as publisher, connect() as subscriber:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await asyncio.gather(*map(subscriber.subscribe, channels))
            await asyncio.gather(*(publisher.publish(name, b"hello") for name in channels))
            assert {await _next(subscriber) for _ in channels} == {
                Received(name, b"hello") for name in channels
            }
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await asyncio.gather(*map(subscriber.unsubscribe, channels))
                await subscriber.subscribe(channel)
            for name in (*channels[:100], channel):
                await publisher.publish(name, b"over")
            assert await _next(subscriber) == Received(channel, b"over")

    async def test_concurrent_publications_all_arrive(self, connect: Connect, channel: str) -> None:
        payloads = [b"%d" % number for number in range(1_000)]
        async with connect() as publisher, connect() as subscriber:
            await subscriber.subscribe(channel)
            await asyncio.gather(*(publisher.publish(channel, payload) for payload in payloads))
            received = [await _next(subscriber) for _ in payloads]
            assert sorted(received) == sorted(Received(channel, payload) for payload in payloads)
            assert publisher.dropped == 0

    async def test_publication_arrives_after_its_publisher_has_closed(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            await pubsub.subscribe(channel)
            async with connect() as publisher:
                await publisher.publish(channel, b"last publication")
            assert await _next(pubsub) == Received(channel, b"last publication")

    async def test_publish_without_subscribers_succeeds(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as pubsub:
            await pubsub.publish(channel, b"hello")
            assert pubsub.up

    async def test_subscriber_that_does_not_read_does_not_delay_others(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as publisher, connect() as slow, connect() as reader:
            for subscriber in (slow, reader):
                await subscriber.subscribe(channel)
            for number in range(2_000):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await publisher.publish(channel, b"%d" % number)
                assert await _next(reader) == Received(channel, b"%d" % number)


async def _next(pubsub: PubSub) -> Event:
    """The next event. Raises TimeoutError if there is none."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        return await anext(aiter(pubsub.received()))
