"""The device's side of one conversation: a pure state machine.

Input is a frame or an event; output is a list of effects, which the transport carries out in order.
The session knows the replica's cursor, which decides whether a frame continues what the replica
knows; it has no access to the replica itself. `sync_state.py` has the states of a session, and the
table of their transitions; this module turns frames and calls into its events. At most one
`consume` is in flight.

It knows the user's epoch, too: the ctime of the last erase that the replica has heard of. A node
that knows a later one says so in an `erased` frame, or, if it was not told the epoch, in its
welcome. However the session hears of an erase, it then says to wipe the device.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

from msgspec import Raw, Struct, structs

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, InBandMessage, Message
from gregor.core.sync import Snapshot
from gregor.errors import Action, Erased, Forbidden
from gregor.limits import Limits
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
    UserErased,
    Verify,
    Welcome,
    encode,
)
from gregor.protocol.later_versions import decode_node_frame
from gregor.protocol.sync_state import (
    FrameIgnored,
    Greeting,
    PageAccepted,
    SyncExpected,
    Syncing,
    SyncState,
    UpToDate,
    after,
)


class Welcomed(NamedTuple):
    """The node has authenticated this user, and its clock shows `now`. A consume may hold up to
    `limits.messages` messages, which is at least one. The user's epoch is earlier than the
    replica's only if the store of the node is a restored backup: then a snapshot follows."""

    uid: UID
    limits: Limits
    now: Time
    epoch: Time


class Apply(NamedTuple):
    """Replay these messages; the replica then knows everything up to `cursor`."""

    messages: tuple[InBandMessage, ...]
    cursor: Time


class Replace(NamedTuple):
    """Replace all that came from the server with this snapshot. Keep the outbox and the hidden
    items. The replica then has this epoch (None: the one that it has)."""

    snapshot: Snapshot
    cursor: Time
    epoch: Time | None


class Compare(NamedTuple):
    """The sync is complete. Pass to `hash_compared` whether the state at `as_of` has this hash."""

    as_of: Time
    hash: str


class Acked(NamedTuple):
    """The results of the messages of the consume in flight, in order."""

    results: tuple[Result, ...]


class Deferred(NamedTuple):
    """The consume in flight was not processed; retry its messages later, before any others: not
    before `error.retry_after_ms`, if it says so."""

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


class Wipe(NamedTuple):
    """The user was erased, at the ctime `epoch`; None: the node has not said when. Wipe what the
    device holds of the user, and end the conversation."""

    epoch: Time | None


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
    | Wipe
)


class Answered(Struct, frozen=True):
    """No consume is in flight. The last one that was answered for good had the number `n`."""

    n: int


class InFlight(Struct, frozen=True):
    """The consume with the number `n` is sent, and not answered."""

    n: int


