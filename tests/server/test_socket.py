"""The WebSocket of `gregor serve`, over a transport that the test plays, on virtual time."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.utils import ClientDisconnected
from websockets.frames import Opcode

from gregor.node.channel import NO_SOCKET
from gregor.server.read_pace import DROP_PAUSE_SECONDS, FREE_READS, REST_SECONDS
from gregor.server.socket import (
    CLOSE_SECONDS,
    FIRST_MESSAGE,
    FRAMES_PER_TURN,
    LINGER_SECONDS,
    PING_SECONDS,
    PONGS_PER_TURN,
    DirectWebSocket,
    WebSockets,
    socket_of,
)
from gregor.server.websocket_frames import PING_FRAME, close_frame, pong_frame, text_frame
from tests.client.harness import on_virtual_time
from tests.server.test_websocket_frames import VIOLATIONS, client_frame

MAX_SIZE = 1000
BIG = 10_000  # frames of a peer that floods


class PlayedTransport:
    """A transport that records what is done to it. The peer takes all, until `is_full`."""

    def __init__(self) -> None:
        self.written = b""
        self.is_reading = True
        self.has_written_eof = False
        self.is_closed = False
        self.protocol: Any = None

    def write(self, data: bytes) -> None:
        assert not self.has_written_eof
        self.written += data

    def fill(self) -> None:
        """The peer takes nothing more."""
        self.protocol.pause_writing()

    def drain(self) -> None:
        """The peer takes all again."""
        self.protocol.resume_writing()

    def pause_reading(self) -> None:
        assert self.is_reading
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_reading
        self.is_reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.has_written_eof = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.abort()

    def abort(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.protocol.connection_lost(None)


class RecordingAccount:
    """An account that records what is said of the peer."""

    def __init__(self, record: list[str]) -> None:
        self._record = record

    def waits(self) -> None:
        self._record.append("waits")

    def speaks(self) -> None:
        self._record.append("speaks")

    def stalls(self) -> None:
        self._record.append("stalls")

    def ends(self) -> None:
        self._record.append("ends")

    def violated(self) -> None:
        self._record.append("violated")

    def left(self) -> None:
        self._record.append("left")


App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Connected:
    """A WebSocket with an app that has accepted it, and records what it gets."""

    def __init__(self, app: App | None = None, shared: WebSockets | None = None) -> None:
        self.events: list[Message] = []
        self.may_receive = asyncio.Event()
        self.may_receive.set()
        self.shared = shared or WebSockets(MAX_SIZE)
        self.transport = PlayedTransport()
        self.connections: set[Any] = set()
        self.account: list[str] = []  # what was said of the peer
        self.tasks: set[asyncio.Task[None]] = set()
        self.socket = DirectWebSocket(
            self.shared,
            self.transport,  # type: ignore[arg-type]
            key=b"dGhlIHNhbXBsZSBub25jZQ==",
            connections=self.connections,
            tasks=self.tasks,
            account=RecordingAccount(self.account),
        )
        self.transport.protocol = self.socket
        self.socket.start(app or self._record, {"type": "websocket", "extensions": {}})

    async def _record(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while not self.events or self.events[-1]["type"] != "websocket.disconnect":
            await self.may_receive.wait()
            self.events.append(await receive())

    @classmethod
    async def opened(cls, **options: Any) -> "Connected":
        self = cls(**options)
        await turn()
        head, _, rest = self.transport.written.partition(b"\r\n\r\n")
        assert b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
        assert rest == b""
        self.transport.written = b""
        assert self.account == ["waits"]
        self.account.clear()
        return self

    def says(self, *frames: bytes) -> None:
        """The peer sends frames, if it is read."""
        assert self.transport.is_reading
        self.socket.data_received(b"".join(frames))

    async def hears(self, *frames: bytes) -> int:
        """The same, as the event loop calls it. Returns how many texts the app has had by then."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def receive() -> None:
            self.says(*frames)
            done.set_result(len(self.texts))

        asyncio.get_running_loop().call_soon(receive)
        return await done

    @property
    def texts(self) -> list[str]:
        return [event["text"] for event in self.events if "text" in event]

    @property
    def end(self) -> int | None:
        """The close code with which the app was told that the connection has ended."""
        return next((e["code"] for e in self.events if e["type"] == "websocket.disconnect"), None)


