"""The node's side of one conversation: a pure state machine.

Input is a frame (`receive`) or an event (`opened`, `publish`, `synced`, …). A transport has
two tasks, and each gets its own output. The reader gets from `receive` a request to carry out
before the next frame: Authenticate or Store. The writer calls `next()` whenever the socket accepts
data, and gets an effect: Send a frame, CatchUp (read a sync from the store, and pass it to
`synced`), ReadItems (read the next items of a large snapshot), or Close.

A session has three parts. The handshake (`handshake.py`) has a phase, which decides what frames are
allowed. The delivery state (`delivery_state.py`) decides where messages come from: publications, or
the store. The queue (`outbound_queue.py`) holds what waits for the socket. The first two have a
table of their transitions; this module turns frames and calls into events of these tables.

Delivery uses three positions on the user's clock, in ascending order: `cursor`, up to which
messages were sent to the device; `position`, up to which they are sent or pending here; and the
position up to which they are published. A publication that continues `position` is queued for the
writer. After a gap, or when the queue is full, the session drops its queue, and syncs the device
from the store as soon as the socket accepts data. So a slow consumer uses bounded memory, delays no
other device, and misses no in-band message.

An open session has the user's epoch (the ctime of the last erase), which was read when it was
opened. Each read of the store, and the outcome of each message, says what it is now. A later epoch
ends the conversation with an `erased` frame; an earlier one shows that the store has lost messages,
so the device connects again.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, Message, OutOfBandMessage
from gregor.core.state import Item
from gregor.core.sync import Snapshot, Sync
from gregor.errors import (
    Action,
    Erased,
    GregorError,
    HelloTimeout,
    LimitExceeded,
    ProtocolError,
    Resync,
    TooLarge,
    TooSlow,
    Unavailable,
)
from gregor.interfaces import Erasure, Outcome, Rejected
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.protocol.consume_order import ConsumeOrder
from gregor.protocol.delivery_state import (
    LIVE,
    DeliveryEvent,
    DeliveryState,
    Incomplete,
    ItemsRead,
    Lagging,
    Live,
    PageSent,
    Paging,
    ReadingItems,
    ReadingStore,
    ReadStarted,
    SyncNeeded,
    SyncRead,
    after,
)
from gregor.protocol.effects import Close, Send
from gregor.protocol.entries import read_entries
from gregor.protocol.frames import (
    Ack,
    Consume,
    DeviceFrame,
    Error,
    Frame,
    GoAway,
    Hello,
    Messages,
    Result,
    UserErased,
    Verify,
    Welcome,
    consume_number,
    decode_device_frame,
)
from gregor.protocol.handshake import Handshake, Phase
from gregor.protocol.outbound_queue import OutboundQueue
from gregor.protocol.publication import Publication

# Requests to the reader


class Authenticate(NamedTuple):
    """Authenticate the token, and report to `reading` and `opened`, or to `refuse`."""

    token: str
    device_id: DeviceID


class Store(NamedTuple):
    """Inject these messages, whose sender knows the session's `epoch`, and report to `stored` or
    `unavailable`. An entry that is already rejected is Rejected."""

    n: int
    entries: Sequence[Message | Rejected]


# Effects for the writer


class CatchUp(NamedTuple):
    """Read a sync for the device from this cursor, and pass it to `synced`."""

    cursor: Time


class ReadItems(NamedTuple):
    """Read the items of a snapshot with these ctimes, and pass them to `items_read`."""

    ctimes: Sequence[Time]


Request: TypeAlias = Authenticate | Store
Effect: TypeAlias = Send | CatchUp | ReadItems | Close


class Rates(Protocol):
    """What the user still may do now, on all connections together. Each `take_…` counts, unless it
    returns an error: then the user has to wait. `exceeded` reports a limit of the connection
    itself, and returns its error."""

    def take_messages(self, uid: UID, messages: int, size: int) -> GregorError | None: ...
    def take_sync(self, uid: UID) -> GregorError | None: ...
    def exceeded(self, error: LimitExceeded) -> LimitExceeded: ...


class Unlimited:
    """Rates that never refuse."""

    def take_messages(self, uid: UID, messages: int, size: int) -> None:
        return None

    def take_sync(self, uid: UID) -> None:
        return None

    def exceeded(self, error: LimitExceeded) -> LimitExceeded:
        return error


NO_RATES = Unlimited()


class ServerSession:
    """The node's side of one conversation. It does no I/O; it returns requests and effects."""

    __slots__ = (
        "_consumes",
        "_handshake",
        "_has_synced",
        "_last_erase",
        "_limits",
        "_queue",
        "_rates",
        "cursor",
        "delivery",
        "epoch",
        "position",
        "slow_consumer_resets",
    )

    def __init__(self, limits: Limits = DEFAULT_LIMITS, rates: Rates = NO_RATES) -> None:
        self._limits = limits
        self._rates = rates
        self._consumes = ConsumeOrder(limits.consumes_in_flight)
        self.cursor: Time = 0
        self.position: Time = 0
        self.epoch: Time = 0  # of the user, while the session is open
        self.slow_consumer_resets = 0  # how often the queue overflowed and was dropped
        self.delivery: DeliveryState | None = None  # while the session is open
        self._handshake = Handshake()
        self._last_erase: Time = 0  # of those that were heard of before the session was open
        self._has_synced = False
        self._queue = OutboundQueue()

    @property
    def phase(self) -> Phase:
        return self._handshake.phase

    @property
    def uid(self) -> UID:
        """The user, when the device is authenticated; before that, an empty text."""
        return self._handshake.uid

    @property
    def device_id(self) -> DeviceID:
        return self._handshake.device_id

    @property
    def lagging(self) -> bool:
        """Whether the device has to be synced from the store."""
        match self.delivery:
            case None | Live() | Paging(then=Live()):
                return False
            case Incomplete(then=Live()) | ReadingItems(then=Live()):
                return False
            case _:
                return True

    # The reader

    def receive(self, text: str | None) -> Request | None:
        """Process a frame: its text, or None for a binary frame."""
        if self.phase is Phase.CLOSED:
            return None
        try:
            if text is None:
                raise ProtocolError("frames are JSON text; this one is binary")
            return self._dispatch(decode_device_frame(text), len(text))
        except ProtocolError as error:
            self.refuse(error)
        except GregorError as error:
            if self.phase is Phase.OPEN:
                self._queue_control(Error.of(error, consume_number(text or "")))
            else:
                self.refuse(ProtocolError(f"the first frame must be a hello: {error.message}"))
        return None

    def _dispatch(self, frame: DeviceFrame, size: int) -> Request | None:
        match self.phase, frame:
            case Phase.GREETING, Hello() as hello:
                self._handshake.hello(hello)
                self.cursor = hello.cursor
                return Authenticate(hello.token, hello.device_id)
            case Phase.OPEN, Verify(cursor):
                self._verify(cursor)
                return None
            case Phase.OPEN, Consume() as consume:
                return self._consume(consume, size)
            case _:
                name = type(frame).__struct_config__.tag
                raise ProtocolError(f"a {name} frame is not allowed in phase {self.phase.name}")

    def _verify(self, cursor: Time) -> None:
        error = self._rates.take_sync(self.uid)
        if error is None:
            self._sync_from(cursor)
        else:
            self.refuse(error)

    def _consume(self, consume: Consume, size: int) -> Store | None:
        n, messages = consume.n, consume.messages
        error = self._against(consume, size)
        self._consumes.received(consume, error)
        if error is not None:
            self._queue_control(Error.of(error, n))
            return None
        entries = read_entries(messages, self.uid.__eq__, uid=self.uid, limits=self._limits)
        return Store(n, entries)

    def _against(self, consume: Consume, size: int) -> GregorError | None:
        """Why a consume cannot be taken now, before any of its messages is read."""
        # An earlier refusal first: whatever was written after it has the same answer.
        if (earlier := self._consumes.waiting(consume)) is not None:
            return earlier
        count, largest = len(consume.messages), self._limits.messages
        if not 1 <= count <= largest:
            return TooLarge(f"a consume takes 1 to {largest} messages, not {count}")
        if (too_many := self._consumes.too_many()) is not None:
            return self._rates.exceeded(too_many)
        return self._rates.take_messages(self.uid, count, size)

    def resume(self, device_id: DeviceID, cursor: Time, epoch: Time | None) -> None:
        """The transport says in place of a hello who the device is, and what it knows. It
        authenticates the device itself, and reports as after Authenticate."""
        if self._handshake.resume(device_id, epoch):
            self.cursor = cursor

    def reading(self) -> None:
        """The device is authenticated. The transport has attached the session, and now reads a sync
        from the cursor, for `opened`. What is published meanwhile is kept."""
        if self.phase is Phase.AUTHENTICATING:
            self.delivery = ReadingStore(self.cursor, LIVE)

    def opened(self, uid: UID, sync: Sync, now: Time, issued_at: Time | None) -> None:
        """The store has answered the read that began with `reading`. The token belongs to this
        user, and was issued then (None: not known). Refuses the device if the user was erased since
        it was here, or since the token was issued. Ignored if the conversation was closed
        meanwhile."""
        if not self._handshake.authenticated(uid):
            return
        try:
            erasure = Erasure(sync.epoch, sync.erased_at)
            erasure.require_current(self._handshake.epoch, issued_at)
        except GregorError as error:
            self.refuse(error)
        else:
            self._open(sync, now)
            self.erased(self._last_erase)

    def _open(self, sync: Sync, now: Time) -> None:
        self.epoch = sync.epoch
        self._queue_control(Welcome(self.uid, self.device_id, now, self._limits, sync.epoch))
        if (self._handshake.epoch or 0) > sync.epoch:  # the store is a restored backup
            self.cursor = 0
            self._queue.take_publications()
            self.delivery = Lagging(0)
        else:
            self.synced(sync)

    def stored(self, n: int, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of a Store. If one message has to be retried, the device retries all of
        them. That is safe, because storing a message is idempotent."""
        for outcome in outcomes:
            if isinstance(outcome, Rejected) and self._is_answer(n, outcome.error):
                return
        self._consumes.stored(n)
        self._queue_control(Ack(n, tuple(map(Result.of, outcomes))))

    def _is_answer(self, n: int, error: GregorError) -> bool:
        """Whether the error of one message is the answer to its consume. If so, it is given."""
        match error:
            case Erased(epoch=epoch):
                self.erased(epoch)
            case Resync():  # the store has an earlier epoch than the device
                self._refuse_lost()
            case GregorError(action=Action.RETRY):
                self.unavailable(n, Unavailable(error.message))
            case _:
                return False
        return True

    def unavailable(self, n: int, error: GregorError) -> None:
        """The store did not answer; the device will retry the messages of this Store. Until it
        does, no later consume is taken."""
        self._consumes.refused(n, error)
        self._queue_control(Error.of(error, n))

    def erased(self, epoch: Time) -> None:
        """The user was erased at this ctime. A device that does not know it is told, and closed;
        before the session is open, when it would open: what was read for that may be older."""
        if self.phase is Phase.OPEN and epoch > self.epoch:
            self.refuse(Erased("the user was erased", epoch=epoch))
        elif self.phase is Phase.AUTHENTICATING:
            self._last_erase = max(self._last_erase, epoch)

    def refuse(self, error: GregorError) -> None:
        """Send the error, and close the conversation."""
        frame = (
            UserErased(error.epoch, self.uid or None)
            if isinstance(error, Erased)
            else Error.of(error)
        )
        self._queue_control(frame)
        self.close(error.close_code, error.code)

    def _refuse_lost(self) -> None:
        self.refuse(Unavailable("the store has lost messages; connect again"))

    def hello_timed_out(self) -> None:
        """The time-out for the hello has passed; ignored if a hello has come."""
        if self.phase is Phase.GREETING:
            self.refuse(HelloTimeout("no hello came in time"))

    def go_away(self, reconnect_after_ms: int) -> None:
        """The node is about to stop; the device reconnects within this time."""
        self._queue_control(GoAway(reconnect_after_ms))

    def close(self, code: int, reason: str) -> None:
        """Close the conversation. Idempotent."""
        if self._handshake.close():
            self.delivery = None
            self._queue.end(Close(code, reason))

    def _queue_control(self, frame: Frame) -> None:
        if not self._queue.add_control_frame(frame):
            self.close(TooSlow.close_code, "the device does not read its answers")

    # Publications and syncs

    def publish(self, publication: Publication) -> None:
        """Queue new messages of this user. Parts that are scoped to other devices are left out."""
        match self.delivery:
            case Live() | Paging(then=Live()) | Incomplete(then=Live()) | ReadingItems(then=Live()):
                if publication.cursor > self.position:
                    self._continue_with(publication)
            case ReadingStore(then=Live()):
                self._enqueue(publication)
            case _:
                pass  # the next sync will contain it, if there is one

    def sync_again(self) -> None:
        """The store may have lost messages that the device received: sync it from its cursor. The
        device compares the hash of the result, and asks for a snapshot if it differs."""
        match self.delivery:
            case Lagging() | ReadingStore():
                pass  # the sync that is due will do; the node reads again what is out of date
            case _:
                self._sync_from(self.cursor)

    def _continue_with(self, publication: Publication) -> None:
        if publication.prev != self.position:
            # There is a gap, or the publication is a gap repair that starts before our position.
            # Such a repair leaves out items that are dead, together with their dismissals; but
            # this device may already have received those items.
            self._fall_behind()
        else:
            self.position = publication.cursor
            self._enqueue(publication)

    def _enqueue(self, publication: Publication) -> None:
        if not self._queue.add_publication(publication):
            self.slow_consumer_resets += 1
            self._fall_behind()

    def _fall_behind(self) -> None:
        self._queue.drop_out_of_band()
        self._sync_from(self.cursor)

    def _sync_from(self, cursor: Time) -> None:
        """Sync the device from the store. The sync contains all that is pending now."""
        self._queue.take_publications()
        self.position = self.cursor
        self._move(SyncNeeded(cursor))

    def _move(self, event: DeliveryEvent) -> None:
        if self.delivery is not None:
            self.delivery = after(self.delivery, event)

    def deliver_out_of_band(self, message: OutOfBandMessage) -> None:
        """Queue an out-of-band message; it is dropped if the queue is full."""
        if self.phase is Phase.OPEN:
            self._queue.add_out_of_band(message)

    def synced(self, sync: Sync) -> None:
        """The store has answered the CatchUp."""
        if sync.epoch > self.epoch:
            self.erased(sync.epoch)
            return
        if sync.epoch < self.epoch or (self._has_synced and sync.cursor < self.cursor):
            # The store has lost messages. A device goes back with the first sync of a connection
            # only, because a later page that ends before its cursor may be an old one.
            self._refuse_lost()
            return
        self._has_synced = True
        self._move(SyncRead(sync))
        self.cursor = self.position = sync.cursor
        for publication in self._queue.take_publications():
            self.publish(publication)

    def items_read(self, items: Sequence[Item]) -> None:
        """The store has answered the ReadItems."""
        self._move(ItemsRead(tuple(items)))

    # The writer

    def next(self) -> Effect | None:
        """The next effect, when the socket accepts data; None if there is nothing to do."""
        urgent = self._queue.next_urgent()
        if urgent is not None:
            if isinstance(urgent, Send):
                self._consumes.sent(urgent.frame)
            return urgent
        match self.delivery:
            case Live():
                return self._next_messages()
            case Lagging(cursor):
                self._move(ReadStarted())
                return CatchUp(cursor)
            case Incomplete(Sync(content=Snapshot(unread=(ctimes, *_)))):
                self._move(ReadStarted())
                return ReadItems(ctimes)
            case Paging(pages):
                self._move(PageSent())
                return Send(pages[0])
            case _:
                return None

    def _next_messages(self) -> Send | None:
        """All pending messages in one frame; None if none of them is for this device, whose cursor
        then stays where it is."""
        publications = self._queue.take_publications()
        if not publications:
            return None
        send = self._frame_of(publications)
        if send is not None:
            self.cursor = self.position
        return send

    def _frame_of(self, publications: Sequence[Publication]) -> Send | None:
        first = publications[0]
        if len(publications) == 1 and first.prev == self.cursor and first.shared_frame is not None:
            return first.shared_frame
        messages = tuple(m for p in publications for m in p.addressed_to(self.device_id))
        return Send(Messages(self.cursor, messages, self.position)) if messages else None
