"""Keeps a device connected: reconnects without limit, and executes what each session decides.

ClientSession decides which frames to send, and Replica how its contents change. This module has
the transport's reader and sender, the time-out for a silent node, and the backoff between two
connections.

The token function, the transport and the node are somebody else's. Whatever they do (an exception,
no answer, an absurd one), it is an attempt that failed, and the next one follows.
"""

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeAlias

from gregor.backoff import Outage, asked_delay
from gregor.client.events import Event, Offline, Online, OutOfBandReceived, Synced
from gregor.client.node_clock import DeviceClock
from gregor.client.outside import Disconnected, call_outside, described, random_numbers
from gregor.client.reconnect import BACKOFF, ReconnectPolicy
from gregor.client.replica import Replica
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage, Message, OutOfBandMessage, value_of
from gregor.core.sync import Snapshot
from gregor.errors import (
    Action,
    Erased,
    Forbidden,
    GregorError,
    LimitExceeded,
    Malformed,
    ProtocolError,
    SetupError,
    Unavailable,
)
from gregor.limits import Limits
from gregor.log_event import LogEvent
from gregor.protocol import client_session as session
from gregor.protocol.client_session import ClientSession
from gregor.protocol.effects import Send
from gregor.protocol.frames import PAGE_BYTES, Problem, Result

log = logging.getLogger("gregor.client")

ANSWER_TIMEOUT_SECONDS = 10.0  # for a token, a connection, a welcome, the next frame of a sync
STORE_TIMEOUT_SECONDS = 8.0  # before the node's time is over, so that the store gets the blame
ACK_TIMEOUT_SECONDS = 60.0  # for the acknowledgement of a consume, which includes storing it
DAY = 86_400 * SECOND

Operation: TypeAlias = Callable[[Replica, Time], Replica]


class Transport(Protocol):
    """One connection to a node. Frames arrive in the order in which they are sent, or never."""

    async def send(self, text: str) -> None:
        """Send a frame; wait while the connection applies backpressure. Raises Disconnected."""
        ...

    async def receive(self) -> str:
        """Return the next frame. Raises Disconnected when the connection has ended."""
        ...

    async def close(self) -> None:
        """Close the connection. Idempotent; does not raise, and returns within about a second."""
        ...


Connect: TypeAlias = Callable[[], Awaitable[Transport]]
"""Opens a new connection. Raises Disconnected or OSError if that fails."""

Token: TypeAlias = str | Callable[[], str | Awaitable[str]]
"""The token that authenticates the device, or a function that returns it. The function is called
for each new connection. If it raises, or does not answer in 10 s, the client calls it again later.
It must not block the event loop: where it waits, let it be async."""


