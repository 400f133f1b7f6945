"""Each plug is pulled, under load, at random times: nothing acknowledged is lost, all agree.

    make faults ROUNDS=20

plays more of them, and prints their seeds.
"""

from random import Random

import pytest

from gregor.data import SAMPLE
from tests.faults.plugs import ALL
from tests.faults.world import play_round


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
async def test_a_plug_is_pulled(name: str) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    round_ = await play_round(name, seed, SAMPLE, pubsub="redis")
    assert round_.troubles == []
    assert round_.acknowledged > 5_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pub/sub killed", "pub/sub frozen"])
async def test_a_plug_of_nats_is_pulled(name: str) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    round_ = await play_round(name, seed, SAMPLE, pubsub="nats")
    assert round_.troubles == []
