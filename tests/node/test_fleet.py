"""Two nodes over one store, which tell each other over a pub/sub what they have stored."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from gregor import create, out_of_band
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher, channel_of
from gregor.core.message import new_msg_id
from gregor.interfaces import Stored
from gregor.node import Node
from gregor.pubsub.interface import Interrupted
from gregor.pubsub.memory import Exchange, MemoryPubSub
from tests.node.listening import Ear, Flaky, Notes, Steps, tell
from tests.server.world import until


class Fleet:
    """Two nodes, `here` and `there`, each with a device of `u` that knows all there was."""

    def __init__(self, here: Node, there: Node, exchange: Exchange, notes: Notes) -> None:
        self.here, self.there = here, there
        self.exchange = exchange
        self.notes = notes
        self.ear_here, self.ear_there = Ear(), Ear()


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    exchange, clock = Exchange(), Steps()
    store = Flaky(clock)
    await store.consume_message(create("u", "c", msg_id="known"))
    notes = Notes()
    async with AsyncExitStack() as stack:
        nodes = []
        for name in ("here", "there"):
            pubsub = MemoryPubSub(exchange)
            node = Node(
                store,
                [Publisher(pubsub, name), Broadcaster()],
                clock=clock,
                pubsub=pubsub,
                name=name,
                observer=notes,
            )
            nodes.append(await stack.enter_async_context(node))
        world = Fleet(nodes[0], nodes[1], exchange, notes)
        for node, ear in ((world.here, world.ear_here), (world.there, world.ear_there)):
            await stack.enter_async_context(node.attach("u", ear))
            await tell(node)
        yield world


async def test_what_one_node_stores_the_others_devices_hear_once() -> None:
    async with fleet() as world:
        for number in range(10):
            node = world.here if number % 2 else world.there
            await node.inject([create("u", "c", msg_id=str(number))])
            await until(lambda: world.ear_there.ids == world.ear_here.ids)
        expected = [str(number) for number in range(10)]
        assert (world.ear_here.ids, world.ear_there.ids) == (expected, expected)
        assert world.notes.healed_messages == []


async def test_messages_of_both_at_once_reach_all_in_one_order() -> None:
    async with fleet() as world:
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                node = world.here if number % 2 else world.there
                tasks.create_task(node.inject([create("u", "c", msg_id=str(number))]))
        await until(lambda: len(world.ear_here.ids) == len(world.ear_there.ids) == 50)
        assert world.ear_here.ids == world.ear_there.ids


async def test_out_of_band_messages_reach_each_device_exactly_once() -> None:
    async with fleet() as world:
        for number in range(10):
            await world.here.inject([out_of_band("u", "s", number)])
        await until(lambda: len(world.ear_there.passed) == 10)
        for ear in (world.ear_here, world.ear_there):
            assert [message.body for message in ear.passed] == list(range(10))


def stored(uid: str, **fields: object) -> bytes:
    return msgspec.json.encode(
        {
            "node": "x",
            "message": {
                "uid": uid,
                "msg_id": new_msg_id(),
                "creation": {"category": "c", "body": 1},
                **fields,
            },
        }
    )


GARBAGE = {
    "nothing": b"",
    "not JSON": b"\x80\x04pickle.",
    "not an envelope": b"[]",
    "an unknown field": b'{"node": "x", "message": {}, "y": 1}',
    "not a message": b'{"node": "x", "message": {"uid": "u"}}',
    "nested beyond reading": b'{"node": "x", "message": ' + b"[" * 100_000,
    "another user's": stored("v", ctime=10**9, prev=5),
    "never stored": stored("u"),
    "older than its predecessor": stored("u", ctime=5, prev=6),
    "with a ctime beyond all time": stored("u", ctime=2**60, prev=6),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_on_a_channel_is_counted_and_nothing_else(kind: str) -> None:
    async with fleet() as world:
        await MemoryPubSub(world.exchange).publish(channel_of("u"), GARBAGE[kind])
        await until(lambda: len(world.notes.strange_ones) == 2)  # each node has heard it
        assert (world.ear_here.ids, world.ear_there.ids) == ([], [])
        await world.here.inject([create("u", "c", msg_id="m")])
        await until(lambda: world.ear_there.ids == ["m"])


async def test_an_interrupted_pubsub_is_made_up_for_at_once() -> None:
    async with fleet() as world:
        channel = world.exchange.channels[channel_of("u")]
        away = list(channel)[1]
        del channel[away]
        await world.here.inject([create("u", "c", msg_id="missed")])
        channel[away] = None
        away.take(Interrupted())
        await until(lambda: world.ear_there.ids == ["missed"])


async def test_a_node_hears_only_of_users_who_are_connected_to_it() -> None:
    async with fleet() as world:
        assert list(world.exchange.channels) == [channel_of("u")]
        async with world.here.attach("v", Ear()):
            assert channel_of("v") in world.exchange.channels
        assert list(world.exchange.channels) == [channel_of("u")]


async def test_a_second_device_waits_for_the_subscription_as_the_first_does() -> None:
    class Slow(MemoryPubSub):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__(exchange)
            self.confirmed = asyncio.Event()

        async def subscribe(self, channel: str) -> None:
            await self.confirmed.wait()
            await super().subscribe(channel)

    clock, pubsub = Steps(), Slow(Exchange())
    attached: list[str] = []

    async def device(node: Node, name: str) -> None:
        async with node.attach("u", Ear()):
            attached.append(name)

    async with Node(Flaky(clock), [Broadcaster()], clock=clock, pubsub=pubsub) as node:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(device(node, "first"))
            tasks.create_task(device(node, "second"))
            await asyncio.sleep(0)
            assert attached == []
            first.cancel()
            await asyncio.sleep(0)
            assert attached == []
            pubsub.confirmed.set()
        assert attached == ["second"]


async def test_a_full_queue_of_publications_loses_speed_and_no_message() -> None:
    async with fleet() as world:
        outcomes = await world.here.inject(
            [create("u", "c", msg_id=f"{number:05}") for number in range(10_500)]
        )
        assert {type(outcome) for outcome in outcomes} == {Stored}
        await until(lambda: world.ear_there.publications[-1].cursor == outcomes[-1].message.ctime)  # type: ignore[union-attr]
