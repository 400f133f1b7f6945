"""Two nodes over one store, which publish stored messages to each other over a pub/sub.

These tests run in virtual time: a sweep of five seconds takes no real time, and `within` checks
deadlines in virtual time.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest

from gregor import create, dismiss, out_of_band, put
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.channels import (
    FRESH,
    MAX_PAYLOAD_BYTES,
    SignedChannels,
    UnsignedChannels,
)
from gregor.consumers.publisher import Publisher
from gregor.consumers.relay import LINGER_SECONDS, MAX_FUTURE
from gregor.core.deployment import Deployment
from gregor.core.instant import MAX_TIME, Time
from gregor.core.message import UID, DeviceID, Dismissal, new_msg_id
from gregor.core.sync import Sync
from gregor.errors import StorageUnavailable
from gregor.interfaces import Slot, Stored
from gregor.log_event import LogEvent
from gregor.node.adoption import ASK_SECONDS, OVERLAP_SECONDS
from gregor.node.gap_repair import GAP_REPAIR_WORKERS, GRACE_SECONDS, SWEEP_SECONDS
from gregor.node.node import Node
from gregor.pubsub.interface import Event, Interrupted, Received
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.testing.clock import ManualClock
from tests.client.harness import on_virtual_time
from tests.node.fakes import (
    BACKEND,
    DEPLOYMENT,
    EndingPubSub,
    FailingStore,
    FakeListener,
    RecordingObserver,
    SteppingClock,
    attached,
    sync_device,
)


class FaultyPubSub(MemoryPubSub):
    """A pub/sub that receives nothing while it is `blackholed`, and that unsubscribes slowly."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.blackholed = False
        self.unsubscribe_calls = 0

    def put(self, event: Event) -> None:
        if not self.blackholed:
            super().put(event)

    async def unsubscribe(self, channel: str) -> None:
        self.unsubscribe_calls += 1
        await asyncio.sleep(1)
        await super().unsubscribe(channel)


