"""The interfaces of the seed, MessageConsumer and StateMachine, and their refinements."""

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import IO, NamedTuple, Protocol, TypeAlias, runtime_checkable

from msgspec import Struct

from gregor.core.deployment import Deployment
from gregor.core.export import ExportPage, ExportPlace, ImportPart, Verdict
from gregor.core.history import Cutoff
from gregor.core.instant import MAX_TIME, SECOND, Time, TimeOrOffset
from gregor.core.item_history import Author, ItemHistory
from gregor.core.message import (
    UID,
    Category,
    DeviceID,
    InBandMessage,
    Message,
    MsgID,
    OutOfBandMessage,
)
from gregor.core.state import Counts, Item, State
from gregor.core.state_page import PageStart, StatePage, StateQuery
from gregor.core.sync import Page, PageLimits, Start, Sync
from gregor.errors import Erased, GregorError, NotFound, Unauthenticated, Unavailable


@runtime_checkable
class MessageConsumer(Protocol):
    """Consumes messages: half of the state machine interface."""

    async def consume_message(self, message: Message) -> Message:
        """Consume a message, and return it as all readers will see it.

        An in-band message changes state. Idempotent: consuming it again changes nothing, and a
        state machine returns the stored message. An out-of-band message is stored nowhere;
        consuming it again delivers it again. After a return, the effect is as durable as this
        consumer can make it. After Unavailable, the effect may or may not have happened; retry
        with the same message.
        """
        ...


@runtime_checkable
class StateMachine(MessageConsumer, Protocol):
    """Consumes messages, and keeps the state of each user that results from them."""

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        """The state of the user on the device (None: on all devices together) at a time.

        `at` None means now, and then every known dismissal counts. An unknown user has an empty
        state. A past state is exact; later messages do not change it.
        """
        ...

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        """The messages that bring a replica on the device, which knows everything before `since`,
        to the present: those from `since` (inclusive) on, in order, each reduced to what still
        matters. Added to the facts from before `since`, they give the present state; so they do
        if the replica knows the message at `since` as well."""
        ...


class Stored(Struct, frozen=True):
    """The message is durable. `message` is the stamped one, as all readers will see it.

    As of the commit: whether its item is `dead`, `expired`, or `scheduled`, which is to begin
    later; how many items were `dismissed` by its dismissal, which existed before it and had no
    earlier death or expiry; and the id of the item whose key it has `replaced`, whatever became of
    that."""

    message: InBandMessage
    dead: bool = False
    expired: bool = False
    dismissed: int = 0
    scheduled: bool = False
    replaced: MsgID | None = None


class Duplicate(Struct, frozen=True):
    """A success: the message was stored before; nothing changed. `message` is the stored one, whose
    item is `dead`, `expired` or `scheduled` as of now."""

    message: InBandMessage
    dead: bool = False
    expired: bool = False
    scheduled: bool = False


class Rejected(Struct, frozen=True):
    """The message changed nothing. Exception: with Unavailable, the error of one of several shards,
    it may have been stored. `error.action` says whether a retry can help. `message` is None if it
    could not be read, or if the caller may not write for its user."""

    message: Message | None
    error: GregorError


class Relayed(Struct, frozen=True):
    """The message is out-of-band, and is being sent to the devices that are connected now."""

    message: OutOfBandMessage


StoreOutcome: TypeAlias = Stored | Duplicate | Rejected
Outcome: TypeAlias = StoreOutcome | Relayed
Accepted: TypeAlias = Stored | Relayed
"""What concerns the devices: it is new in the store, or out-of-band."""


class BatchConsumer(MessageConsumer):
    """A MessageConsumer for which a batch costs less than its messages one by one, and which wants
    to know what the store said of them."""

    async def consume_message(self, message: Message) -> Message:
        match message:
            case InBandMessage():
                await self.consume_batch([Stored(message)])
            case OutOfBandMessage():
                await self.consume_batch([Relayed(message)])
        return message

    @abstractmethod
    async def consume_batch(self, accepted: Sequence[Accepted]) -> None:
        """Consume messages, in order for each user, with the contract of `consume_message`."""


class Slot:
    """An in-band message on its way to the store, with its author (None: not known), the epoch that
    its sender knows (None: not checked), and the place for its outcome. It is None until a state
    machine of record has decided it."""

    __slots__ = ("author", "epoch", "message", "outcome")

    def __init__(
        self, message: InBandMessage, author: Author | None = None, epoch: Time | None = None
    ) -> None:
        self.message = message
        self.author = author
        self.epoch = epoch
        self.outcome: StoreOutcome | None = None


