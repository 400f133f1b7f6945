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

Two things can overlap with a sync:

- A publication. Whether it continues the sync is known when the sync has been read, so during
  `ReadingStore` it is kept, and compared afterwards. During `Paging` it is queued behind the pages.
- The need for another sync. The one in progress is completed first, because the device may have
  applied its first pages already; `then` is the state after it. Publications until then are
  dropped: the second sync contains them.
"""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from gregor.core.instant import Time
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
    """These pages of a sync are still to be sent. Publications are queued behind them."""

    pages: tuple[SyncPage, ...]
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


class PageSent(Struct, frozen=True):
    """The socket has accepted the next page."""


LIVE = Live()  # one value for all sessions: most are live

DeliveryState: TypeAlias = Live | Lagging | ReadingStore | Paging
DeliveryEvent: TypeAlias = SyncNeeded | ReadStarted | SyncRead | PageSent

TRANSITIONS: Mapping[
    type[DeliveryState], Mapping[type[DeliveryEvent], tuple[type[DeliveryState], ...]]
] = {
    Live: {SyncNeeded: (Lagging,)},
    Lagging: {SyncNeeded: (Lagging,), ReadStarted: (ReadingStore,)},
    ReadingStore: {SyncNeeded: (ReadingStore,), SyncRead: (Paging,)},
    Paging: {SyncNeeded: (Paging,), PageSent: (Paging, Live, Lagging)},
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
            return Paging(tuple(pages(sync, start)), then)
        case Paging(unsent, _), SyncNeeded(cursor):
            return Paging(unsent, then=Lagging(cursor))
        case Paging((_, *unsent), then), PageSent():
            return Paging(tuple(unsent), then) if unsent else then
        case _:
            raise AssertionError(f"{type(event).__name__} during {type(state).__name__}")