async def turn() -> None:
    """Let everybody do what can be done now."""
    for _ in range(5):
        await asyncio.sleep(0)


def text(content: str) -> bytes:
    return client_frame(Opcode.TEXT, content.encode())


def ping(payload: bytes = b"") -> bytes:
    return client_frame(Opcode.PING, payload)


def test_socket_of_server_without_extension_is_never_ready() -> None:
    assert socket_of({"type": "websocket"}) is NO_SOCKET
    assert not NO_SOCKET.ready


@on_virtual_time
async def test_app_gets_the_messages_of_the_peer_in_order() -> None:
    c = await Connected.opened()
    c.says(text("one"), text("two"), client_frame(Opcode.BINARY, b"three"))
    await turn()
    await turn()
    assert [event.get("text", event.get("bytes")) for event in c.events] == ["one", "two", b"three"]


@on_virtual_time
async def test_app_that_is_asked_before_it_has_accepted_reads_afterwards() -> None:
    c = Connected()
    c.says(text("early"))
    assert not c.transport.is_reading
    await turn()
    assert c.texts == ["early"]
    assert c.transport.is_reading


@on_virtual_time
async def test_peer_that_sends_small_pieces_of_a_message_is_read_with_rests() -> None:
    c = await Connected.opened()
    message = text("x" * 500)
    for n in range(FREE_READS + 1):
        c.says(message[n : n + 1])
    assert not c.transport.is_reading
    await asyncio.sleep(2 * REST_SECONDS)
    c.says(message[FREE_READS + 1 :])
    await turn()
    assert c.texts == ["x" * 500]
    assert c.transport.is_reading


@on_virtual_time
async def test_small_messages_are_read_without_rests() -> None:
    c = await Connected.opened()
    for n in range(3 * FREE_READS):
        c.says(text(str(n)))
        await turn()
    assert c.texts == [str(n) for n in range(3 * FREE_READS)]


@on_virtual_time
async def test_app_has_a_message_by_the_end_of_the_read_that_brings_it() -> None:
    c = await Connected.opened()
    for n in range(3 * FREE_READS):
        message = text(str(n))
        assert await c.hears(message[:3]) == n
        assert await c.hears(message[3:]) == n + 1
    assert c.texts == [str(n) for n in range(3 * FREE_READS)]
    assert c.transport.is_reading


@on_virtual_time
async def test_app_has_one_message_a_turn_of_those_that_one_read_brings() -> None:
    c = await Connected.opened()
    others_turns: list[int] = []
    assert await c.hears(*(text(str(n)) for n in range(10))) == 1
    while len(c.texts) < 10:
        others_turns.append(len(c.texts))
        await asyncio.sleep(0)
    assert others_turns == list(range(2, 10))


@on_virtual_time
async def test_app_is_told_of_the_end_when_all_is_put_away() -> None:
    """It may go on at once; were it told earlier, it would close what is ending."""
    c = await Connected.opened()
    await c.hears(b"\xff" * 10)  # no frame
    await turn()
    assert c.end == 1002
    opcode, length = c.transport.written[:2]
    assert (opcode, length) == (0x88, len(c.transport.written) - 2), "one close frame"


@on_virtual_time
async def test_what_is_dropped_is_read_with_pauses() -> None:
    c = await Connected.opened()
    c.says(b"\xff" * 10)  # no frame
    c.says(b"x" * 100_000)
    assert not c.transport.is_reading
    await asyncio.sleep(DROP_PAUSE_SECONDS)
    assert c.transport.is_reading


@on_virtual_time
async def test_server_is_told_whether_it_waits_for_the_peer() -> None:
    c = await Connected.opened()
    message = text("one")
    c.says(ping(), message[:3])
    assert c.account == []
    c.says(message[3:])
    assert c.account == ["speaks"]
    c.transport.fill()
    c.transport.drain()
    assert c.account == ["speaks", "stalls", "speaks"]


