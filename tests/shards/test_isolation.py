"""A shard that is frozen or down, in a server of its own, does not affect users of other shards."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from gregor.core.message import create
from gregor.errors import SetupError, Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.statements import SET_OLDEST_WRITER
from gregor.stores.sql.store_url import database_at
from tests.fleet.servers import PostgreSQL
from tests.server.harness import Served, serving, shared_settings, to, until
from tests.shards.harness import opened, store

MESSAGES = 100


async def store_many(machine: StateMachineOfRecord, uid: str) -> None:
    """Store messages of this user, one after the other."""
    for _ in range(MESSAGES):
        await store(machine, create(uid, "mail"))


async def test_users_of_other_shards_do_not_wait_for_frozen_shard(
    postgresql_server: PostgreSQL,
) -> None:
    async with PostgreSQL() as frozen_server:
        urls = {
            "a": await frozen_server.create_database(),
            "b": await postgresql_server.create_database(),
        }
        async with opened(urls) as harness:
            ann, bob = await harness.user_of("a"), await harness.user_of("b")
            async with harness.machine() as machine:
                await store(machine, create(ann, "mail"))
                frozen_server.pause()
                try:
                    pending = [
                        asyncio.create_task(machine.consume_message(create(ann, "mail")))
                        for _ in range(20)
                    ]
                    # Before the shard is known to be down, and afterwards: had messages of bob
                    # waited for the shard, its calls would have ended before them.
                    await store_many(machine, bob)
                    assert not any(task.done() for task in pending)
                    await until(lambda: machine.shards["a"].problem is not None)
                    with pytest.raises(Unavailable, match="'a'"):
                        await machine.sync(ann, None, 0)
                    await store_many(machine, bob)
                    assert machine.shards["a"].problem is not None
                finally:
                    frozen_server.resume()
                await asyncio.gather(*pending, return_exceptions=True)
                await until(lambda: machine.shards["a"].problem is None)
                await store(machine, create(ann, "mail"))


@asynccontextmanager
async def node_over(urls: Mapping[str, str]) -> AsyncIterator[tuple[Served, ShardedStateMachine]]:
    stores = tuple(f"{name}={url}" for name, url in urls.items())
    async with serving(shared_settings(stores, migrate=False)) as node:
        assert isinstance(node.server.node.state_machine, ShardedStateMachine)
        yield node, node.server.node.state_machine


async def test_node_that_starts_while_a_shard_is_down_serves_the_other_shards(
    postgresql_server: PostgreSQL,
) -> None:
    async with PostgreSQL() as down_server:
        urls = {
            "a": await down_server.create_database(),
            "b": await postgresql_server.create_database(),
        }
        async with opened(urls) as harness:
            ann, bob = await harness.user_of("a"), await harness.user_of("b")
        await down_server.stop()
        async with node_over(urls) as (node, machine):
            assert (await node.post(to(bob))).status_code == 200
            rejected = await node.post(to(ann))
            assert rejected.status_code == 503
            assert "'a'" in rejected.text
            ready = await node.http.get("/readyz")
            assert ready.status_code == 200
            assert "shard 'a'" in ready.text
            await down_server.start()
            await until(lambda: machine.partial_problems() == [])
            assert (await node.post(to(ann))).status_code == 200


async def test_database_that_turns_out_not_to_be_the_shard_stays_unavailable(
    postgresql_server: PostgreSQL,
) -> None:
    async with PostgreSQL() as down_server:
        urls = {
            "a": await postgresql_server.create_database(),
            "b": await down_server.create_database(),
        }
        async with opened(urls) as harness:
            bob = await harness.user_of("b")
        empty = await down_server.create_database()
        async with database_at(empty, migrate):
            pass
        await down_server.stop()
        async with node_over({**urls, "b": empty}) as (node, machine):
            await down_server.start()
            await until(
                lambda: any("is not a shard yet" in text for text in machine.partial_problems())
            )
            assert (await node.post(to(bob))).status_code == 503


async def test_node_that_is_too_old_for_its_shards_says_so_and_reads_them(
    postgresql_server: PostgreSQL,
) -> None:
    urls = {name: await postgresql_server.create_database() for name in "ab"}
    async with opened(urls) as harness:
        ann = await harness.user_of("a")
        async with node_over(urls) as (node, machine):
            assert (await node.post(to(ann))).status_code == 200
            for shards, status in ((["a"], 200), (["b"], 503)):
                for name in shards:
                    await harness.databases[name].write(
                        lambda c: c.execute(SET_OLDEST_WRITER, revision="9999")
                    )
                    await until(lambda: any(f"{name!r}" in p for p in machine.partial_problems()))  # noqa: B023
                ready = await node.http.get("/readyz")
                assert (ready.status_code, "too old to write" in ready.text) == (status, True)
            refused = await node.post(to(ann))
            assert (refused.status_code, "too old to write" in refused.text) == (503, True)
            assert len(await machine.state(ann)) == 1


async def test_node_does_not_start_while_all_shards_are_down() -> None:
    unreachable = {name: f"postgresql://127.0.0.1:1/{name}" for name in "ab"}
    with pytest.raises(SetupError, match=r"no shard answers: shard 'a': .*; shard 'b': "):
        async with node_over(unreachable):
            pass
