"""Buckets that move while messages come, whatever becomes of the mover."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random

import pytest
from sqlalchemy import Connection

from gregor.core.buckets import Move, bucket_of
from gregor.core.message import InBandMessage, create, dismiss_category
from gregor.core.state import Snapshot
from gregor.errors import Elsewhere, GregorError, StorageUnavailable, Unavailable
from gregor.state_machines import moving, shard_map
from gregor.state_machines.moving import Group, Moved, Mover
from gregor.state_machines.sharded import read_map
from gregor.state_machines.transactions import consume, expect_here
from gregor.storage import statements, tables
from gregor.storage.database import Database
from gregor.storage.engine import database_at
from gregor.testing.backends import PostgreSQL
from tests.shards.world import Hasty, Killed, Mortal, World, opened, store


@pytest.fixture(params=["SQLite", "PostgreSQL"])
async def world(
    request: pytest.FixtureRequest, postgresql_server: PostgreSQL
) -> AsyncIterator[World]:
    if request.param == "SQLite":
        urls = dict.fromkeys("abc", "sqlite://")
    else:
        urls = {name: await postgresql_server.create_database() for name in "abc"}
    async with opened(urls) as world:
        yield world


def some_message(mind: Random, users: list[str]) -> InBandMessage:
    uid, category = mind.choice(users), mind.choice(("mail", "chat"))
    if mind.random() < 0.2:
        return dismiss_category(uid, category)
    return create(uid, category, mind.random())


async def test_nothing_is_lost_while_buckets_move_under_writers(world: World) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    mind = Random(seed)
    users = [f"user{number}" for number in range(12)]
    stored: list[InBandMessage] = []
    over = asyncio.Event()

    async with world.machine() as one, world.machine() as other:

        async def write(number: int) -> None:
            while not over.is_set():
                messages = [some_message(mind, users) for _ in range(mind.randint(1, 5))]
                for outcome in await mind.choice((one, other)).consume_messages(messages):
                    assert isinstance(outcome.message, InBandMessage)
                    assert outcome.message.stamped, outcome
                    stored.append(outcome.message)

        moves = [
            Move(bucket_of(uid), "", mind.choice("abc"))
            for _ in range(4)
            for uid in mind.sample(users, len(users))
        ]
        moved: list[Moved] = []
        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(write(number))
            await Mover(world.databases).move(moves, moved.append)
            over.set()
        assert len(moved) > len(users)
        assert max(m.pause for m in moved) < 0.5
        await nothing_missing(world, stored, users)


async def whole_log(database: Database, uid: str) -> list[InBandMessage]:
    """A user's log as this database has it."""
    log: list[InBandMessage] = []

    def what_is_next(connection: Connection) -> list[InBandMessage]:
        return shard_map.page(connection, {uid: log[-1].ctime if log else 0})

    while page := await database.read(what_is_next):
        log += page
    return log


async def nothing_missing(world: World, stored: list[InBandMessage], users: list[str]) -> None:
    """Every message that was acknowledged is once in the one shard that holds its user, as it was
    acknowledged; every log is one chain."""
    holders = await world.holders(users)
    async with world.machine() as machine:
        for uid in users:
            log = await whole_log(world.databases[holders[uid]], uid)
            theirs = {(m.msg_id, m.ctime) for m in log}
            assert {(m.msg_id, m.ctime) for m in stored if m.uid == uid} <= theirs
            assert len({m.msg_id for m in log}) == len(log)
            assert [m.prev for m in log] == [0, *(m.ctime for m in log)][: len(log)]
            sync = await machine.sync(uid, None, 0)
            assert isinstance(sync.content, Snapshot)
            assert sync.content.facts().state(None, sync.as_of).hash() == sync.hash
    findings, _ = await Mover(world.databases).verify()
    assert findings == []


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
async def test_a_mover_that_is_killed_at_any_transaction_is_begun_again(
    world: World, after: bool
) -> None:
    """At each of the transactions that it writes, and that one either not done or done."""
    users = [await world.user_of(name) for name in "aab"]
    stored: list[InBandMessage] = []
    for lives in range(12):
        async with world.machine() as machine:
            messages = [create(uid, "mail") for uid in users for _ in range(3)]
            for outcome in await machine.consume_messages(messages):
                assert isinstance(outcome.message, InBandMessage)
                stored.append(outcome.message)
        target = "abc"[lives % 3]
        moves = [Move(bucket_of(uid), "", target) for uid in users]
        mortal = {
            name: Mortal(database, lasting(lives), after)
            for name, database in world.databases.items()
        }
        with suppress(Killed):
            await Mover(mortal).move(moves)
        # Whatever it has left behind, users can write at once, and it can go on.
        async with world.machine() as machine:
            for uid in users:
                stored.append(await store(machine, create(uid, "chat")))
        await Mover(world.databases).move(moves)
        assert set((await world.holders(users)).values()) == {target}
        await nothing_missing(world, stored, users)


def lasting(transactions: int) -> Callable[[], bool]:
    """Whether the next transaction is not the last."""
    left = transactions

    def lives() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    return lives


