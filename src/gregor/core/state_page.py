"""A state that is read in pages, and the part of it that is asked for."""

from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import Category, DeviceID, Key, MsgID
from gregor.core.state import Item, State
from gregor.errors import InvalidMessage


class StateQuery(Struct, frozen=True):
    """What of a state is asked for: the items that the device sees (None: all devices together),
    whose category begins with one of the prefixes, if there are any, and which have the key, if
    there is one; at most `limit`, which is positive, from the oldest or from the newest on."""

    device_id: DeviceID | None = None
    prefixes: tuple[Category, ...] = ()
    key: Key | None = None
    newest_first: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InvalidMessage("`limit` must be at least 1", field="limit")

    def selects(self, item: Item) -> bool:
        """Whether a visible item is asked for."""
        is_in = not self.prefixes or item.category.startswith(self.prefixes)
        return is_in and self.key in (None, item.key)


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
    the next page begins; None if this is the last one."""

    items: tuple[Item, ...]
    as_of: Time
    hash: str
    cursor: Time
    next: PageStart | None = None

    @property
    def state(self) -> State:
        """The items of this page as a state."""
        return State.of(self.items, self.as_of)


def page_of(
    state: State, query: StateQuery, start: PageStart | None, hash_: str, cursor: Time
) -> StatePage:
    """The page of a whole state that begins here, for a cursor and a hash of all that is live."""
    selected = [item for item in state if query.selects(item)]
    if query.newest_first:
        selected.reverse()
    if start is not None:
        selected = [item for item in selected if _is_after(item, start, query)]
    return limited_page(selected, query, state.as_of, hash_, cursor)


def limited_page(
    items: list[Item], query: StateQuery, as_of: Time, hash_: str, cursor: Time
) -> StatePage:
    """The page with the first of these items, which are in order: of more than the limit, the last
    are left to the next page."""
    page = tuple(items[: query.limit])
    if len(page) == len(items):
        return StatePage(page, as_of, hash_, cursor)
    start = PageStart(as_of, cursor, hash_, *page[-1].order())
    return StatePage(page, as_of, hash_, cursor, start)


def _is_after(item: Item, start: PageStart, query: StateQuery) -> bool:
    position = (start.after_time, start.after_id)
    return item.order() < position if query.newest_first else item.order() > position