class SlowStore(FailingStore):
    """A store with slow syncs. The reply to the commit of a msg_id in `held_commits` waits for its
    event. A sync of a user in `unavailable_users` fails, and `ctimes` leaves out the users in
    `users_without_ctime`."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        super().__init__(clock)
        self.held_commits: dict[str, asyncio.Event] = {}
        self.unavailable_users: set[UID] = set()
        self.users_without_ctime: set[UID] = set()
        self.concurrent_syncs = self.max_concurrent_syncs = 0

    async def store(self, slots: Sequence[Slot]) -> None:
        await super().store(slots)
        for slot in slots:
            if slot.message.msg_id in self.held_commits:
                await self.held_commits[slot.message.msg_id].wait()

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        self.concurrent_syncs += 1
        self.max_concurrent_syncs = max(self.concurrent_syncs, self.max_concurrent_syncs)
        await asyncio.sleep(0.01)
        self.concurrent_syncs -= 1
        if uid in self.unavailable_users:
            raise StorageUnavailable("this part of the store is down")
        return await super().sync(uid, device_id, cursor)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        clocks = await super().ctimes(uids)
        return {uid: clock for uid, clock in clocks.items() if uid not in self.users_without_ctime}


class NodePair:
    """Two nodes over one store and one exchange, with a listener for each."""

    def __init__(self, clock: Callable[[], Time] | None = None, **options: Any) -> None:
        self.clock = clock or SteppingClock()
        self.store = SlowStore(self.clock)
        self.channels = SignedChannels(DEPLOYMENT)
        self.exchange = Exchange()
        self.observer = RecordingObserver()  # of both nodes
        self.pubsub_a, self.pubsub_b = FaultyPubSub(self.exchange), FaultyPubSub(self.exchange)
        self.node_a = self._node("a", self.pubsub_a, options)
        self.node_b = self._node("b", self.pubsub_b, options)
        self.listener_a, self.listener_b = FakeListener(), FakeListener()

    def user_channels(self) -> list[str]:
        """The channels of users to which a node is subscribed."""
        return [c for c in self.exchange.channels if c != self.channels.nodes]

    async def publish(self, uid: UID, payload: bytes) -> None:
        """Publish this payload on the channel of the user."""
        await FaultyPubSub(self.exchange).publish(self.channels.of(uid), payload)

    async def publish_signed(self, uid: UID, json: bytes, age: Time = 0) -> None:
        """Publish this JSON as a node does that was told of it so long ago."""
        channel = self.channels.of(uid)
        await self.publish(uid, self.channels.sign(channel, json, self.clock() - age))

    def _node(self, name: str, pubsub: FaultyPubSub, options: dict[str, Any]) -> Node:
        return Node(
            self.store,
            Broadcaster(),
            Publisher(pubsub, name),
            clock=self.clock,
            observer=self.observer,
            **options,
        )


@asynccontextmanager
async def node_pair(
    clock: Callable[[], Time] | None = None, *, blackholed: bool = False, **options: Any
) -> AsyncIterator[NodePair]:
    """Open two nodes and attach a device of `u`, which has synced, to each of them. With
    `blackholed`, the second node receives nothing."""
    pair = NodePair(clock, **options)
    pair.pubsub_b.blackholed = blackholed
    async with opened_pair(pair):
        yield pair


@asynccontextmanager
async def opened_pair(pair: NodePair, apart: float = 0.0) -> AsyncIterator[None]:
    """Open the nodes, so many seconds apart, and attach the devices."""
    await pair.store.consume_message(create("u", "c", msg_id="known"))
    async with AsyncExitStack() as stack:
        for node in (pair.node_a, pair.node_b):
            await stack.enter_async_context(node)
            await asyncio.sleep(apart)
        for node, listener in ((pair.node_a, pair.listener_a), (pair.node_b, pair.listener_b)):
            await stack.enter_async_context(attached(node, "u", listener))
            await sync_device(node)
        yield


@asynccontextmanager
async def attached_users(node: Node, uids: Sequence[UID]) -> AsyncIterator[dict[UID, FakeListener]]:
    """Attach a device of each of the users, which has synced, to the node."""
    listeners = {uid: FakeListener() for uid in uids}
    async with AsyncExitStack() as stack:
        for uid, listener in listeners.items():
            await node.state_machine.consume_message(create(uid, "c", msg_id="known"))
            await stack.enter_async_context(attached(node, uid, listener))
            await sync_device(node, uid)
        yield listeners


async def within(seconds: float, condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; raise TimeoutError after this virtual time."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


# Delivery


@on_virtual_time
async def test_message_injected_at_either_node_reaches_the_devices_of_both_once() -> None:
    async with node_pair() as pair:
        for number in range(10):
            node = pair.node_a if number % 2 else pair.node_b
            await node.inject(BACKEND, [create("u", "c", msg_id=str(number))])
            await within(1, lambda: pair.listener_b.ids == pair.listener_a.ids)
        expected = [str(number) for number in range(10)]
        assert (pair.listener_a.ids, pair.listener_b.ids) == (expected, expected)
        assert pair.observer.repaired_counts == []


@on_virtual_time
async def test_concurrent_injects_at_both_nodes_are_delivered_in_the_same_order() -> None:
    async with node_pair() as pair:
        async with asyncio.TaskGroup() as tasks:
            for number in range(50):
                node = pair.node_a if number % 2 else pair.node_b
                tasks.create_task(node.inject(BACKEND, [create("u", "c", msg_id=str(number))]))
        await within(1, lambda: len(pair.listener_a.ids) == len(pair.listener_b.ids) == 50)
        assert pair.listener_a.ids == pair.listener_b.ids


@on_virtual_time
async def test_message_whose_commit_reply_is_delayed_is_delivered_in_ctime_order() -> None:
    """Node A stores first, but receives the reply to its commit only after the publication of
    node B, which stores second."""
    async with node_pair() as pair:
        pair.store.held_commits["first"] = asyncio.Event()
        injecting = asyncio.create_task(
            pair.node_a.inject(BACKEND, [create("u", "c", msg_id="first")])
        )
        await asyncio.sleep(0)
        await pair.node_b.inject(BACKEND, [create("u", "c", msg_id="second")])
        await within(1, lambda: pair.listener_a.ids == pair.listener_b.ids == ["first", "second"])
        pair.store.held_commits["first"].set()
        await injecting
        assert pair.listener_a.ids == pair.listener_b.ids == ["first", "second"]


@on_virtual_time
async def test_out_of_band_messages_reach_each_device_exactly_once() -> None:
    async with node_pair() as pair:
        for number in range(10):
            await pair.node_a.inject(BACKEND, [out_of_band("u", "s", number)])
        await within(1, lambda: len(pair.listener_b.out_of_band) == 10)
        for listener in (pair.listener_a, pair.listener_b):
            assert [message.body for message in listener.out_of_band] == list(range(10))


@on_virtual_time
async def test_overflow_of_the_incoming_queue_loses_no_message() -> None:
    async with node_pair() as pair:
        outcomes = await pair.node_a.inject(
            BACKEND, [create("u", "c", msg_id=f"{number:05}") for number in range(10_500)]
        )
        assert {type(outcome) for outcome in outcomes} == {Stored}
        (*_, last) = (outcome.message for outcome in outcomes if isinstance(outcome, Stored))
        publications = pair.listener_b.publications
        await within(1, lambda: bool(publications) and publications[-1].cursor == last.ctime)


# Lost payloads


@on_virtual_time
@pytest.mark.parametrize("jitter", [0.0, 0.999_999])
async def test_lost_publication_is_delivered_within_one_sweep(jitter: float) -> None:
    async with node_pair(jitter=lambda: jitter) as pair:
        # The message is lost at different times after a sweep.
        for delay in (0.0, 0.1, GRACE_SECONDS, 1.0, 2.2, 3.1, 4.4):
            await asyncio.sleep(delay)
            pair.pubsub_b.blackholed = True
            msg_id = f"after {delay}"
            await pair.node_a.inject(BACKEND, [create("u", "c", msg_id=msg_id)])
            pair.pubsub_b.blackholed = False
            # A little longer than a sweep, because the sync takes time too.
            await within(SWEEP_SECONDS + 0.02, lambda: msg_id in pair.listener_b.ids)  # noqa: B023


@on_virtual_time
async def test_missed_message_is_delivered_at_once_after_an_interruption() -> None:
    async with node_pair() as pair:
        pair.pubsub_b.blackholed = True
        await pair.node_a.inject(BACKEND, [create("u", "c", msg_id="missed")])
        pair.pubsub_b.blackholed = False
        pair.pubsub_b.put(Interrupted())
        await within(0.1, lambda: pair.listener_b.ids == ["missed"])
        assert pair.observer.interruptions == 1


@on_virtual_time
async def test_concurrent_gap_repairs_are_limited_after_an_interruption() -> None:
    async with (
        node_pair() as pair,
        attached_users(pair.node_b, [f"u{n}" for n in range(100)]) as listeners,
    ):
        pair.pubsub_b.blackholed = True
        await pair.node_a.inject(BACKEND, [create(uid, "c", msg_id="missed") for uid in listeners])
        pair.pubsub_b.blackholed = False
        pair.pubsub_b.put(Interrupted())
        await within(1, lambda: all(listener.ids == ["missed"] for listener in listeners.values()))
        assert pair.store.max_concurrent_syncs == GAP_REPAIR_WORKERS


@on_virtual_time
async def test_sweep_makes_one_query_for_any_number_of_users() -> None:
    async with (
        node_pair() as pair,
        attached_users(pair.node_b, [f"u{n}" for n in range(100)]) as listeners,
    ):
        pair.store.ctimes_queries.clear()
        await asyncio.sleep(20 * SWEEP_SECONDS)
        sizes = [len(uids) for uids in pair.store.ctimes_queries]
        assert set(sizes) == {1, 1 + len(listeners)}  # of the two nodes
        assert 20 <= sizes.count(1 + len(listeners)) <= 50


@on_virtual_time
async def test_sweep_does_not_repair_a_message_in_flight() -> None:
    """The sweep queries the store while the reply to a commit is in flight, and finds a later
    ctime."""
    async with node_pair(jitter=lambda: 0.5) as pair:
        pair.store.held_commits["slow"] = asyncio.Event()
        injecting = asyncio.create_task(
            pair.node_a.inject(BACKEND, [create("u", "c", msg_id="slow")])
        )
        pair.store.ctimes_queries.clear()
        await within(SWEEP_SECONDS, lambda: len(pair.store.ctimes_queries) == 2)  # of the two nodes
        pair.store.held_commits["slow"].set()
        await injecting
        await asyncio.sleep(GRACE_SECONDS)
        assert pair.listener_a.ids == pair.listener_b.ids == ["slow"]
        assert pair.observer.repaired_counts == []


@on_virtual_time
async def test_unavailable_part_of_the_store_delays_only_its_own_users() -> None:
    async with (
        node_pair() as pair,
        attached_users(pair.node_b, [f"u{n}" for n in range(100)]) as listeners,
    ):
        pair.store.unavailable_users = set(listeners)
        pair.pubsub_b.blackholed = True
        await pair.node_a.inject(
            BACKEND, [create(uid, "c", msg_id="missed") for uid in [*listeners, "u"]]
        )
        pair.pubsub_b.blackholed = False
        pair.pubsub_b.put(Interrupted())
        await within(1, lambda: pair.listener_b.ids == ["missed"])
        assert pair.node_b.waiting_for_store
        assert not pair.node_a.waiting_for_store
        await asyncio.sleep(10)
        assert pair.node_b.waiting_for_store

        pair.store.unavailable_users = set()
        await within(
            1.5, lambda: all(listener.ids == ["missed"] for listener in listeners.values())
        )
        await within(1, lambda: not pair.node_b.waiting_for_store)


@on_virtual_time
async def test_sweep_repairs_users_whose_part_of_the_store_answers() -> None:
    async with node_pair() as pair, attached_users(pair.node_b, ["v"]) as listeners:
        pair.store.users_without_ctime = {"v"}
        pair.pubsub_b.blackholed = True
        await pair.node_a.inject(BACKEND, [create(uid, "c", msg_id="lost") for uid in ("u", "v")])
        pair.pubsub_b.blackholed = False
        await within(SWEEP_SECONDS, lambda: pair.listener_b.ids == ["lost"])
        await asyncio.sleep(10 * SWEEP_SECONDS)
        assert listeners["v"].ids == []
        pair.store.users_without_ctime = set()
        await within(SWEEP_SECONDS, lambda: listeners["v"].ids == ["lost"])


@on_virtual_time
async def test_node_stops_waiting_for_store_when_the_user_disconnects() -> None:
    async with node_pair() as pair:
        async with attached_users(pair.node_b, ["disconnecting"]):
            pair.store.unavailable_users = {"disconnecting"}
            pair.pubsub_b.blackholed = True
            await pair.node_a.inject(BACKEND, [create("disconnecting", "c")])
            await within(SWEEP_SECONDS, lambda: pair.node_b.waiting_for_store)
        await within(SWEEP_SECONDS, lambda: not pair.node_b.waiting_for_store)


# Subscriptions


@on_virtual_time
async def test_node_subscribes_only_to_channels_of_connected_users() -> None:
    async with node_pair() as pair:
        assert pair.user_channels() == [pair.channels.of("u")]
        async with attached(pair.node_a, "v", FakeListener()):
            assert pair.channels.of("v") in pair.exchange.channels
        await asyncio.sleep(LINGER_SECONDS)
        assert pair.channels.of("v") in pair.exchange.channels
        await within(LINGER_SECONDS, lambda: pair.user_channels() == [pair.channels.of("u")])


@on_virtual_time
async def test_flapping_device_causes_no_unsubscribe() -> None:
    async with node_pair() as pair:
        for _ in range(100):
            async with attached(pair.node_a, "v", FakeListener()):
                await asyncio.sleep(LINGER_SECONDS / 2)
            await asyncio.sleep(LINGER_SECONDS * 0.9)
        assert pair.pubsub_a.unsubscribe_calls == 0


@on_virtual_time
async def test_device_that_reconnects_during_unsubscribe_is_subscribed_again() -> None:
    async with node_pair() as pair:
        async with attached(pair.node_a, "v", FakeListener()):
            await sync_device(pair.node_a, "v")
        await within(2 * LINGER_SECONDS, lambda: pair.pubsub_a.unsubscribe_calls == 1)
        listener = FakeListener()
        async with attached(pair.node_a, "v", listener):
            await pair.node_b.inject(BACKEND, [create("v", "c", msg_id="1")])
            await within(0.1, lambda: listener.ids == ["1"])
            await asyncio.sleep(3 * LINGER_SECONDS)
            await pair.node_b.inject(BACKEND, [create("v", "c", msg_id="2")])
            await within(0.1, lambda: listener.ids == ["1", "2"])
            assert pair.observer.repaired_counts == []


@on_virtual_time
async def test_device_that_reconnects_before_unsubscribe_stays_subscribed() -> None:
    async with node_pair() as pair:
        for uid in ("w", "v"):
            async with attached(pair.node_a, uid, FakeListener()):
                pass
        await within(2 * LINGER_SECONDS, lambda: pair.pubsub_a.unsubscribe_calls == 1)
        # The node is unsubscribing from the channel of w; the channel of v is next.
        async with attached(pair.node_a, "v", FakeListener()):
            await asyncio.sleep(LINGER_SECONDS)
            assert pair.user_channels() == [pair.channels.of("u"), pair.channels.of("v")]


@on_virtual_time
async def test_payload_for_disconnected_user_is_not_decoded() -> None:
    async with node_pair() as pair:
        async with attached(pair.node_a, "v", FakeListener()):
            pass
        await pair.publish("v", b"invalid")
        await asyncio.sleep(1)
        assert pair.observer.invalid_publications == []


@on_virtual_time
async def test_second_device_waits_for_pending_subscription() -> None:
    class UnconfirmedPubSub(MemoryPubSub):
        def __init__(self, exchange: Exchange) -> None:
            super().__init__(exchange)
            self.confirmed = asyncio.Event()

        async def subscribe(self, channel: str) -> None:
            await self.confirmed.wait()
            await super().subscribe(channel)

    clock, pubsub = SteppingClock(), UnconfirmedPubSub(Exchange())
    names: list[str] = []

    async def attach_device(node: Node, name: str) -> None:
        async with attached(node, "u", FakeListener()):
            names.append(name)

    async with Node(FailingStore(clock), Broadcaster(), Publisher(pubsub), clock=clock) as node:
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(attach_device(node, "first"))
            tasks.create_task(attach_device(node, "second"))
            await asyncio.sleep(1)
            assert names == []
            first.cancel()
            await asyncio.sleep(1)
            assert names == []
            pubsub.confirmed.set()
        assert names == ["second"]


# Invalid payloads

NOW: Time = 1_000_000


def stored_payload(uid: str, **fields: object) -> bytes:
    creation = {"creation": {"category": "c", "body": 1}}
    message = {"uid": uid, "msg_id": new_msg_id(), **creation, **fields}
    return msgspec.json.encode({"node": "x", "messages": [message]})


def out_of_band_payload(**fields: object) -> bytes:
    message = {"uid": "u", "system": "s", **fields}
    return msgspec.json.encode({"node": "x", "messages": [message]})


INVALID_PAYLOADS = {
    "version of another type": b'{"version": "2", "node": "x", "messages": []}',
    "empty": b"",
    "not JSON": b"\x80\x04pickle.",
    "not UTF-8": stored_payload("u", ctime=NOW + 9, prev=NOW, msg_id="???").replace(
        b"???", b"\xff\xfe"
    ),
    "lone surrogate": stored_payload("u", ctime=NOW + 9, prev=NOW, msg_id="?").replace(
        b"?", b"\\ud800"
    ),
    "not an envelope": b"[]",
    "envelope with an unknown field": b'{"node": "x", "messages": [], "priority": 2}',
    "message of another version": stored_payload("u", ctime=NOW + 9, prev=NOW, priority=1),
    "not a message": b'{"node": "x", "messages": [{"uid": "u"}]}',
    "null as node": b'{"node": null, "messages": []}',
    "messages is not a list": b'{"node": "x", "messages": {}}',
    "one valid and one invalid message": msgspec.json.encode(
        {
            "node": "x",
            "messages": [
                create("u", "c").stamp(NOW + 9, NOW),
                create("v", "c").stamp(NOW + 9, NOW),
            ],
        }
    ),
    "envelope nested too deeply": b'{"node": "x", "messages": ' + b"[" * 100_000,
    "body nested too deeply": stored_payload(
        "u",
        ctime=NOW + 9,
        prev=NOW,
        creation={"category": "c", "body": msgspec.Raw(b"[" * 30_000 + b"]" * 30_000)},
    ),
    "too large": stored_payload("u", ctime=NOW + 9, prev=NOW) + b" " * MAX_PAYLOAD_BYTES,
    "of another user": stored_payload("v", ctime=NOW + 9, prev=NOW),
    "without ctime": stored_payload("u"),
    "older than its predecessor": stored_payload("u", ctime=NOW, prev=NOW + 9),
    "its own predecessor": stored_payload("u", ctime=NOW, prev=NOW),
    "negative ctime": stored_payload("u", ctime=-1, prev=-2),
    "ctime after the latest time": stored_payload("u", ctime=MAX_TIME + 1, prev=NOW),
    "fractional ctime": stored_payload("u", ctime=NOW + 0.5, prev=NOW),
    "out-of-band without body": out_of_band_payload(),
    "out-of-band and in-band": out_of_band_payload(body=1, creation={"category": "c", "body": 1}),
    "out-of-band with ctime": out_of_band_payload(body=1, ctime=NOW + 9),
    "out-of-band to another user": out_of_band_payload(body=1, uid="v"),
}


@pytest.mark.parametrize("kind", INVALID_PAYLOADS)
@on_virtual_time
async def test_invalid_payload_is_reported_and_not_delivered(kind: str) -> None:
    async with node_pair(ManualClock(NOW)) as pair:  # the last ctime is exactly NOW
        await pair.publish_signed("u", INVALID_PAYLOADS[kind])
        await within(1, lambda: len(pair.observer.invalid_publications) == 2)  # one for each node
        await pair.node_a.inject(BACKEND, [create("u", "c", msg_id="m")])
        await within(0.1, lambda: pair.listener_b.ids == ["m"])
        await pair.node_b.inject(BACKEND, [dismiss("u", "m", msg_id="d")])
        await within(0.1, lambda: pair.listener_a.ids == ["m", "d"])
        assert pair.listener_a.out_of_band == pair.listener_b.out_of_band == []
        assert pair.observer.repaired_counts in ([], [0, 0])


UNAUTHENTIC_PAYLOADS: dict[str, Callable[[str, bytes], bytes]] = {
    "not signed": lambda channel, json: json,
    "truncated": lambda channel, json: sign(DEPLOYMENT, channel, json)[:-1],
    "of the signature alone": lambda channel, json: sign(DEPLOYMENT, channel, json)[:32],
    "changed": lambda channel, json: sign(DEPLOYMENT, channel, json).replace(b"m", b"n"),
    "with another time": lambda channel, json: with_another_time(sign(DEPLOYMENT, channel, json)),
    "signed with another key": lambda channel, json: sign(
        Deployment(DEPLOYMENT.id, b"another key"), channel, json
    ),
    "published for another user": lambda channel, json: sign(DEPLOYMENT, f"{channel}2", json),
    "published on another deployment": lambda channel, json: sign(
        DEPLOYMENT, channel.replace(DEPLOYMENT.id, "0e"), json
    ),
}


def sign(deployment: Deployment, channel: str, json: bytes) -> bytes:
    return SignedChannels(deployment).sign(channel, json, NOW)


def with_another_time(payload: bytes) -> bytes:
    return payload[:39] + bytes([payload[39] ^ 1]) + payload[40:]


@pytest.mark.parametrize("kind", UNAUTHENTIC_PAYLOADS)
@on_virtual_time
async def test_payload_that_no_node_of_the_deployment_has_signed_is_refused(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also if it is valid otherwise, and continues what the devices have."""
    json = stored_payload("u", ctime=NOW + 9, prev=NOW, msg_id="forged\n[error] m")
    async with node_pair(ManualClock(NOW)) as pair:
        await pair.publish("u", UNAUTHENTIC_PAYLOADS[kind](pair.channels.of("u"), json))
        await within(1, lambda: len(pair.observer.invalid_publications) == 2)  # one for each node
        await pair.node_a.inject(BACKEND, [create("u", "c", msg_id="m")])
        await within(0.1, lambda: pair.listener_b.ids == pair.listener_a.ids == ["m"])
        assert "not signed by a node of this deployment" in caplog.text
        assert "forged" not in caplog.text


