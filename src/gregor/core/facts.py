"""The replicated state of one user, and the rules by which replicas agree.

A user's state is a pure function of the *set* of that user's messages, of the device and of the
time. There are two kinds of facts, and both only grow:

- A creation: this item exists from its ctime on.
- A dismissal with ctime d: these ids are dead from d on, and so is every item whose category
  a range matches, whose ctime is not after the end of the range, and which it does not skip. A
  range never ends after d: a dismissal says nothing about what comes after it.

If several deaths apply to an item, the earliest counts. So facts are independent of the order of
arrival, and adding them is idempotent: `Facts` is a join-semilattice (a state-based CRDT). `replay`
adds a message, `join` merges the facts of another replica. No code here reads a clock: time is an
argument.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple, TypeVar

from immutables import Map
from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.item_index import ItemIndex
from gregor.core.message import Category, DeviceID, Dismissal, InBandMessage, MsgID
from gregor.core.state import Item, State
from gregor.core.visibility import At, Now, is_visible

T = TypeVar("T")


class DismissedRange(Struct, frozen=True, omit_defaults=True):
    """A range as a fact: with its end as a time, and the ctime of its dismissal."""

    end: Time
    ctime: Time
    category: Category
    prefix: bool = False
    skip_msg_ids: tuple[MsgID, ...] = ()

    def covers(self, item: Item) -> bool:
        return item.ctime <= self.end and self.matches(item.msg_id, item.category)

    def matches(self, msg_id: MsgID, category: Category) -> bool:
        """Whether the range matches this id and category; ignores the ctime."""
        if msg_id in self.skip_msg_ids:
            return False
        return category.startswith(self.category) if self.prefix else category == self.category


def dismissed_ranges(dismissal: Dismissal, ctime: Time) -> Iterator[DismissedRange]:
    """The ranges of a dismissal whose message has this ctime, at which they end at the latest."""
    for range_ in dismissal.ranges:
        stated = ctime if range_.end_time is None else range_.end_time.after(ctime)
        end = min(stated, ctime)
        yield DismissedRange(end, ctime, range_.category, range_.prefix, range_.skip_msg_ids)


class DismissedItem(NamedTuple):
    """A dead item, with its earliest known death."""

    item: Item
    dismissed_at: Time


class Facts(Struct, frozen=True):
    """All that a replica knows of one user. A value: every operation returns a new one.

    `items` have no known death (they may have expired); `dismissed` have one. `tombstones` are
    the dismissed ids, whether or not their items have arrived. `ranges` are ordered by end, so
    that those that may cover a new item are a tail of them. `latest_dismissal` is the greatest
    ctime of a dismissal: a dismissal at or after it cannot give a dead item an earlier death.
    """

    items: ItemIndex = ItemIndex()
    dismissed: Map[MsgID, DismissedItem] = Map()
    tombstones: Map[MsgID, Time] = Map()
    ranges: tuple[DismissedRange, ...] = ()
    latest_dismissal: Time = 0

    @classmethod
    def of(cls, items: Iterable[Item]) -> "Facts":
        """The facts that these items exist, and nothing is known to be dead."""
        return cls(ItemIndex.of(items))

    # Adding facts

    def replay(self, message: InBandMessage) -> "Facts":
        """Add the facts of a stamped message. Idempotent, and independent of order."""
        facts = self
        if message.dismissal is not None:
            facts = facts._with(latest_dismissal=max(message.ctime, self.latest_dismissal))
            facts = facts._dismiss_ids((id_, message.ctime) for id_ in message.dismissal.msg_ids)
            for range_ in dismissed_ranges(message.dismissal, message.ctime):
                facts = facts._dismiss_range(range_)
        item = Item.of(message)
        return facts if item is None else facts._add(item)

    def replay_all(self, messages: Iterable[InBandMessage]) -> "Facts":
        facts = self
        for message in messages:
            facts = facts.replay(message)
        return facts

    def join(self, other: "Facts") -> "Facts":
        """Merge the facts of two replicas: commutative, associative, idempotent."""
        facts = self._with(latest_dismissal=max(self.latest_dismissal, other.latest_dismissal))
        facts = facts._dismiss_ids(other.tombstones.items())
        for range_ in other.ranges:
            facts = facts._dismiss_range(range_)
        for item in other.items.values():
            facts = facts._add(item)
        for dismissed in other.dismissed.values():
            facts = facts._add(dismissed.item)
        return facts

    def _add(self, item: Item) -> "Facts":
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

    def _dismiss_range(self, range_: DismissedRange) -> "Facts":
        index = bisect_left(self.ranges, _range_order(range_), key=_range_order)
        if index < len(self.ranges) and self.ranges[index] == range_:
            return self
        candidates = list(self._matched_by(range_))
        if range_.ctime < self.latest_dismissal:
            candidates += [dismissed.item for dismissed in self.dismissed.values()]
        skipped = frozenset(range_.skip_msg_ids)
        covered = [i for i in candidates if i.msg_id not in skipped and range_.covers(i)]
        facts = self._with(ranges=(*self.ranges[:index], range_, *self.ranges[index:]))
        return facts._dismiss(covered, range_.ctime)

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
        return min(deaths, default=None)

    def _with(
        self,
        items: ItemIndex | None = None,
        dismissed: Map[MsgID, DismissedItem] | None = None,
        tombstones: Map[MsgID, Time] | None = None,
        ranges: tuple[DismissedRange, ...] | None = None,
        latest_dismissal: Time | None = None,
    ) -> "Facts":
        return Facts(
            self.items if items is None else items,
            self.dismissed if dismissed is None else dismissed,
            self.tombstones if tombstones is None else tombstones,
            self.ranges if ranges is None else ranges,
            self.latest_dismissal if latest_dismissal is None else latest_dismissal,
        )

    # Queries

    def find(self, msg_id: MsgID) -> Item | None:
        """The item with this id, dead or live; None if it has not arrived."""
        item = self.items.get(msg_id)
        if item is None and msg_id in self.dismissed:
            item = self.dismissed[msg_id].item
        return item

    def reached_by(self, message: InBandMessage) -> Iterator[MsgID]:
        """The ids of the items that a replay of the stamped message may create or dismiss."""
        yield message.msg_id
        if message.dismissal is not None:
            yield from message.dismissal.msg_ids
            for range_ in dismissed_ranges(message.dismissal, message.ctime):
                yield from (item.msg_id for item in self._matched_by(range_))

    def _matched_by(self, range_: DismissedRange) -> Iterator[Item]:
        return self.items.of_category(range_.category, prefix=range_.prefix, end=range_.end)

    def visible(self, device_id: DeviceID | None, now: Time) -> Iterator[Item]:
        """The items visible on the device now, in no order."""
        when = Now(now)
        return (i for i in self.items.values() if is_visible(i, None, device_id, when))

    def state(self, device_id: DeviceID | None, now: Time) -> State:
        """What is visible on the device now."""
        return State.of(self.visible(device_id, now), now)

    def state_at(self, device_id: DeviceID | None, at: Time) -> State:
        """What was, or will be, visible on the device at a stated time."""
        when = At(at)
        undismissed = ((item, None) for item in self.items.values())
        visible = (
            item
            for item, dismissed_at in chain(undismissed, self.dismissed.values())
            if is_visible(item, dismissed_at, device_id, when)
        )
        return State.of(visible, at)

    def without_tombstones(self) -> "Facts":
        """The same items, live and dead, without the tombstones and ranges for later arrivals."""
        return self._with(tombstones=Map(), ranges=())

    def with_item_as_in(self, other: "Facts", msg_id: MsgID) -> "Facts":
        """The same facts, but of this item and its id those of the others."""
        item, dismissed = other.items.get(msg_id), other.dismissed.get(msg_id)
        tombstone = other.tombstones.get(msg_id)
        return self._with(
            items=self.items.without(msg_id) if item is None else self.items.set(msg_id, item),
            dismissed=_with(self.dismissed, msg_id, dismissed),
            tombstones=_with(self.tombstones, msg_id, tombstone),
        )

    def pruned(self) -> "Facts":
        """Only the items without a known death: all that a replica keeps which is told in order,
        and is not told of what is dead when it arrives."""
        return Facts(self.items)


def _range_end(range_: DismissedRange) -> Time:
    return range_.end


def _range_order(range_: DismissedRange) -> tuple[Time, Time, Category, bool, tuple[MsgID, ...]]:
    return range_.end, range_.ctime, range_.category, range_.prefix, range_.skip_msg_ids


def _with(map_: Map[MsgID, T], msg_id: MsgID, value: T | None) -> Map[MsgID, T]:
    return _without(map_, msg_id) if value is None else map_.set(msg_id, value)


def _without(map_: Map[MsgID, T], msg_id: MsgID) -> Map[MsgID, T]:
    return map_.delete(msg_id) if msg_id in map_ else map_
