"""A state that is read in pages, and the part of it that is asked for."""

from collections.abc import Sequence
from itertools import accumulate

from msgspec import Struct, structs

from gregor.core.instant import Time
from gregor.core.message import Category, DeviceID, Key, MsgID
from gregor.core.state import Item, State
from gregor.errors import InvalidMessage


class StateQuery(Struct, frozen=True):
    """What of a state is asked for: the items that the device sees (None: all devices together),
    whose category begins with one of the prefixes, if there are any, and which have the key, if
    there is one; at most `limit`, which is positive, from the oldest or from the newest on. A page
    of them ends with the item that brings it to about `max_bytes` of JSON."""

    device_id: DeviceID | None = None
    prefixes: tuple[Category, ...] = ()
    key: Key | None = None
    newest_first: bool = False
    limit: int | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidMessage("`limit` must be at least 1", field="limit")

    def selects(self, item: Item) -> bool:
        """Whether a visible item is asked for."""
        is_in = not self.prefixes or item.category.startswith(self.prefixes)
        return is_in and self.key in (None, item.key)

    def first_of(self, items: Sequence[Item]) -> Sequence[Item]:
        """As many of these items as one page holds."""
        items = items[: self.limit]
        return items if self.max_bytes is None else first_items(items, self.max_bytes)


def first_items(items: Sequence[Item], size: int) -> Sequence[Item]:
    """The first of these items, up to the one that brings them to about so many bytes of JSON."""
    ends = accumulate(map(size_of, items))
    return items[: 1 + sum(end < size for end in ends)]


def size_of(item: Item) -> int:
    """About how many bytes of JSON it is."""
    return 200 + len(memoryview(item.raw_body))


class PageStart(Struct, frozen=True):
    """Where a page begins: after the item with this time and id. All pages of a state are of the
    messages up to the ctime `known`, at the instant `as_of`, and have the hash of the first."""

    as_of: Time
    known: Time
    hash: str
    after_time: Time
    after_id: MsgID


class StatePage(Struct, frozen=True):
    """Items of a state, in the order that was asked for. `hash` is that of all that is live on the
    device at `as_of`, selected or not. Messages after `cursor` continue the state. `next` is where
    the next page begins; None if this is the last one. `epoch` is the user's."""

    items: tuple[Item, ...]
    as_of: Time
    hash: str
    cursor: Time
    next: PageStart | None = None
    epoch: Time = 0

    @property
    def state(self) -> State:
        """The items of this page as a state."""
        return State.of(self.items, self.as_of)

    def filled(self, items: Sequence[Item], *, more: bool) -> "StatePage":
        """This page, which is empty, with these items, after which there may be `more`."""
        start = None
        if more:
            start = PageStart(self.as_of, self.cursor, self.hash, *items[-1].order())
        return structs.replace(self, items=tuple(items), next=start)


def page_of(
    state: State, query: StateQuery, start: PageStart | None, empty: StatePage
) -> StatePage:
    """The page of a whole state that begins here: the empty page of this state, filled."""
    selected = [item for item in state if query.selects(item)]
    if query.newest_first:
        selected.reverse()
    if start is not None:
        selected = [item for item in selected if _is_after(item, start, query)]
    items = query.first_of(selected)
    return empty.filled(items, more=len(items) < len(selected))


def _is_after(item: Item, start: PageStart, query: StateQuery) -> bool:
    position = (start.after_time, start.after_id)
    return item.order() < position if query.newest_first else item.order() > position
