"""Keeps a device connected: comes back for ever, and carries out what each conversation decides.

What is to be said is ClientSession's to decide, and what becomes of the replica is Replica's. Here
are the two hands of the transport, the clock that gives up on a silent node, and the patience
between one connection and the next.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeAlias
from urllib.parse import urlsplit

import structlog
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    WebSocketException,
)

from gregor.client.events import Event, Offline, Online, PassedBy, Synced
from gregor.client.replica import Replica
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage, Message, OutOfBandMessage, value_of
from gregor.core.state import Snapshot
from gregor.errors import GregorError, Malformed, SetupError, Turn, Unavailable, named
from gregor.protocol import client as session
from gregor.protocol.client import ClientSession, Phase
from gregor.protocol.frames import MAX_FRAME, PAGE_BYTES, Error, Problem, Result
from gregor.protocol.server import Send

log = structlog.get_logger("gregor.client")

ANSWER_SECONDS = 10.0  # how long a node may be silent while it is its turn to speak
ACK_SECONDS = 60.0  # how long it may take to store what we sent
PING_SECONDS = 20.0
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 60.0

Operation: TypeAlias = Callable[[Replica, Time], Replica]


class Disconnected(Exception):
    """The transport carries nothing more, or cannot be had. A new connection may do better;
    `retry_after` says in how many seconds, if the other side has said so."""

    def __init__(self, code: int, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason or f"closed with code {code}")
        self.code = code
        self.reason = reason or f"closed with code {code}"
        self.retry_after = retry_after


class Transport(Protocol):
    """One connection to a node. What is sent arrives in order, or not at all."""

    async def send(self, text: str) -> None:
        """Send a frame, and wait while the connection takes no more. Raises Disconnected."""
        ...

    async def receive(self) -> str:
        """The next frame. Raises Disconnected when no more will come."""
        ...

    async def close(self) -> None:
        """Let go of the connection. Twice-safe; it does not raise, nor wait for long."""
        ...


Connect: TypeAlias = Callable[[], Awaitable[Transport]]
"""Makes a new connection. Raises Disconnected or OSError if that cannot be."""

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""Who we are; or whom to ask for it, anew for each connection, which may raise Unavailable."""


