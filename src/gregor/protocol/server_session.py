"""The node's side of one conversation: a pure state machine.

    GREETING ── hello ──▶ AUTHENTICATING ── authenticated ──▶ OPEN ──▶ CLOSED

Input is a frame (`receive`) or an event (`authenticated`, `publish`, `synced`, …). A transport has
two tasks, and each gets its own output. The reader gets from `receive` a request to carry out
before the next frame: Authenticate or Store. The writer calls `next()` whenever the socket accepts
data, and gets an effect: Send a frame, CatchUp (read a sync from the store, and pass it to
`synced`), or Close.

Delivery uses three positions on the user's clock, in ascending order: `cursor`, up to which
messages were sent to the device; `position`, up to which they are sent or pending here; and the
position up to which they are published. A publication that continues `position` is queued for the
writer. After a gap, or when the queue is full, the session lags: it drops its queue, and syncs the
device from the store as soon as the socket accepts data. So a slow consumer uses bounded memory,
delays no other device, and misses no in-band message.
"""

from collections.abc import Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from msgspec import Raw

from gregor.core.instant import Time
from gregor.core.message import (
    MAX_BATCH,
    UID,
    DeviceID,
    Message,
    OutOfBandMessage,
    parse_message,
)
from gregor.core.state import Sync
from gregor.errors import (
    Forbidden,
    GregorError,
    HelloTimeout,
    InvalidMessage,
    ProtocolError,
    TooLarge,
    TooSlow,
)
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import (
    PROTOCOL,
    Ack,
    Consume,
    DeviceFrame,
    Error,
    Frame,
    GoAway,
    Hello,
    Limits,
    Messages,
    OutOfBand,
    Problem,
    Result,
    SyncPage,
    Verify,
    Welcome,
    decode_device_frame,
    pages,
)
from gregor.protocol.publication import Publication

QUEUE_MESSAGES = 256
QUEUE_BYTES = 256 * 1024


class ServerPhase(Enum):
    GREETING = auto()
    AUTHENTICATING = auto()
    OPEN = auto()
    CLOSED = auto()


# Requests to the reader


class Authenticate(NamedTuple):
    """Authenticate the token, and report to `authenticated` or `refuse`."""

    token: str
    device_id: DeviceID


class Store(NamedTuple):
    """Inject these messages, and report to `stored` or `unavailable`.
    An entry that is already rejected is a Result."""

    n: int
    messages: tuple[Message | Result, ...]


# Effects for the writer


class CatchUp(NamedTuple):
    """Read a sync for the device from this cursor, and pass it to `synced`."""

    cursor: Time


Request: TypeAlias = Authenticate | Store
Effect: TypeAlias = Send | CatchUp | Close


