"""Erased users on shards: old copies of buckets that have moved, shards that are away, moves."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from gregor.core.buckets import Move, bucket_of
from gregor.core.instant import Time
from gregor.core.message import InBandMessage, create, dismiss, put
from gregor.errors import Erased, Unavailable, WrongShard
from gregor.interfaces import Erasure, Rejected, Slot
from gregor.shards import rebalance, shard_map
from gregor.shards.rebalance import Rebalancer
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql import erase, statements
from gregor.stores.sql.database import Database, Work
from gregor.stores.sql.statements import TABLES_OF_BUCKETS, PendingErasure
from tests.server.harness import until
from tests.shards.harness import FlakyDatabase, ShardHarness, SimulatedCrash, store

T = TypeVar("T")

CONTENTS = [table for table in TABLES_OF_BUCKETS if table not in ("users", "scope_hashes")]


async def rows_until(harness: ShardHarness, shard: str, uid: str, epoch: Time) -> int:
    """How many rows a shard has of what happened to a user up to an instant."""
    query = " + ".join(
        f"(SELECT count(*) FROM {table} WHERE uid = '{uid}' AND ctime <= {epoch})"
        for table in CONTENTS
    )
    ((rows,),) = await harness.databases[shard].read(lambda c: c.execute_sql(f"SELECT {query}"))
    assert isinstance(rows, int)
    return rows


async def users_on(harness: ShardHarness, shard: str) -> set[object]:
    rows = await harness.databases[shard].read(lambda c: c.execute_sql("SELECT uid FROM users"))
    return {uid for (uid,) in rows}


async def pending_on(harness: ShardHarness, shard: str, for_shard: str) -> list[PendingErasure]:
    return await harness.databases[shard].read(lambda c: erase.pending_erasures(c, for_shard))


async def fill(machine: ShardedStateMachine, uid: str) -> InBandMessage:
    """Store messages that leave rows in several tables; return the last."""
    await store(machine, create(uid, "mail", "a secret", msg_id="1"))
    await store(machine, put(uid, "volume", 3, device_id="phone"))
    await store(machine, dismiss(uid, "arrives later"))
    return await store(machine, create(uid, "mail", "another secret"))


async def move(harness: ShardHarness, uid: str, *shards: str) -> None:
    for shard in shards:
        await Rebalancer(harness.databases).move([Move(bucket_of(uid), "", shard)])


# Old copies


async def test_old_copies_on_other_shards_go_before_the_answer(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        await move(harness, ann, "b")
        result = await machine.erase(ann)
        epoch = result.erasure.epoch
        assert result.pending == ()
        assert [await rows_until(harness, shard, ann, epoch) for shard in "abc"] == [0, 0, 0]
        assert await machine.erasure(ann) == result.erasure
        assert len(await machine.state(ann)) == 0
        assert await pending_on(harness, "b", "a") == []
        await move(harness, ann, "a")
        assert await machine.erasure(ann) == result.erasure
    assert await Rebalancer(harness.databases).verify() == ([], 1)


async def test_erase_creates_nothing_where_the_user_was_not_known(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        assert (await machine.erase(ann)).pending == ()
    assert [await users_on(harness, shard) for shard in "abc"] == [{ann}, set(), set()]


async def test_erase_on_a_node_with_an_old_map_finds_the_user(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        await move(harness, ann, "b")
        erasure = (await machine.erase(ann)).erasure
        assert await rows_until(harness, "a", ann, erasure.epoch) == 0
        assert await rows_until(harness, "b", ann, erasure.epoch) == 0


@pytest.mark.parametrize("is_released", [True, False], ids=["released", "closed"])
async def test_shard_that_does_not_hold_the_user_erases_nothing(
    harness: ShardHarness, is_released: bool
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        if is_released:
            await move(harness, ann, "b")
        else:
            await harness.databases["a"].write(lambda c: shard_map.close(c, [bucket_of(ann)], 60))
        with pytest.raises(WrongShard):
            await machine.shards["a"].machine.erase(ann, "bc")
        assert await rows_until(harness, "a", ann, 10**17) > 0
        assert await pending_on(harness, "a", "b") == []


async def test_user_of_a_shard_that_is_down_is_not_erased(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        harness.flaky["a"].down = True
        with pytest.raises(Unavailable):
            await machine.erase(ann)
        harness.flaky["a"].down = False
        await until(lambda: not machine.partial_problems())
        assert await machine.erasure(ann) == Erasure()


# Shards that are away


async def test_old_copy_on_a_shard_that_is_away_goes_before_it_serves_again(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        await move(harness, ann, "b")
        await machine.ctime(ann)  # the node learns who holds the user
        harness.flaky["a"].down = True
        result = await machine.erase(ann)
        assert result.pending == ("a",)
        assert await rows_until(harness, "a", ann, result.erasure.epoch) > 0
        await until(lambda: machine.partial_problems() != [])
        harness.flaky["a"].down = False
        await until(lambda: machine.partial_problems() == [])
        assert await rows_until(harness, "a", ann, result.erasure.epoch) == 0
        assert await pending_on(harness, "b", "a") == []


async def test_old_copy_goes_before_a_node_that_starts_serves_the_shard(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        await move(harness, ann, "b")
        await machine.ctime(ann)  # the node learns who holds the user
        harness.flaky["a"].down = True
        result = await machine.erase(ann)
        assert result.pending == ("a",)
    harness.flaky["a"].down = False
    async with harness.machine():
        assert await rows_until(harness, "a", ann, result.erasure.epoch) == 0


async def test_old_copy_goes_when_the_shard_that_knows_of_the_erase_is_back_last(
    harness: ShardHarness,
) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        await move(harness, ann, "b")
        await machine.ctime(ann)  # the node learns who holds the user
        harness.flaky["a"].down = True
        epoch = (await machine.erase(ann)).erasure.epoch
        harness.flaky["b"].down = True
        await until(lambda: len(machine.partial_problems()) == 2)
        harness.flaky["a"].down = False
        await until(lambda: len(machine.partial_problems()) == 1)
        assert await rows_until(harness, "a", ann, epoch) > 0  # nobody can know
        harness.flaky["b"].down = False
        await until(lambda: machine.partial_problems() == [])
        assert await rows_until(harness, "a", ann, epoch) == 0


async def test_shard_that_fails_for_a_moment_is_asked_again(harness: ShardHarness) -> None:
    """It need not have been down for any probe."""
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        await fill(machine, ann)
        await move(harness, ann, "b")
        await machine.ctime(ann)  # the node learns who holds the user
        harness.flaky["a"].down = True
        result = await machine.erase(ann)
        assert result.pending == ("a",)
        harness.flaky["a"].down = False
        await machine.shards["a"].probe()
        assert await rows_until(harness, "a", ann, result.erasure.epoch) == 0


async def test_many_users_erased_while_a_shard_is_away_are_removed_in_batches(
    harness: ShardHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase, "MAX_ERASURES_READ", 2)
    ann = await harness.user_of("a")
    erasures = [
        PendingErasure("a", f"{ann}-{number}", epoch=10**16, erased_at=10**16)
        for number in range(5)
    ]
    async with harness.machine() as machine:
        await fill(machine, ann)
        late = PendingErasure("a", ann, 10**16, 10**16)
        await harness.databases["c"].write(
            lambda c: c.execute_rows(statements.UPSERT_PENDING_ERASURES, [*erasures, late])
        )
    async with harness.machine() as machine:
        assert await rows_until(harness, "a", ann, 10**16) == 0
        assert await pending_on(harness, "c", "a") == []


async def test_later_erase_of_the_same_user_stays_pending(harness: ShardHarness) -> None:
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        harness.flaky["c"].down = True
        first, second = [(await machine.erase(ann)).erasure for _ in range(2)]
        for erasure, left in ((first, [second.epoch]), (second, [])):
            done = PendingErasure("c", ann, *erasure)
            await harness.databases["a"].write(lambda c: erase.forget_pending(c, [done]))  # noqa: B023
            assert [p.epoch for p in await pending_on(harness, "a", "c")] == left


# Moves


async def test_old_copy_from_before_an_erase_is_made_again_by_a_move(
    harness: ShardHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shard was away for the erase, and the bucket moves back to it."""
    monkeypatch.setattr(rebalance, "MAX_ATTEMPTS", 1)
    ann = await harness.user_of("a")
    async with harness.machine() as machine:
        before = await fill(machine, ann)
        await move(harness, ann, "b")
        await machine.ctime(ann)  # the node learns who holds the user
        harness.flaky["a"].down = True
        erasure = (await machine.erase(ann)).erasure
        after = await store(machine, create(ann, "chat"))
        await move(harness, ann, "a")
        harness.flaky["a"].down = False
        await until(lambda: machine.partial_problems() == [])
        assert await harness.holder(ann) == "a"
        assert await machine.erasure(ann) == erasure
        assert [item.msg_id for item in (await machine.state(ann)).items] == [after.msg_id]
        assert await rows_until(harness, "a", ann, erasure.epoch) == 0
        assert await machine.check_hashes([ann]) == []
        slot = Slot(create(ann, "mail"), epoch=0)
        await machine.store([slot])
        assert isinstance(slot.outcome, Rejected)
        assert isinstance(slot.outcome.error, Erased)
        assert (await machine.sync(ann, None, before.ctime)).epoch == erasure.epoch


