"""Whether a device may apply what comes next: the states of its session.

Theory
======

A device applies a `messages` frame if it continues the replica's cursor. That is all that happens
while it is `UpToDate`. A frame that does not continue the cursor reveals a gap; the device asks for
a sync, and is `Syncing` until its last page has come.

During a sync the cursor must stay where the sync begins, so `messages` frames are ignored. The sync
usually contains them, because the node reads it later than it has sent them. To be certain, the
device notes the `highest` cursor of all that it has ignored. If the sync ends before it, the device
asks for another one.

Pages of changes are applied as they come. Pages of a snapshot are collected, because a replica with
half of a snapshot would show half of a state. A node may send a sync without being asked, so a page
can come in every state.
"""

from collections.abc import Mapping
from typing import TypeAlias

from msgspec import Struct

from gregor.core.instant import Time
from gregor.protocol.frames import SyncPage

# States


class Greeting(Struct, frozen=True):
    """The hello is sent. The node has not answered; a transport that reorders may have delivered
    later frames already, and `highest` is their highest cursor."""

    highest: Time = 0


class Syncing(Struct, frozen=True):
    """A sync is on its way: its `pages` so far, if it is a snapshot, and the `highest` cursor of
    the frames that were ignored meanwhile."""

    pages: tuple[SyncPage, ...] = ()
    highest: Time = 0


class UpToDate(Struct, frozen=True):
    """The last sync is complete. Frames that continue the cursor are applied."""


# Events


class SyncExpected(Struct, frozen=True):
    """The node has sent its welcome, or the device a verify: a sync will come."""


class FrameIgnored(Struct, frozen=True):
    """A frame that ends at this cursor, after that of the replica, was not applied."""

    cursor: Time


class PageAccepted(Struct, frozen=True):
    """A page of a sync continues the replica's cursor, or belongs to a snapshot."""

    page: SyncPage


SyncState: TypeAlias = Greeting | Syncing | UpToDate
SyncEvent: TypeAlias = SyncExpected | FrameIgnored | PageAccepted

TRANSITIONS: Mapping[type[SyncState], Mapping[type[SyncEvent], tuple[type[SyncState], ...]]] = {
    Greeting: {
        SyncExpected: (Syncing,),
        FrameIgnored: (Greeting,),
        PageAccepted: (Syncing, UpToDate),
    },
    Syncing: {
        SyncExpected: (Syncing,),
        FrameIgnored: (Syncing,),
        PageAccepted: (Syncing, UpToDate),
    },
    UpToDate: {
        SyncExpected: (Syncing,),
        FrameIgnored: (Syncing,),
        PageAccepted: (Syncing, UpToDate),
    },
}


def after(state: SyncState, event: SyncEvent) -> SyncState:
    """The state after the event."""
    match state, event:
        case Greeting(highest), FrameIgnored(cursor):
            return Greeting(max(highest, cursor))
        case Greeting(highest), _:
            return after(Syncing(highest=highest), event)
        case UpToDate(), _:
            return after(Syncing(), event)
        case Syncing(), SyncExpected():
            return state  # the sync in progress is completed first
        case Syncing(pages, highest), FrameIgnored(cursor):
            return Syncing(pages, max(highest, cursor))
        case Syncing(pages, highest), PageAccepted(page):
            if page.more:
                return Syncing((*pages, page) if page.mode == "snapshot" else pages, highest)
            return UpToDate() if highest <= page.cursor else Syncing(highest=highest)
    raise AssertionError("every event is possible in every state")
