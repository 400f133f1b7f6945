"""A node stores messages before it delivers them, and repairs gaps from the store."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from gregor import create, dismiss, out_of_band
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, InBandMessage, Message
from gregor.core.sync import Snapshot, Sync
from gregor.errors import Conflict, Unavailable
from gregor.interfaces import (
    Caller,
    Duplicate,
    MessageConsumer,
    Outcome,
    Rejected,
    Relayed,
    Stored,
)
from gregor.log_event import LogEvent
from gregor.node.hash_checks import USERS_PER_SWEEP
from gregor.node.node import AT_A_TIME, Node
from gregor.pubsub.interface import PubSub
from tests.client.harness import on_virtual_time
from tests.node.fakes import (
    BACKEND,
    EndingPubSub,
    FailingConsumer,
    FailingPubSub,
    FailingStore,
    FakeListener,
    RecordingConsumer,
    RecordingObserver,
    SteppingClock,
    attached,
    sync_device,
)
from tests.server.harness import until
from tests.timeouts import TIMEOUT_SECONDS


class NodeHarness:
    """A node over a store that can fail, the listener of one device, and an observer."""

    def __init__(
        self,
        *consumers: MessageConsumer,
        store: FailingStore | None = None,
        pubsub: PubSub | None = None,
        **options: Any,
    ) -> None:
        clock = SteppingClock()
        self.store = store or FailingStore(clock)
        self.observer = RecordingObserver()
        self.listener = FakeListener()
        self.broadcaster = Broadcaster()
        self.node = Node(
            self.store,
            self.broadcaster,
            None if pubsub is None else Publisher(pubsub),
            consumers=consumers,
            clock=clock,
            observer=self.observer,
            jitter=lambda: 0.5,
            **options,
        )

    async def store_at_other_node(self, *ids: str, uid: str = "u") -> list[InBandMessage]:
        """Store messages as another node does whose payloads are lost."""
        outcomes = await self.store.consume_messages([create(uid, "c", msg_id=id_) for id_ in ids])
        return [outcome.message for outcome in outcomes if isinstance(outcome, Stored)]

    async def receive(self, message: Message) -> None:
        """Receive a message that another node has published."""
        await self.broadcaster.consume_message(message)

    @asynccontextmanager
    async def attached_device(self) -> AsyncIterator[FakeListener]:
        """Open the node and attach a device of `u` that has synced."""
        async with self.node, attached(self.node, "u", self.listener):
            await sync_device(self.node)
            yield self.listener


async def test_injected_messages_are_stored_and_delivered_in_order() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener:
        outcomes = await harness.node.inject(
            BACKEND, [create("u", "c", msg_id=id_) for id_ in "abc"]
        )
        assert [type(outcome) for outcome in outcomes] == [Stored] * 3
        assert listener.ids == ["a", "b", "c"]
        assert [message.prev for p in listener.publications for message in p.messages][1:] == [
            outcome.message.ctime for outcome in outcomes[:2] if isinstance(outcome, Stored)
        ]


async def test_each_message_of_a_batch_gets_its_own_outcome() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener:
        outcomes = await harness.node.inject(
            BACKEND,
            [
                create("u", "c", 1, msg_id="m"),
                out_of_band("u", "typing"),
                create("u", "c", 1, msg_id="m"),
                create("u", "c", 2, msg_id="m"),
                dismiss("u", "n"),
            ],
        )
        kinds = [Stored, Relayed, Duplicate, Rejected, Stored]
        assert [type(outcome) for outcome in outcomes] == kinds
        assert isinstance(outcomes[3], Rejected)
        assert isinstance(outcomes[3].error, Conflict)
        assert len(listener.ids) == 2
        assert len(listener.out_of_band) == 1
        assert harness.observer.outcomes == outcomes


async def test_many_messages_are_stored_and_delivered_in_parts() -> None:
    """So that what others send is stored and delivered between them."""
    harness = NodeHarness()
    async with harness.attached_device(), asyncio.TaskGroup() as tasks:
        many = [create(f"u{n}", "c") for n in range(3 * AT_A_TIME)]
        tasks.create_task(harness.node.inject(BACKEND, many))
        tasks.create_task(harness.node.inject(BACKEND, [create("u", "c")]))
    uids = [outcome.message.uid for outcome in harness.observer.outcomes if outcome.message]
    assert [uid for uid in uids if uid != "u"] == [message.uid for message in many]
    assert uids.index("u") <= AT_A_TIME


async def test_message_is_delivered_only_after_it_is_stored() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener, asyncio.TaskGroup() as tasks:
        harness.store.commits_allowed.clear()
        injecting = tasks.create_task(harness.node.inject(BACKEND, [create("u", "c", msg_id="m")]))
        await asyncio.sleep(0)
        assert listener.ids == []
        assert not injecting.done()
        harness.store.commits_allowed.set()
        await injecting
        assert listener.ids == ["m"]


async def test_messages_are_not_delivered_when_store_is_down() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener:
        harness.store.down = True
        with pytest.raises(Unavailable):
            await harness.node.inject(BACKEND, [create("u", "c"), out_of_band("u", "typing")])
        assert (listener.ids, listener.out_of_band) == ([], [])
        harness.store.down = False
        await harness.node.inject(BACKEND, [create("u", "c", msg_id="m")])
        assert listener.ids == ["m"]


async def test_failing_consumers_affect_neither_sender_nor_other_consumers() -> None:
    last = RecordingConsumer()
    harness = NodeHarness(FailingConsumer(), last, pubsub=FailingPubSub())
    async with harness.attached_device() as listener:
        (outcome,) = await harness.node.inject(BACKEND, [create("u", "c", msg_id="m")])
        assert isinstance(outcome, Stored)
        assert listener.ids == ["m"]
        assert last.messages == [outcome.message]
        assert [type(error) for error in harness.observer.consumer_errors] == [ConnectionError] * 2


async def test_cancelled_inject_is_still_stored_and_delivered() -> None:
    harness = NodeHarness()
    async with harness.attached_device() as listener:
        harness.store.commits_allowed.clear()
        injecting = asyncio.create_task(
            harness.node.inject(BACKEND, [create("u", "c", msg_id="m")])
        )
        await asyncio.sleep(0)
        injecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await injecting
        harness.store.commits_allowed.set()
        await until(lambda: listener.ids == ["m"])


async def test_inject_in_flight_is_finished_when_node_closes() -> None:
    harness = NodeHarness()
    async with harness.attached_device():
        harness.store.commits_allowed.clear()
        injecting = asyncio.create_task(
            harness.node.inject(BACKEND, [create("u", "c", msg_id="m")])
        )
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(harness.store.commits_allowed.set)
    (outcome,) = await injecting
    assert isinstance(outcome, Stored)


async def test_exception_of_the_block_is_raised_unchanged() -> None:
    with pytest.raises(KeyError):
        async with NodeHarness().node:
            raise KeyError


async def test_inject_raises_unavailable_when_node_is_not_open() -> None:
    harness = NodeHarness()
    with pytest.raises(Unavailable):
        await harness.node.inject(BACKEND, [create("u", "c")])
    async with harness.node:
        pass
    with pytest.raises(Unavailable):
        await harness.node.inject(BACKEND, [create("u", "c")])


async def test_gap_is_repaired_from_store() -> None:
    harness = NodeHarness()
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        _, second_missed, received = await harness.store_at_other_node(
            "first missed", "second missed", "received"
        )
        await harness.receive(received)
        await until(lambda: bool(listener.ids))
        (publication,) = listener.publications
        assert listener.ids == ["first missed", "second missed", "received"]
        assert publication.cursor == received.ctime
        assert harness.observer.repaired_counts == [3]
        await harness.receive(second_missed)  # arrives late, as a duplicate
        assert len(listener.publications) == 1


async def test_message_received_twice_is_delivered_once() -> None:
    harness = NodeHarness()
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        (message,) = await harness.store_at_other_node("m")
        await harness.receive(message)
        await harness.receive(message)
        assert listener.ids == ["m"]


async def test_devices_sync_from_store_when_gap_is_too_large() -> None:
    harness = NodeHarness()
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        missed = await harness.store_at_other_node(*(f"m{n}" for n in range(100)))
        await harness.store.consume_messages([dismiss("u", *(f"m{n}" for n in range(100)))])
        await harness.receive(missed[-1])
        await until(lambda: bool(listener.publications))
        (publication,) = listener.publications
        assert publication.messages == ()
        # It continues no position that a device can have, so each device syncs from the store.
        assert publication.prev == publication.cursor > missed[-1].ctime


async def test_sweep_repairs_lost_last_message() -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        await harness.store_at_other_node("lost")
        await until(lambda: listener.ids == ["lost"])


async def test_sweep_queries_only_connected_users() -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    async with harness.attached_device():
        await harness.store_at_other_node("m", uid="not connected")
        await until(lambda: len(harness.store.ctimes_queries) > 2)
        assert all(uids == ["u"] for uids in harness.store.ctimes_queries)


async def test_node_waits_for_store_while_it_is_down_and_repairs_gap_afterwards() -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        await harness.store_at_other_node("missed")
        harness.store.down = True
        await until(lambda: harness.node.waiting_for_store)
        harness.store.down = False
        await until(lambda: listener.ids == ["missed"])
        await until(lambda: not harness.node.waiting_for_store)


async def test_node_stops_waiting_for_store_without_connected_devices() -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    async with harness.node:
        async with attached(harness.node, "u", harness.listener):
            await sync_device(harness.node)
            harness.store.down = True
            await until(lambda: harness.node.waiting_for_store)
        harness.store.down = False
        await until(lambda: not harness.node.waiting_for_store)


async def test_gap_repair_is_retried_until_store_answers() -> None:
    harness = NodeHarness()
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        _, received = await harness.store_at_other_node("missed", "received")
        harness.store.down = True
        await harness.receive(received)
        await until(lambda: harness.node.waiting_for_store)
        harness.store.down = False
        await until(lambda: listener.ids == ["missed", "received"])
        assert not harness.node.waiting_for_store


async def test_failing_background_task_ends_the_block() -> None:
    class BrokenStore(FailingStore):
        async def ctimes(self, uids: Sequence[str]) -> dict[str, int]:
            raise ZeroDivisionError

    harness = NodeHarness(store=BrokenStore(SteppingClock()), sweep_seconds=0.001)

    async def run_node() -> None:
        async with harness.attached_device():
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as failure:
        await run_node()
    assert failure.group_contains(ZeroDivisionError)


async def test_failing_pubsub_ends_the_block() -> None:
    harness = NodeHarness(pubsub=EndingPubSub(error=ConnectionError()))
    with pytest.raises(ExceptionGroup) as failure:
        async with harness.node:
            await asyncio.Event().wait()
    assert failure.group_contains(ConnectionError)


async def test_inject_in_flight_raises_unavailable_when_node_fails() -> None:
    pubsub = EndingPubSub(error=ConnectionError())
    pubsub.may_end.clear()
    harness = NodeHarness(pubsub=pubsub)
    injecting: list[asyncio.Task[Any]] = []

    async def run_node() -> None:
        async with harness.node:
            harness.store.commits_allowed.clear()
            injecting.append(asyncio.create_task(harness.node.inject(BACKEND, [create("u", "c")])))
            await asyncio.sleep(0)
            pubsub.may_end.set()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup):
        await run_node()
    with pytest.raises(Unavailable):
        await injecting[0]


async def test_inject_that_has_not_begun_when_the_node_fails_raises_unavailable() -> None:
    harness = NodeHarness()
    async with harness.node:
        injecting = asyncio.create_task(harness.node.inject(BACKEND, [create("u", "c")]))
        await asyncio.sleep(0)
        for task in asyncio.all_tasks() - {injecting, asyncio.current_task()}:
            task.cancel()
        done, _ = await asyncio.wait([injecting], timeout=TIMEOUT_SECONDS)
        assert done == {injecting}
        with pytest.raises(Unavailable):
            injecting.result()


async def test_defect_is_raised_to_who_injects_and_ends_the_node() -> None:
    harness = NodeHarness()
    harness.observer.injected = defective  # type: ignore[method-assign]

    async def run_node() -> None:
        async with harness.node:
            with pytest.raises(ZeroDivisionError):
                await harness.node.inject(BACKEND, [create("u", "c")])
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as failure:
        await run_node()
    assert failure.group_contains(ZeroDivisionError)


def defective(caller: Caller, outcomes: Sequence[Outcome]) -> None:
    raise ZeroDivisionError


async def test_device_count_is_zero_after_last_device_is_detached() -> None:
    harness = NodeHarness()
    async with harness.node:
        async with (
            attached(harness.node, "u", harness.listener),
            attached(harness.node, "u", FakeListener()),
        ):
            assert harness.node.device_count("u") == 2
        assert harness.node.device_count("u") == 0


# Messages behind a user's clock


async def test_replay_behind_the_clock_makes_devices_read_a_snapshot() -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        before = harness.broadcaster.position("u")
        assert before is not None
        late = create("u", "c", msg_id="late").stamp(before - 1, 0)
        await harness.node.inject(BACKEND, [late])
        await until(lambda: bool(listener.publications))
        (publication,) = listener.publications
        assert publication.messages == ()
        # It continues no position that a device can have, so each device syncs from the store.
        assert publication.prev == publication.cursor > before
        sync = await harness.store.sync("u", "d", before)
        assert isinstance(sync.content, Snapshot)
        assert [item.msg_id for item in sync.content.items] == ["late", "known"]


async def test_message_after_a_replay_behind_the_clock_does_not_continue_the_feed() -> None:
    harness = NodeHarness()
    await harness.store_at_other_node("known")
    async with harness.attached_device() as listener:
        before = harness.broadcaster.position("u")
        assert before is not None
        late = create("u", "c", msg_id="late").stamp(before - 1, 0)
        await harness.node.inject(BACKEND, [late, create("u", "c", msg_id="next")])
        await until(lambda: bool(listener.publications))
        assert listener.ids == []
        assert harness.broadcaster.position("u") == await harness.store.ctime("u")


# Hashes that the store keeps


@on_virtual_time
async def test_each_sweep_checks_the_hashes_of_a_few_connected_users_in_turn() -> None:
    """Each user by itself: a check holds up all writers of the store."""
    harness = NodeHarness()
    few = USERS_PER_SWEEP
    uids = [f"u{number}" for number in range(2 * few + 1)]
    numbers: dict[int, None] = {}  # of users checked, as they were seen
    async with harness.node, AsyncExitStack() as stack:
        for uid in uids:
            await stack.enter_async_context(attached(harness.node, uid, FakeListener()))
            await sync_device(harness.node, uid)
        while len(harness.store.hash_checks) < len(uids) + few:
            await asyncio.sleep(0.1)
            numbers[len(harness.store.hash_checks)] = None
    assert list(numbers) == [0, few, 2 * few, 2 * few + 1, len(uids) + few]
    assert harness.store.hash_checks == [[uid] for uid in (*uids, *uids[:few])]


async def test_hash_that_was_repaired_is_told_if_the_store_fails_at_the_next_user() -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    harness.store.wrong_hashes = {"u0"}
    harness.store.fails_to_check = {"u1"}
    async with harness.node, AsyncExitStack() as stack:
        for uid in ("u0", "u1"):
            await stack.enter_async_context(attached(harness.node, uid, FakeListener()))
            await sync_device(harness.node, uid)
        await until(lambda: ["u1"] in harness.store.hash_checks)
    assert harness.observer.hashes_repaired == 1


async def test_wrong_hash_is_counted_and_logged_with_its_user(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = NodeHarness(sweep_seconds=0.001)
    harness.store.wrong_hashes = {"u"}
    async with harness.attached_device():
        await until(lambda: len(harness.store.hash_checks) > 2)
    assert harness.observer.hashes_repaired == 1
    logged = [r.msg for r in caplog.records if "hash" in str(r.msg)]
    assert [event.fields for event in logged if isinstance(event, LogEvent)] == [{"uid": "u"}]


@on_virtual_time
async def test_no_hash_is_checked_while_the_store_does_not_answer() -> None:
    harness = NodeHarness()
    async with harness.attached_device():
        harness.store.down = True
        await asyncio.sleep(60)
        assert harness.store.hash_checks == []
        harness.store.down = False
        await asyncio.sleep(60)
        assert set(map(tuple, harness.store.hash_checks)) == {("u",)}


# What the store has lost


class FailedOverStore(FailingStore):
    """A store whose standby takes over: it may have lost messages. The users' clocks stay or
    continue, so that only its history tells."""

    term = 1

    @property
    def history(self) -> int:
        return self.term


async def test_devices_sync_again_when_the_store_has_another_history() -> None:
    store = FailedOverStore(SteppingClock())
    harness = NodeHarness(store=store, sweep_seconds=0.05)
    async with harness.attached_device() as listener:
        store.term = 2
        await until(lambda: listener.syncs == 1)
        assert harness.broadcaster.position("u") is None


async def test_devices_sync_again_when_the_clock_of_their_user_is_behind_what_they_have() -> None:
    harness = NodeHarness(sweep_seconds=0.05)
    async with harness.attached_device() as listener:
        lost = create("u", "c", msg_id="lost").stamp(10**9, 0)
        await harness.receive(lost)
        await until(lambda: listener.syncs == 1)


async def test_read_that_began_before_a_failover_is_done_again() -> None:
    class FailingOverStore(FailedOverStore):
        async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
            sync = await super().sync(uid, device_id, cursor)
            if self.term == 1:
                self.term = 2
                await self.consume_messages([create(uid, "c", msg_id="after")])
            return sync

    harness = NodeHarness(store=FailingOverStore(SteppingClock()))
    async with harness.attached_device():
        assert harness.broadcaster.position("u") == await harness.store.ctime("u") > 0
