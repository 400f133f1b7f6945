"""The device's side of one conversation.

    GREETING ── welcome ──▶ SYNCING ── last page ──▶ LIVE

A frame or an event comes in, effects come out, in the order in which they are to be carried out.
The session knows the replica's cursor, and by it whether a frame continues what the replica
knows; it never sees the replica itself. One `consume` is under way at a time.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from msgspec import Raw

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, InBandMessage, Message, MsgID
from gregor.core.state import DismissedRange, Item, Snapshot
from gregor.errors import Turn
from gregor.protocol.frames import (
    PROTOCOL,
    Ack,
    Consume,
    Error,
    GoAway,
    Hello,
    Messages,
    OutOfBand,
    Result,
    SyncPage,
    Verify,
    Welcome,
    decode_node_frame,
    encode,
)
from gregor.protocol.server import Send


class Phase(Enum):
    GREETING = auto()
    SYNCING = auto()
    LIVE = auto()


class Welcomed(NamedTuple):
    """The node knows us as this user; `messages` is how many a consume may hold."""

    uid: UID
    messages: int


class Apply(NamedTuple):
    """Replay these messages; the replica then knows everything up to `cursor`."""

    messages: tuple[InBandMessage, ...]
    cursor: Time


class Replace(NamedTuple):
    """Forget what the server told, and take this; outbox and hidden items stay."""

    snapshot: Snapshot
    cursor: Time


class Compare(NamedTuple):
    """The sync is complete. Bring to `compared` whether the state at `as_of` has this hash."""

    as_of: Time
    hash: str


class Acked(NamedTuple):
    """What became of the messages of the consume under way, in order."""

    results: tuple[Result, ...]


class Deferred(NamedTuple):
    """The consume under way was not taken; send its messages again later."""

    error: Error


class PassedBy(NamedTuple):
    system: str
    body: Raw


class Failed(NamedTuple):
    """The node says that something is wrong; `error.turn` says what to do once it has closed."""

    error: Error


class Reconnect(NamedTuple):
    """Come back, elsewhere or here, at a random moment within this time."""

    within_ms: int


Effect: TypeAlias = (
    Send | Welcomed | Apply | Replace | Compare | Acked | Deferred | PassedBy | Failed | Reconnect
)


class ClientSession:
    """One conversation with a node, from the device's side. It does nothing; it says what is to
    be done. A new connection is a new session, which begins at the replica's cursor."""

    def __init__(self, token: str, device_id: DeviceID, cursor: Time) -> None:
        self.phase = Phase.GREETING
        self.cursor = cursor
        self.mismatches = 0
        self._token = token
        self._device_id = device_id
        self._sent = 0
        self._under_way: int | None = None
        self._from_snapshot = False
        self._from_anywhere = True  # whether the sync to come may lead back, to a restored backup
        self._ahead: Time = 0  # the furthest cursor of a frame that came during a sync
        self._items: list[Item] = []
        self._ids: list[tuple[MsgID, Time]] = []
        self._ranges: list[DismissedRange] = []

    def opened(self) -> list[Effect]:
        """The connection stands."""
        hello = Hello(
            token=self._token, device_id=self._device_id, cursor=self.cursor, protocol=PROTOCOL
        )
        return [Send(hello)]

    @property
    def may_consume(self) -> bool:
        """Whether a consume may be sent: the node knows us, and none is under way."""
        return self.phase is not Phase.GREETING and self._under_way is None

    def consume(self, messages: Sequence[Message]) -> list[Effect]:
        """Send messages, if `may_consume`. Their fate comes back as Acked or Deferred."""
        if not self.may_consume or not messages:
            return []
        self._sent += 1
        self._under_way = self._sent
        return [Send(Consume(self._sent, tuple(Raw(encode(m)) for m in messages)))]

    def verify(self, cursor: Time | None = None) -> list[Effect]:
        """Ask for a sync; from cursor 0 for a snapshot."""
        self.phase = Phase.SYNCING  # the pages of an earlier sync are still sent to their end
        return [Send(Verify(self.cursor if cursor is None else cursor))]

    def compared(self, equal: bool) -> list[Effect]:
        """Whether the replica has the hash of a Compare. If not, a snapshot mends it; if it is
        the snapshot that does not fit, asking again would not help."""
        if equal:
            return []
        self.mismatches += 1
        return [] if self._from_snapshot else self.verify(0)

    def receive(self, text: str | bytes) -> list[Effect]:
        """A frame has come. Raises Malformed if it is none."""
        match decode_node_frame(text):
            case Welcome(uid=uid, limits=limits):
                self.phase = Phase.SYNCING
                return [Welcomed(uid, limits.messages)]
            case SyncPage() as page:
                return self._sync(page)
            case Messages(prev, messages, cursor):
                return self._continue(prev, messages, cursor)
            case OutOfBand(system, body):
                return [PassedBy(system, body)]
            case Ack(n, results):
                return [Acked(results)] if self._finished(n) else []
            case Error(n=int(n)) as error:
                return [Deferred(error)] if self._finished(n) else []
            case Error(turn=Turn.RESYNC):
                return self.verify(0)
            case Error() as error:
                return [Failed(error)]
            case GoAway(within):
                return [Reconnect(within)]

    def _continue(
        self, prev: Time, messages: tuple[InBandMessage, ...], cursor: Time
    ) -> list[Effect]:
        if cursor <= self.cursor:
            return []
        if self.phase is not Phase.LIVE:
            # The sync under way begins at our cursor, which therefore has to stay.
            self._ahead = max(self._ahead, cursor)
            return []
        if prev != self.cursor:
            return self.verify()
        self.cursor = cursor
        return [Apply(messages, cursor)]

    def _sync(self, page: SyncPage) -> list[Effect]:
        if not self._answers(page):
            self._ahead = max(self._ahead, page.cursor)
            return (
                [] if self.phase is Phase.SYNCING or page.cursor <= self.cursor else self.verify()
            )
        self.phase = Phase.SYNCING
        if page.mode == "changes":
            self.cursor = page.cursor
            effects: list[Effect] = [Apply(page.messages, page.cursor)]
        else:
            effects = self._collect(page)
        if page.more:
            return effects
        self.phase = Phase.LIVE
        self._from_snapshot = page.mode == "snapshot"
        self._from_anywhere = False
        effects.append(Compare(page.as_of, page.hash))
        return effects + (self.verify() if self._ahead > self.cursor else [])

    def _answers(self, page: SyncPage) -> bool:
        """Whether a page leads on from here. A node may send a sync unasked, when it had to drop
        what it had for us; and a transport that repeats may bring one of long ago."""
        if page.mode == "changes":
            return page.prev == self.cursor
        return self._from_anywhere or page.cursor >= self.cursor

    def _collect(self, page: SyncPage) -> list[Effect]:
        self._items += page.items
        self._ids += page.dismissed_ids
        self._ranges += page.dismissed_ranges
        if page.more:
            return []
        snapshot = Snapshot(tuple(self._items), tuple(self._ids), tuple(self._ranges))
        self._items, self._ids, self._ranges = [], [], []
        self.cursor = page.cursor
        return [Replace(snapshot, page.cursor)]

    def _finished(self, n: int) -> bool:
        if n != self._under_way:
            return False
        self._under_way = None
        return True
