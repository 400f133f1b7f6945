"""The replicated state of one user, and the rules by which replicas agree.

A user's state is a pure function of the *set* of that user's messages, of the device and of the
time. Two kinds of facts are all there is, and both only ever grow:

- a creation says: this item exists, made at its ctime;
- a dismissal, made at ctime d, says: these ids are dead from d on, and so is every item whose
  category a range matches, made no later than the range's end, and not skipped by it.

Where several deaths apply to an item, the earliest counts. So the order in which facts arrive
cannot matter, nor can their repetition: `Facts` is a join-semilattice (a CRDT), `replay` adds a
message to it, and `join` adds what another replica knows. Nobody is asked for the time in here:
whoever wants to see a state says when.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple, TypeVar

from immutables import Map
from msgspec import Raw, Struct, field

from gregor.core.instant import Time
from gregor.core.message import (
    JSON,
    Category,
    DeviceID,
    Dismissal,
    InBandMessage,
    MsgID,
    canonical,
    seen_on,
    value_of,
)

T = TypeVar("T")


class Item(Struct, frozen=True, omit_defaults=True):
    """What a creation created."""

    msg_id: MsgID
    ctime: Time
    category: Category
    raw_body: Raw = field(name="body")
    device_id: DeviceID | None = None
    expires_at: Time | None = None

    @classmethod
    def of(cls, message: InBandMessage) -> "Item | None":
        """The item that a stamped message creates, if it creates one."""
        creation = message.creation
        if creation is None:
            return None
        return cls(
            message.msg_id,
            message.ctime,
            creation.category,
            creation.raw_body.copy(),  # a view would keep its whole frame alive
            message.device_id,
            creation.expires_at(message.ctime),
        )

    @property
    def body(self) -> JSON:
        """The body as a Python value, decoded anew at each call."""
        return value_of(self.raw_body)

    def order(self) -> tuple[Time, MsgID]:
        return self.ctime, self.msg_id

    def expired(self, now: Time) -> bool:
        return self.expires_at is not None and self.expires_at <= now

    def precedes(self, other: "Item") -> bool:
        """Which of two creations under one id stands, should replicas ever meet such a pair."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[Time, bytes, bytes]:
        contents = (self.category, self.body, self.device_id, self.expires_at)
        # The last is for bodies that are equal but spaced differently: one of them must stand.
        return self.ctime, canonical(contents), bytes(self.raw_body)


class DismissedRange(Struct, frozen=True, omit_defaults=True):
    """A range as a fact: its end is a time, and it knows when it was made."""

    end: Time
    ctime: Time
    category: Category
    prefix: bool = False
    skip_msg_ids: tuple[MsgID, ...] = ()

    def covers(self, item: Item) -> bool:
        return item.ctime <= self.end and self.matches(item.msg_id, item.category)

    def matches(self, msg_id: MsgID, category: Category) -> bool:
        """Whether the range means this item, its ctime left aside."""
        if msg_id in self.skip_msg_ids:
            return False
        return category.startswith(self.category) if self.prefix else category == self.category


def dismissed_ranges(dismissal: Dismissal, ctime: Time) -> Iterator[DismissedRange]:
    """The ranges of a dismissal made at `ctime`."""
    for range_ in dismissal.ranges:
        end = ctime if range_.end_time is None else range_.end_time.after(ctime)
        yield DismissedRange(end, ctime, range_.category, range_.prefix, range_.skip_msg_ids)


