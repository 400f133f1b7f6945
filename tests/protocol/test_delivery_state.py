"""The table of delivery states: each row happens, and nothing else does."""

from collections.abc import Iterable
from itertools import product

import pytest
from msgspec import Raw

from gregor.core.message import create
from gregor.core.state import Item
from gregor.core.state_hash import hash_of
from gregor.core.sync import Changes, Snapshot, Sync
from gregor.protocol.delivery_state import (
    TRANSITIONS,
    DeliveryEvent,
    DeliveryState,
    Incomplete,
    ItemsRead,
    Lagging,
    Live,
    PageSent,
    Paging,
    ReadingItems,
    ReadingStore,
    ReadStarted,
    SyncNeeded,
    SyncRead,
    after,
)
from gregor.protocol.frames import PAGE_ENTRIES, pages

MESSAGES = tuple(create("u", "a", msg_id=f"m{n}").stamp(n, n - 1) for n in range(1, 600))
SYNC = Sync(Changes(MESSAGES), 599, 700, hash_of(()))
FIRST, LAST = pages(SYNC, 0)
REST = Sync(Snapshot(unread=((600, 601), (602,))), 700, 800, hash_of(()))
ITEMS = tuple(Item(f"m{n}", n, "a", Raw(b"1")) for n in (600, 601, 602))

STATES: list[DeliveryState] = [
    Live(),
    Lagging(3),
    *(ReadingStore(0, then) for then in (Live(), Lagging(7))),
    *(Paging(unsent, then) for unsent in ((FIRST, LAST), (LAST,)) for then in (Live(), Lagging(7))),
    *(Paging((LAST,), then, REST) for then in (Live(), Lagging(7))),
    *(Incomplete(REST, then) for then in (Live(), Lagging(7))),
    *(ReadingItems(REST, then) for then in (Live(), Lagging(7))),
]
EVENTS: list[DeliveryEvent] = [
    SyncNeeded(5),
    ReadStarted(),
    SyncRead(SYNC),
    ItemsRead(ITEMS[:2]),
    PageSent(),
]


def name(value: DeliveryState | DeliveryEvent) -> str:
    return type(value).__name__


@pytest.mark.parametrize("state", STATES, ids=name)
@pytest.mark.parametrize("event", EVENTS, ids=name)
def test_event_leads_to_a_state_of_the_table_or_is_refused(
    state: DeliveryState, event: DeliveryEvent
) -> None:
    allowed = TRANSITIONS[type(state)].get(type(event))
    if allowed is None:
        with pytest.raises(AssertionError, match=f"{name(event)} during {name(state)}"):
            after(state, event)
    else:
        assert type(after(state, event)) in allowed


def test_every_row_of_the_table_happens() -> None:
    def rows() -> Iterable[tuple[type, type, type]]:
        for state, event in product(STATES, EVENTS):
            if type(event) in TRANSITIONS[type(state)]:
                yield type(state), type(event), type(after(state, event))

    assert set(rows()) == {
        (state, event, following)
        for state, events in TRANSITIONS.items()
        for event, followings in events.items()
        for following in followings
    }


def test_sync_is_read_from_the_cursor_that_needs_it_and_sent_in_pages() -> None:
    state = after(Lagging(0), ReadStarted())
    assert state == ReadingStore(0, then=Live())
    state = after(state, SyncRead(SYNC))
    assert state == Paging((FIRST, LAST), then=Live())
    assert len(FIRST.messages) == PAGE_ENTRIES
    assert after(after(state, PageSent()), PageSent()) == Live()


def test_snapshot_is_read_and_sent_group_by_group() -> None:
    state = after(Incomplete(REST, then=Live()), ReadStarted())
    state = after(state, ItemsRead(ITEMS[:2]))
    assert isinstance(state, Paging)
    assert [(page.items, page.more) for page in state.pages] == [(ITEMS[:2], True)]
    state = after(after(after(state, PageSent()), ReadStarted()), ItemsRead(ITEMS[2:]))
    assert isinstance(state, Paging)
    assert [(page.items, page.more) for page in state.pages] == [(ITEMS[2:], False)]
    assert after(state, PageSent()) == Live()


@pytest.mark.parametrize(
    ("read", "unread"), [(1, ((601,), (602,))), (2, ((602,),)), (0, ((602,),))]
)
def test_what_is_not_read_of_a_group_is_read_next(
    read: int, unread: tuple[tuple[int, ...], ...]
) -> None:
    """Large items are read in smaller parts. Of a group of which nothing is stored, nothing is
    left, as after a bucket has been pruned."""
    state = after(ReadingItems(REST, then=Live()), ItemsRead(ITEMS[:read]))
    assert isinstance(state, Paging)
    assert state.rest == Sync(Snapshot(unread=unread), 700, 800, hash_of(()))


@pytest.mark.parametrize(
    "state", [ReadingStore(0, then=Live()), Paging((FIRST, LAST), then=Live())]
)
def test_sync_that_is_needed_during_a_sync_follows_it(state: DeliveryState) -> None:
    needed = after(state, SyncNeeded(5))
    latest = after(needed, SyncNeeded(9))
    if isinstance(latest, ReadingStore):
        latest = after(latest, SyncRead(SYNC))
    assert latest == Paging((FIRST, LAST), then=Lagging(9))
    assert after(after(latest, PageSent()), PageSent()) == Lagging(9)


SNAPSHOT = Sync(Snapshot(ITEMS), 700, 800, hash_of(()))
(SNAPSHOT_PAGE,) = pages(SNAPSHOT, 0)


@pytest.mark.parametrize(
    ("state", "cursor", "start"),
    [
        # Nothing of the sync is sent yet, and the device is where it starts.
        (ReadingStore(3, Live()), 3, 700),
        (ReadingStore(0, Live()), 0, 700),
        # It asks for a snapshot, whatever it gets first.
        (ReadingStore(3, Live()), 0, 0),
        *((state, 0, 0) for state in (Incomplete(REST, Live()), ReadingItems(REST, Live()))),
        # A snapshot is taken by every device that does not know more.
        (ReadingStore(3, Live()), 5, 700),
        (Paging((SNAPSHOT_PAGE,), Live()), 5, 700),
        (Incomplete(REST, Live()), 5, 700),
        (ReadingItems(REST, Live()), 5, 700),
        (ReadingItems(REST, Live()), 701, 701),
        # Changes are taken by a device where they start.
        (Paging((FIRST, LAST), Live()), LAST.prev, LAST.prev),
        (Paging((LAST,), Live()), LAST.prev, 599),
    ],
)
def test_sync_that_is_needed_during_a_sync_starts_where_the_device_is_then(
    state: DeliveryState, cursor: int, start: int
) -> None:
    """A device that misses nothing by then does not get a second snapshot."""
    state = after(state, SyncNeeded(cursor))
    if isinstance(state, ReadingStore):
        state = after(state, SyncRead(SNAPSHOT))
    assert isinstance(state, Paging | Incomplete | ReadingItems)
    assert state.then == Lagging(start)
