"""Buckets that move after some of their history was forgotten, and old copies from before."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from gregor.core.buckets import Move, bucket_of
from gregor.core.history import DAY, Cutoff, Retention
from gregor.core.instant import SECOND
from gregor.core.message import InBandMessage, create, dismiss, put
from gregor.errors import Conflict, HistoryForgotten
from gregor.interfaces import Duplicate, Rejected, Slot, Stored, StoreOutcome
from gregor.shards.rebalance import Rebalancer
from gregor.shards.state_machine import ShardedStateMachine
from gregor.testing.clock import ManualClock
from tests.shards.harness import ShardHarness

START = 20_000 * DAY
RETENTION = Retention(contents=2 * DAY, ids=20 * DAY)


class Shards(NamedTuple):
    """Shards whose history is pruned. The clock begins at START."""

    harness: ShardHarness
    machine: ShardedStateMachine
    clock: ManualClock
    uid: str

    async def send(self, message: InBandMessage, author: str | None = None) -> StoreOutcome:
        self.clock.now += SECOND
        slot = Slot(message, author)
        await self.machine.store([slot])
        assert slot.outcome is not None
        return slot.outcome

    async def forget(self, contents: int = 3, ids: int = 0) -> None:
        """Wait for some days, and prune what was past before. Ids are kept if none is given."""
        self.clock.now += contents * DAY
        cutoff = Cutoff(self.clock.now - 2 * DAY, self.clock.now - ids * DAY if ids else 0)
        after: str | None = ""
        while after is not None:
            after = (await self.machine.prune(cutoff, after)).last

    @property
    def rebalancer(self) -> Rebalancer:
        return Rebalancer(self.harness.databases, clock=self.clock, retention=RETENTION)

    async def move(self, *shards: str) -> None:
        for shard in shards:
            await self.rebalancer.move([Move(bucket_of(self.uid), "", shard)])
            assert await self.harness.holder(self.uid) == shard

    async def execute(self, shard: str, text: str) -> list[tuple[object, ...]]:
        return await self.harness.databases[shard].write(lambda c: c.execute_sql(text))

    async def live(self) -> set[str]:
        return {item.msg_id for item in (await self.machine.state(self.uid)).items}


@pytest.fixture
async def shards(harness: ShardHarness) -> AsyncIterator[Shards]:
    clock = ManualClock(START)
    async with harness.machine(clock) as machine:
        yield Shards(harness, machine, clock, await harness.user_of("a"))


async def test_ids_of_forgotten_messages_move(shards: Shards) -> None:
    sent = create(shards.uid, "mail", "a body", msg_id="1")
    first = await shards.send(sent)
    await shards.send(dismiss(shards.uid, "1"))
    await shards.forget()
    await shards.move("b", "c")
    again = await shards.send(sent)
    assert isinstance(again, Duplicate)
    assert isinstance(first, Stored)
    assert (again.message.ctime, again.dead) == (first.message.ctime, True)
    other = await shards.send(create(shards.uid, "mail", "another body", msg_id="1"))
    assert isinstance(other, Rejected)
    assert isinstance(other.error, Conflict)


async def test_death_whose_dismissal_is_forgotten_moves_with_its_item(shards: Shards) -> None:
    """The item expires late, so it is not forgotten yet; it was dismissed before it arrived, and
    that dismissal is forgotten."""
    await shards.send(dismiss(shards.uid, "late"))
    await shards.forget()
    late = await shards.send(create(shards.uid, "mail", msg_id="late"))
    assert isinstance(late, Stored)
    assert late.dead
    await shards.move("b", "c")
    assert await shards.live() == set()
    assert list(await shards.machine.check_hashes([shards.uid])) == []


async def test_death_by_a_forgotten_replacement_moves_with_its_item(shards: Shards) -> None:
    """As if pruning was killed when it had taken the replacement and not yet the item."""
    await shards.send(put(shards.uid, "volume", 1, msg_id="one"))
    await shards.send(put(shards.uid, "volume", 2, msg_id="two"))
    await shards.send(dismiss(shards.uid, "two"))
    floor = shards.clock.now
    await shards.execute("a", f"DELETE FROM messages WHERE msg_id = 'two' AND uid = '{shards.uid}'")
    await shards.execute("a", f"UPDATE users SET floor = {floor} WHERE uid = '{shards.uid}'")
    await shards.move("b")
    assert await shards.live() == set()


async def test_dismissed_id_whose_dismissal_is_forgotten_moves(shards: Shards) -> None:
    await shards.send(dismiss(shards.uid, "arrives later"))
    await shards.forget()
    await shards.move("b", "c")
    late = await shards.send(create(shards.uid, "mail", msg_id="arrives later"))
    assert isinstance(late, Stored)
    assert late.dead
    assert await shards.live() == set()


async def test_floor_and_authors_move(shards: Shards) -> None:
    await shards.send(create(shards.uid, "mail", msg_id="1"))
    await shards.send(dismiss(shards.uid, "1"))
    await shards.forget()
    kept = await shards.send(create(shards.uid, "mail", msg_id="2"), author="service:shop")
    await shards.move("b")
    rows = await shards.execute("b", f"SELECT author FROM messages WHERE uid = '{shards.uid}'")
    assert rows == [("service:shop",)]
    assert isinstance(kept, Stored)
    floors = f"SELECT floor FROM users WHERE uid = '{shards.uid}'"
    assert await shards.execute("b", floors) == await shards.execute("a", floors) != [(0,)]
    early = await shards.send(create(shards.uid, "mail").stamp(START + 1, 0))
    assert isinstance(early, Rejected)
    assert isinstance(early.error, HistoryForgotten)


async def test_old_copy_from_before_pruning_is_made_again_by_a_move(shards: Shards) -> None:
    """What was forgotten on the holder does not come back with the bucket."""
    await shards.send(create(shards.uid, "mail", "a body", msg_id="1"))
    await shards.move("b")
    await shards.send(dismiss(shards.uid, "1"))
    await shards.send(create(shards.uid, "mail", msg_id="2"))
    await shards.forget()
    await shards.move("a")
    rows = await shards.execute("a", f"SELECT msg_id FROM messages WHERE uid = '{shards.uid}'")
    assert rows == [("2",)]
    assert await shards.live() == {"2"}
    assert isinstance(
        await shards.send(create(shards.uid, "mail", "a body", msg_id="1")), Duplicate
    )


async def test_floor_that_was_raised_since_moves_to_an_old_copy(shards: Shards) -> None:
    """The user has not written since, so the clocks are equal."""
    await shards.send(create(shards.uid, "mail", msg_id="1"))
    await shards.send(dismiss(shards.uid, "1"))
    await shards.move("b")
    await shards.forget()
    await shards.move("a")
    early = await shards.send(create(shards.uid, "mail").stamp(START + 1, 0))
    assert isinstance(early, Rejected)
    assert isinstance(early.error, HistoryForgotten)


async def test_bucket_with_more_ids_than_a_page_moves(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gregor.shards.bucket_contents.MAX_PAGE_ROWS", 2)
    for number in range(7):
        await shards.send(create(shards.uid, "mail", msg_id=f"{number}"))
        await shards.send(dismiss(shards.uid, f"{number}"))
        await shards.send(dismiss(shards.uid, f"late{number}"))
    await shards.forget()
    await shards.move("b", "c")
    query = (
        f"SELECT (SELECT count(*) FROM pruned WHERE uid = '{shards.uid}'),"
        f"(SELECT count(*) FROM dismissed_ids WHERE uid = '{shards.uid}')"
    )
    assert await shards.execute("c", query) == [(21, 7)]


# Verifying


async def with_old_copy(shards: Shards) -> None:
    """The bucket is on b, and there is an old copy on a, of which nothing was forgotten."""
    await shards.send(create(shards.uid, "mail", "a body", msg_id="1"))
    await shards.send(dismiss(shards.uid, "1"))
    await shards.send(create(shards.uid, "mail", msg_id="2"))
    await shards.move("b")


async def test_old_copy_equals_a_holder_that_was_pruned(shards: Shards) -> None:
    await with_old_copy(shards)
    await shards.forget()
    assert (await shards.execute("b", "SELECT count(*) FROM pruned"))[0] == (2,)
    assert await shards.rebalancer.verify() == ([], 1)


async def test_ids_that_the_holder_may_have_forgotten_are_not_missed(shards: Shards) -> None:
    await with_old_copy(shards)
    await shards.forget(contents=25, ids=20)
    assert (await shards.execute("b", "SELECT count(*) FROM pruned"))[0] == (0,)
    assert await shards.rebalancer.verify() == ([], 1)
    kept = Rebalancer(shards.harness.databases, clock=shards.clock, retention=Retention(2 * DAY, 0))
    findings, _ = await kept.verify()
    assert [finding.shard for finding in findings] == ["a"]


@pytest.mark.parametrize(
    "loss",
    [
        "DELETE FROM pruned WHERE msg_id = '1'",
        "DELETE FROM messages WHERE msg_id = '2'",
        "UPDATE pruned SET digest = 'AAAAAAAAAAAAAAAAAAAAAA' WHERE msg_id = '1'",
        "UPDATE users SET floor = 0",
        "UPDATE users SET mark = 0, ctime = 5",
    ],
)
async def test_real_difference_is_found(shards: Shards, loss: str) -> None:
    await with_old_copy(shards)
    await shards.forget()
    await shards.move("c")
    await shards.execute("c", loss)
    findings, _ = await shards.rebalancer.verify()
    assert "b" in {finding.shard for finding in findings}


async def test_old_copy_of_an_erased_user_is_no_finding_and_is_deleted(shards: Shards) -> None:
    await with_old_copy(shards)
    await shards.machine.ctime(shards.uid)
    shards.harness.flaky["a"].down = True
    assert (await shards.machine.erase(shards.uid)).pending == ("a",)
    assert await shards.rebalancer.verify(prune=True) == ([], 1)
    assert (await shards.execute("a", "SELECT count(*) FROM messages"))[0] == (0,)
    assert await shards.rebalancer.verify() == ([], 0)


async def test_old_copy_with_a_later_epoch_is_reported(shards: Shards) -> None:
    """The holder was restored from a backup of before the erase."""
    await with_old_copy(shards)
    await shards.execute("a", "UPDATE users SET epoch = ctime")
    findings, _ = await shards.rebalancer.verify()
    assert [finding.shard for finding in findings] == ["a"]


async def test_loads_count_what_is_forgotten(shards: Shards) -> None:
    await shards.send(create(shards.uid, "mail", msg_id="1"))
    await shards.send(dismiss(shards.uid, "1"))
    await shards.forget()
    await shards.move("b")
    holdings = await shards.rebalancer.holdings()
    held, left_over = holdings["b"].held, holdings["a"].left_over
    assert (held.users, held.messages, held.pruned, held.bytes) == (1, 0, 2, 0)
    assert left_over == held
    assert await shards.rebalancer.verify(prune=True) == ([], 1)
    assert (await shards.execute("a", "SELECT count(*) FROM pruned"))[0] == (0,)
