"""600 simulations with random faults: after the faults, all replicas agree with the store."""

import re
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.simulation import simulation
from tests.simulation.soak import soak

SEEDS_PER_TEST = 100
SEEDS = 600


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SEEDS_PER_TEST))
def test_all_replicas_agree_after_the_faults(first: int) -> None:
    for seed in range(first, first + SEEDS_PER_TEST):
        simulation.simulate(seed)


@pytest.mark.parametrize("seed", [17, 2 * simulation.SHARDED_EVERY])
def test_seed_produces_the_same_trace_in_every_process(seed: int) -> None:
    traces = {_trace_in_another_process(seed, hash_seed) for hash_seed in ("1", "2")}
    assert traces == {"\n".join(simulation.simulate(seed).trace) + "\n"}


@pytest.mark.parametrize("seed", range(4))
def test_device_holds_a_constant_whenever_nothing_is_live_and_nothing_is_unsent(seed: int) -> None:
    assert soak(seed, rounds=6).messages > 200


def test_simulations_cover_every_fault() -> None:
    _require_events(
        (0, 1, 2, 4, 5, *range(100)),
        False,
        "crashes",
        "is partitioned from the pub/sub",
        "is connected to the pub/sub again, reported",
        "is connected to the pub/sub again, not reported",
        "is cut off from the store",
        "answers a later commit for ann first",
        "publishes garbage",
        "publishes forged",
        "goes offline",
        "was killed",
        "has a token function that fails",
        "sets its clock",
        "the connection breaks",
        "the network fails",
        "fails before storing",
        "fails after storing",
        "fails before reading",
        "duplicate",
        r"hides \(expired\)",
        r"hides \(replaced\)",
        "has shown an item that begins offline",
        "replays",
        "cannot snooze",
        "prunes [1-9]",
        "erases ann",
        "hears that its user was erased",
        "cannot write, because its user was erased",
    )


def test_sharded_simulations_cover_every_shard_fault() -> None:
    _require_events(
        (332, *range(400)),
        True,
        "moved",
        "mover      is killed",
        "cleaner    is killed",
        "mover      gives up",
        "removed the leftovers of",
        r"shard [abc]    goes down",
        r"fails after storing in [abc]",
        r"[abc] loses the connection during a commit",
        r"was killed while [abc] commits",
        r"answers a later commit for \w+ first",
        "cannot start: no shard answers",
        "another rebalancer is running",
    )


def _require_events(seeds: Sequence[int], sharded: bool, *events: str) -> None:
    """Run simulations until their traces have matched each event (a pattern). Fails if an event is
    still missing after the last seed. The seeds in which it occurs are random: those in which they
    all occurred once are tried first."""
    missing = set(events)
    for seed in seeds:
        trace = "\n".join(simulation.simulate(seed, sharded).trace)
        missing -= {event for event in missing if re.search(event, trace)}
        if not missing:
            return
    pytest.fail(f"{len(seeds)} simulations without {sorted(missing)}")


def _trace_in_another_process(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--trace"]
    environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
