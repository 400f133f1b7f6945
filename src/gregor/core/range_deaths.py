"""The deaths that many ranges cause among many items, found in one sweep.

Comparing each range with each item would cost their product, and a sender chooses both numbers. The
sweep costs their sum, up to logarithms.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

from gregor.core.facts import DismissedRange
from gregor.core.instant import Time
from gregor.core.message import Category, MsgID


class Dismissible(Protocol):
    """What decides whether a range covers an item."""

    @property
    def msg_id(self) -> MsgID: ...
    @property
    def ctime(self) -> Time: ...
    @property
    def category(self) -> Category: ...


Coverable = TypeVar("Coverable", bound=Dismissible)


class Pattern(NamedTuple):
    """Which categories a range matches: this one, or all that begin with it."""

    category: Category
    prefix: bool


_Waiting: TypeAlias = tuple[Time, int, frozenset[MsgID]]
"""A range that reaches the items of the sweep: its ctime, its number, and the ids it skips."""


def range_deaths(
    ranges: Iterable[DismissedRange], items: Sequence[Coverable]
) -> Iterator[tuple[Coverable, Time]]:
    """The items that the ranges cover, each with the ctime of the first range of a pattern. An item
    that ranges of several patterns cover occurs once for each of them."""
    by_pattern: defaultdict[Pattern, list[DismissedRange]] = defaultdict(list)
    for range_ in ranges:
        by_pattern[Pattern(range_.category, range_.prefix)].append(range_)
    matching: defaultdict[Pattern, list[Coverable]] = defaultdict(list)
    lengths = sorted({len(pattern.category) for pattern in by_pattern if pattern.prefix})
    for item in items:
        for pattern in _patterns_of(item.category, lengths):
            if pattern in by_pattern:
                matching[pattern].append(item)
    for pattern, matched in matching.items():
        yield from _first_deaths(by_pattern[pattern], matched)


def _patterns_of(category: Category, prefix_lengths: Iterable[int]) -> Iterator[Pattern]:
    """The patterns that match the category, of prefixes those with these lengths, in ascending
    order."""
    yield Pattern(category, prefix=False)
    for length in prefix_lengths:
        if length > len(category):
            return
        yield Pattern(category[:length], prefix=True)


def _first_deaths(
    ranges: Iterable[DismissedRange], items: Iterable[Coverable]
) -> Iterator[tuple[Coverable, Time]]:
    """The same for items and ranges of one pattern. From the latest item to the earliest, ever more
    ranges reach the item; of these the one with the smallest ctime counts that does not skip it."""
    not_reached = sorted(ranges, key=lambda range_: range_.end)
    reached: list[_Waiting] = []
    for item in sorted(items, key=lambda item: item.ctime, reverse=True):
        while not_reached and not_reached[-1].end >= item.ctime:
            range_ = not_reached.pop()
            skipped = frozenset(range_.skip_msg_ids)
            heappush(reached, (range_.ctime, len(not_reached), skipped))
        death = _first_death(reached, item.msg_id)
        if death is not None:
            yield item, death


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
