"""The node's side of one conversation.

    GREETING ── hello ──▶ AUTHENTICATING ── authenticated ──▶ OPEN ──▶ CLOSED

What comes in is a frame (`receive`) or an event (`authenticated`, `publish`, `synced`, …). What
should happen is told in two ways, for the two hands of a transport. The reading hand gets from
`receive` what to do before it reads on: Authenticate or Store. The writing hand asks `next()`
whenever it may write, and is told to Send a frame, to CatchUp (read a sync from the store, and
bring it to `synced`), or to Close.

Delivery holds three positions on the user's clock: `cursor`, what the device has been told;
`position`, what waits here to be told, never less; and what is published, never less again. A
publication that continues `position` waits for the writing hand. One that does not, or one more
than the queue holds, makes the session lag: what waits is dropped, and the device is told from
the store as soon as its socket takes more. So a slow device costs a bounded amount of memory and
nobody else's time, and never misses a message.
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
    InBandMessage,
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
    encode,
    pages,
)

QUEUE_MESSAGES = 256
QUEUE_BYTES = 256 * 1024


class Phase(Enum):
    GREETING = auto()
    AUTHENTICATING = auto()
    OPEN = auto()
    CLOSED = auto()


class Publication(NamedTuple):
    """All that the user's clock passed from `prev` (exclusive) to `cursor`, in order.

    `said` is the frame that tells a device which knows all before it, the same for each device;
    None if something is meant for one device only. `size` is about what it takes, in bytes."""

    prev: Time
    messages: tuple[InBandMessage, ...]
    cursor: Time
    size: int
    said: "Send | None"

    @classmethod
    def of(cls, *messages: InBandMessage) -> "Publication":
        """Of messages that follow one another."""
        return cls.stretch(messages[0].prev, messages, messages[-1].ctime)

    @classmethod
    def stretch(
        cls, prev: Time, messages: tuple[InBandMessage, ...], cursor: Time
    ) -> "Publication":
        frame = Messages(prev, messages, cursor)
        text = encode(frame)
        scoped = any(message.device_id is not None for message in messages)
        return cls(prev, messages, cursor, len(text), None if scoped else Send(frame, text))


# What the reading hand is asked to do


class Authenticate(NamedTuple):
    """See whose token this is, and bring the answer to `authenticated` or `refuse`."""

    token: str
    device_id: DeviceID


class Store(NamedTuple):
    """Inject these messages, and bring what becomes of them to `stored` or `unavailable`.
    An entry that was rejected already is its result."""

    n: int
    messages: tuple[Message | Result, ...]


# What the writing hand is asked to do


class Send(NamedTuple):
    """Write this frame."""

    frame: Frame
    known_text: str | None = None

    @property
    def text(self) -> str:
        return encode(self.frame) if self.known_text is None else self.known_text


class CatchUp(NamedTuple):
    """Read a sync for the device from this cursor, and bring it to `synced`."""

    cursor: Time


class Close(NamedTuple):
    code: int
    reason: str


Request: TypeAlias = Authenticate | Store
Effect: TypeAlias = Send | CatchUp | Close


class ServerSession:
    """One device's conversation with a node. It does nothing; it says what is to be done."""

    def __init__(self) -> None:
        self.phase = Phase.GREETING
        self.uid: UID = ""
        self.device_id: DeviceID = ""
        self.cursor: Time = 0
        self.position: Time = 0
        self.lagged = 0  # how often this device was too slow for its queue
        self._behind: Time | None = None  # where the store has to take over
        self._catching_up = False
        self._start: Time = 0  # where the sync begins that is being read
        self._held: list[Publication] = []  # published while the store is being read
        self._control: list[Frame] = []
        self._pages: Iterator[SyncPage] | None = None
        self._waiting: list[Publication] = []
        self._waiting_messages = 0
        self._passing: list[OutOfBandMessage] = []
        self._queued_bytes = 0
        self._close: Close | None = None

    @property
    def lagging(self) -> bool:
        """Whether the device waits for the store."""
        return self._behind is not None or self._catching_up

    # The reading hand

    def receive(self, text: str | None) -> Request | None:
        """A frame has come: its text, or None for one that is not text."""
        if self.phase is Phase.CLOSED:
            return None
        try:
            if text is None:
                raise ProtocolError("frames are JSON text; this one is binary")
            return self._frame(decode_device_frame(text))
        except ProtocolError as error:
            self.refuse(error)
        except GregorError as error:
            if self.phase is Phase.OPEN:
                self._say(Error.of(error))
            else:
                self.refuse(ProtocolError(f"the first frame must be a hello: {error.message}"))
        return None

    def _frame(self, frame: DeviceFrame) -> Request | None:
        match self.phase, frame:
            case Phase.GREETING, Hello(protocol=protocol) if protocol != PROTOCOL:
                raise ProtocolError(f"this node speaks protocol {PROTOCOL}, not {protocol}")
            case Phase.GREETING, Hello(token=token, device_id=device_id, cursor=cursor):
                self.phase = Phase.AUTHENTICATING
                self.device_id, self.cursor = device_id, cursor
                return Authenticate(token, device_id)
            case Phase.OPEN, Verify(cursor):
                self._behind = cursor
                return None
            case Phase.OPEN, Consume(n, messages) if not 1 <= len(messages) <= MAX_BATCH:
                error = TooLarge(f"a consume takes 1 to {MAX_BATCH} messages, not {len(messages)}")
                self._say(Error.of(error, n))
                return None
            case Phase.OPEN, Consume(n, messages):
                return Store(n, tuple(self._read(message) for message in messages))
            case _:
                name = type(frame).__struct_config__.tag
                raise ProtocolError(f"a {name} frame does not belong here ({self.phase.name})")

    def _read(self, json: Raw) -> Message | Result:
        try:
            message = parse_message(json, uid=self.uid)
            if message.uid != self.uid:
                raise Forbidden("a device writes only for its own user", field="uid")
            return message
        except (InvalidMessage, TooLarge, Forbidden) as error:
            return Result("rejected", error=Problem.of(error))

    def authenticated(self, uid: UID, now: Time) -> None:
        """The token is this user's. The transport attaches the session, then asks `next`."""
        self.phase = Phase.OPEN
        self.uid = uid
        self._behind = self.cursor
        self._say(Welcome(uid, self.device_id, now, Limits()))

    def resume(self, uid: UID, device_id: DeviceID, cursor: Time) -> None:
        """Begin in the middle: who it is and what it knows was said by other means."""
        self.phase = Phase.OPEN
        self.uid, self.device_id, self.cursor = uid, device_id, cursor
        self._behind = cursor

    def stored(self, n: int, results: Sequence[Result]) -> None:
        """What became of the messages of a Store; all that is stored is durable."""
        self._say(Ack(n, tuple(results)))

    def unavailable(self, n: int, error: GregorError) -> None:
        """The store did not answer; the device will send the messages of this Store again."""
        self._say(Error.of(error, n))

    def refuse(self, error: GregorError) -> None:
        """Say what is wrong, and end the conversation."""
        self._say(Error.of(error))
        self._end(error.close_code, error.code)

    def greeting_expired(self) -> None:
        """Nobody has said hello in time."""
        if self.phase is Phase.GREETING:
            self.refuse(HelloTimeout("no hello came in time"))

    def go_away(self, reconnect_after_ms: int) -> None:
        """The node is about to leave; the device comes back within this window."""
        self._say(GoAway(reconnect_after_ms))

    def leave(self, code: int, reason: str) -> None:
        """End the conversation from this side."""
        self._end(code, reason)

    # What is published

    def publish(self, publication: Publication) -> None:
        """Something new for this user. What it holds for other devices is left out."""
        if self.phase is not Phase.OPEN or self._behind is not None:
            return  # the store is about to be read, and has it
        if self._catching_up:
            self._held.append(publication)
            self._queued_bytes += publication.size
            self._check_queue(len(self._held))
        elif publication.cursor > self.position:
            self._continue_with(publication)

    def _continue_with(self, publication: Publication) -> None:
        if publication.prev != self.position:
            # A gap; or a stretch that begins before our position, from which the store has left
            # out deaths of items that this device, and it alone, was told of meanwhile.
            self._lag()
            return
        self._waiting.append(publication)
        self._waiting_messages += len(publication.messages)
        self.position = publication.cursor
        self._queued_bytes += publication.size
        self._check_queue(self._waiting_messages)

    def pass_by(self, message: OutOfBandMessage) -> None:
        """An out-of-band message. A device too slow to take it misses it."""
        size = len(memoryview(message.raw_body))
        if self.phase is Phase.OPEN and self._queued_bytes + size <= QUEUE_BYTES:
            self._passing.append(message)
            self._queued_bytes += size

    def synced(self, sync: Sync) -> None:
        """The store has answered a CatchUp."""
        self._catching_up = False
        self._pages = pages(sync, self._start)
        self.cursor = self.position = sync.cursor
        # What waited when the device asked is in the sync; and what of it has died since must not
        # be told after it.
        self._forget_what_waits()
        held, self._held = self._held, []
        for publication in held:
            self.publish(publication)

    def _check_queue(self, messages: int) -> None:
        if messages > QUEUE_MESSAGES or self._queued_bytes > QUEUE_BYTES:
            self.lagged += 1
            self._lag()

    def _lag(self) -> None:
        self._held, self._passing = [], []
        self._forget_what_waits()
        self._behind = self.cursor

    # The writing hand

    def next(self) -> Effect | None:
        """What to do now that the socket takes more; None if there is nothing to do."""
        if self._control:
            return Send(self._control.pop(0))
        if self._close is not None:
            close, self._close = self._close, None
            return close
        if self.phase is not Phase.OPEN:
            return None
        if self._passing:
            message = self._passing.pop(0)
            self._queued_bytes -= len(memoryview(message.raw_body))
            return Send(OutOfBand(message.system, message.raw_body))
        if self._pages is not None:
            page = next(self._pages, None)
            if page is not None:
                return Send(page)
            self._pages = None
        if self._behind is not None and not self._catching_up:
            self._start, self._behind = self._behind, None
            self._catching_up = True
            return CatchUp(self._start)
        if self._waiting and not self._catching_up:
            return self._news()
        return None

    def _news(self) -> Send | None:
        """All that waits, in one frame; None if none of it is for this device."""
        waiting = self._waiting
        self._forget_what_waits()
        said = waiting[0].said
        if said is None or len(waiting) > 1 or waiting[0].prev != self.cursor:
            addressed = (m.addressed_to(self.device_id) for p in waiting for m in p.messages)
            messages = tuple(message for message in addressed if message is not None)
            if not messages:
                return None
            said = Send(Messages(self.cursor, messages, self.position))
        self.cursor = self.position
        return said

    def _forget_what_waits(self) -> None:
        self._waiting, self._waiting_messages = [], 0
        self._queued_bytes = sum(len(memoryview(m.raw_body)) for m in self._passing)

    def _say(self, frame: Frame) -> None:
        if len(self._control) < QUEUE_MESSAGES:
            self._control.append(frame)
        else:
            self._end(TooSlow.close_code, "answers are not taken")

    def _end(self, code: int, reason: str) -> None:
        if self.phase is not Phase.CLOSED:
            self.phase = Phase.CLOSED
            self._close = Close(code, reason)