class ReplicaOwner(Protocol):
    """What a connection needs of its client: the replica, and a way to emit events."""

    @property
    def replica(self) -> Replica: ...

    @property
    def clock(self) -> DeviceClock: ...

    def node_told_time(self, time: Time, asked: int | None = None) -> None:
        """A node has told its time, after it was asked at this time of the monotonic clock."""
        ...

    async def change(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> None:
        """Save the result of the operation, make it the replica, and emit what that changes in
        the visible state. `messages` are those that may have caused the change."""
        ...

    def emit(self, *events: Event) -> None: ...


class _PendingOutOfBand(NamedTuple):
    """An out-of-band message, and the future that its sender awaits."""

    message: OutOfBandMessage
    acknowledged: "asyncio.Future[None]"


class Connection:
    """One device's connection to its nodes, over any number of transports, one at a time.

    `failure` is set while the connection does not retry, because its token is refused and always
    the same, or because the user was erased. `limits` are those of the last node. `last_error` is
    why the last conversation ended, or could not begin; None after a sync. `retry_at` is when the
    next attempt begins, by the device's wall clock; None if none is planned.
    """

    def __init__(
        self, owner: ReplicaOwner, connect: Connect, token: Token, jitter: Callable[[], float]
    ) -> None:
        self.online = False
        self.mismatches = 0
        self.failure: GregorError | None = None
        self.last_error: Problem | None = None
        self.limits: Limits | None = None
        self.retry_at: Time | None = None
        self._owner = owner
        self._connect = connect
        self._token = token
        self._jitter = random_numbers(jitter)
        self._policy = ReconnectPolicy()
        self._without_epoch = False  # whether to say hello as to a node without epochs
        self._reconnect_requested = asyncio.Event()
        self._conversation: _Conversation | None = None

    @property
    def synced(self) -> bool:
        """Whether the replica is connected and up to date with the node."""
        current = self._conversation
        return self.online and current is not None and current.session.is_up_to_date

    async def run(self) -> None:
        """Connect, and reconnect whenever the connection is lost, until this is cancelled."""
        if isinstance(self.failure, Erased):  # the app may have been killed before it heard
            self._owner.emit(self.failure)
        while True:
            self._reconnect_requested.clear()
            cause = self.failure or await self._attempt()
            self._on_disconnected(cause)
            await self._wait_to_reconnect(cause)

    def reconnect(self) -> None:
        """Connect now, instead of later or never. While there is a connection, or an attempt at
        one, this counts for the next."""
        self.failure = None
        self._reconnect_requested.set()

    def stop(self, failure: GregorError) -> None:
        """Do not retry until `reconnect`. The conversation, if there is one, ends by itself."""
        self.failure, self.online = failure, False
        self._reconnect_requested.clear()

    def restart(self, reason: str) -> None:
        """End the conversation, if there is one, and connect again now."""
        if self._conversation is not None:
            self._conversation.end(Unavailable(reason))
        if self.failure is None:
            self._reconnect_requested.set()

    def wake(self) -> None:
        """Wake the sender: the outbox may have something to send."""
        if self._conversation is not None:
            self._conversation.wake()

    async def send_out_of_band(self, message: OutOfBandMessage) -> None:
        """Send an out-of-band message, at most once. Raises Unavailable if there is no connection,
        or if it breaks before the node has acknowledged (the message may have been delivered), the
        node's error if it rejects the message, and Erased if the user was erased."""
        if isinstance(self.failure, Erased):
            raise self.failure
        if self._conversation is None or not self.online:
            raise Unavailable("there is no connection, and out-of-band messages are not queued")
        await self._conversation.send_out_of_band(message)

    async def _attempt(self) -> Exception:
        """Connect, and run one conversation to its end. Returns why it ended."""
        try:
            token = await call_outside(
                "the token function", self._current_token, ANSWER_TIMEOUT_SECONDS
            )
            transport = await call_outside("connecting", self._connect, ANSWER_TIMEOUT_SECONDS)
            return await self._converse(transport, token)
        except Exception as error:  # noqa: BLE001 (it is logged, and shown in the status)
            return error

    async def _current_token(self) -> str:
        token: object = self._token() if callable(self._token) else self._token
        if inspect.isawaitable(token):
            token = await token
        if not isinstance(token, str) or not token:
            raise Unavailable(f"a token is text, and the token function gave {type(token)}")
        return token

    async def _converse(self, transport: Transport, token: str) -> Exception:
        replica = self._owner.replica
        session = ClientSession(
            token,
            replica.device_id,
            replica.cursor,
            replica.epoch,
            uid=replica.uid,
            without_epoch=self._without_epoch,
        )
        conversation = _Conversation(self, self._owner, transport, session, self._jitter)
        self._conversation = conversation
        try:
            return await conversation.run()
        finally:
            self._conversation = None
            with suppress(Disconnected, GregorError):
                await call_outside("closing", transport.close, ANSWER_TIMEOUT_SECONDS)

    async def _wait_to_reconnect(self, cause: Exception) -> None:
        delay = None if self.failure is not None else self._reconnect_delay(cause)
        if delay is not None:
            self.retry_at = self._owner.clock.wall() + round(delay * SECOND)
        with suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._reconnect_requested.wait()
        self.retry_at = None

    # Called by the conversation

    def on_synced(self) -> None:
        """A sync is complete: the replica is up to date."""
        self._policy.synced()
        self.last_error = None
        events: list[Event] = [Synced()] if self.online else [Online(), Synced()]
        self.online = True
        self._owner.emit(*events)

    def on_goaway(self, within_ms: int) -> float:
        """The node is shutting down. Returns in how many seconds to reconnect."""
        now = asyncio.get_running_loop().time()
        return self._policy.goaway(now, self._jitter(), within_ms) - now

    def on_error(self, error: GregorError) -> None:
        """The conversation is refused. That is for good if the cause is a token that is always the
        same. Anything else may change: a node is replaced, a clock is set, a token is renewed."""
        if isinstance(error, ProtocolError):  # it may be a node that knows no epochs
            self._without_epoch = not self._without_epoch
        is_token_refused = error.action is Action.REAUTHENTICATE or isinstance(
            error, Forbidden | SetupError
        )
        if is_token_refused and isinstance(self._token, str):
            self.failure = error

    def _on_disconnected(self, cause: Exception) -> None:
        """Report the first failure of an outage, and one that is final; not each attempt."""
        is_first, self.online = self.last_error is None, False
        self.last_error = error = _problem_of(cause)
        if self.failure is not None:
            log.error(LogEvent("the client stops trying", code=error.code, reason=error.message))
        elif is_first:
            event = LogEvent("the client is offline", code=error.code, reason=error.message)
            log.warning(event, exc_info=_unexpected(cause))
        if is_first or self.failure is not None:
            self._owner.emit(Offline(error.message, final=self.failure is not None))

    def _reconnect_delay(self, cause: Exception) -> float:
        """Seconds to wait before the next connection."""
        now = asyncio.get_running_loop().time()
        return self._policy.wait(now, self._jitter(), _asked_delay(cause))


class _Conversation:
    """One transport, from hello to its end: a reader, and a sender of the outbox."""

    def __init__(
        self,
        connection: Connection,
        owner: ReplicaOwner,
        transport: Transport,
        session: ClientSession,
        jitter: Callable[[], float],
    ) -> None:
        self.session = session
        self._connection = connection
        self._owner = owner
        self._transport = transport
        self._jitter = jitter
        self._outage = Outage(BACKOFF)  # in which the node defers each consume
        self._user_confirmed = False  # whether the token belongs to the user of the replica
        self._max_messages = 1  # in one consume
        self._in_flight: list[Message] = []  # sent in a consume and not yet answered
        self._answer: asyncio.Future[float | None] | None = None  # to that consume: see _answered
        self._out_of_band: deque[_PendingOutOfBand] = deque()
        self._sender_wakeup = asyncio.Event()
        self._hello_at = 0  # by the device's monotonic clock
        self._reading: asyncio.Timeout | None = None  # limits the reader
        self._end_at: float | None = None  # when the reader gives up, and why
        self._end_reason: Exception | None = None

    async def run(self) -> Exception:
        """Run until the conversation ends. Returns why it ended."""
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_outbox())
                cause = await self._read()
                sender.cancel()
        finally:
            lost = Unavailable("the connection was lost before the acknowledgement")
            for pending in self._out_of_band:
                if not pending.acknowledged.done():
                    error = self._connection.failure or lost
                    pending.acknowledged.set_exception(error)
        return cause

    def wake(self) -> None:
        self._sender_wakeup.set()

    def end(self, reason: Exception, seconds: float = 0.0) -> None:
        """End after this time, or earlier. Frames that arrive until then count."""
        at = asyncio.get_running_loop().time() + seconds
        if self._end_at is None or at < self._end_at:
            self._end_at, self._end_reason = at, reason
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(self._next_deadline())

    async def send_out_of_band(self, message: OutOfBandMessage) -> None:
        pending = _PendingOutOfBand(message, asyncio.get_running_loop().create_future())
        self._out_of_band.append(pending)
        self.wake()
        await pending.acknowledged

    # The reader

    async def _read(self) -> Exception:
        """Read frames until the conversation ends. Returns why it ended."""
        self._hello_at = self._owner.clock.monotonic()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS) as self._reading:
                await self._execute(self.session.opened())
                while True:
                    frame = await self._receive()
                    await self._execute(self.session.receive(frame))
                    self._reading.reschedule(self._next_deadline())
        except TimeoutError:
            return self._end_reason or Disconnected(0, "the node did not answer in time")
        except (Disconnected, GregorError) as error:
            return error
        finally:
            self._reading = None

    async def _receive(self) -> str:
        try:
            return await call_outside("the connection", self._transport.receive)
        except Disconnected as end:
            await self._execute(self.session.disconnected(end.code))
            raise

    def _next_deadline(self) -> float | None:
        """When to give up reading, in loop time. A live conversation may be silent; one that waits
        for a welcome or a sync may not."""
        if self.session.is_up_to_date and self._user_confirmed:
            return self._end_at
        answer_by = asyncio.get_running_loop().time() + ANSWER_TIMEOUT_SECONDS
        return answer_by if self._end_at is None else min(answer_by, self._end_at)

    async def _execute(self, effects: Sequence[session.Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    await self._send(effect.text)
                case session.Welcomed(uid, limits, now, epoch):
                    self._owner.node_told_time(now, self._hello_at)
                    await self._on_welcome(uid, limits, epoch)
                case session.Apply(messages, cursor):
                    await self._apply(messages, cursor)
                case session.Replace(snapshot, cursor, epoch):
                    await self._apply_snapshot(snapshot, cursor, epoch)
                case session.Compare(as_of, hash_):
                    await self._compare_hash(as_of, hash_)
                case session.Acked(results):
                    await self._on_ack(results)
                case session.Deferred(error):
                    await self._on_deferred(error.problem())
                case session.DeliverOutOfBand(system, body):
                    self._owner.emit(OutOfBandReceived(system, value_of(body)))
                case session.Failed(error):
                    self._fail(error.problem().error())
                case session.Wipe(epoch):
                    await self._wipe(epoch)
                case session.Reconnect(within_ms):
                    seconds = self._connection.on_goaway(within_ms)
                    self.end(Disconnected(0, "the node is shutting down"), seconds)

    async def _send(self, text: str) -> None:
        await call_outside(
            "the connection", lambda: self._transport.send(text), ACK_TIMEOUT_SECONDS
        )

    async def _change(self, operation: Operation, messages: Sequence[InBandMessage] = ()) -> None:
        """Change the replica. If its store does not answer in time, that ends the conversation; the
        store may still do what it is about, and then the next conversation begins there."""
        await call_outside(
            "the client's store",
            lambda: self._owner.change(operation, messages),
            STORE_TIMEOUT_SECONDS,
        )

    async def _on_welcome(self, uid: UID, limits: Limits, epoch: Time) -> None:
        try:
            await self._change(lambda replica, now: replica.welcomed(uid, epoch))
        except SetupError as error:
            self._fail(error)
        self._connection.limits = limits
        self._report_old_writes(limits.ids_days)
        self._user_confirmed, self._max_messages = True, limits.messages
        self.wake()

    def _report_old_writes(self, ids_days: int) -> None:
        """Nobody knows whether an unsent message has reached a node before. If that may be longer
        ago than nodes remember, it is sent all the same, but not silently."""
        count = self._owner.replica.unsent_before(self._owner.clock.now() - ids_days * DAY)
        if ids_days and count:
            reason = "unsent messages are so old that they may be stored twice"
            log.warning(LogEvent(reason, count=count, days=ids_days))

    async def _wipe(self, epoch: Time | None) -> None:
        await self._change(lambda replica, now: replica.wiped(epoch))
        raise self._connection.failure or Disconnected(Erased.close_code, "the user was erased")

    async def _apply(self, messages: Sequence[InBandMessage], cursor: Time) -> None:
        await self._change(lambda replica, now: replica.apply(messages, cursor), messages)

    async def _apply_snapshot(self, snapshot: Snapshot, cursor: Time, epoch: Time | None) -> None:
        await self._change(lambda replica, now: replica.apply_snapshot(snapshot, cursor, epoch))

    async def _compare_hash(self, as_of: Time, hash_: str) -> None:
        self._owner.node_told_time(as_of)
        equal = self._owner.replica.hash_matches(as_of, hash_)
        if not equal:
            self._connection.mismatches += 1
            log.warning(
                LogEvent("the replica differs from the node's state", cursor=self.session.cursor)
            )
        await self._execute(self.session.hash_compared(equal))
        if self.session.is_up_to_date:
            await self._change(lambda replica, now: replica.synced(as_of))
            self._connection.on_synced()

    def _fail(self, error: GregorError) -> None:
        self._connection.on_error(error)
        raise error

    # The sender

    async def _send_outbox(self) -> None:
        """Send the outbox in windows: the next one when the last one is answered."""
        try:
            while True:
                self._in_flight = self._next_window()
                if not self._in_flight:
                    self._sender_wakeup.clear()
                    await self._sender_wakeup.wait()
                elif not await self._deliver():
                    self.end(Unavailable("the node did not acknowledge in time"))
        except (Disconnected, GregorError) as error:
            # What the node has sent before still counts. Usually the reader gets the error too.
            self.end(error, ANSWER_TIMEOUT_SECONDS)

    def _next_window(self) -> list[Message]:
        if not self._user_confirmed or not self.session.may_consume:
            return []
        while self._out_of_band and self._out_of_band[0].acknowledged.done():
            self._out_of_band.popleft()  # its sender was cancelled
        if self._out_of_band:
            return [self._out_of_band[0].message]
        # The bytes of a window are limited too: with large bodies, fewer messages fit in a frame.
        return [*self._owner.replica.window(self._max_messages, PAGE_BYTES)]

    async def _deliver(self) -> bool:
        """Send the window and wait for its answer. Returns False if none came in time."""
        self._answer = asyncio.get_running_loop().create_future()
        await self._execute(self.session.consume(self._in_flight))
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                retry_after = await self._answer
        except TimeoutError:
            return False
        if retry_after is not None:
            now = asyncio.get_running_loop().time()
            backoff = self._outage.delay(now, self._jitter())
            await asyncio.sleep(asked_delay(retry_after) + backoff)
        return True

    async def _on_ack(self, results: Sequence[Result]) -> None:
        if len(results) != len(self._in_flight):
            raise Malformed(f"{len(results)} results for {len(self._in_flight)} messages")
        for result in results:
            if result.error is not None and result.should_retry:
                await self._on_deferred(result.error)
                return
        pairs = zip(self._in_flight, results, strict=True)
        in_band = [(m, result) for m, result in pairs if isinstance(m, InBandMessage)]
        if in_band:
            await self._change(
                lambda replica, now: replica.apply_results(in_band),
                [message for message, _ in in_band],
            )
        else:
            self._finish_out_of_band(results[0].error)
        self._outage.end()
        self._answered()

    def _finish_out_of_band(self, error: Problem | None) -> None:
        pending = self._out_of_band.popleft()
        if pending.acknowledged.done():
            return
        if error is None:
            pending.acknowledged.set_result(None)
        else:
            pending.acknowledged.set_exception(error.error())

    async def _on_deferred(self, error: Problem) -> None:
        """The node did not take the window. Retry it after what the node asks for and a backoff,
        and nothing else before it; if the action is `stop`, halve it until the one message is found
        that the node refuses, and reject that."""
        if error.action is Action.STOP and len(self._in_flight) == 1:
            await self._on_ack([Result("rejected", error=error)])
            return
        if error.action is Action.STOP:
            self._max_messages = len(self._in_flight) // 2
        if isinstance(self._in_flight[0], OutOfBandMessage):
            self._finish_out_of_band(error)  # at most once: it is not sent again
        log.info(LogEvent("the node deferred a consume", code=error.code, reason=error.message))
        self._answered(None if error.action is Action.STOP else (error.retry_after_ms or 0) / 1000)

    def _answered(self, retry_after: float | None = None) -> None:
        """The consume in flight is answered. With `retry_after`, it was not taken, and is to be
        retried after so many seconds and a backoff."""
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(retry_after)


def _asked_delay(cause: Exception) -> float:
    """For how many seconds the server wants to be left alone."""
    match cause:
        case Disconnected(retry_after=seconds):
            return seconds or 0.0
        case LimitExceeded(retry_after_ms=ms):
            return (ms or 0) / 1000
        case _:
            return 0.0


def _problem_of(cause: Exception) -> Problem:
    """Why a conversation ended, or could not begin, as data."""
    match cause:
        case GregorError():
            return Problem.of(cause)
        case Disconnected():
            return Problem(Unavailable.code, f"{cause.reason}", Action.RETRY)
        case _:
            return Problem(GregorError.code, described(cause), Action.RETRY)


def _unexpected(cause: Exception) -> BaseException | None:
    """What has a traceback worth logging: an error that is neither ours nor of the network."""
    root = (isinstance(cause, Unavailable) and cause.__cause__) or cause
    is_expected = isinstance(root, GregorError | Disconnected | OSError | asyncio.CancelledError)
    return None if is_expected else root
