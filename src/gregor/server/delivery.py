"""Carries out the effects of a session, over any transport: sends frames, and reads syncs from
the store."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from gregor.core.instant import SECOND, Time
from gregor.core.message import OutOfBandMessage
from gregor.errors import GregorError, Unauthenticated
from gregor.log_event import LogEvent
from gregor.node.node import Node
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Frame, Messages
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import CatchUp, Effect, ServerSession
from gregor.server.metrics import Metrics
from gregor.server.socket import NO_SOCKET, Socket

log = logging.getLogger("gregor.server")

Write: TypeAlias = Callable[[Send | Close], Awaitable[None]]


class Delivery:
    """One connected device: a Listener of the node, and the writer of the frames for the device.

    `writing_since` is the loop time at which the pending write began; None while no write is
    pending. Service ends deliveries whose write is pending for too long.
    """

    def __init__(self, node: Node, metrics: Metrics, socket: Socket = NO_SOCKET) -> None:
        self.session = ServerSession()
        self.writing_since: float | None = None
        self._node = node
        self._metrics = metrics
        self._socket = socket
        self._loop = asyncio.get_running_loop()
        self._wakeup: asyncio.Future[None] = self._loop.create_future()
        self._effect: Effect | None = None  # taken from the session by `wake`, for the writer
        self._timers: list[asyncio.TimerHandle] = []
        task = asyncio.current_task()
        assert task is not None  # a delivery is created by the task that runs it
        self.task = task
        self._end_reason: GregorError | None = None

    def publish(self, publication: Publication) -> None:
        self.session.publish(publication)
        self.wake()

    def deliver_out_of_band(self, message: OutOfBandMessage) -> None:
        self.session.deliver_out_of_band(message)
        self.wake()

    def end(self, error: GregorError) -> None:
        """Stop immediately. The error is logged, not sent: the device accepts no data."""
        self._end_reason = error
        self.task.cancel()

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Run this delivery inside the block. `end` cancels the block, and is not an error."""
        try:
            yield
        except asyncio.CancelledError:
            if self._end_reason is None or self.task.uncancel() > 0:
                raise
            reason = self._end_reason.message
            log.info(LogEvent("ended a delivery", uid=self.session.uid, reason=reason))
        finally:
            self._metrics.slow_consumer_resets += self.session.slow_consumer_resets
            for timer in self._timers:
                timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """After this time, call the callback and wake the writer, unless the delivery has ended."""

        def run() -> None:
            callback()
            self.wake()

        self._timers.append(self._loop.call_later(seconds, run))

    def expire(self, at: Time | None) -> None:
        """Close the conversation when the token expires."""
        if at is not None:
            expired = Unauthenticated("the token has expired")
            seconds = (at - self._node.clock()) / SECOND
            self.call_later(seconds, lambda: self.session.refuse(expired))

    def wake(self) -> None:
        """Write what the session has queued: directly, as far as the socket accepts it without
        waiting; the rest is left to the writer."""
        if self._wakeup.done():
            return  # the writer is busy, and asks the session again before it waits
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
        self._wakeup.set_result(None)

    async def write_all(self, write: Write) -> None:
        """The writer: carries out the session's effects, until one of them is Close."""
        while True:
            effect, self._effect = self._effect, None
            match effect or self.session.next():
                case Send() as send:
                    await self._write_timed(write, send)
                    self._count(send.frame)
                case CatchUp(cursor):
                    await self._catch_up(cursor)
                case Close() as close:
                    await self._write_timed(write, close)
                    return
                case None:
                    self._wakeup = self._loop.create_future()
                    await self._wakeup

    async def _write_timed(self, write: Write, effect: Send | Close) -> None:
        self.writing_since = self._loop.time()
        await write(effect)
        self.writing_since = None

    def _count(self, frame: Frame) -> None:
        if isinstance(frame, Messages):
            self._metrics.delivered += len(frame.messages)

    async def _catch_up(self, cursor: int) -> None:
        session = self.session
        if cursor == 0 < session.cursor:  # a device with a state asks for a snapshot
            self._metrics.mismatches += 1
        try:
            await self._node.catch_up(session, cursor)
        except GregorError as error:
            session.refuse(error)  # the device reconnects with its cursor
