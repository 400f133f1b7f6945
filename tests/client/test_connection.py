"""A client reconnects with backoff until it succeeds, and stops only on a permanent error."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import msgspec
import pytest

from gregor.client import Client, Disconnected, MemoryStore, Offline
from gregor.client.connection import Token, Transport
from gregor.client.websocket import websocket_url
from gregor.core.message import UID, create
from gregor.core.sync import Snapshot, Sync
from gregor.errors import (
    Action,
    Forbidden,
    GregorError,
    NotYetValid,
    ProtocolError,
    SetupError,
    StorageUnavailable,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from gregor.interfaces import Slot
from gregor.protocol.frames import Error, Problem, encode
from gregor.stores.memory import MemoryStateMachine
from tests.client.harness import (
    ClientHarness,
    categories,
    client_harness,
    event_summaries,
    on_virtual_time,
)


def now() -> float:
    return asyncio.get_running_loop().time()


class FixedFramesTransport:
    """A Transport that receives these frames, and then nothing, unless some are added."""

    def __init__(self, *frames: str) -> None:
        self._frames: asyncio.Queue[str | None] = asyncio.Queue()
        self.sent: list[str] = []
        for frame in frames:
            self.add(frame)

    def add(self, frame: str) -> None:
        self._frames.put_nowait(frame)

    async def send(self, text: str) -> None:
        self.sent.append(text)

    async def receive(self) -> str:
        frame = await self._frames.get()
        if frame is None:
            raise Disconnected(1006, "closed")
        return frame

    async def close(self) -> None:
        self._frames.put_nowait(None)


async def connect_times(
    harness: ClientHarness,
    connect: Callable[[], Awaitable[Transport]],
    seconds: float,
    jitter: Callable[[], float] = lambda: 0.5,
) -> list[float]:
    """The seconds, from its start, at which a client tries to connect."""
    times: list[float] = []

    async def recording_connect() -> Transport:
        times.append(now())
        return await connect()

    start = now()
    async with harness.device(connect=recording_connect, jitter=jitter):
        await asyncio.sleep(seconds)
    return [round(time - start, 2) for time in times]


async def unreachable() -> Transport:
    raise Disconnected(0, "there is no network")


@on_virtual_time
async def test_reconnect_delay_is_capped_at_twice_the_outage() -> None:
    """Without the cap, an outage of one second kept a device offline for 15 seconds."""
    quick = iter([0.01] * 6)
    async with client_harness() as harness:
        times = await connect_times(harness, unreachable, 20, lambda: next(quick, 1.0))
        delays = [round(b - a, 1) for a, b in pairwise(times)]
        assert delays == [0, 0, 0, 0, 0, 0, 0.5, 1.1, 3.2, 9.5]


@on_virtual_time
async def test_reconnect_delay_doubles_up_to_one_minute() -> None:
    """With a jitter of 0.5, each delay is half of its maximum."""
    async with client_harness() as harness:
        times = await connect_times(harness, unreachable, 200)
        delays = [round(b - a, 2) for a, b in pairwise(times)]
        assert delays == [0.25, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


@on_virtual_time
async def test_retry_after_is_added_to_reconnect_delay() -> None:
    async def busy() -> Transport:
        raise Disconnected(503, "busy", retry_after=10)

    async with client_harness() as harness:
        assert await connect_times(harness, busy, 22) == [0, 10.25, 20.75]


@on_virtual_time
async def test_connect_that_times_out_is_retried() -> None:
    async def never() -> Transport:
        await asyncio.sleep(3600)
        raise AssertionError

    async with client_harness() as harness:
        assert await connect_times(harness, never, 15) == [0, 10.25]


@on_virtual_time
async def test_unanswered_hello_times_out_and_is_retried() -> None:
    async def silent() -> Transport:
        return FixedFramesTransport()

    async with client_harness() as harness:
        assert await connect_times(harness, silent, 15) == [0, 10.25]


@on_virtual_time
async def test_malformed_frame_ends_connection_and_is_retried() -> None:
    async def malformed() -> Transport:
        return FixedFramesTransport("{]")

    async with client_harness() as harness:
        assert await connect_times(harness, malformed, 0.3) == [0, 0.25]


@on_virtual_time
async def test_backoff_is_reset_after_sync() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        harness.server.reachable = False
        await asyncio.sleep(500)
        harness.server.reachable = True
        await laptop.wait_synced()
        start = now()
        harness.server.cut_all()
        await asyncio.sleep(0.01)
        assert not laptop.online
        await laptop.wait_synced()
        assert now() - start == pytest.approx(0.25)


@on_virtual_time
async def test_goaway_makes_device_reconnect_within_stated_time() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        events = laptop.events()
        start = now()
        harness.server.go_away(8_000)
        await asyncio.sleep(3.9)
        assert laptop.online
        await asyncio.sleep(0.2)
        await laptop.wait_synced()
        assert now() - start == pytest.approx(4.1)
        assert harness.server.connected == 2
        assert event_summaries(events) == ["offline", "online", "synced"]


@on_virtual_time
async def test_connection_lost_after_goaway_does_not_reconnect_earlier() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        harness.server.go_away(8_000)
        await asyncio.sleep(1)
        harness.server.cut_all()
        await asyncio.sleep(2.9)
        assert harness.server.connected == 1
        await asyncio.sleep(0.2)
        assert harness.server.connected == 2


@on_virtual_time
async def test_message_with_lost_ack_is_sent_again_and_stored_once() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        harness.lose_frame("ack")
        await laptop.create("mail")
        await laptop.flush()
        assert harness.server.connected == 2
        assert categories(await harness.state()) == ["mail"]
        await asyncio.sleep(1)
        assert not laptop.replica.outbox


@on_virtual_time
async def test_lost_consume_is_sent_again() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        harness.lose_frame("consume", 3)
        await laptop.create("mail")
        await laptop.flush()
        assert categories(await harness.state()) == ["mail"]


@on_virtual_time
async def test_outbox_of_several_windows_is_delivered_in_order() -> None:
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            for n in range(1_200):
                await laptop.create("mail", n)
            harness.server.reachable = True
            await laptop.flush()
            assert [item.body for item in await harness.state()] == list(range(1_200))


@on_virtual_time
async def test_large_messages_are_sent_in_frames_within_limit() -> None:
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            for _ in range(40):
                await laptop.create("mail", "x" * 60_000)
            largest = 0

            def measure_frame(frame: str) -> bool:
                nonlocal largest
                largest = max(largest, len(frame))
                return False  # the frame is not lost

            harness.server.lost = measure_frame
            harness.server.reachable = True
            await laptop.flush()
            assert len(await harness.state()) == 40
            assert largest < 512 * 1024


class FailingStateMachine(MemoryStateMachine):
    """A store that is unavailable for the next `failures` consumes."""

    failures = 0

    async def store(self, slots: Sequence[Slot]) -> None:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("the store is unavailable")
        await super().store(slots)


@on_virtual_time
async def test_deferred_consume_is_retried_on_same_connection() -> None:
    async with (
        client_harness(machine_type=FailingStateMachine) as harness,
        harness.device() as laptop,
    ):
        await laptop.wait_synced()
        assert isinstance(harness.machine, FailingStateMachine)
        harness.machine.failures = 5
        start = now()
        await laptop.create("mail")
        await laptop.flush()
        assert categories(await harness.state()) == ["mail"]
        assert harness.server.connected == 1
        assert now() - start == pytest.approx(0.25 + 0.25 + 0.5 + 1 + 2)


class SlowStateMachine(MemoryStateMachine):
    """A store that takes 70 seconds for its first consume."""

    seconds = 70

    async def store(self, slots: Sequence[Slot]) -> None:
        seconds, self.seconds = self.seconds, 0
        await asyncio.sleep(seconds)
        await super().store(slots)


@on_virtual_time
async def test_unanswered_consume_times_out_and_reconnects() -> None:
    async with client_harness(machine_type=SlowStateMachine) as harness, harness.device() as laptop:
        await laptop.wait_synced()
        await laptop.create("mail")
        await asyncio.sleep(59)
        assert harness.server.connected == 1
        await laptop.flush()
        assert harness.server.connected == 2
        await asyncio.sleep(60)
        assert categories(await harness.state()) == ["mail"]


class PermanentRefusal(Unavailable):
    """A refusal of a whole consume that a retry cannot help."""

    code, action = "too-large", Action.STOP


class RefusingStateMachine(MemoryStateMachine):
    """A store that refuses all messages of a consume if one has the category "bad"."""

    async def store(self, slots: Sequence[Slot]) -> None:
        created = [slot.message.creation for slot in slots]
        if any(c is not None and c.category == "bad" for c in created):
            raise PermanentRefusal("a message is bad")
        await super().store(slots)


@on_virtual_time
async def test_message_that_fails_whole_consume_is_isolated_and_rejected() -> None:
    """If a node refuses a whole consume, the client halves it until it finds the message."""
    async with client_harness(machine_type=RefusingStateMachine) as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            for n in range(10):
                await laptop.create("bad" if n == 6 else "good", n)
            harness.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(1)
            assert [item.body for item in await harness.state()] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
            (rejected,) = laptop.rejected()
            assert rejected.error.code == "too-large"


# Errors and their actions


def refuse_tokens(*refused: str) -> Callable[[str], UID]:
    def authenticate(token: str) -> UID:
        if token in refused:
            raise Unauthenticated("the token is not valid")
        return token.removesuffix("'s fresh token")

    return authenticate


@on_virtual_time
async def test_refused_static_token_stops_client_and_raises_in_waiters() -> None:
    async with (
        client_harness(authenticate=refuse_tokens("alice")) as harness,
        harness.device() as laptop,
    ):
        events = laptop.events()
        with pytest.raises(Unauthenticated):
            await laptop.wait_synced()
        await laptop.create("mail")
        with pytest.raises(Unauthenticated):
            await laptop.flush()
        await asyncio.sleep(3600)
        assert harness.server.connected == 1
        assert isinstance(laptop.failure, Unauthenticated)
        assert Offline("the token is not valid", final=True) in events.take_pending()
        assert categories(laptop.state()) == ["mail"]


@on_virtual_time
async def test_token_function_is_called_again_after_refusal() -> None:
    tokens = iter(["old", "alice's fresh token"])
    async with (
        client_harness(authenticate=refuse_tokens("old")) as harness,
        harness.device(token=lambda: next(tokens)) as laptop,
    ):
        await laptop.wait_synced()
        assert laptop.uid == "alice"


@on_virtual_time
async def test_token_function_that_raises_unavailable_is_retried() -> None:
    attempts: list[float] = []

    async def token() -> str:
        attempts.append(now())
        if len(attempts) < 3:
            raise Unavailable("the login service is unavailable")
        return "alice"

    async with client_harness() as harness, harness.device(token=token) as laptop:
        await laptop.wait_synced()
        assert len(attempts) == 3


@on_virtual_time
async def test_token_function_that_is_refused_for_long_is_asked_again() -> None:
    """As by a node with a wrong secret or a wrong clock, or while the login service is confused."""
    async with (
        client_harness(authenticate=refuse_tokens("old")) as harness,
        harness.device(token=lambda: "old" if now() < 3600 else "alice") as laptop,
    ):
        await asyncio.sleep(3600)
        assert laptop.failure is None
        await laptop.wait_synced()
        assert now() < 3660


@on_virtual_time
async def test_client_that_has_stopped_begins_again_when_asked() -> None:
    refused = ["alice"]
    async with (
        client_harness(authenticate=lambda token: refuse_tokens(*refused)(token)) as harness,
        harness.device() as laptop,
    ):
        with pytest.raises(Unauthenticated):
            await laptop.wait_synced()
        refused.clear()
        laptop.reconnect()
        await laptop.wait_synced()
        assert (laptop.failure, laptop.status.last_error, now()) == (None, None, 0)


@pytest.mark.parametrize(
    ("error", "is_final"),
    [
        (Unauthenticated("unknown"), True),
        (Forbidden("a service's token"), True),
        (NotYetValid("a clock is wrong"), False),
        (TooLarge("too large"), False),
        (ProtocolError("another version"), False),
        (GregorError("a defect"), False),
    ],
    ids=lambda value: getattr(value, "code", None),
)
@pytest.mark.parametrize("is_static", [True, False], ids=["static token", "token function"])
def test_only_a_static_token_that_is_refused_is_final(
    error: GregorError, is_final: bool, is_static: bool
) -> None:
    @on_virtual_time
    async def run_test() -> None:
        async with client_harness() as harness:

            async def connect() -> Transport:
                if now() < 1000:
                    return FixedFramesTransport(encode(Error.of(error)))
                return await harness.server.connect()

            token: Token = "alice" if is_static else lambda: "alice"
            async with harness.device(connect=connect, token=token) as laptop:
                await asyncio.sleep(999)
                assert laptop.status.last_error == Problem.of(error)
                await asyncio.sleep(100)
                assert (laptop.failure is not None) == (is_final and is_static)
                assert laptop.online == (laptop.failure is None)

    run_test()


@on_virtual_time
async def test_unknown_error_code_keeps_its_action() -> None:
    text = '{"type":"error","code":"too-early","message":"wait","action":"stop"}'

    async def connect() -> Transport:
        return FixedFramesTransport(text)

    async with client_harness() as harness, harness.device(connect=connect) as laptop:
        await asyncio.sleep(1)
        assert laptop.status.last_error == Problem("too-early", "wait", Action.STOP)


@on_virtual_time
async def test_token_of_another_user_does_not_send_outbox() -> None:
    async with client_harness() as harness:
        store = MemoryStore()
        async with harness.device(store=store) as laptop:
            await laptop.wait_synced()
            harness.server.reachable = False
            harness.server.cut_all()
            await laptop.create("secret")
        harness.server.reachable = True
        async with harness.device(store=store, token="bob") as laptop:
            with pytest.raises(SetupError, match="alice"):
                await laptop.wait_synced()
            assert laptop.unsent_count == 1
        assert len(await harness.machine.state("bob")) == 0


# Replicas that differ from the node


class WrongSnapshotStateMachine(MemoryStateMachine):
    """Its next `wrong_syncs` syncs have an empty snapshot, but the hash of the whole state."""

    wrong_syncs = 0

    async def sync(self, uid: UID, device_id: str | None, cursor: int) -> Sync:
        sync = await super().sync(uid, device_id, cursor)
        if not self.wrong_syncs:
            return sync
        self.wrong_syncs -= 1
        return Sync(Snapshot(), sync.cursor, sync.as_of, sync.hash)


@on_virtual_time
async def test_hash_mismatch_is_counted_and_resync_keeps_outbox_and_hidden() -> None:
    async with (
        client_harness(machine_type=FailingStateMachine) as harness,
        harness.device() as laptop,
    ):
        await harness.inject(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        await laptop.hide("m")
        await corrupt_replica(laptop)
        assert isinstance(harness.machine, FailingStateMachine)
        harness.machine.failures = 3  # so that the next write stays in the outbox during the resync
        await laptop.create("written")
        assert categories(laptop.state()) == ["unknown", "written"]
        harness.server.cut_all()
        await asyncio.sleep(0.1)
        await laptop.wait_synced()
        assert laptop.mismatches == 1
        assert (categories(laptop.state()), laptop.unsent_count) == (["written"], 1)
        assert list(laptop.replica.hidden) == ["m"]
        await laptop.flush()
        assert categories(await harness.state()) == ["mail", "written"]


async def corrupt_replica(client: Client) -> None:
    """Add an item to the replica's facts that no node knows."""
    cursor = client.replica.cursor
    unknown = create("alice", "unknown").stamp(cursor, 0)
    replica = msgspec.structs.replace(client.replica, cursor=cursor - 1)
    await client.change(lambda _, now: replica.apply([unknown], cursor))


@on_virtual_time
async def test_snapshot_mismatch_is_counted_and_not_requested_again() -> None:
    async with client_harness(machine_type=WrongSnapshotStateMachine) as harness:
        assert isinstance(harness.machine, WrongSnapshotStateMachine)
        await harness.inject(create("alice", "mail"))
        harness.machine.wrong_syncs = 1
        async with harness.device() as laptop:
            await laptop.wait_synced()
            await asyncio.sleep(60)
            assert (laptop.mismatches, harness.server.connected) == (1, 1)


# URLs


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:9911", "ws://127.0.0.1:9911/v1/connect"),
        ("https://gregor.example/", "wss://gregor.example/v1/connect"),
        ("wss://gregor.example/push", "wss://gregor.example/push/v1/connect"),
        ("ws://[::1]:80", "ws://[::1]:80/v1/connect"),
    ],
)
def test_websocket_url_is_derived_from_server_url(url: str, expected: str) -> None:
    assert websocket_url(url) == expected


@pytest.mark.parametrize("url", ["", "gregor.example", "ftp://x", "http://"])
def test_invalid_server_url_is_refused_by_constructor(url: str) -> None:
    with pytest.raises(SetupError):
        Client(url, "alice", device_id="laptop")