async def test_fewer_move_at_once_where_the_time_is_too_short_for_many(world: World) -> None:
    hasty = {name: Hasty(database, 3) for name, database in world.databases.items()}
    buckets = range(20)
    moved: list[Moved] = []
    await Mover(hasty).move([Move(bucket, "a", "b") for bucket in buckets], moved.append)
    assert sorted(m.move.bucket for m in moved) == list(buckets)
    placed = await read_map(world.databases)
    assert {placed[bucket].shard for bucket in buckets} == {"b"}


async def test_a_bucket_for_which_there_is_never_time_stays(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TRIES", 3)
    ann = await world.user_of("a")
    hasty = {name: Hasty(database, 0) for name, database in world.databases.items()}
    with pytest.raises(Unavailable, match="it is where it was"):
        await Mover(hasty).move([Move(bucket_of(ann), "a", "b")])
    async with world.machine() as machine:
        await store(machine, create(ann, "mail"))
    assert await world.holder(ann) == "a"


async def test_what_was_stored_behind_the_clock_meanwhile_moves_as_well(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "TRIES", 3)  # one would do
    ann = await world.user_of("a")
    bucket = bucket_of(ann)
    async with world.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        await Mover(world.databases)._copy(Group("a", "b", [bucket]))
        late = create(ann, "mail").stamp(first.ctime - 5, 0)
        await store(machine, late)
        await Mover(world.databases).move([Move(bucket, "a", "b")])
        log = await world.log(machine, ann)
        assert [message.ctime for message in log] == [first.ctime - 5, first.ctime]


async def test_what_was_stored_behind_the_clock_moves_there_and_back(world: World) -> None:
    ann = await world.user_of("a")
    async with world.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        await store(machine, create(ann, "mail").stamp(first.ctime - 5, 0))
    mover = Mover(world.databases)
    await mover.move([Move(bucket_of(ann), "a", "b")])
    assert await mover.verify() == ([], 1)
    await mover.move([Move(bucket_of(ann), "b", "a")])
    assert await world.holder(ann) == "a"


async def test_cursors_keep_their_meaning(world: World) -> None:
    ann = await world.user_of("a")
    async with world.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        await Mover(world.databases).move([Move(bucket_of(ann), "a", "b")])
        second = await store(machine, create(ann, "mail"))
        sync = await machine.sync(ann, None, first.ctime)
    assert not isinstance(sync.content, Snapshot)
    assert [message.msg_id for message in sync.content.messages] == [second.msg_id]


# Verifying


async def test_what_was_left_behind_is_removed_once_it_is_verified(world: World) -> None:
    ann = await world.user_of("a")
    mover = Mover(world.databases)
    async with world.machine() as machine:
        await store(machine, create(ann, "mail"))
        await mover.move([Move(bucket_of(ann), "a", "b")])
        assert await mover.verify() == ([], 1)
        assert (await mover.holdings())["a"].left_over.messages == 1
        assert await mover.verify(prune=True) == ([], 1)
        assert await mover.verify() == ([], 0)
        assert len(await machine.state(ann)) == 1
        # And back again, to where nothing is left.
        await mover.move([Move(bucket_of(ann), "b", "a")])
        assert len(await machine.state(ann)) == 1


async def test_what_the_holder_lacks_is_reported_and_not_removed(world: World) -> None:
    ann = await world.user_of("a")
    mover = Mover(world.databases)
    async with world.machine() as machine:
        stored = await store(machine, create(ann, "mail"))
        await mover.move([Move(bucket_of(ann), "a", "b")])
    lost = create(ann, "mail").stamp(stored.ctime + 1, 0)
    await world.databases["a"].write(lambda c: consume(c, [lost], lost.ctime, moving=True))
    (finding,), removed = await mover.verify(prune=True)
    assert (finding.shard, removed) == ("a", 0)
    assert ann in finding.what
    assert (await mover.holdings())["a"].left_over.messages == 2


async def test_a_user_in_a_wrong_bucket_is_found_among_many(world: World) -> None:
    names = [f"user{number:05}" for number in range(shard_map.USERS_PAGE)]
    users = [(uid, 0, bucket_of(uid)) for uid in names]
    lost = ("zoe", 0, bucket_of("zoe") ^ 1)
    await world.databases["a"].write(lambda c: statements.insert(c, tables.users, [*users, lost]))
    (finding,), _ = await Mover(world.databases).verify()
    assert finding == moving.Finding("a", "user 'zoe' is in a wrong bucket")


async def test_a_bucket_cannot_be_pruned_where_it_is_held(world: World) -> None:
    ann = await world.user_of("a")
    bucket = bucket_of(ann)
    async with world.machine() as machine:
        await store(machine, create(ann, "mail"))
    assert await world.databases["b"].write(lambda c: shard_map.reaffirm(c, bucket)) is None
    for version in (1, 2):
        here = shard_map.Placement(bucket, "a", version)
        assert not await world.databases["a"].write(partial(shard_map.prune, placement=here))
    assert len(await world.databases["a"].read(lambda c: shard_map.extents(c, [bucket]))) == 1


async def test_who_finds_that_somebody_else_has_moved_a_bucket_says_so(world: World) -> None:
    ann = await world.user_of("a")
    move = Move(bucket_of(ann), "a", "b")

    async def overtake(copied: int) -> None:
        if copied == 1:
            await Mover(world.databases).move([move])
            async with world.machine() as machine:
                await store(machine, create(ann, "mail"))

    with pytest.raises(Unavailable, match="has gone from 'a' to 'b': somebody else moves"):
        await Watched(world, overtake).move([move._replace(target="c")])
    assert await world.holder(ann) == "b"


class Watched(Mover):
    """A Mover of whom somebody is told each time that it has copied, and how often it has."""

    def __init__(self, world: World, copied: Callable[[int], Awaitable[None]]) -> None:
        super().__init__(world.databases)
        self._copied = copied
        self._times = 0

    async def _copy(self, group: Group) -> bool:
        done = await super()._copy(group)
        self._times += 1
        await self._copied(self._times)
        return done


@pytest.mark.parametrize("begun", [1, 2], ids=["before it is closed", "while it is closed"])
async def test_what_is_on_its_way_is_not_taken_for_what_was_left_behind(
    world: World, begun: int
) -> None:
    """Somebody removes what is left of a bucket where it is being moved to again, after the mover
    has looked there for the last time."""
    ann = await world.user_of("a")
    bucket = bucket_of(ann)
    a, b = world.databases["a"], world.databases["b"]
    reaffirmed: list[shard_map.Placement | None] = []
    removed: list[bool] = []

    async def prune(copied: int) -> None:
        if copied == begun:
            reaffirmed.append(await a.write(lambda c: shard_map.reaffirm(c, bucket)))
        if copied == 2:
            (placement,) = reaffirmed
            assert placement is not None
            removed.append(await b.write(lambda c: shard_map.prune(c, placement)))

    async with world.machine() as machine:
        stored = await store(machine, create(ann, "mail"))
        await Mover(world.databases).move([Move(bucket, "a", "b")])
        await Mover(world.databases).move([Move(bucket, "b", "a")])
        await Watched(world, prune).move([Move(bucket, "a", "b")])
        assert removed == [begun == 2]  # then the mover begins again, and copies it once more
        assert await world.holder(ann) == "b"
        assert [m.ctime for m in await world.log(machine, ann)] == [stored.ctime]


async def test_a_target_that_has_other_messages_is_refused(world: World) -> None:
    ann = await world.user_of("a")
    async with world.machine() as machine:
        stored = await store(machine, create(ann, "mail"))
    other = create(ann, "mail").stamp(stored.ctime, 0)
    await world.databases["b"].write(lambda c: consume(c, [other], other.ctime, moving=True))
    with pytest.raises(GregorError, match="that shard 'a', the holder, lacks"):
        await Mover(world.databases).move([Move(bucket_of(ann), "a", "b")])
    assert await world.holder(ann) == "a"


async def test_a_bucket_is_closed_only_when_those_who_are_writing_have_committed(
    postgresql_server: PostgreSQL,
) -> None:
    """On SQLite they come one by one."""
    url = await postgresql_server.create_database()
    async with opened({"a": url}) as world, database_at(url) as other:
        ann = await world.user_of("a")
        message = create(ann, "mail")
        writing = asyncio.Event()

        def write_slowly(connection: Connection) -> None:
            consume(connection, [message], 1_000)
            writing.set()
            connection.exec_driver_sql("SELECT pg_sleep(0.5)")

        async def close() -> None:
            while True:
                with suppress(StorageUnavailable):  # it waits for a moment only
                    await other.write(lambda c: shard_map.close(c, [bucket_of(ann)], 10))
                    return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.databases["a"].write(write_slowly))
            await writing.wait()
            await close()
            assert ann in await other.read(lambda c: shard_map.extents(c, [bucket_of(ann)]))


