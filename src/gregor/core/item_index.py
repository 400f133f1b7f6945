"""Items by id and by category: a value, like a map, of which each change is a new one.

A range finds the items that it covers without looking at the others.
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from immutables import Map
from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import Category, MsgID
from gregor.core.state import Item

MAX_RUN = 128

Key: TypeAlias = tuple[Category, Time, MsgID]


class SortedKeys(Struct, frozen=True, eq=False):
    """A sorted set of keys in short runs, so that a change copies one run and the list of runs
    instead of all keys. No run is empty."""

    runs: tuple[tuple[Key, ...], ...] = ()

    @classmethod
    def of(cls, keys: Iterable[Key]) -> "SortedKeys":
        ordered = sorted(keys)
        starts = range(0, len(ordered), MAX_RUN)
        return cls(tuple(tuple(ordered[start : start + MAX_RUN]) for start in starts))

    def add(self, key: Key) -> "SortedKeys":
        """With a key that is not in the set."""
        if not self.runs:
            return SortedKeys(((key,),))
        index = min(self._run_of(key), len(self.runs) - 1)
        run = self.runs[index]
        place = bisect_left(run, key)
        run = (*run[:place], key, *run[place:])
        half = len(run) // 2
        return self._with_runs(index, (run,) if len(run) <= MAX_RUN else (run[:half], run[half:]))

    def remove(self, key: Key) -> "SortedKeys":
        """Without a key that is in the set."""
        index = self._run_of(key)
        run = self.runs[index]
        place = bisect_left(run, key)
        run = (*run[:place], *run[place + 1 :])
        return self._with_runs(index, (run,) if run else ())

    def first_from(self, start: tuple[str | int, ...]) -> Key | None:
        """The first key that is not before this one, which may be the beginning of a key."""
        index = self._run_of(start)
        if index == len(self.runs):
            return None
        run = self.runs[index]
        return run[bisect_left(run, start)]

    def _run_of(self, key: tuple[str | int, ...]) -> int:
        """The index of the first run that ends at or after the key."""
        return bisect_left(self.runs, key, key=_last)

    def _with_runs(self, index: int, runs: tuple[tuple[Key, ...], ...]) -> "SortedKeys":
        return SortedKeys((*self.runs[:index], *runs, *self.runs[index + 1 :]))


class ItemIndex(Struct, frozen=True, eq=False):
    """Items by id, with the operations of a map, and by category."""

    by_id: Map[MsgID, Item] = Map()
    by_category: SortedKeys = SortedKeys()

    @classmethod
    def of(cls, items: Iterable[Item]) -> "ItemIndex":
        by_id = Map({item.msg_id: item for item in items})
        return cls(by_id, SortedKeys.of(map(_key, by_id.values())))

    # A map

    def get(self, msg_id: MsgID) -> Item | None:
        return self.by_id.get(msg_id)

    def values(self) -> Iterable[Item]:
        return self.by_id.values()

    def set(self, msg_id: MsgID, item: Item) -> "ItemIndex":
        index = self.without(msg_id)
        return ItemIndex(index.by_id.set(msg_id, item), index.by_category.add(_key(item)))

    def without(self, msg_id: MsgID) -> "ItemIndex":
        """Without the item with this id, if there is one."""
        if msg_id not in self.by_id:
            return self
        key = _key(self.by_id[msg_id])
        return ItemIndex(self.by_id.delete(msg_id), self.by_category.remove(key))

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
        start: tuple[str | int, ...] = (category,)
        while (key := self.by_category.first_from(start)) is not None:
            found, ctime, msg_id = key
            if not (found.startswith(category) if prefix else found == category):
                return
            if ctime <= end:
                yield self.by_id[msg_id]
                start = (*key, "")
            else:
                start = (f"{found}\0",)  # the least category after this one


def _key(item: Item) -> Key:
    return item.category, item.ctime, item.msg_id


def _last(run: tuple[Key, ...]) -> Key:
    return run[-1]
