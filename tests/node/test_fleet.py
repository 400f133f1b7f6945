"""Two nodes over one store, which tell each other over a pub/sub what they have stored.

Time is virtual in here: a sweep of five seconds takes none, and what takes longer is seen.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
import structlog

from gregor import create, dismiss, out_of_band
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import MAX_PUBLICATION, Publisher, channel_of
from gregor.consumers.relay import FURTHEST_AHEAD, LINGER_SECONDS
from gregor.core.instant import MAX_TIME, Time
from gregor.core.message import UID, DeviceID, InBandMessage, new_msg_id
from gregor.core.state import Sync
from gregor.errors import StorageUnavailable
from gregor.interfaces import Outcome, Stored
from gregor.node import GRACE_SECONDS, HEALERS, SWEEP_SECONDS, Node
from gregor.pubsub.interface import Event, Interrupted, Received
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.testing.clock import ManualClock
from tests.client.world import in_no_time
from tests.node.listening import Ear, Flaky, Notes, Steps, tell

CHANNEL = channel_of("u")


@pytest.fixture
def spoken() -> Iterator[list[Any]]:
    """What goes to the log."""
    with structlog.testing.capture_logs() as entries:
        yield entries


class Line(MemoryPubSub):
    """An end of the exchange that can be `deaf`, and that takes a while to unsubscribe."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.deaf = False
        self.unsubscribing = 0

    def take(self, event: Event) -> None:
        if not self.deaf:
            super().take(event)

    async def unsubscribe(self, channel: str) -> None:
        self.unsubscribing += 1
        await asyncio.sleep(1)
        await super().unsubscribe(channel)


class Slow(Flaky):
    """A store that needs a while for each sync, and longer for the answers to commits where they
    are `held`; for the users in `dead` it refuses, and for those in `silent` a sweep learns
    nothing."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        super().__init__(clock)
        self.held: dict[str, asyncio.Event] = {}
        self.dead: set[UID] = set()
        self.silent: set[UID] = set()
        self.syncing = self.most_syncing = 0

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        outcomes = await super().consume_messages(messages)
        for message in messages:
            if message.msg_id in self.held:
                await self.held[message.msg_id].wait()
        return outcomes

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        self.syncing += 1
        self.most_syncing = max(self.syncing, self.most_syncing)
        await asyncio.sleep(0.01)
        self.syncing -= 1
        if uid in self.dead:
            raise StorageUnavailable("this part of the store is down")
        return await super().sync(uid, device_id, cursor)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        clocks = await super().ctimes(uids)
        return {uid: clock for uid, clock in clocks.items() if uid not in self.silent}


class Fleet:
    """Two nodes, `here` and `there`, over one store and one exchange."""

    def __init__(self, clock: Callable[[], Time] | None = None, **options: Any) -> None:
        self.clock = clock or Steps()
        self.store = Slow(self.clock)
        self.exchange = Exchange()
        self.notes = Notes()
        self.line_here, self.line_there = Line(self.exchange), Line(self.exchange)
        self.here = self._node("here", self.line_here, options)
        self.there = self._node("there", self.line_there, options)
        self.ear_here, self.ear_there = Ear(), Ear()

    def _node(self, name: str, line: Line, options: dict[str, Any]) -> Node:
        return Node(
            self.store,
            [Publisher(line, name), Broadcaster()],
            clock=self.clock,
            pubsub=line,
            name=name,
            observer=self.notes,
            **options,
        )


@asynccontextmanager
async def fleet(clock: Callable[[], Time] | None = None, **options: Any) -> AsyncIterator[Fleet]:
    """Each of the nodes has a device of `u`, which knows all that there was."""
    world = Fleet(clock, **options)
    await world.store.consume_message(create("u", "c", msg_id="known"))
    async with AsyncExitStack() as stack:
        for node in (world.here, world.there):
            await stack.enter_async_context(node)
        for node, ear in ((world.here, world.ear_here), (world.there, world.ear_there)):
            await stack.enter_async_context(node.attach("u", ear))
            await tell(node)
        yield world


@asynccontextmanager
async def crowd(node: Node, uids: Sequence[UID]) -> AsyncIterator[dict[UID, Ear]]:
    """Each of the users has a device at the node, which knows all that there was."""
    ears = {uid: Ear() for uid in uids}
    async with AsyncExitStack() as stack:
        for uid, ear in ears.items():
            await node.state_machine.consume_message(create(uid, "c", msg_id="known"))
            await stack.enter_async_context(node.attach(uid, ear))
            await tell(node, uid)
        yield ears


async def within(seconds: float, holds: Callable[[], bool]) -> None:
    """It is so before this time is over."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# What is told


