"""A node: store first, then tell; and find again whatever was missed."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gregor import create, dismiss, out_of_band
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.core.message import InBandMessage, Message
from gregor.errors import Conflict, Unavailable
from gregor.interfaces import Duplicate, MessageConsumer, Passed, Rejected, Stored
from gregor.node import Node
from gregor.pubsub.memory import Exchange, MemoryPubSub
from tests.node.listening import Ear, Failing, Flaky, Notes, Steps, tell
from tests.server.world import until


class World:
    """A node over a store that can fail, one device's ear, and notes of what the node says."""

    def __init__(self, consumers: Sequence[MessageConsumer] = (), **options: Any) -> None:
        clock = Steps()
        self.store = Flaky(clock)
        self.notes = Notes()
        self.ear = Ear()
        self.broadcaster = Broadcaster()
        self.node = Node(
            self.store,
            [*consumers, self.broadcaster],
            clock=clock,
            observer=self.notes,
            jitter=lambda: 0.5,
            **options,
        )

    async def behind_our_back(self, *ids: str, uid: str = "u") -> list[InBandMessage]:
        """Messages that another node has stored, and that this one is not told of."""
        outcomes = await self.store.consume_messages([create(uid, "c", msg_id=id_) for id_ in ids])
        return [outcome.message for outcome in outcomes if isinstance(outcome, Stored)]

    async def overhear(self, message: Message) -> None:
        """What another node has published arrives."""
        await self.broadcaster.consume_message(message)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Ear]:
        """The node is open, and a device of `u` knows all that there was."""
        async with self.node, self.node.attach("u", self.ear):
            await tell(self.node)
            yield self.ear


async def test_what_is_injected_is_stored_and_told_in_order() -> None:
    world = World()
    async with world.listening() as ear:
        outcomes = await world.node.inject([create("u", "c", msg_id=id_) for id_ in "abc"])
        assert [type(outcome) for outcome in outcomes] == [Stored] * 3
        assert ear.ids == ["a", "b", "c"]
        assert [message.prev for p in ear.publications for message in p.messages][1:] == [
            outcome.message.ctime for outcome in outcomes[:2] if isinstance(outcome, Stored)
        ]


async def test_each_message_of_a_batch_has_its_own_outcome() -> None:
    world = World()
    async with world.listening() as ear:
        outcomes = await world.node.inject(
            [
                create("u", "c", 1, msg_id="m"),
                out_of_band("u", "typing"),
                create("u", "c", 1, msg_id="m"),
                create("u", "c", 2, msg_id="m"),
                dismiss("u", "m"),
            ]
        )
        kinds = [Stored, Passed, Duplicate, Rejected, Stored]
        assert [type(outcome) for outcome in outcomes] == kinds
        assert isinstance(outcomes[3], Rejected)
        assert isinstance(outcomes[3].error, Conflict)
        assert len(ear.ids) == 2
        assert len(ear.passed) == 1
        assert world.notes.outcomes == outcomes


async def test_nothing_is_told_before_it_is_stored() -> None:
    world = World()
    async with world.listening() as ear, asyncio.TaskGroup() as tasks:
        world.store.commits.clear()
        injecting = tasks.create_task(world.node.inject([create("u", "c", msg_id="m")]))
        await asyncio.sleep(0)
        assert ear.ids == []
        assert not injecting.done()
        world.store.commits.set()
        await injecting
        assert ear.ids == ["m"]


async def test_what_is_not_stored_is_told_to_nobody() -> None:
    world = World()
    async with world.listening() as ear:
        world.store.down = True
        with pytest.raises(Unavailable):
            await world.node.inject([create("u", "c"), out_of_band("u", "typing")])
        assert (ear.ids, ear.passed) == ([], [])
        world.store.down = False
        await world.node.inject([create("u", "c", msg_id="m")])
        assert ear.ids == ["m"]


async def test_a_consumer_that_fails_fails_no_sender_and_no_other_consumer() -> None:
    world = World([Failing()])
    async with world.listening() as ear:
        (outcome,) = await world.node.inject([create("u", "c", msg_id="m")])
        assert isinstance(outcome, Stored)
        assert ear.ids == ["m"]
        assert [type(error) for error in world.notes.failures] == [ConnectionError]


async def test_who_gives_up_waiting_undoes_nothing() -> None:
    world = World()
    async with world.listening() as ear:
        world.store.commits.clear()
        injecting = asyncio.create_task(world.node.inject([create("u", "c", msg_id="m")]))
        await asyncio.sleep(0)
        injecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await injecting
        world.store.commits.set()
        await until(lambda: ear.ids == ["m"])


async def test_what_is_under_way_when_the_node_closes_is_finished() -> None:
    world = World()
    async with world.listening():
        world.store.commits.clear()
        injecting = asyncio.create_task(world.node.inject([create("u", "c", msg_id="m")]))
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(world.store.commits.set)
    (outcome,) = await injecting
    assert isinstance(outcome, Stored)


async def test_what_was_raised_in_the_block_comes_out_as_it_is() -> None:
    with pytest.raises(KeyError):
        async with World().node:
            raise KeyError


async def test_a_node_that_is_not_open_takes_nothing() -> None:
    world = World()
    with pytest.raises(Unavailable):
        await world.node.inject([create("u", "c")])
    async with world.node:
        pass
    with pytest.raises(Unavailable):
        await world.node.inject([create("u", "c")])


