"""A server and a transport in memory: devices connect to a node without sockets.

The conversations are those of the real server, over channels in memory. A test can delay frames,
lose a frame together with its connection, and break all connections.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Self

from gregor.client.outside import Disconnected
from gregor.core.instant import Time
from gregor.core.message import UID, Message
from gregor.errors import Unauthenticated
from gregor.interfaces import HOLDS_FOREVER, Caller, Outcome, Rejected
from gregor.limits import NO_LIMITS, Limits
from gregor.node.channel import NO_SOCKET, ChannelClosed
from gregor.node.conversation import Admission, Conversation, DeliveryCounts
from gregor.node.limiter import Limiter
from gregor.node.node import Node
from gregor.protocol.effects import Close, Send

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
    its connection then breaks. Unless it is told `limits`, its users may do as much as they like.
    """

    def __init__(
        self,
        node: Node,
        *,
        authenticate: Callable[[str], UID] = token_is_uid,
        delay: Delay = no_delay,
        lost: Lost = nothing_is_lost,
        limits: Limits = NO_LIMITS,
    ) -> None:
        self.node = node
        self.limiter = Limiter(limits, ids_days=node.pruner.retention.ids_days)
        self.reachable = True
        self.delay = delay
        self.lost = lost
        self.connected = 0  # connections so far
        self.counts = DeliveryCounts()
        self.hello_seconds = 5.0
        self._authenticate = authenticate
        self._tasks = asyncio.TaskGroup()
        self._transports: dict[MemoryTransport, None] = {}
        self._conversations: dict[Conversation, None] = {}

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
        self._transports[transport] = None
        self._tasks.create_task(self._serve(transport, MemoryChannel(up, down)))
        return transport

    def cut_all(self) -> None:
        """Break all connections; frames in flight are lost."""
        for transport in self._transports:
            transport.cut()

    def go_away(self, reconnect_after_ms: int) -> None:
        """Send a goaway to all devices, as before a deploy."""
        for conversation in self._conversations:
            conversation.go_away(reconnect_after_ms)

    async def _serve(self, transport: MemoryTransport, channel: "MemoryChannel") -> None:
        conversation = Conversation(self, channel)
        self._conversations[conversation] = None
        try:
            await conversation.run()
        finally:
            del self._conversations[conversation]
            del self._transports[transport]

    async def admit(self, token: str, seconds: float) -> Admission:
        return Admission(self._authenticate(token), issued_at=HOLDS_FOREVER)

    async def inject(
        self, caller: Caller, entries: Sequence[Message | Rejected], epoch: Time | None = None
    ) -> list[Outcome]:
        return await self.node.inject(caller, entries, epoch)

    def _delay(self) -> float:
        return self.delay()

    def _lost(self, frame: str) -> bool:
        return self.lost(frame)


class MemoryChannel:
    """The server's side of a connection."""

    socket = NO_SOCKET

    def __init__(self, up: Pipe, down: Pipe) -> None:
        self._up = up
        self._down = down

    async def read(self) -> str | None:
        try:
            return await self._up.receive()
        except Disconnected as reason:
            raise ChannelClosed from reason

    async def write(self, effect: Send | Close) -> None:
        match effect:
            case Send() as send:
                try:
                    await self._down.send(send.text)
                except Disconnected as reason:
                    self._up.end(reason)
                    raise ChannelClosed from reason
            case Close(code, text):
                self._down.end(Disconnected(code, text))
                self._up.end(Disconnected(code, text))
