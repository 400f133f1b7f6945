"""The frames: what a sync weighs in pages, and that what goes out comes in again as it was."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gregor.core.message import MAX_BODY, InBandMessage, create
from gregor.core.state import Changes, Facts, Item, Snapshot, Sync, hash_of
from gregor.protocol.frames import (
    MAX_FRAME,
    PAGE_BYTES,
    PAGE_ENTRIES,
    Messages,
    SyncPage,
    decode_node_frame,
    encode,
    pages,
)
from gregor.testing.strategies import History, histories


def creations(number: int, body: str = "") -> tuple[InBandMessage, ...]:
    return tuple(
        create("u", "a", body, msg_id=f"m{n}").stamp(n, n - 1) for n in range(1, number + 1)
    )


def items(number: int) -> tuple[Item, ...]:
    return tuple(item for m in creations(number) if (item := Item.of(m)) is not None)


def sync(content: Changes | Snapshot) -> Sync:
    return Sync(content, cursor=10_000, as_of=20_000, hash=hash_of(()))


def carried_by(sync: Sync) -> list[SyncPage]:
    return list(pages(sync, 0))


def test_an_empty_sync_is_one_page() -> None:
    for content in (Changes(()), Snapshot()):
        (page,) = carried_by(sync(content))
        assert (page.cursor, page.as_of, page.hash, page.more) == (
            10_000,
            20_000,
            hash_of(()),
            False,
        )


def test_many_messages_come_in_pages_of_some() -> None:
    sent = creations(2 * PAGE_ENTRIES + 1)
    carried = carried_by(sync(Changes(sent)))
    assert [len(page.messages) for page in carried] == [PAGE_ENTRIES, PAGE_ENTRIES, 1]
    assert [page.more for page in carried] == [True, True, False]
    assert tuple(m for page in carried for m in page.messages) == sent


def test_after_each_page_of_changes_the_replica_knows_as_much_as_it_says() -> None:
    carried = carried_by(sync(Changes(creations(2 * PAGE_ENTRIES + 1))))
    assert [page.cursor for page in carried] == [PAGE_ENTRIES, 2 * PAGE_ENTRIES, 10_000]


def test_a_snapshot_is_known_only_after_its_last_page() -> None:
    tombstones = tuple((f"x{n}", n) for n in range(PAGE_ENTRIES))
    carried = carried_by(sync(Snapshot(items(PAGE_ENTRIES), tombstones)))
    assert {page.mode for page in carried} == {"snapshot"}
    assert {page.cursor for page in carried} == {10_000}
    assert len([id_ for page in carried for id_ in page.dismissed_ids]) == PAGE_ENTRIES


def test_no_page_is_large_though_bodies_are() -> None:
    carried = carried_by(sync(Changes(creations(20, "x" * (MAX_BODY - 2)))))
    sizes = [len(encode(page)) for page in carried]
    assert max(sizes) < PAGE_BYTES + MAX_BODY < MAX_FRAME
    assert min(sizes[:-1]) > PAGE_BYTES // 2
    assert sum(len(page.messages) for page in carried) == 20


def test_the_largest_batch_that_waits_fits_a_frame() -> None:
    waiting = creations(500, "x" * 1000)
    assert len(encode(Messages(0, waiting, 500))) < MAX_FRAME


@given(histories(), st.booleans())
def test_what_goes_out_comes_in_again_as_it_was(history: History, whole: bool) -> None:
    facts = Facts().replay_all(history)
    content: Changes | Snapshot = Changes(history)
    if whole:
        content = Snapshot(facts.state(None, 0).items, tuple(facts.ids.items()), facts.ranges)
    for page in carried_by(sync(content)):
        assert decode_node_frame(encode(page)) == page
    frame = Messages(0, history, 99)
    assert decode_node_frame(encode(frame)) == frame


def test_each_page_of_changes_continues_the_one_before_it() -> None:
    changes = list(pages(sync(Changes(creations(1200)[7:])), 7))
    assert [page.prev for page in changes] == [7, *(page.cursor for page in changes[:-1])]
    snapshot = list(pages(sync(Snapshot(items(1200))), 7))
    assert {page.prev for page in snapshot} == {0}


def test_pages_overlap_nowhere() -> None:
    carried = carried_by(sync(Changes(creations(1200))))
    for before, after in pairwise(carried):
        assert before.messages[-1].ctime < after.messages[0].ctime