async def test_a_gap_is_healed_from_the_store() -> None:
    world = World()
    await world.behind_our_back("known")
    async with world.listening() as ear:
        _, missed_too, heard = await world.behind_our_back("missed", "missed too", "heard")
        await world.overhear(heard)
        await until(lambda: bool(ear.ids))
        (publication,) = ear.publications
        assert ear.ids == ["missed", "missed too", "heard"]
        assert publication.cursor == heard.ctime
        assert world.notes.healed_messages == [3]
        await world.overhear(missed_too)  # late, and known by now
        assert len(ear.publications) == 1


async def test_what_comes_twice_is_told_once() -> None:
    world = World()
    await world.behind_our_back("known")
    async with world.listening() as ear:
        (message,) = await world.behind_our_back("m")
        await world.overhear(message)
        await world.overhear(message)
        assert ear.ids == ["m"]


async def test_a_gap_too_wide_to_pass_on_makes_the_devices_read_for_themselves() -> None:
    world = World()
    await world.behind_our_back("known")
    async with world.listening() as ear:
        missed = await world.behind_our_back(*(f"m{n}" for n in range(100)))
        await world.store.consume_messages([dismiss("u", *(f"m{n}" for n in range(100)))])
        await world.overhear(missed[-1])
        await until(lambda: bool(ear.publications))
        (publication,) = ear.publications
        assert publication.messages == ()
        # It continues nothing that a device may know, so that each must ask.
        assert publication.prev == publication.cursor > missed[-1].ctime


async def test_a_sweep_finds_what_was_lost_without_a_successor() -> None:
    world = World(sweep_seconds=0.001)
    await world.behind_our_back("known")
    async with world.listening() as ear:
        await world.behind_our_back("lost")
        await until(lambda: ear.ids == ["lost"])


async def test_a_sweep_asks_only_for_users_who_are_here() -> None:
    world = World(sweep_seconds=0.001)
    async with world.listening():
        await world.behind_our_back("m", uid="somebody else")
        await until(lambda: len(world.store.asked) > 2)
        assert all(uids == ["u"] for uids in world.store.asked)


async def test_a_store_that_is_down_is_noticed_and_so_is_its_return() -> None:
    world = World(sweep_seconds=0.001)
    await world.behind_our_back("known")
    async with world.listening() as ear:
        await world.behind_our_back("missed")
        world.store.down = True
        await until(lambda: world.node.behind)
        world.store.down = False
        await until(lambda: ear.ids == ["missed"])
        await until(lambda: not world.node.behind)


async def test_the_return_of_the_store_is_noticed_also_without_devices() -> None:
    world = World(sweep_seconds=0.001)
    async with world.node:
        async with world.node.attach("u", world.ear):
            await tell(world.node)
            world.store.down = True
            await until(lambda: world.node.behind)
        world.store.down = False
        await until(lambda: not world.node.behind)


async def test_a_gap_is_tried_again_until_the_store_answers() -> None:
    world = World()
    await world.behind_our_back("known")
    async with world.listening() as ear:
        _, heard = await world.behind_our_back("missed", "heard")
        world.store.down = True
        await world.overhear(heard)
        await until(lambda: world.node.behind)
        world.store.down = False
        await until(lambda: ear.ids == ["missed", "heard"])
        assert not world.node.behind


async def test_a_background_task_that_fails_ends_the_block() -> None:
    class Broken(Flaky):
        async def ctimes(self, uids: Sequence[str]) -> dict[str, int]:
            raise ZeroDivisionError

    world = World(sweep_seconds=0.001)
    world.node.state_machine = Broken(Steps())

    async def live() -> None:
        async with world.listening():
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as failure:
        await live()
    assert failure.group_contains(ZeroDivisionError)


async def test_the_pubsubs_end_ends_the_block() -> None:
    class Ending(MemoryPubSub):
        async def received(self) -> AsyncIterator[Any]:
            if False:
                yield
            raise ConnectionError

    world = World(pubsub=Ending(Exchange()))
    with pytest.raises(ExceptionGroup) as failure:
        async with world.node:
            await asyncio.Event().wait()
    assert failure.group_contains(ConnectionError)


async def test_a_sender_is_not_left_waiting_when_the_node_fails() -> None:
    class Ending(MemoryPubSub):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__(exchange)
            self.end = asyncio.Event()

        async def received(self) -> AsyncIterator[Any]:
            await self.end.wait()
            if False:
                yield
            raise ConnectionError

    pubsub = Ending(Exchange())
    world = World(pubsub=pubsub)
    injecting: list[asyncio.Task[Any]] = []

    async def live() -> None:
        async with world.node:
            world.store.commits.clear()
            injecting.append(asyncio.create_task(world.node.inject([create("u", "c")])))
            await asyncio.sleep(0)
            pubsub.end.set()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        await live()
    with pytest.raises(Unavailable):
        await injecting[0]


async def test_a_node_forgets_a_user_whose_last_device_has_gone() -> None:
    world = World()
    async with world.node:
        async with world.node.attach("u", world.ear), world.node.attach("u", Ear()):
            assert world.node.connected("u") == 2
        assert world.node.connected("u") == 0


async def test_a_publisher_speaks_in_its_nodes_own_name() -> None:
    with pytest.raises(ValueError, match="own name"):
        World([Publisher(MemoryPubSub(Exchange()), "another")], name="one")
