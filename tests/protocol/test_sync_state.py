"""The table of a device's states: each row happens, and nothing else does."""

from collections.abc import Iterable
from itertools import product

import pytest

from gregor.core.state_hash import hash_of
from gregor.protocol.frames import SyncPage
from gregor.protocol.sync_state import (
    TRANSITIONS,
    FrameIgnored,
    Greeting,
    PageAccepted,
    SyncEvent,
    SyncExpected,
    Syncing,
    SyncState,
    UpToDate,
    after,
)

HASH = hash_of(())
FIRST = SyncPage("snapshot", 0, 20, 50, HASH, more=True)
LAST = SyncPage("snapshot", 0, 20, 50, HASH)
CHANGES = SyncPage("changes", 5, 10, 50, HASH, more=True)

STATES: list[SyncState] = [
    Greeting(),
    Greeting(30),
    Syncing(),
    Syncing((FIRST,)),
    Syncing((), 30),
    UpToDate(),
]
EVENTS: list[SyncEvent] = [
    SyncExpected(),
    FrameIgnored(25),
    *(PageAccepted(page) for page in (FIRST, LAST, CHANGES)),
]


def test_every_row_of_the_table_happens_and_no_other() -> None:
    def rows() -> Iterable[tuple[type, type, type]]:
        for state, event in product(STATES, EVENTS):
            yield type(state), type(event), type(after(state, event))

    assert set(rows()) == {
        (state, event, following)
        for state, events in TRANSITIONS.items()
        for event, followings in events.items()
        for following in followings
    }


@pytest.mark.parametrize("state", [Greeting(), Syncing(), UpToDate()])
def test_pages_of_a_snapshot_are_collected_until_the_last(state: SyncState) -> None:
    collecting = after(after(state, PageAccepted(FIRST)), PageAccepted(FIRST))
    assert collecting == Syncing((FIRST, FIRST))
    assert after(collecting, SyncExpected()) == collecting
    assert after(collecting, PageAccepted(LAST)) == UpToDate()


def test_pages_of_changes_are_not_collected() -> None:
    assert after(Syncing(), PageAccepted(CHANGES)) == Syncing()


def test_sync_that_ends_before_an_ignored_frame_is_followed_by_another() -> None:
    waiting = after(after(Syncing(), FrameIgnored(25)), FrameIgnored(22))
    assert waiting == Syncing(highest=25)
    assert after(waiting, PageAccepted(LAST)) == Syncing(highest=25)
    later = SyncPage("snapshot", 0, 25, 50, HASH)
    assert after(waiting, PageAccepted(later)) == UpToDate()
