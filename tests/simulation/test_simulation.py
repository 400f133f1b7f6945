"""Two thousand worlds in which everything goes wrong, and all agree in the end."""

import subprocess
import sys
from collections.abc import Iterable

import pytest

from gregor.testing import simulation

CHUNK = 100
WORLDS = 2_000


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, WORLDS, CHUNK))
def test_all_agree_in_the_end(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulation.live(seed)


@pytest.mark.parametrize("seed", [17, 2 * simulation.SHARDED_EVERY])
def test_a_seed_replays_the_same_trace_in_any_process(seed: int) -> None:
    traces = {_trace_in_another_process(seed, hash_seed) for hash_seed in ("1", "2")}
    assert traces == {"\n".join(simulation.live(seed).trace) + "\n"}


def test_the_worlds_are_full_of_trouble() -> None:
    _expect(
        range(40),
        False,
        "crashes",
        "hears nothing any more",
        "hears again, and knows",
        "hears again, unknowing",
        "is cut off from the store",
        "a later commit for ann overtake",
        "publishes garbage",
        "publishes forged",
        "goes offline",
        "was killed",
        "the line breaks",
        "the network fails",
        "fails before storing",
        "fails after storing",
        "fails before reading",
        "duplicate",
        "no more (expired)",
        "no more (replaced)",
    )


def test_shards_have_troubles_of_their_own() -> None:
    _expect(
        range(40),
        True,
        "moved",
        "mover      is killed",
        "pruner     is killed",
        "mover      gives up",
        "removed what was left of 2 buckets",
        "shard a    goes down",
        "fails after storing in a",
        "a breaks off while it commits",
        "was killed while a stores",
        "a later commit for b overtake",
        "cannot start: no shard answers",
        "somebody else moves buckets as well",
    )


def _expect(seeds: Iterable[int], sharded: bool, *troubles: str) -> None:
    traces = "\n".join(line for seed in seeds for line in simulation.live(seed, sharded).trace)
    for trouble in troubles:
        assert trouble in traces, trouble


def _trace_in_another_process(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "gregor.testing.simulation", "--seed", str(seed), "--trace"]
    environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
