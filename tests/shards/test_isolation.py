"""A shard that stands still, or is away, in a server of its own, holds up nobody else."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from statistics import quantiles
from time import perf_counter

import pytest

from gregor.core.message import create
from gregor.errors import SetupError, Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.state_machines.sharded import ShardedStateMachine
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import PostgreSQL
from tests.server.world import Served, serving, shared_settings, to, until
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


@asynccontextmanager
async def node_over(urls: Mapping[str, str]) -> AsyncIterator[tuple[Served, ShardedStateMachine]]:
    stores = tuple(f"{name}={url}" for name, url in urls.items())
    async with serving(shared_settings(stores, migrate=False)) as node:
        assert isinstance(node.server.state_machine, ShardedStateMachine)
        yield node, node.server.state_machine


async def test_a_node_that_starts_while_a_shard_is_away_serves_the_others(
    postgresql_server: PostgreSQL,
) -> None:
    async with PostgreSQL() as away:
        urls = {
            "a": await away.create_database(),
            "b": await postgresql_server.create_database(),
        }
        async with opened(urls) as world:
            ann, bob = await world.user_of("a"), await world.user_of("b")
        await away.stop()
        async with node_over(urls) as (node, machine):
            assert (await node.post(to(bob))).status_code == 200
            refused = await node.post(to(ann))
            assert refused.status_code == 503
            assert "'a'" in refused.text
            ready = await node.http.get("/readyz")
            assert ready.status_code == 200
            assert "shard 'a'" in ready.text
            await away.start()
            await until(lambda: machine.shard_troubles() == [])
            assert (await node.post(to(ann))).status_code == 200


async def test_a_database_that_is_not_the_shard_when_it_comes_stays_away(
    postgresql_server: PostgreSQL,
) -> None:
    async with PostgreSQL() as away:
        urls = {
            "a": await postgresql_server.create_database(),
            "b": await away.create_database(),
        }
        async with opened(urls) as world:
            bob = await world.user_of("b")
        empty = await away.create_database()
        async with database_at(empty, migrate):
            pass
        await away.stop()
        async with node_over({**urls, "b": empty}) as (node, machine):
            await away.start()
            await until(lambda: any("is none yet" in t for t in machine.shard_troubles()))
            assert (await node.post(to(bob))).status_code == 503


async def test_a_node_does_not_start_while_all_shards_are_away() -> None:
    nowhere = {name: f"postgresql://127.0.0.1:1/{name}" for name in "ab"}
    with pytest.raises(SetupError, match=r"no shard answers: shard 'a': .*; shard 'b': "):
        async with node_over(nowhere):
            pass