class SteppedDatabase(FlakyDatabase):
    """A database whose caller does something before each of its transactions."""

    def __init__(self, database: Database, before_step: Callable[[], Awaitable[None]]) -> None:
        super().__init__(database)
        self._before_step = before_step

    async def write(self, work: Work[T]) -> T:
        await self._before_step()
        return await self.database.write(work)

    async def read(self, work: Work[T]) -> T:
        await self._before_step()
        return await self.database.read(work)


class SteppedMove:
    """A move of a user's bucket, in which the user is erased before a step, after which the mover
    may be killed."""

    def __init__(self, harness: ShardHarness, machine: ShardedStateMachine, uid: str) -> None:
        self._harness = harness
        self._machine = machine
        self._uid = uid
        self.erasing: asyncio.Task[Erasure] | None = None

    async def run(self, target: str, step: int, *, is_killed: bool) -> bool:
        """Run the move; return whether it has got as far as the step."""
        left = step

        async def before_step() -> None:
            nonlocal left
            left -= 1
            if left == -1:
                self.erasing = asyncio.create_task(self._erase())
                # While the bucket is closed, the erase waits, and the move goes on.
                await asyncio.wait({self.erasing}, timeout=0.1)
            elif left < -1 and is_killed:
                raise SimulatedCrash

        stepped = {n: SteppedDatabase(d, before_step) for n, d in self._harness.databases.items()}
        try:
            await Rebalancer(stepped).move([Move(bucket_of(self._uid), "", target)])
        except SimulatedCrash:
            assert is_killed
        return left < 0

    async def _erase(self) -> Erasure:
        return (await self._machine.erase(self._uid)).erasure


@pytest.mark.parametrize("is_killed", [False, True], ids=["goes_on", "is_killed"])
async def test_erase_at_any_step_of_a_move(harness: ShardHarness, is_killed: bool) -> None:
    ann = await harness.user_of("a")
    steps = 0
    async with harness.machine() as machine:
        for step in range(100):
            await fill(machine, ann)
            source = await harness.holder(ann)
            target = {"a": "b", "b": "c", "c": "a"}[source]
            stepped = SteppedMove(harness, machine, ann)
            if not await stepped.run(target, step, is_killed=is_killed):
                break
            steps += 1
            assert stepped.erasing is not None
            erasure = await stepped.erasing
            left = [await rows_until(harness, shard, ann, erasure.epoch) for shard in "abc"]
            assert left == [0, 0, 0], f"step {step}"
            assert await machine.erasure(ann) == erasure
            await move(harness, ann, target)
            assert await machine.erasure(ann) == erasure
            assert len(await machine.state(ann)) == 0
            left = [await rows_until(harness, shard, ann, erasure.epoch) for shard in "abc"]
            assert left == [0, 0, 0], f"step {step}, moved"
    findings, _ = await Rebalancer(harness.databases).verify()
    assert findings == []
    assert steps > 15
