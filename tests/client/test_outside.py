"""Whatever happens outside of a client never ends it: each failure of what is somebody else's, in
each place, is an attempt that failed, and the device goes on and converges."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from gregor.client import Client, Disconnected, MemoryStore, SQLiteStore
from gregor.client.connection import Transport
from gregor.client.events import Offline
from gregor.client.store import DEVICE_KEY, OWNER_KEY, RecordChanges, Records
from gregor.core.message import create
from gregor.errors import SetupError, StorageUnavailable, Unauthenticated
from gregor.testing import virtual_time
from gregor.testing.transport import MemoryTransport
from tests.client.harness import ClientHarness, categories, client_harness, on_virtual_time
from tests.client.test_connection import FixedFramesTransport

ERRORS: list[BaseException] = [
    ValueError("not JSON"),
    KeyError("token"),
    ConnectionRefusedError(),
    TimeoutError(),
    asyncio.CancelledError(),
    StopAsyncIteration(),
    RecursionError(),
    ExceptionGroup("two", [ValueError("a"), OSError("b")]),
    Disconnected(1006, "gone", retry_after=float("nan")),
    Disconnected(503, "busy", retry_after=float("inf")),
    SetupError("not configured"),
    Unauthenticated("the login service does not know this session"),
]
VALUES: list[object] = [None, 5, "", b"bytes", "\ud800", float("nan"), object()]
PLACES = ["token", "connect", "send", "receive", "close", "save", "clock", "jitter"]
TIMES = 3

Misbehaviour = Callable[[], Any]


def raises(error: BaseException) -> Misbehaviour:
    def misbehave() -> Any:
        raise error.with_traceback(None)

    return misbehave


def returns(value: object) -> Misbehaviour:
    return lambda: value


MISBEHAVIOURS: dict[str, Misbehaviour] = {
    **{f"raises {error!r}": raises(error) for error in ERRORS},
    **{f"returns {type(value).__name__} {value!r:.10}": returns(value) for value in VALUES},
}


class Outside:
    """Everything around one client. What happens in `place` goes wrong a few times, and then right
    again."""

    def __init__(self, harness: ClientHarness, place: str, misbehave: Misbehaviour) -> None:
        self.harness = harness
        self.place = place
        self.misbehave = misbehave
        self.remaining = TIMES

    def goes_wrong(self, place: str) -> bool:
        if place != self.place or not self.remaining:
            return False
        self.remaining -= 1
        return True

    async def call(self, place: str, right: Callable[[], Awaitable[Any]]) -> Any:
        if not self.goes_wrong(place):
            return await right()
        answer = self.misbehave()
        return await answer if inspect.isawaitable(answer) else answer

    def read(self, place: str, right: Callable[[], Any]) -> Any:
        return self.misbehave() if self.goes_wrong(place) else right()

    def client(self) -> Client:
        return Client(
            "http://unused",
            self.token,
            device_id="laptop",
            store=StoreFromOutside(self),
            connect=self.connect,
            clock=lambda: self.read("clock", virtual_time.clock),
            jitter=lambda: self.read("jitter", lambda: 0.5),
        )

    async def token(self) -> str:
        async def right() -> str:
            return "alice"

        token: str = await self.call("token", right)
        return token

    async def connect(self) -> Transport:
        async def right() -> Transport:
            return TransportFromOutside(self, await self.harness.server.connect())

        transport: Transport = await self.call("connect", right)
        return transport


class TransportFromOutside:
    def __init__(self, outside: Outside, transport: MemoryTransport) -> None:
        self._outside = outside
        self._transport = transport

    async def send(self, text: str) -> None:
        await self._outside.call("send", lambda: self._transport.send(text))

    async def receive(self) -> str:
        frame: str = await self._outside.call("receive", self._transport.receive)
        return frame

    async def close(self) -> None:
        await self._outside.call("close", self._transport.close)


class StoreFromOutside(MemoryStore):
    def __init__(self, outside: Outside) -> None:
        super().__init__()
        self._outside = outside

    async def save(self, changes: RecordChanges) -> None:
        is_being_opened = changes.keys() == {OWNER_KEY, DEVICE_KEY} and not self.records
        if not is_being_opened:
            await self._outside.call("save", lambda: super(StoreFromOutside, self).save(changes))
        else:
            await super().save(changes)


async def converges(outside: Outside) -> None:
    """Both sides write, the connection breaks a few times; in the end both have both."""
    harness = outside.harness
    async with outside.client() as laptop:
        await _create(laptop, "written before")
        await harness.inject(create("alice", "from a backend"))
        for _ in range(TIMES + 1):
            await laptop.wait_synced()
            harness.server.cut_all()
            await asyncio.sleep(1)
        await _create(laptop, "written after")
        await laptop.flush()
        await asyncio.sleep(300)
        await laptop.wait_synced()
        assert sorted(categories(laptop.state())) == sorted(categories(await harness.state()))
        assert len(laptop.state()) == 3
        assert (laptop.failure, laptop.mismatches) == (None, 0)
        assert laptop.status.last_error is None
    assert not outside.remaining, f"{outside.place} was not used {TIMES} times"


async def _create(client: Client, category: str) -> None:
    """Create an item, as an app does: again, if it cannot be saved."""
    for _ in range(TIMES):
        try:
            await client.create(category)
        except StorageUnavailable:
            continue
        return
    await client.create(category)


@pytest.mark.parametrize(
    ("misbehaviour", "place"),
    [
        (misbehaviour, place)
        for misbehaviour in MISBEHAVIOURS
        for place in PLACES
        # Only what is awaited can have been cancelled.
        if "Cancelled" not in misbehaviour or place not in ("clock", "jitter")
    ],
)
def test_device_goes_on_and_converges_after_any_failure_outside(
    misbehaviour: str, place: str
) -> None:
    @on_virtual_time
    async def run_test() -> None:
        async with asyncio.timeout(3600), client_harness() as harness:
            await converges(Outside(harness, place, MISBEHAVIOURS[misbehaviour]))

    run_test()


@pytest.mark.parametrize("place", ["token", "connect", "send", "receive", "close"])
def test_device_goes_on_after_what_hangs(place: str) -> None:
    @on_virtual_time
    async def run_test() -> None:
        async with asyncio.timeout(3600), client_harness() as harness:
            hang = partial(asyncio.sleep, 1_000_000)
            await converges(Outside(harness, place, hang))

    run_test()


WELCOME = '{"type":"welcome","uid":"alice","device_id":"laptop","now":1,"limits":{}}'
RESYNC = '{"type":"error","code":"x","message":"","action":"resync"}'
ABSURD_ANSWERS = [
    "",
    "null",
    "{}",
    "[" * 100_000,
    '{"type":5}',
    "<html>Log in to the Wi-Fi</html>",
    '{"type":"welcome"}',
    WELCOME,  # in 1970, and then nothing
    WELCOME.replace('"now":1', '"now":-1'),
    WELCOME.replace('"now":1', '"now":18446744073709551616'),
    WELCOME.replace('"now":1', '"now":9007199254740991'),
    WELCOME.replace("{}}", '{"messages":0}}'),
    WELCOME.replace("{}}", '{"messages":-500}}'),
    '{"type":"goaway","reconnect_after_ms":864000000}',
    '{"type":"goaway","reconnect_after_ms":-864000000}',
    '{"type":"ack","n":1,"results":[]}',
    RESYNC,
    '{"type":"error","code":"x","message":"","action":"stop"}',
    '{"type":"error","code":"x","message":"","action":"dance"}',
    '{"type":"messages","prev":0,"messages":[],"cursor":-5}',
    '{"type":"sync","mode":"snapshot","prev":0,"cursor":-1,"as_of":1,"hash":""}',
    '{"type":"sync","mode":"snapshot","prev":0,"cursor":9007199254740992,"as_of":1,"hash":""}',
    '{"type":"sync","mode":"snapshot","prev":0,"cursor":9007199254740991,"as_of":1,"hash":""}',
    '{"type":"sync","mode":"snapshot","prev":0,"cursor":1,"as_of":-9,"hash":""}',
]


@pytest.mark.parametrize("number", range(len(ABSURD_ANSWERS)))
@pytest.mark.parametrize("is_welcomed", [False, True], ids=["at once", "after a welcome"])
def test_device_goes_on_and_converges_after_an_absurd_answer(
    number: int, is_welcomed: bool
) -> None:
    answers = [*([WELCOME] if is_welcomed else []), ABSURD_ANSWERS[number]]

    @on_virtual_time
    async def run_test() -> None:
        async with asyncio.timeout(3600), client_harness() as harness:
            attempts = 0

            async def connect() -> Transport:
                nonlocal attempts
                attempts += 1
                if attempts <= TIMES:
                    return FixedFramesTransport(*answers)
                return await harness.server.connect()

            async with harness.device(connect=connect) as laptop:
                await laptop.create("mail", expires="1h")
                await laptop.flush()
                await asyncio.sleep(60)
                assert categories(laptop.state()) == ["mail"] == categories(await harness.state())
                assert set(laptop.replica.facts.items) == {
                    item.msg_id for item in await harness.state()
                }

    run_test()


class AnsweringTransport(FixedFramesTransport):
    """A node that welcomes a device, and answers each frame of this kind always like this."""

    def __init__(self, kind: str, answer: str) -> None:
        super().__init__(WELCOME)
        self._kind = kind
        self._answer = answer

    async def send(self, text: str) -> None:
        await super().send(text)
        if f'"type":"{self._kind}"' in text:
            self.add(self._answer)


RETRY = '{"code":"unavailable","message":"later","action":"retry"}'
REPEATED_ANSWERS = {
    "resync to each verify": ("verify", RESYNC),
    "resync to each hello": ("hello", RESYNC),
    "rejected, to be retried": (
        "consume",
        f'{{"type":"ack","n":1,"results":[{{"status":"rejected","error":{RETRY}}}]}}',
    ),
    "two results for one message": (
        "consume",
        '{"type":"ack","n":1,"results":[{"status":"stored"},{"status":"stored"}]}',
    ),
}


@pytest.mark.parametrize("name", REPEATED_ANSWERS)
def test_device_goes_on_and_loses_nothing_after_an_answer_that_repeats_itself(name: str) -> None:
    @on_virtual_time
    async def run_test() -> None:
        async with asyncio.timeout(3600), client_harness() as harness:
            transports: list[AnsweringTransport] = []

            async def connect() -> Transport:
                if len(transports) == TIMES:
                    return await harness.server.connect()
                transports.append(AnsweringTransport(*REPEATED_ANSWERS[name]))
                return transports[-1]

            async with harness.device(connect=connect) as laptop:
                await laptop.create("mail")
                await laptop.flush()
                assert categories(await harness.state()) == ["mail"]
                assert laptop.rejected() == []
                assert all(len(transport.sent) < 100 for transport in transports)

    run_test()


@pytest.mark.parametrize("seconds", [86_400.0, float("inf"), float("nan"), -86_400.0])
def test_delay_that_a_server_asks_for_counts_up_to_a_minute(seconds: float) -> None:
    @on_virtual_time
    async def run_test() -> None:
        async with client_harness() as harness:

            async def connect() -> Transport:
                if asyncio.get_running_loop().time() == 0:
                    raise Disconnected(503, "maintenance", seconds)
                return await harness.server.connect()

            async with asyncio.timeout(61), harness.device(connect=connect) as laptop:
                await laptop.wait_synced()

    run_test()


# What a person, an app and an operator learn of it


@on_virtual_time
async def test_status_says_what_is_wrong_and_when_the_next_attempt_is() -> None:
    async def connect() -> Transport:
        raise Disconnected(404, "the server answered 404 to the handshake", retry_after=10)

    async with client_harness() as harness, harness.device(connect=connect) as laptop:
        await laptop.create("mail")
        await asyncio.sleep(1)
        status = laptop.status
        assert (status.online, status.synced, status.durable) == (False, False, False)
        assert status.unsent == laptop.unsent_count == 1
        assert status.last_error is not None
        assert "404" in status.last_error.message
        assert status.retry_at == virtual_time.START + 10_250_000


@on_virtual_time
async def test_status_of_a_good_connection_is_online_and_synced_without_error() -> None:
    async with client_harness() as harness, harness.device() as laptop:
        await laptop.wait_synced()
        status = laptop.status
        assert (status.online, status.synced, status.unsent) == (True, True, 0)
        assert (status.last_error, status.retry_at) == (None, None)


@on_virtual_time
async def test_outage_is_reported_and_logged_once_however_long_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "gregor.client")
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            events = laptop.events()
            await asyncio.sleep(3600)
            assert events.take_pending() == [Offline("the server cannot be reached")]
            assert [r.getMessage().split(" code")[0] for r in caplog.records] == [
                "the client is offline"
            ]
            harness.server.reachable = True
            await laptop.wait_synced()
            harness.server.cut_all()
            await asyncio.sleep(60)
            assert len(caplog.records) == 2


@on_virtual_time
async def test_reconnect_ends_the_wait_for_the_next_attempt() -> None:
    async with client_harness() as harness:
        harness.server.reachable = False
        async with harness.device() as laptop:
            await asyncio.sleep(1000)
            harness.server.reachable = True
            laptop.reconnect()
            await laptop.wait_synced()
            assert asyncio.get_running_loop().time() == 1000


async def test_status_is_durable_while_the_store_keeps_what_is_written(tmp_path: Path) -> None:
    class FailingDisk(SQLiteStore):
        is_full = False

        async def save(self, changes: RecordChanges) -> None:
            if self.is_full:
                raise OSError("no space left on device")
            await super().save(changes)

    store = FailingDisk(tmp_path / "device.db")
    async with client_harness() as harness, harness.device(store=store) as laptop:
        assert laptop.status.durable
        store.is_full = True
        with pytest.raises(StorageUnavailable, match="no space left"):
            await laptop.create("mail")
        assert not laptop.status.durable
        store.is_full = False
        await laptop.create("mail")
        assert laptop.status.durable


class HangingStore:
    """A store of somebody else's, which does not answer while it `hangs`, until it is let go."""

    def __init__(self) -> None:
        self.let_go = asyncio.Event()
        self.hangs = False
        self.saves = 0
        self._records = MemoryStore()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    async def load(self) -> Records:
        return await self._records.load()

    async def save(self, changes: RecordChanges) -> None:
        self.saves += 1
        if self.hangs:
            await self.let_go.wait()
        await self._records.save(changes)