class ServerSession:
    """The node's side of one conversation. It does no I/O; it returns requests and effects."""

    def __init__(self) -> None:
        self.phase = ServerPhase.GREETING
        self.uid: UID = ""
        self.device_id: DeviceID = ""
        self.cursor: Time = 0
        self.position: Time = 0
        self.slow_consumer_resets = 0  # how often the queue overflowed and was dropped
        self._resync_from: Time | None = None  # the cursor of the next CatchUp, if one is needed
        self._catching_up = False
        self._sync_start: Time = 0  # the cursor of the CatchUp in progress
        self._buffered: list[Publication] = []  # published during the CatchUp
        self._control_frames: list[Frame] = []
        self._pages: Iterator[SyncPage] | None = None
        self._pending: list[Publication] = []
        self._pending_messages = 0
        self._out_of_band: list[OutOfBandMessage] = []
        self._queued_bytes = 0
        self._close: Close | None = None

    @property
    def lagging(self) -> bool:
        """Whether the device has to be synced from the store."""
        return self._resync_from is not None or self._catching_up

    # The reader

    def receive(self, text: str | None) -> Request | None:
        """Process a frame: its text, or None for a binary frame."""
        if self.phase is ServerPhase.CLOSED:
            return None
        try:
            if text is None:
                raise ProtocolError("frames are JSON text; this one is binary")
            return self._dispatch(decode_device_frame(text))
        except ProtocolError as error:
            self.refuse(error)
        except GregorError as error:
            if self.phase is ServerPhase.OPEN:
                self._queue_control(Error.of(error))
            else:
                self.refuse(ProtocolError(f"the first frame must be a hello: {error.message}"))
        return None

    def _dispatch(self, frame: DeviceFrame) -> Request | None:
        match self.phase, frame:
            case ServerPhase.GREETING, Hello(protocol=protocol) if protocol != PROTOCOL:
                raise ProtocolError(
                    f"this node supports protocol {PROTOCOL}, not {protocol}; update the older side"
                )
            case ServerPhase.GREETING, Hello(token=token, device_id=device_id, cursor=cursor):
                self.phase = ServerPhase.AUTHENTICATING
                self.device_id, self.cursor = device_id, cursor
                return Authenticate(token, device_id)
            case ServerPhase.OPEN, Verify(cursor):
                self._resync_from = cursor
                return None
            case ServerPhase.OPEN, Consume(n, messages) if not 1 <= len(messages) <= MAX_BATCH:
                error = TooLarge(f"a consume takes 1 to {MAX_BATCH} messages, not {len(messages)}")
                self._queue_control(Error.of(error, n))
                return None
            case ServerPhase.OPEN, Consume(n, messages):
                return Store(n, tuple(self._parse(message) for message in messages))
            case _:
                name = type(frame).__struct_config__.tag
                raise ProtocolError(f"a {name} frame is not allowed in phase {self.phase.name}")

    def _parse(self, json: Raw) -> Message | Result:
        try:
            message = parse_message(json, uid=self.uid)
            if message.uid != self.uid:
                raise Forbidden("a device may only write messages of its own user", field="uid")
            return message
        except (InvalidMessage, TooLarge, Forbidden) as error:
            return Result("rejected", error=Problem.of(error))

    def authenticated(self, uid: UID, now: Time) -> None:
        """The token belongs to this user. The transport attaches the session, then calls `next`."""
        self.phase = ServerPhase.OPEN
        self.uid = uid
        self._resync_from = self.cursor
        self._queue_control(Welcome(uid, self.device_id, now, Limits()))

    def resume(self, uid: UID, device_id: DeviceID, cursor: Time) -> None:
        """Open the session without a hello: the transport knows the user, device and cursor."""
        self.phase = ServerPhase.OPEN
        self.uid, self.device_id, self.cursor = uid, device_id, cursor
        self._resync_from = cursor

    def stored(self, n: int, results: Sequence[Result]) -> None:
        """The results of a Store; the stored messages are durable."""
        self._queue_control(Ack(n, tuple(results)))

    def unavailable(self, n: int, error: GregorError) -> None:
        """The store did not answer; the device will retry the messages of this Store."""
        self._queue_control(Error.of(error, n))

    def refuse(self, error: GregorError) -> None:
        """Send the error, and close the conversation."""
        self._queue_control(Error.of(error))
        self._close_session(error.close_code, error.code)

    def hello_timed_out(self) -> None:
        """The time-out for the hello has passed; ignored if a hello has come."""
        if self.phase is ServerPhase.GREETING:
            self.refuse(HelloTimeout("no hello came in time"))

    def go_away(self, reconnect_after_ms: int) -> None:
        """The node is about to stop; the device reconnects within this time."""
        self._queue_control(GoAway(reconnect_after_ms))

    def close(self, code: int, reason: str) -> None:
        """Close the conversation. Idempotent."""
        self._close_session(code, reason)

    # Publications and syncs

    def publish(self, publication: Publication) -> None:
        """Queue new messages of this user. Parts that are scoped to other devices are left out."""
        if self.phase is not ServerPhase.OPEN or self._resync_from is not None:
            return  # the pending CatchUp will read it from the store
        if self._catching_up:
            self._buffered.append(publication)
            self._queued_bytes += publication.size
            self._check_queue(len(self._buffered))
        elif publication.cursor > self.position:
            self._enqueue(publication)

    def _enqueue(self, publication: Publication) -> None:
        if publication.prev != self.position:
            # There is a gap, or the publication is a gap repair that starts before our position.
            # Such a repair leaves out items that are dead, together with their dismissals; but
            # this device may already have received those items.
            self._drop_queue()
            return
        self._pending.append(publication)
        self._pending_messages += len(publication.messages)
        self.position = publication.cursor
        self._queued_bytes += publication.size
        self._check_queue(self._pending_messages)

    def deliver_out_of_band(self, message: OutOfBandMessage) -> None:
        """Queue an out-of-band message; it is dropped if the queue is full."""
        size = len(memoryview(message.raw_body))
        if self.phase is ServerPhase.OPEN and self._queued_bytes + size <= QUEUE_BYTES:
            self._out_of_band.append(message)
            self._queued_bytes += size

    def synced(self, sync: Sync) -> None:
        """The store has answered the CatchUp."""
        self._catching_up = False
        self._pages = pages(sync, self._sync_start)
        self.cursor = self.position = sync.cursor
        # The sync contains what is pending. Sent after the sync, it would bring back items that
        # have died since.
        self._clear_pending()
        buffered, self._buffered = self._buffered, []
        for publication in buffered:
            self.publish(publication)

    def _check_queue(self, messages: int) -> None:
        if messages > QUEUE_MESSAGES or self._queued_bytes > QUEUE_BYTES:
            self.slow_consumer_resets += 1
            self._drop_queue()

    def _drop_queue(self) -> None:
        self._buffered, self._out_of_band = [], []
        self._clear_pending()
        self._resync_from = self.cursor

    # The writer

    def next(self) -> Effect | None:
        """The next effect, when the socket accepts data; None if there is nothing to do."""
        if self._control_frames:
            return Send(self._control_frames.pop(0))
        if self._close is not None:
            close, self._close = self._close, None
            return close
        if self.phase is not ServerPhase.OPEN:
            return None
        if self._out_of_band:
            message = self._out_of_band.pop(0)
            self._queued_bytes -= len(memoryview(message.raw_body))
            return Send(OutOfBand(message.system, message.raw_body))
        if self._pages is not None:
            page = next(self._pages, None)
            if page is not None:
                return Send(page)
            self._pages = None
        if self._resync_from is not None and not self._catching_up:
            self._sync_start, self._resync_from = self._resync_from, None
            self._catching_up = True
            return CatchUp(self._sync_start)
        if self._pending and not self._catching_up:
            return self._next_messages()
        return None

    def _next_messages(self) -> Send | None:
        """All pending messages in one frame; None if none of them is for this device."""
        pending = self._pending
        self._clear_pending()
        send = pending[0].shared_frame
        if send is None or len(pending) > 1 or pending[0].prev != self.cursor:
            messages = tuple(m for p in pending for m in p.addressed_to(self.device_id))
            if not messages:
                return None
            send = Send(Messages(self.cursor, messages, self.position))
        self.cursor = self.position
        return send

    def _clear_pending(self) -> None:
        self._pending, self._pending_messages = [], 0
        self._queued_bytes = sum(len(memoryview(m.raw_body)) for m in self._out_of_band)

    def _queue_control(self, frame: Frame) -> None:
        if len(self._control_frames) < QUEUE_MESSAGES:
            self._control_frames.append(frame)
        else:
            self._close_session(TooSlow.close_code, "the device does not read its answers")

    def _close_session(self, code: int, reason: str) -> None:
        if self.phase is not ServerPhase.CLOSED:
            self.phase = ServerPhase.CLOSED
            self._close = Close(code, reason)
