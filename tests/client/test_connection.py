"""A client comes back for ever, with patience, unless it is told that there is no use."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise

import msgspec
import pytest

from gregor.client import Client, Disconnected, MemoryStore, Offline
from gregor.client.connection import Transport, websocket_url
from gregor.core.message import UID, InBandMessage, create
from gregor.core.state import Snapshot, Sync
from gregor.errors import (
    Forbidden,
    GregorError,
    SetupError,
    StorageUnavailable,
    TooLarge,
    Turn,
    Unauthenticated,
    Unavailable,
)
from gregor.interfaces import Outcome
from gregor.protocol.frames import Error, encode
from gregor.state_machines.memory import MemoryStateMachine
from tests.client.world import World, categories, in_no_time, story, world


def now() -> float:
    return asyncio.get_running_loop().time()


class Scripted:
    """A Transport whose node says these frames, and then nothing."""

    def __init__(self, *frames: str) -> None:
        self._frames = deque(frames)
        self._closed = asyncio.Event()
        self.sent: list[str] = []

    async def send(self, text: str) -> None:
        self.sent.append(text)

    async def receive(self) -> str:
        if not self._frames:
            await self._closed.wait()
            raise Disconnected(1006, "closed")
        return self._frames.popleft()

    async def close(self) -> None:
        self._closed.set()


async def attempts(
    w: World,
    connect: Callable[[], Awaitable[Transport]],
    seconds: float,
    jitter: Callable[[], float] = lambda: 0.5,
) -> list[float]:
    """When a client tries to connect, in seconds."""
    times: list[float] = []

    async def noting() -> Transport:
        times.append(now())
        return await connect()

    start = now()
    async with w.device(connect=noting, jitter=jitter):
        await asyncio.sleep(seconds)
    return [round(time - start, 2) for time in times]


async def nowhere() -> Transport:
    raise Disconnected(0, "there is no network")


@in_no_time
async def test_attempts_that_were_quick_by_chance_do_not_make_the_next_pause_long() -> None:
    """A store that was away for a second kept a device away for 15."""
    quick = iter([0.01] * 6)
    async with world() as w:
        times = await attempts(w, nowhere, 20, lambda: next(quick, 1.0))
        pauses = [round(b - a, 1) for a, b in pairwise(times)]
        assert pauses == [0, 0, 0, 0, 0, 0, 0.5, 1.1, 3.2, 9.5]


@in_no_time
async def test_pauses_double_up_to_a_minute() -> None:
    """With a jitter of one half they are half as long as they could be."""
    async with world() as w:
        times = await attempts(w, nowhere, 200)
        pauses = [round(b - a, 2) for a, b in pairwise(times)]
        assert pauses == [0.25, 0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30, 30]


@in_no_time
async def test_a_server_that_asks_for_patience_gets_it() -> None:
    async def busy() -> Transport:
        raise Disconnected(503, "busy", retry_after=10)

    async with world() as w:
        assert await attempts(w, busy, 22) == [0, 10.25, 20.75]


@in_no_time
async def test_a_connection_that_cannot_be_made_in_time_is_tried_again() -> None:
    async def never() -> Transport:
        await asyncio.sleep(3600)
        raise AssertionError

    async with world() as w:
        assert await attempts(w, never, 15) == [0, 10.25]


@in_no_time
async def test_a_node_that_does_not_answer_the_hello_is_left() -> None:
    async def silent() -> Transport:
        return Scripted()

    async with world() as w:
        assert await attempts(w, silent, 15) == [0, 10.25]


@in_no_time
async def test_a_node_that_speaks_nonsense_is_left() -> None:
    async def mad() -> Transport:
        return Scripted("{]")

    async with world() as w:
        assert await attempts(w, mad, 0.3) == [0, 0.25]


@in_no_time
async def test_patience_is_new_after_a_sync() -> None:
    async with world() as w, w.device() as laptop:
        w.server.reachable = False
        await asyncio.sleep(500)
        w.server.reachable = True
        await laptop.wait_synced()
        start = now()
        w.server.cut_all()
        await asyncio.sleep(0.01)
        assert not laptop.online
        await laptop.wait_synced()
        assert now() - start == pytest.approx(0.25)


@in_no_time
async def test_a_leaving_node_gets_its_devices_back_within_the_window() -> None:
    async with world() as w, w.device() as laptop:
        await laptop.wait_synced()
        events = laptop.events()
        start = now()
        w.server.go_away(8_000)
        await asyncio.sleep(3.9)
        assert laptop.online
        await asyncio.sleep(0.2)
        await laptop.wait_synced()
        assert now() - start == pytest.approx(4.1)
        assert w.server.connected == 2
        assert story(events) == ["offline", "online", "synced"]


@in_no_time
async def test_a_node_that_left_before_the_moment_is_not_asked_earlier() -> None:
    async with world() as w, w.device() as laptop:
        await laptop.wait_synced()
        w.server.go_away(8_000)
        await asyncio.sleep(1)
        w.server.cut_all()
        await asyncio.sleep(2.9)
        assert w.server.connected == 1
        await asyncio.sleep(0.2)
        assert w.server.connected == 2


@in_no_time
async def test_a_lost_ack_is_made_good_by_a_duplicate() -> None:
    async with world() as w, w.device() as laptop:
        await laptop.wait_synced()
        w.lose("ack")
        await laptop.create("mail")
        await laptop.flush()
        assert w.server.connected == 2
        assert categories(await w.state()) == ["mail"]
        await asyncio.sleep(1)
        assert not laptop.replica.outbox


@in_no_time
async def test_a_lost_consume_is_sent_again() -> None:
    async with world() as w, w.device() as laptop:
        await laptop.wait_synced()
        w.lose("consume", 3)
        await laptop.create("mail")
        await laptop.flush()
        assert categories(await w.state()) == ["mail"]


@in_no_time
async def test_the_outbox_goes_in_order_in_windows() -> None:
    async with world() as w:
        w.server.reachable = False
        async with w.device() as laptop:
            for n in range(1_200):
                await laptop.create("mail", n)
            w.server.reachable = True
            await laptop.flush()
            assert [item.body for item in await w.state()] == list(range(1_200))


@in_no_time
async def test_large_messages_go_in_frames_that_the_node_takes() -> None:
    async with world() as w:
        w.server.reachable = False
        async with w.device() as laptop:
            for _ in range(40):
                await laptop.create("mail", "x" * 60_000)
            largest = 0

            def measure(frame: str) -> bool:
                nonlocal largest
                largest = max(largest, len(frame))
                return False

            w.server.lost = measure
            w.server.reachable = True
            await laptop.flush()
            assert len(await w.state()) == 40
            assert largest < 512 * 1024


class Failing(MemoryStateMachine):
    """A store that is away for so many consumes."""

    failures = 0

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        if self.failures:
            self.failures -= 1
            raise StorageUnavailable("the store is away")
        return await super().consume_messages(messages)


@in_no_time
async def test_what_the_node_defers_is_sent_again_over_the_same_connection() -> None:
    async with world(machine=Failing) as w, w.device() as laptop:
        await laptop.wait_synced()
        assert isinstance(w.machine, Failing)
        w.machine.failures = 5
        start = now()
        await laptop.create("mail")
        await laptop.flush()
        assert categories(await w.state()) == ["mail"]
        assert w.server.connected == 1
        assert now() - start == pytest.approx(0.25 + 0.25 + 0.5 + 1 + 2)


class Sluggish(MemoryStateMachine):
    """A store that takes its time, once."""

    seconds = 70

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        seconds, self.seconds = self.seconds, 0
        await asyncio.sleep(seconds)
        return await super().consume_messages(messages)


@in_no_time
async def test_a_node_that_does_not_answer_for_what_was_sent_is_left() -> None:
    async with world(machine=Sluggish) as w, w.device() as laptop:
        await laptop.wait_synced()
        await laptop.create("mail")
        await asyncio.sleep(59)
        assert w.server.connected == 1
        await laptop.flush()
        assert w.server.connected == 2
        await asyncio.sleep(60)
        assert categories(await w.state()) == ["mail"]


class Stubborn(Unavailable):
    """Not now, nor ever."""

    code, turn = "too-large", Turn.STOP


class Picky(MemoryStateMachine):
    """A store that takes nothing if one thing is not to its taste."""

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        if any(m.creation is not None and m.creation.category == "bad" for m in messages):
            raise Stubborn("not to my taste")
        return await super().consume_messages(messages)


@in_no_time
async def test_the_one_message_that_stands_in_the_way_is_found_and_set_aside() -> None:
    """A node may refuse a whole consume. Then it is cut in halves."""
    async with world(machine=Picky) as w:
        w.server.reachable = False
        async with w.device() as laptop:
            for n in range(10):
                await laptop.create("bad" if n == 6 else "good", n)
            w.server.reachable = True
            await laptop.flush()
            await asyncio.sleep(1)
            assert [item.body for item in await w.state()] == [0, 1, 2, 3, 4, 5, 7, 8, 9]
            (rejected,) = laptop.rejected()
            assert rejected.error.code == "too-large"


# Whose turn it is


def refusing(*tokens: str) -> Callable[[str], UID]:
    def authenticate(token: str) -> UID:
        if token in tokens:
            raise Unauthenticated("the token does not hold")
        return token.removesuffix("'s fresh token")

    return authenticate


@in_no_time
async def test_a_token_that_does_not_hold_is_not_tried_again_and_everybody_hears_of_it() -> None:
    async with world(authenticate=refusing("alice")) as w, w.device() as laptop:
        events = laptop.events()
        with pytest.raises(Unauthenticated):
            await laptop.wait_synced()
        await laptop.create("mail")
        with pytest.raises(Unauthenticated):
            await laptop.flush()
        await asyncio.sleep(3600)
        assert w.server.connected == 1
        assert isinstance(laptop.failure, Unauthenticated)
        assert Offline("the token does not hold", final=True) in events.waiting()
        assert categories(laptop.state()) == ["mail"]


@in_no_time
async def test_a_fresh_token_is_asked_for_once() -> None:
    tokens = iter(["old", "alice's fresh token"])
    async with world(authenticate=refusing("old")) as w, w.device(token=lambda: next(tokens)) as it:
        await it.wait_synced()
        assert it.uid == "alice"


@in_no_time
async def test_a_fresh_token_may_take_time_and_fail_for_now() -> None:
    tries: list[float] = []

    async def token() -> str:
        tries.append(now())
        if len(tries) < 3:
            raise Unavailable("the login service is away")
        return "alice"

    async with world() as w, w.device(token=token) as laptop:
        await laptop.wait_synced()
        assert len(tries) == 3


@in_no_time
async def test_a_token_that_is_always_refused_ends_the_attempts() -> None:
    async with world(authenticate=refusing("old")) as w, w.device(token=lambda: "old") as laptop:
        with pytest.raises(Unauthenticated):
            await laptop.wait_synced()
        assert w.server.connected == 2


@pytest.mark.parametrize("error", [Forbidden("a service's token"), TooLarge("too much")])
def test_a_node_that_says_stop_is_obeyed(error: GregorError) -> None:
    @in_no_time
    async def tell() -> None:
        async def connect() -> Transport:
            return Scripted(encode(Error.of(error)))

        async with world() as w, w.device(connect=connect) as laptop:
            with pytest.raises(type(error)):
                await laptop.wait_synced()

    tell()


@in_no_time
async def test_an_error_of_a_later_version_keeps_its_turn() -> None:
    text = '{"type":"error","code":"too-early","message":"wait","turn":"stop"}'

    async def connect() -> Transport:
        return Scripted(text)

    async with world() as w, w.device(connect=connect) as laptop:
        with pytest.raises(GregorError) as caught:
            await laptop.wait_synced()
        assert (caught.value.code, caught.value.turn) == ("too-early", "stop")


@in_no_time
async def test_another_users_token_sends_nothing_from_this_users_outbox() -> None:
    async with world() as w:
        store = MemoryStore()
        async with w.device(store=store) as laptop:
            await laptop.wait_synced()
            w.server.reachable = False
            w.server.cut_all()
            await laptop.create("secret")
        w.server.reachable = True
        async with w.device(store=store, token="bob") as laptop:
            with pytest.raises(SetupError, match="alice"):
                await laptop.wait_synced()
            assert laptop.outbox == 1
        assert len(await w.machine.state("bob")) == 0


# When they do not agree


class Wrong(MemoryStateMachine):
    """Its next syncs hide an item, but not from the hash."""

    wrong = 0

    async def sync(self, uid: UID, device_id: str | None, cursor: int) -> Sync:
        sync = await super().sync(uid, device_id, cursor)
        if not self.wrong:
            return sync
        self.wrong -= 1
        return Sync(Snapshot(), sync.cursor, sync.as_of, sync.hash)


@in_no_time
async def test_a_mismatch_is_counted_and_mended_and_costs_nothing_that_was_written() -> None:
    async with world(machine=Failing) as w, w.device() as laptop:
        await w.backend(create("alice", "mail", msg_id="m"))
        await laptop.wait_synced()
        await laptop.hide("m")
        await lie_to(laptop)
        assert isinstance(w.machine, Failing)
        w.machine.failures = 3  # what is written now waits through all of this
        await laptop.create("written")
        assert categories(laptop.state()) == ["lie", "written"]
        w.server.cut_all()
        await asyncio.sleep(0.1)
        await laptop.wait_synced()
        assert laptop.mismatches == 1
        assert (categories(laptop.state()), laptop.outbox) == (["written"], 1)
        assert list(laptop.replica.hidden) == ["m"]
        await laptop.flush()
        assert categories(await w.state()) == ["mail", "written"]


async def lie_to(client: Client) -> None:
    """Give the replica an item that no node knows."""
    cursor = client.replica.cursor
    lie = create("alice", "lie").stamp(cursor, 0)
    replica = msgspec.structs.replace(client.replica, cursor=cursor - 1)
    await client.change(lambda _, now: replica.told([lie], cursor, now))


@in_no_time
async def test_a_snapshot_that_does_not_fit_is_counted_but_not_asked_for_again() -> None:
    async with world(machine=Wrong) as w:
        assert isinstance(w.machine, Wrong)
        await w.backend(create("alice", "mail"))
        w.machine.wrong = 1
        async with w.device() as laptop:
            await laptop.wait_synced()
            await asyncio.sleep(60)
            assert (laptop.mismatches, w.server.connected) == (1, 1)


# Addresses


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9911", "ws://127.0.0.1:9911/v1/connect"),
        ("https://gregor.example/", "wss://gregor.example/v1/connect"),
        ("wss://gregor.example/push", "wss://gregor.example/push/v1/connect"),
        ("ws://[::1]:80", "ws://[::1]:80/v1/connect"),
    ],
)
def test_addresses(url: str, address: str) -> None:
    assert websocket_url(url) == address


@pytest.mark.parametrize("url", ["", "gregor.example", "ftp://x", "http://"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(SetupError):
        Client(url, "alice", device_id="laptop")
