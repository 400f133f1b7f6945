"""Pruning a database: what goes and what stays, in small steps, under a lease."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from msgspec.structs import replace

from gregor.core.buckets import BUCKETS, bucket_of
from gregor.core.history import Cutoff
from gregor.core.instant import SECOND, TimeOrOffset
from gregor.core.message import (
    InBandMessage,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
)
from gregor.errors import ClockSkew, Conflict, HistoryForgotten, LeaseHeld
from gregor.interfaces import Duplicate, PruneStep, Rejected, Stored
from gregor.shards import shard_map
from gregor.stores.sql import statements
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.leases import Lease
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.prune import STEP_IDS, STEP_MESSAGES, prune
from gregor.stores.sql.state_machine import MAX_SKEW, SQLStateMachine
from gregor.stores.sql.statements import Placement, PrunedMessage
from gregor.stores.sql.store_url import database_at
from gregor.testing.clock import ManualClock
from tests.fleet.servers import PostgreSQL
from tests.steps import rows_read, sqlite_steps

T = TypeVar("T")

DAY = 86_400 * SECOND
START = 20_000 * DAY
NO_IDS = 0  # ids are kept for ever


class Pruned(NamedTuple):
    """A machine whose clock begins at START."""

    machine: SQLStateMachine
    database: Database
    clock: ManualClock

    async def consume(self, *messages: InBandMessage, day: float) -> list[object]:
        """The outcomes of these messages, which come on this day, a second after one another."""
        outcomes: list[object] = []
        for number, message in enumerate(messages):
            self.clock.now = START + int(day * DAY) + number * SECOND
            outcomes += await self.machine.consume_messages([message])
        return outcomes

    async def prune(self, floor: float, ids: float | None = None) -> PruneStep:
        """Prune whole, up to these days, on day 9 or later. The sum of all steps."""
        self.clock.now = max(self.clock.now, at(9))
        cutoff = Cutoff(at(floor), NO_IDS if ids is None else at(ids))
        done = PruneStep("")
        while done.last is not None:
            step = await self.machine.prune(cutoff, done.last)
            done = PruneStep(
                step.last,
                done.users + step.users,
                done.contents + step.contents,
                done.ids + step.ids,
            )
        return done

    async def execute(self, text: str) -> None:
        await self.database.write(lambda c: c.execute_sql(text))

    async def rows(self, columns: str, table: str, where: str = "true") -> list[tuple[object, ...]]:
        text = f"SELECT {columns} FROM {table} WHERE {where} ORDER BY {columns}"
        return await self.database.read(lambda c: c.execute_sql(text))

    async def msg_ids(self, table: str = "messages") -> list[object]:
        return [msg_id for (msg_id,) in await self.rows("msg_id", table)]

    async def has_right_hashes(self) -> bool:
        uids = [str(uid) for (uid,) in await self.rows("uid", "users")]
        return list(await self.machine.check_hashes(uids)) == []


def at(day: float) -> int:
    return START + int(day * DAY)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Pruned]:
    clock = ManualClock(START)
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        yield Pruned(machine, database, clock)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Pruned]:
    async with opened(url) as store:
        yield store


# What goes


class PruneCase(NamedTuple):
    """The messages of days 0 and 5, and the ids of those that stay with a floor at day 3, while it
    is day 9."""

    name: str
    day0: list[InBandMessage]
    day5: list[InBandMessage]
    stays: set[str]


LATER = TimeOrOffset(time=at(4))
EARLY = TimeOrOffset(time=at(1))
CASES = [
    PruneCase("a live item", [create("u", "a", msg_id="1")], [], {"1"}),
    PruneCase("an item that is to begin", [create("u", "a", msg_id="1", starts="20d")], [], {"1"}),
    PruneCase(
        "an item that was dismissed by id",
        [create("u", "a", msg_id="1"), dismiss("u", "1", msg_id="2")],
        [],
        set(),
    ),
    PruneCase(
        "an item that was dismissed after the floor",
        [create("u", "a", msg_id="1")],
        [dismiss("u", "1", msg_id="2")],
        {"1", "2"},
    ),
    PruneCase(
        "an item that has expired",
        [create("u", "a", msg_id="1", expires="1d")],
        [],
        set(),
    ),
    PruneCase(
        "an item that has expired after the floor",
        [create("u", "a", msg_id="1", expires="4d")],
        [],
        {"1"},
    ),
    PruneCase(
        "an item that was dismissed when it had expired",
        [create("u", "a", msg_id="1", expires="1d")],
        [dismiss("u", "1", msg_id="2")],
        {"2"},
    ),
    PruneCase(
        "an item that was replaced",
        [put("u", "k", 1, msg_id="1"), put("u", "k", 2, msg_id="2"), put("u", "k", 3, msg_id="3")],
        [],
        {"3"},
    ),
    PruneCase(
        "an item that was replaced after the floor",
        [put("u", "k", 1, msg_id="1")],
        [put("u", "k", 2, msg_id="2")],
        {"1", "2"},
    ),
    PruneCase("a dismissal of a range", [dismiss_category("u", "a", msg_id="1")], [], set()),
    PruneCase("a dismissal of a key", [dismiss_key("u", "k", msg_id="1")], [], set()),
    PruneCase(
        "dismissals after the floor",
        [],
        [dismiss_category("u", "a", msg_id="1"), dismiss_key("u", "k", msg_id="2")],
        {"1", "2"},
    ),
    PruneCase(
        "a creation that dismisses as well, while its item is live",
        [
            create("u", "a", msg_id="1"),
            InBandMessage(
                "u",
                "2",
                creation=create("u", "a").creation,
                dismissal=dismiss_category("u", "a").dismissal,
            ),
        ],
        [],
        {"2"},
    ),
    PruneCase(
        "an item that was dismissed before it came, after the floor",
        [dismiss("u", "1", msg_id="2")],
        [create("u", "a", msg_id="1")],
        {"1"},
    ),
    PruneCase(
        "an item of one device that was dismissed",
        [create("u", "a", msg_id="1", device_id="d"), dismiss("u", "1", msg_id="2")],
        [],
        set(),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_what_is_past_goes_and_the_rest_stays(store: Pruned, case: PruneCase) -> None:
    await store.consume(*case.day0, day=0)
    await store.consume(*case.day5, day=5)
    store.clock.now = at(9)
    before = await store.machine.sync("u", "d", 0)
    everything = {message.msg_id for message in case.day0 + case.day5}
    done = await store.prune(3)
    gone = everything - case.stays
    assert set(await store.msg_ids()) == case.stays
    assert set(await store.msg_ids("pruned")) == gone
    assert done == PruneStep(None, int(bool(gone)), len(gone), 0)
    assert await store.rows("floor", "users") == [(at(3) if gone else 0,)]
    for table in ("dismissed_ranges", "dismissed_keys"):
        of_what_is_gone = "ctime NOT IN (SELECT ctime FROM messages)"
        assert await store.rows("ctime", table, of_what_is_gone) == []
    assert await store.machine.sync("u", "d", 0) == before
    assert await store.has_right_hashes()
    assert await store.prune(3) == PruneStep(None)


async def test_floor_beyond_the_present_is_the_present(store: Pruned) -> None:
    await store.consume(create("u", "a", expires="9d", msg_id="1"), dismiss("u", "2"), day=0)
    store.clock.now = at(8)
    await store.machine.prune(Cutoff(at(100), NO_IDS))
    assert await store.msg_ids() == ["1"]
    assert await store.rows("floor", "users") == [(store.clock.now,)]
    assert await store.has_right_hashes()


async def test_item_that_has_expired_unnoticed_leaves_no_trace_in_the_hash(store: Pruned) -> None:
    """No message came after it: what is kept still counts it."""
    await store.consume(
        create("u", "a", msg_id="1", expires="1d"),
        create("u", "a", msg_id="2", expires="1d", device_id="d"),
        create("u", "a", msg_id="3"),
        day=0,
    )
    store.clock.now = at(9)
    before = await store.machine.sync("u", "d", 0)
    await store.prune(3)
    assert await store.msg_ids() == ["3"]
    assert await store.machine.sync("u", "d", 0) == before
    assert await store.has_right_hashes()


async def test_hash_that_is_not_computed_yet_stays_so(store: Pruned) -> None:
    await store.consume(create("u", "a", expires="1d"), create("u", "a"), day=0)
    await store.execute("UPDATE users SET hash = NULL")
    store.clock.now = at(9)
    before = await store.machine.sync("u", None, 0)
    await store.prune(3)
    assert await store.rows("hash", "users") == [(None,)]
    assert await store.machine.sync("u", None, 0) == before


# What is kept of it


async def test_message_that_is_sent_again_is_a_duplicate_or_a_conflict(store: Pruned) -> None:
    first, second = create("u", "a", 1, msg_id="1"), dismiss("u", "1", msg_id="2")
    stored = await store.consume(first, second, day=0)
    await store.prune(3)
    again = await store.consume(
        first, second, create("u", "a", 2, msg_id="1"), create("u", "a", 1, msg_id="2"), day=9
    )
    for before, outcome in zip(stored, again[:2], strict=True):
        assert isinstance(before, Stored)
        assert isinstance(outcome, Duplicate)
        assert outcome.message.ctime == before.message.ctime
    for outcome in again[2:]:
        assert isinstance(outcome, Rejected)
        assert isinstance(outcome.error, Conflict)
    assert await store.msg_ids() == []


async def test_ids_are_forgotten_when_they_are_old_enough(store: Pruned) -> None:
    await store.consume(create("u", "a", msg_id="1"), dismiss("u", "1", msg_id="2"), day=0)
    await store.consume(dismiss("u", "coming", msg_id="3"), day=1)
    await store.consume(dismiss("u", "later", msg_id="4"), day=5)
    store.clock.now = at(500)
    assert await store.prune(6, ids=0.5) == PruneStep(None, 1, 4, 2)
    assert await store.msg_ids("pruned") == ["3", "4"]
    assert await store.msg_ids("dismissed_ids") == ["coming", "later"]
    assert await store.prune(6, ids=3) == PruneStep(None, 0, 0, 2)
    assert await store.msg_ids("pruned") == ["4"]
    assert await store.msg_ids("dismissed_ids") == ["later"]
    assert await store.prune(6, ids=6) == PruneStep(None, 0, 0, 2)
    for table in ("messages", "pruned", "dismissed_ids", "dismissed_ranges", "dismissed_keys"):
        assert await store.rows("uid", table) == []
    (outcome,) = await store.consume(create("u", "a", msg_id="1"), day=501)
    assert isinstance(outcome, Stored)


async def test_stamped_message_is_refused_up_to_the_floor(store: Pruned) -> None:
    await store.consume(dismiss("u", "1"), day=0)
    await store.prune(3)
    store.clock.now = at(9)
    (before, after) = await store.machine.consume_messages(
        [create("u", "a").stamp(at(3), 0), create("u", "a").stamp(at(3) + 1, 0)]
    )
    assert isinstance(before, Rejected)
    assert isinstance(before.error, HistoryForgotten)
    assert isinstance(after, Stored)


async def test_row_that_a_copy_has_brought_before_is_no_obstacle(store: Pruned) -> None:
    (stored,) = await store.consume(dismiss("u", "1", msg_id="2"), day=0)
    assert isinstance(stored, Stored)
    digest = stored.message.contents_digest()
    row = PrunedMessage("u", "2", stored.message.ctime, digest)
    await store.database.write(lambda c: c.execute_rows(statements.ADD_PRUNED, [row]))
    assert await store.prune(3) == PruneStep(None, 1, 1, 0)
    assert await store.rows("msg_id, digest", "pruned") == [("2", digest)]


# Steps


async def test_steps_are_small_and_together_whole(store: Pruned) -> None:
    many = 2 * STEP_MESSAGES + 5
    await store.machine.consume_messages([dismiss("b", str(n)) for n in range(many)])
    await store.machine.consume_messages([dismiss(uid, "1") for uid in ("a", "c")])
    cutoff = Cutoff(at(3), NO_IDS)
    store.clock.now = at(9)
    steps = [await store.machine.prune(cutoff)]
    while steps[-1].last is not None:
        steps.append(await store.machine.prune(cutoff, steps[-1].last))
    assert max(step.contents for step in steps) == STEP_MESSAGES
    assert sum(step.contents for step in steps) == many + 2
    assert sum(step.users for step in steps) == 3
    assert await store.msg_ids() == []


async def test_ids_are_forgotten_in_small_steps(store: Pruned) -> None:
    rows = [PrunedMessage(uid, f"{n:05}", START, "") for uid in "ab" for n in range(STEP_IDS + 3)]
    rows.append(PrunedMessage("a", "young", at(2), ""))
    await store.database.write(lambda c: c.execute_rows(statements.ADD_PRUNED, rows))
    store.clock.now = at(9)
    steps = [await store.machine.prune(Cutoff(at(3), at(1)))]
    while steps[-1].last is not None:
        steps.append(await store.machine.prune(Cutoff(at(3), at(1)), steps[-1].last))
    assert max(step.ids for step in steps) == STEP_IDS
    assert await store.msg_ids("pruned") == ["young"]


async def test_walk_that_was_interrupted_is_made_whole_by_the_next(store: Pruned) -> None:
    many = [dismiss("u", str(n)) for n in range(2 * STEP_MESSAGES)]
    await store.machine.consume_messages([*many, create("u", "a", msg_id="live", expires="1d")])
    store.clock.now = at(9)
    await store.machine.prune(Cutoff(at(3), NO_IDS))
    assert 0 < len(await store.msg_ids()) < len(many)
    assert await store.has_right_hashes()
    await store.prune(3)
    assert await store.msg_ids() == []
    assert await store.has_right_hashes()


# The lease


async def other_machine(store: Pruned) -> SQLStateMachine:
    """Another node on the same database."""
    machine = SQLStateMachine(store.database, store.clock)
    await machine.read_schema()
    return machine


async def test_two_nodes_do_not_prune_at_the_same_time(store: Pruned) -> None:
    await store.consume(dismiss("u", "1"), day=0)
    other, cutoff = await other_machine(store), Cutoff(at(3), NO_IDS)
    first = await other.prune(cutoff)
    assert first.last is not None
    with pytest.raises(LeaseHeld, match="try again in 15 s"):
        await store.machine.prune(cutoff)
    while first.last is not None:
        first = await other.prune(cutoff, first.last)
    assert (await store.machine.prune(cutoff)).last is not None  # the walk had ended


async def test_node_that_was_killed_loses_its_lease_and_does_nothing_when_it_goes_on(
    store: Pruned,
) -> None:
    """It may only have been frozen."""
    await store.consume(dismiss("u", "1"), day=0)
    frozen, cutoff = await other_machine(store), Cutoff(at(3), NO_IDS)
    step = await frozen.prune(cutoff)
    await store.consume(dismiss("u", "2"), day=1)
    await store.execute("UPDATE leases SET until = until - 15000000")
    mine = await store.machine.prune(cutoff)
    assert (mine.contents, mine.last) != (0, None)
    assert step.last is not None
    with pytest.raises(LeaseHeld):
        await frozen.prune(cutoff, step.last)


async def test_each_step_renews_the_lease(store: Pruned) -> None:
    cutoff = Cutoff(at(3), NO_IDS)
    step = await store.machine.prune(cutoff)
    await store.execute("UPDATE leases SET until = 5")
    assert step.last is not None
    await store.machine.prune(cutoff, step.last)
    ((until,),) = await store.rows("until", "leases")
    assert until != 5


async def test_lease_of_one_name_does_not_keep_another(store: Pruned) -> None:
    for lease in (Lease("a", "x"), Lease("b", "y"), Lease("a", "x")):
        await store.database.write(lease.take)
    with pytest.raises(LeaseHeld):
        await store.database.write(Lease("a", "y").take)
    await store.database.write(Lease("a", "y").give_up)
    with pytest.raises(LeaseHeld):
        await store.database.write(Lease("a", "y").take)
    await store.database.write(Lease("a", "x").give_up)
    await store.database.write(Lease("a", "y").take)


# Who is not pruned


async def test_clock_that_is_wrong_prunes_nothing(store: Pruned) -> None:
    await store.consume(dismiss("u", "1"), day=0)
    store.machine.skew = -MAX_SKEW - 1
    with pytest.raises(ClockSkew):
        await store.prune(3)
    assert len(await store.msg_ids()) == 1


async def test_user_whose_bucket_is_elsewhere_or_moves_is_left_out(store: Pruned) -> None:
    await store.consume(dismiss("ann", "x", msg_id="1"), dismiss("bob", "x", msg_id="2"), day=0)
    here = [Placement(bucket, "a", 1) for bucket in range(BUCKETS)]
    await store.database.write(lambda c: shard_map.make_shard(c, "a", here))
    for change in ("shard = 'b'", f"shard = 'a', closed_until = {2**62}"):
        text = f"UPDATE buckets SET {change} WHERE bucket = {bucket_of('ann')}"
        await store.execute(text)
        await store.prune(3, ids=2)
        assert await store.msg_ids() == ["1"]
        assert await store.msg_ids("dismissed_ids") == ["x"]
    await store.execute("UPDATE buckets SET closed_until = 0")
    await store.prune(3, ids=2)
    assert await store.msg_ids() == []


# Cost

LIVE = 3_000


def first_step(connection: DatabaseConnection) -> PruneStep:
    return prune(connection, Lease("prune", "me"), Cutoff(at(3), at(1)), "", at(9))


async def consume_many(machine: SQLStateMachine, message: InBandMessage, number: int) -> None:
    """Store the message so many times, each with an id of its own."""
    for start in range(0, number, 100):
        ids = range(start, min(start + 100, number))
        await machine.consume_messages(
            [replace(message, msg_id=f"{message.msg_id}{n}") for n in ids]
        )


async def with_nothing_to_prune(
    url: str, messages: int, work: Callable[[DatabaseConnection], T]
) -> T:
    """The result of the work on a user with so many messages of each kind that stays."""
    async with opened(url) as store:
        machine, clock = store.machine, store.clock
        for day, kind in (
            (0, create("u", "a")),
            (5, put("u", "k")),
            (5, dismiss_key("u", "z")),
            (5, create("u", "b", expires="1d")),
        ):
            clock.now = at(day)
            await consume_many(machine, kind, messages)
        clock.now = at(9)
        return await store.database.write(work)


async def test_user_with_nothing_to_prune_costs_the_same_whatever_is_stored() -> None:
    few, many = [
        await with_nothing_to_prune(
            "sqlite://", messages, lambda c: sqlite_steps(c, lambda: first_step(c))
        )
        for messages in (3, LIVE)
    ]
    assert 0 < many <= few + 1


async def test_user_with_nothing_to_prune_costs_the_same_whatever_is_stored_on_postgresql(
    postgresql_server: PostgreSQL,
) -> None:
    def rows(connection: DatabaseConnection) -> int:
        connection.execute_sql("ANALYZE")
        return rows_read(connection, partial(first_step, connection))

    few, many = [
        await with_nothing_to_prune(await postgresql_server.create_database(), messages, rows)
        for messages in (3, LIVE)
    ]
    assert many <= few + 10


async def test_step_costs_the_same_however_much_there_is_to_prune() -> None:
    costs: list[int] = []
    for messages in (2 * STEP_MESSAGES, LIVE):
        async with opened("sqlite://") as store:
            await consume_many(store.machine, put("u", "k"), messages)
            await consume_many(store.machine, dismiss_key("u", "z"), messages)
            cost = await store.database.write(lambda c: sqlite_steps(c, lambda: first_step(c)))
            costs.append(cost)
    few, many = costs
    assert 0 < many <= 1.1 * few


# Space


async def test_file_shrinks_by_what_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "gregor.db"
    async with opened(f"sqlite:///{path}") as store:
        await store.database.scrub()
        empty = path.stat().st_size
        for _ in range(3):
            await store.machine.consume_messages([put("u", "k", "x" * 9_000) for _ in range(100)])
        assert path.stat().st_size + path.with_name("gregor.db-wal").stat().st_size > 3_000_000
        await store.prune(3)
        assert path.stat().st_size < empty + 150_000