async def test_what_is_known_already_is_not_forgotten_for_something_older(world: World) -> None:
    ann = await world.user_of("a")
    bucket = bucket_of(ann)
    await Mover(world.databases).move([Move(bucket, "a", "b")])
    older = shard_map.Placement(bucket, "a", 1)
    await world.databases["a"].write(lambda c: shard_map.adopt(c, [older]))
    assert await world.holder(ann) == "b"
    with pytest.raises(Elsewhere):
        await world.databases["a"].read(lambda c: expect_here(c, ann))


async def test_older_news_that_had_to_wait_for_newer_is_not_believed(
    postgresql_server: PostgreSQL,
) -> None:
    """On SQLite it comes when the newer is known."""
    url = await postgresql_server.create_database()
    async with opened({"a": url}) as world, database_at(url) as other:
        older, newer = (shard_map.Placement(0, "b", version) for version in (8, 9))
        told = asyncio.Event()

        def tell_slowly(connection: Connection) -> None:
            shard_map.adopt(connection, [newer])
            told.set()
            connection.exec_driver_sql("SELECT pg_sleep(0.5)")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(world.databases["a"].write(tell_slowly))
            await told.wait()
            assert await other.write(lambda c: shard_map.adopt(c, [older])) == 0
        assert newer in await other.read(shard_map.placements)