@on_virtual_time
async def test_message_ahead_of_the_clock_is_not_believed_and_silences_nobody() -> None:
    """Even if it is signed: the nodes ask the store, which does not have it."""
    async with node_pair(ManualClock(NOW)) as pair:
        ahead = stored_payload("u", ctime=NOW + MAX_FUTURE + 1, prev=NOW, msg_id="ahead")
        await pair.publish_signed("u", ahead)
        await within(0.1, lambda: pair.observer.repaired_counts == [0, 0])  # both have asked
        await pair.node_a.inject(BACKEND, [create("u", "c", msg_id="m")])
        await within(0.1, lambda: pair.listener_b.ids == pair.listener_a.ids == ["m"])
        assert pair.observer.invalid_publications == []


@on_virtual_time
async def test_out_of_band_message_that_is_published_again_later_is_refused() -> None:
    async with node_pair(ManualClock(10**15)) as pair:
        listeners = (pair.listener_a, pair.listener_b)
        for age in (FRESH + 1, -FRESH - 1):
            await pair.publish_signed("u", out_of_band_payload(body=age), age)
        await within(0.1, lambda: len(pair.observer.invalid_publications) == 4)
        for age in (FRESH, 0, -FRESH):
            await pair.publish_signed("u", out_of_band_payload(body=age), age)
        await within(0.1, lambda: all(len(x.out_of_band) == 3 for x in listeners))
        for listener in listeners:
            assert [message.body for message in listener.out_of_band] == [FRESH, 0, -FRESH]


