"""Erasing a user on one node: which devices hear of it, on which node, and when."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from gregor import create
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, DeviceID
from gregor.core.sync import Sync
from gregor.errors import Erased, GregorError, HistoryForgotten, StorageUnavailable, Unavailable
from gregor.interfaces import Duplicate, Rejected, Stored
from gregor.node.conversation import Admission, Conversation, Resumption
from gregor.node.gap_repair import SWEEP_SECONDS
from gregor.node.node import Node
from gregor.protocol.effects import Close
from gregor.testing import virtual_time
from tests.client.harness import on_virtual_time
from tests.node.channels import FakeChannel, FakeHost
from tests.node.fakes import BACKEND, FailingPubSub, FailingStore, RecordingConsumer, SteppingClock
from tests.node.test_fleet import NodePair, node_pair, within
from tests.node.test_node import NodeHarness
from tests.server.harness import until

AT_ONCE = 0.1  # seconds
TOLD = Close(4010, "erased")


@asynccontextmanager
async def connected(
    host: FakeHost, *, epoch: Time | None = None, resumption: Resumption | None = None
) -> AsyncIterator[FakeChannel]:
    """A device of `u` that is connected to a node, and has synced, unless it is refused."""
    channel = FakeChannel()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(Conversation(host, channel).run(resumption))
        if resumption is None:
            known = {} if epoch is None else {"epoch": epoch}
            channel.send("hello", token="u", device_id="d1", protocol=2, **known)
        await within(1, lambda: channel.types[1:] == ["sync"] or channel.close is not None)
        yield channel
        channel.disconnect()


def epochs(channel: FakeChannel) -> list[Time]:
    """Of the `erased` frames that the device was sent."""
    sent = (msgspec.json.decode(send.text) for send in channel.written)
    return [frame["epoch"] for frame in sent if frame["type"] == "erased"]


@asynccontextmanager
async def fleet() -> AsyncIterator[tuple[NodePair, FakeChannel, FakeChannel]]:
    """Two nodes, with a device of `u` on each."""
    async with (
        node_pair() as pair,
        connected(FakeHost(pair.node_a)) as on_a,
        connected(FakeHost(pair.node_b)) as on_b,
    ):
        yield pair, on_a, on_b


# Who hears of it, and when


@on_virtual_time
async def test_devices_on_all_nodes_are_told_at_once_and_closed() -> None:
    async with fleet() as (pair, on_a, on_b):
        erasure, pending = await pair.node_a.erase(BACKEND, "u")
        await within(AT_ONCE, lambda: on_a.close == on_b.close == TOLD)
        assert epochs(on_a) == epochs(on_b) == [erasure.epoch]
        assert pending == ()
        assert [uid for uid, _ in pair.observer.erasures] == ["u"]


@on_virtual_time
async def test_devices_of_a_node_that_misses_the_notice_are_told_by_its_next_sweep() -> None:
    async with fleet() as (pair, _, on_b):
        pair.pubsub_b.blackholed = True
        erasure, _ = await pair.node_a.erase(BACKEND, "u")
        await asyncio.sleep(AT_ONCE)
        assert on_b.close is None
        await within(SWEEP_SECONDS, lambda: on_b.close == TOLD)
        assert epochs(on_b) == [erasure.epoch]


@on_virtual_time
async def test_devices_of_other_users_hear_nothing() -> None:
    async with node_pair() as pair:
        await pair.node_a.erase(BACKEND, "v")
        await asyncio.sleep(2 * SWEEP_SECONDS)
        assert pair.listener_a.epochs == pair.listener_b.epochs == []


@on_virtual_time
async def test_notice_of_an_erase_that_has_not_happened_ends_no_device() -> None:
    """Also if it is signed: what was published once could otherwise be published again."""
    async with fleet() as (pair, on_a, on_b):
        notice = {"version": 2, "node": "stranger", "event": "erased"}
        await pair.publish_signed("u", msgspec.json.encode(notice))
        await asyncio.sleep(AT_ONCE)
        assert on_a.close is on_b.close is None
        assert pair.observer.invalid_publications == []


@on_virtual_time
async def test_new_life_goes_on_where_the_erase_was() -> None:
    async with fleet() as (pair, _, _):
        erasure, _ = await pair.node_a.erase(BACKEND, "u")
        async with connected(FakeHost(pair.node_b)) as reborn:
            await pair.node_a.inject(BACKEND, [create("u", "c", "news")])
            await within(AT_ONCE, lambda: reborn.types[2:] == ["messages"])
            assert reborn.close is None
            messages = msgspec.json.decode(reborn.written[-1].text)
            assert messages["prev"] == erasure.epoch


@on_virtual_time
async def test_second_erase_ends_the_new_life_too() -> None:
    async with node_pair() as pair, connected(FakeHost(pair.node_b)) as device:
        first, _ = await pair.node_a.erase(BACKEND, "u")
        await within(AT_ONCE, lambda: device.close == TOLD)
        async with connected(FakeHost(pair.node_b), epoch=first.epoch) as reborn:
            second, _ = await pair.node_b.erase(BACKEND, "u")
            await within(AT_ONCE, lambda: reborn.close == TOLD)
            assert epochs(reborn) == [second.epoch]
            assert second.epoch > first.epoch


# Who comes later


@on_virtual_time
async def test_device_that_was_away_is_told_when_it_comes_back() -> None:
    async with node_pair() as pair:
        erasure, _ = await pair.node_a.erase(BACKEND, "u")
        async with connected(FakeHost(pair.node_b), epoch=0) as back:
            assert (back.types, epochs(back), back.close) == (["erased"], [erasure.epoch], TOLD)
        admission = Admission("u", issued_at=None)  # whatever its token is
        resumption = Resumption(admission, "d1", 0, epoch=0)
        async with connected(FakeHost(pair.node_b), resumption=resumption) as back:
            assert (back.types, epochs(back), back.close) == (["erased"], [erasure.epoch], TOLD)


@pytest.mark.parametrize("seconds", [None, -1, 0, 1])
@on_virtual_time
async def test_token_from_up_to_the_second_of_the_erase_does_not_hold(seconds: int | None) -> None:
    async with node_pair(virtual_time.clock) as pair:
        erasure, _ = await pair.node_a.erase(BACKEND, "u")
        host = FakeHost(pair.node_a)
        host.issued_at = (
            None if seconds is None else erasure.erased_at // SECOND * SECOND + seconds * SECOND
        )
        async with connected(host) as device:
            holds = seconds == 1
            assert device.close == (None if holds else Close(4001, "unauthenticated"))
            assert device.types == (["welcome", "sync"] if holds else ["error"])
        assert pair.node_a.device_count("u") == 1  # the listener of the pair


@on_virtual_time
async def test_device_of_a_later_epoch_gets_a_snapshot_with_the_epoch_of_the_store() -> None:
    async with node_pair() as pair, connected(FakeHost(pair.node_a), epoch=9**9) as device:
        welcome, sync = (msgspec.json.decode(send.text) for send in device.written)
        assert welcome["epoch"] == 0
        assert sync["mode"] == "snapshot"
        assert device.close is None


# What was written before


@on_virtual_time
async def test_consume_that_an_erase_overtakes_is_answered_by_it_and_stores_nothing() -> None:
    async with node_pair() as pair, connected(FakeHost(pair.node_a)) as device:
        await pair.store.erase("u")  # on a node whose notice is lost
        message = {"msg_id": "late", "creation": {"category": "c", "body": 1}}
        device.send("consume", n=1, messages=[message])
        await within(AT_ONCE, lambda: device.close == TOLD)
        assert device.types == ["welcome", "sync", "erased"]
        assert (await pair.store.state("u")).items == ()


@on_virtual_time
async def test_message_of_a_service_is_not_compared_with_an_epoch() -> None:
    async with node_pair() as pair:
        await pair.node_a.erase(BACKEND, "u")
        message = create("u", "c", msg_id="m")
        (stored,) = await pair.node_a.inject(BACKEND, [message])
        (again,) = await pair.node_a.inject(BACKEND, [message])
        (rejected,) = await pair.node_a.inject(BACKEND, [message], epoch=0)
        assert isinstance(stored, Stored)
        assert isinstance(again, Duplicate)
        assert isinstance(rejected, Rejected)
        assert isinstance(rejected.error, Erased)


# Failures


async def test_erase_while_the_store_is_down_raises_and_tells_nobody() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener:
        harness.store.down = True
        with pytest.raises(StorageUnavailable):
            await harness.node.erase(BACKEND, "u")
        assert listener.epochs == []
        assert harness.observer.erasures == []


async def test_erase_on_a_node_that_is_not_open_raises_unavailable() -> None:
    harness = NodeHarness()
    with pytest.raises(Unavailable, match="not open"):
        await harness.node.erase(BACKEND, "u")
    assert await harness.store.erasure("u") == (0, 0)


async def test_cancelled_erase_is_done_all_the_same() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener:
        harness.store.commits_allowed.clear()
        erasing = asyncio.create_task(harness.node.erase(BACKEND, "u"))
        await asyncio.sleep(0)
        erasing.cancel()
        harness.store.commits_allowed.set()
        await until(lambda: bool(listener.epochs))
    assert listener.epochs == [(await harness.store.erasure("u")).epoch]
    assert erasing.cancelled()


async def test_erase_whose_notice_cannot_be_published_is_done() -> None:
    harness = NodeHarness(RecordingConsumer(), pubsub=FailingPubSub())
    async with harness.attached_device() as listener:
        erasure, _ = await harness.node.erase(BACKEND, "u")
        assert listener.epochs == [erasure.epoch]
        (error,) = harness.observer.consumer_errors
        assert isinstance(error, ConnectionError)


@pytest.mark.parametrize(
    "error", [HistoryForgotten("before the floor"), Erased("erased", epoch=5)], ids=repr
)
async def test_gap_that_the_store_cannot_tell_is_left_to_the_devices(error: GregorError) -> None:
    class ForgetfulStore(FailingStore):
        forgets = False

        async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
            if self.forgets:
                raise error
            return await super().sync(uid, device_id, cursor)

    store = ForgetfulStore(SteppingClock())
    harness = NodeHarness(store=store)
    async with harness.attached_device() as listener:
        store.forgets = True
        harness.broadcaster.on_gap("u")
        await until(lambda: listener.syncs == 1)
        assert not harness.node.waiting_for_store


async def test_store_that_fails_at_the_hello_refuses_the_device() -> None:
    class FailingSync(FailingStore):
        async def sync(self, *arguments: object) -> Sync:
            raise StorageUnavailable("down")

    harness = NodeHarness(store=FailingSync(SteppingClock()))
    async with AsyncExitStack() as stack:
        node: Node = await stack.enter_async_context(harness.node)
        device = await stack.enter_async_context(connected(FakeHost(node)))
        assert (device.types, device.close) == (["error"], Close(1013, "unavailable"))
