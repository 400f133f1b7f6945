"""Buckets that move while messages are stored, and rebalancers that crash or run concurrently."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from random import Random

import pytest

from gregor.core.buckets import Move, bucket_of
from gregor.core.instant import SECOND
from gregor.core.message import InBandMessage, create, dismiss_category
from gregor.core.sync import After, PageLimits, Snapshot
from gregor.errors import (
    GregorError,
    NotMigrated,
    Resync,
    StorageUnavailable,
    Unavailable,
    WrongShard,
)
from gregor.interfaces import Slot
from gregor.shards import bucket_contents, rebalance, shard_map
from gregor.shards.rebalance import Group, Moved, Rebalancer
from gregor.shards.shard_map import read_map
from gregor.stores.sql import statements
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.migrations.upgrade import Upgrade
from gregor.stores.sql.rows import json_of
from gregor.stores.sql.statements import FOREVER, MessageRow, Placement, UserRecord, UserRow
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.transactions import consume, raise_if_wrong_shard
from tests.fleet.servers import PostgreSQL
from tests.shards.harness import (
    ClosureRecorder,
    CrashingDatabase,
    EarlyReopeningDatabase,
    ShardHarness,
    SimulatedCrash,
    opened,
    store,
)
from tests.stores.logs import stored_log
from tests.stores.schema_0006 import SchemaOf0006
from tests.stores.sqlalchemy_migration import OnSQLAlchemy


def random_message(rng: Random, users: list[str]) -> InBandMessage:
    uid, category = rng.choice(users), rng.choice(("mail", "chat"))
    if rng.random() < 0.2:
        return dismiss_category(uid, category)
    return create(uid, category, rng.random())


@pytest.mark.timeout(900)  # on a busy machine many moves are tried again
async def test_no_message_is_lost_while_buckets_move_under_writers(harness: ShardHarness) -> None:
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    rng = Random(seed)
    users = [f"user{number}" for number in range(12)]
    stored: list[InBandMessage] = []
    all_moved = asyncio.Event()

    async with harness.machine() as first, harness.machine() as second:

        async def write() -> None:
            while not all_moved.is_set():
                messages = [random_message(rng, users) for _ in range(rng.randint(1, 5))]
                for outcome in await rng.choice((first, second)).consume_messages(messages):
                    assert isinstance(outcome.message, InBandMessage)
                    assert outcome.message.stamped, outcome
                    stored.append(outcome.message)

        moves = [
            Move(bucket_of(uid), "", rng.choice("abc"))
            for _ in range(4)
            for uid in rng.sample(users, len(users))
        ]
        moved: list[Moved] = []
        closures: list[int] = []
        recorded = {name: ClosureRecorder(d, closures) for name, d in harness.databases.items()}
        async with asyncio.TaskGroup() as tasks:
            for _ in range(8):
                tasks.create_task(write())
            await Rebalancer(recorded).move(moves, moved.append)
            all_moved.set()
        assert len(moved) > len(users)
        # Writers wait while a bucket is closed: for less than half a second.
        assert 0 < max(closures) <= rebalance.CLOSED_SECONDS * SECOND < SECOND / 2
        await assert_nothing_missing(harness, stored, users)


OLD_USER = UserRecord("ann", 7, -1, "", 0, 0)  # as code before schema 0002 stored users


async def test_messages_of_a_user_without_a_bucket_move_with_it_after_the_migration(
    postgresql_server: PostgreSQL,
) -> None:
    """They were left behind: the user's state was empty after the move."""
    urls = {name: await postgresql_server.create_database() for name in "ab"}
    sent = create("ann", "mail").stamp(7, 0)
    row = MessageRow("ann", 7, 0, sent.msg_id, None, json_of(sent), "mail", FOREVER)
    async with database_at(urls["a"], OnSQLAlchemy(Upgrade("0005").run)) as database:
        await database.write(lambda c: SchemaOf0006(c).insert(statements.INSERT_MESSAGES, [row]))
        await database.write(
            lambda c: SchemaOf0006(c).execute_rows(statements.UPSERT_CLOCKS, [OLD_USER])
        )
    async with opened(urls) as harness:
        await Rebalancer(harness.databases).move([Move(bucket_of("ann"), "a", "b")])
        await assert_nothing_missing(harness, [sent], ["ann"])
        assert await harness.holder("ann") == "b"