@on_virtual_time
async def test_first_message_is_smaller_than_later_ones() -> None:
    """It comes from a client that nobody knows yet."""
    shared = WebSockets(2 * FIRST_MESSAGE)
    hello, large = "x" * FIRST_MESSAGE, "x" * (FIRST_MESSAGE + 1)
    c = await Connected.opened(shared=shared)
    for message in (hello, large):
        c.says(text(message))
        await turn()
    assert c.texts == [hello, large]
    c = await Connected.opened(shared=shared)
    c.says(text(large))
    await turn()
    assert (c.texts, c.end) == ([], 1009)


# Control frames


@on_virtual_time
async def test_each_ping_is_answered() -> None:
    c = await Connected.opened()
    c.says(*[ping(b"%d" % n) for n in range(10)])
    assert c.transport.written == b"".join(pong_frame(b"%d" % n) for n in range(10))


@on_virtual_time
async def test_peer_that_pings_and_reads_nothing_gets_one_pong_when_it_reads_and_is_not_read() -> (
    None
):
    c = await Connected.opened()
    c.transport.fill()
    assert not c.transport.is_reading
    c.socket.data_received(b"".join(ping(b"%d" % n) for n in range(BIG)))  # what was under way
    for _ in range(BIG // FRAMES_PER_TURN + 1):
        await asyncio.sleep(0)
    assert c.transport.written == b""
    assert not c.transport.is_reading
    c.transport.drain()
    assert c.transport.written == pong_frame(b"%d" % (BIG - 1))
    assert c.transport.is_reading


@on_virtual_time
async def test_flood_of_pings_gets_a_few_pongs_a_turn_and_is_not_read_meanwhile() -> None:
    c = await Connected.opened()
    c.says(ping(b"x") * BIG)
    assert c.transport.written == pong_frame(b"x") * PONGS_PER_TURN
    assert not c.transport.is_reading
    while not c.transport.is_reading:
        before = c.transport.written
        await asyncio.sleep(0)
        assert len(c.transport.written) <= len(before) + PONGS_PER_TURN * len(pong_frame(b"x"))


@on_virtual_time
async def test_ping_is_answered_while_a_message_before_it_is_worked_on() -> None:
    c = await Connected.opened()
    c.may_receive.clear()
    c.says(text("one"))
    await turn()
    c.says(ping(b"p"))
    assert c.transport.written == pong_frame(b"p")


FLOODS = {
    "texts": text("x"),
    "pings": ping(),
    "pongs": client_frame(Opcode.PONG),
    "empty fragments": client_frame(Opcode.CONT, fin=False),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_flood_of_tiny_frames_delays_another_device_by_a_turn_at_most(kind: str) -> None:
    @on_virtual_time
    async def test() -> None:
        flooder, other = await Connected.opened(), await Connected.opened()
        begin = client_frame(Opcode.TEXT, fin=False) if "fragment" in kind else b""
        flooder.says(begin, FLOODS[kind] * BIG)
        for n in range(1, 20):
            taken = len(flooder.texts)
            other.says(text("mine"))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert len(other.texts) == n
            assert len(flooder.texts) - taken <= 2
            assert not flooder.transport.is_reading

    test()


@on_virtual_time
async def test_peer_is_not_read_while_two_messages_wait_for_the_app() -> None:
    c = await Connected.opened()
    c.says(text("first"))
    await turn()
    c.may_receive.clear()
    c.says(text("one"))
    await turn()
    assert c.transport.is_reading
    c.says(text("two"), text("three"))
    await turn()
    assert not c.transport.is_reading
    c.may_receive.set()
    for _ in range(3):
        await turn()
    assert c.texts == ["first", "one", "two", "three"]
    assert c.transport.is_reading


# Writing


@on_virtual_time
async def test_socket_is_ready_while_the_peer_takes_what_is_written() -> None:
    c = await Connected.opened()
    assert c.socket.ready
    c.socket.write(["hello", "world"])
    assert c.transport.written == text_frame("hello") + text_frame("world")
    c.transport.fill()
    assert not c.socket.ready
    c.transport.drain()
    assert c.socket.ready
    c.transport.abort()
    assert not c.socket.ready


@on_virtual_time
async def test_app_waits_with_its_message_until_the_peer_takes_it() -> None:
    c = await Connected.opened()
    c.transport.fill()
    sending = asyncio.create_task(c.socket.send({"type": "websocket.send", "text": "x"}))
    await turn()
    assert c.transport.written == b""
    c.transport.drain()
    await sending
    assert c.transport.written == text_frame("x")


@on_virtual_time
async def test_app_that_waits_is_told_that_the_peer_has_gone() -> None:
    c = await Connected.opened()
    c.transport.fill()
    sending = asyncio.create_task(c.socket.send({"type": "websocket.send", "text": "x"}))
    await turn()
    c.transport.abort()
    with pytest.raises(ClientDisconnected):
        await sending
    assert c.end == 1006


# The end


@pytest.mark.parametrize("defect", VIOLATIONS)
def test_violation_is_a_close_code_and_a_count_and_no_log(
    defect: str, caplog: pytest.LogCaptureFixture
) -> None:
    @on_virtual_time
    async def test() -> None:
        data, code = VIOLATIONS[defect]
        c = await Connected.opened()
        c.says(data)
        await turn()
        frame = c.transport.written
        assert (frame[0], int.from_bytes(frame[2:4], "big")) == (0x88, code)
        assert (c.end, c.shared.violations, caplog.records) == (code, 1, [])
        assert c.transport.has_written_eof
        c.says(b"what it says now is dropped" * 1000)
        await asyncio.sleep(LINGER_SECONDS + 0.1)
        assert c.transport.is_closed
        assert c.connections == c.tasks == set()
        assert c.account == ["violated", "ends", "left"]

    test()


@on_virtual_time
async def test_close_of_the_peer_is_answered_with_its_code_after_what_it_said_before() -> None:
    c = await Connected.opened()
    c.says(text("last"), client_frame(Opcode.CLOSE, b"\x0b\xb8bye"), text("more"), ping())
    await turn()
    await turn()
    assert c.transport.written == close_frame(3000)
    assert c.transport.has_written_eof
    assert (c.texts, c.end) == (["last"], 3000)


@on_virtual_time
async def test_close_without_a_code_is_answered_without_one() -> None:
    c = await Connected.opened()
    c.says(client_frame(Opcode.CLOSE))
    await turn()
    assert c.transport.written == close_frame(1005) == b"\x88\0"
    assert c.end == 1005


@on_virtual_time
async def test_fragments_before_a_close_are_no_message() -> None:
    """Autobahn 7.1.5, which uvicorn's WebSocket failed."""
    c = await Connected.opened()
    fragment = client_frame(Opcode.TEXT, b"fragment1", fin=False)
    c.says(fragment, client_frame(Opcode.CLOSE, b"\x03\xe8"), client_frame(Opcode.CONT, b"2"))
    await turn()
    assert c.transport.written == close_frame(1000)
    assert (c.texts, c.end) == ([], 1000)


@on_virtual_time
async def test_peer_has_some_time_to_answer_a_close_and_what_it_says_before_is_dropped() -> None:
    c = await Connected.opened()
    await c.socket.send({"type": "websocket.close", "code": 4001, "reason": "why"})
    assert c.transport.written == close_frame(4001, "why")
    await turn()
    assert c.end == 4001
    c.says(text("dropped") * 3, ping())
    assert not c.transport.has_written_eof
    c.says(client_frame(Opcode.CLOSE, b"\x0f\xa1"))
    assert c.transport.has_written_eof
    assert c.transport.written == close_frame(4001, "why")
    assert c.texts == []


@on_virtual_time
async def test_peer_that_does_not_answer_a_close_is_disconnected() -> None:
    c = await Connected.opened()
    await c.socket.send({"type": "websocket.close"})
    await asyncio.sleep(CLOSE_SECONDS - 0.1)
    assert not c.transport.is_closed
    await asyncio.sleep(0.2)
    assert c.transport.is_closed


@on_virtual_time
async def test_peer_that_ends_its_side_and_does_not_read_is_disconnected() -> None:
    c = await Connected.opened()
    c.transport.fill()
    c.socket.eof_received()
    await turn()
    assert c.end == 1006
    await asyncio.sleep(LINGER_SECONDS + 0.1)
    assert c.transport.is_closed


@on_virtual_time
async def test_app_that_ends_without_a_close_closes() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})

    c = Connected(app)
    await turn()
    assert c.transport.written.endswith(close_frame(1000))


