"""Inject each fault into a fleet under load: nothing acknowledged is lost, and all devices agree.

    make faults ROUNDS=20

runs more rounds, with three times as many devices, also of the faults that are left out here, and
prints their seeds.
"""

from random import Random

import pytest

from gregor.cli.sample import SAMPLE
from tests.faults.faults import ASYNCHRONOUS_FAULTS, FAULTS, FORGETTING_FAULTS
from tests.faults.harness import play_round

# One worker plays the rounds, which mostly wait, while others use the processors.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("faults")]

DEVICES = 60
FORGETTING_DURING_MOVES = ("prune, moving", "erase, moving")
OTHER_FAULTS = [n for n in FAULTS if n not in {*FORGETTING_FAULTS, *FORGETTING_DURING_MOVES}]


@pytest.mark.parametrize("name", OTHER_FAULTS)
async def test_fleet_is_consistent_after_a_fault(name: str) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    round_ = await play_round(name, seed, SAMPLE, devices=DEVICES, pubsub="redis")
    assert round_.problems == []
    assert round_.acknowledged > (0 if name in ASYNCHRONOUS_FAULTS else 5_000)


@pytest.mark.parametrize("name", FORGETTING_DURING_MOVES)
async def test_fleet_is_consistent_after_it_has_forgotten(name: str) -> None:
    """A short round: nodes are killed in it too."""
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    round_ = await play_round(name, seed, SAMPLE, devices=DEVICES, seconds=4, pubsub="redis")
    assert round_.problems == []
    assert round_.acknowledged > 5_000


@pytest.mark.parametrize("pubsub", ["sentinel", "cluster", "nats-cluster"])
async def test_fleet_is_consistent_after_the_death_of_a_pubsub_member(pubsub: str) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    name = "pub/sub member killed"
    round_ = await play_round(name, seed, SAMPLE, devices=DEVICES, pubsub=pubsub)
    assert round_.problems == []


@pytest.mark.parametrize("name", ["pub/sub killed", "pub/sub frozen"])
async def test_fleet_on_nats_is_consistent_after_a_pubsub_fault(name: str) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    round_ = await play_round(name, seed, SAMPLE, devices=DEVICES, pubsub="nats")
    assert round_.problems == []
