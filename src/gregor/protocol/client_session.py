"""The device's side of one conversation: a pure state machine.

    GREETING ── welcome ──▶ SYNCING ── last page ──▶ LIVE

Input is a frame or an event; output is a list of effects, which the transport carries out in order.
The session knows the replica's cursor, which decides whether a frame continues what the replica
knows; it has no access to the replica itself. At most one `consume` is in flight.
"""

from collections.abc import Sequence
from enum import Enum, auto
from typing import NamedTuple, TypeAlias

from msgspec import Raw

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, InBandMessage, Message, MsgID
from gregor.core.state import DismissedRange, Item, Snapshot
from gregor.errors import Action
from gregor.protocol.effects import Send
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
    encode,
)
from gregor.protocol.later_versions import decode_node_frame


class ClientPhase(Enum):
    GREETING = auto()
    SYNCING = auto()
    LIVE = auto()


class Welcomed(NamedTuple):
    """The node has authenticated this user. A consume may hold up to `messages` messages."""

    uid: UID
    messages: int


class Apply(NamedTuple):
    """Replay these messages; the replica then knows everything up to `cursor`."""

    messages: tuple[InBandMessage, ...]
    cursor: Time


class Replace(NamedTuple):
    """Replace all that came from the server with this snapshot. Keep the outbox and the hidden
    items."""

    snapshot: Snapshot
    cursor: Time


class Compare(NamedTuple):
    """The sync is complete. Pass to `hash_compared` whether the state at `as_of` has this hash."""

    as_of: Time
    hash: str


class Acked(NamedTuple):
    """The results of the messages of the consume in flight, in order."""

    results: tuple[Result, ...]


class Deferred(NamedTuple):
    """The consume in flight was not processed; retry its messages later."""

    error: Error


class DeliverOutOfBand(NamedTuple):
    """Pass this out-of-band message to the application."""

    system: str
    body: Raw


class Failed(NamedTuple):
    """The node reports an error; `error.action` says what to do after it has disconnected."""

    error: Error


class Reconnect(NamedTuple):
    """Reconnect, to any node, after a random delay of up to `within_ms`."""

    within_ms: int


Effect: TypeAlias = (
    Send
    | Welcomed
    | Apply
    | Replace
    | Compare
    | Acked
    | Deferred
    | DeliverOutOfBand
    | Failed
    | Reconnect
)


