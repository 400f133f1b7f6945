"""Where the next messages for a device come from: publications, or the store.

Theory
======

While a session is `Live`, messages come as publications. Each one continues the one before, and is
queued for the socket. That is fast, and costs the store nothing.

A session that cannot continue like this (a publication is missing, the queue is full, or the device
asks for a sync) uses the other source, which is always complete. It is `Lagging`. When the socket
accepts data, it reads a sync from the store (`ReadingStore`), sends the pages of the sync
(`Paging`), and is `Live` again. So a device that is slow costs one read whenever it has caught up
with what was sent to it, however much it has missed.

A snapshot may be too large to be held in memory for each device that receives one. Only its first
items are read with the sync. When they are sent, it is `Incomplete`; the next ones are read
(`ReadingItems`) and sent (`Paging`), until all of them are. What the device gets is the state at
the sync's cursor, however long this takes: an item never changes, and is sent even if it is
dismissed meanwhile. The dismissal follows as a publication, or in the next sync.

Two things can overlap with a sync:

- A publication. Whether it continues the sync is known when the sync has been read, so during
  `ReadingStore` it is kept, and compared afterwards. Later it is queued behind the pages.
- The need for another sync. The one in progress is completed first, because the device may have
  applied its first pages already; `then` is the state after it. Publications until then are
  dropped: the second sync contains them. It begins where the first one ends, if that is sure to
  bring the device there. From the cursor of before, the device would get a snapshot twice.
"""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.state import Item
from gregor.core.sync import Sync
from gregor.protocol.frames import SyncPage, pages

# States


class Live(Struct, frozen=True):
    """Publications that continue the position are queued and sent."""


class Lagging(Struct, frozen=True):
    """The device has to be synced from this cursor. Publications are dropped."""

    cursor: Time


class ReadingStore(Struct, frozen=True):
    """The store reads a sync from this cursor. Publications are kept until it has answered."""

    cursor: Time
    then: Live | Lagging


class Paging(Struct, frozen=True):
    """These pages of a sync are still to be sent. Publications are queued behind them. The `rest`
    of the sync is not read yet."""

    pages: tuple[SyncPage, ...]
    then: Live | Lagging
    rest: Sync | None = None


class Incomplete(Struct, frozen=True):
    """The first items of a snapshot are sent, and the next ones have to be read. Publications are
    queued behind them."""

    rest: Sync
    then: Live | Lagging


class ReadingItems(Struct, frozen=True):
    """The store reads the next items of a snapshot. Publications are queued behind them."""

    rest: Sync
    then: Live | Lagging


# Events


class SyncNeeded(Struct, frozen=True):
    """The device has to be synced from this cursor: there is a gap, its queue is full, or it has
    sent a verify."""

    cursor: Time


class ReadStarted(Struct, frozen=True):
    """The socket accepts data, so the transport begins to read a sync from the store."""


class SyncRead(Struct, frozen=True):
    """The store has answered."""

    sync: Sync


class ItemsRead(Struct, frozen=True):
    """The store has read the next items of a snapshot."""

    items: tuple[Item, ...]


class PageSent(Struct, frozen=True):
    """The socket has accepted the next page."""


LIVE = Live()  # one value for all sessions: most are live

DeliveryState: TypeAlias = Live | Lagging | ReadingStore | Paging | Incomplete | ReadingItems
DeliveryEvent: TypeAlias = SyncNeeded | ReadStarted | SyncRead | ItemsRead | PageSent

TRANSITIONS: Mapping[
    type[DeliveryState], Mapping[type[DeliveryEvent], tuple[type[DeliveryState], ...]]
] = {
    Live: {SyncNeeded: (Lagging,)},
    Lagging: {SyncNeeded: (Lagging,), ReadStarted: (ReadingStore,)},
    ReadingStore: {SyncNeeded: (ReadingStore,), SyncRead: (Paging,)},
    Paging: {SyncNeeded: (Paging,), PageSent: (Paging, Incomplete, Live, Lagging)},
    Incomplete: {SyncNeeded: (Incomplete,), ReadStarted: (ReadingItems,)},
    ReadingItems: {SyncNeeded: (ReadingItems,), ItemsRead: (Paging,)},
}


def after(state: DeliveryState, event: DeliveryEvent) -> DeliveryState:
    """The state after the event. The event must be one that TRANSITIONS has for the state."""
    match state, event:
        case Live() | Lagging(), SyncNeeded(cursor):
            return Lagging(cursor)
        case Lagging(cursor), ReadStarted():
            return ReadingStore(cursor, then=LIVE)
        case ReadingStore(start, _), SyncNeeded(cursor):
            return ReadingStore(start, then=Lagging(cursor))
        case ReadingStore(start, then), SyncRead(sync):
            paging = Paging(tuple(pages(sync, start)), LIVE, sync.rest)
            if isinstance(then, Live):
                return paging
            # The device is where the sync starts, or it has asked from elsewhere meanwhile.
            return after(paging, SyncNeeded(sync.cursor if then.cursor == start else then.cursor))
        case Paging((page, *_) as unsent, _, rest), SyncNeeded(cursor):
            is_taken = page.mode == "snapshot" or page.prev == cursor
            then = _following(cursor, unsent[-1].cursor) if is_taken else Lagging(cursor)
            return Paging(unsent, then, rest)
        case Paging((_,), then, None), PageSent():
            return then
        case Paging((_,), then, Sync() as rest), PageSent():
            return Incomplete(rest, then)
        case Paging((_, *unsent), then, rest), PageSent():
            return Paging(tuple(unsent), then, rest)
        case Incomplete(rest), SyncNeeded(cursor):
            return Incomplete(rest, then=_following(cursor, rest.cursor))
        case Incomplete(rest, then), ReadStarted():
            return ReadingItems(rest, then)
        case ReadingItems(rest), SyncNeeded(cursor):
            return ReadingItems(rest, then=_following(cursor, rest.cursor))
        case ReadingItems(rest, then), ItemsRead(items):
            sync = rest.continued(items)
            return Paging(tuple(pages(sync, 0)), then, sync.rest)
        case _:
            raise AssertionError(f"{type(event).__name__} during {type(state).__name__}")


def _following(cursor: Time, end: Time) -> Lagging:
    """A sync that is needed from this cursor, after one that brings the device to its `end`. From 0
    the device asks for a snapshot, whatever it knows."""
    return Lagging(max(cursor, end) if cursor else 0)
