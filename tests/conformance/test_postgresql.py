"""Several state machines of record over one database: one order of messages for all of them."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Self, TypeVar

import pytest

from gregor.clock import now
from gregor.core.buckets import bucket_of
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category
from gregor.errors import ClockSkew, StorageUnavailable
from gregor.interfaces import Duplicate, Stored
from gregor.stores.sql import statements
from gregor.stores.sql.database import CommitUnknown, Database, DatabaseConnection, PoolUse, Work
from gregor.stores.sql.state_machine import MAX_SKEW, SQLStateMachine
from gregor.stores.sql.statements import UserKey, UserRow
from gregor.stores.sql.store_url import database_at
from tests.timeouts import TIMEOUT_SECONDS

T = TypeVar("T")


def ahead(seconds: float) -> Callable[[], Time]:
    """A clock that is ahead of this machine's."""
    return lambda: now() + round(seconds * SECOND)


@pytest.fixture
def url(migrated_url: str) -> str:
    return migrated_url


class WrappedDatabase:
    """A Database over another one; subclasses interfere with its writes."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def __aenter__(self) -> Self:
        await self.database.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self.database.__aexit__(*exc_info)

    async def write(self, work: Work[T]) -> T:
        return await self.database.write(work)

    async def read(self, work: Work[T]) -> T:
        return await self.database.read(work)

    @property
    def history(self) -> Hashable:
        return self.database.history

    async def check_role(self) -> None:
        await self.database.check_role()

    async def scrub(self) -> None:
        await self.database.scrub()

    def pools(self) -> Mapping[str, PoolUse]:
        return self.database.pools()


@asynccontextmanager
async def opened(
    *databases: Database, clock: Callable[[], Time] = now
) -> AsyncIterator[list[SQLStateMachine]]:
    """A state machine on each of the databases."""
    async with AsyncExitStack() as stack:
        for database in databases:
            await stack.enter_async_context(database)
        machines = [SQLStateMachine(database, clock) for database in databases]
        yield [await stack.enter_async_context(machine) for machine in machines]


# The order of commits

WRITERS, MESSAGES, USERS = 16, 40, ("ann", "bob")


class SlowCommitDatabase(WrappedDatabase):
    """Its transactions stay open for a random time before they are committed."""

    def __init__(self, database: Database, random: Random) -> None:
        super().__init__(database)
        self._random = random

    async def write(self, work: Work[T]) -> T:
        seconds = self._random.choice((0, 0, 0.002, 0.02))

        def work_slowly(connection: DatabaseConnection) -> T:
            result = work(connection)
            connection.execute_sql(f"SELECT pg_sleep({seconds})")
            return result

        return await self.database.write(work_slowly)


async def test_reader_that_follows_the_cursor_misses_no_message(url: str) -> None:
    """Writers on nodes with a clock skew of 5 s, and transactions held open for random times. If
    the user's clock were not locked, one message in six would be missed."""
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    rng = Random(seed)
    databases = [
        SlowCommitDatabase(database_at(url, connections=1), Random(rng.random()))
        for _ in range(WRITERS)
    ]
    async with (
        opened(*databases[::2]) as on_time,
        opened(*databases[1::2], clock=ahead(5)) as skewed,
    ):
        all_written = asyncio.Event()
        readers = [
            asyncio.create_task(follow(machine, uid, all_written))
            for machine, uid in zip((on_time[0], skewed[0]), USERS, strict=True)
        ]
        written = await asyncio.gather(*(write(machine, rng) for machine in on_time + skewed))
        all_written.set()
        read = [message.msg_id for reader in readers for message in await reader]
    assert sorted(read) == sorted(id_ for ids in written for id_ in ids)


async def write(machine: SQLStateMachine, rng: Random) -> list[str]:
    """Store messages, one after the other, and return their ids."""
    messages = [create(rng.choice(USERS), "a") for _ in range(MESSAGES)]
    for message in messages:
        await machine.consume_message(message)
    return [message.msg_id for message in messages]


async def follow(
    machine: SQLStateMachine, uid: str, all_written: asyncio.Event
) -> list[InBandMessage]:
    """Poll for the messages after the last one that was read, and return all of them."""
    read: list[InBandMessage] = []
    while True:
        is_last_poll = all_written.is_set()
        since = TimeOrOffset(time=read[-1].ctime + 1 if read else 0)
        read.extend(await machine.in_band_messages_since(uid, None, since))
        if is_last_poll:
            return read


