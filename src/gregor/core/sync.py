"""What brings a replica up to date."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct, structs

from gregor.core.facts import DismissedRange, Facts
from gregor.core.instant import Time
from gregor.core.message import DeviceID, Dismissal, InBandMessage, MsgID, seen_on
from gregor.core.state import Item
from gregor.core.visibility import Now, is_visible


class Changes(Struct, frozen=True, tag_field="mode", tag="changes"):
    """The messages that a replica lacks, in order, each reduced to what matters to it."""

    messages: tuple[InBandMessage, ...]


class Snapshot(Struct, frozen=True, tag_field="mode", tag="snapshot", omit_defaults=True):
    """A whole state, and the tombstones of items that may still arrive.

    A state may be too large to be held in memory at once. Then `items` are the first ones, and
    `unread` are the ctimes of the others, in groups. An item never changes, so the others can be
    read later, and belong to the snapshot even if they are dismissed meanwhile.
    """

    items: tuple[Item, ...] = ()
    dismissed_ids: tuple[tuple[MsgID, Time], ...] = ()
    dismissed_ranges: tuple[DismissedRange, ...] = ()
    unread: tuple[tuple[Time, ...], ...] = ()

    def facts(self) -> Facts:
        return Facts.of(self.items, self.dismissed_ids, self.dismissed_ranges)

    def __len__(self) -> int:
        return len(self.items) + len(self.dismissed_ids) + len(self.dismissed_ranges)


class Sync(Struct, frozen=True):
    """What brings a replica from its cursor to `cursor`, and the hash that its visible items must
    then have at the instant `as_of`. All read from the store at one instant."""

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
        group, *others = self.content.unread
        unread = (left_of(group, items), *others)
        content = Snapshot(tuple(items), unread=tuple(group for group in unread if group))
        return structs.replace(self, content=content)


# What a store reads of a snapshot at once: so many items, fewer if they have so many bytes.
MAX_ITEMS_READ = 500
MAX_BYTES_READ = 256 * 1024


def groups(ctimes: Sequence[Time]) -> Iterator[tuple[Time, ...]]:
    """The groups in which the items with these ctimes are read."""
    for start in range(0, len(ctimes), MAX_ITEMS_READ):
        yield tuple(ctimes[start : start + MAX_ITEMS_READ])


def left_of(group: Sequence[Time], items: Sequence[Item]) -> tuple[Time, ...]:
    """The ctimes of a group that are left after these items were read from it. If there were none,
    the store has none of the group, and nothing is left."""
    return tuple(ctime for ctime in group if items and ctime > items[-1].ctime)


def max_changes(snapshot_entries: int) -> int:
    """How many messages of the log a sync may read. If there are more, a snapshot with this number
    of entries is smaller."""
    return snapshot_entries + 16


class ItemFate(NamedTuple):
    """What a store knows about the item with an id."""

    ctime: Time
    device_id: DeviceID | None
    expires_at: Time | None
    dismissed_at: Time | None


def fate_in(facts: Facts, msg_id: MsgID) -> ItemFate | None:
    """The fate of an item, as a store with these facts reports it; None if it has not arrived."""
    item = facts.find(msg_id)
    if item is None:
        return None
    dismissed = facts.dismissed.get(msg_id)
    dismissed_at = None if dismissed is None else dismissed.dismissed_at
    return ItemFate(item.ctime, item.device_id, item.expires_at, dismissed_at)


def since(
    messages: Iterable[InBandMessage],
    device_id: DeviceID | None,
    start: Time,
    now: Time,
    fate_of: Callable[[MsgID], ItemFate | None],
) -> Iterator[InBandMessage]:
    """Reduce each of the messages from `start` on to what is needed now by a replica on `device_id`
    that knows everything before `start`. `fate_of` looks up the items that the messages create
    and dismiss; None means that the item has not arrived."""
    for message in messages:
        creation, dismissal = message.creation, message.dismissal
        if creation is not None and not _replica_may_show(fate_of(message.msg_id), device_id, now):
            creation = None
        if dismissal is not None:
            needed = tuple(
                id_
                for id_ in dismissal.msg_ids
                if _replica_may_need(fate_of(id_), device_id, start)
            )
            dismissal = Dismissal(needed, dismissal.ranges)
        reduced = message.reduced(creation, dismissal)
        if reduced is not None:
            yield reduced


def _replica_may_show(fate: ItemFate | None, device_id: DeviceID | None, now: Time) -> bool:
    """Whether a replica may show an item: it is visible, or nothing is known about it."""
    return fate is None or is_visible(fate, fate.dismissed_at, device_id, Now(now))


def _replica_may_need(fate: ItemFate | None, device_id: DeviceID | None, start: Time) -> bool:
    """Whether a replica that knows everything before `start` may need the dismissal of an item:
    it may hold the item, or the item has not arrived."""
    return fate is None or (fate.ctime < start and seen_on(fate.device_id, device_id))