@on_virtual_time
async def test_in_band_message_that_arrives_late_is_delivered() -> None:
    """Its ctime tells whether it was delivered before."""
    async with node_pair(ManualClock(10**15)) as pair:
        late = stored_payload("u", ctime=10**15 + 9, prev=10**15, msg_id="late")
        for _ in range(3):
            await pair.publish_signed("u", late, 60 * FRESH)
        await within(0.1, lambda: pair.listener_a.ids == pair.listener_b.ids == ["late"])


@on_virtual_time
async def test_two_deployments_on_one_pubsub_do_not_hear_each_other() -> None:
    async with node_pair(ManualClock(NOW)) as pair:
        other = FailingStore(pair.clock)
        other.its_deployment = Deployment("0e", b"a key of its own")
        pubsub, listener = MemoryPubSub(pair.exchange), FakeListener()
        async with (
            Node(other, Broadcaster(), Publisher(pubsub), clock=pair.clock) as node,
            attached(node, "u", listener),
        ):
            await node.inject(BACKEND, [create("u", "c"), out_of_band("u", "s", 1)])
            await node.erase(BACKEND, "u")
            await pair.node_a.inject(BACKEND, [create("u", "c", msg_id="m")])
            await within(0.1, lambda: pair.listener_b.ids == ["m"])
            assert [message.body for message in pair.listener_a.out_of_band] == []
            assert len(listener.ids) == len(listener.out_of_band) == 1
            await asyncio.sleep(10)
            assert pair.node_a.peers is not None
            assert node.peers is not None
            assert (pair.node_a.peers.heard, node.peers.heard) == (1, 0)
            assert pair.observer.invalid_publications == []
            assert pair.observer.repaired_counts == []