@in_no_time
async def test_what_one_node_stores_the_others_devices_hear_once() -> None:
    async with fleet() as world:
        for number in range(10):
            node = world.here if number % 2 else world.there
            await node.inject([create("u", "c", msg_id=str(number))])
            await within(1, lambda: world.ear_there.ids == world.ear_here.ids)
        expected = [str(number) for number in range(10)]
        assert (world.ear_here.ids, world.ear_there.ids) == (expected, expected)
        assert world.notes.healed_messages == []


@in_no_time
async def test_messages_of_both_at_once_reach_all_in_one_order() -> None:
    async with fleet() as world:
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                node = world.here if number % 2 else world.there
                tasks.create_task(node.inject([create("u", "c", msg_id=str(number))]))
        await within(1, lambda: len(world.ear_here.ids) == len(world.ear_there.ids) == 50)
        assert world.ear_here.ids == world.ear_there.ids


@in_no_time
async def test_what_is_answered_late_is_told_in_its_place() -> None:
    """One node stores first, but hears of it only after the other, which has stored second, has
    told it so."""
    async with fleet() as world:
        world.store.held["first"] = asyncio.Event()
        injecting = asyncio.create_task(world.here.inject([create("u", "c", msg_id="first")]))
        await asyncio.sleep(0)
        await world.there.inject([create("u", "c", msg_id="second")])
        await within(1, lambda: world.ear_here.ids == world.ear_there.ids == ["first", "second"])
        world.store.held["first"].set()
        await injecting
        assert world.ear_here.ids == world.ear_there.ids == ["first", "second"]


@in_no_time
async def test_out_of_band_messages_reach_each_device_exactly_once() -> None:
    async with fleet() as world:
        for number in range(10):
            await world.here.inject([out_of_band("u", "s", number)])
        await within(1, lambda: len(world.ear_there.passed) == 10)
        for ear in (world.ear_here, world.ear_there):
            assert [message.body for message in ear.passed] == list(range(10))


@in_no_time
async def test_a_full_queue_of_publications_loses_speed_and_no_message() -> None:
    async with fleet() as world:
        outcomes = await world.here.inject(
            [create("u", "c", msg_id=f"{number:05}") for number in range(10_500)]
        )
        assert {type(outcome) for outcome in outcomes} == {Stored}
        (*_, last) = (outcome.message for outcome in outcomes if isinstance(outcome, Stored))
        heard = world.ear_there.publications
        await within(1, lambda: bool(heard) and heard[-1].cursor == last.ctime)


# What is lost


@in_no_time
@pytest.mark.parametrize("jitter", [0.0, 0.999_999])
async def test_a_lost_publication_reaches_the_devices_within_one_sweep(jitter: float) -> None:
    async with fleet(jitter=lambda: jitter) as world:
        for pause in (0.0, 0.1, GRACE_SECONDS, 1.0, 2.2, 3.1, 4.4):  # at any moment of a sweep
            await asyncio.sleep(pause)
            world.line_there.deaf = True
            msg_id = f"after {pause}"
            await world.here.inject([create("u", "c", msg_id=msg_id)])
            world.line_there.deaf = False
            # The store is slow as well.
            await within(SWEEP_SECONDS + 0.02, lambda: msg_id in world.ear_there.ids)  # noqa: B023


@in_no_time
async def test_an_interrupted_pubsub_is_made_up_for_at_once() -> None:
    async with fleet() as world:
        world.line_there.deaf = True
        await world.here.inject([create("u", "c", msg_id="missed")])
        world.line_there.deaf = False
        world.line_there.take(Interrupted())
        await within(0.1, lambda: world.ear_there.ids == ["missed"])
        assert world.notes.interruptions == 1


