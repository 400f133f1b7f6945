"""What brings a replica up to date: messages since, snapshots, and what is sent as it is stored.

A replica that was away is not sent the log. Each message that it lacks is reduced to what still
matters to it. `reduced` is that rule, the only one: pages of messages, changes, and messages that
have just been stored all go through it, and snapshots hold what it sends of creations.

A replica is told in order, so it needs no tombstones: a creation that is dead is never sent to it,
and a dismissal concerns only what it already holds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, structs

from gregor.core.facts import Facts
from gregor.core.instant import SECOND, Time
from gregor.core.message import DeviceID, Dismissal, InBandMessage, MsgID, seen_on
from gregor.core.state import Item
from gregor.core.visibility import HasLifetime, Now, is_live
from gregor.errors import Resync

EXPIRY_GRACE = 60 * SECOND
"""An expiry is a reason to leave an item out, or to forget it, only after this time: the clocks of
nodes and devices differ by less."""


# The reduction


class Recipient(NamedTuple):
    """A replica on a device (None: on all devices together) that knows every message up to `known`,
    while the clock shows `now`."""

    device_id: DeviceID | None
    known: Time
    now: Time


class ItemFate(NamedTuple):
    """What a store knows about the item with an id."""

    ctime: Time
    device_id: DeviceID | None
    expires_at: Time | None
    dismissed_at: Time | None
    starts_at: Time | None = None


class Predecessor(NamedTuple):
    """The item of the same key and scope with the next smaller ctime, dead or live."""

    msg_id: MsgID
    ctime: Time


class Knowledge(NamedTuple):
    """What a store knows about items: the fate of the one with an id, None if it has not arrived;
    and the predecessor of the item that a message with a key creates, None if there is none."""

    fate_of: Callable[[MsgID], ItemFate | None]
    predecessor_of: Callable[[InBandMessage], Predecessor | None]


def reduced(message: InBandMessage, recipient: Recipient, store: Knowledge) -> InBandMessage | None:
    """The part of a message that matters to the recipient; None if nothing does.

    A creation goes whole or not at all. One with a key that is left out has ended its predecessor
    all the same: the recipient gets the id of it. (As a key, it would reach other scopes.) An id
    goes if the recipient may hold its item: a dead item that was created later is not sent either,
    and of one that arrives later the store knows that it is dead. Ranges and keys go whole."""
    creation, dismissal = message.creation, message.dismissal or Dismissal()
    ids = tuple(id_ for id_ in dismissal.msg_ids if _may_be_held(store.fate_of(id_), recipient))
    if creation is not None and not _is_due(store.fate_of(message.msg_id), recipient):
        ids += tuple(_replaced(message, recipient, store, ids))
        creation = None
    if ids != dismissal.msg_ids or dismissal.added:
        dismissal = Dismissal(ids, dismissal.ranges, dismissal.keys)
    elif message.dismissal is None:
        return message.reduced(creation, None)
    return message.reduced(creation, dismissal)


def is_sent(
    item: HasLifetime, dismissed_at: Time | None, device_id: DeviceID | None, now: Time
) -> bool:
    """Whether an item is sent to a device: it is live there, begun or not, or expired less than
    EXPIRY_GRACE ago."""
    return is_live(item, dismissed_at, device_id, Now(now - EXPIRY_GRACE))


def _is_due(fate: ItemFate | None, recipient: Recipient) -> bool:
    return fate is not None and is_sent(fate, fate.dismissed_at, recipient.device_id, recipient.now)


def _may_be_held(fate: ItemFate | None, recipient: Recipient) -> bool:
    return (
        fate is not None
        and fate.ctime <= recipient.known
        and seen_on(fate.device_id, recipient.device_id)
    )


def _replaced(
    message: InBandMessage, recipient: Recipient, store: Knowledge, named: Sequence[MsgID]
) -> Iterator[MsgID]:
    """The id of the predecessor of an item that is left out, if the recipient may hold it."""
    if message.key is None or not seen_on(message.device_id, recipient.device_id):
        return
    predecessor = store.predecessor_of(message)
    if predecessor is None or predecessor.msg_id in named:
        return
    if predecessor.ctime <= recipient.known:
        yield predecessor.msg_id


def knowledge_in(facts: Facts) -> Knowledge:
    """What a store with these facts knows."""
    return Knowledge(partial(_fate_in, facts), partial(_predecessor_in, facts))


def _fate_in(facts: Facts, msg_id: MsgID) -> ItemFate | None:
    item = facts.find(msg_id)
    if item is None:
        return None
    dismissed_at = facts.death_of(msg_id)
    return ItemFate(item.ctime, item.device_id, item.expires_at, dismissed_at, item.starts_at)


def _predecessor_in(facts: Facts, message: InBandMessage) -> Predecessor | None:
    item = facts.predecessor(message)
    return None if item is None else Predecessor(item.msg_id, item.ctime)


_HELD = ItemFate(0, None, None, None)


def just_stored(
    message: InBandMessage, dead: bool, replaced: MsgID | None = None
) -> InBandMessage | None:
    """A new message for all devices that know everything before it, reduced without a look-up:
    `dead` says whether its own item is, and `replaced` is the id of its predecessor. Of the items
    that it names it is taken that they are held; a replica ignores the ids of others."""
    creation = message.creation
    if not dead and message.dismissal is None and creation is not None and creation.expires is None:
        return message  # most messages are like this one
    own = ItemFate(
        message.ctime, message.device_id, message.expires_at, message.ctime if dead else None
    )
    predecessor = None if replaced is None else Predecessor(replaced, message.prev)
    store = Knowledge(
        lambda id_: own if id_ == message.msg_id else _HELD, lambda message: predecessor
    )
    return reduced(message, Recipient(None, message.prev, message.ctime), store)


# Messages since, in pages


class Since(NamedTuple):
    """The messages from this instant on, inclusive: for a replica that knows everything before it.
    That it knows the message of the instant as well does no harm."""

    time: Time

    @property
    def first(self) -> Time:
        return self.time

    @property
    def known(self) -> Time:
        return self.time


class After(NamedTuple):
    """The messages after this cursor: for a replica that knows everything up to it."""

    cursor: Time

    @property
    def first(self) -> Time:
        return self.cursor + 1

    @property
    def known(self) -> Time:
        return self.cursor


Start: TypeAlias = Since | After


class UserTime(NamedTuple):
    """A user's clock; the mark: the clock after the last message that was stored behind it, of
    which no cursor before the mark could hear; and the history floor, up to which what is past is
    forgotten. 0: there was none."""

    clock: Time
    mark: Time = 0
    floor: Time = 0

    def continues(self, cursor: Time) -> bool:
        """Whether messages after this cursor tell a reader everything that it lacks. If not, the
        reader needs a snapshot: the cursor is behind the mark; or ahead of the clock, because the
        store is a restored backup, and has not yet, or never, what the reader knows; or what came
        after it is forgotten."""
        return self.mark <= cursor <= self.clock and not self.has_forgotten(cursor)

    def has_forgotten(self, cursor: Time) -> bool:
        """Whether some of what was stored after this cursor may be forgotten. At the clock, nothing
        was."""
        return cursor < min(self.floor, self.clock)

    def next_ctime(self, now: Time) -> Time:
        """The ctime of a new message. What is stored later is after the floor, too."""
        return max(now, self.clock + 1, self.floor + 1)


def require_continued(start: Start, user: UserTime) -> None:
    """Raises Resync for a cursor after which messages do not tell everything, though nothing is
    forgotten."""
    if not isinstance(start, After) or start.cursor == 0:
        return
    if start.cursor > user.clock:
        reason = f"is ahead of the user's clock, {user.clock}"
    elif start.cursor < user.mark:
        reason = f"is before {user.mark}, when a message was stored behind the user's clock"
    else:
        return
    raise Resync(f"the cursor {start.cursor} {reason}; read the state, and go on from its cursor")


class Reduced(NamedTuple):
    """A message of the log at `ctime`, what is left of it for a recipient, and about how many bytes
    the whole message has."""

    ctime: Time
    message: InBandMessage | None
    size: int = 0


class PageLimits(NamedTuple):
    """A page has at most so many messages, and so many bytes of JSON, but at least one message. At
    most `read` messages of the log are read for it, and about `bytes_read`."""

    messages: int
    bytes: int
    read: int = 2_000
    bytes_read: int = 4 * 1024 * 1024


class Page(Struct, frozen=True):
    """Messages since a start. The reader then knows everything up to `cursor`, after which the next
    page begins if there is `more`."""

    messages: tuple[InBandMessage, ...]
    cursor: Time
    more: bool = False


def reductions(
    messages: Iterable[InBandMessage], recipient: Recipient, store: Knowledge
) -> Iterator[Reduced]:
    for message in messages:
        body = 0 if message.creation is None else len(memoryview(message.creation.raw_body))
        yield Reduced(message.ctime, reduced(message, recipient, store), body)


def what_is_left(log: Iterable[Reduced]) -> tuple[InBandMessage, ...]:
    return tuple(message for _, message, _ in log if message is not None)


def first_page(log: Iterable[Reduced], clock: Time, limits: PageLimits) -> Page:
    """The beginning of the log of a user with this clock. Takes of the log only what it needs."""
    messages: list[InBandMessage] = []
    size, bytes_read, cursor = 0, 0, 0
    for read, (ctime, message, own_size) in enumerate(log):
        size += 0 if message is None else len(_encoder.encode(message))
        full = len(messages) == limits.messages or (messages and size > limits.bytes)
        enough = read == limits.read or bytes_read >= limits.bytes_read
        if enough or (message is not None and full):
            return Page(tuple(messages), cursor, more=True)
        bytes_read += own_size
        messages += [] if message is None else [message]
        cursor = ctime
    return Page(tuple(messages), clock)


_encoder = msgspec.json.Encoder()


# Syncs


class Changes(Struct, frozen=True, tag_field="mode", tag="changes"):
    """The messages that a replica lacks, in order, each reduced to what matters to it."""

    messages: tuple[InBandMessage, ...]


class Snapshot(Struct, frozen=True, tag_field="mode", tag="snapshot"):
    """All items that are sent to a device, and nothing else.

    They may be too large to be held in memory at once. Then `items` are the first ones, and
    `unread` are the ctimes of the others, in groups. An item never changes, so the others can be
    read later, and belong to the snapshot even if they are dismissed meanwhile.
    """

    items: tuple[Item, ...] = ()
    unread: tuple[tuple[Time, ...], ...] = ()

    @classmethod
    def of(
        cls, ctimes: Sequence[Time], read: Callable[[Sequence[Time]], Sequence[Item]]
    ) -> "Snapshot":
        """The snapshot with these items in order, of which the first ones are read."""
        first, *others = [*_groups(ctimes), ()]
        items = read(first)
        return cls(tuple(items), _without_empty(_left_of(first, items), *others))

    def continued(self, items: Sequence[Item]) -> "Snapshot":
        """The rest of a snapshot with these items, which were read from its first group."""
        group, *others = self.unread
        return Snapshot(tuple(items), _without_empty(_left_of(group, items), *others))

    def facts(self) -> Facts:
        return Facts.of(self.items)

    def __len__(self) -> int:
        return len(self.items) + sum(map(len, self.unread))


# What a store reads of a snapshot at once: so many items, fewer if they have so many bytes.
MAX_ITEMS_READ = 500
MAX_BYTES_READ = 256 * 1024


def _groups(ctimes: Sequence[Time]) -> Iterator[tuple[Time, ...]]:
    for start in range(0, len(ctimes), MAX_ITEMS_READ):
        yield tuple(ctimes[start : start + MAX_ITEMS_READ])


def _left_of(group: Sequence[Time], items: Sequence[Item]) -> tuple[Time, ...]:
    """The ctimes of a group that are left after these items were read from it. If there were none,
    the store has none of the group, and nothing is left."""
    return tuple(ctime for ctime in group if items and ctime > items[-1].ctime)


def _without_empty(*groups: tuple[Time, ...]) -> tuple[tuple[Time, ...], ...]:
    return tuple(group for group in groups if group)


class Sync(Struct, frozen=True):
    """What brings a replica from its cursor to `cursor`, and the hash that its live items must
    then have at the instant `as_of`, with the user's last erase. All read from the store at one
    instant, but for the items of a snapshot that are unread."""

    content: Changes | Snapshot
    cursor: Time
    as_of: Time
    hash: str
    epoch: Time = 0
    erased_at: Time = 0

    @property
    def rest(self) -> "Sync | None":
        """The part of a snapshot that is not read yet; None if all of it is read."""
        match self.content:
            case Snapshot(unread=unread) if unread:
                return structs.replace(self, content=Snapshot(unread=unread))
            case _:
                return None

    def continued(self, items: Sequence[Item]) -> "Sync":
        """The rest of a snapshot with these items, which were read from its first group."""
        assert isinstance(self.content, Snapshot)
        return structs.replace(self, content=self.content.continued(items))


def snapshot_of(facts: Facts, device_id: DeviceID | None, now: Time) -> Snapshot:
    """The snapshot of a user with these facts."""
    items = (item for item in facts.items.values() if is_sent(item, None, device_id, now))
    return Snapshot(tuple(sorted(items, key=_ctime)))


def _ctime(item: Item) -> Time:
    return item.ctime


def max_changes(snapshot_entries: int) -> int:
    """How many messages of the log a sync may read. If there are more, a snapshot with this number
    of entries is smaller."""
    return snapshot_entries + 16