@on_virtual_time
async def test_app_that_ends_while_the_peer_takes_nothing_aborts() -> None:
    c = await Connected.opened()
    c.transport.fill()
    for task in c.tasks:
        task.cancel()
    await turn()
    assert c.transport.is_closed


@on_virtual_time
async def test_defect_of_the_app_is_logged_and_closes(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.accept"})
        raise ValueError("a defect")

    c = Connected(app)
    await turn()
    assert c.transport.written.endswith(close_frame(1011))
    assert [record.message for record in caplog.records] == ["the app of a WebSocket failed"]
    caplog.clear()


@on_virtual_time
async def test_app_that_does_not_accept_refuses() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close"})

    c = Connected(app)
    await turn()
    assert c.transport.written.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert c.transport.has_written_eof


@on_virtual_time
async def test_app_may_refuse_with_an_answer() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"retry-after", b"1"), (b"content-length", b"4")]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"fu", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b"ll"})

    c = Connected(app)
    await turn()
    head, _, body = c.transport.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n")
    assert head.count(b"content-length") == 1
    assert body == b"full"


@on_virtual_time
async def test_stop_of_the_server_closes() -> None:
    c = await Connected.opened()
    c.socket.shutdown()
    await turn()
    assert c.transport.written == close_frame(1012)
    assert (c.end, c.transport.is_closed, c.connections) == (1012, True, set())
    assert c.account == ["ends", "left"]


