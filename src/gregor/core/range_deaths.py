"""The deaths that many ranges cause among many items, found in one sweep.

Comparing each range with each item would cost their product, and a sender chooses both numbers. The
sweep costs their sum, up to logarithms.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

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


class _Group(NamedTuple):
    """Ranges of one pattern that compare the same instant of an item, and the items that they may
    reach: `scope` None are all, "" those that all devices see, else those of this device."""

    pattern: Pattern
    scheduled: bool
    scope: DeviceID | None

    def instant_of(self, item: Dismissible) -> Time:
        return item.ctime if self.scheduled else item.time


_Waiting: TypeAlias = tuple[Time, int, frozenset[MsgID]]
"""A range that reaches the items of the sweep: its ctime, its number, and the ids it skips."""


def range_deaths(
    ranges: Iterable[DismissedRange], items: Sequence[Coverable]
) -> Iterator[tuple[Coverable, Time]]:
    """The items that the ranges cover, each with the ctime of the first range of a group. An item
    that ranges of several groups cover occurs once for each of them."""
    by_group: defaultdict[_Group, list[DismissedRange]] = defaultdict(list)
    for range_ in ranges:
        for group in _groups_of_range(range_):
            by_group[group].append(range_)
    matching: defaultdict[_Group, list[Coverable]] = defaultdict(list)
    prefixes = (group.pattern.category for group in by_group if group.pattern.prefix)
    lengths = sorted(set(map(len, prefixes)))
    for item in items:
        for group in _groups_of_item(item, lengths):
            if group in by_group:
                matching[group].append(item)
    for group, matched in matching.items():
        yield from _first_deaths(by_group[group], matched, group.instant_of)


def _groups_of_range(range_: DismissedRange) -> Iterator[_Group]:
    # The range of a device is in two groups, so that an item needs to look at two as well, and not
    # at those of all devices.
    pattern = Pattern(range_.category, range_.prefix)
    for scope in (None,) if range_.device_id is None else ("", range_.device_id):
        yield _Group(pattern, range_.scheduled, scope)


def _groups_of_item(item: Dismissible, prefix_lengths: Sequence[int]) -> Iterator[_Group]:
    for pattern in _patterns_of(item.category, prefix_lengths):
        for scope in (None, item.device_id or ""):
            yield _Group(pattern, False, scope)
            yield _Group(pattern, True, scope)


def _patterns_of(category: Category, prefix_lengths: Iterable[int]) -> Iterator[Pattern]:
    """The patterns that match the category, of prefixes those with these lengths, in ascending
    order."""
    yield Pattern(category, prefix=False)
    for length in prefix_lengths:
        if length > len(category):
            return
        yield Pattern(category[:length], prefix=True)


def _first_deaths(
    ranges: Iterable[DismissedRange],
    items: Iterable[Coverable],
    instant_of: Callable[[Dismissible], Time],
) -> Iterator[tuple[Coverable, Time]]:
    """The same for items and ranges of one group. From the latest item to the earliest, ever more
    ranges reach the item; of these the one with the smallest ctime counts that does not skip it."""
    not_reached = sorted(ranges, key=lambda range_: range_.end)
    reached: list[_Waiting] = []
    for item in sorted(items, key=instant_of, reverse=True):
        while not_reached and not_reached[-1].end >= instant_of(item):
            range_ = not_reached.pop()
            heappush(reached, (range_.ctime, len(not_reached), _skipped(range_)))
        death = _first_death(reached, item.msg_id)
        if death is not None:
            yield item, death


def _skipped(range_: DismissedRange) -> frozenset[MsgID]:
    own = () if range_.own is None else (range_.own,)
    return frozenset((*range_.skip_msg_ids, *own))


def _first_death(reached: list[_Waiting], msg_id: MsgID) -> Time | None:
    """The ctime of the first range in the heap that does not skip the id."""
    # Each range that is set aside here skips this id: it costs one entry of its own list.
    skipping: list[_Waiting] = []
    while reached and msg_id in reached[0][2]:
        skipping.append(heappop(reached))
    death = reached[0][0] if reached else None
    for waiting in skipping:
        heappush(reached, waiting)
    return death
