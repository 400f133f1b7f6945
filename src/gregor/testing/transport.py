"""A node's front door without sockets: devices connect to it in memory.

It carries out what each ServerSession decides, as the server does over WebSockets. A test or a
simulation may delay frames, lose them with their connection, and pull the plug.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Self

from gregor.client.connection import Disconnected
from gregor.core.message import UID, Message, OutOfBandMessage
from gregor.errors import Unauthenticated, Unavailable
from gregor.node import Node
from gregor.protocol.frames import Frame, Result, encode
from gregor.protocol.server import (
    Authenticate,
    CatchUp,
    Close,
    Publication,
    Send,
    ServerSession,
    Store,
)

MOST_IN_FLIGHT = 64

Delay = Callable[[], float]
Lost = Callable[[str], bool]


def token_is_uid(token: str) -> UID:
    """Authentication for tests: everybody is who they say they are."""
    if not token:
        raise Unauthenticated("an empty token names nobody")
    return token


def nothing_is_lost(frame: str) -> bool:
    return False


def no_delay() -> float:
    return 0.0


class Pipe:
    """One direction of a connection: frames in order, so many at most, then a reason to end."""

    def __init__(self, delay: Delay, lost: Lost) -> None:
        self._delay = delay
        self._lost = lost
        self._frames: deque[str] = deque()
        self._end: Disconnected | None = None
        self._moved = asyncio.Event()

    async def send(self, frame: str) -> None:
        """Raises Disconnected if the pipe has ended. A frame that is lost ends it."""
        delay = self._delay()
        if delay > 0:
            await asyncio.sleep(delay)
        while len(self._frames) >= MOST_IN_FLIGHT and self._end is None:
            await self._wait()
        if self._end is None and self._lost(frame):
            self.end(Disconnected(1006, "the connection broke"))
        if self._end is not None:
            raise self._end
        self._frames.append(frame)
        self._move()

    async def receive(self) -> str:
        """The next frame. Raises Disconnected when there is none and no more will come."""
        while not self._frames:
            if self._end is not None:
                raise self._end
            await self._wait()
        frame = self._frames.popleft()
        self._move()
        return frame

    def end(self, end: Disconnected) -> None:
        """Nothing more can be sent; what is under way still arrives. Only the first end counts."""
        self._end = self._end or end
        self._move()

    def cut(self) -> None:
        """The line is gone, with all that is under way."""
        self._frames.clear()
        self.end(Disconnected(1006, "the connection broke"))

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    async def _wait(self) -> None:
        await self._moved.wait()


class MemoryTransport:
    """The device's end. A Transport."""

    def __init__(self, up: Pipe, down: Pipe) -> None:
        self._up = up
        self._down = down

    async def send(self, text: str) -> None:
        try:
            await self._up.send(text)
        except Disconnected as end:
            self._down.end(end)
            raise

    async def receive(self) -> str:
        return await self._down.receive()

    async def close(self) -> None:
        self._up.end(Disconnected(1000, "the device has closed"))
        self._down.cut()

    def cut(self) -> None:
        self._up.cut()
        self._down.cut()


class MemoryServer:
    """A node to which devices connect in memory. Opened with `async with`, inside its node's.

    `reachable` says whether a new connection can be had. `delay` is asked before each frame how
    long it takes, `lost` whether it is lost, with its connection and all that follows.
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
        self.connected = 0  # how many connections there have been
        self._authenticate = authenticate
        self._tasks = asyncio.TaskGroup()
        self._doors: dict[_Door, asyncio.Task[None]] = {}

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
        door = _Door(self.node, self._authenticate, transport, up, down)
        self._doors[door] = self._tasks.create_task(self._serve(door))
        return transport

    def cut_all(self) -> None:
        """Break all connections, with what is under way on them."""
        for door in self._doors:
            door.transport.cut()

    def go_away(self, reconnect_after_ms: int) -> None:
        """Ask all devices to leave, as before a deploy."""
        for door in self._doors:
            door.session.go_away(reconnect_after_ms)
            door.wake()

    async def _serve(self, door: "_Door") -> None:
        try:
            await door.run()
        finally:
            del self._doors[door]

    def _delay(self) -> float:
        return self.delay()

    def _lost(self, frame: str) -> bool:
        return self.lost(frame)


class _Door:
    """One connection, as the node sees it: a Listener with two hands."""

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

    def pass_by(self, message: OutOfBandMessage) -> None:
        self.session.pass_by(message)
        self.wake()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        async with AsyncExitStack() as attached, asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self._write())
            await self._read(attached)
            writing.cancel()

    async def _read(self, attached: AsyncExitStack) -> None:
        while True:
            try:
                frame = await self._up.receive()
            except Disconnected:
                return
            match self.session.receive(frame):
                case Authenticate(token):
                    await self._greet(token, attached)
                case Store(n, messages):
                    await self._store(n, messages)
            self.wake()

    async def _greet(self, token: str, attached: AsyncExitStack) -> None:
        try:
            uid = self._authenticate(token)
        except Unauthenticated as error:
            self.session.refuse(error)
            return
        await attached.enter_async_context(self._node.attach(uid, self))
        self.session.authenticated(uid, self._node.clock())

    async def _store(self, n: int, entries: tuple[Message | Result, ...]) -> None:
        messages = [entry for entry in entries if not isinstance(entry, Result)]
        try:
            outcomes = iter(await self._node.inject(messages) if messages else ())
        except Unavailable as error:
            self.session.unavailable(n, error)
            return
        results = [e if isinstance(e, Result) else Result.of(next(outcomes)) for e in entries]
        self.session.stored(n, results)

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
        except Disconnected as end:
            self._up.end(end)  # the reading hand hears of it
            return False
        return True

    async def _catch_up(self, cursor: int) -> None:
        session = self.session
        try:
            await self._node.catch_up(session, cursor)
        except Unavailable as error:
            session.refuse(error)
