"""What brings a replica up to date: messages since, snapshots, and what is sent as it is stored.

A replica that was away is not sent the log. Each message that it lacks is reduced to what still
matters to it. `reduced` is that rule, the only one: pages of messages, changes, and messages that
have just been stored all go through it, and snapshots hold what it sends of creations.

A replica is told in order, so it needs no tombstones: a creation that is dead is never sent to it,
and a dismissal concerns only what it already holds.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import msgspec
from msgspec import Struct, structs

from gregor.core.facts import Facts
from gregor.core.instant import SECOND, Time
from gregor.core.message import DeviceID, Dismissal, InBandMessage, MsgID, seen_on
from gregor.core.state import Item, State
from gregor.core.visibility import HasLifetime, Now, is_visible
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


FateOf: TypeAlias = Callable[[MsgID], ItemFate | None]
"""Looks up an item; None means that it has not arrived."""


def reduced(message: InBandMessage, recipient: Recipient, fate_of: FateOf) -> InBandMessage | None:
    """The part of a message that matters to the recipient; None if nothing does.

    A creation goes whole or not at all. An id goes if the recipient may hold its item: a dead item
    that was created later is not sent either, and of one that arrives later the store knows that
    it is dead. Ranges go whole."""
    creation, dismissal = message.creation, message.dismissal
    if creation is not None and not _is_due(fate_of(message.msg_id), recipient):
        creation = None
    if dismissal is not None:
        ids = tuple(id_ for id_ in dismissal.msg_ids if _may_be_held(fate_of(id_), recipient))
        if ids != dismissal.msg_ids or dismissal.added:
            dismissal = Dismissal(ids, dismissal.ranges)
    return message.reduced(creation, dismissal)


def is_sent(
    item: HasLifetime, dismissed_at: Time | None, device_id: DeviceID | None, now: Time
) -> bool:
    """Whether an item is sent to a device: it is visible there, or expired less than EXPIRY_GRACE
    ago."""
    return is_visible(item, dismissed_at, device_id, Now(now - EXPIRY_GRACE))


def _is_due(fate: ItemFate | None, recipient: Recipient) -> bool:
    return fate is not None and is_sent(fate, fate.dismissed_at, recipient.device_id, recipient.now)


def _may_be_held(fate: ItemFate | None, recipient: Recipient) -> bool:
    return (
        fate is not None
        and fate.ctime <= recipient.known
        and seen_on(fate.device_id, recipient.device_id)
    )


def fate_in(facts: Facts, msg_id: MsgID) -> ItemFate | None:
    """The fate of an item, as a store with these facts reports it; None if it has not arrived."""
    item = facts.find(msg_id)
    if item is None:
        return None
    dismissed = facts.dismissed.get(msg_id)
    dismissed_at = None if dismissed is None else dismissed.dismissed_at
    return ItemFate(item.ctime, item.device_id, item.expires_at, dismissed_at)


_HELD = ItemFate(0, None, None, None)


def just_stored(message: InBandMessage, dead: bool) -> InBandMessage | None:
    """A new message for all devices that know everything before it, reduced without a look-up:
    `dead` says whether its own item is. Of the items that it names it is taken that they are held;
    a replica ignores the ids of others."""
    creation = message.creation
    if not dead and message.dismissal is None and creation is not None and creation.expires is None:
        return message  # most messages are like this one
    own = ItemFate(
        message.ctime, message.device_id, message.expires_at, message.ctime if dead else None
    )
    recipient = Recipient(None, message.prev, message.ctime)
    return reduced(message, recipient, lambda id_: own if id_ == message.msg_id else _HELD)


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


def require_not_ahead(start: Start, clock: Time) -> None:
    """Raises Resync for a cursor ahead of the user's clock: the store is a restored backup, and has
    not yet, or never, what the reader knows."""
    if isinstance(start, After) and start.cursor > clock:
        raise Resync(
            f"the cursor {start.cursor} is ahead of the user's clock, {clock};"
            " read the state, and go on from its cursor"
        )


class Reduced(NamedTuple):
    """A message of the log at `ctime`, and what is left of it for a recipient."""

    ctime: Time
    message: InBandMessage | None


class PageLimits(NamedTuple):
    """A page has at most so many messages, and so many bytes of JSON, but at least one message. At
    most `read` messages of the log are read for it."""

    messages: int
    bytes: int
    read: int = 2_000


class Page(Struct, frozen=True):
    """Messages since a start. The reader then knows everything up to `cursor`, after which the next
    page begins if there is `more`."""

    messages: tuple[InBandMessage, ...]
    cursor: Time
    more: bool = False


def reductions(
    messages: Iterable[InBandMessage], recipient: Recipient, fate_of: FateOf
) -> Iterator[Reduced]:
    for message in messages:
        yield Reduced(message.ctime, reduced(message, recipient, fate_of))


def what_is_left(log: Iterable[Reduced]) -> tuple[InBandMessage, ...]:
    return tuple(message for _, message in log if message is not None)


def first_page(log: Iterable[Reduced], clock: Time, limits: PageLimits) -> Page:
    """The beginning of the log of a user with this clock. Takes of the log only what it needs."""
    messages: list[InBandMessage] = []
    size, cursor = 0, 0
    for read, (ctime, message) in enumerate(log):
        size += 0 if message is None else len(_encoder.encode(message))
        full = len(messages) == limits.messages or (messages and size > limits.bytes)
        if read == limits.read or (message is not None and full):
            return Page(tuple(messages), cursor, more=True)
        messages += [] if message is None else [message]
        cursor = ctime
    return Page(tuple(messages), clock)


_encoder = msgspec.json.Encoder()


class PolledState(NamedTuple):
    """A state, and the cursor after which messages continue it; both read at one instant."""

    state: State
    cursor: Time


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
    """What brings a replica from its cursor to `cursor`, and the hash that its visible items must
    then have at the instant `as_of`. All read from the store at one instant, but for the items of
    a snapshot that are unread."""

    content: Changes | Snapshot
    cursor: Time
    as_of: Time
    hash: str

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
    return Snapshot(tuple(sorted(items, key=Item.order)))


def max_changes(snapshot_entries: int) -> int:
    """How many messages of the log a sync may read. If there are more, a snapshot with this number
    of entries is smaller."""
    return snapshot_entries + 16