class State(Struct, frozen=True):
    """What is visible: a user's live items, ordered by (ctime, msg_id), at the instant `as_of`."""

    items: tuple[Item, ...]
    as_of: Time

    @classmethod
    def of(cls, items: Iterable[Item], as_of: Time) -> "State":
        return cls(tuple(sorted(items, key=Item.order)), as_of)

    def hash(self) -> str:
        """SHA-256, in hex, of the lines `"{ctime} {msg_id}\\n"` of the items in order."""
        return hash_of(item.order() for item in self.items)

    def count(self, prefix: Category = "") -> int:
        """How many items have a category that begins with `prefix`, byte for byte."""
        return sum(item.category.startswith(prefix) for item in self.items)

    def with_prefix(self, prefix: Category) -> "State":
        items = tuple(item for item in self.items if item.category.startswith(prefix))
        return State(items, self.as_of)

    def __contains__(self, msg_id: object) -> bool:
        return any(item.msg_id == msg_id for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


def hash_of(names: Iterable[tuple[Time, MsgID]]) -> str:
    """The hash of the state that shows items with these ctimes and ids."""
    lines = "".join([f"{ctime} {msg_id}\n" for ctime, msg_id in sorted(names)])
    return sha256(lines.encode()).hexdigest()


class Dead(NamedTuple):
    """An item, and the earliest death that is known of it."""

    item: Item
    at: Time


class Facts(Struct, frozen=True):
    """All that a replica knows of one user. A value: every operation returns a new one.

    `items` have no known death (they may have expired), `dead` have one. `ids` are the ids said
    to be dead, whether their item is known or has yet to arrive; `ranges` are ordered by end, so
    that what may kill a new item is a tail of them. `latest_death` is the ctime of the latest
    dismissal: one that is not older cannot be the earlier death of an item already dead.
    """

    items: Map[MsgID, Item] = Map()
    dead: Map[MsgID, Dead] = Map()
    ids: Map[MsgID, Time] = Map()
    ranges: tuple[DismissedRange, ...] = ()
    latest_death: Time = 0

    # Growing

    def replay(self, message: InBandMessage) -> "Facts":
        """These facts and those of a stamped message. Twice is once, and any order will do."""
        facts = self
        if message.dismissal is not None:
            facts = facts._with(latest_death=max(message.ctime, self.latest_death))
            facts = facts._bury_ids((id_, message.ctime) for id_ in message.dismissal.msg_ids)
            for range_ in dismissed_ranges(message.dismissal, message.ctime):
                facts = facts._bury_range(range_)
        item = Item.of(message)
        return facts if item is None else facts._add(item)

    def replay_all(self, messages: Iterable[InBandMessage]) -> "Facts":
        facts = self
        for message in messages:
            facts = facts.replay(message)
        return facts

    def join(self, other: "Facts") -> "Facts":
        """What both replicas know together: commutative, associative, idempotent."""
        facts = self._with(latest_death=max(self.latest_death, other.latest_death))
        facts = facts._bury_ids(other.ids.items())
        for range_ in other.ranges:
            facts = facts._bury_range(range_)
        for item in other.items.values():
            facts = facts._add(item)
        for dead in other.dead.values():
            facts = facts._add(dead.item)
        return facts

    def _add(self, item: Item) -> "Facts":
        known = self.find(item.msg_id)
        if known is not None and not item.precedes(known):
            return self
        at = self._death_of(item)
        if at is None:
            return self._with(
                items=self.items.set(item.msg_id, item), dead=_without(self.dead, item.msg_id)
            )
        return self._with(
            items=_without(self.items, item.msg_id), dead=self.dead.set(item.msg_id, Dead(item, at))
        )

    def _bury_ids(self, deaths: Iterable[tuple[MsgID, Time]]) -> "Facts":
        facts = self
        for msg_id, at in deaths:
            if at >= facts.ids.get(msg_id, at + 1):
                continue
            facts = facts._with(ids=facts.ids.set(msg_id, at))
            item = facts.find(msg_id)
            if item is not None:
                facts = facts._bury([item], at)
        return facts

    def _bury_range(self, range_: DismissedRange) -> "Facts":
        place = bisect_left(self.ranges, _range_order(range_), key=_range_order)
        if place < len(self.ranges) and self.ranges[place] == range_:
            return self
        candidates: list[Item] = list(self.items.values())
        if range_.ctime < self.latest_death:
            candidates += [dead.item for dead in self.dead.values()]
        facts = self._with(ranges=(*self.ranges[:place], range_, *self.ranges[place:]))
        return facts._bury([item for item in candidates if range_.covers(item)], range_.ctime)

    def _bury(self, items: Iterable[Item], at: Time) -> "Facts":
        alive, dead = self.items, self.dead
        for item in items:
            alive = _without(alive, item.msg_id)
            known = dead.get(item.msg_id)
            if known is None or at < known.at:
                dead = dead.set(item.msg_id, Dead(item, at))
        return self._with(items=alive, dead=dead)

    def _death_of(self, item: Item) -> Time | None:
        reaching = self.ranges[bisect_left(self.ranges, item.ctime, key=_range_end) :]
        deaths = [range_.ctime for range_ in reaching if range_.covers(item)]
        if item.msg_id in self.ids:
            deaths.append(self.ids[item.msg_id])
        return min(deaths, default=None)

    def _with(
        self,
        items: Map[MsgID, Item] | None = None,
        dead: Map[MsgID, Dead] | None = None,
        ids: Map[MsgID, Time] | None = None,
        ranges: tuple[DismissedRange, ...] | None = None,
        latest_death: Time | None = None,
    ) -> "Facts":
        return Facts(
            self.items if items is None else items,
            self.dead if dead is None else dead,
            self.ids if ids is None else ids,
            self.ranges if ranges is None else ranges,
            self.latest_death if latest_death is None else latest_death,
        )

    # Asking

    def find(self, msg_id: MsgID) -> Item | None:
        """The item of that id, dead or alive."""
        item = self.items.get(msg_id)
        if item is None and msg_id in self.dead:
            item = self.dead[msg_id].item
        return item

    def state(self, device_id: DeviceID | None, now: Time) -> State:
        """What the device shows now. Every known death counts at once, and items are shown
        even if their ctime lies ahead: a clock that lags must not show the past."""
        visible = [
            item
            for item in self.items.values()
            if seen_on(item.device_id, device_id) and not item.expired(now)
        ]
        return State.of(visible, now)

    def state_at(self, device_id: DeviceID | None, at: Time) -> State:
        """What was, or will be, visible at a stated time."""
        there = list(self.items.values())
        there += [dead.item for dead in self.dead.values() if dead.at > at]
        visible = [
            item
            for item in there
            if item.ctime <= at and seen_on(item.device_id, device_id) and not item.expired(at)
        ]
        return State.of(visible, at)

    def deathless(self) -> "Facts":
        """The same items, alive and dead, with nothing left that would kill one to come."""
        return self._with(ids=Map(), ranges=())

    # Shrinking, which only a device's replica may

    def forget(self, cursor: Time) -> "Facts":
        """Only what may still matter to a replica whose store has told it all up to `cursor`:
        dead items go, and ranges that cannot reach a later item."""
        reaching = self.ranges[bisect_left(self.ranges, cursor + 1, key=_range_end) :]
        unmatched = Map({id_: at for id_, at in self.ids.items() if id_ not in self.dead})
        return self._with(dead=Map(), ids=unmatched, ranges=reaching)


class Changes(Struct, frozen=True, tag_field="mode", tag="changes"):
    """The messages that a replica lacks, in order, each reduced to what matters to it."""

    messages: tuple[InBandMessage, ...]


class Snapshot(Struct, frozen=True, tag_field="mode", tag="snapshot", omit_defaults=True):
    """A whole state, and the tombstones of what may still arrive."""

    items: tuple[Item, ...] = ()
    dismissed_ids: tuple[tuple[MsgID, Time], ...] = ()
    dismissed_ranges: tuple[DismissedRange, ...] = ()

    def facts(self) -> Facts:
        deaths = [at for _, at in self.dismissed_ids]
        deaths += [range_.ctime for range_ in self.dismissed_ranges]
        return Facts(
            ids=Map(self.dismissed_ids),
            ranges=tuple(sorted(self.dismissed_ranges, key=_range_order)),
            latest_death=max(deaths, default=0),
        ).join(Facts(items=Map({item.msg_id: item for item in self.items})))

    def __len__(self) -> int:
        return len(self.items) + len(self.dismissed_ids) + len(self.dismissed_ranges)


class Sync(Struct, frozen=True):
    """What brings one replica from its cursor to `cursor`, and the hash of the device's view that
    it must then have at the instant `as_of`; all read at one moment."""

    content: Changes | Snapshot
    cursor: Time
    as_of: Time
    hash: str


def most_changes(snapshot_entries: int) -> int:
    """How many messages of the log may be read before a snapshot of so many entries is smaller."""
    return snapshot_entries + 16


class Known(NamedTuple):
    """What a store says of an item when asked for its id."""

    ctime: Time
    device_id: DeviceID | None
    alive: bool


def since(
    messages: Iterable[InBandMessage],
    device_id: DeviceID | None,
    start: Time,
    known: Callable[[MsgID], Known | None],
) -> Iterator[InBandMessage]:
    """The messages from `start` on, each reduced to what a replica on `device_id` needs that
    knows everything before `start`. `known` tells of the items that they create and dismiss."""
    for message in messages:
        creation, dismissal = message.creation, message.dismissal
        if creation is not None:
            own = known(message.msg_id)
            if not (own is None or own.alive) or not seen_on(message.device_id, device_id):
                creation = None
        if dismissal is not None:
            needed = tuple(
                id_ for id_ in dismissal.msg_ids if _may_have(known(id_), device_id, start)
            )
            dismissal = Dismissal(needed, dismissal.ranges)
        reduced = message.reduced(creation, dismissal)
        if reduced is not None:
            yield reduced


def _may_have(item: Known | None, device_id: DeviceID | None, start: Time) -> bool:
    """Whether a replica that knows everything before `start` may have the item, or yet get it."""
    return item is None or (item.ctime < start and seen_on(item.device_id, device_id))


def _range_end(range_: DismissedRange) -> Time:
    return range_.end


def _range_order(range_: DismissedRange) -> tuple[Time, Time, Category, bool, tuple[MsgID, ...]]:
    return range_.end, range_.ctime, range_.category, range_.prefix, range_.skip_msg_ids


def _without(map_: Map[MsgID, T], msg_id: MsgID) -> Map[MsgID, T]:
    return map_.delete(msg_id) if msg_id in map_ else map_