class HeldTransaction(WrappedDatabase):
    """Each transaction waits before its commit, with its locks, until another transaction waits for
    a lock."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.locks_held = asyncio.Event()

    async def write(self, work: Work[T]) -> T:
        def hold(connection: DatabaseConnection) -> T:
            result = work(connection)
            self.locks_held.set()
            connection.execute_sql(WAIT_FOR_LOCK_WAITER)
            return result

        return await self.database.write(hold)


WAIT_FOR_LOCK_WAITER = """DO $$ BEGIN
    WHILE NOT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted) LOOP PERFORM pg_sleep(0.005);
    END LOOP;
END $$"""


@pytest.mark.parametrize(
    ("dismissal", "replayed_at"),
    [(dismiss("ann", "item"), 0), (dismiss_category("ann", "a"), 5)],
    ids=["by_id", "by_range"],
)
@pytest.mark.parametrize("user_exists", [True, False], ids=["existing_user", "new_user"])
async def test_transaction_that_waited_for_user_lock_sees_messages_stored_meanwhile(
    url: str, dismissal: InBandMessage, replayed_at: Time, user_exists: bool
) -> None:
    """The locking statement returns the locked row as it is after the wait; all other rows must be
    read again."""
    held = HeldTransaction(database_at(url))
    async with opened(held, database_at(url)) as (first, second):
        if user_exists:
            await second.consume_message(create("ann", "b", msg_id="first"))
        dismissing = asyncio.create_task(first.consume_message(dismissal))
        await held.locks_held.wait()
        created = create("ann", "a", msg_id="item").stamp(replayed_at, 0)
        item = await second.consume_message(created)
        dismissed = await dismissing
        assert "item" not in {shown.msg_id for shown in (await second.state("ann")).items}
        assert isinstance(item, InBandMessage)
        assert isinstance(dismissed, InBandMessage)
        last, is_behind = max(item.ctime, dismissed.ctime), item.ctime < dismissed.ctime
        assert await second.ctimes(["ann"]) == {"ann": last + is_behind}


async def test_id_look_up_waits_for_transaction_that_stores_the_id(url: str) -> None:
    message = create("ann", "a", msg_id="same")
    held = HeldTransaction(database_at(url))
    async with opened(held, database_at(url)) as (first, second):
        storing = asyncio.create_task(first.consume_message(message))
        await held.locks_held.wait()
        (outcome,) = await second.consume_messages([message.stamp(5, 0)])
        assert isinstance(outcome, Duplicate)
        assert outcome.message == await storing


async def test_message_sent_to_two_nodes_concurrently_is_stored_once(url: str) -> None:
    message = create("ann", "a", msg_id="same")
    async with opened(database_at(url), database_at(url)) as machines:
        for _ in range(10):
            results = await asyncio.gather(*(m.consume_messages([message]) for m in machines * 5))
        ctimes = {outcome.message.ctime for (outcome,) in results if isinstance(outcome, Duplicate)}
        assert len(ctimes) == 1
        assert len(await machines[0].in_band_messages_since("ann", None, TimeOrOffset(time=0))) == 1


@pytest.mark.parametrize("are_known", [False, True], ids=["inserted", "locked"])
async def test_users_are_taken_in_the_order_of_their_ids(url: str, are_known: bool) -> None:
    """While a node waits for one user, it holds none that comes later: another node that has the
    one takes them without a deadlock."""
    attempts: list[str] = []
    middle_is_taken = asyncio.Event()

    def take(connection: DatabaseConnection, *uids: str) -> None:
        rows = [UserRow(uid, bucket_of(uid)) for uid in uids]
        connection.execute_rows(statements.INSERT_USERS, rows)
        connection.execute_rows(statements.LOCK_USERS, [UserKey(uid) for uid in uids])

    def take_middle_and_then_last(connection: DatabaseConnection) -> None:
        attempts.append("middle")
        take(connection, "m")
        middle_is_taken.set()
        while not connection.execute_sql(
            "SELECT 1 FROM pg_locks WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid))"
        ):
            pass
        take(connection, "z")

    def take_all(connection: DatabaseConnection) -> None:
        attempts.append("all")
        take(connection, "z", "m", "a")

    async with database_at(url) as database, database_at(url) as another:
        if are_known:
            await database.write(lambda c: take(c, "a", "m", "z"))
        async with asyncio.timeout(TIMEOUT_SECONDS), asyncio.TaskGroup() as tasks:
            tasks.create_task(database.write(take_middle_and_then_last))
            await middle_is_taken.wait()
            tasks.create_task(another.write(take_all))
    assert attempts == ["middle", "all"]


# Unknown commits


class UnknownCommitDatabase(WrappedDatabase):
    """The first transactions have these fates: `committed` or `rolled_back`, both without an
    answer to the commit, or `unavailable`. All later ones are answered."""

    def __init__(self, database: Database, fates: Sequence[str]) -> None:
        super().__init__(database)
        self._fates = [*fates, "answered"]

    async def write(self, work: Work[T]) -> T:
        fate = self._fates[0]
        if fate == "unavailable":
            del self._fates[0]
            raise StorageUnavailable("the store is down")
        is_rolled_back = fate == "rolled_back"
        result = await (self._roll_back(work) if is_rolled_back else self.database.write(work))
        if fate == "answered":
            return result
        del self._fates[0]
        raise CommitUnknown("no answer", result)

    async def _roll_back(self, work: Work[T]) -> T:
        results: list[T] = []

        def work_and_fail(connection: DatabaseConnection) -> None:
            results.append(work(connection))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await self.database.write(work_and_fail)
        return results[0]


@pytest.mark.parametrize(
    "fates",
    [
        ["committed"],
        ["rolled_back"],
        ["committed", "unavailable", "unavailable"],
        ["rolled_back", "unavailable", "committed"],
        ["rolled_back", "rolled_back", "committed"],
    ],
    ids="-".join,
)
async def test_unknown_commit_is_resolved_and_reported_as_stored(
    url: str, fates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The senders get Stored, and the message is published as a newly stored one."""
    monkeypatch.setattr("gregor.stores.sql.state_machine.RESOLVE_INTERVAL_SECONDS", 0.01)
    earlier, new = create("ann", "a", msg_id="earlier"), create("ann", "a", msg_id="new")
    async with opened(database_at(url), UnknownCommitDatabase(database_at(url), fates)) as machines:
        reliable, unreliable = machines
        await reliable.consume_message(earlier)
        outcomes = await unreliable.consume_messages([new, earlier, new])
        assert [type(outcome) for outcome in outcomes] == [Stored, Duplicate, Duplicate]
        log = await reliable.in_band_messages_since("ann", None, TimeOrOffset(time=0))
        assert [message.msg_id for message in log] == ["earlier", "new"]
        assert outcomes[0].message == log[1]


