"""What every pub/sub promises: the docstrings of `gregor.pubsub.interface`, executed.

Subclass it, name the class `Test…`, and give it the fixture `connect`, a function that opens
another end of the same pub/sub:

    class TestMine(PubSubConformance):
        @pytest.fixture
        def connect(self) -> Connect:
            return my_pubsub  # my_pubsub() is an async context manager

Needs pytest, and pytest-asyncio in auto mode.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias
from uuid import uuid4

import pytest

from gregor.pubsub.interface import Event, PubSub, Received

PATIENCE = 10.0
MANY = 5_000

Connect: TypeAlias = Callable[[], AbstractAsyncContextManager[PubSub]]

STRANGE_CHANNELS = ["plain", "with spaces", "slash/and:colon", "*", "a?[b]", "ü日本", "x" * 140]


class PubSubConformance:
    """The promises. `connect` is a fixture of the subclass."""

    @pytest.fixture
    def channel(self) -> str:
        """A channel that no other test uses."""
        return f"test:{uuid4().hex}"

    @pytest.mark.parametrize("name", STRANGE_CHANNELS)
    async def test_what_is_published_arrives_at_every_subscriber(
        self, connect: Connect, channel: str, name: str
    ) -> None:
        channel += name
        async with connect() as sender, connect() as one, connect() as two:
            for end in (one, two):
                await end.subscribe(channel)
            await sender.publish(channel, b"hello")
            for end in (one, two):
                assert await _next(end) == Received(channel, b"hello")

    async def test_one_may_hear_oneself(self, connect: Connect, channel: str) -> None:
        async with connect() as end:
            await end.subscribe(channel)
            await end.publish(channel, b"hello")
            assert await _next(end) == Received(channel, b"hello")

    @pytest.mark.parametrize("payload", [b"", b"\0\xff\r\n", b"x" * 200_000])
    async def test_payloads_are_any_bytes(
        self, connect: Connect, channel: str, payload: bytes
    ) -> None:
        async with connect() as end:
            await end.subscribe(channel)
            await end.publish(channel, payload)
            assert await _next(end) == Received(channel, payload)

    async def test_when_subscribe_returns_nothing_more_is_missed(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as sender, connect() as end:
            for number in range(20):
                await end.subscribe(f"{channel}{number}")
                await sender.publish(f"{channel}{number}", b"at once")
                assert await _next(end) == Received(f"{channel}{number}", b"at once")

    async def test_each_arrives_once_however_often_one_subscribes(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as end:
            await end.subscribe(channel)
            await end.subscribe(channel)
            for payload in (b"1", b"2"):
                await end.publish(channel, payload)
            assert [await _next(end), await _next(end)] == [
                Received(channel, b"1"),
                Received(channel, b"2"),
            ]

    async def test_other_channels_are_not_heard(self, connect: Connect, channel: str) -> None:
        async with connect() as end:
            await end.subscribe(channel)
            await end.publish(channel + "x", b"not for us")
            await end.publish(channel[:-1], b"nor this")
            await end.publish(channel, b"ours")
            assert await _next(end) == Received(channel, b"ours")

    async def test_after_unsubscribing_a_channel_falls_silent(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as end:
            for name in ("left", "kept"):
                await end.subscribe(channel + name)
            await end.unsubscribe(channel + "left")
            await end.unsubscribe(channel + "left")
            await end.unsubscribe(channel + "never known")
            await end.publish(channel + "kept", b"marker")
            assert await _next(end) == Received(channel + "kept", b"marker")
            await end.publish(channel + "left", b"to nobody")
            await end.publish(channel + "kept", b"marker")
            assert await _next(end) == Received(channel + "kept", b"marker")

    async def test_one_may_subscribe_again(self, connect: Connect, channel: str) -> None:
        async with connect() as end:
            await end.subscribe(channel)
            await end.unsubscribe(channel)
            await end.subscribe(channel)
            await end.publish(channel, b"back")
            assert await _next(end) == Received(channel, b"back")

    async def test_who_comes_late_has_missed_it(self, connect: Connect, channel: str) -> None:
        async with connect() as sender, connect() as end:
            await sender.subscribe(channel)
            await sender.publish(channel, b"before")
            assert await _next(sender) == Received(channel, b"before")
            await end.subscribe(channel)
            await sender.publish(channel, b"after")
            assert await _next(end) == Received(channel, b"after")

    @pytest.mark.parametrize("steps", range(1, 12))
    async def test_of_calls_that_overlap_the_last_counts(
        self, connect: Connect, channel: str, steps: int
    ) -> None:
        joined, left = channel + "joined", channel + "left"
        async with connect() as end, asyncio.TaskGroup() as tasks:
            await end.subscribe(joined)
            for _ in range(5):
                tasks.create_task(end.unsubscribe(joined))
                tasks.create_task(end.subscribe(left))
                for _ in range(steps):
                    await asyncio.sleep(0)
                leaving = tasks.create_task(end.unsubscribe(left))
                await end.subscribe(joined)
                await leaving
                for name in (left, joined):
                    await end.publish(name, b"hello")
                assert await _next(end) == Received(joined, b"hello")

    async def test_thousands_of_channels_at_once(self, connect: Connect, channel: str) -> None:
        channels = [f"{channel}{number}" for number in range(MANY)]
        async with connect() as sender, connect() as end:
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*map(end.subscribe, channels))
            await asyncio.gather(*(sender.publish(name, b"hello") for name in channels))
            assert {await _next(end) for _ in channels} == {
                Received(name, b"hello") for name in channels
            }
            async with asyncio.timeout(PATIENCE):
                await asyncio.gather(*map(end.unsubscribe, channels))
                await end.subscribe(channel)
            for name in (*channels[:100], channel):
                await sender.publish(name, b"over")
            assert await _next(end) == Received(channel, b"over")

    async def test_many_may_publish_at_once(self, connect: Connect, channel: str) -> None:
        payloads = [b"%d" % number for number in range(1_000)]
        async with connect() as sender, connect() as end:
            await end.subscribe(channel)
            await asyncio.gather(*(sender.publish(channel, payload) for payload in payloads))
            arrived = [await _next(end) for _ in payloads]
            assert sorted(arrived) == sorted(Received(channel, payload) for payload in payloads)
            assert sender.dropped == 0

    async def test_what_was_published_arrives_though_its_sender_leaves(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as end:
            await end.subscribe(channel)
            async with connect() as sender:
                await sender.publish(channel, b"farewell")
            assert await _next(end) == Received(channel, b"farewell")

    async def test_publishing_to_nobody_fails_nobody(self, connect: Connect, channel: str) -> None:
        async with connect() as end:
            await end.publish(channel, b"hello")
            assert end.up

    async def test_an_end_that_does_not_read_delays_no_other(
        self, connect: Connect, channel: str
    ) -> None:
        async with connect() as sender, connect() as silent, connect() as reader:
            for end in (silent, reader):
                await end.subscribe(channel)
            for number in range(2_000):
                async with asyncio.timeout(PATIENCE):
                    await sender.publish(channel, b"%d" % number)
                assert await _next(reader) == Received(channel, b"%d" % number)


async def _next(end: PubSub) -> Event:
    """The next event, which must come."""
    async with asyncio.timeout(PATIENCE):
        return await anext(aiter(end.received()))