# A store that gets its deployment while nodes run


@on_virtual_time
async def test_nodes_adopt_the_deployment_while_they_run_and_lose_nothing() -> None:
    """Whatever they are told, at whatever moment, by a node that has or has not adopted it."""
    async with unsigned_pair() as pair:
        expected = 0
        for second in range(40):
            if second == 3:
                pair.store.its_deployment = DEPLOYMENT
            for node in (pair.node_a, pair.node_b):
                both = (out_of_band("u", "s", expected), create("u", "c", msg_id=str(expected)))
                await node.inject(BACKEND, both)
                expected += 1
            await asyncio.sleep(1)
        for listener in (pair.listener_a, pair.listener_b):
            assert [message.body for message in listener.out_of_band] == [*range(expected)]
            assert listener.ids == [str(number) for number in range(expected)]
        assert (pair.observer.repaired_counts, pair.observer.invalid_publications) == ([], [])
        assert pair.exchange.channels.keys() == {pair.channels.nodes, pair.channels.of("u")}
        assert pair.node_a.peers is not None
        assert (pair.node_a.peers.heard, pair.node_a.peers.suspected) == (1, False)


@on_virtual_time
async def test_devices_that_come_and_go_while_nodes_adopt_the_deployment_are_served() -> None:
    async with unsigned_pair() as pair:
        pair.store.its_deployment = DEPLOYMENT
        for second in range(40):
            uid, listener = f"v{second}", FakeListener()
            async with attached(pair.node_a, uid, listener):
                await pair.node_b.inject(BACKEND, [out_of_band(uid, "s", second)])
                await within(0.1, lambda: len(listener.out_of_band) == 1)  # noqa: B023
            await asyncio.sleep(1)
        await within(3 * LINGER_SECONDS, lambda: len(pair.exchange.channels) == 2)
        assert pair.exchange.channels.keys() == {pair.channels.nodes, pair.channels.of("u")}


