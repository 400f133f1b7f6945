"""Items by id, category, key, start and expiry: a value, like a map; each change is a new one.

A range finds the items that it covers, a key those that it names, and the time those that it begins
and ends, without looking at the others.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Generic, TypeAlias, TypeVar

from immutables import Map
from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import Category, DeviceID, Key, MsgID
from gregor.core.state import Item
from gregor.core.state_hash import HASH_MODULUS, entry_hash, hash_text

MAX_RUN = 128

K = TypeVar("K", bound=tuple[Any, ...])

RegisterKey: TypeAlias = tuple[Key, DeviceID, Time, MsgID]
"""An item with a key: the key, the scope ("" if it is unset), its ctime and its msg_id. In order,
the items of one key and scope, which take each other's place, follow each other."""


class SortedKeys(Struct, Generic[K], frozen=True, eq=False):
    """A sorted set of keys in short runs, so that a change copies one run and the list of runs
    instead of all keys. No run is empty."""

    runs: tuple[tuple[K, ...], ...] = ()

    @classmethod
    def of(cls, keys: Iterable[K]) -> "SortedKeys[K]":
        ordered = sorted(keys)
        starts = range(0, len(ordered), MAX_RUN)
        return cls(tuple(tuple(ordered[start : start + MAX_RUN]) for start in starts))

    def add(self, key: K) -> "SortedKeys[K]":
        """With a key that is not in the set."""
        if not self.runs:
            return SortedKeys(((key,),))
        index = min(self._run_of(key), len(self.runs) - 1)
        run = self.runs[index]
        place = bisect_left(run, key)
        run = (*run[:place], key, *run[place:])
        half = len(run) // 2
        return self._with_runs(index, (run,) if len(run) <= MAX_RUN else (run[:half], run[half:]))

    def remove(self, key: K) -> "SortedKeys[K]":
        """Without a key that is in the set."""
        index = self._run_of(key)
        run = self.runs[index]
        place = bisect_left(run, key)
        run = (*run[:place], *run[place + 1 :])
        return self._with_runs(index, (run,) if run else ())

    def first_from(self, start: tuple[Any, ...]) -> K | None:
        """The first key that is not before this one, which may be the beginning of a key."""
        index = self._run_of(start)
        if index == len(self.runs):
            return None
        run = self.runs[index]
        return run[bisect_left(run, start)]

    def last_before(self, end: tuple[Any, ...]) -> K | None:
        """The last key that is before this one, which may be the beginning of a key."""
        index = self._run_of(end)
        if index < len(self.runs):
            run = self.runs[index]
            place = bisect_left(run, end)
            if place:
                return run[place - 1]
        return self.runs[index - 1][-1] if index else None

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and self.first_from(key) == key

    def __iter__(self) -> Iterator[K]:
        return chain.from_iterable(self.runs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SortedKeys) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def _run_of(self, key: tuple[Any, ...]) -> int:
        """The index of the first run that ends at or after the key."""
        return bisect_left(self.runs, key, key=_last)

    def _with_runs(self, index: int, runs: tuple[tuple[K, ...], ...]) -> "SortedKeys[K]":
        return SortedKeys((*self.runs[:index], *runs, *self.runs[index + 1 :]))


