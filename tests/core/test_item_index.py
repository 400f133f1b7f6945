"""Items by category: the same items as a look at each of them finds."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gregor.core import item_index
from gregor.core.instant import Time
from gregor.core.item_index import ItemIndex
from gregor.core.message import Category, MsgID
from gregor.core.state import Item

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
            expires_at = None if ctime % 2 else ctime
            item = Item(msg_id, ctime, category, Raw(b"1"), expires_at=expires_at)
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
        and item.ctime <= end
    ]
    assert found == sorted(matching, key=lambda item: (item.category, item.ctime, item.msg_id))
