"""Two thousand worlds in which everything goes wrong, and all agree in the end."""

import re
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


@pytest.mark.parametrize("seed", [17, 2 * simulation.SHARDED_EVERY])
def test_a_seed_replays_the_same_trace_in_any_process(seed: int) -> None:
    traces = {_trace_in_another_process(seed, hash_seed) for hash_seed in ("1", "2")}
    assert traces == {"\n".join(simulation.live(seed).trace) + "\n"}


def test_the_worlds_are_full_of_trouble() -> None:
    _expect(
        range(100),
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
        r"no more \(expired\)",
        r"no more \(replaced\)",
    )


def test_shards_have_troubles_of_their_own() -> None:
    _expect(
        range(400),
        True,
        "moved",
        "mover      is killed",
        "pruner     is killed",
        "mover      gives up",
        "removed what was left of",
        r"shard [abc]    goes down",
        r"fails after storing in [abc]",
        r"[abc] breaks off while it commits",
        r"was killed while [abc] stores",
        r"a later commit for \w+ overtake",
        "cannot start: no shard answers",
        "somebody else moves buckets as well",
    )


def _expect(seeds: range, sharded: bool, *troubles: str) -> None:
    """Live worlds until each trouble (a pattern) was met: which worlds have it is chance."""
    missing = set(troubles)
    for seed in seeds:
        trace = "\n".join(simulation.live(seed, sharded).trace)
        missing -= {trouble for trouble in missing if re.search(trouble, trace)}
        if not missing:
            return
    pytest.fail(f"{len(seeds)} worlds without {sorted(missing)}")


def _trace_in_another_process(seed: int, hash_seed: str) -> str:
    command = [sys.executable, "-m", "gregor.testing.simulation", "--seed", str(seed), "--trace"]
    environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
    return subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    ).stdout