async def test_unknown_commit_raises_storage_unavailable_if_store_stays_down(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gregor.stores.sql.state_machine.RESOLVE_INTERVAL_SECONDS", 0.01)
    fates = ["committed"] + ["unavailable"] * 10
    async with opened(UnknownCommitDatabase(database_at(url), fates)) as (machine,):
        message = create("ann", "a")
        with pytest.raises(StorageUnavailable):
            await machine.consume_message(message)
        (outcome,) = await machine.consume_messages([message])
        assert isinstance(outcome, Duplicate)


# Clocks


class SettableClock:
    """A clock that is ahead by a settable number of seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> Time:
        return ahead(self.seconds)()


@pytest.mark.parametrize("seconds", [-6, 6])
async def test_node_with_clock_skew_rejects_writes_until_its_clock_is_set(
    url: str, seconds: float
) -> None:
    clock = SettableClock(seconds)
    async with (
        database_at(url) as database,
        SQLStateMachine(database, clock, clock_check_seconds=0.01) as machine,
    ):
        assert MAX_SKEW < abs(machine.skew) <= 6 * SECOND
        with pytest.raises(ClockSkew, match="synchronise both with NTP"):
            await machine.consume_message(create("ann", "a"))
        (problem,) = await machine.problems()
        assert re.search(r" (5\.\d|6\.0) s ", problem)  # less by as much as the query took
        assert await machine.ctimes(["ann"]) == {"ann": 0}  # reads still work
        clock.seconds = 0
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while machine.skew:  # noqa: ASYNC110 (the next check is soon, and sets no event)
                await asyncio.sleep(0.01)
        await machine.consume_message(create("ann", "a"))
        assert await machine.problems() == []


async def test_small_clock_skew_is_no_problem_and_writes_work(url: str) -> None:
    async with (
        database_at(url) as database,
        SQLStateMachine(database, ahead(4), clock_check_seconds=60) as machine,
    ):
        await machine.consume_message(create("ann", "a"))
        assert await machine.problems() == []
