"""The sweep finds what comparing each range with each item finds."""

from hypothesis import example, given
from hypothesis import strategies as st

from gregor.core.facts import DismissedRange
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import MsgID, create
from gregor.core.range_deaths import Pattern, few_patterns, range_deaths
from gregor.core.state import Item

CATEGORIES = ("a", "a.b", "a.b.c", "b", "")
IDS = ("m0", "m1", "m2", "m3")

ranges = st.builds(
    DismissedRange,
    end=st.integers(0, 9),
    ctime=st.integers(0, 9),
    category=st.sampled_from(CATEGORIES),
    prefix=st.booleans(),
    skip_msg_ids=st.lists(st.sampled_from(IDS), unique=True).map(tuple),
    scheduled=st.booleans(),
    device_id=st.sampled_from([None, "d1", "d2"]),
    own=st.none() | st.sampled_from(IDS),
)


@st.composite
def items(draw: st.DrawFn) -> Item:
    created = create(
        "u",
        draw(st.sampled_from(CATEGORIES[:4])),
        starts=draw(st.none() | st.integers(0, 9).map(lambda at: TimeOrOffset(offset=at))),
        device_id=draw(st.sampled_from([None, "d1", "d2"])),
        msg_id=draw(st.sampled_from(IDS)),
    )
    item = Item.of(created.stamp(draw(st.integers(0, 9)), 0))
    assert item is not None
    return item


@given(st.lists(ranges, max_size=12), st.lists(items(), max_size=4, unique_by=lambda i: i.msg_id))
def test_earliest_death_is_that_of_the_first_range_that_covers_the_item(
    dismissed: list[DismissedRange], found: list[Item]
) -> None:
    deaths: dict[MsgID, Time] = {}
    for item, at in range_deaths(dismissed, found):
        deaths[item.msg_id] = min(at, deaths.get(item.msg_id, at))
    covering = {item.msg_id: [r.ctime for r in dismissed if r.covers(item)] for item in found}
    assert deaths == {msg_id: min(ctimes) for msg_id, ctimes in covering.items() if ctimes}


def test_item_dies_of_the_first_of_the_ranges_that_reach_it() -> None:
    later, first = (DismissedRange(9, ctime, "a", prefix=ctime == 3) for ctime in (7, 3))
    item = Item.of(create("u", "a").stamp(1, 0))
    assert item is not None
    assert [at for _, at in range_deaths([later, first], [item])] == [3]


patterns = st.builds(Pattern, st.text("ab", max_size=4), st.booleans())


@example([Pattern("aa", False), Pattern("ab", False)], 1, "ab")
@given(st.lists(patterns, max_size=12), st.integers(1, 4), st.text("abc", min_size=1, max_size=5))
def test_few_patterns_match_whatever_many_match(
    many: list[Pattern], limit: int, category: str
) -> None:
    few = few_patterns(many, limit)
    assert len(few) <= limit
    if any(pattern.matches(category) for pattern in many):
        assert any(pattern.matches(category) for pattern in few)


@given(st.lists(patterns, max_size=4), st.text("abc", min_size=1, max_size=5))
def test_patterns_that_are_few_match_nothing_else(many: list[Pattern], category: str) -> None:
    matches = any(pattern.matches(category) for pattern in many)
    assert any(pattern.matches(category) for pattern in few_patterns(many, 4)) == matches


def test_many_patterns_are_replaced_by_what_they_share() -> None:
    many = [Pattern(f"chat.{n}", prefix=False) for n in range(100)]
    assert few_patterns([*many, Pattern("mail", prefix=True)], 2) == [
        Pattern("chat.", prefix=True),
        Pattern("mail", prefix=True),
    ]