class Device(Protocol):
    """Whose connection it is: the replica, and those who listen."""

    @property
    def replica(self) -> Replica: ...

    async def change(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> None:
        """Put the operation's replica in place of the present one, once it is saved, and tell
        how that changes what is seen. `messages` are those that may have done it."""
        ...

    def tell(self, *events: Event) -> None: ...


class _Passing(NamedTuple):
    """An out-of-band message, and who waits to hear that it has gone."""

    message: OutOfBandMessage
    gone: "asyncio.Future[None]"


class _Backoff:
    """How long to wait before the next attempt: at random within a time that doubles, so that
    many devices do not come back together. It is at most twice as long as it has been in vain by
    then, lest a few attempts that chance made quick turn a short outage into a long one."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._attempts = 0
        self._since = 0.0

    def pause(self) -> float:
        now = asyncio.get_running_loop().time()
        if not self._attempts:
            self._since = now
        doubled = SHORTEST_PAUSE * 2.0 ** min(self._attempts, 20)
        bearable = max(SHORTEST_PAUSE, 2 * (now - self._since))
        self._attempts += 1
        return self._jitter() * min(LONGEST_PAUSE, doubled, bearable)

    def reset(self) -> None:
        self._attempts = 0


class Connection:
    """One device's connection to its nodes, over any number of transports, one at a time.

    `failure` is set once there is no use in trying again: the token does not hold, the node asks
    us to stop, or the store is another user's.
    """

    def __init__(
        self, device: Device, connect: Connect, token: Token, jitter: Callable[[], float]
    ) -> None:
        self.online = False
        self.mismatches = 0
        self.failure: GregorError | None = None
        self._device = device
        self._connect = connect
        self._token = token
        self._jitter = jitter
        self._backoff = _Backoff(jitter)
        self._refused = False  # whether the last token did not hold
        self._return_at: float | None = None  # the moment at which a leaving node wants us back
        self._conversation: _Conversation | None = None

    @property
    def synced(self) -> bool:
        """Whether the replica follows the node at this moment."""
        talk = self._conversation
        return self.online and talk is not None and talk.session.phase is Phase.LIVE

    async def run(self) -> None:
        """Connect, and come back whenever the connection is lost. Returns on failure."""
        while True:
            end = await self._converse()
            self._went_offline(end)
            if self.failure is not None:
                return
            await asyncio.sleep(self._pause(end))

    def wake(self) -> None:
        """Something waits in the outbox."""
        if self._conversation is not None:
            self._conversation.wake()

    async def pass_by(self, message: OutOfBandMessage) -> None:
        """Send an out-of-band message, once. Raises Unavailable if there is no connection, or if
        it breaks before the node has answered: then the message may have gone, or not."""
        if self._conversation is None or not self.online:
            raise Unavailable("there is no connection, and out-of-band messages do not wait")
        await self._conversation.pass_by(message)

    async def _converse(self) -> Disconnected:
        """Hold one conversation, and say how it ended."""
        try:
            token = await self._fresh_token()
            async with asyncio.timeout(ANSWER_SECONDS):
                transport = await self._connect()
        except Disconnected as end:
            return end
        except (OSError, Unavailable) as error:
            return Disconnected(0, str(error) or "no answer")
        try:
            conversation = _Conversation(
                self, self._device, transport, token, _Backoff(self._jitter)
            )
            self._conversation = conversation
            return await conversation.run()
        finally:
            self._conversation = None
            await transport.close()

    async def _fresh_token(self) -> str:
        token = self._token if isinstance(self._token, str) else self._token()
        return token if isinstance(token, str) else await token

    # What a conversation reports

    def welcomed(self) -> None:
        self._refused = False

    def is_synced(self) -> None:
        """The replica has been brought to the present."""
        self._backoff.reset()
        events: list[Event] = [Synced()] if self.online else [Online(), Synced()]
        self.online = True
        self._device.tell(*events)

    def leaving(self, within_ms: int) -> float:
        """The node is about to leave. The moment at which to come back."""
        within = self._jitter() * within_ms / 1000
        self._return_at = asyncio.get_running_loop().time() + within
        return self._return_at

    def fail(self, error: GregorError) -> None:
        """The node says what is wrong. Whether another attempt may help is the error's turn."""
        match error.turn:
            case Turn.STOP:
                self.failure = error
            case Turn.REAUTHENTICATE:
                # With a token that anybody can make anew, once; it may just have expired.
                if self._refused or isinstance(self._token, str):
                    self.failure = error
                self._refused = True

    def _went_offline(self, end: Disconnected) -> None:
        was_online, self.online = self.online, False
        if self.failure is not None:
            log.error("the client stops trying", code=self.failure.code, reason=end.reason)
        if was_online or self.failure is not None:
            self._device.tell(Offline(end.reason, final=self.failure is not None))

    def _pause(self, end: Disconnected) -> float:
        """How long to stay away, in seconds."""
        if self._return_at is not None:
            left = self._return_at - asyncio.get_running_loop().time()
            self._return_at = None
            return max(0.0, left)
        return (end.retry_after or 0.0) + self._backoff.pause()


class _Conversation:
    """One transport, from hello to its end: a reading hand, and one that sends the outbox."""

    def __init__(
        self,
        connection: Connection,
        device: Device,
        transport: Transport,
        token: str,
        backoff: _Backoff,
    ) -> None:
        replica = device.replica
        self.session = ClientSession(token, replica.device_id, replica.cursor)
        self._connection = connection
        self._device = device
        self._transport = transport
        self._backoff = backoff
        self._welcome = False  # whether this is the user whose state we hold
        self._most = 1  # messages in a consume
        self._window: list[Message] = []
        self._answer: asyncio.Future[bool] | None = None
        self._passing: deque[_Passing] = deque()
        self._something_to_send = asyncio.Event()
        self._return_at: float | None = None

    async def run(self) -> Disconnected:
        try:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send_outbox())
                end = await self._read()
                sending.cancel()
        finally:
            for passing in self._passing:
                if not passing.gone.done():
                    passing.gone.set_exception(Unavailable("the connection was lost meanwhile"))
        return end

    def wake(self) -> None:
        self._something_to_send.set()

    async def pass_by(self, message: OutOfBandMessage) -> None:
        passing = _Passing(message, asyncio.get_running_loop().create_future())
        self._passing.append(passing)
        self.wake()
        await passing.gone

    # The reading hand

    async def _read(self) -> Disconnected:
        """Read until the conversation ends, and say why it did."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS) as patience:
                await self._carry_out(self.session.opened())
                while True:
                    frame = await self._transport.receive()
                    await self._carry_out(self.session.receive(frame))
                    patience.reschedule(self._patience())
        except Disconnected as end:
            return end
        except TimeoutError:
            return Disconnected(0, "the node is silent" if self._return_at is None else "it leaves")
        except (Malformed, Unavailable) as error:
            log.warning("ended a conversation", code=error.code, reason=error.message)
            return Disconnected(0, error.message)

    def _patience(self) -> float | None:
        """When to wait no longer: a node that owes us a sync has to say something."""
        if self.session.phase is not Phase.LIVE:
            return asyncio.get_running_loop().time() + ANSWER_SECONDS
        return self._return_at

    async def _carry_out(self, effects: Sequence[session.Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    await self._transport.send(effect.text)
                case session.Welcomed(uid, messages):
                    await self._welcomed(uid, messages)
                case session.Apply(messages, cursor):
                    await self._apply(messages, cursor)
                case session.Replace(snapshot, cursor):
                    await self._replace(snapshot, cursor)
                case session.Compare(as_of, hash_):
                    await self._compare(as_of, hash_)
                case session.Acked(results):
                    await self._acked(results)
                case session.Deferred(error):
                    await self._deferred(error)
                case session.PassedBy(system, body):
                    self._device.tell(PassedBy(system, value_of(body)))
                case session.Failed(error):
                    self._fail(_error(error))
                case session.Reconnect(within_ms):
                    self._return_at = self._connection.leaving(within_ms)

    async def _welcomed(self, uid: UID, messages: int) -> None:
        try:
            await self._device.change(lambda replica, now: replica.belonging_to(uid))
        except SetupError as error:
            self._fail(error)
        self._connection.welcomed()
        self._welcome, self._most = True, messages
        self.wake()

    async def _apply(self, messages: Sequence[InBandMessage], cursor: Time) -> None:
        await self._device.change(
            lambda replica, now: replica.told(messages, cursor, now), messages
        )

    async def _replace(self, snapshot: Snapshot, cursor: Time) -> None:
        await self._device.change(lambda replica, now: replica.replaced(snapshot, cursor))

    async def _compare(self, as_of: Time, hash_: str) -> None:
        equal = self._device.replica.agrees(as_of, hash_)
        if not equal:
            self._connection.mismatches += 1
            log.warning("the replica differs from the node's state", cursor=self.session.cursor)
        await self._carry_out(self.session.compared(equal))
        if self.session.phase is Phase.LIVE:
            await self._device.change(lambda replica, now: replica.forget(now))
            self._connection.is_synced()

    def _fail(self, error: GregorError) -> None:
        self._connection.fail(error)
        raise Disconnected(error.close_code, error.message)

    # The sending hand

    async def _send_outbox(self) -> None:
        """Send what waits, one window after another, each when the one before is answered."""
        with suppress(Disconnected):  # the reading hand hears of it too
            while True:
                self._window = self._next_window()
                if not self._window:
                    self._something_to_send.clear()
                    await self._something_to_send.wait()
                elif not await self._deliver():
                    await self._transport.close()

    def _next_window(self) -> list[Message]:
        if not self._welcome or not self.session.may_consume:
            return []
        while self._passing and self._passing[0].gone.done():
            self._passing.popleft()  # whoever waited has given up
        if self._passing:
            return [self._passing[0].message]
        # A frame has a size too, and a body may take much of it.
        return [*self._device.replica.window(self._most, PAGE_BYTES)]

    async def _deliver(self) -> bool:
        """Send the window, and wait for its fate. False if nothing was heard of it."""
        self._answer = asyncio.get_running_loop().create_future()
        await self._carry_out(self.session.consume(self._window))
        try:
            async with asyncio.timeout(ACK_SECONDS):
                taken = await self._answer
        except TimeoutError:
            return False
        if not taken:
            await asyncio.sleep(self._backoff.pause())
        return True

    async def _acked(self, results: Sequence[Result]) -> None:
        window = self._window
        if len(results) != len(window):
            raise Malformed(f"{len(results)} results for {len(window)} messages")
        pairs = zip(window, results, strict=True)
        written = [(m, r) for m, r in pairs if isinstance(m, InBandMessage)]
        if written:
            await self._device.change(
                lambda replica, now: replica.acknowledged(written), [m for m, _ in written]
            )
        else:
            self._passed(results[0].error)
        self._backoff.reset()
        self._answered(taken=True)

    def _passed(self, error: Problem | None) -> None:
        passing = self._passing.popleft()
        if passing.gone.done():
            return
        if error is None:
            passing.gone.set_result(None)
        else:
            passing.gone.set_exception(_error(error))

    async def _deferred(self, error: Error) -> None:
        """The window was not taken. Later, if that may help; otherwise it is cut in halves until
        the one message is found that stands in the way of all others."""
        problem = Problem(error.code, error.message, error.turn, error.field)
        if error.turn is Turn.STOP and len(self._window) == 1:
            await self._acked([Result("rejected", error=problem)])
            return
        if error.turn is Turn.STOP:
            self._most = len(self._window) // 2
        if isinstance(self._window[0], OutOfBandMessage):
            self._passed(problem)  # it goes once
        log.info("the node defers what was sent", code=error.code, reason=error.message)
        self._answered(taken=error.turn is Turn.STOP)

    def _answered(self, *, taken: bool) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(taken)


def _error(problem: Problem | Error) -> GregorError:
    return named(problem.code, problem.message, problem.field, problem.turn)


# The transport that is used unless another is given


class WebSocket:
    """A Transport over a WebSocket. Its own pings notice a node that has gone silently."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send(text)
        except ConnectionClosed as error:
            raise _closed(error) from error

    async def receive(self) -> str:
        try:
            return await self._websocket.recv(decode=True)
        except ConnectionClosed as error:
            raise _closed(error) from error
        except UnicodeError as error:
            raise Disconnected(1007, "the node sent what is not text") from error

    async def close(self) -> None:
        await self._websocket.close()

    def abort(self) -> None:
        """Break the connection without a word, as a network does that is lost. Twice-safe."""
        self._websocket.transport.abort()


