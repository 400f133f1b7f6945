"""Keeps a device connected: reconnects without limit, and executes what each session decides.

ClientSession decides which frames to send, and Replica how its contents change. This module has
the transport's reader and sender, the time-out for a silent node, and the backoff between two
connections.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol, TypeAlias

from gregor.backoff import Outage
from gregor.client.events import Event, Offline, Online, OutOfBandReceived, Synced
from gregor.client.reconnect import BACKOFF, ReconnectPolicy
from gregor.client.replica import Replica
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage, Message, OutOfBandMessage, value_of
from gregor.core.sync import Snapshot
from gregor.errors import Action, GregorError, Malformed, SetupError, Unavailable, error_from_code
from gregor.log_event import LogEvent
from gregor.protocol import client_session as session
from gregor.protocol.client_session import ClientSession
from gregor.protocol.effects import Send
from gregor.protocol.frames import PAGE_BYTES, Error, Problem, Result

log = logging.getLogger("gregor.client")

ANSWER_TIMEOUT_SECONDS = 10.0  # for a connection, a welcome, or the next frame of a sync
ACK_TIMEOUT_SECONDS = 60.0  # for the acknowledgement of a consume, which includes storing it

Operation: TypeAlias = Callable[[Replica, Time], Replica]


class Disconnected(Exception):
    """The transport is closed, or could not be opened. Connect again; `retry_after` is the delay
    in seconds that the server has asked for, if it has."""

    def __init__(self, code: int, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason or f"closed with code {code}")
        self.code = code
        self.reason = reason or f"closed with code {code}"
        self.retry_after = retry_after


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
for each new connection, and may raise Unavailable: the client then retries with backoff."""


class ReplicaOwner(Protocol):
    """What a connection needs of its client: the replica, and a way to emit events."""

    @property
    def replica(self) -> Replica: ...

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

    `failure` is set once the connection stops retrying: the token is refused for good, the node
    answers with the action `stop`, or the store belongs to another user.
    """

    def __init__(
        self, owner: ReplicaOwner, connect: Connect, token: Token, jitter: Callable[[], float]
    ) -> None:
        self.online = False
        self.mismatches = 0
        self.failure: GregorError | None = None
        self._owner = owner
        self._connect = connect
        self._token = token
        self._jitter = jitter
        self._policy = ReconnectPolicy()
        self._token_refused = False  # whether the last token was refused
        self._conversation: _Conversation | None = None

    @property
    def synced(self) -> bool:
        """Whether the replica is connected and up to date with the node."""
        current = self._conversation
        return self.online and current is not None and current.session.is_up_to_date

    async def run(self) -> None:
        """Connect, and reconnect whenever the connection is lost. Returns once `failure` is set."""
        while True:
            cause = await self._run_conversation()
            self._on_disconnected(cause)
            if self.failure is not None:
                return
            await asyncio.sleep(self._reconnect_delay(cause))

    def wake(self) -> None:
        """Wake the sender: the outbox may have something to send."""
        if self._conversation is not None:
            self._conversation.wake()

    async def send_out_of_band(self, message: OutOfBandMessage) -> None:
        """Send an out-of-band message, at most once. Raises Unavailable if there is no connection,
        or if it breaks before the node has acknowledged (the message may have been delivered), and
        the node's error if it rejects the message."""
        if self._conversation is None or not self.online:
            raise Unavailable("there is no connection, and out-of-band messages are not queued")
        await self._conversation.send_out_of_band(message)

    async def _run_conversation(self) -> Disconnected:
        """Connect and run one conversation to its end. Returns why it ended."""
        try:
            token = await self._current_token()
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                transport = await self._connect()
        except Disconnected as error:
            return error
        except (OSError, Unavailable) as error:
            return Disconnected(0, str(error) or "no answer")
        try:
            conversation = _Conversation(self, self._owner, transport, token, self._jitter)
            self._conversation = conversation
            return await conversation.run()
        finally:
            self._conversation = None
            await transport.close()

    async def _current_token(self) -> str:
        token = self._token if isinstance(self._token, str) else self._token()
        return token if isinstance(token, str) else await token

    # Called by the conversation

    def on_welcome(self) -> None:
        """The node has accepted the token."""
        self._token_refused = False

    def on_synced(self) -> None:
        """A sync is complete: the replica is up to date."""
        self._policy.synced()
        events: list[Event] = [Synced()] if self.online else [Online(), Synced()]
        self.online = True
        self._owner.emit(*events)

    def on_goaway(self, within_ms: int) -> float:
        """The node is shutting down. Returns when to reconnect, in loop time."""
        now = asyncio.get_running_loop().time()
        return self._policy.goaway(now, self._jitter(), within_ms)

    def on_error(self, error: GregorError) -> None:
        """The node has sent an error. Its action decides whether to stop retrying."""
        match error.action:
            case Action.STOP:
                self.failure = error
            case Action.REAUTHENTICATE:
                # A token function gets one more attempt: its last token may just have expired.
                if self._token_refused or isinstance(self._token, str):
                    self.failure = error
                self._token_refused = True

    def _on_disconnected(self, cause: Disconnected) -> None:
        was_online, self.online = self.online, False
        if self.failure is not None:
            log.error(
                LogEvent("the client stops trying", code=self.failure.code, reason=cause.reason)
            )
        if was_online or self.failure is not None:
            self._owner.emit(Offline(cause.reason, final=self.failure is not None))

    def _reconnect_delay(self, cause: Disconnected) -> float:
        """Seconds to wait before the next connection."""
        now = asyncio.get_running_loop().time()
        return self._policy.wait(now, self._jitter(), cause.retry_after or 0.0)