@in_no_time
async def test_after_an_interruption_many_are_healed_at_once_and_not_all() -> None:
    async with fleet() as world, crowd(world.there, [f"u{n}" for n in range(100)]) as ears:
        world.line_there.deaf = True
        await world.here.inject([create(uid, "c", msg_id="missed") for uid in ears])
        world.line_there.deaf = False
        world.line_there.take(Interrupted())
        await within(1, lambda: all(ear.ids == ["missed"] for ear in ears.values()))
        assert world.store.most_syncing == HEALERS


@in_no_time
async def test_a_sweep_is_one_question_however_many_users_there_are() -> None:
    async with fleet() as world, crowd(world.there, [f"u{n}" for n in range(100)]) as ears:
        world.store.asked.clear()
        await asyncio.sleep(20 * SWEEP_SECONDS)
        sizes = [len(uids) for uids in world.store.asked]
        assert set(sizes) == {1, 1 + len(ears)}  # of the two nodes
        assert 20 <= sizes.count(1 + len(ears)) <= 50


@in_no_time
async def test_what_is_on_its_way_is_not_taken_for_lost() -> None:
    """The sweep asks while the commit's answer is under way, and finds a clock ahead."""
    async with fleet(jitter=lambda: 0.5) as world:
        world.store.held["slow"] = asyncio.Event()
        injecting = asyncio.create_task(world.here.inject([create("u", "c", msg_id="slow")]))
        world.store.asked.clear()
        await within(SWEEP_SECONDS, lambda: len(world.store.asked) == 2)  # of the two nodes
        world.store.held["slow"].set()
        await injecting
        await asyncio.sleep(GRACE_SECONDS)
        assert world.ear_here.ids == world.ear_there.ids == ["slow"]
        assert world.notes.healed_messages == []


@in_no_time
async def test_a_part_of_the_store_that_is_down_delays_only_its_own_users() -> None:
    async with fleet() as world, crowd(world.there, [f"u{n}" for n in range(100)]) as ears:
        world.store.dead = set(ears)
        world.line_there.deaf = True
        await world.here.inject([create(uid, "c", msg_id="missed") for uid in [*ears, "u"]])
        world.line_there.deaf = False
        world.line_there.take(Interrupted())
        await within(1, lambda: world.ear_there.ids == ["missed"])
        assert world.there.behind
        assert not world.here.behind
        await asyncio.sleep(10)
        assert world.there.behind

        world.store.dead = set()
        await within(1.5, lambda: all(ear.ids == ["missed"] for ear in ears.values()))
        await within(1, lambda: not world.there.behind)


@in_no_time
async def test_a_sweep_makes_do_with_the_parts_of_the_store_that_answer() -> None:
    async with fleet() as world, crowd(world.there, ["v"]) as ears:
        world.store.silent = {"v"}
        world.line_there.deaf = True
        await world.here.inject([create(uid, "c", msg_id="lost") for uid in ("u", "v")])
        world.line_there.deaf = False
        await within(SWEEP_SECONDS, lambda: world.ear_there.ids == ["lost"])
        await asyncio.sleep(10 * SWEEP_SECONDS)
        assert ears["v"].ids == []
        world.store.silent = set()
        await within(SWEEP_SECONDS, lambda: ears["v"].ids == ["lost"])


@in_no_time
async def test_nobody_waits_for_the_store_who_has_left() -> None:
    async with fleet() as world:
        async with crowd(world.there, ["gone"]):
            world.store.dead = {"gone"}
            world.line_there.deaf = True
            await world.here.inject([create("gone", "c")])
            await within(SWEEP_SECONDS, lambda: world.there.behind)
        await within(SWEEP_SECONDS, lambda: not world.there.behind)


# Who is listened for


@in_no_time
async def test_a_node_hears_only_of_users_who_are_connected_to_it() -> None:
    async with fleet() as world:
        assert list(world.exchange.channels) == [CHANNEL]
        async with world.here.attach("v", Ear()):
            assert channel_of("v") in world.exchange.channels
        await asyncio.sleep(LINGER_SECONDS)
        assert channel_of("v") in world.exchange.channels
        await within(LINGER_SECONDS, lambda: list(world.exchange.channels) == [CHANNEL])


