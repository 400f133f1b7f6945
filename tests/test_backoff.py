"""Backoff delays are random, bounded, and no longer than twice the outage."""

from hypothesis import given
from hypothesis import strategies as st

from gregor.backoff import Backoff

MIN, MAX = 0.5, 60.0

pauses = st.lists(st.floats(0, 100), min_size=1, max_size=30)
"""Seconds between one failed attempt and the next."""


def delays(backoff: Backoff, between: list[float], random: float) -> list[tuple[float, float]]:
    """Each delay, with how long the outage had lasted by then."""
    found, outage = [], 0.0
    for seconds in between:
        found.append((backoff.delay(1000 + outage, random), outage))
        outage += seconds
    return found


@given(pauses)
def test_delay_is_at_most_the_maximum_and_twice_the_outage(between: list[float]) -> None:
    for delay, outage in delays(Backoff(MIN, MAX), between, 1.0):
        assert delay <= min(MAX, max(MIN, 2 * outage) + 1e-6)


@given(pauses, st.floats(0, 1))
def test_delay_is_a_random_part_of_its_ceiling(between: list[float], random: float) -> None:
    ceilings = delays(Backoff(MIN, MAX), between, 1.0)
    for (delay, _), (ceiling, _) in zip(
        delays(Backoff(MIN, MAX), between, random), ceilings, strict=True
    ):
        assert delay == random * ceiling


def test_delay_doubles_while_the_outage_lasts() -> None:
    found = [delay for delay, _ in delays(Backoff(MIN, MAX), [100.0] * 9, 1.0)]
    assert found == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@given(pauses)
def test_reset_makes_the_next_delay_a_first_one(between: list[float]) -> None:
    backoff = Backoff(MIN, MAX)
    delays(backoff, between, 1.0)
    backoff.reset()
    assert backoff.delay(50_000.0, 1.0) == MIN


def test_endless_outage_does_not_overflow() -> None:
    assert delays(Backoff(MIN, MAX), [1000.0] * 5000, 1.0)[-1][0] == MAX
