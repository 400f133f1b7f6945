"""The messages written on a device, in the order of writing, and found by what they change.

A value, like a map: each change is a new one. What an operation looks up costs what it finds, not
how much is waiting.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any, TypeVar

from immutables import Map
from msgspec import Struct, structs

from gregor.client.writing import clauses, repeats, repeats_open
from gregor.core.instant import MAX_TIME, Time
from gregor.core.item_index import SortedKeys
from gregor.core.message import DeviceID, Dismissal, InBandMessage, Key, MsgID
from gregor.core.state import Item

K = TypeVar("K", bound=tuple[Any, ...])


class OutboxEntry(Struct, frozen=True, omit_defaults=True):
    """A message written on this device, its position in the outbox, and the time of writing, by the
    node's clock. An acknowledged message has a ctime; it is `dead` if its item was when the node
    stored it. It is `echoed` once the node has sent it back to this device, even if the
    acknowledgement was lost."""

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
        if message.key is None:
            return message.reduced(None, message.dismissal)
        # A dead item has taken the place of its predecessor all the same.
        dismissal = message.dismissal or Dismissal()
        ids = (*dismissal.msg_ids, message.msg_id)
        return message.reduced(message.creation, structs.replace(dismissal, msg_ids=ids))

    def is_given_again(self, message: InBandMessage) -> bool:
        """Whether this is the message that was written. Its offsets count from then."""
        return repeats(self.message, self.written, message)

    def is_given_again_without_ends(self, message: InBandMessage) -> bool:
        """The same for a dismissal whose ends the device has set."""
        return repeats_open(self.message, message)

    @property
    def shown(self) -> bool:
        """Whether it is shown from the outbox. One that is echoed and not acknowledged is a fact,
        and the node may have told the device what has become of it."""
        return self.message.stamped or not self.echoed

    @property
    def has_ranges(self) -> bool:
        return self.message.dismissal is not None and bool(self.message.dismissal.ranges)

    @property
    def has_ends(self) -> bool:
        return any(clause.end_time is not None for clause in clauses(self.message))

    def named_ids(self) -> tuple[MsgID, ...]:
        """The items that it creates, or dismisses by id."""
        dismissal = self.message.dismissal
        return (self.message.msg_id, *(() if dismissal is None else dismissal.msg_ids))

    def named_keys(self) -> Iterator[Key]:
        """The keys with which it creates or dismisses items."""
        if self.message.key is not None:
            yield self.message.key
        yield from self.dismissed_keys()

    def dismissed_keys(self) -> Iterator[Key]:
        dismissal = self.message.dismissal
        yield from () if dismissal is None else (named.key for named in dismissal.keys)


class Outbox(Struct, frozen=True, eq=False):
    """Entries by the msg_id of their message, and the places of these ids in several orders: of
    entries without an acknowledgement and of those not echoed by number, of `acknowledged` ones by
    ctime; of those that create or dismiss an item by its id; that have ranges; that dismiss a key;
    and that have ends, by the latest. `puts` are the entries shown that create items with a key: in
    the order of key, scope, and of the ctimes that they have or are shown with."""

    by_id: Map[MsgID, OutboxEntry] = Map()
    waiting: SortedKeys[tuple[int, MsgID]] = SortedKeys()
    unechoed: SortedKeys[tuple[int, MsgID]] = SortedKeys()
    acknowledged: SortedKeys[tuple[Time, MsgID]] = SortedKeys()
    naming: SortedKeys[tuple[MsgID, MsgID]] = SortedKeys()
    with_ranges: SortedKeys[tuple[MsgID]] = SortedKeys()
    dismissing: SortedKeys[tuple[Key, MsgID]] = SortedKeys()
    puts: SortedKeys[tuple[Key, DeviceID, bool, int, MsgID]] = SortedKeys()
    ends: SortedKeys[tuple[Time, MsgID]] = SortedKeys()

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
        msg_id = entry.message.msg_id
        others = self.without(msg_id)
        return others._with_places(entry, others.by_id.set(msg_id, entry), SortedKeys.add)

    def without(self, msg_id: MsgID) -> "Outbox":
        """Without the entry of this message, if there is one."""
        entry = self.by_id.get(msg_id)
        if entry is None:
            return self
        return self._with_places(entry, self.by_id.delete(msg_id), SortedKeys.remove)

    def _with_places(
        self,
        entry: OutboxEntry,
        by_id: Map[MsgID, OutboxEntry],
        change: Callable[[SortedKeys[Any], Any], SortedKeys[Any]],
    ) -> "Outbox":
        """With these entries, after this one is added to each order, or removed."""

        def changed(keys: SortedKeys[K], places: Iterable[K]) -> SortedKeys[K]:
            return reduce(change, places, keys)

        msg_id, message = entry.message.msg_id, entry.message
        numbered = (entry.number, msg_id)
        return Outbox(
            by_id,
            changed(self.waiting, () if message.stamped else (numbered,)),
            changed(self.unechoed, () if entry.echoed else (numbered,)),
            changed(self.acknowledged, ((message.ctime, msg_id),) if message.stamped else ()),
            changed(self.naming, ((id_, msg_id) for id_ in dict.fromkeys(entry.named_ids()))),
            changed(self.with_ranges, ((msg_id,),) if entry.has_ranges else ()),
            changed(
                self.dismissing, ((key, msg_id) for key in dict.fromkeys(entry.dismissed_keys()))
            ),
            changed(self.puts, _put_places(entry)),
            changed(self.ends, _end_places(entry)),
        )

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
        return _count(self.waiting)

    @property
    def ranges_count(self) -> int:
        """How many entries have ranges."""
        return _count(self.with_ranges)

    def in_waiting_order(self) -> Iterator[OutboxEntry]:
        """The entries without an acknowledgement, in the order of writing."""
        return (self.by_id[msg_id] for _, msg_id in self.waiting)

    def in_order(self) -> list[OutboxEntry]:
        """All entries, in the order of writing."""
        return sorted(self.by_id.values(), key=_number)

    def acknowledged_entries(self) -> Iterator[OutboxEntry]:
        """The entries with an acknowledgement, in the order of their ctimes."""
        return (self.by_id[msg_id] for _, msg_id in self.acknowledged)

    # What the node has sent

    def reached(self, cursor: Time) -> list[MsgID]:
        """The acknowledged messages that a replica at this cursor has been told."""
        return _second_until(self.acknowledged, cursor)

    def not_echoed(self, sent: Iterable[MsgID]) -> list[OutboxEntry]:
        """The entries that are echoed now that the node has sent these messages. A node stores the
        outbox in order, so it has also stored the entries before them, even if it does not send
        those that are dead by now."""
        found = (self.by_id[id_] for id_ in sent if id_ in self.by_id)
        last = max((entry.number for entry in found if not entry.echoed), default=0)
        return [self.by_id[id_] for id_ in _second_until(self.unechoed, last)]

    # What changes an item

    def changing(self, msg_id: MsgID, held: Item | None) -> list[OutboxEntry]:
        """The entries that decide about an item, of which the facts have `held`, in the order of
        writing. Of the many that may have its key, the last that puts an item in its place is
        enough; if there is none, those that dismiss the key."""
        ids = [*_second_of(self.naming, msg_id), *(id_ for (id_,) in self.with_ranges)]
        register = self._register_of(msg_id, held)
        if register is not None:
            last = self._last_put(*register)
            if last is not None and last != msg_id:
                ids.append(last)
            else:
                ids += _second_of(self.dismissing, register[0])
        return sorted((self.by_id[id_] for id_ in dict.fromkeys(ids)), key=_number)

    def _register_of(self, msg_id: MsgID, held: Item | None) -> tuple[Key, DeviceID] | None:
        """The key and scope of an item: as the facts have it, or else as it was written."""
        entry = self.by_id.get(msg_id)
        if held is not None:
            return None if held.key is None else (held.key, held.device_id or "")
        if entry is None or entry.message.key is None:
            return None
        return entry.message.key, entry.message.device_id or ""

    def _last_put(self, key: Key, scope: DeviceID) -> MsgID | None:
        """The entry that puts the last item of a key and scope."""
        last = self.puts.last_before((key, f"{scope}\0"))
        return None if last is None or last[:2] != (key, scope) else last[-1]

    def last_puts(self, key: Key) -> Iterator[MsgID]:
        """The entries that put the last items of a key, one of each scope."""
        start: tuple[Any, ...] = (key,)
        while (first := self.puts.first_from(start)) is not None and first[0] == key:
            last = self._last_put(key, first[1])
            yield from () if last is None else (last,)
            start = (key, f"{first[1]}\0")  # the least scope after this one

    def has_ends_after(self, cursor: Time) -> bool:
        """Whether a range or key may end after this cursor, and before its message."""
        return self.ends.first_from((cursor + 1,)) is not None


def _number(entry: OutboxEntry) -> int:
    return entry.number


def _count(keys: SortedKeys[Any]) -> int:
    return sum(map(len, keys.runs))


def _put_places(entry: OutboxEntry) -> Iterator[tuple[Key, DeviceID, bool, int, MsgID]]:
    message = entry.message
    if message.key is not None and entry.shown:
        # What waits is shown after all that has a ctime, in the order of writing.
        place = message.ctime if message.stamped else entry.number
        yield message.key, message.device_id or "", not message.stamped, place, message.msg_id


def _end_places(entry: OutboxEntry) -> Iterator[tuple[Time, MsgID]]:
    ends = [c.end_time for c in clauses(entry.message) if c.end_time is not None]
    times = [MAX_TIME if end.offset is not None else end.after(0) for end in ends]
    if times:
        yield max(times), entry.message.msg_id


def _second_of(keys: SortedKeys[tuple[str, MsgID]], first: str) -> Iterator[MsgID]:
    """The ids in the pairs that begin with this."""
    start: tuple[Any, ...] = (first,)
    while (pair := keys.first_from(start)) is not None and pair[0] == first:
        yield pair[1]
        start = (*pair, "")


def _second_until(keys: SortedKeys[tuple[int, MsgID]], last: int) -> list[MsgID]:
    """The ids in the pairs whose number is at most this."""
    found: list[MsgID] = []
    for number, msg_id in keys:
        if number > last:
            break
        found.append(msg_id)
    return found
