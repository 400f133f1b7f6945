"""Frames: encoding and decoding, and the pages of a sync."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.facts import Facts
from gregor.core.message import MAX_BODY, InBandMessage, create, dismiss, put
from gregor.core.state import Item
from gregor.core.state_hash import hash_of
from gregor.core.sync import Changes, Snapshot, Sync
from gregor.interfaces import Duplicate, Stored
from gregor.protocol.frames import (
    MAX_FRAME,
    PAGE_BYTES,
    PAGE_ENTRIES,
    Messages,
    Result,
    SyncPage,
    encode,
    pages,
)
from gregor.protocol.later_versions import decode_node_frame
from gregor.testing.strategies import History, histories


def creations(number: int, body: str = "") -> tuple[InBandMessage, ...]:
    return tuple(
        create("u", "a", body, msg_id=f"m{n}").stamp(n, n - 1) for n in range(1, number + 1)
    )


def items(number: int) -> tuple[Item, ...]:
    return tuple(item for m in creations(number) if (item := Item.of(m)) is not None)


def sync(content: Changes | Snapshot) -> Sync:
    return Sync(content, cursor=10_000, as_of=20_000, hash=hash_of(()))


def pages_of(sync: Sync) -> list[SyncPage]:
    return list(pages(sync, 0))


def test_empty_sync_is_one_page() -> None:
    for content in (Changes(()), Snapshot()):
        (page,) = pages_of(sync(content))
        assert (page.cursor, page.as_of, page.hash, page.more) == (
            10_000,
            20_000,
            hash_of(()),
            False,
        )


def test_changes_are_split_into_pages_of_limited_length() -> None:
    sent = creations(2 * PAGE_ENTRIES + 1)
    sync_pages = pages_of(sync(Changes(sent)))
    assert [len(page.messages) for page in sync_pages] == [PAGE_ENTRIES, PAGE_ENTRIES, 1]
    assert [page.more for page in sync_pages] == [True, True, False]
    assert tuple(m for page in sync_pages for m in page.messages) == sent


def test_each_page_of_changes_has_its_own_cursor() -> None:
    sync_pages = pages_of(sync(Changes(creations(2 * PAGE_ENTRIES + 1))))
    assert [page.cursor for page in sync_pages] == [PAGE_ENTRIES, 2 * PAGE_ENTRIES, 10_000]


def test_all_pages_of_a_snapshot_have_the_cursor_of_the_sync() -> None:
    sync_pages = pages_of(sync(Snapshot(items(PAGE_ENTRIES + 1))))
    assert {page.mode for page in sync_pages} == {"snapshot"}
    assert {page.cursor for page in sync_pages} == {10_000}
    assert [(len(page.items), page.more) for page in sync_pages] == [
        (PAGE_ENTRIES, True),
        (1, False),
    ]


def test_page_size_is_limited_for_large_bodies() -> None:
    sync_pages = pages_of(sync(Changes(creations(20, "x" * (MAX_BODY - 2)))))
    sizes = [len(encode(page)) for page in sync_pages]
    assert max(sizes) < PAGE_BYTES + MAX_BODY < MAX_FRAME
    assert min(sizes[:-1]) > PAGE_BYTES // 2
    assert sum(len(page.messages) for page in sync_pages) == 20


def test_largest_pending_batch_fits_into_a_frame() -> None:
    pending = creations(500, "x" * 1000)
    assert len(encode(Messages(0, pending, 500))) < MAX_FRAME


@given(histories(), st.booleans())
def test_law_frames_survive_a_round_trip_through_json(history: History, is_snapshot: bool) -> None:
    facts = Facts().replay_all(history)
    content: Changes | Snapshot = Changes(history)
    if is_snapshot:
        content = Snapshot(facts.state(None, 0).items)
    for page in pages_of(sync(content)):
        assert decode_node_frame(encode(page)) == page
    frame = Messages(0, history, 99)
    assert decode_node_frame(encode(frame)) == frame


def test_page_of_changes_continues_the_previous_page() -> None:
    changes = list(pages(sync(Changes(creations(1200)[7:])), 7))
    assert [page.prev for page in changes] == [7, *(page.cursor for page in changes[:-1])]
    snapshot = list(pages(sync(Snapshot(items(1200))), 7))
    assert {page.prev for page in snapshot} == {0}


def test_pages_do_not_overlap() -> None:
    sync_pages = pages_of(sync(Changes(creations(1200))))
    for before, after in pairwise(sync_pages):
        assert before.messages[-1].ctime < after.messages[0].ctime


ITEM = put("u", "a", 1, key="k", starts="1h", expires="P1D", msg_id="m").stamp(100, 99)
STARTS, ENDS = 100 + 3_600_000_000, 100 + 86_400_000_000
PLAIN = create("u", "a", 1, msg_id="m").stamp(100, 99)
DISMISSAL = dismiss("u", "x", msg_id="m").stamp(100, 99)


@pytest.mark.parametrize(
    ("outcome", "status", "visible", "dismissed", "replaced"),
    [
        (Stored(PLAIN), "stored", True, 0, None),
        (Stored(PLAIN, dead=True), "stored", False, 0, None),
        (Stored(DISMISSAL, dismissed=1), "stored", False, 1, None),
        (Stored(ITEM, scheduled=True, replaced="p"), "stored", False, 0, "p"),
        (Stored(ITEM, replaced="p"), "stored", True, 0, "p"),
        (Stored(ITEM, expired=True), "stored", False, 0, None),
        (Duplicate(PLAIN), "duplicate", True, None, None),
        (Duplicate(ITEM, scheduled=True), "duplicate", False, None, None),
        (Duplicate(ITEM), "duplicate", True, None, None),
        (Duplicate(ITEM, dead=True), "duplicate", False, None, None),
    ],
)
def test_result_says_what_came_of_a_message(
    outcome: Stored | Duplicate,
    status: str,
    visible: bool,
    dismissed: int | None,
    replaced: str | None,
) -> None:
    result = Result.of(outcome)
    assert (result.status, result.ctime, result.visible) == (status, 100, visible)
    assert (result.dismissed, result.replaced) == (dismissed, replaced)
    times = (STARTS, ENDS) if outcome.message is ITEM else (None, None)
    assert (result.starts_at, result.expires_at) == times