@in_no_time
async def test_a_device_that_flaps_leaves_its_channel_alone() -> None:
    async with fleet() as world:
        for _ in range(100):
            async with world.here.attach("v", Ear()):
                await asyncio.sleep(LINGER_SECONDS / 2)
            await asyncio.sleep(LINGER_SECONDS * 0.9)
        assert world.line_here.unsubscribing == 0


@in_no_time
async def test_who_comes_back_while_the_channel_is_being_left_is_heard_of() -> None:
    async with fleet() as world:
        async with world.here.attach("v", Ear()):
            await tell(world.here, "v")
        await within(2 * LINGER_SECONDS, lambda: world.line_here.unsubscribing == 1)
        ear = Ear()
        async with world.here.attach("v", ear):
            await world.there.inject([create("v", "c", msg_id="1")])
            await within(0.1, lambda: ear.ids == ["1"])
            await asyncio.sleep(3 * LINGER_SECONDS)
            await world.there.inject([create("v", "c", msg_id="2")])
            await within(0.1, lambda: ear.ids == ["1", "2"])
            assert world.notes.healed_messages == []


@in_no_time
async def test_who_comes_back_just_before_the_channel_is_left_is_heard_of() -> None:
    async with fleet() as world:
        for uid in ("w", "v"):
            async with world.here.attach(uid, Ear()):
                pass
        await within(2 * LINGER_SECONDS, lambda: world.line_here.unsubscribing == 1)
        async with world.here.attach("v", Ear()):  # while w's is being left, and v's is next
            await asyncio.sleep(LINGER_SECONDS)
            assert list(world.exchange.channels) == [CHANNEL, channel_of("v")]


@in_no_time
async def test_what_comes_for_somebody_who_has_left_is_not_even_read() -> None:
    async with fleet() as world:
        async with world.here.attach("v", Ear()):
            pass
        await Line(world.exchange).publish(channel_of("v"), b"whatever")
        await asyncio.sleep(1)
        assert world.notes.strange_ones == []


@in_no_time
async def test_a_second_device_waits_for_the_subscription_as_the_first_does() -> None:
    class Waiting(MemoryPubSub):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__(exchange)
            self.confirmed = asyncio.Event()

        async def subscribe(self, channel: str) -> None:
            await self.confirmed.wait()
            await super().subscribe(channel)

    clock, pubsub = Steps(), Waiting(Exchange())
    attached: list[str] = []

    async def device(node: Node, name: str) -> None:
        async with node.attach("u", Ear()):
            attached.append(name)

    async with Node(Flaky(clock), [Broadcaster()], clock=clock, pubsub=pubsub) as node:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(device(node, "first"))
            tasks.create_task(device(node, "second"))
            await asyncio.sleep(1)
            assert attached == []
            first.cancel()
            await asyncio.sleep(1)
            assert attached == []
            pubsub.confirmed.set()
        assert attached == ["second"]


# What no node has sent

NOW: Time = 1_000_000


def stored(uid: str, **fields: object) -> bytes:
    creation = {"creation": {"category": "c", "body": 1}}
    message = {"uid": uid, "msg_id": new_msg_id(), **creation, **fields}
    return msgspec.json.encode({"node": "x", "messages": [message]})


def passing(**fields: object) -> bytes:
    message = {"uid": "u", "system": "s", **fields}
    return msgspec.json.encode({"node": "x", "messages": [message]})


