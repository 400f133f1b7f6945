"""What a user sees: items, and a state, which is the items that are visible at an instant."""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import accumulate

from msgspec import Raw, Struct, field

from gregor.core.instant import Time
from gregor.core.message import (
    JSON,
    Category,
    DeviceID,
    InBandMessage,
    Key,
    MsgID,
    canonical,
    value_of,
)
from gregor.core.visibility import has_expired


class Item(Struct, frozen=True, omit_defaults=True):
    """What a creation created: a user sees it from its start until it is dismissed or expires."""

    msg_id: MsgID
    ctime: Time
    category: Category
    raw_body: Raw = field(name="body")
    device_id: DeviceID | None = None
    expires_at: Time | None = None
    starts_at: Time | None = None
    key: Key | None = None

    @classmethod
    def of(cls, message: InBandMessage) -> "Item | None":
        """The item that a stamped message creates; None if it has no creation."""
        creation = message.creation
        if creation is None:
            return None
        return cls(
            message.msg_id,
            message.ctime,
            creation.category,
            creation.raw_body.copy(),  # a view would keep the whole frame in memory
            message.device_id,
            message.expires_at,
            message.starts_at,
            creation.key,
        )

    @property
    def body(self) -> JSON:
        """The body as a Python value, decoded on each access."""
        return value_of(self.raw_body)

    @property
    def time(self) -> Time:
        """The later of its ctime and its start."""
        return self.ctime if self.starts_at is None else max(self.ctime, self.starts_at)

    def order(self) -> tuple[Time, MsgID]:
        return self.time, self.msg_id

    def expired(self, now: Time) -> bool:
        return has_expired(self.expires_at, now)

    def precedes(self, other: "Item") -> bool:
        """Whether this item wins over another with the same msg_id. A store accepts only one of
        the two; the rule makes replicas converge if both reach them."""
        return self._rank() < other._rank()

    def _rank(self) -> tuple[Time, bytes, bytes]:
        times = self.expires_at, self.starts_at
        contents = (self.category, self.body, self.device_id, *times, self.key)
        # The raw body decides between bodies that differ only in whitespace.
        return self.ctime, canonical(contents), bytes(self.raw_body)


class State(Struct, frozen=True):
    """The visible items of a user at the instant `as_of`, ordered by (time, msg_id)."""

    items: tuple[Item, ...]
    as_of: Time

    @classmethod
    def of(cls, items: Iterable[Item], as_of: Time) -> "State":
        return cls(tuple(sorted(items, key=Item.order)), as_of)

    def count(self, prefix: Category = "") -> int:
        """How many items have a category that begins with `prefix`, byte for byte."""
        return sum(item.category.startswith(prefix) for item in self.items)

    def with_prefix(self, *prefixes: Category) -> "State":
        """Only the items whose category begins with one of these."""
        items = tuple(item for item in self.items if item.category.startswith(prefixes))
        return State(items, self.as_of)

    def __contains__(self, msg_id: object) -> bool:
        return any(item.msg_id == msg_id for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)


class Counts(Struct, frozen=True):
    """How many items visible at `as_of` have a category that begins with each prefix."""

    by_prefix: dict[Category, int]
    as_of: Time

    @classmethod
    def of(
        cls, by_category: Iterable[tuple[Category, int]], prefixes: Iterable[Category], as_of: Time
    ) -> "Counts":
        """The counts by prefix that follow from the counts of the single categories."""
        ordered = sorted(by_category)
        totals = [0, *accumulate(count for _, count in ordered)]

        def count(prefix: Category) -> int:
            # In order, the categories that begin with the prefix follow each other.
            start = bisect_left(ordered, prefix, key=_category)
            end = bisect_right(ordered, prefix, key=lambda entry: entry[0][: len(prefix)])
            return totals[end] - totals[start]

        return cls({prefix: count(prefix) for prefix in prefixes}, as_of)

    @classmethod
    def of_segments(
        cls, by_category: Iterable[tuple[Category, int]], prefix: Category, as_of: Time
    ) -> "Counts":
        """The counts of the categories that begin with the prefix, each cut before the first dot
        that follows the prefix. They add up to the count of the prefix."""
        totals = Counter[Category]()
        for category, count in by_category:
            if category.startswith(prefix):
                segment, _, _ = category[len(prefix) :].partition(".")
                totals[prefix + segment] += count
        return cls(dict(sorted(totals.items())), as_of)


def _category(entry: tuple[Category, int]) -> Category:
    return entry[0]
