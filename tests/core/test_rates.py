"""No user takes more than the burst and what flows in, and a wait that is told is long enough."""

from hypothesis import given
from hypothesis import strategies as st

from gregor.core.instant import SECOND
from gregor.core.rates import FEW, Buckets

rates = st.tuples(st.integers(1, 500), st.integers(1, 5000))
attempts = st.lists(
    st.tuples(st.integers(0, 3 * SECOND), st.integers(1, 700)), min_size=1, max_size=40
)


def taken(buckets: Buckets[str], attempts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """When how many tokens were taken, by one who waits as told and asks for what fits."""
    now, result = 0, []
    for pause, wanted in attempts:
        tokens = min(wanted, buckets.burst)
        now += pause
        if buckets.wait("u", tokens, now) == 0:
            buckets.take("u", tokens, now)
            result.append((now, tokens))
    return result


@given(rates, attempts)
def test_law_in_no_period_is_more_taken_than_the_burst_and_what_flows_in(
    rate: tuple[int, int], attempts: list[tuple[int, int]]
) -> None:
    per_second, burst = rate
    events = taken(Buckets(per_second, burst), attempts)
    for first, (start, _) in enumerate(events):
        total = 0
        for end, tokens in events[first:]:
            total += tokens
            rounding = per_second  # of one microsecond
            assert total * SECOND <= burst * SECOND + per_second * (end - start) + rounding


@given(rates, attempts, st.integers(1, 5000))
def test_law_a_wait_that_is_told_is_enough_and_no_longer_than_needed(
    rate: tuple[int, int], attempts: list[tuple[int, int]], wanted: int
) -> None:
    buckets = Buckets[str](*rate)
    taken(buckets, attempts)
    now = sum(pause for pause, _ in attempts)
    tokens = min(wanted, buckets.burst)
    wait = buckets.wait("u", tokens, now)
    assert buckets.wait("u", tokens, now + wait) == 0
    assert wait == 0 or buckets.wait("u", tokens, now + wait - 1) > 0


@given(rates, attempts)
def test_law_what_is_available_can_be_taken_at_once(
    rate: tuple[int, int], attempts: list[tuple[int, int]]
) -> None:
    buckets = Buckets[str](*rate)
    taken(buckets, attempts)
    now = sum(pause for pause, _ in attempts)
    available = buckets.available("u", now)
    assert buckets.wait("u", available, now) == 0
    assert available == buckets.burst or buckets.wait("u", available + 1, now) > 0


@given(rates, st.integers(1, 50))
def test_law_who_takes_too_much_makes_the_next_ones_wait_in_turn(
    rate: tuple[int, int], waiting: int
) -> None:
    buckets = Buckets[str](*rate)
    buckets.take("u", buckets.burst, 0)
    waits = []
    for _ in range(waiting):
        waits.append(buckets.wait("u", 1, 0))
        buckets.take("u", 1, 0)
    assert waits == sorted(set(waits))


def test_one_user_does_not_wait_for_another() -> None:
    buckets = Buckets[str](1, 10)
    buckets.take("a", 10, 0)
    assert buckets.wait("a", 1, 0) == SECOND
    assert buckets.wait("b", 10, 0) == 0


def test_full_buckets_are_forgotten() -> None:
    buckets = Buckets[int](1, 10)
    for user in range(50 * FEW):
        buckets.take(user, 1, user * SECOND)
    assert len(buckets) <= FEW + 1