async def test_clock_and_mark_move_with_the_messages(harness: ShardHarness) -> None:
    """After a late replay, the clock is ahead of the last message. Who had heard of all before it
    gets a snapshot, wherever the user is; who has heard of it goes on from there."""
    ann = await harness.user_of("a")
    rebalancer = Rebalancer(harness.databases)
    async with harness.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        for late in (5, 3):
            await store(machine, create(ann, "mail").stamp(first.ctime - late, 0))
        mark = first.ctime + 2
        for target in "ba":
            await rebalancer.move([Move(bucket_of(ann), "", target)])
            assert await machine.ctimes([ann]) == {ann: mark}
            before = await machine.sync(ann, None, mark - 1)
            assert isinstance(before.content, Snapshot)
            after = await machine.sync(ann, None, mark)
            assert not isinstance(after.content, Snapshot)
            with pytest.raises(Resync):
                await machine.messages_page(ann, None, After(mark - 1), PageLimits(9, 10**6))
        assert await machine.check_hashes([ann]) == []
        assert (await store(machine, create(ann, "mail"))).prev == mark
    findings, _ = await rebalancer.verify()
    assert findings == []


async def test_old_copy_with_a_clock_that_the_holder_lacks_is_reported(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await store(machine, create(ann, "mail"))
    rebalancer = Rebalancer(harness.databases)
    await rebalancer.move([Move(bucket_of(ann), "a", "b")])
    await harness.databases["a"].write(
        lambda c: c.execute_sql("UPDATE users SET ctime = ctime + 1, mark = ctime + 1")
    )
    findings, _ = await rebalancer.verify()
    assert [finding.shard for finding in findings] == ["a"]
    with pytest.raises(GregorError, match="or a clock"):
        await rebalancer.move([Move(bucket_of(ann), "b", "a")])


async def test_shards_that_are_not_migrated_are_not_rebalanced(harness: ShardHarness) -> None:
    """The deaths that an older schema holds follow from its messages only after the migration."""
    await harness.databases["b"].write(
        lambda c: c.execute(statements.SET_REVISION, revision="0006")
    )
    rebalancer = Rebalancer(harness.databases)
    with pytest.raises(NotMigrated, match=r"'b' has the older schema 0006.*gregor migrate"):
        await rebalancer.move([Move(1, "a", "b")])
    with pytest.raises(NotMigrated):
        await rebalancer.verify()


async def whole_log(database: Database, uid: str) -> list[InBandMessage]:
    """A user's log in this database."""
    log: list[InBandMessage] = []

    def next_page(connection: DatabaseConnection) -> list[InBandMessage]:
        return stored_log(connection, uid, log[-1].ctime if log else 0)

    while page := await database.read(next_page):
        log += page
    return log


async def assert_nothing_missing(
    harness: ShardHarness, stored: list[InBandMessage], users: list[str]
) -> None:
    """Every acknowledged message is stored exactly once in the shard that holds its user, with the
    acknowledged ctime; in every log, each `prev` is the ctime of the message before."""
    holders = await harness.holders(users)
    async with harness.machine() as machine:
        for uid in users:
            log = await whole_log(harness.databases[holders[uid]], uid)
            in_log = {(m.msg_id, m.ctime) for m in log}
            assert {(m.msg_id, m.ctime) for m in stored if m.uid == uid} <= in_log
            assert len({m.msg_id for m in log}) == len(log)
            assert [m.prev for m in log] == [0, *(m.ctime for m in log)][: len(log)]
            sync = await machine.sync(uid, None, 0)
            assert isinstance(sync.content, Snapshot)
            assert sync.content.facts().hash(None, sync.as_of) == sync.hash
    findings, _ = await Rebalancer(harness.databases).verify()
    assert findings == []


@pytest.mark.parametrize("crash_after_write", [False, True], ids=["before_write", "after_write"])
async def test_move_that_crashes_at_any_write_can_be_restarted(
    harness: ShardHarness, crash_after_write: bool
) -> None:
    """The rebalancer crashes at each of its writes in turn, before or after the transaction."""
    users = [await harness.user_of(name) for name in "aab"]
    stored: list[InBandMessage] = []
    for writes in range(12):
        async with harness.machine() as machine:
            messages = [create(uid, "mail") for uid in users for _ in range(3)]
            for outcome in await machine.consume_messages(messages):
                assert isinstance(outcome.message, InBandMessage)
                stored.append(outcome.message)
        target = "abc"[writes % 3]
        moves = [Move(bucket_of(uid), "", target) for uid in users]
        crashing = {
            name: CrashingDatabase(database, true_for(writes), crash_after_write)
            for name, database in harness.databases.items()
        }
        with suppress(SimulatedCrash):
            await Rebalancer(crashing).move(moves)
        # No matter where it crashed, users can write at once, and the move can be restarted.
        async with harness.machine() as machine:
            for uid in users:
                stored.append(await store(machine, create(uid, "chat")))
        await Rebalancer(harness.databases).move(moves)
        assert set((await harness.holders(users)).values()) == {target}
        await assert_nothing_missing(harness, stored, users)


def true_for(calls: int) -> Callable[[], bool]:
    """A function that returns True for so many calls, then False."""
    left = calls

    def count_down() -> bool:
        nonlocal left
        left -= 1
        return left >= 0

    return count_down


async def test_batch_is_halved_until_its_buckets_move_in_time(harness: ShardHarness) -> None:
    reopening = {name: EarlyReopeningDatabase(d, 3) for name, d in harness.databases.items()}
    buckets = range(20)
    moved: list[Moved] = []
    await Rebalancer(reopening).move([Move(bucket, "a", "b") for bucket in buckets], moved.append)
    assert sorted(m.move.bucket for m in moved) == list(buckets)
    placed = await read_map(harness.databases)
    assert {placed[bucket].shard for bucket in buckets} == {"b"}


async def test_bucket_that_cannot_be_moved_in_time_stays_on_its_shard(
    harness: ShardHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalance, "MAX_ATTEMPTS", 3)
    ann = await harness.user_of("a")
    reopening = {name: EarlyReopeningDatabase(d, 0) for name, d in harness.databases.items()}
    with pytest.raises(Unavailable, match="it has not moved"):
        await Rebalancer(reopening).move([Move(bucket_of(ann), "a", "b")])
    async with harness.machine() as machine:
        await store(machine, create(ann, "mail"))
    assert await harness.holder(ann) == "a"


async def test_message_stored_behind_the_clock_during_a_move_moves_too(
    harness: ShardHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebalance, "MAX_ATTEMPTS", 3)  # one is enough
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    async with harness.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        rebalancer = Rebalancer(harness.databases)
        await rebalancer._copy(await rebalancer._claim(Group("a", "b", [bucket])))
        replay = create(ann, "mail").stamp(first.ctime - 5, 0)
        await store(machine, replay)
        await Rebalancer(harness.databases).move([Move(bucket, "a", "b")])
        log = await harness.log(machine, ann)
        assert [message.ctime for message in log] == [first.ctime - 5, first.ctime]


async def test_message_stored_behind_the_clock_moves_to_another_shard_and_back(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        await store(machine, create(ann, "mail").stamp(first.ctime - 5, 0))
    rebalancer = Rebalancer(harness.databases)
    await rebalancer.move([Move(bucket_of(ann), "a", "b")])
    assert await rebalancer.verify() == ([], 1)
    await rebalancer.move([Move(bucket_of(ann), "b", "a")])
    assert await harness.holder(ann) == "a"


async def test_cursor_from_before_a_move_still_works(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        first = await store(machine, create(ann, "mail"))
        await Rebalancer(harness.databases).move([Move(bucket_of(ann), "a", "b")])
        second = await store(machine, create(ann, "mail"))
        sync = await machine.sync(ann, None, first.ctime)
    assert not isinstance(sync.content, Snapshot)
    assert [message.msg_id for message in sync.content.messages] == [second.msg_id]


# Verifying


async def test_old_copy_is_deleted_by_verify_with_prune(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    rebalancer = Rebalancer(harness.databases)
    async with harness.machine() as machine:
        await store(machine, create(ann, "mail"))
        await rebalancer.move([Move(bucket_of(ann), "a", "b")])
        assert await rebalancer.verify() == ([], 1)
        assert (await rebalancer.holdings())["a"].left_over.messages == 1
        assert await rebalancer.verify(prune=True) == ([], 1)
        assert await rebalancer.verify() == ([], 0)
        assert len(await machine.state(ann)) == 1
        # Back to the shard whose old copy was deleted.
        await rebalancer.move([Move(bucket_of(ann), "b", "a")])
        assert len(await machine.state(ann)) == 1


async def test_old_copy_with_messages_that_the_holder_lacks_is_reported_and_kept(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    rebalancer = Rebalancer(harness.databases)
    async with harness.machine() as machine:
        stored = await store(machine, create(ann, "mail"))
        await rebalancer.move([Move(bucket_of(ann), "a", "b")])
    extra = create(ann, "mail").stamp(stored.ctime + 1, 0)
    await harness.databases["a"].write(
        lambda c: consume(c, [Slot(extra)], extra.ctime, any_bucket=True)
    )
    (finding,), removed = await rebalancer.verify(prune=True)
    assert (finding.shard, removed) == ("a", 0)
    assert ann in finding.what
    assert (await rebalancer.holdings())["a"].left_over.messages == 2


async def test_user_in_a_wrong_bucket_is_found_among_many(harness: ShardHarness) -> None:
    names = [f"user{number:05}" for number in range(bucket_contents.MAX_PAGE_USERS)]
    users = [UserRow(uid, bucket_of(uid)) for uid in names]
    misplaced = UserRow("zoe", bucket_of("zoe") ^ 1)
    await harness.databases["a"].write(
        lambda c: c.execute_rows(statements.INSERT_USERS, [*users, misplaced])
    )
    (finding,), _ = await Rebalancer(harness.databases).verify()
    assert finding == rebalance.Finding("a", "user 'zoe' is in a wrong bucket")


async def test_prune_on_the_holder_deletes_nothing(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    async with harness.machine() as machine:
        await store(machine, create(ann, "mail"))
    assert await harness.databases["b"].write(lambda c: shard_map.claim(c, [bucket])) == []
    for version in (1, 2):
        here = Placement(bucket, "a", version)
        assert not await harness.databases["a"].write(partial(shard_map.prune, placement=here))
    assert (
        len(await harness.databases["a"].read(lambda c: bucket_contents.extents(c, [bucket]))) == 1
    )


async def test_move_of_bucket_that_another_rebalancer_moved_raises_unavailable(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    move = Move(bucket_of(ann), "a", "b")

    async def move_concurrently(copies: int) -> None:
        if copies == 1:
            await Rebalancer(harness.databases).move([move])
            async with harness.machine() as machine:
                await store(machine, create(ann, "mail"))

    with pytest.raises(
        Unavailable, match="has moved from 'a' to 'b': another rebalancer is running"
    ):
        await HookedRebalancer(harness, move_concurrently).move([move._replace(target="c")])
    assert await harness.holder(ann) == "b"


class HookedRebalancer(Rebalancer):
    """A Rebalancer that calls `after_copy` after each copy, with the number of copies so far."""

    def __init__(self, harness: ShardHarness, after_copy: Callable[[int], Awaitable[None]]) -> None:
        super().__init__(harness.databases)
        self._after_copy = after_copy
        self._copies = 0

    async def _copy(self, group: Group) -> bool:
        is_complete = await super()._copy(group)
        self._copies += 1
        await self._after_copy(self._copies)
        return is_complete


@pytest.mark.parametrize("claim_after", [1, 2], ids=["claim_before_close", "claim_while_closed"])
async def test_prune_does_not_delete_bucket_that_is_being_moved_to_the_shard(
    harness: ShardHarness, claim_after: int
) -> None:
    """The bucket moves back to a shard that has an old copy. After the last copy of that move,
    another rebalancer prunes the old copy there."""
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    a, b = harness.databases["a"], harness.databases["b"]
    claims: list[Placement] = []
    deleted: list[bool] = []

    async def prune(copies: int) -> None:
        if copies == claim_after:
            claims.extend(await a.write(lambda c: shard_map.claim(c, [bucket])))
        if copies == 2:
            (placement,) = claims
            deleted.append(await b.write(lambda c: shard_map.prune(c, placement)))

    async with harness.machine() as machine:
        stored = await store(machine, create(ann, "mail"))
        await Rebalancer(harness.databases).move([Move(bucket, "a", "b")])
        await Rebalancer(harness.databases).move([Move(bucket, "b", "a")])
        await HookedRebalancer(harness, prune).move([Move(bucket, "a", "b")])
        assert deleted == [claim_after == 2]  # then the move is retried, with another copy
        assert await harness.holder(ann) == "b"
        assert [m.ctime for m in await harness.log(machine, ann)] == [stored.ctime]


async def test_target_with_messages_that_the_holder_lacks_is_rejected(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        stored = await store(machine, create(ann, "mail"))
    other = create(ann, "mail").stamp(stored.ctime, 0)
    await harness.databases["b"].write(
        lambda c: consume(c, [Slot(other)], other.ctime, any_bucket=True)
    )
    with pytest.raises(GregorError, match="that shard 'a', the holder, lacks"):
        await Rebalancer(harness.databases).move([Move(bucket_of(ann), "a", "b")])
    assert await harness.holder(ann) == "a"


async def test_close_waits_for_transactions_that_are_writing(
    postgresql_server: PostgreSQL,
) -> None:
    """On SQLite there is one transaction at a time."""
    url = await postgresql_server.create_database()
    async with opened({"a": url}) as harness, database_at(url) as other:
        ann = await harness.user_of("a")
        message = create(ann, "mail")
        writing = asyncio.Event()

        def write_slowly(connection: DatabaseConnection) -> None:
            consume(connection, [Slot(message)], 1_000)
            writing.set()
            connection.execute_sql("SELECT pg_sleep(0.5)")

        async def close() -> None:
            while True:
                with suppress(StorageUnavailable):  # its lock time-out is short
                    await other.write(lambda c: shard_map.close(c, [bucket_of(ann)], 10))
                    return

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(harness.databases["a"].write(write_slowly))
            await writing.wait()
            await close()
            assert ann in await other.read(lambda c: bucket_contents.extents(c, [bucket_of(ann)]))


async def test_older_placement_does_not_replace_newer_one(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    bucket = bucket_of(ann)
    await Rebalancer(harness.databases).move([Move(bucket, "a", "b")])
    older = Placement(bucket, "a", 1)
    await harness.databases["a"].write(lambda c: shard_map.merge_placements(c, [older]))
    assert await harness.holder(ann) == "b"
    with pytest.raises(WrongShard):
        await harness.databases["a"].read(lambda c: raise_if_wrong_shard(c, ann))


async def test_older_placement_that_waited_for_newer_one_is_ignored(
    postgresql_server: PostgreSQL,
) -> None:
    """Two transactions at the same time; on SQLite there is one at a time."""
    url = await postgresql_server.create_database()
    async with opened({"a": url}) as harness, database_at(url) as other:
        older, newer = (Placement(0, "b", version) for version in (8, 9))
        merged = asyncio.Event()

        def merge_slowly(connection: DatabaseConnection) -> None:
            shard_map.merge_placements(connection, [newer])
            merged.set()
            connection.execute_sql("SELECT pg_sleep(0.5)")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(harness.databases["a"].write(merge_slowly))
            await merged.wait()
            assert await other.write(lambda c: shard_map.merge_placements(c, [older])) == 0
        assert newer in await other.read(shard_map.placements)
