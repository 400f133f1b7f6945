"""The driver of a conversation, over a channel that the test plays, on virtual time."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gregor.consumers.broadcaster import Broadcaster
from gregor.core.instant import SECOND
from gregor.core.message import create, out_of_band
from gregor.errors import TooSlow
from gregor.interfaces import Caller, Slot
from gregor.node.conversation import WRITTEN_TOGETHER, Admission, Conversation, Resumption
from gregor.node.node import Node
from gregor.prompt_future import PromptFuture
from gregor.protocol.effects import Close
from gregor.protocol.frames import MAX_FRAME
from gregor.stores.memory import MemoryStateMachine
from gregor.testing import virtual_time
from tests.client.harness import on_virtual_time
from tests.node.channels import FakeChannel, FakeHost

LARGE = WRITTEN_TOGETHER // 2  # bytes of a body

ADMITTED = Resumption(Admission("u"), "d1", 0)


class CommittingStore(MemoryStateMachine):
    """A commit may take time. It ends in a callback of the event loop, as those of databases do."""

    commit_seconds = 0.0

    async def store(self, slots: Sequence[Slot]) -> None:
        if self.commit_seconds:
            loop = asyncio.get_running_loop()
            committed: PromptFuture[None] = PromptFuture(loop=loop)
            loop.call_later(self.commit_seconds, committed.set_result, None)
            await committed
        await super().store(slots)


class Talk:
    """One conversation that runs, with its channel and its host."""

    def __init__(
        self,
        host: FakeHost,
        store: CommittingStore,
        channel: FakeChannel,
        conversation: Conversation,
    ) -> None:
        self.host = host
        self.store = store
        self.channel = channel
        self.conversation = conversation

    def hello(self, token: str = "u") -> None:
        self.channel.send("hello", token=token, device_id="d1", protocol=2)

    def consume(self, n: int, seconds: float) -> None:
        """The device sends a message, whose commit takes so long."""
        self.store.commit_seconds = seconds
        message = {"msg_id": f"m{n}", "creation": {"category": "a", "body": n}}
        self.channel.send("consume", n=n, messages=[message])

    async def begin_to_send(self) -> None:
        """The device, whose socket is ready, waits for the ack of a message for a second."""
        await settle()
        self.channel.socket.ready = True
        self.consume(1, 1.0)
        await settle()

    async def inject(self) -> None:
        """A backend sends a message, whose commit takes no time."""
        self.store.commit_seconds = 0.0
        await self.host.node.inject(Caller("backend"), [create("u", "a")])
        await settle()


async def settle() -> None:
    """Let every task do what it can do now."""
    await asyncio.sleep(0.001)


@asynccontextmanager
async def talk(
    resumption: Resumption | None = None, prepare: Callable[[FakeHost], None] = lambda host: None
) -> AsyncIterator[Talk]:
    clock = virtual_time.clock
    started: asyncio.Future[Conversation] = asyncio.get_running_loop().create_future()
    channel = FakeChannel()

    async def run(host: FakeHost) -> None:
        conversation = Conversation(host, channel)
        started.set_result(conversation)
        await conversation.run(resumption)

    async with (
        Node(store := CommittingStore(clock), Broadcaster(), clock=clock) as node,
        asyncio.TaskGroup() as tasks,
    ):
        host = FakeHost(node)
        prepare(host)
        tasks.create_task(run(host))
        yield Talk(host, store, channel, await started)
        channel.disconnect()


@on_virtual_time
async def test_device_that_says_hello_is_welcomed_and_synced() -> None:
    async with talk() as t:
        t.hello()
        await settle()
        assert t.channel.types == ["welcome", "sync"]
        await t.inject()
        assert t.channel.types[2:] == ["messages"]
        assert t.host.counts.delivered == 1


@on_virtual_time
async def test_resumed_conversation_needs_no_hello_and_has_no_time_limit_for_it() -> None:
    async with talk(ADMITTED) as t:
        await asyncio.sleep(100)
        assert t.channel.types == ["welcome", "sync"]
        await t.inject()
        assert t.channel.types == ["welcome", "sync", "messages"]


@on_virtual_time
async def test_device_without_hello_is_disconnected_in_time() -> None:
    async with talk() as t:
        await asyncio.sleep(4.9)
        assert t.channel.close is None
        await asyncio.sleep(0.2)
        assert t.channel.close == Close(4008, "hello-timeout")


@on_virtual_time
async def test_device_that_is_not_admitted_gets_the_error() -> None:
    async with talk() as t:
        t.hello("refused")
        await settle()
        assert t.channel.types == ["error"]
        assert t.channel.close == Close(4001, "unauthenticated")
        assert t.host.node.device_count("refused") == 0


@on_virtual_time
async def test_admission_gets_what_the_hello_has_left_of_the_time() -> None:
    def slow(host: FakeHost) -> None:
        host.admission_seconds = 60.0

    async with talk(prepare=slow) as t:
        await asyncio.sleep(3.0)
        t.hello()
        await asyncio.sleep(1.9)
        assert t.channel.types == []
        await asyncio.sleep(0.2)
        assert t.channel.types == ["welcome", "sync"]


@on_virtual_time
async def test_conversation_ends_when_the_token_expires() -> None:
    resumption = Resumption(Admission("u", virtual_time.clock() + 10 * SECOND), "d1", 0)
    async with talk(resumption) as t:
        await asyncio.sleep(9.9)
        assert t.channel.close is None
        await asyncio.sleep(0.2)
        assert t.channel.close == Close(4001, "unauthenticated")


@on_virtual_time
async def test_frame_above_the_limit_closes_the_conversation() -> None:
    async with talk(ADMITTED) as t:
        t.channel.send("x" * MAX_FRAME)
        await settle()
        assert t.channel.close == Close(1009, "too-large")


@on_virtual_time
async def test_messages_go_directly_to_a_socket_that_is_ready() -> None:
    async with talk(ADMITTED) as t:
        await settle()
        t.channel.socket.ready = True
        await t.inject()
        t.channel.socket.ready = False
        await t.inject()
        assert len(t.channel.socket.written) == 1
        assert t.channel.types == ["welcome", "sync", "messages"]
        assert t.host.counts.delivered == 2


@on_virtual_time
async def test_device_gets_what_it_sends_and_the_ack_in_one_write() -> None:
    async with talk(ADMITTED) as t:
        await settle()
        t.channel.socket.ready = True
        for n in (1, 2):
            t.consume(n, 1.0)
            await asyncio.sleep(1.1)
        assert t.channel.socket.types == [["ack", "messages"]] * 2


@on_virtual_time
async def test_device_that_waits_for_an_ack_gets_what_others_send_meanwhile() -> None:
    async with talk(ADMITTED) as t:
        await t.begin_to_send()
        await t.inject()
        assert t.channel.socket.types == [["messages"]]
        await asyncio.sleep(1.0)
        assert t.channel.socket.types == [["messages"], ["ack", "messages"]]


@on_virtual_time
async def test_frames_are_written_together_until_they_are_large() -> None:
    async with talk(ADMITTED) as t:
        await t.begin_to_send()
        for _ in range(5):
            t.conversation.deliver_out_of_band(out_of_band("u", "typing", "x" * LARGE))
        await settle()
        assert [len(texts) for texts in t.channel.socket.writes] == [2, 2, 1]


@on_virtual_time
async def test_nothing_is_left_to_be_written_when_a_conversation_has_ended() -> None:
    async with talk(ADMITTED) as t:
        await t.begin_to_send()
        t.conversation.end(TooSlow("the device read nothing for 30 s"))
        t.channel.socket.ready = False
        t.conversation.deliver_out_of_band(out_of_band("u", "typing"))
        await settle()
        assert t.conversation.task.done()
        assert t.channel.socket.writes == []
        assert t.channel.types == ["welcome", "sync"]


@on_virtual_time
async def test_nothing_is_written_directly_while_a_write_is_pending() -> None:
    async with talk(ADMITTED) as t:
        await settle()
        t.channel.blocked = True
        await t.inject()
        t.channel.socket.ready = True
        await t.inject()
        assert t.channel.socket.written == []
        assert t.conversation.writing_since is not None


@on_virtual_time
async def test_conversation_that_the_server_ends_is_no_error_and_is_detached() -> None:
    async with talk(ADMITTED) as t:
        await settle()
        assert t.host.node.device_count("u") == 1
        t.channel.blocked = True
        await t.inject()
        t.conversation.end(TooSlow("the device read nothing for 30 s"))
        await settle()
        assert t.conversation.task.done()
        assert t.host.node.device_count("u") == 0


@on_virtual_time
async def test_defect_of_the_writer_is_one_of_the_conversation() -> None:
    async def fail() -> None:
        async with talk(ADMITTED) as t:
            await settle()
            t.channel.fails = True
            await t.inject()

    with pytest.raises(ExceptionGroup) as failure:
        await fail()
    assert failure.group_contains(ZeroDivisionError)


@on_virtual_time
async def test_idle_conversation_has_one_task_and_no_timer() -> None:
    async with talk() as t:
        before = asyncio.all_tasks()
        t.hello()
        await settle()
        assert t.channel.types == ["welcome", "sync"]
        assert asyncio.all_tasks() == before
        loop: Any = asyncio.get_running_loop()
        timers = [timer for timer in loop._scheduled if not timer.cancelled()]
        assert not any("Conversation" in repr(timer) for timer in timers)


@on_virtual_time
async def test_snapshot_that_a_device_with_a_state_asks_for_counts_as_a_mismatch() -> None:
    async with talk(ADMITTED) as t:
        await settle()
        await t.inject()
        t.channel.send("verify", cursor=0)
        await settle()
        assert t.host.counts.mismatches == 1
        assert t.channel.types == ["welcome", "sync", "messages", "sync"]