@on_virtual_time
async def test_what_is_not_signed_is_believed_only_until_all_nodes_sign() -> None:
    unsigned = UnsignedChannels().of("u")
    async with unsigned_pair() as pair:
        pubsub = FaultyPubSub(pair.exchange)
        await pubsub.publish(unsigned, out_of_band_payload(body=1))
        await within(0.1, lambda: len(pair.listener_a.out_of_band) == 1)
        pair.store.its_deployment = DEPLOYMENT
        await asyncio.sleep(ASK_SECONDS + 2 * OVERLAP_SECONDS + 3)
        await pubsub.publish(unsigned, out_of_band_payload(body=2))
        await asyncio.sleep(10)
        assert len(pair.listener_a.out_of_band) == len(pair.listener_b.out_of_band) == 1


@asynccontextmanager
async def unsigned_pair() -> AsyncIterator[NodePair]:
    """A node_pair whose store has no deployment yet. The nodes do not ask at the same time."""
    pair = NodePair(SteppingClock())
    pair.store.its_deployment = None
    async with opened_pair(pair, apart=ASK_SECONDS * 0.7):
        yield pair


OTHER_VERSIONS = {
    "with other fields": b'{"version": 2, "changes": {"since": 17}}',
    "with the same fields": b'{"version": 2, "node": "x", "messages": []}',
    "of a much later version": b'{"version": 4711, "messages": "in another format"}',
}


