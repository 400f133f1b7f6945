"""The messages written on a device, in the order of writing, and found by what they change.

A value, like a map: each change is a new one. What an operation looks up costs what it finds, not
how much is waiting.
"""

from collections.abc import Iterable, Iterator
from itertools import chain

from immutables import Map
from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.item_index import SortedKeys
from gregor.core.message import DeviceID, InBandMessage, MsgID, Range


class OutboxEntry(Struct, frozen=True, omit_defaults=True):
    """A message written on this device, its position in the outbox, and the device's time of
    writing. An acknowledged message has a ctime; it is `dead` if its item was when the node stored
    it. It is `echoed` once the node has sent it back to this device, even if the acknowledgement
    was lost."""

    number: int
    written: Time
    message: InBandMessage
    echoed: bool = False
    dead: bool = False

    def acknowledged_part(self, device_id: DeviceID) -> InBandMessage | None:
        """What the acknowledged message changes on this device; None if nothing."""
        message = self.message.addressed_to(device_id)
        if message is None or not self.dead:
            return message
        return message.reduced(None, message.dismissal)

    def named_ids(self) -> tuple[MsgID, ...]:
        """The items that it creates, or dismisses by id."""
        dismissal = self.message.dismissal
        return (self.message.msg_id, *(() if dismissal is None else dismissal.msg_ids))

    @property
    def ranges(self) -> tuple[Range, ...]:
        return () if self.message.dismissal is None else self.message.dismissal.ranges

    @property
    def has_ranges(self) -> bool:
        return bool(self.ranges)

    @property
    def has_ranges_with_ends(self) -> bool:
        return any(range_.end_time is not None for range_ in self.ranges)

    def ends_after(self, cursor: Time) -> bool:
        """Whether a range may end between this cursor and the message."""
        ends = (range_.end_time for range_ in self.ranges if range_.end_time is not None)
        return any(end.offset is not None or end.after(0) > cursor for end in ends)


class Outbox(Struct, frozen=True, eq=False):
    """Entries by the msg_id of their message. Those without an acknowledgement are `waiting`, by
    number. `naming` are the entries that create or dismiss an item by its id."""

    by_id: Map[MsgID, OutboxEntry] = Map()
    waiting: SortedKeys[tuple[int, MsgID]] = SortedKeys()
    acknowledged: Map[MsgID, bool] = Map()
    naming: Map[MsgID, Map[MsgID, bool]] = Map()
    with_ranges: Map[MsgID, bool] = Map()

    @classmethod
    def of(cls, entries: Iterable[OutboxEntry]) -> "Outbox":
        outbox = cls()
        for entry in entries:
            outbox = outbox.set(entry)
        return outbox

    # A map

    def get(self, msg_id: MsgID) -> OutboxEntry | None:
        return self.by_id.get(msg_id)

    def values(self) -> Iterable[OutboxEntry]:
        return self.by_id.values()

    def set(self, entry: OutboxEntry) -> "Outbox":
        others, msg_id = self.without(entry.message.msg_id), entry.message.msg_id
        waiting, acknowledged, naming = others.waiting, others.acknowledged, others.naming
        if entry.message.stamped:
            acknowledged = acknowledged.set(msg_id, True)
        else:
            waiting = waiting.add((entry.number, msg_id))
        for named in entry.named_ids():
            naming = naming.set(named, naming.get(named, Map()).set(msg_id, True))
        ranges = others.with_ranges.set(msg_id, True) if entry.has_ranges else others.with_ranges
        return Outbox(others.by_id.set(msg_id, entry), waiting, acknowledged, naming, ranges)

    def without(self, msg_id: MsgID) -> "Outbox":
        """Without the entry of this message, if there is one."""
        entry = self.by_id.get(msg_id)
        if entry is None:
            return self
        waiting, acknowledged, naming = self.waiting, self.acknowledged, self.naming
        if entry.message.stamped:
            acknowledged = acknowledged.delete(msg_id)
        else:
            waiting = waiting.remove((entry.number, msg_id))
        for named in set(entry.named_ids()):
            others = naming[named].delete(msg_id)
            naming = naming.set(named, others) if others else naming.delete(named)
        ranges = self.with_ranges.delete(msg_id) if entry.has_ranges else self.with_ranges
        return Outbox(self.by_id.delete(msg_id), waiting, acknowledged, naming, ranges)

    def without_all(self, msg_ids: Iterable[MsgID]) -> "Outbox":
        outbox = self
        for msg_id in msg_ids:
            outbox = outbox.without(msg_id)
        return outbox

    def keys(self) -> Iterable[MsgID]:
        return self.by_id.keys()

    def __getitem__(self, msg_id: MsgID) -> OutboxEntry:
        return self.by_id[msg_id]

    def __contains__(self, msg_id: object) -> bool:
        return msg_id in self.by_id

    def __iter__(self) -> Iterator[MsgID]:
        return iter(self.by_id)

    def __len__(self) -> int:
        return len(self.by_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Outbox) and self.by_id == other.by_id

    def __hash__(self) -> int:
        return hash(self.by_id)

    # In order

    @property
    def waiting_count(self) -> int:
        return len(self.by_id) - len(self.acknowledged)

    def in_waiting_order(self) -> Iterator[OutboxEntry]:
        """The entries without an acknowledgement, in the order of writing."""
        return (self.by_id[msg_id] for run in self.waiting.runs for _, msg_id in run)

    def in_order(self) -> list[OutboxEntry]:
        """All entries, in the order of writing."""
        return sorted(self.by_id.values(), key=_number)

    def acknowledged_entries(self) -> list[OutboxEntry]:
        """The entries with an acknowledgement, in the order of writing."""
        return sorted((self.by_id[msg_id] for msg_id in self.acknowledged), key=_number)

    # What the node has sent

    def reached(self, cursor: Time) -> list[MsgID]:
        """The acknowledged messages that a replica at this cursor has been told."""
        return [id_ for id_ in self.acknowledged if self.by_id[id_].message.ctime <= cursor]

    def not_echoed(self, sent: Iterable[MsgID]) -> list[OutboxEntry]:
        """The entries that are echoed now that the node has sent these messages. A node stores the
        outbox in order, so it has also stored the entries before them, even if it does not send
        those that are dead by now."""
        last = max((self.by_id[id_].number for id_ in sent if id_ in self.by_id), default=0)
        found = [entry for entry in self.acknowledged_entries() if entry.number <= last]
        for entry in self.in_waiting_order():
            if entry.number > last:
                break
            found.append(entry)
        return [entry for entry in found if not entry.echoed]

    # What changes an item

    def changing(self, msg_id: MsgID) -> list[OutboxEntry]:
        """The entries that may change an item, in the order of writing."""
        ids = dict.fromkeys(chain(self.naming.get(msg_id, ()), self.with_ranges), True)
        return sorted((self.by_id[id_] for id_ in ids), key=_number)

    def has_ends_after(self, cursor: Time) -> bool:
        """Whether a range may end after this cursor, and before its message."""
        return any(self.by_id[id_].ends_after(cursor) for id_ in self.with_ranges)


def _number(entry: OutboxEntry) -> int:
    return entry.number
