"""200 simulations with devices in Python and browsers: after the faults, all replicas agree."""

import re
from collections.abc import Iterator

import pytest

from tests.simulation.browsers import JavaScript
from tests.simulation.simulation import simulate

SEEDS_PER_TEST = 50
SEEDS = 200
MOST_SEEDS = 400
"""Rare events happen in one of 70."""


@pytest.fixture(scope="module")
def javascript() -> Iterator[JavaScript]:
    with JavaScript() as javascript:
        yield javascript


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_replicas_of_both_languages_agree_after_the_faults(
    javascript: JavaScript, first: int
) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        simulate(seed, False, javascript.new_device)


def test_seed_produces_the_same_trace_in_every_process(javascript: JavaScript) -> None:
    with JavaScript() as other:
        traces = [simulate(17, False, node.new_device).trace for node in (javascript, other)]
    assert traces[0] == traces[1]


def test_browsers_meet_every_fault(javascript: JavaScript) -> None:
    missing = {
        "goes offline",
        r"was ended \(kill\)",
        r"was ended \(close\)",
        r"was ended \(crash\)",
        r"sleeps \(hang\)",
        r"sleeps \(freeze\)",
        r"sleeps \(navigateAway\)",
        r"sleeps \(hide\)",
        "loses a broadcast",
        "cannot save: the store fails",
        "has a token function that fails",
        "sets its clock",
        "the connection breaks",
        "the network fails",
        r"hides \(expired\)",
        r"hides \(replaced\)",
        r"hides \(dismissed\)",
        "hears that its user was erased",
        "cannot write, because it was killed",
        "cannot write, because its user was erased",
        "cannot snooze what has gone",
    }
    for seed in range(MOST_SEEDS):
        trace = simulate(seed, False, javascript.new_device).trace
        text = "\n".join(line for line in trace if ".js" in line)
        missing -= {event for event in missing if re.search(event, text)}
        if not missing:
            return
    pytest.fail(f"{MOST_SEEDS} simulations without {sorted(missing)}")
