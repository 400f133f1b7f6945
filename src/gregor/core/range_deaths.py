"""The deaths that many ranges cause among many items, found in one sweep.

Comparing each range with each item would cost their product, and a sender chooses both numbers. The
sweep costs their sum, up to logarithms.

It goes over the categories of the items in order. The patterns that match a category are those that
have begun and not ended, as brackets do: one that matches fewer categories lies within one that
matches more. The ranges of these are in a tree, which knows the first of those that end late enough
to reach an item.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, pairwise, takewhile
from typing import NamedTuple, Protocol, TypeVar

from gregor.core.facts import DismissedRange
from gregor.core.instant import Time
from gregor.core.message import Category, DeviceID, MsgID


class Dismissible(Protocol):
    """What decides whether a range covers an item."""

    @property
    def msg_id(self) -> MsgID: ...
    @property
    def ctime(self) -> Time: ...
    @property
    def time(self) -> Time: ...
    @property
    def category(self) -> Category: ...
    @property
    def device_id(self) -> DeviceID | None: ...


Coverable = TypeVar("Coverable", bound=Dismissible)


class Pattern(NamedTuple):
    """Which categories a range matches: this one, or all that begin with it."""

    category: Category
    prefix: bool

    def matches(self, category: Category) -> bool:
        return category.startswith(self.category) if self.prefix else category == self.category

    def order(self) -> tuple[Category, bool]:
        """A pattern comes before all that lie within it."""
        return self.category, not self.prefix


def few_patterns(patterns: Iterable[Pattern], limit: int) -> list[Pattern]:
    """At most so many patterns, which together match all that these do. If they are more, those
    that share most of their beginning are replaced by what they share."""
    apart = _outermost(patterns)
    shared = [len(_shared(*pair).category) for pair in pairwise(apart)]
    cuts = sorted(sorted(range(len(shared)), key=shared.__getitem__)[: limit - 1])
    bounds = [0, *(cut + 1 for cut in cuts), len(apart)]
    return [_shared(apart[start], apart[end - 1]) for start, end in pairwise(bounds) if end > start]


def _outermost(patterns: Iterable[Pattern]) -> list[Pattern]:
    """Those that do not lie within another one, in order."""
    apart: list[Pattern] = []
    for pattern in sorted(set(patterns), key=Pattern.order):
        if not (apart and apart[-1].matches(pattern.category)):
            apart.append(pattern)
    return apart


def _shared(first: Pattern, last: Pattern) -> Pattern:
    """What matches all that these two do, and what is between them in order."""
    if first == last:
        return first
    pairs = zip(first.category, last.category, strict=False)
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return Pattern(first.category[:length], prefix=True)


class _Group(NamedTuple):
    """Ranges that compare the same instant of an item, and the items that they may reach: `scope`
    None are all, "" those that all devices see, else those of this device."""

    scheduled: bool
    scope: DeviceID | None

    def instant_of(self, item: Dismissible) -> Time:
        return item.ctime if self.scheduled else item.time


def range_deaths(
    ranges: Iterable[DismissedRange], items: Iterable[Coverable]
) -> Iterator[tuple[Coverable, Time]]:
    """The items that the ranges cover, each with the ctime of the first range of a group. An item
    that ranges of several groups cover occurs once for each of them."""
    by_group: defaultdict[_Group, list[DismissedRange]] = defaultdict(list)
    for range_ in ranges:
        for group in _groups_of(range_):
            by_group[group].append(range_)
    by_scope: defaultdict[DeviceID | None, list[Coverable]] = defaultdict(list)
    for item in items:
        by_scope[item.device_id or ""].append(item)
    for group, same in by_group.items():
        found = chain(*by_scope.values()) if group.scope is None else by_scope.get(group.scope, ())
        yield from _Sweep(group, same).deaths(found)


def _groups_of(range_: DismissedRange) -> Iterator[_Group]:
    # The range of a device is in two groups, so that an item needs to look at two as well, and not
    # at those of all devices.
    for scope in (None,) if range_.device_id is None else ("", range_.device_id):
        yield _Group(range_.scheduled, scope)


class _Sweep:
    """The ranges of one group, in the order of their ends, of which those take part that match the
    category that the sweep has reached."""

    def __init__(self, group: _Group, ranges: Iterable[DismissedRange]) -> None:
        self._instant_of = group.instant_of
        self._ranges = sorted(ranges, key=lambda range_: range_.end)
        self._ends = [range_.end for range_ in self._ranges]
        self._skipped = [frozenset((*r.skip_msg_ids, r.own)) for r in self._ranges]
        self._taking_part = _LeastFrom([range_.ctime for range_ in self._ranges])

    def deaths(self, items: Iterable[Coverable]) -> Iterator[tuple[Coverable, Time]]:
        """The items that ranges cover, each with the ctime of the first of these."""
        by_pattern: defaultdict[Pattern, list[int]] = defaultdict(list)
        for place, range_ in enumerate(self._ranges):
            by_pattern[Pattern(range_.category, range_.prefix)].append(place)
        by_category: defaultdict[Category, list[Coverable]] = defaultdict(list)
        for item in items:
            by_category[item.category].append(item)
        to_come = sorted(by_pattern, key=Pattern.order, reverse=True)
        begun: list[Pattern] = []
        for category in sorted(by_category):
            while begun and not begun[-1].matches(category):
                self._taking_part.remove(by_pattern[begun.pop()])
            while to_come and to_come[-1].category <= category:
                pattern = to_come.pop()
                if pattern.matches(category):
                    self._taking_part.add(by_pattern[pattern])
                    begun.append(pattern)
            if begun:
                yield from self._covered(by_category[category])

    def _covered(self, items: Iterable[Coverable]) -> Iterator[tuple[Coverable, Time]]:
        for item in items:
            place = self._first_reaching(item)
            if place is not None:
                yield item, self._ranges[place].ctime

    def _first_reaching(self, item: Dismissible) -> int | None:
        """The place of the first range that takes part, reaches the item and does not skip it."""
        start = bisect_left(self._ends, self._instant_of(item))
        place = self._taking_part.least_from(start)
        if place is None or item.msg_id not in self._skipped[place]:
            return place
        # Each range that is set aside here skips this id: it costs one entry of its own list.
        skipping: list[int] = []
        while place is not None and item.msg_id in self._skipped[place]:
            skipping.append(place)
            self._taking_part.remove([place])
            place = self._taking_part.least_from(start)
        self._taking_part.add(skipping)
        return place


class _LeastFrom:
    """A set of places in a list of values, which knows where the least value is from a place on: a
    tree of minima. It takes a logarithmic number of steps."""

    def __init__(self, values: Sequence[Time]) -> None:
        self._places = sorted(range(len(values)), key=values.__getitem__)  # by rank
        self._ranks = [0] * len(values)
        for rank, place in enumerate(self._places):
            self._ranks[place] = rank
        self._none = len(values)
        self._leaves = 1 << max(len(values) - 1, 0).bit_length()
        self._least = [self._none] * (2 * self._leaves)

    def add(self, places: Iterable[int]) -> None:
        for place in places:
            self._set(place, self._ranks[place])

    def remove(self, places: Iterable[int]) -> None:
        for place in places:
            self._set(place, self._none)

    def least_from(self, start: int) -> int | None:
        """The place of the least value from here on; None if there is none in the set."""
        if start >= self._none:
            return None
        least, node, end = self._none, self._leaves + start, 2 * self._leaves
        while node < end:
            if node & 1:  # its sibling is before the start
                least = min(least, self._least[node])
                node += 1
            node >>= 1
            end >>= 1
        return None if least == self._none else self._places[least]

    def _set(self, place: int, rank: int) -> None:
        node = self._leaves + place
        self._least[node] = rank
        while node > 1:
            node >>= 1
            self._least[node] = min(self._least[2 * node], self._least[2 * node + 1])