def websocket(url: str) -> Connect:
    """How to connect to the server at this address, which is http(s):// or ws(s)://."""
    address = websocket_url(url)
    # The proxy of the environment has no way to this machine.
    loopback = urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")

    async def connect() -> Transport:
        try:
            connection = await connect_websocket(
                address,
                compression=None,
                max_size=8 * MAX_FRAME,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                close_timeout=1.0,
                proxy=None if loopback else True,
            )
        except InvalidStatus as error:
            raise Disconnected(
                error.response.status_code,
                f"the server answered {error.response.status_code} to the handshake",
                _seconds(error.response.headers.get("Retry-After")),
            ) from error
        except (WebSocketException, InvalidHandshake) as error:
            raise Disconnected(0, str(error)) from error
        return WebSocket(connection)

    return connect


def websocket_url(url: str) -> str:
    """The address at which the server at `url` speaks with devices. SetupError if it is none."""
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(urlsplit(url).scheme)
    if scheme is None or not urlsplit(url).hostname:
        raise SetupError(f"{url!r} is not a server's address such as http://127.0.0.1:9911")
    parts = urlsplit(url)._replace(scheme=scheme, query="", fragment="")
    return parts.geturl().rstrip("/") + "/v1/connect"


def _closed(error: ConnectionClosed) -> Disconnected:
    if error.rcvd is None:
        return Disconnected(1006, "the connection broke")
    return Disconnected(error.rcvd.code, error.rcvd.reason)


def _seconds(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None
