"""The WebSocket of `gregor serve`: the thin shell around the frames, as ASGI and as a Socket.

    transport ──▶ FrameReader ──▶ one message at a time ──▶ receive      the app
    transport ◀── frames ◀── send, or write while it is ready

Whatever a peer does, it holds a bounded amount of memory, and of each turn of the event loop. It is
not read while it does not take what it has asked for, nor while a message of it waits for the app,
and with pauses if it sends little at a time. Pings of a peer are answered as far as it takes the
answers; of those that wait, the last one is. A violation of the protocol ends the connection with
its close code, and is counted, not logged.

An ASGI application can only `await send(…)`. To broadcast one message to a thousand devices, it
would have to wake up a thousand tasks. This WebSocket passes itself to the application in
`scope["extensions"]`, so that the application can write directly. Another ASGI server does not
offer it, and the application sends as usual.
"""

import asyncio
import logging
from collections.abc import Awaitable, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import Any, Protocol

from starlette.types import Message
from uvicorn.protocols.utils import ClientDisconnected

from gregor.log_event import LogEvent
from gregor.node.channel import NO_SOCKET, Socket
from gregor.prompt_future import PromptFuture
from gregor.protocol.frames import MAX_FRAME
from gregor.server.half_close import end_output
from gregor.server.metrics import Reading, counter
from gregor.server.read_pace import DROP_PAUSE_SECONDS, ReadPace
from gregor.server.timer_wheel import Slot, TimerWheel
from gregor.server.websocket_frames import (
    ABNORMAL,
    FAILED,
    NORMAL,
    PING_FRAME,
    RESTART,
    BadFrame,
    FrameReader,
    PeerCloses,
    Ping,
    Received,
    binary_frame,
    close_frame,
    pong_frame,
    text_frame,
)
from gregor.server.websocket_handshake import refusing, switching

log = logging.getLogger("gregor.server")

EXTENSION = "gregor.socket"
PING_SECONDS = 20.0  # between pings, and for the answer to one
CLOSE_SECONDS = 10.0  # for the peer's answer to a close frame
LINGER_SECONDS = 2.0  # for the peer to end the connection after both sides have said all
FIRST_MESSAGE = 32 * 1024  # bytes: a hello; it comes from a client that nobody knows yet
FRAMES_PER_TURN = 64  # of one peer, in one turn of the event loop
PONGS_PER_TURN = 16


def socket_of(scope: Mapping[str, Any]) -> Socket:
    """The socket that the ASGI server offers, or NO_SOCKET."""
    socket: Socket = scope.get("extensions", {}).get(EXTENSION, NO_SOCKET)
    return socket


class WebSockets:
    """What all WebSockets of a server share: the size of a message, the timer of pings, a count."""

    def __init__(self, max_size: int = MAX_FRAME, ping_seconds: float = PING_SECONDS) -> None:
        self.max_size = max_size
        self.pings = TimerWheel(ping_seconds)
        self.violations = 0  # of the protocol, by peers

    def readings(self) -> Iterator[Reading]:
        yield counter(
            "websocket_violations",
            "WebSockets closed because their peer violated the protocol",
            lambda: self.violations,
        )


class PeerAccount(Protocol):
    """What a server keeps of the client of a WebSocket, such as the count of its address."""

    def waits(self) -> None:
        """The client may speak, and has said nothing yet."""
        ...

    def speaks(self) -> None:
        """The client has sent a message, or takes again what is sent to it."""
        ...

    def stalls(self) -> None:
        """The client does not take what is sent to it."""
        ...

    def ends(self) -> None:
        """All is said. The client has a little time to take it."""
        ...

    def violated(self) -> None:
        """The client has violated the protocol. Its connection is about to end."""
        ...

    def left(self) -> None:
        """The connection has ended. Is called once."""
        ...


class NoAccount:
    """Nothing is kept."""

    def waits(self) -> None:
        pass

    def speaks(self) -> None:
        pass

    def stalls(self) -> None:
        pass

    def ends(self) -> None:
        pass

    def violated(self) -> None:
        pass

    def left(self) -> None:
        pass


NO_ACCOUNT = NoAccount()


