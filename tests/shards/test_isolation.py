"""A shard that stands still, in a server of its own, holds up nobody else."""

import asyncio
from statistics import quantiles
from time import perf_counter

import pytest

from gregor.core.message import create
from gregor.errors import Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.testing.backends import PostgreSQL
from tests.server.world import until
from tests.shards.world import opened, store

MESSAGES = 300


async def p99(machine: StateMachineOfRecord, uid: str) -> float:
    """Of the seconds that a message of this user takes."""
    took = []
    for _ in range(MESSAGES):
        start = perf_counter()
        await store(machine, create(uid, "mail"))
        took.append(perf_counter() - start)
    return quantiles(took, n=100)[-1]


async def test_a_frozen_shard_holds_up_nobody_else(postgresql_server: PostgreSQL) -> None:
    async with PostgreSQL() as freezing:
        urls = {
            "a": await freezing.create_database(),
            "b": await postgresql_server.create_database(),
        }
        async with opened(urls) as world:
            ann, bob = await world.user_of("a"), await world.user_of("b")
            async with world.machine() as machine:
                await store(machine, create(ann, "mail"))
                before = await p99(machine, bob)
                freezing.pause()
                try:
                    refused = [
                        asyncio.create_task(machine.consume_message(create(ann, "mail")))
                        for _ in range(20)
                    ]
                    during = await p99(machine, bob)
                    await until(lambda: machine.shards["a"].trouble is not None)
                    with pytest.raises(Unavailable, match="'a'"):
                        await machine.sync(ann, None, 0)
                    after = await p99(machine, bob)
                finally:
                    freezing.resume()
                await asyncio.gather(*refused, return_exceptions=True)
                await until(lambda: machine.shards["a"].trouble is None)
                await store(machine, create(ann, "mail"))
    # Twice is allowed; a noisy machine gets a few milliseconds on top.
    assert max(during, after) < 2 * before + 0.02