GARBAGE = {
    "nothing": b"",
    "not JSON": b"\x80\x04pickle.",
    "not UTF-8": stored("u", ctime=NOW + 9, prev=NOW, msg_id="???").replace(b"???", b"\xff\xfe"),
    "a lone surrogate": stored("u", ctime=NOW + 9, prev=NOW, msg_id="?").replace(b"?", b"\\ud800"),
    "not an envelope": b"[]",
    "of another version": b'{"node": "x", "messages": [], "version": 2}',
    "a message of another version": stored("u", ctime=NOW + 9, prev=NOW, priority=1),
    "not a message": b'{"node": "x", "messages": [{"uid": "u"}]}',
    "from nobody": b'{"node": null, "messages": []}',
    "no list of messages": b'{"node": "x", "messages": {}}',
    "one good message and a bad one": msgspec.json.encode(
        {
            "node": "x",
            "messages": [
                create("u", "c").stamp(NOW + 9, NOW),
                create("v", "c").stamp(NOW + 9, NOW),
            ],
        }
    ),
    "nested beyond reading": b'{"node": "x", "messages": ' + b"[" * 100_000,
    "a body nested beyond reading": stored(
        "u",
        ctime=NOW + 9,
        prev=NOW,
        creation={"category": "c", "body": msgspec.Raw(b"[" * 30_000 + b"]" * 30_000)},
    ),
    "huge": stored("u", ctime=NOW + 9, prev=NOW) + b" " * MAX_PUBLICATION,
    "another user's": stored("v", ctime=NOW + 9, prev=NOW),
    "never stored": stored("u"),
    "older than its predecessor": stored("u", ctime=NOW, prev=NOW + 9),
    "its own predecessor": stored("u", ctime=NOW, prev=NOW),
    "with a negative ctime": stored("u", ctime=-1, prev=-2),
    "with a ctime beyond all time": stored("u", ctime=MAX_TIME + 1, prev=NOW),
    "with a ctime that is not one": stored("u", ctime=NOW + 0.5, prev=NOW),
    "from the future": stored("u", ctime=NOW + 2 * FURTHEST_AHEAD, prev=NOW),
    "out of band without a body": passing(),
    "out of band and in band": passing(body=1, creation={"category": "c", "body": 1}),
    "out of band with a ctime": passing(body=1, ctime=NOW + 9),
    "out of band to another user": passing(body=1, uid="v"),
}


@pytest.mark.parametrize("kind", GARBAGE)
@in_no_time
async def test_garbage_on_a_channel_is_counted_and_nothing_else(kind: str) -> None:
    async with fleet(ManualClock(NOW)) as world:  # where the last ctime is NOW exactly
        await Line(world.exchange).publish(CHANNEL, GARBAGE[kind])
        await within(1, lambda: len(world.notes.strange_ones) == 2)  # each node has heard it
        await world.here.inject([create("u", "c", msg_id="m")])
        await within(0.1, lambda: world.ear_there.ids == ["m"])
        await world.there.inject([dismiss("u", "m", msg_id="d")])
        await within(0.1, lambda: world.ear_here.ids == ["m", "d"])
        assert world.ear_here.passed == world.ear_there.passed == []
        assert world.notes.healed_messages in ([], [0, 0])


@in_no_time
async def test_what_was_replayed_from_the_future_is_true_if_the_store_says_so() -> None:
    clock = ManualClock(NOW)
    async with fleet(clock) as world:
        replayed = create("u", "c", msg_id="m").stamp(NOW + 2 * FURTHEST_AHEAD, 0)
        await world.here.inject([replayed])
        await within(0.1, lambda: world.ear_here.ids == world.ear_there.ids == ["m"])


@in_no_time
async def test_a_flood_of_garbage_is_counted_in_full_and_spoken_of_now_and_then(
    spoken: list[Any],
) -> None:
    async with fleet() as world:
        stranger = Line(world.exchange)
        for _ in range(3):
            for _ in range(1000):
                await stranger.publish(CHANNEL, b"garbage")
            await asyncio.sleep(60)
        assert len(world.notes.strange_ones) == 2 * 3000
        assert [entry["times"] for entry in spoken] == [1, 1, 1000, 1000, 1000, 1000]


# What ends


@in_no_time
async def test_a_pubsub_that_ends_without_a_word_ends_the_node() -> None:
    class Ending(MemoryPubSub):
        async def received(self) -> AsyncIterator[Event]:
            yield Received(CHANNEL, b"a last word")

    clock = Steps()
    node = Node(Flaky(clock), [Broadcaster()], clock=clock, pubsub=Ending(Exchange()))
    with pytest.raises(ExceptionGroup) as failure:
        async with node:
            await asyncio.sleep(60)
    assert failure.group_contains(RuntimeError, match="the pub/sub has ended")
