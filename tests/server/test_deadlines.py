"""Deadlines: a law, over any sequence of what is done with them."""

from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gregor.server.deadlines import TICK_SECONDS, Deadlines


class PlayedLoop:
    """The time and the timers of an event loop."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        self.timers.append((self.now + seconds, callback))

    def run(self, seconds: float) -> None:
        """Let this time pass."""
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer[0] <= until]:
            timer = min(due, key=lambda each: each[0])
            self.timers.remove(timer)
            self.now = max(self.now, timer[0])
            timer[1]()
        self.now = until


steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.integers(0, 3), st.floats(0, 3)),
        st.tuples(st.just("cancel"), st.integers(0, 3)),
        st.tuples(st.just("pass"), st.floats(0, 2)),
    )
)


@given(steps)
def test_law_each_deadline_is_reached_once_at_its_last_time_and_never_before(
    steps: list[Any],
) -> None:
    loop = PlayedLoop()
    deadlines = Deadlines(loop)  # type: ignore[arg-type]
    ends: dict[int, float] = {}

    def reached(number: int) -> None:
        end = ends.pop(number)
        assert end - 1e-9 <= loop.now <= end + 2 * TICK_SECONDS

    all_ = [deadlines.deadline(partial(reached, number)) for number in range(4)]
    for step in steps:
        match step:
            case "set", number, seconds:
                all_[number].set(seconds)
                ends[number] = loop.now + seconds
            case "cancel", number:
                all_[number].cancel()
                ends.pop(number, None)
            case "pass", seconds:
                loop.run(seconds)
                assert all(end > loop.now - 2 * TICK_SECONDS for end in ends.values())
    loop.run(10)
    assert ends == {}
    assert loop.timers == []  # it ticks only while there is a deadline