@on_virtual_time
async def test_write_to_a_store_that_hangs_waits_and_the_status_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = HangingStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await laptop.wait_synced()
        assert laptop.status.durable
        store.hangs = True
        write = asyncio.create_task(laptop.create("mail"))
        await harness.inject(create("alice", "from a backend"))
        await asyncio.sleep(3600)
        assert not write.done()
        assert not laptop.state()
        status = laptop.status
        assert (status.online, status.durable) == (False, False)
        assert status.last_error is not None
        assert "the client's store" in status.last_error.message
        assert caplog.text.count("the client's store does not answer") == 1
        store.let_go.set()
        await write
        await laptop.wait_synced()
        await laptop.flush()
        expected = ["from a backend", "mail"]
        assert sorted(categories(laptop.state())) == expected
        assert sorted(categories(await harness.state())) == expected
        assert (laptop.status.last_error, laptop.status.durable) == (None, True)
        assert store.saves < 10


@on_virtual_time
async def test_client_with_a_store_that_hangs_closes_and_its_writer_learns_of_it() -> None:
    store = HangingStore()
    async with client_harness() as harness:
        async with asyncio.timeout(60), harness.device(store=store) as laptop:
            await laptop.wait_synced()
            store.hangs = True
            writes = [asyncio.create_task(laptop.create("mail"))]
            await asyncio.sleep(1)
            writes.append(asyncio.create_task(laptop.create("mail")))
            await asyncio.sleep(1)
        for write in writes:
            with pytest.raises(StorageUnavailable):
                await write


@on_virtual_time
async def test_write_that_is_cancelled_while_it_waits_is_not_written() -> None:
    store = HangingStore()
    async with client_harness() as harness, harness.device(store=store) as laptop:
        await laptop.wait_synced()
        store.hangs = True
        first = asyncio.create_task(laptop.create("first"))
        await asyncio.sleep(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(laptop.create("second"), 1)
        store.let_go.set()
        await first
        await laptop.flush()
        assert categories(await harness.state()) == ["first"]


@on_virtual_time
async def test_operation_that_fails_fails_alone() -> None:
    """Whatever an argument makes of it, such as a float where a time should be."""

    def fail(replica: Any, now: int) -> Any:
        raise TypeError("not a time")

    async with client_harness() as harness, harness.device() as laptop:
        written, failed = await asyncio.gather(
            laptop.create("mail"), laptop.change(fail), return_exceptions=True
        )
        assert isinstance(written, str)
        assert isinstance(failed, TypeError)
        await laptop.flush()
        assert categories(await harness.state()) == ["mail"]