class ItemIndex(Struct, frozen=True, eq=False):
    """Items by id, with the operations of a map; by category and time; those with a key by it;
    those that start, and those that expire, by these instants. `hash_sum` is the sum of their
    entries (see state_hash.py)."""

    by_id: Map[MsgID, Item] = Map()
    by_category: SortedKeys[tuple[Category, Time, MsgID]] = SortedKeys()
    by_key: SortedKeys[RegisterKey] = SortedKeys()
    by_start: SortedKeys[tuple[Time, MsgID]] = SortedKeys()
    by_expiry: SortedKeys[tuple[Time, MsgID]] = SortedKeys()
    hash_sum: int = 0

    @classmethod
    def of(cls, items: Iterable[Item]) -> "ItemIndex":
        by_id = Map({item.msg_id: item for item in items})
        values = by_id.values()
        return cls(
            by_id,
            SortedKeys.of(map(_category_key, values)),
            SortedKeys.of(_present(map(register_key, values))),
            SortedKeys.of(_present(map(_start_key, values))),
            SortedKeys.of(_present(map(_expiry_key, values))),
            sum(_entry_of(item) for item in values) % HASH_MODULUS,
        )

    def hash(self, as_of: Time) -> str:
        """The hash of those that have not expired at this instant. It takes a few steps for each
        of those that have."""
        expired = self.expired(after=-1, until=as_of)
        return hash_text(self.hash_sum - sum(_entry_of(item) for item in expired))

    # A map

    def get(self, msg_id: MsgID) -> Item | None:
        return self.by_id.get(msg_id)

    def values(self) -> Iterable[Item]:
        return self.by_id.values()

    def set(self, msg_id: MsgID, item: Item) -> "ItemIndex":
        others = self.without(msg_id)
        return ItemIndex(
            others.by_id.set(msg_id, item),
            others.by_category.add(_category_key(item)),
            _with(others.by_key, register_key(item)),
            _with(others.by_start, _start_key(item)),
            _with(others.by_expiry, _expiry_key(item)),
            (others.hash_sum + _entry_of(item)) % HASH_MODULUS,
        )

    def without(self, msg_id: MsgID) -> "ItemIndex":
        """Without the item with this id, if there is one."""
        item = self.by_id.get(msg_id)
        if item is None:
            return self
        return ItemIndex(
            self.by_id.delete(msg_id),
            self.by_category.remove(_category_key(item)),
            _without(self.by_key, register_key(item)),
            _without(self.by_start, _start_key(item)),
            _without(self.by_expiry, _expiry_key(item)),
            (self.hash_sum - _entry_of(item)) % HASH_MODULUS,
        )

    def without_all(self, msg_ids: Iterable[MsgID]) -> "ItemIndex":
        items = self
        for msg_id in msg_ids:
            items = items.without(msg_id)
        return items

    def __contains__(self, msg_id: object) -> bool:
        return msg_id in self.by_id

    def __iter__(self) -> Iterator[MsgID]:
        return iter(self.by_id)

    def __len__(self) -> int:
        return len(self.by_id)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ItemIndex) and self.by_id == other.by_id

    def __hash__(self) -> int:
        return hash(self.by_id)

    # By category

    def of_category(self, category: Category, *, prefix: bool, end: Time) -> Iterator[Item]:
        """The items of this category, with `prefix` of all that begin with it, whose time is at
        most `end`. It takes a few steps for each of them, and for each other category."""
        start: tuple[Any, ...] = (category,)
        while (key := self.by_category.first_from(start)) is not None:
            found, time, msg_id = key
            if not (found.startswith(category) if prefix else found == category):
                return
            if time <= end:
                yield self.by_id[msg_id]
                start = (*key, "")
            else:
                start = (f"{found}\0",)  # the least category after this one

    # By key

    def of_key(self, key: Key) -> Iterator[Item]:
        """The items with this key: in the order of their scopes, the unset one first."""
        start: tuple[Any, ...] = (key,)
        while (found := self.by_key.first_from(start)) is not None and found[0] == key:
            yield self.by_id[found[3]]
            start = (*found, "")

    # By start and expiry

    def next_start(self, after: Time) -> Time | None:
        """The earliest start later than this time; None if there is none."""
        key = self.by_start.first_from((after + 1,))
        return None if key is None else key[0]

    def started(self, after: Time, until: Time) -> Iterator[Item]:
        """The items whose start is later than `after`, and at most `until`, in that order."""
        return self._between(self.by_start, after, until)

    def next_expiry(self, after: Time) -> Time | None:
        """The earliest expiry later than this time; None if there is none."""
        key = self.by_expiry.first_from((after + 1,))
        return None if key is None else key[0]

    def expired(self, after: Time, until: Time) -> Iterator[Item]:
        """The items whose expiry is later than `after`, and at most `until`, in that order."""
        return self._between(self.by_expiry, after, until)

    def _between(
        self, keys: SortedKeys[tuple[Time, MsgID]], after: Time, until: Time
    ) -> Iterator[Item]:
        start: tuple[Any, ...] = (after + 1,)
        while (key := keys.first_from(start)) is not None and key[0] <= until:
            yield self.by_id[key[1]]
            start = (*key, "")


def register_key(item: Item) -> RegisterKey | None:
    """The place of an item among those with a key; None if it has no key."""
    return None if item.key is None else (item.key, item.device_id or "", item.ctime, item.msg_id)


def _category_key(item: Item) -> tuple[Category, Time, MsgID]:
    return item.category, item.time, item.msg_id


def _start_key(item: Item) -> tuple[Time, MsgID] | None:
    return None if item.starts_at is None else (item.starts_at, item.msg_id)


def _expiry_key(item: Item) -> tuple[Time, MsgID] | None:
    return None if item.expires_at is None else (item.expires_at, item.msg_id)


def _entry_of(item: Item) -> int:
    return entry_hash(item.ctime, item.msg_id)


def _present(keys: Iterable[K | None]) -> Iterator[K]:
    return (key for key in keys if key is not None)


def _with(keys: SortedKeys[K], key: K | None) -> SortedKeys[K]:
    return keys if key is None else keys.add(key)


def _without(keys: SortedKeys[K], key: K | None) -> SortedKeys[K]:
    return keys if key is None else keys.remove(key)


def _last(run: tuple[K, ...]) -> K:
    return run[-1]
