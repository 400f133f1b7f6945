"""Items by category: the same items as a look at each of them finds."""

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


def small_runs(changes: list[tuple[MsgID, Category | None, Time]]) -> ItemIndex:
    index = ItemIndex()
    for msg_id, category, ctime in changes:
        if category is None:
            index = index.without(msg_id)
        else:
            index = index.set(msg_id, Item(msg_id, ctime, category, Raw(b"1")))
    return index


@given(changes, st.sampled_from(CATEGORIES), st.booleans(), st.integers(0, 9))
def test_items_of_a_category_are_found_after_any_changes(
    changes: list[tuple[MsgID, Category | None, Time]], category: Category, prefix: bool, end: Time
) -> None:
    before, item_index.MAX_RUN = item_index.MAX_RUN, 3
    index = small_runs(changes)
    item_index.MAX_RUN = before
    assert index == ItemIndex.of(index.values())
    found = list(index.of_category(category, prefix=prefix, end=end))
    matching = [
        item
        for item in index.values()
        if (item.category.startswith(category) if prefix else item.category == category)
        and item.ctime <= end
    ]
    assert found == sorted(matching, key=lambda item: (item.category, item.ctime, item.msg_id))
