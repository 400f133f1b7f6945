"""A server and a transport in memory: devices connect to a node without sockets.

The server executes the effects of each ServerSession, as the real server does over WebSockets. A
test can delay frames, lose a frame together with its connection, and break all connections.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

from gregor.client.connection import Disconnected
from gregor.core.message import UID, Message, OutOfBandMessage
from gregor.errors import Unauthenticated, Unavailable
from gregor.interfaces import Caller, Rejected
from gregor.node.node import Node
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Frame, encode
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import Authenticate, CatchUp, ServerSession, Store

MAX_IN_FLIGHT = 64

Delay = Callable[[], float]
Lost = Callable[[str], bool]


def token_is_uid(token: str) -> UID:
    """Authentication for tests: the token is the uid. Raises Unauthenticated if it is empty."""
    if not token:
        raise Unauthenticated("the token is empty")
    return token


def nothing_is_lost(frame: str) -> bool:
    return False


def no_delay() -> float:
    return 0.0


class Pipe:
    """One direction of a connection: an ordered, bounded queue of frames, then a Disconnected."""

    def __init__(self, delay: Delay, lost: Lost) -> None:
        self._delay = delay
        self._lost = lost
        self._frames: deque[str] = deque()
        self._end: Disconnected | None = None
        self._changed = asyncio.Event()

    async def send(self, frame: str) -> None:
        """Queue a frame; wait while the queue is full. Raises Disconnected if the pipe has ended,
        or if the frame is lost, which ends the pipe."""
        delay = self._delay()
        if delay > 0:
            await asyncio.sleep(delay)
        while len(self._frames) >= MAX_IN_FLIGHT and self._end is None:
            await self._wait()
        if self._end is None and self._lost(frame):
            self.end(Disconnected(1006, "the connection broke"))
        if self._end is not None:
            raise self._end
        self._frames.append(frame)
        self._notify()

    async def receive(self) -> str:
        """The next frame. Raises Disconnected when the pipe has ended and its queue is empty."""
        while not self._frames:
            if self._end is not None:
                raise self._end
            await self._wait()
        frame = self._frames.popleft()
        self._notify()
        return frame

    def end(self, reason: Disconnected) -> None:
        """End the pipe: nothing more can be sent, frames in flight still arrive. Idempotent: the
        first reason stays."""
        self._end = self._end or reason
        self._notify()

    def cut(self) -> None:
        """Break the pipe: frames in flight are lost."""
        self._frames.clear()
        self.end(Disconnected(1006, "the connection broke"))

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self) -> None:
        await self._changed.wait()


class MemoryTransport:
    """The device's side of a connection. Implements Transport."""

    def __init__(self, up: Pipe, down: Pipe) -> None:
        self._up = up
        self._down = down

    async def send(self, text: str) -> None:
        try:
            await self._up.send(text)
        except Disconnected as reason:
            self._down.end(reason)
            raise

    async def receive(self) -> str:
        return await self._down.receive()

    async def close(self) -> None:
        self._up.end(Disconnected(1000, "the device closed the connection"))
        self._down.cut()

    def cut(self) -> None:
        self._up.cut()
        self._down.cut()


class MemoryServer:
    """A server in memory for one node. Opened with `async with`, inside the block of its node.

    While `reachable` is False, new connections fail. `delay` is called before each frame and
    returns its delay in seconds. `lost` is called with each frame and returns whether it is lost;
    its connection then breaks.
    """

    def __init__(
        self,
        node: Node,
        *,
        authenticate: Callable[[str], UID] = token_is_uid,
        delay: Delay = no_delay,
        lost: Lost = nothing_is_lost,
    ) -> None:
        self.node = node
        self.reachable = True
        self.delay = delay
        self.lost = lost
        self.connected = 0  # connections so far
        self._authenticate = authenticate
        self._tasks = asyncio.TaskGroup()
        self._connections: dict[_ServerConnection, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.cut_all()
        await self._tasks.__aexit__(*exc_info)

    async def connect(self) -> MemoryTransport:
        """A new connection. Raises Disconnected while the server cannot be reached."""
        if not self.reachable:
            raise Disconnected(0, "the server cannot be reached")
        self.connected += 1
        up = Pipe(self._delay, self._lost)
        down = Pipe(self._delay, self._lost)
        transport = MemoryTransport(up, down)
        connection = _ServerConnection(self.node, self._authenticate, transport, up, down)
        self._connections[connection] = self._tasks.create_task(self._serve(connection))
        return transport

    def cut_all(self) -> None:
        """Break all connections; frames in flight are lost."""
        for connection in self._connections:
            connection.transport.cut()

    def go_away(self, reconnect_after_ms: int) -> None:
        """Send a goaway to all devices, as before a deploy."""
        for connection in self._connections:
            connection.session.go_away(reconnect_after_ms)
            connection.wake()

    async def _serve(self, connection: "_ServerConnection") -> None:
        try:
            await connection.run()
        finally:
            del self._connections[connection]

    def _delay(self) -> float:
        return self.delay()

    def _lost(self, frame: str) -> bool:
        return self.lost(frame)


class _ServerConnection:
    """The server's side of a connection: a Listener with a reader task and a writer task."""

    def __init__(
        self,
        node: Node,
        authenticate: Callable[[str], UID],
        transport: MemoryTransport,
        up: Pipe,
        down: Pipe,
    ) -> None:
        self.session = ServerSession()
        self.transport = transport
        self._node = node
        self._authenticate = authenticate
        self._up = up
        self._down = down
        self._wake = asyncio.Event()

    def publish(self, publication: Publication) -> None:
        self.session.publish(publication)
        self.wake()

    def deliver_out_of_band(self, message: OutOfBandMessage) -> None:
        self.session.deliver_out_of_band(message)
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        async with AsyncExitStack() as attached, asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._write())
            await self._read(attached)
            writer.cancel()

    async def _read(self, attached: AsyncExitStack) -> None:
        while True:
            try:
                frame = await self._up.receive()
            except Disconnected:
                return
            match self.session.receive(frame):
                case Authenticate(token):
                    await self._authenticate_device(token, attached)
                case Store(n, entries):
                    await self._store(n, entries)
            self.wake()

    async def _authenticate_device(self, token: str, attached: AsyncExitStack) -> None:
        try:
            uid = self._authenticate(token)
        except Unauthenticated as error:
            self.session.refuse(error)
            return
        await attached.enter_async_context(self._node.attach(uid, self))
        self.session.authenticated(uid, self._node.clock())

    async def _store(self, n: int, entries: Sequence[Message | Rejected]) -> None:
        caller = Caller(self.session.uid, self.session.device_id)
        try:
            self.session.stored(n, await self._node.inject(caller, entries))
        except Unavailable as error:
            self.session.unavailable(n, error)

    async def _write(self) -> None:
        while True:
            match self.session.next():
                case Send(frame):
                    if not await self._send(frame):
                        return
                case CatchUp(cursor):
                    await self._catch_up(cursor)
                case Close(code, reason):
                    self._down.end(Disconnected(code, reason))
                    self._up.end(Disconnected(code, reason))
                    return
                case None:
                    self._wake.clear()
                    await self._wake.wait()

    async def _send(self, frame: Frame) -> bool:
        try:
            await self._down.send(encode(frame))
        except Disconnected as reason:
            self._up.end(reason)  # ends the reader, too
            return False
        return True

    async def _catch_up(self, cursor: int) -> None:
        session = self.session
        try:
            await self._node.catch_up(session, cursor)
        except Unavailable as error:
            session.refuse(error)