class Erasure(NamedTuple):
    """A user's last erase. `epoch` is its ctime: what was stored before is gone. Tokens that were
    issued up to the second of `erased_at` do not hold. 0: the user was never erased."""

    epoch: Time = 0
    erased_at: Time = 0

    def require_current(self, epoch: Time | None, issued_at: Time | None) -> None:
        """Check a device that knows this epoch (None: not checked), and whose token was issued then
        (None: not known). Raises Erased if it knows an earlier one: it must hear that, whatever its
        token. Raises Unauthenticated if the token no longer holds."""
        if epoch is not None and epoch < self.epoch:
            raise Erased("the user was erased; wipe what is kept of it", epoch=self.epoch)
        if self.erased_at and (
            issued_at is None or issued_at // SECOND <= self.erased_at // SECOND
        ):
            raise Unauthenticated("the user was erased after this token was issued")


NEVER_ERASED = Erasure()

HOLDS_FOREVER: Time = MAX_TIME
"""When a token was issued that no erase revokes."""


class EraseResult(NamedTuple):
    """A user has been erased. `pending` are the shards that were away: what they still have of the
    user is removed before they serve again."""

    erasure: Erasure
    pending: tuple[str, ...] = ()


class PruneStep(NamedTuple):
    """What a step has pruned: of how many users, how many messages lost their contents, and how
    many ids were forgotten. `last` is where the next step begins; None: there is no more."""

    last: str | None
    users: int = 0
    contents: int = 0
    ids: int = 0


MAX_AUTHOR = 300  # bytes


class Caller(NamedTuple):
    """Who injects messages: the subject of the token, which is the name of a service, or a user;
    and the id of the device, if it is one that has said who it is."""

    subject: str
    device_id: DeviceID | None = None
    is_service: bool = True

    def author_of(self, message: InBandMessage) -> Author:
        """Who has sent the message. A device that uses HTTP says which it is, at most, by the scope
        of the message."""
        device_id = self.device_id or (None if self.is_service else message.device_id)
        if device_id is not None:
            return f"device:{device_id}"
        return _storable(f"{'service' if self.is_service else 'user'}:{self.subject}")


@lru_cache(1_000)
def _storable(author: Author) -> Author:
    """The author as every store accepts it: an authenticator may name a service in any way."""
    text = author.replace("\0", "?").encode(errors="replace")
    return text[:MAX_AUTHOR].decode(errors="ignore")


