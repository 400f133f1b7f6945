"""Items by id, by category and by expiry: a value, like a map, of which each change is a new one.

A range finds the items that it covers, and the time those that it ends, without looking at the
others.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from immutables import Map
from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import Category, MsgID
from gregor.core.state import Item

MAX_RUN = 128

K = TypeVar("K", bound=tuple[Any, ...])


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

    def _run_of(self, key: tuple[Any, ...]) -> int:
        """The index of the first run that ends at or after the key."""
        return bisect_left(self.runs, key, key=_last)

    def _with_runs(self, index: int, runs: tuple[tuple[K, ...], ...]) -> "SortedKeys[K]":
        return SortedKeys((*self.runs[:index], *runs, *self.runs[index + 1 :]))


class ItemIndex(Struct, frozen=True, eq=False):
    """Items by id, with the operations of a map; by category and ctime; and those that expire by
    their expiry."""

    by_id: Map[MsgID, Item] = Map()
    by_category: SortedKeys[tuple[Category, Time, MsgID]] = SortedKeys()
    by_expiry: SortedKeys[tuple[Time, MsgID]] = SortedKeys()

    @classmethod
    def of(cls, items: Iterable[Item]) -> "ItemIndex":
        by_id = Map({item.msg_id: item for item in items})
        return cls(
            by_id,
            SortedKeys.of(map(_category_key, by_id.values())),
            SortedKeys.of(key for item in by_id.values() if (key := _expiry_key(item)) is not None),
        )

    # A map

    def get(self, msg_id: MsgID) -> Item | None:
        return self.by_id.get(msg_id)

    def values(self) -> Iterable[Item]:
        return self.by_id.values()

    def set(self, msg_id: MsgID, item: Item) -> "ItemIndex":
        others, expiry = self.without(msg_id), _expiry_key(item)
        return ItemIndex(
            others.by_id.set(msg_id, item),
            others.by_category.add(_category_key(item)),
            others.by_expiry if expiry is None else others.by_expiry.add(expiry),
        )

    def without(self, msg_id: MsgID) -> "ItemIndex":
        """Without the item with this id, if there is one."""
        item = self.by_id.get(msg_id)
        if item is None:
            return self
        expiry = _expiry_key(item)
        return ItemIndex(
            self.by_id.delete(msg_id),
            self.by_category.remove(_category_key(item)),
            self.by_expiry if expiry is None else self.by_expiry.remove(expiry),
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
        """The items of this category, with `prefix` of all that begin with it, whose ctime is at
        most `end`. It takes a few steps for each of them, and for each other category."""
        start: tuple[Any, ...] = (category,)
        while (key := self.by_category.first_from(start)) is not None:
            found, ctime, msg_id = key
            if not (found.startswith(category) if prefix else found == category):
                return
            if ctime <= end:
                yield self.by_id[msg_id]
                start = (*key, "")
            else:
                start = (f"{found}\0",)  # the least category after this one

    # By expiry

    def next_expiry(self, after: Time) -> Time | None:
        """The earliest expiry later than this time; None if there is none."""
        key = self.by_expiry.first_from((after + 1,))
        return None if key is None else key[0]

    def expired(self, after: Time, until: Time) -> Iterator[Item]:
        """The items whose expiry is later than `after`, and at most `until`, in that order."""
        start: tuple[Any, ...] = (after + 1,)
        while (key := self.by_expiry.first_from(start)) is not None and key[0] <= until:
            yield self.by_id[key[1]]
            start = (*key, "")


def _category_key(item: Item) -> tuple[Category, Time, MsgID]:
    return item.category, item.ctime, item.msg_id


def _expiry_key(item: Item) -> tuple[Time, MsgID] | None:
    return None if item.expires_at is None else (item.expires_at, item.msg_id)


def _last(run: tuple[K, ...]) -> K:
    return run[-1]
