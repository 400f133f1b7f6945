"""One conversation with a device, over any channel: what its session decides is done here.

    channel.read ──▶ ServerSession ──▶ authenticate, store      the reader
    node ── publish ──▶ ServerSession ──▶ channel.write         the socket directly, or a writer

A conversation is the same over a WebSocket, server-sent events and memory. Its channel only knows
how to read a frame, how to write one, and how to close.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple, Protocol

from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, DeviceID, Message, OutOfBandMessage
from gregor.errors import GregorError, TooLarge, Unauthenticated, Unavailable
from gregor.interfaces import Caller, Outcome, Rejected
from gregor.log_event import LogEvent
from gregor.node.channel import Channel, ChannelClosed
from gregor.node.limiter import Limiter
from gregor.node.node import Node
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import MAX_FRAME, Frame, Messages
from gregor.protocol.handshake import Phase
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import (
    Authenticate,
    CatchUp,
    Effect,
    ReadItems,
    Request,
    ServerSession,
    Store,
)

log = logging.getLogger("gregor.node")

WRITTEN_TOGETHER = 64 * 1024
"""Frames are written together until they have so many characters."""


class Admission(NamedTuple):
    """The user that a device's token belongs to, when the token expires (None: never), and when it
    was issued (None: not known; then it does not hold once the user was erased)."""

    uid: UID
    expires_at: Time | None = None
    issued_at: Time | None = None


class Resumption(NamedTuple):
    """A conversation without a hello: the request that has opened the channel says who the device
    is, and what it knows."""

    admission: Admission
    device_id: DeviceID
    cursor: Time
    epoch: Time | None = None


class DeliveryCounts:
    """What the conversations of a server count: messages that were written to devices, and
    snapshots that devices asked for because their state hash differed."""

    def __init__(self) -> None:
        self.delivered = 0
        self.mismatches = 0


class Host(Protocol):
    """What a conversation needs of its server."""

    @property
    def node(self) -> Node: ...
    @property
    def counts(self) -> DeliveryCounts: ...
    @property
    def limiter(self) -> Limiter: ...
    @property
    def hello_seconds(self) -> float:
        """How long a device may take for its hello, and for being admitted."""
        ...

    async def admit(self, token: str, seconds: float) -> Admission:
        """The user whose device has this token; it may take this time. Raises GregorError if the
        device is not admitted."""
        ...

    async def inject(
        self, caller: Caller, entries: Sequence[Message | Rejected], epoch: Time | None = None
    ) -> list[Outcome]:
        """Inject messages of a sender who knows this epoch of their user, in order, and return the
        outcome of each entry. Raises Unavailable if they have to be sent again."""
        ...


class Conversation:
    """One connected device: a Listener of the node, with the reader and the writer of its channel.
    It is created by the task that runs it.

    `writing_since` is the loop time at which the pending write began; None while no write is
    pending. The server ends conversations whose write is pending for too long.
    """

    __slots__ = (
        "_admit_by",
        "_attached",
        "_channel",
        "_connected",
        "_counts",
        "_end_reason",
        "_expiry",
        "_failure",
        "_hello_timer",
        "_host",
        "_is_storing",
        "_limiter",
        "_loop",
        "_node",
        "_socket",
        "_soon",
        "_writer",
        "session",
        "task",
        "writing_since",
    )

    def __init__(self, host: Host, channel: Channel) -> None:
        self.session = ServerSession(host.limiter.limits, host.limiter)
        self.writing_since: float | None = None
        self._host = host
        self._node = host.node
        self._limiter = host.limiter
        self._counts = host.counts
        self._channel = channel
        self._socket = channel.socket
        self._loop = asyncio.get_running_loop()
        self._is_storing = False  # what the device has sent; it waits for the ack
        self._soon: asyncio.Handle | None = None  # the next `wake`, if it is due
        # Only while something has to wait: most devices are idle most of the time, or take what
        # they get at once. It stays when the channel is closed, so that nothing follows.
        self._writer: asyncio.Task[None] | None = None
        self._connected: tuple[UID, bool] | None = None  # as which user; whether by a stream
        self._attached: UID | None = None  # the user whose messages are received
        self._hello_timer: asyncio.TimerHandle | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._admit_by = 0.0  # the loop time at which the hello time-out ends
        self._end_reason: GregorError | None = None
        self._failure: BaseException | None = None  # of the writer
        task = asyncio.current_task()
        assert task is not None
        self.task = task

    async def run(self, resumption: Resumption | None = None) -> None:
        """Run the conversation until its channel has ended. It begins with a hello, unless it is
        resumed. That `end` was called is not an error."""
        try:
            if resumption is None:
                self._wait_for_hello()
            else:
                await self._resume(resumption)
            await self._read()
        except asyncio.CancelledError:
            if self._failure is not None:
                self.task.uncancel()
                raise self._failure from None
            if self._end_reason is None or self.task.uncancel() > 0:
                raise
            reason = self._end_reason.message
            log.info(LogEvent("ended a conversation", uid=self.session.uid, reason=reason))
        finally:
            await self._stop()

    async def _stop(self) -> None:
        """Leave nothing behind that would still do something."""
        for due in (self._hello_timer, self._expiry, self._soon):
            if due is not None:
                due.cancel()
        if self._attached is not None:
            self._node.detach(self._attached, self)
        if self._connected is not None:
            uid, is_stream = self._connected
            self._limiter.disconnect(uid, is_stream=is_stream)
        if self._writer is not None and not self._writer.done():
            self._writer.cancel()
            await asyncio.wait([self._writer])

    def go_away(self, reconnect_after_ms: int) -> None:
        """Ask the device to reconnect, to any node, within this time."""
        self.session.go_away(reconnect_after_ms)
        self.wake()

    def close(self, code: int, reason: str) -> None:
        """Close the conversation, after what is still to be answered."""
        self.session.close(code, reason)
        self.wake()

    def end(self, error: GregorError) -> None:
        """Stop immediately. The error is logged, not sent: the device accepts no data."""
        self._end_reason = error
        self.task.cancel()

    # Messages from the node

    def publish(self, publication: Publication) -> None:
        self.session.publish(publication)
        self._wake_in_time()

    def sync_again(self) -> None:
        self.session.sync_again()
        self.wake()

    def erased(self, epoch: Time) -> None:
        self.session.erased(epoch)
        self.wake()

    def deliver_out_of_band(self, message: OutOfBandMessage) -> None:
        self.session.deliver_out_of_band(message)
        self._wake_in_time()

    def _wake_in_time(self) -> None:
        """Write what is delivered: at once, or, while the device waits for an ack, in the next turn
        of the event loop. Mostly it is what the device has sent, so that the ack is next, and is
        written with it."""
        if not self._is_storing:
            self.wake()
        elif self._soon is None:
            self._soon = self._loop.call_soon(self.wake)

    # The beginning

    def _wait_for_hello(self) -> None:
        seconds = self._host.hello_seconds
        self._admit_by = self._loop.time() + seconds
        self._hello_timer = self._loop.call_later(seconds, self._hello_timed_out)

    def _hello_timed_out(self) -> None:
        self.session.hello_timed_out()
        self.wake()

    async def _resume(self, resumption: Resumption) -> None:
        admission, device_id, cursor, epoch = resumption
        self.session.resume(device_id, cursor, epoch)
        await self._open(admission, is_stream=True)
        self.wake()

    async def _open(self, admission: Admission, *, is_stream: bool) -> None:
        """Receive the user's messages from here on, until the conversation ends."""
        uid, expires_at, issued_at = admission
        self._expire(expires_at)
        with self._refusing_errors():
            self._limiter.connect(uid, is_stream=is_stream)
            self._connected = uid, is_stream
            await self._node.attach(uid, self)
            self._attached = uid
            await self._node.open(self.session, uid, issued_at)

    def _expire(self, at: Time | None) -> None:
        """Close the conversation when the token expires."""
        if at is not None:
            seconds = (at - self._node.clock()) / SECOND
            self._expiry = self._loop.call_later(seconds, self._expired)

    def _expired(self) -> None:
        self.session.refuse(Unauthenticated("the token has expired"))
        self.wake()

    # The reader

    async def _read(self) -> None:
        with suppress(ChannelClosed):
            while True:
                text = await self._channel.read()
                await self._keep_pace()
                if text is not None and len(text) > MAX_FRAME:  # a host app's limit may be higher
                    self.session.refuse(TooLarge(f"a frame has at most {MAX_FRAME} bytes"))
                await self._carry_out(self.session.receive(text))
                self.wake()

    async def _keep_pace(self) -> None:
        """Read no further while the user sends more frames than the rate: what a device sends
        meanwhile waits in its connection, and costs nothing here."""
        if self.session.phase is Phase.OPEN and (wait := self._limiter.pause(self.session.uid)):
            await asyncio.sleep(wait)

    async def _carry_out(self, request: Request | None) -> None:
        match request:
            case Authenticate(token):
                await self._authenticate(token)
            case Store(n, entries):
                await self._store(n, entries)
            case None:
                pass

    async def _authenticate(self, token: str) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None
        try:
            # The time that the device took for its hello is not available again.
            admission = await self._host.admit(token, self._admit_by - self._loop.time())
        except GregorError as error:
            self.session.refuse(error)
            return
        if (exceeded := self._limiter.take_sync(admission.uid)) is not None:
            self.session.refuse(exceeded)
        else:
            await self._open(admission, is_stream=False)

    async def _store(self, n: int, entries: Sequence[Message | Rejected]) -> None:
        session = self.session
        caller = Caller(session.uid, session.device_id, is_service=False)
        self._is_storing = True
        try:
            session.stored(n, await self._host.inject(caller, entries, session.epoch))
        except Unavailable as error:
            session.unavailable(n, error)
        self._is_storing = False

    # The writer

    def wake(self) -> None:
        """Write what the session has queued: directly, as far as the socket accepts it without
        waiting; the rest is left to a writer."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._writer is not None:
            return  # it asks the session again before it ends
        effect = self._write_directly()
        if effect is not None or not self._socket.ready:
            self._writer = self._loop.create_task(self._write(effect))
            self._writer.add_done_callback(self._writer_ended)

    def _write_directly(self) -> Effect | None:
        """Write frames, as many of them together as are there, while the socket is ready. Returns
        the effect that comes next, if it is not a frame."""
        while self._socket.ready:
            texts: list[str] = []
            size = 0
            while size < WRITTEN_TOGETHER and isinstance(effect := self.session.next(), Send):
                self._count(effect.frame)
                texts.append(effect.text)
                size += len(effect.text)
            if texts:
                self._socket.write(texts)
            if size < WRITTEN_TOGETHER:
                return effect
        return None

    async def _write(self, effect: Effect | None) -> None:
        """Carry out this effect and then the session's, until there is none, or one was Close."""
        with suppress(ChannelClosed):  # the reader gets it too, and ends the conversation
            while effect := effect or self.session.next():
                match effect:
                    case Send() as send:
                        await self._write_timed(send)
                        self._count(send.frame)
                    case CatchUp(cursor):
                        await self._catch_up(cursor)
                    case ReadItems(ctimes):
                        with self._refusing_errors():
                            await self._node.read_items(self.session, ctimes)
                    case Close() as close:
                        await self._write_timed(close)
                        return
                effect = None
            self._writer = None

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        """A defect of the writer is one of the conversation."""
        if not writer.cancelled() and (failure := writer.exception()) is not None:
            self._failure = failure
            self.task.cancel()

    async def _write_timed(self, effect: Send | Close) -> None:
        self.writing_since = self._loop.time()
        await self._channel.write(effect)
        self.writing_since = None

    def _count(self, frame: Frame) -> None:
        if isinstance(frame, Messages):
            self._counts.delivered += len(frame.messages)

    async def _catch_up(self, cursor: Time) -> None:
        session = self.session
        if cursor == 0 < session.cursor:  # a device with a state asks for a snapshot
            self._counts.mismatches += 1
        with self._refusing_errors():
            await self._node.catch_up(session, cursor)

    @contextmanager
    def _refusing_errors(self) -> Iterator[None]:
        """Refuse the device if the store fails: it reconnects with its cursor."""
        try:
            yield
        except GregorError as error:
            self.session.refuse(error)
