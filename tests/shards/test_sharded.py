"""What a node over shards promises besides what every state machine does."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from gregor.clock import now
from gregor.core.buckets import BUCKETS, Move, bucket_of
from gregor.core.message import create
from gregor.errors import SetupError, StorageUnavailable, Unavailable
from gregor.interfaces import Rejected, Stored
from gregor.state_machines import moving, shard_map
from gregor.state_machines.moving import Mover
from gregor.state_machines.sharded import read_map
from gregor.state_machines.sql import SQLStateMachine
from gregor.state_machines.transactions import held_elsewhere
from gregor.storage import tables
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from tests.server.world import until
from tests.shards.world import World, opened, store


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened(dict.fromkeys("abc", "sqlite://")) as world:
        yield world


# Routing


async def test_each_user_is_in_one_shard(world: World) -> None:
    async with world.machine() as machine:
        messages = [create(f"user{n}", "a") for n in range(60)]
        assert all(isinstance(o, Stored) for o in await machine.consume_messages(messages))
    holdings = await Mover(world.databases).holdings()
    assert sum(holding.buckets for holding in holdings.values()) == BUCKETS
    assert [holding.held.messages > 0 for holding in holdings.values()] == [True] * 3
    assert sum(holding.held.messages for holding in holdings.values()) == 60


async def test_a_shard_that_is_down_fails_its_own_users_only(world: World) -> None:
    ann, bob = await world.user_of("a"), await world.user_of("b")
    async with world.machine() as machine:
        world.seen["a"].down = True
        there, gone = await machine.consume_messages([create(bob, "x"), create(ann, "x")])
        assert isinstance(there, Stored)
        assert isinstance(gone, Rejected)
        assert isinstance(gone.error, Unavailable)
        assert "'a'" in gone.error.message
        assert bob not in gone.error.message
        assert await machine.ctimes([ann, bob]) == {bob: there.message.ctime}
        with pytest.raises(Unavailable):
            await machine.consume_messages([create(ann, "x")])
        with pytest.raises(Unavailable):
            await machine.sync(ann, None, 0)
        assert not await machine.troubles()


async def test_it_is_known_which_shard_is_down_and_when_it_is_back(world: World) -> None:
    async with world.machine() as machine:
        world.seen["a"].down = True
        await until(lambda: machine.shard_troubles() == ["shard 'a': it is down"])
        assert not await machine.troubles()
        for name in "bc":
            world.seen[name].down = True
        await until(lambda: len(machine.shard_troubles()) == 3)
        assert len(await machine.troubles()) == 3
        with pytest.raises(Unavailable):
            await machine.ctimes(["ann"])
        world.seen["a"].down = False
        await until(lambda: len(machine.shard_troubles()) == 2)
        assert not await machine.troubles()


async def test_a_node_starts_while_a_shard_takes_nothing(world: World) -> None:
    """A replica, say, that does not know yet that it is the first now."""

    async def refuse(work: object) -> None:
        raise StorageUnavailable("it is read-only")

    world.seen["a"].write = refuse  # type: ignore[method-assign,assignment]
    async with world.machine() as machine:
        assert machine.shard_troubles() == ["shard 'a': it is read-only"]
        await store(machine, create(await world.user_of("b"), "x"))


# Moving, as a node sees it


async def test_a_node_that_was_not_told_finds_the_user_who_moved(world: World) -> None:
    ann = await world.user_of("a")
    async with world.machine() as writing, world.machine() as reading:
        first = await store(writing, create(ann, "x"))
        await Mover(world.databases).move([Move(bucket_of(ann), "a", "b")])
        assert await world.holder(ann) == "b"
        second = await store(writing, create(ann, "x"))
        assert second.prev == first.ctime
        assert [m.ctime for m in await world.log(reading, ann)] == [first.ctime, second.ctime]


@pytest.mark.parametrize("question", ["state", "sync", "ctimes"])
async def test_every_question_finds_the_user_who_moved(world: World, question: str) -> None:
    ann = await world.user_of("a")
    async with world.machine() as machine:
        first = await store(machine, create(ann, "x"))
        await Mover(world.databases).move([Move(bucket_of(ann), "a", "b")])
        await moving.Mover(world.databases).verify(prune=True)
        match question:
            case "state":
                assert len(await machine.state(ann)) == 1
            case "sync":
                assert (await machine.sync(ann, None, first.ctime)).cursor == first.ctime
            case _:  # left out once, which a sweep is ready for; then asked for where it is
                assert await machine.ctimes([ann]) == {}
                assert await machine.ctimes([ann]) == {ann: first.ctime}


async def test_a_bucket_that_was_given_away_is_taken_by_a_holder_who_was_not_told(
    world: World,
) -> None:
    """As if the mover had been killed between the two."""
    ann = await world.user_of("a")
    bucket = bucket_of(ann)
    async with world.machine() as machine:
        until, _ = await world.databases["a"].write(lambda c: shard_map.close(c, [bucket], 10))
        await world.databases["a"].write(lambda c: shard_map.release(c, [bucket], "b", until))
        stored = await store(machine, create(ann, "x"))
    there = await world.databases["b"].read(lambda c: shard_map.extents(c, [bucket]))
    assert there[ann].ctime == stored.ctime


# A shard that was restored from a backup


async def restore(world: World, shard: str, bucket: int) -> None:
    """Have a shard hold a bucket again which it has given away since the backup."""
    held = tables.buckets.update().where(tables.buckets.c.bucket == bucket)
    restored = held.values(shard=shard, version=1)
    await world.databases[shard].write(lambda c: c.execute(restored))
    assert not await refused(world, shard, bucket)


async def refused(world: World, shard: str, bucket: int) -> bool:
    gone = await world.databases[shard].read(lambda c: held_elsewhere(c, [bucket]))
    return bool(gone)


async def test_a_restored_shard_is_told_by_a_node_that_starts_what_it_has_forgotten(
    world: World,
) -> None:
    bucket = bucket_of(await world.user_of("a"))
    await Mover(world.databases).move([Move(bucket, "a", "b")])
    await restore(world, "a", bucket)
    async with world.machine():
        assert await refused(world, "a", bucket)


async def test_a_shard_that_is_restored_while_it_is_down_is_told_when_it_is_back(
    world: World,
) -> None:
    bucket = bucket_of(await world.user_of("a"))
    await Mover(world.databases).move([Move(bucket, "a", "b")])
    async with world.machine() as machine:
        world.seen["a"].down = True
        await until(lambda: bool(machine.shard_troubles()))
        await restore(world, "a", bucket)
        world.seen["a"].down = False
        await until(lambda: not machine.shard_troubles())
        assert await refused(world, "a", bucket)


async def test_a_restored_shard_is_told_once_whoever_knows_better_is_back(world: World) -> None:
    ann = await world.user_of("a")
    bucket = bucket_of(ann)
    await Mover(world.databases).move([Move(bucket, "a", "b")])
    await restore(world, "a", bucket)
    world.seen["b"].down = True
    async with world.machine() as machine:
        assert machine.shard_troubles() == ["shard 'b': it is down"]
        world.seen["b"].down = False
        await until(lambda: not machine.shard_troubles())
        await store(machine, create(ann, "x"))
        there = await world.databases["b"].read(lambda c: shard_map.extents(c, [bucket]))
        assert list(there) == [ann]
        await until(lambda: all(shard.taken_in for shard in machine.shards.values()))
        assert await refused(world, "a", bucket)


async def test_who_writes_to_a_closed_bucket_waits_until_it_opens(world: World) -> None:
    ann = await world.user_of("a")
    async with world.machine() as machine:
        await world.databases["a"].write(lambda c: shard_map.close(c, [bucket_of(ann)], 0.2))
        loop = asyncio.get_running_loop()
        began = loop.time()
        await store(machine, create(ann, "x"))
        assert 0.1 < loop.time() - began < 2
        assert len(await machine.state(ann)) == 1


async def test_what_has_opened_again_is_not_given_away(world: World) -> None:
    bucket = bucket_of(await world.user_of("a"))
    source = world.databases["a"]
    first, _ = await source.write(lambda c: shard_map.close(c, [bucket], 10))
    await source.write(lambda c: shard_map.close(c, [bucket], 20))  # by somebody else
    with pytest.raises(shard_map.NotClosed):
        await source.write(lambda c: shard_map.release(c, [bucket], "b", first))
    expired, _ = await source.write(lambda c: shard_map.close(c, [bucket], -1))
    with pytest.raises(shard_map.NotClosed):
        await source.write(lambda c: shard_map.release(c, [bucket], "b", expired))


async def test_several_buckets_are_given_away_together_or_not_at_all(world: World) -> None:
    placed, (one, other) = await read_map(world.databases), (0, 1)
    source = world.databases["a"]
    until, _ = await source.write(lambda c: shard_map.close(c, [one, other], 10))
    await source.write(lambda c: shard_map.close(c, [other], 20))  # by somebody else
    with pytest.raises(shard_map.NotClosed):
        await source.write(lambda c: shard_map.release(c, [one, other], "b", until))
    assert await read_map(world.databases) == placed


async def test_a_node_that_does_not_know_the_new_shard_says_how_to_tell_it(world: World) -> None:
    ann, bob = await world.user_of("a"), await world.user_of("b")
    async with world.machine() as machine, database_at("sqlite://", migrate) as fourth:
        databases = {**world.databases, "d": fourth}
        await moving.establish(databases)
        await Mover(databases).move([Move(bucket_of(ann), "a", "d")])
        with pytest.raises(Unavailable, match="--store d=URL"):
            await machine.sync(ann, None, 0)
        await machine.sync(bob, None, 0)


# Configurations that do not fit


async def test_names_that_were_exchanged(world: World) -> None:
    swapped = {"b": world.databases["a"], "a": world.databases["b"], "c": world.databases["c"]}
    with pytest.raises(SetupError, match="shard 'b' is shard 'a'"):
        await read_map(swapped)


async def test_a_shard_that_is_not_configured(world: World) -> None:
    with pytest.raises(SetupError, match="add --store b=URL"):
        await read_map({name: world.databases[name] for name in "ac"})


async def test_a_database_that_is_no_shard_yet(world: World) -> None:
    async with database_at("sqlite://", migrate) as fourth:
        with pytest.raises(SetupError, match="gregor migrate --store a=URL"):
            await read_map({**world.databases, "d": fourth})


async def test_users_of_somebody_else_do_not_join(world: World) -> None:
    async with database_at("sqlite://", migrate) as other:
        async with SQLStateMachine(other, now) as machine:
            await store(machine, create("ann", "x"))
        with pytest.raises(SetupError, match="has users of its own"):
            await moving.establish({**world.databases, "d": other})


async def test_a_store_that_has_users_becomes_the_first_of_several() -> None:
    async with (
        database_at("sqlite://", migrate) as old,
        database_at("sqlite://", migrate) as new,
        SQLStateMachine(old, now) as machine,
    ):
        await store(machine, create("ann", "x"))
        both = {"new": new, "old": old}
        placed = await moving.establish(both)
        assert {placement.shard for placement in placed.values()} == {"old"}
        await store(machine, create("ann", "x"))  # a node that was not started anew
        await Mover(both).move([Move(bucket_of("ann"), "old", "new")])
        with pytest.raises(Unavailable, match="'new'"):
            await machine.consume_message(create("ann", "x"))


async def test_a_shard_that_is_frozen_is_noticed_by_its_silence(world: World) -> None:
    async with world.machine() as machine:
        shard = machine.shards["a"]
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def silence(work: object) -> None:
            await never

        world.seen["a"].read = silence  # type: ignore[method-assign,assignment]
        looking = asyncio.create_task(shard.look())
        await until(lambda: shard.trouble is not None)
        with pytest.raises(Unavailable, match="has not answered"):
            await machine.sync(await world.user_of("a"), None, 0)
        never.set_exception(StorageUnavailable("it was reset"))
        await looking
        assert shard.trouble == "it was reset"
