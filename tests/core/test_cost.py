"""What a message costs is proportional to what it touches. Instructions are counted, not time."""

from collections.abc import Callable
from functools import partial

import pytest

from gregor.core.facts import Facts
from gregor.core.instant import TimeOrOffset
from gregor.core.message import (
    Dismissal,
    InBandMessage,
    Range,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
)
from tests.steps import python_steps

MESSAGES: dict[str, Callable[[], InBandMessage]] = {
    "creation": lambda: create("u", "b"),
    "dismissal": lambda: dismiss("u", "i7"),
    "put": lambda: put("u", "badge", 1, key="k7"),
    "dismissal_of_key": lambda: dismiss_key("u", "k7"),
    "scheduled": lambda: create("u", "b", starts="1h", expires="2h"),
    "dismissal_of_category": lambda: dismiss_category("u", "c.7.x"),
    "dismissal_of_prefix": lambda: dismiss_category("u", "c.7.", prefix=True),
}


def live(size: int) -> Facts:
    items = [put("u", f"c.{n}.x", key=f"k{n}", msg_id=f"i{n}").stamp(n + 1, n) for n in range(size)]
    return Facts().replay_all(items)


@pytest.mark.parametrize("name", MESSAGES)
def test_cost_does_not_grow_with_what_is_live(name: str) -> None:
    few, many = [
        python_steps(partial(live(size).replay, MESSAGES[name]().stamp(size + 1, size)))
        for size in (100, 1_000)
    ]
    assert 0 < many < 2 * few


def test_range_costs_the_items_that_it_dismisses_not_those_of_its_category() -> None:
    """Nor the number of ids that it skips for each item."""

    def cost(size: int) -> int:
        facts = Facts().replay_all(
            create("u", "a", msg_id=f"i{n}").stamp(n + 1, n) for n in range(size)
        )
        eighth = TimeOrOffset(offset=8 - (size + 1))
        return python_steps(
            lambda: facts.replay(dismiss_category("u", "a", end_time=eighth).stamp(size + 1, size))
        )

    assert cost(1_000) < 2 * cost(100)


def test_puts_of_one_key_cost_each_the_same() -> None:
    def cost(size: int) -> int:
        messages = [put("u", "a", n).stamp(n + 1, n) for n in range(size)]
        return python_steps(lambda: Facts().replay_all(messages))

    assert cost(400) < 6 * cost(100)


@pytest.mark.parametrize("ends", ["before", "with the message"])
def test_ranges_of_a_message_cost_the_sum_of_ranges_and_items(ends: str) -> None:
    """Although each prefix matches all items, and begins with the one before."""

    def cost(size: int) -> int:
        facts = Facts().replay_all(
            create("u", "a" * 240 + f"{n}", msg_id=f"i{n}").stamp(n + 1, n) for n in range(size)
        )
        end = TimeOrOffset(time=1) if ends == "before" else None
        ranges = tuple(Range("a" * n, end, prefix=True) for n in range(1, size // 2))
        message = InBandMessage("u", "d", dismissal=Dismissal((), ranges))
        return python_steps(partial(facts.replay, message.stamp(size + 1, size)))

    assert cost(400) < 6 * cost(100)