# Pings


@on_virtual_time
async def test_peer_that_answers_pings_stays_and_one_that_does_not_is_closed() -> None:
    shared = WebSockets(MAX_SIZE)
    alive, dead = await Connected.opened(shared=shared), await Connected.opened(shared=shared)
    await asyncio.sleep(PING_SECONDS + 0.1)
    assert alive.transport.written == dead.transport.written == PING_FRAME
    alive.says(client_frame(Opcode.PONG))
    await asyncio.sleep(PING_SECONDS)
    assert alive.transport.written == PING_FRAME * 2
    assert dead.transport.written == PING_FRAME + close_frame(1011, "a ping was not answered")
    assert (alive.end, dead.end) == (None, 1011)
    assert shared.violations == 0


@on_virtual_time
async def test_peer_that_takes_nothing_is_not_pinged() -> None:
    c = await Connected.opened()
    c.transport.fill()
    await asyncio.sleep(3 * PING_SECONDS)
    assert (c.transport.written, c.end) == (b"", None)


@on_virtual_time
async def test_peer_whose_pong_could_not_be_read_is_not_dead() -> None:
    c = await Connected.opened()
    c.may_receive.clear()
    c.says(text("one"), text("two"), text("three"))
    await turn()
    assert not c.transport.is_reading
    await asyncio.sleep(3 * PING_SECONDS)
    c.may_receive.set()
    await turn()
    assert c.transport.written == PING_FRAME * 3
    assert c.texts == ["one", "two", "three"]
    assert (c.transport.is_reading, c.end) == (True, None)


@on_virtual_time
async def test_all_sockets_share_one_timer_and_none_is_left() -> None:
    shared = WebSockets(MAX_SIZE)
    with counting_timers() as timers:
        connected = [await Connected.opened(shared=shared) for _ in range(100)]
        assert len(timers) == 1
    for c in connected:
        c.transport.abort()
    await asyncio.sleep(PING_SECONDS)
    assert all(c.transport.written == b"" for c in connected)


@contextmanager
def counting_timers() -> Iterator[list[float]]:
    """The delays of the timers that are set inside the block."""
    loop: Any = asyncio.get_running_loop()
    delays: list[float] = []
    call_at = loop.call_at

    def counted(when: float, *arguments: Any, **options: Any) -> Any:
        delays.append(when)
        return call_at(when, *arguments, **options)

    loop.call_at = counted
    try:
        yield delays
    finally:
        loop.call_at = call_at