class Stage(Enum):
    """How far a WebSocket is."""

    REQUESTED = auto()  # the app has not yet accepted it
    REFUSING = auto()  # the app has begun to send its refusal
    OPEN = auto()
    CLOSING = auto()  # a close frame was sent; that of the peer is still to come
    ENDING = auto()  # nothing is sent or read any more


class DirectWebSocket(asyncio.Protocol):
    """One connection, which the HTTP protocol hands over. It offers itself as a Socket to the
    application under EXTENSION."""

    __slots__ = (
        "_account",
        "_connections",
        "_deadline",
        "_disconnected",
        "_event",
        "_is_reading",
        "_key",
        "_loop",
        "_more_due",
        "_pace",
        "_reader",
        "_refusal",
        "_refusal_body",
        "_resting",
        "_shared",
        "_silent",
        "_slot",
        "_stage",
        "_tasks",
        "_transport",
        "_unanswered",
        "_waiter",
        "_writable",
    )

    def __init__(
        self,
        shared: WebSockets,
        transport: asyncio.Transport,
        *,
        key: bytes,
        connections: set[Any],
        tasks: set[asyncio.Task[None]],
        account: PeerAccount = NO_ACCOUNT,
    ) -> None:
        """The `connections` and `tasks` are those that uvicorn waits for when it stops."""
        self._loop = asyncio.get_running_loop()
        self._shared = shared
        self._transport = transport
        self._key = key  # of the handshake
        self._connections = connections
        self._tasks = tasks
        self._account = account
        self._stage = Stage.REQUESTED
        self._refusal: tuple[int, list[tuple[bytes, bytes]]] | None = None
        self._refusal_body = b""
        self._reader = FrameReader(min(FIRST_MESSAGE, shared.max_size))
        self._pace = ReadPace()
        self._resting: asyncio.TimerHandle | None = None  # while it is not read because of its pace
        self._event: Message | None = {"type": "websocket.connect"}  # that the app gets next
        self._disconnected: Message | None = None  # the event after which no other comes
        self._waiter: PromptFuture[None] | None = None  # the app, while there is no event
        self._is_reading = True
        self._more_due = False  # whether frames that are here are taken in the next turn
        self._writable: asyncio.Event | None = None  # only while the transport takes nothing
        self._unanswered: Ping | None = None
        self._silent = False  # whether nothing has come since the last ping of ours
        self._slot: Slot | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def start(self, app: Any, scope: dict[str, Any]) -> None:
        """Run the application for this connection, in a task."""
        scope["extensions"][EXTENSION] = self
        self._connections.add(self)
        task = self._loop.create_task(self._run(app(scope, self.receive, self.send)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, application: Awaitable[None]) -> None:
        code = FAILED
        try:
            await application
            code = NORMAL
        except ClientDisconnected:
            pass
        except Exception:
            log.exception(LogEvent("the app of a WebSocket failed"))
        finally:
            self._app_has_ended(code)

    # The app: ASGI

    async def receive(self) -> Message:
        """The next event of the peer. After the last one, it is repeated."""
        while (event := self._event or self._disconnected) is None:
            self._waiter = PromptFuture(loop=self._loop)
            await self._waiter
        self._event = None
        if self._reader.has_bytes:
            self._take_more_soon()
        return event

    async def send(self, event: Message) -> None:
        """Carry out an event of the app, once the transport accepts data. Raises
        ClientDisconnected, which is an OSError, if the connection has ended."""
        if self._writable is not None:
            await self._writable.wait()
        match self._stage, event["type"]:
            case Stage.OPEN, "websocket.send":
                text = event.get("text")
                self._write(binary_frame(event["bytes"]) if text is None else text_frame(text))
            case Stage.OPEN, "websocket.close":
                self._close(event.get("code") or NORMAL, event.get("reason") or "")
            case Stage.REQUESTED, "websocket.accept":
                self._accept(event)
            case Stage.REQUESTED, "websocket.close":
                self._refuse(403)
            case Stage.REQUESTED, "websocket.http.response.start":
                self._refusal = event["status"], list(event.get("headers", ()))
                self._stage = Stage.REFUSING
            case Stage.REFUSING, "websocket.http.response.body" if self._refusal is not None:
                self._refusal_body += event.get("body", b"")
                if not event.get("more_body", False):
                    self._refuse(*self._refusal, self._refusal_body)
            case ((Stage.CLOSING | Stage.ENDING), _):
                raise ClientDisconnected
            case stage, type_:
                raise RuntimeError(f"the app sent {type_} to a WebSocket that is {stage.name}")

    def _accept(self, event: Message) -> None:
        headers = list(event.get("headers", ()))
        if subprotocol := event.get("subprotocol"):
            headers.append((b"Sec-WebSocket-Protocol", subprotocol.encode()))
        self._write(switching(self._key, headers))
        self._stage = Stage.OPEN
        self._account.waits()
        self._slot = self._shared.pings.join(self)
        self._take()
        self._wake_app()

    def _refuse(
        self, status: int, headers: list[tuple[bytes, bytes]] | None = None, body: bytes = b""
    ) -> None:
        self._write(refusing(status, headers or [], body))
        self._end(ABNORMAL)

    def _close(self, code: int, reason: str) -> None:
        """Send a close frame; the peer has some time to answer it."""
        self._write(close_frame(code, reason))
        self._stage = Stage.CLOSING
        self._account.ends()
        self._leave_wheel()
        self._disconnect(code, reason)
        self._abort_in(CLOSE_SECONDS)
        self._regulate()

    def _app_has_ended(self, code: int) -> None:
        match self._stage:
            case Stage.REQUESTED | Stage.REFUSING:
                self._refuse(500)
            case Stage.OPEN if self._writable is not None:  # the peer does not read
                self._transport.abort()
            case Stage.OPEN:
                self._close(code, "")
            case Stage.CLOSING | Stage.ENDING:
                pass

    # The app: Socket

    @property
    def ready(self) -> bool:
        return (
            self._stage is Stage.OPEN
            and self._writable is None
            and not self._transport.is_closing()
        )

    def write(self, texts: Sequence[str]) -> None:
        self._transport.write(b"".join(map(text_frame, texts)))

    # The peer: what it says

    def data_received(self, data: bytes) -> None:
        self._silent = False
        is_dropped = self._stage is Stage.ENDING
        if not is_dropped:
            self._reader.feed(data)
            self._take()
        if self._event is None or is_dropped:
            rest = self._pace.rest(len(data), self._loop.time())
            self._rest(max(rest, DROP_PAUSE_SECONDS if is_dropped else 0))
        self._wake_app()

    def eof_received(self) -> None:
        """The peer ends the connection, or only its side of it, which is the same here. The
        transport then closes itself, as soon as all is written."""
        self._disconnect(ABNORMAL, "")
        self._stage = Stage.ENDING
        self._leave_wheel()
        self._abort_in(LINGER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stage = Stage.ENDING
        self._disconnect(ABNORMAL, "")
        self._connections.discard(self)
        self._account.left()
        self._leave_wheel()
        for timer in (self._deadline, self._resting):
            if timer is not None:
                timer.cancel()
        self._deadline = self._resting = None
        if self._writable is not None:
            self._writable.set()

    def _take(self) -> None:
        """Take frames up to the first message that the app has not received, but not more than a
        turn allows."""
        pings: list[Ping] = []
        for _ in range(FRAMES_PER_TURN):
            if not self._takes_frames:
                break
            match self._next_frame():
                case None:
                    break
                case Ping() as ping:
                    pings.append(ping)
                case PeerCloses(code, reason):
                    self._answer_close(code, reason)
                case str(text) if self._stage is Stage.OPEN:
                    self._pass_on({"type": "websocket.receive", "text": text})
                case bytes(data) if self._stage is Stage.OPEN:
                    self._pass_on({"type": "websocket.receive", "bytes": data})
        else:
            self._take_more_soon()
        self._answer(pings)
        self._regulate()

    @property
    def _takes_frames(self) -> bool:
        """Whether a frame may be taken now: no message waits for the app. While the connection
        is being closed, the app gets no more, so that messages are dropped."""
        match self._stage:
            case Stage.OPEN:
                return self._event is None
            case Stage.CLOSING:
                return True
            case _:
                return False

    def _next_frame(self) -> Received | None:
        try:
            return self._reader.next()
        except BadFrame as violation:
            self._shared.violations += 1
            self._account.violated()
            self._fail(violation.code, violation.reason)
            return None

    def _take_more_soon(self) -> None:
        """Take the next frames in the next turn of the event loop, after those of others."""
        if not self._more_due:
            self._more_due = True
            self._loop.call_soon(self._take_more)

    def _take_more(self) -> None:
        self._more_due = False
        self._take()
        self._wake_app()

    def _answer(self, pings: list[Ping]) -> None:
        if not pings or self._stage is not Stage.OPEN:
            return
        if self._writable is None:
            pongs = (pong_frame(ping.payload) for ping in pings[-PONGS_PER_TURN:])
            self._write(b"".join(pongs))
        else:
            self._unanswered = pings[-1]

    def _answer_close(self, code: int, reason: str) -> None:
        if self._stage is Stage.OPEN:
            self._write(close_frame(code))
        self._end(code, reason)

    def _fail(self, code: int, reason: str) -> None:
        if self._stage is Stage.OPEN:
            self._write(close_frame(code, reason))
        self._end(code, reason)

    # The transport: when it takes data, and when it ends

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # which is known a little before it is lost
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._writable = asyncio.Event()
        if self._stage is Stage.OPEN:
            self._account.stalls()
        self._regulate()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None
            if self._stage is Stage.OPEN:
                self._account.speaks()
        if self._unanswered is not None:
            self._answer([self._unanswered])
            self._unanswered = None
        self._regulate()

    def _regulate(self) -> None:
        """Read from the peer, or do not. At the end, to see that the peer has ended too."""
        match self._stage:
            case Stage.REQUESTED | Stage.REFUSING:
                reads = not self._reader.has_bytes
            case Stage.OPEN | Stage.CLOSING:
                waits = self._more_due or (self._event is not None and self._reader.has_bytes)
                reads = self._writable is None and not waits and self._resting is None
            case Stage.ENDING:
                reads = self._resting is None
        if reads is not self._is_reading and not self._transport.is_closing():
            self._is_reading, self._silent = reads, False
            (self._transport.resume_reading if reads else self._transport.pause_reading)()

    def _rest(self, seconds: float) -> None:
        """Do not read for so long."""
        if seconds and self._resting is None:
            self._resting = self._loop.call_later(seconds, self._rested)
            self._regulate()

    def _rested(self) -> None:
        self._resting = None
        self._regulate()

    def tick(self) -> None:
        """Ping the peer, unless it has not answered the last ping."""
        if self._silent and self._is_reading:
            self._fail(FAILED, "a ping was not answered")
        elif self._writable is None:
            self._silent = True
            self._write(PING_FRAME)

    def shutdown(self) -> None:
        """uvicorn stops: end the connection."""
        match self._stage:
            case Stage.REQUESTED | Stage.REFUSING:
                self._refuse(503)
            case Stage.OPEN:
                self._fail(RESTART, "")
        self._transport.close()

    # The end

    def _end(self, code: int, reason: str = "") -> None:
        """Nothing more is said. The peer is read for a little while, and what it says dropped: to
        close the socket while it still sends would destroy what it has not yet read."""
        self._disconnect(code, reason)
        self._stage = Stage.ENDING
        self._account.ends()
        self._leave_wheel()
        self._abort_in(LINGER_SECONDS)
        if self._transport.is_closing():
            return
        if not end_output(self._transport):
            self._transport.close()
        self._regulate()

    def _disconnect(self, code: int, reason: str) -> None:
        """Let the app know that the connection has ended, after the message that waits for it."""
        if self._disconnected is None:
            self._disconnected = {"type": "websocket.disconnect", "code": code, "reason": reason}
            self._loop.call_soon(self._wake_app)

    def _pass_on(self, event: Message) -> None:
        self._pace.complete()
        self._account.speaks()
        self._reader.max_size = self._shared.max_size
        self._event = event

    def _wake_app(self) -> None:
        """Let the app have what it waits for. It may go on within this call, which is therefore the
        last thing to do."""
        has_event = self._event is not None or self._disconnected is not None
        if has_event and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _leave_wheel(self) -> None:
        if self._slot is not None:
            self._slot.discard(self)
            self._slot = None

    def _abort_in(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, self._transport.abort)