class ClientSession:
    """The device's side of one conversation with a node. It does no I/O; it returns effects. Each
    connection has a new session, which starts at the replica's cursor."""

    def __init__(self, token: str, device_id: DeviceID, cursor: Time) -> None:
        self.phase = ClientPhase.GREETING
        self.cursor = cursor
        self.mismatches = 0
        self._token = token
        self._device_id = device_id
        self._consumes_sent = 0
        self._in_flight: int | None = None  # the `n` of the consume in flight
        self._from_snapshot = False
        # The first sync may end before our cursor: the node's store may be a restored backup.
        self._accept_older_snapshot = True
        self._highest_cursor: Time = 0  # of the frames that were ignored during a sync
        self._items: list[Item] = []
        self._dismissed_ids: list[tuple[MsgID, Time]] = []
        self._dismissed_ranges: list[DismissedRange] = []

    def opened(self) -> list[Effect]:
        """The connection is open: say hello."""
        hello = Hello(
            token=self._token, device_id=self._device_id, cursor=self.cursor, protocol=PROTOCOL
        )
        return [Send(hello)]

    @property
    def may_consume(self) -> bool:
        """Whether a consume may be sent: the node has welcomed us, and none is in flight."""
        return self.phase is not ClientPhase.GREETING and self._in_flight is None

    def consume(self, messages: Sequence[Message]) -> list[Effect]:
        """Send messages, if `may_consume`. Acked or Deferred will report their results."""
        if not self.may_consume or not messages:
            return []
        self._consumes_sent += 1
        self._in_flight = self._consumes_sent
        return [Send(Consume(self._consumes_sent, tuple(Raw(encode(m)) for m in messages)))]

    def verify(self, cursor: Time | None = None) -> list[Effect]:
        """Ask for a sync; from cursor 0 for a snapshot."""
        # Until a sync is complete, `messages` frames are ignored.
        self.phase = ClientPhase.SYNCING
        return [Send(Verify(self.cursor if cursor is None else cursor))]

    def hash_compared(self, equal: bool) -> list[Effect]:
        """Report whether the replica has the hash of a Compare. If not, the session requests a
        snapshot; unless the sync was a snapshot itself, since another one would not help."""
        if equal:
            return []
        self.mismatches += 1
        return [] if self._from_snapshot else self.verify(0)

    def receive(self, text: str | bytes) -> list[Effect]:
        """Process a frame. Raises Malformed if the text is not a frame; then nothing changes."""
        match decode_node_frame(text):
            case Welcome(uid=uid, limits=limits):
                self.phase = ClientPhase.SYNCING
                return [Welcomed(uid, limits.messages)]
            case SyncPage() as page:
                return self._sync(page)
            case Messages(prev, messages, cursor):
                return self._apply(prev, messages, cursor)
            case OutOfBand(system, body):
                return [DeliverOutOfBand(system, body)]
            case Ack(n, results):
                return [Acked(results)] if self._settle_consume(n) else []
            case Error(n=int(n)) as error:
                return [Deferred(error)] if self._settle_consume(n) else []
            case Error(action=Action.RESYNC):
                return self.verify(0)
            case Error() as error:
                return [Failed(error)]
            case GoAway(within):
                return [Reconnect(within)]
            case None:
                return []  # a frame type of a later version

    def _apply(self, prev: Time, messages: tuple[InBandMessage, ...], cursor: Time) -> list[Effect]:
        if cursor <= self.cursor:
            return []
        if self.phase is not ClientPhase.LIVE:
            # The sync in progress starts at our cursor, so the cursor must not move.
            self._highest_cursor = max(self._highest_cursor, cursor)
            return []
        if prev != self.cursor:
            return self.verify()
        self.cursor = cursor
        return [Apply(messages, cursor)]

    def _sync(self, page: SyncPage) -> list[Effect]:
        if not self._continues_cursor(page):
            self._highest_cursor = max(self._highest_cursor, page.cursor)
            if self.phase is ClientPhase.SYNCING or page.cursor <= self.cursor:
                return []
            return self.verify()
        self.phase = ClientPhase.SYNCING
        if page.mode == "changes":
            self.cursor = page.cursor
            effects: list[Effect] = [Apply(page.messages, page.cursor)]
        else:
            effects = self._add_snapshot_page(page)
        if page.more:
            return effects
        self.phase = ClientPhase.LIVE
        self._from_snapshot = page.mode == "snapshot"
        self._accept_older_snapshot = False
        effects.append(Compare(page.as_of, page.hash))
        return effects + (self.verify() if self._highest_cursor > self.cursor else [])

    def _continues_cursor(self, page: SyncPage) -> bool:
        """Whether a page continues from our cursor. A node sends an unrequested sync when it has
        dropped its queue for us, and a transport may deliver an old page again."""
        if page.mode == "changes":
            return page.prev == self.cursor
        return self._accept_older_snapshot or page.cursor >= self.cursor

    def _add_snapshot_page(self, page: SyncPage) -> list[Effect]:
        self._items += page.items
        self._dismissed_ids += page.dismissed_ids
        self._dismissed_ranges += page.dismissed_ranges
        if page.more:
            return []
        snapshot = Snapshot(
            tuple(self._items), tuple(self._dismissed_ids), tuple(self._dismissed_ranges)
        )
        self._items, self._dismissed_ids, self._dismissed_ranges = [], [], []
        self.cursor = page.cursor
        return [Replace(snapshot, page.cursor)]

    def _settle_consume(self, n: int) -> bool:
        if n != self._in_flight:
            return False
        self._in_flight = None
        return True