class _Conversation:
    """One transport, from hello to its end: a reader, and a sender of the outbox."""

    def __init__(
        self,
        connection: Connection,
        owner: ReplicaOwner,
        transport: Transport,
        token: str,
        jitter: Callable[[], float],
    ) -> None:
        replica = owner.replica
        self.session = ClientSession(token, replica.device_id, replica.cursor)
        self._connection = connection
        self._owner = owner
        self._transport = transport
        self._jitter = jitter
        self._outage = Outage(BACKOFF)  # in which the node defers each consume
        self._user_confirmed = False  # whether the token belongs to the user of the replica
        self._max_messages = 1  # in one consume
        self._in_flight: list[Message] = []  # sent in a consume and not yet answered
        self._needs_backoff: asyncio.Future[bool] | None = None  # the answer to that consume
        self._out_of_band: deque[_PendingOutOfBand] = deque()
        self._sender_wakeup = asyncio.Event()
        self._reconnect_at: float | None = None

    async def run(self) -> Disconnected:
        try:
            async with asyncio.TaskGroup() as tasks:
                sender = tasks.create_task(self._send_outbox())
                cause = await self._read()
                sender.cancel()
        finally:
            for pending in self._out_of_band:
                if not pending.acknowledged.done():
                    error = Unavailable("the connection was lost before the acknowledgement")
                    pending.acknowledged.set_exception(error)
        return cause

    def wake(self) -> None:
        self._sender_wakeup.set()

    async def send_out_of_band(self, message: OutOfBandMessage) -> None:
        pending = _PendingOutOfBand(message, asyncio.get_running_loop().create_future())
        self._out_of_band.append(pending)
        self.wake()
        await pending.acknowledged

    # The reader

    async def _read(self) -> Disconnected:
        """Read frames until the conversation ends. Returns why it ended."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS) as timeout:
                await self._execute(self.session.opened())
                while True:
                    frame = await self._transport.receive()
                    await self._execute(self.session.receive(frame))
                    timeout.reschedule(self._next_deadline())
        except Disconnected as error:
            return error
        except TimeoutError:
            if self._reconnect_at is not None:
                return Disconnected(0, "the node is shutting down")
            return Disconnected(0, "the node did not answer in time")
        except (Malformed, Unavailable) as error:
            log.warning(LogEvent("closed a connection", code=error.code, reason=error.message))
            return Disconnected(0, error.message)

    def _next_deadline(self) -> float | None:
        """When to give up reading, in loop time. A live conversation may be silent; one that waits
        for a welcome or a sync may not."""
        if not self.session.is_up_to_date:
            return asyncio.get_running_loop().time() + ANSWER_TIMEOUT_SECONDS
        return self._reconnect_at

    async def _execute(self, effects: Sequence[session.Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    await self._transport.send(effect.text)
                case session.Welcomed(uid, max_messages):
                    await self._on_welcome(uid, max_messages)
                case session.Apply(messages, cursor):
                    await self._apply(messages, cursor)
                case session.Replace(snapshot, cursor):
                    await self._apply_snapshot(snapshot, cursor)
                case session.Compare(as_of, hash_):
                    await self._compare_hash(as_of, hash_)
                case session.Acked(results):
                    await self._on_ack(results)
                case session.Deferred(error):
                    await self._on_deferred(error)
                case session.DeliverOutOfBand(system, body):
                    self._owner.emit(OutOfBandReceived(system, value_of(body)))
                case session.Failed(error):
                    self._fail(_error_from(error))
                case session.Reconnect(within_ms):
                    self._reconnect_at = self._connection.on_goaway(within_ms)

    async def _on_welcome(self, uid: UID, max_messages: int) -> None:
        try:
            await self._owner.change(lambda replica, now: replica.owned_by(uid))
        except SetupError as error:
            self._fail(error)
        self._connection.on_welcome()
        self._user_confirmed, self._max_messages = True, max_messages
        self.wake()

    async def _apply(self, messages: Sequence[InBandMessage], cursor: Time) -> None:
        await self._owner.change(lambda replica, now: replica.apply(messages, cursor), messages)

    async def _apply_snapshot(self, snapshot: Snapshot, cursor: Time) -> None:
        await self._owner.change(lambda replica, now: replica.apply_snapshot(snapshot, cursor))

    async def _compare_hash(self, as_of: Time, hash_: str) -> None:
        equal = self._owner.replica.hash_matches(as_of, hash_)
        if not equal:
            self._connection.mismatches += 1
            log.warning(
                LogEvent("the replica differs from the node's state", cursor=self.session.cursor)
            )
        await self._execute(self.session.hash_compared(equal))
        if self.session.is_up_to_date:
            await self._owner.change(lambda replica, now: replica.synced(as_of))
            self._connection.on_synced()

    def _fail(self, error: GregorError) -> None:
        self._connection.on_error(error)
        raise Disconnected(error.close_code, error.message)

    # The sender

    async def _send_outbox(self) -> None:
        """Send the outbox in windows: the next one when the last one is answered."""
        with suppress(Disconnected):  # the reader gets it too, and ends the conversation
            while True:
                self._in_flight = self._next_window()
                if not self._in_flight:
                    self._sender_wakeup.clear()
                    await self._sender_wakeup.wait()
                elif not await self._deliver():
                    await self._transport.close()

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
        self._needs_backoff = asyncio.get_running_loop().create_future()
        await self._execute(self.session.consume(self._in_flight))
        try:
            async with asyncio.timeout(ACK_TIMEOUT_SECONDS):
                needs_backoff = await self._needs_backoff
        except TimeoutError:
            return False
        if needs_backoff:
            now = asyncio.get_running_loop().time()
            await asyncio.sleep(self._outage.delay(now, self._jitter()))
        return True

    async def _on_ack(self, results: Sequence[Result]) -> None:
        if len(results) != len(self._in_flight):
            raise Malformed(f"{len(results)} results for {len(self._in_flight)} messages")
        pairs = zip(self._in_flight, results, strict=True)
        in_band = [(m, result) for m, result in pairs if isinstance(m, InBandMessage)]
        if in_band:
            await self._owner.change(
                lambda replica, now: replica.apply_results(in_band),
                [message for message, _ in in_band],
            )
        else:
            self._finish_out_of_band(results[0].error)
        self._outage.end()
        self._answered(needs_backoff=False)

    def _finish_out_of_band(self, error: Problem | None) -> None:
        pending = self._out_of_band.popleft()
        if pending.acknowledged.done():
            return
        if error is None:
            pending.acknowledged.set_result(None)
        else:
            pending.acknowledged.set_exception(_error_from(error))

    async def _on_deferred(self, error: Error) -> None:
        """The node did not take the window. Retry it after a backoff; if the action is `stop`,
        halve it until the one message is found that the node refuses, and reject that."""
        problem = Problem(error.code, error.message, error.action, error.field)
        if error.action is Action.STOP and len(self._in_flight) == 1:
            await self._on_ack([Result("rejected", error=problem)])
            return
        if error.action is Action.STOP:
            self._max_messages = len(self._in_flight) // 2
        if isinstance(self._in_flight[0], OutOfBandMessage):
            self._finish_out_of_band(problem)  # at most once: it is not sent again
        log.info(LogEvent("the node deferred a consume", code=error.code, reason=error.message))
        self._answered(needs_backoff=error.action is not Action.STOP)

    def _answered(self, *, needs_backoff: bool) -> None:
        if self._needs_backoff is not None and not self._needs_backoff.done():
            self._needs_backoff.set_result(needs_backoff)


def _error_from(problem: Problem | Error) -> GregorError:
    return error_from_code(problem.code, problem.message, problem.field, problem.action)
