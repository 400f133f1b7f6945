"""Carries out what a session's writing hand should do, over whatever transport there is."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import structlog

from gregor.core.instant import SECOND, Time
from gregor.core.message import OutOfBandMessage
from gregor.errors import GregorError, Unauthenticated
from gregor.node import Node
from gregor.protocol.frames import Frame, Messages
from gregor.protocol.server import CatchUp, Close, Effect, Publication, Send, ServerSession
from gregor.server.metrics import Metrics
from gregor.server.socket import NO_SOCKET, Socket

log = structlog.get_logger("gregor.server")

Write: TypeAlias = Callable[[Send | Close], Awaitable[None]]


class Delivery:
    """One connected device: a Listener of the node's, and the frames that leave for it.

    `writing_since` is the loop's time since which the transport has not taken a frame; None while
    it takes them. Whoever watches over deliveries ends those that take too long.
    """

    def __init__(self, node: Node, metrics: Metrics, socket: Socket = NO_SOCKET) -> None:
        self.session = ServerSession()
        self.writing_since: float | None = None
        self._node = node
        self._metrics = metrics
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._woken: asyncio.Future[None] = self._loop.create_future()
        self._effect: Effect | None = None  # what the writing hand is woken for
        self._timers: list[asyncio.TimerHandle] = []
        task = asyncio.current_task()
        assert task is not None  # a delivery is made by the task that lives for it
        self.task = task
        self._ended: GregorError | None = None

    def publish(self, publication: Publication) -> None:
        self.session.publish(publication)
        self.wake()

    def pass_by(self, message: OutOfBandMessage) -> None:
        self.session.pass_by(message)
        self.wake()

    def end(self, error: GregorError) -> None:
        """Stop at once, without a word to a device that would not take it."""
        self._ended = error
        self.task.cancel()

    @contextmanager
    def until_ended(self) -> Iterator[None]:
        """The life of this delivery, which `end` may cut short."""
        try:
            yield
        except asyncio.CancelledError:
            if self._ended is None or self.task.uncancel() > 0:
                raise
            log.info("ended a delivery", uid=self.session.uid, error=self._ended.message)
        finally:
            self._metrics.lagged += self.session.lagged
            for timer in self._timers:
                timer.cancel()

    def later(self, seconds: float, event: Callable[[], None]) -> None:
        """Tell the session something in a while, unless it ends before."""

        def happen() -> None:
            event()
            self.wake()

        self._timers.append(self._loop.call_later(seconds, happen))

    def expire(self, at: Time | None) -> None:
        """The conversation ends with the token."""
        if at is not None:
            expired = Unauthenticated("the token has expired")
            seconds = (at - self._node.clock()) / SECOND
            self.later(seconds, lambda: self.session.refuse(expired))

    def wake(self) -> None:
        """Something has changed that may call for writing. What the socket takes at once needs no
        hand that writes, unless that one is at work already: then it will see by itself."""
        if self._woken.done():
            return
        while self._socket.ready:
            match self.session.next():
                case None:
                    return
                case Send() as send:
                    self._socket.write(send.text)
                    self._count(send.frame)
                case effect:
                    self._effect = effect
                    break
        self._woken.set_result(None)

    async def write_all(self, write: Write) -> None:
        """Write whatever the session says, until it says that it is over."""
        while True:
            effect, self._effect = self._effect, None
            match effect or self.session.next():
                case Send() as send:
                    await self._in_time(write, send)
                    self._count(send.frame)
                case CatchUp(cursor):
                    await self._catch_up(cursor)
                case Close() as close:
                    await self._in_time(write, close)
                    return
                case None:
                    self._woken = self._loop.create_future()
                    await self._woken

    async def _in_time(self, write: Write, effect: Send | Close) -> None:
        self.writing_since = self._loop.time()
        await write(effect)
        self.writing_since = None

    def _count(self, frame: Frame) -> None:
        if isinstance(frame, Messages):
            self._metrics.delivered += len(frame.messages)

    async def _catch_up(self, cursor: int) -> None:
        session = self.session
        if cursor == 0 < session.cursor:
            self._metrics.mismatches += 1
        try:
            await self._node.catch_up(session, cursor)
        except GregorError as error:
            session.refuse(error)  # the device comes back, with its cursor
