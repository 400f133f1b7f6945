"""Backoff delays are random, bounded, and no longer than twice the outage."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.backoff import MAX_DELAY_SECONDS, Backoff, Outage, asked_delay, retry_after

MIN, MAX = 0.5, 60.0
BACKOFF = Backoff(MIN, MAX)

pauses = st.lists(st.floats(0, 100), min_size=1, max_size=30)
"""Seconds between one failed attempt and the next."""


def delays(outage: Outage, between: list[float], random: float) -> list[tuple[float, float]]:
    """Each delay, with how long the outage had lasted by then."""
    found, lasted = [], 0.0
    for seconds in between:
        found.append((outage.delay(1000 + lasted, random), lasted))
        lasted += seconds
    return found


@given(pauses)
def test_delay_is_at_most_the_maximum_and_twice_the_outage(between: list[float]) -> None:
    for delay, lasted in delays(Outage(BACKOFF), between, 1.0):
        assert delay <= min(MAX, max(MIN, 2 * lasted) + 1e-6)


@given(pauses, st.floats(0, 1))
def test_delay_is_a_random_part_of_its_ceiling(between: list[float], random: float) -> None:
    ceilings = delays(Outage(BACKOFF), between, 1.0)
    for (delay, _), (ceiling, _) in zip(
        delays(Outage(BACKOFF), between, random), ceilings, strict=True
    ):
        assert delay == random * ceiling


def test_delay_doubles_while_the_outage_lasts() -> None:
    found = [delay for delay, _ in delays(Outage(BACKOFF), [100.0] * 9, 1.0)]
    assert found == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


@given(pauses)
def test_first_delay_after_an_outage_is_a_first_one_again(between: list[float]) -> None:
    outage = Outage(BACKOFF)
    delays(outage, between, 1.0)
    outage.end()
    assert outage.delay(50_000.0, 1.0) == MIN


def test_limited_attempts_are_not_used_up_sooner_when_they_are_quick() -> None:
    assert [BACKOFF.delay(retry, 1.0) for retry in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]


def test_endless_outage_does_not_overflow() -> None:
    assert delays(Outage(BACKOFF), [1000.0] * 5000, 1.0)[-1][0] == MAX


@given(st.one_of(st.none(), st.text(), st.integers().map(str), st.floats().map(str)))
def test_retry_after_of_any_text_counts_up_to_a_minute(header: str | None) -> None:
    assert 0 <= retry_after(header) <= MAX_DELAY_SECONDS


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("", 0),
        (" 7 ", 7),
        ("86400", 60),
        ("9" * 5_000, 60),
        ("-5", 0),
        ("1.5", 0),
        ("²", 0),
        ("٣", 0),
        ("Wed, 21 Oct 2099 07:28:00 GMT", 0),
    ],
)
def test_retry_after_is_a_number_of_seconds(header: str | None, seconds: float) -> None:
    assert retry_after(header) == seconds


@given(st.floats())
def test_delay_that_is_asked_for_counts_up_to_a_minute(seconds: float) -> None:
    assert 0 <= asked_delay(seconds) <= MAX_DELAY_SECONDS