class ClientSession:
    """The device's side of one conversation with a node. It does no I/O; it returns effects. Each
    connection has a new session, which starts at the replica's cursor, epoch and uid (None: the
    device has never had a welcome). If the node's version is without epochs, the hello has to be
    `without_epoch`."""

    def __init__(
        self,
        token: str,
        device_id: DeviceID,
        cursor: Time,
        epoch: Time | None = None,
        *,
        uid: UID | None = None,
        without_epoch: bool = False,
    ) -> None:
        self.state: SyncState = Greeting()
        self.cursor = cursor
        self.epoch = epoch
        self._uid = uid
        self._without_epoch = without_epoch
        self._heard_of_erase = False
        self.mismatches = 0
        self._token = token
        self._device_id = device_id
        self._last_consume: Answered | InFlight = Answered(0)
        self._resync_requested = False  # and no page has come since
        self._last_sync: Literal["changes", "snapshot"] | None = None  # the last complete one

    @property
    def is_up_to_date(self) -> bool:
        """Whether the last sync is complete, and nothing is known to be missing."""
        return isinstance(self.state, UpToDate)

    def opened(self) -> list[Effect]:
        """The connection is open: say hello."""
        hello = Hello(
            token=self._token,
            device_id=self._device_id,
            cursor=self.cursor,
            epoch=None if self._without_epoch else self.epoch,
            protocol=PROTOCOL,
        )
        return [Send(hello)]

    @property
    def may_consume(self) -> bool:
        """Whether a consume may be sent: the node has welcomed us, and none is in flight."""
        match self.state, self._last_consume:
            case Syncing() | UpToDate(), Answered():
                return True
            case _:
                return False

    def consume(self, messages: Sequence[Message]) -> list[Effect]:
        """Send messages, if `may_consume`. Acked or Deferred will report their results."""
        if not self.may_consume or not messages:
            return []
        n = self._last_consume.n + 1
        self._last_consume = InFlight(n)
        return [Send(Consume(n, tuple(Raw(encode(message)) for message in messages)))]

    def verify(self, cursor: Time | None = None) -> list[Effect]:
        """Ask for a sync; from cursor 0 for a snapshot."""
        self.state = after(self.state, SyncExpected())
        return [Send(Verify(self.cursor if cursor is None else cursor))]

    def hash_compared(self, equal: bool) -> list[Effect]:
        """Report whether the replica has the hash of a Compare. If not, the session requests a
        snapshot; unless the sync was a snapshot itself, since another one would not help."""
        if equal:
            return []
        self.mismatches += 1
        return [] if self._last_sync == "snapshot" else self.verify(0)

    def receive(self, text: str | bytes) -> list[Effect]:
        """Process a frame. Raises Malformed if the text is not a frame; then nothing changes."""
        match decode_node_frame(text):
            case Welcome() as welcome:
                return self._welcomed(welcome)
            case SyncPage() as page:
                return self._sync(page)
            case Messages(prev, messages, cursor):
                return self._apply(prev, messages, cursor)
            case OutOfBand(system, body):
                return [DeliverOutOfBand(system, body)]
            case Ack(n, results):
                return self._acked(n, results)
            case Error(code=Erased.code):
                return self._erased(None)
            case Error(n=int(n)) as error:
                return self._deferred(n, error)
            case Error(action=Action.RESYNC) if not self._resync_requested:
                self._resync_requested = True
                return self.verify(0)
            case Error() as error:
                return [Failed(error)]
            case GoAway(within):
                return [Reconnect(within)]
            case UserErased(epoch, uid):
                return self._erased(epoch) if self._is_owner(uid) else self._refused(uid)
            case None:
                return []  # a frame type of a later version

    def _acked(self, n: int, results: tuple[Result, ...]) -> list[Effect]:
        for result in results:
            if result.error is not None and result.error.code == Erased.code:
                return self._erased(result.error.epoch)
        return [Acked(results)] if self._settle_consume(n) else []

    def _deferred(self, n: int, error: Error) -> list[Effect]:
        """The consume in flight was not processed. If it may be later, its number is to come again:
        until then the node takes no other."""
        if not self._settle_consume(n):
            return []
        if error.action is Action.RETRY:
            self._last_consume = Answered(n - 1)
        return [Deferred(error)]

    def disconnected(self, code: int) -> list[Effect]:
        """The connection has ended with this close code. It may say what a lost frame has said."""
        return self._erased(None) if code == Erased.close_code else []

    def _welcomed(self, welcome: Welcome) -> list[Effect]:
        known = self.epoch or 0
        # Whatever a node without epochs says leaves the epoch as it is: with an earlier one, the
        # next node would take the device for one that has not heard of the erase.
        told = known if welcome.epoch is None else welcome.epoch
        if self.epoch is not None and told > known and self._is_owner(welcome.uid):
            return self._erased(told)
        self.epoch = told
        self.state = after(self.state, SyncExpected())
        limits = structs.replace(welcome.limits, messages=max(1, welcome.limits.messages))
        return [Welcomed(welcome.uid, limits, welcome.now, told)]

    def _is_owner(self, uid: UID | None) -> bool:
        """Whether what is said of this user is of the device's user. None: nobody has said."""
        return self._uid is None or uid in (None, self._uid)

    def _refused(self, uid: UID | None) -> list[Effect]:
        """The token is another user's, so nothing that the node says is for this device."""
        self._heard_of_erase = True  # and a close code is not, either
        error = Forbidden(
            f"the token is of the user {uid!r}, and this store belongs to {self._uid!r};"
            " use one store per user"
        )
        return [Failed(Error.of(error))]

    def _erased(self, epoch: Time | None) -> list[Effect]:
        """The node says that the user was erased: wipe the device, unless it knows that."""
        heard, self._heard_of_erase = self._heard_of_erase, True
        if epoch is None:  # what says no epoch may follow a frame that says it
            return [] if heard else [Wipe(None)]
        if self.epoch is not None and epoch <= self.epoch:
            return []
        self.epoch = epoch
        return [Wipe(epoch)]

    def _apply(self, prev: Time, messages: tuple[InBandMessage, ...], cursor: Time) -> list[Effect]:
        if cursor <= self.cursor:
            return []
        if not self.is_up_to_date:
            # The sync in progress starts at our cursor, so the cursor must not move.
            self.state = after(self.state, FrameIgnored(cursor))
            return []
        if prev != self.cursor:
            return self.verify()
        self.cursor = cursor
        return [Apply(messages, cursor)]

    def _sync(self, page: SyncPage) -> list[Effect]:
        if not self._continues_cursor(page):
            return self._ignore(page)
        self._resync_requested = False
        page = _without_frame(page)
        effects = self._content_of(page)
        self.state = after(self.state, PageAccepted(page))
        if page.more:
            return effects
        self._last_sync = page.mode
        effects.append(Compare(page.as_of, page.hash))
        return effects if self.is_up_to_date else effects + self.verify()

    def _continues_cursor(self, page: SyncPage) -> bool:
        """Whether a page continues from our cursor. A node sends an unrequested sync when it has
        dropped its queue for us, and a transport may deliver an old page again."""
        if page.mode == "changes":
            return page.prev == self.cursor
        # The first sync may end before our cursor: the node's store may be a restored backup.
        return self._last_sync is None or page.cursor >= self.cursor

    def _ignore(self, page: SyncPage) -> list[Effect]:
        if page.cursor <= self.cursor:
            return []
        was_up_to_date = self.is_up_to_date
        self.state = after(self.state, FrameIgnored(page.cursor))
        return self.verify() if was_up_to_date else []

    def _content_of(self, page: SyncPage) -> list[Effect]:
        """What a page changes: one of changes at once, one of a snapshot with the last page."""
        if page.mode == "changes":
            self.cursor = page.cursor
            return [Apply(page.messages, page.cursor)]
        if page.more:
            return []
        self.cursor = page.cursor
        collected = self.state.pages if isinstance(self.state, Syncing) else ()
        return [Replace(_snapshot_of([*collected, page]), page.cursor, self.epoch)]

    def _settle_consume(self, n: int) -> bool:
        if self._last_consume != InFlight(n):
            return False
        self._last_consume = Answered(n)
        return True


def _without_frame(page: SyncPage) -> SyncPage:
    """The page with copies of its bodies: as long as one item lives, a view would keep all of the
    frame in memory."""
    items = (structs.replace(item, raw_body=item.raw_body.copy()) for item in page.items)
    return structs.replace(page, items=tuple(items))


def _snapshot_of(pages: Sequence[SyncPage]) -> Snapshot:
    return Snapshot(tuple(item for page in pages for item in page.items))
