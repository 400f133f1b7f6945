"""Items by category, key, start and expiry: those that a look at each of them finds."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gregor.core import item_index
from gregor.core.instant import Time
from gregor.core.item_index import ItemIndex, SortedKeys
from gregor.core.message import Category, MsgID
from gregor.core.state import Item
from gregor.core.state_hash import hash_of

CATEGORIES = ("", "a", "a.b", "a.b\0", "a.c", "b")
IDS = tuple(f"m{n}" for n in range(12))

changes = st.lists(
    st.tuples(st.sampled_from(IDS), st.none() | st.sampled_from(CATEGORIES), st.integers(1, 9)),
    max_size=60,
)


@pytest.fixture(autouse=True, scope="module")
def small_runs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_index, "MAX_RUN", 3)
        yield


def index_after(changes: list[tuple[MsgID, Category | None, Time]]) -> ItemIndex:
    index = ItemIndex()
    for msg_id, category, ctime in changes:
        if category is None:
            index = index.without(msg_id)
        else:
            item = Item(
                msg_id,
                ctime,
                category,
                Raw(b"1"),
                device_id="d1" if ctime % 4 == 3 else None,
                expires_at=None if ctime % 2 else ctime,
                starts_at=None if ctime % 3 else 9 - ctime,
                key=None if ctime % 5 == 0 else f"k{ctime % 2}",
            )
            index = index.set(msg_id, item)
    return index


@given(changes, st.integers(0, 9), st.integers(0, 9))
def test_items_that_expire_are_found_after_any_changes(
    changes: list[tuple[MsgID, Category | None, Time]], after: Time, until: Time
) -> None:
    index = index_after(changes)
    expiries = sorted((i.expires_at, i.msg_id) for i in index.values() if i.expires_at is not None)
    later = [(at, msg_id) for at, msg_id in expiries if at > after]
    assert [i.msg_id for i in index.expired(after, until)] == [m for at, m in later if at <= until]
    assert index.next_expiry(after) == (later[0][0] if later else None)


@given(changes, st.integers(0, 9), st.integers(0, 9))
def test_items_that_start_are_found_after_any_changes(
    changes: list[tuple[MsgID, Category | None, Time]], after: Time, until: Time
) -> None:
    index = index_after(changes)
    starts = sorted((i.starts_at, i.msg_id) for i in index.values() if i.starts_at is not None)
    later = [(at, msg_id) for at, msg_id in starts if at > after]
    assert [i.msg_id for i in index.started(after, until)] == [m for at, m in later if at <= until]
    assert index.next_start(after) == (later[0][0] if later else None)


@given(changes)
def test_items_of_a_key_are_found_after_any_changes(
    changes: list[tuple[MsgID, Category | None, Time]],
) -> None:
    index = index_after(changes)
    for key in ("k0", "k1", "k"):
        found = [item for item in index.values() if item.key == key]
        assert list(index.of_key(key)) == sorted(
            found, key=lambda item: (item.device_id or "", item.ctime, item.msg_id)
        )


@given(changes, st.integers(0, 9))
def test_hash_is_kept_up_by_adding_and_subtracting(
    changes: list[tuple[MsgID, Category | None, Time]], as_of: Time
) -> None:
    index = index_after(changes)
    left = [item for item in index.values() if not item.expired(as_of)]
    assert index.hash(as_of) == hash_of((item.ctime, item.msg_id) for item in left)


@given(st.lists(st.integers(0, 30), unique=True), st.integers(-1, 31))
def test_neighbours_of_a_key_are_found(numbers: list[int], place: int) -> None:
    keys = SortedKeys[tuple[int]]()
    for number in numbers:
        keys = keys.add((number,))
    before = [number for number in numbers if number < place]
    after = [number for number in numbers if number >= place]
    assert keys.last_before((place,)) == ((max(before),) if before else None)
    assert keys.first_from((place,)) == ((min(after),) if after else None)
    assert ((place,) in keys) == (place in numbers)
    assert keys == SortedKeys.of((number,) for number in numbers)


@given(changes, st.sampled_from(CATEGORIES), st.booleans(), st.integers(0, 9))
def test_items_of_a_category_are_found_after_any_changes(
    changes: list[tuple[MsgID, Category | None, Time]], category: Category, prefix: bool, end: Time
) -> None:
    index = index_after(changes)
    assert index == ItemIndex.of(index.values())
    found = list(index.of_category(category, prefix=prefix, end=end))
    matching = [
        item
        for item in index.values()
        if (item.category.startswith(category) if prefix else item.category == category)
        and item.time <= end
    ]
    assert found == sorted(matching, key=lambda item: (item.category, item.time, item.msg_id))
