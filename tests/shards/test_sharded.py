"""The sharded state machine: routing, moved buckets, restored shards, and wrong configurations."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import httpx
import pytest

from gregor.clock import now
from gregor.config import Settings
from gregor.core.buckets import BUCKETS, Move, bucket_of
from gregor.core.history import Cutoff, Retention
from gregor.core.instant import SECOND
from gregor.core.message import create, dismiss
from gregor.core.sync import PageLimits, Since
from gregor.errors import SetupError, StorageUnavailable, Unavailable
from gregor.interfaces import PruneStep, Rejected, Stored
from gregor.node.pruning import Pruner
from gregor.server import Server
from gregor.shards import bucket_contents, rebalance, shard_map
from gregor.shards.rebalance import Rebalancer
from gregor.shards.shard_map import read_map
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql.database import Work
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.transactions import wrong_shards
from tests.server.harness import until
from tests.shards.harness import ShardHarness, opened, store

T = TypeVar("T")


@pytest.fixture
async def harness() -> AsyncIterator[ShardHarness]:
    async with opened(dict.fromkeys("abc", "sqlite://")) as harness:
        yield harness


# Routing


async def test_each_user_is_stored_in_one_shard(harness: ShardHarness) -> None:
    async with harness.machine() as machine:
        messages = [create(f"user{n}", "a") for n in range(60)]
        assert all(isinstance(o, Stored) for o in await machine.consume_messages(messages))
    holdings = await Rebalancer(harness.databases).holdings()
    assert sum(holding.buckets for holding in holdings.values()) == BUCKETS
    assert [holding.held.messages > 0 for holding in holdings.values()] == [True] * 3
    assert sum(holding.held.messages for holding in holdings.values()) == 60


async def test_shard_that_is_down_rejects_messages_of_its_own_users_only(
    harness: ShardHarness,
) -> None:
    ann, bob = await harness.user_of("a"), await harness.user_of("b")
    async with harness.machine() as machine:
        harness.flaky["a"].down = True
        stored, rejected = await machine.consume_messages([create(bob, "x"), create(ann, "x")])
        assert isinstance(stored, Stored)
        assert isinstance(rejected, Rejected)
        assert isinstance(rejected.error, Unavailable)
        assert "'a'" in rejected.error.message
        assert bob not in rejected.error.message
        assert await machine.ctimes([ann, bob]) == {bob: stored.message.ctime}
        with pytest.raises(Unavailable):
            await machine.consume_messages([create(ann, "x")])
        with pytest.raises(Unavailable):
            await machine.sync(ann, None, 0)
        assert not await machine.problems()


async def test_problems_name_shards_that_are_down_until_they_are_up_again(
    harness: ShardHarness,
) -> None:
    async with harness.machine() as machine:
        harness.flaky["a"].down = True
        await until(lambda: machine.partial_problems() == ["shard 'a': it is down"])
        assert not await machine.problems()
        for name in "bc":
            harness.flaky[name].down = True
        await until(lambda: len(machine.partial_problems()) == 3)
        assert len(await machine.problems()) == 3
        with pytest.raises(Unavailable):
            await machine.ctimes(["ann"])
        harness.flaky["a"].down = False
        await until(lambda: len(machine.partial_problems()) == 2)
        assert not await machine.problems()


async def test_node_starts_while_a_shard_is_read_only(harness: ShardHarness) -> None:
    """For example a replica that was not promoted yet after a failover."""

    async def reject_write(work: object) -> None:
        raise StorageUnavailable("it is read-only")

    harness.flaky["a"].write = reject_write  # type: ignore[method-assign,assignment]
    async with harness.machine() as machine:
        assert machine.partial_problems() == ["shard 'a': it is read-only"]
        await store(machine, create(await harness.user_of("b"), "x"))


async def test_all_shards_are_pruned_one_after_the_other(harness: ShardHarness) -> None:
    async with harness.machine() as machine:
        users = [await harness.user_of(name) for name in "abc"]
        await machine.consume_messages([dismiss(uid, "x") for uid in users])
        step = PruneStep("")
        contents = 0
        while step.last is not None:
            step = await machine.prune(Cutoff(now(), 0), step.last)
            contents += step.contents
        assert contents == 3
        for uid in users:
            page = await machine.messages_page(uid, None, Since(0), PageLimits(10, 10_000))
            assert page.messages == ()


async def test_shard_that_is_down_keeps_no_other_from_being_pruned(harness: ShardHarness) -> None:
    async with harness.machine() as machine:
        users = [await harness.user_of(name) for name in "abc"]
        await machine.consume_messages([dismiss(uid, "x") for uid in users])
        pruner = Pruner(machine.shards, Retention(), now, pauses=0)
        harness.flaky["a"].down = True
        with pytest.raises(Unavailable, match="shard 'a'"):
            await pruner.prune(1)
        assert [walks.forgotten.contents for walks in pruner.walks] == [0, 1, 1]
        harness.flaky["a"].down = False
        await until(lambda: not machine.partial_problems())
        assert (await pruner.prune(1)).contents == 1


# Moved buckets


async def test_node_with_old_map_finds_user_whose_bucket_moved(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as writing, harness.machine() as reading:
        first = await store(writing, create(ann, "x"))
        await Rebalancer(harness.databases).move([Move(bucket_of(ann), "a", "b")])
        assert await harness.holder(ann) == "b"
        second = await store(writing, create(ann, "x"))
        assert second.prev == first.ctime
        assert [m.ctime for m in await harness.log(reading, ann)] == [first.ctime, second.ctime]


@pytest.mark.parametrize("method", ["state", "sync", "ctimes"])
async def test_each_read_method_finds_user_whose_bucket_moved(
    harness: ShardHarness, method: str
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        first = await store(machine, create(ann, "x"))
        await Rebalancer(harness.databases).move([Move(bucket_of(ann), "a", "b")])
        await rebalance.Rebalancer(harness.databases).verify(prune=True)
        match method:
            case "state":
                assert len(await machine.state(ann)) == 1
            case "sync":
                assert (await machine.sync(ann, None, first.ctime)).cursor == first.ctime
            case _:
                assert await machine.ctimes([ann]) == {ann: first.ctime}


async def test_new_holder_without_placement_of_released_bucket_gets_it_from_node(
    harness: ShardHarness,
) -> None:
    """As if the rebalancer had crashed between the release and the publication."""
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    async with harness.machine() as machine:
        until, _ = await harness.databases["a"].write(lambda c: shard_map.close(c, [bucket], 10))
        await harness.databases["a"].write(lambda c: shard_map.release(c, [bucket], "b", until))
        stored = await store(machine, create(ann, "x"))
    extents = await harness.databases["b"].read(lambda c: bucket_contents.extents(c, [bucket]))
    assert extents[ann].ctime == stored.ctime


# A shard that was restored from a backup


async def restore(harness: ShardHarness, shard: str, bucket: int) -> None:
    """Make a shard hold a bucket again that it has released since the backup."""
    update = f"UPDATE buckets SET shard = '{shard}', version = 1 WHERE bucket = {bucket}"
    await harness.databases[shard].write(lambda c: c.execute_sql(update))
    assert not await rejects(harness, shard, bucket)


async def rejects(harness: ShardHarness, shard: str, bucket: int) -> bool:
    """Whether the shard knows that another one holds the bucket."""
    errors = await harness.databases[shard].read(lambda c: wrong_shards(c, [bucket]))
    return bool(errors)


async def test_restored_shard_gets_newer_placements_from_node_that_starts(
    harness: ShardHarness,
) -> None:
    bucket = bucket_of(await harness.user_of("a"))
    await Rebalancer(harness.databases).move([Move(bucket, "a", "b")])
    await restore(harness, "a", bucket)
    async with harness.machine():
        assert await rejects(harness, "a", bucket)


async def test_shard_restored_while_down_gets_newer_placements_when_it_is_up_again(
    harness: ShardHarness,
) -> None:
    bucket = bucket_of(await harness.user_of("a"))
    await Rebalancer(harness.databases).move([Move(bucket, "a", "b")])
    async with harness.machine() as machine:
        harness.flaky["a"].down = True
        await until(lambda: bool(machine.partial_problems()))
        await restore(harness, "a", bucket)
        harness.flaky["a"].down = False
        await until(lambda: not machine.partial_problems())
        assert await rejects(harness, "a", bucket)


async def test_restored_shard_gets_placement_when_the_holder_is_up_again(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    await Rebalancer(harness.databases).move([Move(bucket, "a", "b")])
    await restore(harness, "a", bucket)
    harness.flaky["b"].down = True
    async with harness.machine() as machine:
        assert machine.partial_problems() == ["shard 'b': it is down"]
        harness.flaky["b"].down = False
        await until(lambda: not machine.partial_problems())
        await store(machine, create(ann, "x"))
        extents = await harness.databases["b"].read(lambda c: bucket_contents.extents(c, [bucket]))
        assert list(extents) == [ann]
        await until(lambda: all(shard.admitted for shard in machine.shards.values()))
        assert await rejects(harness, "a", bucket)


async def test_write_to_closed_bucket_waits_until_its_time_is_over(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    async with harness.machine() as machine:
        source, flaky = harness.databases["a"], harness.flaky["a"]
        attempts = 0

        async def count_attempts(work: Work[T]) -> T:
            nonlocal attempts
            attempts += 1
            return await source.write(work)

        flaky.write = count_attempts  # type: ignore[method-assign]
        closed_until, _ = await source.write(lambda c: shard_map.close(c, [bucket], 60))
        writing = asyncio.create_task(store(machine, create(ann, "x")))
        await until(lambda: attempts >= 2)  # the first attempt was rejected, and is retried
        assert not writing.done()
        # As if the 60 seconds were over.
        time_is_over = f"UPDATE buckets SET closed_until = {closed_until - 60 * SECOND}"
        await source.write(lambda c: c.execute_sql(time_is_over))
        await writing
        assert len(await machine.state(ann)) == 1


async def test_release_of_bucket_that_has_reopened_raises_not_closed(harness: ShardHarness) -> None:
    bucket = bucket_of(await harness.user_of("a"))
    source = harness.databases["a"]
    first, _ = await source.write(lambda c: shard_map.close(c, [bucket], 10))
    await source.write(lambda c: shard_map.close(c, [bucket], 20))  # by another rebalancer
    with pytest.raises(shard_map.NotClosed):
        await source.write(lambda c: shard_map.release(c, [bucket], "b", first))
    expired, _ = await source.write(lambda c: shard_map.close(c, [bucket], -1))
    with pytest.raises(shard_map.NotClosed):
        await source.write(lambda c: shard_map.release(c, [bucket], "b", expired))


async def test_release_moves_all_buckets_or_none(harness: ShardHarness) -> None:
    placed, (first, second) = await read_map(harness.databases), (0, 1)
    source = harness.databases["a"]
    until, _ = await source.write(lambda c: shard_map.close(c, [first, second], 10))
    await source.write(lambda c: shard_map.close(c, [second], 20))  # by another rebalancer
    with pytest.raises(shard_map.NotClosed):
        await source.write(lambda c: shard_map.release(c, [first, second], "b", until))
    assert await read_map(harness.databases) == placed


async def test_node_without_the_new_shard_raises_unavailable_with_the_option_to_add(
    harness: ShardHarness,
) -> None:
    ann, bob = await harness.user_of("a"), await harness.user_of("b")
    async with harness.machine() as machine, database_at("sqlite://", migrate) as fourth:
        databases = {**harness.databases, "d": fourth}
        await shard_map.establish(databases)
        await Rebalancer(databases).move([Move(bucket_of(ann), "a", "d")])
        with pytest.raises(Unavailable, match="--store d=URL"):
            await machine.sync(ann, None, 0)
        await machine.sync(bob, None, 0)


# Wrong configurations


async def test_swapped_shard_names_are_refused(harness: ShardHarness) -> None:
    swapped = {
        "b": harness.databases["a"],
        "a": harness.databases["b"],
        "c": harness.databases["c"],
    }
    with pytest.raises(SetupError, match="shard 'b' is shard 'a'"):
        await read_map(swapped)


async def test_shard_map_with_unconfigured_shard_is_refused(harness: ShardHarness) -> None:
    with pytest.raises(SetupError, match="add --store b=URL"):
        await read_map({name: harness.databases[name] for name in "ac"})


async def test_database_that_is_not_a_shard_yet_is_refused(harness: ShardHarness) -> None:
    async with database_at("sqlite://", migrate) as fourth:
        with pytest.raises(SetupError, match="gregor migrate --store a=URL"):
            await read_map({**harness.databases, "d": fourth})


async def test_database_with_users_cannot_be_added_to_a_map(harness: ShardHarness) -> None:
    async with database_at("sqlite://", migrate) as other:
        async with SQLStateMachine(other, now) as machine:
            await store(machine, create("ann", "x"))
        with pytest.raises(SetupError, match="has users of its own"):
            await shard_map.establish({**harness.databases, "d": other})


async def test_store_with_users_becomes_the_holder_of_all_buckets_of_a_new_map() -> None:
    async with (
        database_at("sqlite://", migrate) as old,
        database_at("sqlite://", migrate) as new,
        SQLStateMachine(old, now) as machine,
    ):
        await store(machine, create("ann", "x"))
        both = {"new": new, "old": old}
        placed = await shard_map.establish(both)
        assert {placement.shard for placement in placed.values()} == {"old"}
        await store(machine, create("ann", "x"))  # a node that was not restarted
        await Rebalancer(both).move([Move(bucket_of("ann"), "old", "new")])
        with pytest.raises(Unavailable, match="'new'"):
            await machine.consume_message(create("ann", "x"))


async def test_shard_that_does_not_answer_is_reported_as_a_problem(harness: ShardHarness) -> None:
    async with harness.machine() as machine:
        shard = machine.shards["a"]
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def read_without_answer(work: object) -> None:
            await never

        harness.flaky["a"].read = read_without_answer  # type: ignore[method-assign,assignment]
        probing = asyncio.create_task(shard.probe())
        await until(lambda: shard.problem is not None)
        with pytest.raises(Unavailable, match="has not answered"):
            await machine.sync(await harness.user_of("a"), None, 0)
        never.set_exception(StorageUnavailable("it was reset"))
        await probing
        assert shard.problem == "it was reset"


@pytest.mark.parametrize("resource", ["messages", "state", "count"])
async def test_http_read_finds_user_whose_bucket_moved(resource: str, tmp_path: Path) -> None:
    settings = Settings(
        store=tuple(f"{name}=sqlite:///{tmp_path}/{name}.db" for name in "ab"), drain_seconds=0
    )
    async with Server.from_settings(settings) as server:
        await server.inject(create("alice", "x", 1))
        machine = server.node.state_machine
        assert isinstance(machine, ShardedStateMachine)
        holders = await read_map(machine.databases)
        source = holders[bucket_of("alice")].shard
        target = {"a": "b", "b": "a"}[source]
        await Rebalancer(machine.databases).move([Move(bucket_of("alice"), source, target)])
        transport = httpx.ASGITransport(server.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            answer = await http.get(f"/v1/users/alice/{resource}")
        assert answer.status_code == httpx.codes.OK
        assert len(answer.json().get("messages", [1])) == 1