@runtime_checkable
class StateMachineOfRecord(StateMachine, Protocol):
    """The state machine that gives messages their ctime, and that all others follow.

    For one user, ctimes are unique and strictly increase in the order of commits, even if a
    machine's clock goes backwards; `prev` of each message is the user's clock before it.
    """

    async def consume_message(self, message: Message) -> Message:
        if isinstance(message, OutOfBandMessage):
            return message
        (outcome,) = await self.consume_messages([message])
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome.message

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[StoreOutcome]:
        """Store messages in order, with the contract of `store`, and return their outcomes."""
        slots = [Slot(message) for message in messages]
        await self.store(slots)
        return [slot.outcome for slot in slots if slot.outcome is not None]

    @abstractmethod
    async def store(self, slots: Sequence[Slot]) -> None:
        """Store the messages in order, and fill in the outcome of each. Idempotent.

        What is Stored is durable when this returns. A message that already has a ctime is a
        replay and keeps it; if that is not after the user's clock, the clock moves on by one, and
        who was told of the messages up to then needs a snapshot; up to the user's history floor it
        is rejected with HistoryForgotten. A message whose sender knows an earlier epoch is rejected
        with Erased. An invalid message is rejected alone; the others are not affected. Raises
        Unavailable if the store cannot be reached; then any of the messages may have been stored.
        """
        ...

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        return (await self.state_page(uid, StateQuery(device_id), at)).state

    @abstractmethod
    async def state_page(
        self,
        uid: UID,
        query: StateQuery,
        at: TimeOrOffset | None = None,
        start: PageStart | None = None,
    ) -> StatePage:
        """The selected items of a state, with the contract of `state`, its hash, and the cursor
        after which `messages_page` continues it: the user's clock, or `at` if that is earlier. Read
        at one instant. If the query asks for pages, by `limit` or `max_bytes`, `start` begins those
        after the first: they are of the state that the first was of, whatever has been stored
        since; `at` is not looked at."""
        ...

    @abstractmethod
    async def messages_page(
        self, uid: UID, device_id: DeviceID | None, start: Start, limits: PageLimits
    ) -> Page:
        """The first page of the messages since `start`, with the contract of
        `in_band_messages_since`, read at one instant. The pages after it begin after the cursor of
        the one before. Raises Resync for a start after a cursor that is ahead of the user's
        clock."""
        ...

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        """The changes or snapshot that bring a replica, which knows everything up to `cursor`, to
        the present, with the hash of the result; all read at one instant. From cursor 0, or from
        one ahead of the user's clock, it is a snapshot; otherwise the smaller of the two. Of a
        large snapshot only the first items are read."""
        ...

    async def items(self, uid: UID, ctimes: Sequence[Time]) -> Sequence[Item]:
        """The items that the messages with these ctimes create, live or dead. The ctimes ascend,
        and so do those of the items. Fewer are returned if they are large, but at least one if
        there is one; ask again from the ctime after the last."""
        ...

    async def count(
        self, uid: UID, device_id: DeviceID | None, prefixes: Sequence[Category]
    ) -> Counts:
        """How many items that are visible now have a category that begins with each prefix, byte
        for byte. It costs less than the state: no item is read."""
        ...

    async def count_by_segment(
        self, uid: UID, device_id: DeviceID | None, prefix: Category
    ) -> Counts:
        """The count of one prefix, by segment: how many items are visible now of the categories
        that begin with it, each cut before the first dot that follows the prefix. No item is
        read."""
        ...

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        """The clocks of these users; 0 for one who has no message.
        Users on a shard that does not answer now are left out. It is the ctime of the last message,
        or later."""
        ...

    async def erasure(self, uid: UID) -> Erasure:
        """The user's last erase."""
        ...

    async def erase(self, uid: UID) -> EraseResult:
        """Delete everything of the user. The user's next ctime becomes the epoch. What remains is
        the clock and the erasure, also of a user who had nothing. Each call erases again."""
        ...

    async def item_history(self, uid: UID, msg_id: MsgID) -> ItemHistory:
        """What became of the item with this id up to now, and why; read at one instant. Of an id
        that is not known, or that creates no item, the state is `unknown`."""
        ...

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        """Forget what the cutoff says, in small steps: this one begins `after` the `last` of the
        one before, and the walk is whole when that is None. Idempotent. A user of whom nothing is
        forgotten does not change."""
        ...

    async def users_after(self, uid: UID, limit: int) -> Sequence[UID]:
        """The next users after this uid, in order, as many as there are, up to a limit. Raises
        Unavailable if some may be missing, because a shard does not answer."""
        ...

    async def export_page(self, uid: UID, place: ExportPlace) -> ExportPage:
        """What is stored of the user, from this place on. A page is read at one instant. Pages are
        consistent if the user of each `continues` that of the first: then, without messages after
        the clock of the first, they are what was stored at that instant. An unknown user has no
        records, and the clock 0."""
        ...

    async def import_parts(self, parts: Sequence[ImportPart]) -> Sequence[Sequence[Verdict]]:
        """Take lines of exports, and return what has come of each. Durable when this returns, and
        idempotent.

        A later epoch erases what is older here; what is not after the epoch here is refused, with
        Erased. Messages keep their ctimes, and are refused as in `store`; but not with
        HistoryForgotten if they are after the user's clock. When a user ends, the clock, the mark
        and the floor become those of the file, if these are later. Cursors of the store that wrote
        the file continue here, unless other messages came between: then they need a snapshot.
        Raises Unavailable; then any of the lines may have been taken.
        """
        ...

    async def backup(self) -> IO[bytes]:
        """A copy of the SQLite file, as of one instant, open to be read. Raises NotFound if the
        store is not one."""
        raise NotFound("the store is not one SQLite file; back it up with its own tools, or export")

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        """Compare the hashes that are kept for these users with their items, repair those that
        differ, and return the users of these. Idempotent."""
        ...

    async def ctime(self, uid: UID) -> Time:
        """The clock of one user. Raises Unavailable if `ctimes` would leave the user out."""
        clocks = await self.ctimes([uid])
        if uid not in clocks:
            raise Unavailable("the shard that holds the user does not answer; retry later")
        return clocks[uid]

    async def deployment(self) -> Deployment | None:
        """The deployment whose store this is: the same for ever, and for all nodes. None: it has
        none, or one that some of the nodes that run do not know yet. Raises Unavailable."""
        return None

    @property
    def history(self) -> Hashable:
        """A value that changes when messages may have been lost that were stored and read before,
        as when a standby takes over. The users' logs from then on need not continue what was
        read before the change, nor by a read that began before it."""
        return None

    async def problems(self) -> Sequence[str]:
        """Why this state machine is not ready, as texts for operators; empty if it is ready."""
        ...

    def known_problems(self) -> Sequence[str]:
        """Those of the problems that show without a question to the store: they count at once."""
        return ()

    def partial_problems(self) -> Sequence[str]:
        """Problems of some users only: for the others, this state machine is ready."""
        return ()
