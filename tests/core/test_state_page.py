"""Pages of a state hold each selected item once, in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import DeviceID
from gregor.core.state import Item
from gregor.core.state_page import PageStart, StatePage, StateQuery, page_of, size_of
from gregor.errors import InvalidMessage
from gregor.testing.strategies import History, devices, histories, times


@given(
    histories(), devices, times, st.sampled_from([(), ("a",), ("b", "a.")]), st.integers(1, 3),
    st.booleans(), st.none() | st.integers(1, 700),
)  # fmt: skip
def test_pages_together_are_what_was_asked_for(
    history: History,
    device_id: DeviceID | None,
    now: Time,
    prefixes: tuple[str, ...],
    limit: int,
    newest_first: bool,
    max_bytes: int | None,
) -> None:
    state = Facts().replay_all(history).state(device_id, now)
    query = StateQuery(
        device_id, prefixes, newest_first=newest_first, limit=limit, max_bytes=max_bytes
    )
    empty = StatePage((), now, "hash", 7, epoch=5)
    found, start = list[Item](), None
    while True:
        page = page_of(state, query, start, empty)
        assert (page.as_of, page.hash, page.cursor, page.epoch) == (now, "hash", 7, 5)
        assert len(page.items) <= limit
        assert max_bytes is None or sum(map(size_of, page.items[:-1])) < max_bytes
        found += page.items
        start = page.next
        if start is None:
            break
        assert start == PageStart(now, 7, "hash", *found[-1].order())
    selected = state.with_prefix(*prefixes) if prefixes else state
    assert found == (list(selected)[::-1] if newest_first else list(selected))


def test_key_selects_its_items() -> None:
    items = [
        Item(f"m{n}", n, "a", Raw(b"1"), key=key) for n, key in enumerate(("k", None, "l", "k"))
    ]
    assert [item.msg_id for item in items if StateQuery(key="k").selects(item)] == ["m0", "m3"]


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_is_positive(limit: int) -> None:
    with pytest.raises(InvalidMessage) as raised:
        StateQuery(limit=limit)
    assert raised.value.field == "limit"
