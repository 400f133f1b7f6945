"""Two thousand worlds in which everything goes wrong, and all agree in the end."""

import subprocess
import sys

import pytest

from gregor.testing import simulation

CHUNK = 100
WORLDS = 2_000


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, WORLDS, CHUNK))
def test_all_agree_in_the_end(first: int) -> None:
    for seed in range(first, first + CHUNK):
        simulation.live(seed)


def test_a_seed_replays_the_same_trace_in_any_process() -> None:
    traces = {_trace_in_another_process(hash_seed) for hash_seed in ("1", "2")}
    assert traces == {"\n".join(simulation.live(17).trace) + "\n"}


def test_the_worlds_are_full_of_trouble() -> None:
    traces = "\n".join(line for seed in range(40) for line in simulation.live(seed).trace)
    for trouble in (
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
    ):
        assert trouble in traces, trouble


def _trace_in_another_process(hash_seed: str) -> str:
    command = [sys.executable, "-m", "gregor.testing.simulation", "--seed", "17", "--trace"]
    environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
