"""The replicated state of one user, and the rules by which replicas agree.

A user's state is a pure function of the *set* of that user's messages, of the device and of the
time. There are these facts, and all only grow:

- A creation with ctime c: this item exists. Its *time* is the later of c and its start.
- A creation with a key: items with the same key and scope and a smaller ctime are dead from c on.
  So a key is a register, in which the last write wins.
- A dismissal with ctime d: these ids are dead from d on; so is every item whose category a range
  matches, whose time is not after the end of the range, and which it does not skip; and so is
  every item with one of these keys whose ctime is not after the end of the key.

An end is never later than d: a dismissal says nothing about what comes after it. Ranges and keys do
not reach the item of their own message, and those of a message with a `device_id` reach only what
that device sees.

If several deaths apply to an item, the earliest counts. So facts are independent of the order of
arrival, and adding them is idempotent: `Facts` is a join-semilattice (a state-based CRDT). `replay`
adds a message, `join` merges the facts of another replica. No code here reads a clock: time is an
argument.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain, groupby
from typing import Any, NamedTuple, TypeVar

from immutables import Map
from msgspec import Struct, structs

from gregor.core.instant import MAX_TIME, Time, TimeOrOffset
from gregor.core.item_index import ItemIndex, RegisterKey, SortedKeys, register_key
from gregor.core.message import (
    Category,
    DeviceID,
    InBandMessage,
    Key,
    MsgID,
    seen_on,
)
from gregor.core.range_deaths import Pattern, outermost, range_deaths
from gregor.core.state import Item, State
from gregor.core.state_hash import hash_of
from gregor.core.visibility import At, Now, is_live, is_visible

T = TypeVar("T")


class DismissedRange(Struct, frozen=True, omit_defaults=True):
    """A range as a fact: with its end as a time, and the ctime of its dismissal. `own` is the id of
    that message, whose item it does not reach; `device_id` limits it to what that device sees."""

    end: Time
    ctime: Time
    category: Category
    prefix: bool = False
    skip_msg_ids: tuple[MsgID, ...] = ()
    scheduled: bool = False
    device_id: DeviceID | None = None
    own: MsgID | None = None

    def covers(self, item: Item) -> bool:
        time = item.ctime if self.scheduled else item.time
        return (
            time <= self.end
            and seen_on(item.device_id, self.device_id)
            and self.matches(item.msg_id, item.category)
        )

    def matches(self, msg_id: MsgID, category: Category) -> bool:
        """Whether the range matches this id and category, whatever its time and scope."""
        if msg_id == self.own or msg_id in self.skip_msg_ids:
            return False
        return category.startswith(self.category) if self.prefix else category == self.category


class DismissedKey(Struct, frozen=True, omit_defaults=True):
    """A dismissed key as a fact, with the fields of a DismissedRange."""

    end: Time
    ctime: Time
    key: Key
    device_id: DeviceID | None = None
    own: MsgID | None = None

    def covers(self, item: Item) -> bool:
        return (
            item.ctime <= self.end
            and item.key == self.key
            and seen_on(item.device_id, self.device_id)
            and item.msg_id != self.own
        )


def dismissed_ranges(message: InBandMessage) -> Iterator[DismissedRange]:
    """The ranges of a stamped message."""
    for range_ in () if message.dismissal is None else message.dismissal.ranges:
        yield DismissedRange(
            _end(range_.end_time, message.ctime),
            message.ctime,
            range_.category,
            range_.prefix,
            range_.skip_msg_ids,
            range_.scheduled,
            message.device_id,
            message.msg_id,
        )


def dismissed_keys(message: InBandMessage) -> Iterator[DismissedKey]:
    """The keys that a stamped message dismisses."""
    for named in () if message.dismissal is None else message.dismissal.keys:
        end = _end(named.end_time, message.ctime)
        yield DismissedKey(end, message.ctime, named.key, message.device_id, message.msg_id)


def is_dismissed_by(item: Item, message: InBandMessage) -> bool:
    """Whether the dismissal of the stamped message reaches the item."""
    if message.dismissal is None:
        return False
    return (
        item.msg_id in message.dismissal.msg_ids
        or any(range_.covers(item) for range_ in dismissed_ranges(message))
        or any(key.covers(item) for key in dismissed_keys(message))
    )


def _end(stated: TimeOrOffset | None, ctime: Time) -> Time:
    return ctime if stated is None else min(stated.after(ctime), ctime)


class DismissedItem(NamedTuple):
    """A dead item, with its earliest known death."""

    item: Item
    dismissed_at: Time


class Facts(Struct, frozen=True):
    """All that a replica knows of one user. A value: every operation returns a new one.

    `items` have no known death (they may have expired); `dismissed` have one. `tombstones` are
    the dismissed ids, whether or not their items have arrived. `ranges` are ordered by end, so
    that those that may cover a new item are a tail of them. `keys` are the dismissed keys, and
    `keyed` the creations with a key. `latest_death` is the greatest ctime of a dismissal or of a
    creation with a key: a message at or after it cannot give a dead item an earlier death.
    """

    items: ItemIndex = ItemIndex()
    dismissed: Map[MsgID, DismissedItem] = Map()
    tombstones: Map[MsgID, Time] = Map()
    ranges: tuple[DismissedRange, ...] = ()
    keys: Map[Key, tuple[DismissedKey, ...]] = Map()
    keyed: SortedKeys[RegisterKey] = SortedKeys()
    latest_death: Time = 0

    @classmethod
    def of(cls, items: Iterable[Item]) -> "Facts":
        """The facts that these items exist, and nothing is known to be dead."""
        return cls.of_live(ItemIndex.of(items))

    @classmethod
    def of_live(cls, items: ItemIndex) -> "Facts":
        return cls(items, keyed=items.by_key)

    # Adding facts

    def replay(self, message: InBandMessage) -> "Facts":
        """Add the facts of a stamped message. Idempotent, and independent of order."""
        facts = self
        if message.dismissal is not None:
            facts = facts._with(latest_death=max(message.ctime, self.latest_death))
            facts = facts._dismiss_ids((id_, message.ctime) for id_ in message.dismissal.msg_ids)
            facts = facts._dismiss_ranges(list(dismissed_ranges(message)), message.ctime)
            for key in dismissed_keys(message):
                facts = facts._dismiss_key(key)
        item = Item.of(message)
        return facts if item is None else facts._add(item)

    def replay_all(self, messages: Iterable[InBandMessage]) -> "Facts":
        facts = self
        for message in messages:
            facts = facts.replay(message)
        return facts

    def join(self, other: "Facts") -> "Facts":
        """Merge the facts of two replicas: commutative, associative, idempotent."""
        facts = self._with(latest_death=max(self.latest_death, other.latest_death))
        facts = facts._dismiss_ids(other.tombstones.items())
        for ctime, ranges in groupby(sorted(other.ranges, key=_range_ctime), key=_range_ctime):
            facts = facts._dismiss_ranges(list(ranges), ctime)
        for key in chain.from_iterable(other.keys.values()):
            facts = facts._dismiss_key(key)
        for register in other.keyed:
            facts = facts._replace_by(register)
        for item in other.items.values():
            facts = facts._add(item)
        for dismissed in other.dismissed.values():
            facts = facts._add(dismissed.item)
        return facts

    def _add(self, item: Item) -> "Facts":
        register = register_key(item)
        return (self if register is None else self._replace_by(register))._add_item(item)

    def _add_item(self, item: Item) -> "Facts":
        known = self.find(item.msg_id)
        if known is not None and not item.precedes(known):
            return self
        dismissed_at = self._dismissed_at(item)
        if dismissed_at is None:
            return self._with(
                items=self.items.set(item.msg_id, item),
                dismissed=_without(self.dismissed, item.msg_id),
            )
        return self._with(
            items=self.items.without(item.msg_id),
            dismissed=self.dismissed.set(item.msg_id, DismissedItem(item, dismissed_at)),
        )

    def _dismiss_ids(self, deaths: Iterable[tuple[MsgID, Time]]) -> "Facts":
        facts = self
        for msg_id, at in deaths:
            if at >= facts.tombstones.get(msg_id, at + 1):
                continue
            facts = facts._with(tombstones=facts.tombstones.set(msg_id, at))
            item = facts.find(msg_id)
            if item is not None:
                facts = facts._dismiss([item], at)
        return facts

    def _dismiss_ranges(self, ranges: Sequence[DismissedRange], ctime: Time) -> "Facts":
        """Add the ranges of a message, or of several with this ctime."""
        if not ranges:
            return self
        known = list(self.ranges)
        new = [range_ for range_ in ranges if _insert(known, range_)]
        if not new:
            return self
        candidates: Iterable[Item] = self._matched_by(new)
        if ctime < self.latest_death:
            candidates = chain(candidates, (dead.item for dead in self.dismissed.values()))
        covered = _covered(new, candidates)
        return self._with(ranges=tuple(known))._dismiss(covered, ctime)

    def _dismiss_key(self, key: DismissedKey) -> "Facts":
        known = self.keys.get(key.key, ())
        if key in known:
            return self
        candidates = self.items.of_key(key.key)
        if key.ctime < self.latest_death:
            candidates = self._created_with(key.key)
        covered = [item for item in candidates if key.covers(item)]
        keys = self.keys.set(key.key, tuple(sorted((*known, key), key=_key_order)))
        return self._with(keys=keys)._dismiss(covered, key.ctime)

    def _created_with(self, key: Key) -> Iterator[Item]:
        """The items with this key, dead or live."""
        start: tuple[Any, ...] = (key,)
        while (register := self.keyed.first_from(start)) is not None and register[0] == key:
            yield from self._of_register(register)
            start = (*register, "")

    def _replace_by(self, register: RegisterKey) -> "Facts":
        """A creation with a key takes the place of the one before it. What was before that one has
        an earlier death."""
        if register in self.keyed:
            return self
        key, scope, ctime, _ = register
        facts = self._with(
            keyed=self.keyed.add(register), latest_death=max(self.latest_death, ctime)
        )
        before = self.keyed.last_before((key, scope, ctime))
        if before is None or before[:2] != (key, scope):
            return facts
        return facts._dismiss(self._created_at(before), ctime)

    def _created_at(self, register: RegisterKey) -> Iterator[Item]:
        """The items of this register and ctime. A state machine of record gives a ctime once."""
        start: tuple[Any, ...] = register[:3]
        while (entry := self.keyed.first_from(start)) is not None and entry[:3] == register[:3]:
            yield from self._of_register(entry)
            start = (*entry, "")

    def _of_register(self, register: RegisterKey) -> Iterator[Item]:
        item = self.find(register[3])
        if item is not None and register_key(item) == register:
            yield item

    def _dismiss(self, dismissed_items: Iterable[Item], at: Time) -> "Facts":
        items, dismissed = self.items, self.dismissed
        for item in dismissed_items:
            items = items.without(item.msg_id)
            known = dismissed.get(item.msg_id)
            if known is None or at < known.dismissed_at:
                dismissed = dismissed.set(item.msg_id, DismissedItem(item, at))
        return self._with(items=items, dismissed=dismissed)

    def _dismissed_at(self, item: Item) -> Time | None:
        candidates = self.ranges[bisect_left(self.ranges, item.ctime, key=_range_end) :]
        deaths = [range_.ctime for range_ in candidates if range_.covers(item)]
        if item.msg_id in self.tombstones:
            deaths.append(self.tombstones[item.msg_id])
        if item.key is not None:
            keys = self.keys.get(item.key, ())
            deaths += [key.ctime for key in keys if key.covers(item)]
            deaths += self._replaced_at(item.key, item.device_id or "", item.ctime)
        return min(deaths, default=None)

    def _replaced_at(self, key: Key, scope: DeviceID, ctime: Time) -> Iterator[Time]:
        """When the creation at this ctime was replaced, if it was."""
        successor = self.keyed.first_from((key, scope, ctime + 1))
        if successor is not None and successor[:2] == (key, scope):
            yield successor[2]

    def _with(self, **changes: Any) -> "Facts":
        return structs.replace(self, **changes)

    # Queries

    def find(self, msg_id: MsgID) -> Item | None:
        """The item with this id, dead or live; None if it has not arrived."""
        item = self.items.get(msg_id)
        if item is None and msg_id in self.dismissed:
            item = self.dismissed[msg_id].item
        return item

    def death_of(self, msg_id: MsgID) -> Time | None:
        """The death of the item with this id; None if it has none that is known, or has not
        arrived."""
        dismissed = self.dismissed.get(msg_id)
        return None if dismissed is None else dismissed.dismissed_at

    def reached_by(self, message: InBandMessage) -> Iterator[MsgID]:
        """The ids of the items that a replay of the stamped message may create or dismiss."""
        yield message.msg_id
        if message.dismissal is not None:
            yield from message.dismissal.msg_ids
        yield from (item.msg_id for item in self._matched_by(list(dismissed_ranges(message))))
        for key in dismissed_keys(message):
            yield from (item.msg_id for item in self.items.of_key(key.key) if key.covers(item))
        replaced = self.predecessor(message)
        if replaced is not None:
            yield replaced.msg_id

    def predecessor(self, message: InBandMessage) -> Item | None:
        """The item whose place the item of the stamped message takes: that of the same key and
        scope with the next smaller ctime, dead or live."""
        if message.key is None:
            return None
        scope = message.device_id or ""
        register = self.keyed.last_before((message.key, scope, message.ctime))
        if register is None or register[:2] != (message.key, scope):
            return None
        return next(self._of_register(register), None)

    def _matched_by(self, ranges: Sequence[DismissedRange]) -> Iterator[Item]:
        """The items without a known death that the ranges match, each once."""
        ends = (MAX_TIME if range_.scheduled else range_.end for range_ in ranges)
        end = max(ends, default=0)
        for category, prefix in outermost(Pattern(r.category, r.prefix) for r in ranges):
            yield from self.items.of_category(category, prefix=prefix, end=end)

    def visible(self, device_id: DeviceID | None, now: Time) -> Iterator[Item]:
        """The items visible on the device now, in no order."""
        when = Now(now)
        return (i for i in self.items.values() if is_visible(i, None, device_id, when))

    def state(self, device_id: DeviceID | None, now: Time) -> State:
        """What is visible on the device now."""
        return State.of(self.visible(device_id, now), now)

    def state_at(self, device_id: DeviceID | None, at: Time, known: Time | None = None) -> State:
        """What was, or will be, visible on the device at a stated time; with `known`, of the
        messages up to this ctime."""
        when = At(at, known)
        visible = (
            item for item, dead_at in self._known() if is_visible(item, dead_at, device_id, when)
        )
        return State.of(visible, at)

    def hash(self, device_id: DeviceID | None, as_of: Time) -> str:
        """The hash of what is live on the device now: begun or not."""
        return self.hash_at(device_id, Now(as_of))

    def hash_at(self, device_id: DeviceID | None, when: Now | At) -> str:
        """The same at a stated time."""
        live = (item for item, dead_at in self._known() if is_live(item, dead_at, device_id, when))
        return hash_of((item.ctime, item.msg_id) for item in live)

    def _known(self) -> Iterator[tuple[Item, Time | None]]:
        """All items, each with its death, if it is dead."""
        return chain(((item, None) for item in self.items.values()), self.dismissed.values())

    def without_tombstones(self) -> "Facts":
        """The same items, live and dead, without what is only for later arrivals."""
        return Facts(self.items, self.dismissed, keyed=self.items.by_key)

    def for_later_messages(self) -> "Facts":
        """The same items and tombstones, without what only earlier messages would need."""
        return self._with(ranges=(), keys=Map(), keyed=self.items.by_key, latest_death=0)

    def with_item_as_in(self, other: "Facts", msg_id: MsgID) -> "Facts":
        """The same facts, but of this item and its id those of the others. Only later messages may
        be added to them."""
        item, dismissed = other.items.get(msg_id), other.dismissed.get(msg_id)
        items = self.items.without(msg_id) if item is None else self.items.set(msg_id, item)
        return self._with(
            items=items,
            keyed=items.by_key,
            dismissed=_with(self.dismissed, msg_id, dismissed),
            tombstones=_with(self.tombstones, msg_id, other.tombstones.get(msg_id)),
        )

    def pruned(self) -> "Facts":
        """Only the items without a known death: all that a replica keeps which is told in order,
        and is not told of what is dead when it arrives."""
        return Facts.of_live(self.items)

    def forgetting(self, msg_ids: Collection[MsgID], floor: Time) -> "Facts":
        """Without these ids, whose items are past at the floor, and without the ranges and keys
        that were dismissed up to it: those reach nothing that is stored after it."""
        gone = [item for item in map(self.find, msg_ids) if item is not None]
        keyed = self.keyed
        for register in filter(None, map(register_key, gone)):
            keyed = keyed.remove(register)
        facts = self.without_tombstones_of(msg_ids)
        for item in gone:
            facts = facts._with(
                items=facts.items.without(item.msg_id),
                dismissed=_without(facts.dismissed, item.msg_id),
            )
        return facts._with(
            ranges=tuple(range_ for range_ in self.ranges if range_.ctime > floor),
            keys=_keys_after(self.keys, floor),
            keyed=keyed,
        )

    def without_tombstones_of(self, msg_ids: Iterable[MsgID]) -> "Facts":
        """Without what was said of these ids before their items arrived."""
        tombstones = self.tombstones
        for msg_id in msg_ids:
            tombstones = _without(tombstones, msg_id)
        return self._with(tombstones=tombstones)


def _keys_after(
    keys: Map[Key, tuple[DismissedKey, ...]], floor: Time
) -> Map[Key, tuple[DismissedKey, ...]]:
    """The dismissals of keys after the floor."""
    later = {key: tuple(one for one in named if one.ctime > floor) for key, named in keys.items()}
    return Map({key: named for key, named in later.items() if named})


def _covered(ranges: Sequence[DismissedRange], items: Iterable[Item]) -> list[Item]:
    """The items that the ranges cover."""
    if len(ranges) > 1:
        return [item for item, _ in range_deaths(ranges, items)]
    (range_,) = ranges  # as in most messages: faster than a sweep
    skipped = frozenset(range_.skip_msg_ids)
    return [item for item in items if item.msg_id not in skipped and range_.covers(item)]


def _insert(ranges: list[DismissedRange], range_: DismissedRange) -> bool:
    """Insert a range in order, unless it is there. Returns whether it was not."""
    index = bisect_left(ranges, _range_order(range_), key=_range_order)
    if index < len(ranges) and ranges[index] == range_:
        return False
    ranges.insert(index, range_)
    return True


def _range_ctime(range_: DismissedRange) -> Time:
    return range_.ctime


def _range_end(range_: DismissedRange) -> Time:
    return range_.end


def _range_order(range_: DismissedRange) -> tuple[Any, ...]:
    reach = range_.scheduled, range_.device_id or "", range_.own or ""
    pattern = range_.category, range_.prefix, range_.skip_msg_ids
    return range_.end, range_.ctime, *pattern, *reach


def _key_order(key: DismissedKey) -> tuple[Any, ...]:
    return key.end, key.ctime, key.device_id or "", key.own or ""


def _with(map_: Map[MsgID, T], msg_id: MsgID, value: T | None) -> Map[MsgID, T]:
    return _without(map_, msg_id) if value is None else map_.set(msg_id, value)


def _without(map_: Map[MsgID, T], msg_id: MsgID) -> Map[MsgID, T]:
    return map_.delete(msg_id) if msg_id in map_ else map_