@pytest.mark.parametrize("kind", OTHER_VERSIONS)
@on_virtual_time
async def test_messages_in_an_envelope_of_another_version_are_read_from_the_store_at_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A node of the next version may change the envelope."""
    async with node_pair(ManualClock(NOW)) as pair:
        pair.pubsub_b.blackholed = True
        await pair.node_a.inject(BACKEND, [create("u", "c", msg_id="m")])
        pair.pubsub_b.blackholed = False
        for _ in range(3):
            await pair.publish_signed("u", OTHER_VERSIONS[kind])
        await within(0.1, lambda: pair.listener_b.ids == ["m"])
        assert pair.listener_a.ids == ["m"]
        assert pair.observer.invalid_publications == []
        assert "messages are read from the store" in caplog.text


@on_virtual_time
async def test_replayed_message_from_the_future_is_delivered_from_store() -> None:
    clock = ManualClock(NOW)
    async with node_pair(clock) as pair:
        replayed = create("u", "c", msg_id="m").stamp(NOW + 2 * MAX_FUTURE, 0)
        await pair.node_a.inject(BACKEND, [replayed])
        await within(0.1, lambda: pair.listener_a.ids == pair.listener_b.ids == ["m"])


@on_virtual_time
async def test_replay_behind_the_clock_reaches_the_devices_of_every_node_within_one_sweep() -> None:
    clock = ManualClock(NOW)
    async with node_pair(clock) as pair:
        replayed = create("u", "c", msg_id="late").stamp(NOW - 5, 0)
        await pair.node_a.inject(BACKEND, [replayed])
        listeners = (pair.listener_a, pair.listener_b)
        await within(SWEEP_SECONDS, lambda: all(x.publications for x in listeners))
        for listener in listeners:
            (publication,) = listener.publications
            # It continues no position that a device can have, so each device reads the store.
            assert (publication.messages, publication.prev) == ((), publication.cursor)


@on_virtual_time
async def test_item_that_is_dead_when_it_is_stored_ends_its_predecessor_on_every_node() -> None:
    async with node_pair() as pair:
        await pair.node_a.inject(BACKEND, [put("u", "c", 1, msg_id="old")])
        await pair.node_a.inject(BACKEND, [dismiss("u", "new", msg_id="d")])
        (outcome,) = await pair.node_a.inject(BACKEND, [put("u", "c", 2, msg_id="new")])
        assert isinstance(outcome, Stored)
        assert (outcome.dead, outcome.replaced) == (True, "old")
        listeners = (pair.listener_a, pair.listener_b)
        await within(0.1, lambda: all(len(x.publications) == 3 for x in listeners))
        for listener in listeners:
            (sent,) = listener.publications[-1].messages
            assert (sent.creation, sent.dismissal) == (None, Dismissal(("old",)))
        assert pair.observer.repaired_counts == []


@on_virtual_time
async def test_all_invalid_payloads_are_reported_but_logged_at_a_limited_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with node_pair() as pair:
        for _ in range(3):
            for _ in range(1000):
                await pair.publish("u", b"invalid")
            await asyncio.sleep(60)
        assert len(pair.observer.invalid_publications) == 2 * 3000
        events = [record.msg for record in caplog.records]
        times = [event.fields["times"] for event in events if isinstance(event, LogEvent)]
        assert times == [1, 1, 1000, 1000, 1000, 1000]


# A pub/sub that ends


@on_virtual_time
async def test_node_fails_when_pubsub_ends_without_error() -> None:
    clock, pubsub = SteppingClock(), EndingPubSub(Received("gregor:channel", b"last payload"))
    node = Node(FailingStore(clock), Broadcaster(), Publisher(pubsub), clock=clock)
    with pytest.raises(ExceptionGroup) as failure:
        async with node:
            await asyncio.sleep(60)
    assert failure.group_contains(RuntimeError, match="the pub/sub has ended")


@on_virtual_time
async def test_node_that_opens_waits_until_the_store_says_which_deployment_it_is() -> None:
    """It does not publish unsigned meanwhile, nor end."""
    store, exchange = FailingStore(SteppingClock()), Exchange()
    store.down = True
    node = Node(store, Broadcaster(), Publisher(MemoryPubSub(exchange)), clock=SteppingClock())
    opening = asyncio.create_task(node.__aenter__())
    await asyncio.sleep(10)
    assert not opening.done()
    assert exchange.channels == {}
    store.down = False
    await within(2, opening.done)
    await within(1, lambda: list(exchange.channels) == [SignedChannels(DEPLOYMENT).nodes])
    await node.__aexit__(None, None, None)
