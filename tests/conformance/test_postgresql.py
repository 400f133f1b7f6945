"""What several state machines of record over one database promise together: one order for all."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from random import Random
from typing import Any, Self, TypeVar

import pytest
from sqlalchemy import Connection

from gregor.clock import now
from gregor.core.buckets import bucket_of
from gregor.core.instant import MAX_TIME, SECOND, Time, TimeOrOffset
from gregor.core.message import InBandMessage, create, dismiss, dismiss_category
from gregor.errors import ClockSkew, StorageUnavailable
from gregor.interfaces import Duplicate, Stored
from gregor.state_machines.sql import MOST_SKEW, SQLStateMachine
from gregor.storage import statements
from gregor.storage.database import Database, OutcomeUnknown, Work
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate

T = TypeVar("T")


def ahead(seconds: float) -> Callable[[], Time]:
    """A clock that is ahead of this machine's."""
    return lambda: now() + round(seconds * SECOND)


@pytest.fixture
async def url(postgresql_url: str) -> str:
    async with database_at(postgresql_url, migrate):
        return postgresql_url


class Around:
    """A Database in whose writes somebody has a hand."""

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


class Dawdling(Around):
    """Its transactions stay open for a random while before they are committed."""

    def __init__(self, database: Database, random: Random) -> None:
        super().__init__(database)
        self._random = random

    async def write(self, work: Work[T]) -> T:
        seconds = self._random.choice((0, 0, 0.002, 0.02))

        def dawdle(connection: Connection) -> T:
            result = work(connection)
            connection.exec_driver_sql(f"SELECT pg_sleep({seconds})")
            return result

        return await self.database.write(dawdle)


async def test_who_follows_the_cursor_misses_nothing(url: str) -> None:
    """Writers on nodes whose clocks are 5 s apart, transactions held open at random. By a clock
    that nobody locks, one message in six would be missed."""
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    random = Random(seed)
    databases = [
        Dawdling(database_at(url, connections=1), Random(random.random())) for _ in range(WRITERS)
    ]
    async with (
        opened(*databases[::2]) as some,
        opened(*databases[1::2], clock=ahead(5)) as others,
    ):
        all_written = asyncio.Event()
        followers = [
            asyncio.create_task(follow(machine, uid, all_written))
            for machine, uid in zip((some[0], others[0]), USERS, strict=True)
        ]
        sent = await asyncio.gather(*(write(machine, random) for machine in some + others))
        all_written.set()
        heard = [message.msg_id for follower in followers for message in await follower]
    assert sorted(heard) == sorted(id_ for ids in sent for id_ in ids)


async def write(machine: SQLStateMachine, random: Random) -> list[str]:
    """Store messages, one after the other; their ids."""
    messages = [create(random.choice(USERS), "a") for _ in range(MESSAGES)]
    for message in messages:
        await machine.consume_message(message)
    return [message.msg_id for message in messages]


async def follow(
    machine: SQLStateMachine, uid: str, all_written: asyncio.Event
) -> list[InBandMessage]:
    """What is heard by asking again and again for what came after the last that was heard."""
    heard: list[InBandMessage] = []
    while True:
        last_time = all_written.is_set()
        since = TimeOrOffset(time=heard[-1].ctime + 1 if heard else 0)
        heard.extend(await machine.in_band_messages_since(uid, None, since))
        if last_time:
            return heard


class Interrupted(Around):
    """It stops before its commits, the locks in its hand, until somebody waits for one of them."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.holding = asyncio.Event()

    async def write(self, work: Work[T]) -> T:
        def hold(connection: Connection) -> T:
            result = work(connection)
            self.holding.set()
            connection.exec_driver_sql(UNTIL_SOMEBODY_WAITS)
            return result

        return await self.database.write(hold)


UNTIL_SOMEBODY_WAITS = """DO $$ BEGIN
    WHILE NOT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted) LOOP PERFORM pg_sleep(0.005);
    END LOOP;
END $$"""


@pytest.mark.parametrize(
    "dismissal",
    [dismiss("ann", "item"), dismiss_category("ann", "a", end_time=MAX_TIME)],
    ids=["by id", "by range"],
)
@pytest.mark.parametrize("known", [True, False], ids=["of a known user", "of a new user"])
async def test_who_waited_for_a_user_sees_what_was_stored_meanwhile(
    url: str, dismissal: InBandMessage, known: bool
) -> None:
    """The row that is locked shows itself as it is then; all else has to be asked for anew."""
    interrupted = Interrupted(database_at(url))
    async with opened(interrupted, database_at(url)) as (one, other):
        if known:
            await other.consume_message(create("ann", "b", msg_id="first"))
        dismissing = asyncio.create_task(one.consume_message(dismissal))
        await interrupted.holding.wait()
        item = await other.consume_message(create("ann", "a", msg_id="item"))
        await dismissing
        assert "item" not in {shown.msg_id for shown in (await other.state("ann")).items}
        assert isinstance(item, InBandMessage)
        assert await other.ctimes(["ann"]) == {"ann": item.ctime}


async def test_who_looks_for_an_id_waits_for_who_may_be_storing_it(url: str) -> None:
    message = create("ann", "a", msg_id="same")
    interrupted = Interrupted(database_at(url))
    async with opened(interrupted, database_at(url)) as (one, other):
        storing = asyncio.create_task(one.consume_message(message))
        await interrupted.holding.wait()
        (outcome,) = await other.consume_messages([message.stamp(5, 0)])
        assert isinstance(outcome, Duplicate)
        assert outcome.message == await storing


async def test_of_one_message_sent_to_two_nodes_at_once_one_is_stored(url: str) -> None:
    message = create("ann", "a", msg_id="same")
    async with opened(database_at(url), database_at(url)) as machines:
        for _ in range(10):
            sent = await asyncio.gather(*(m.consume_messages([message]) for m in machines * 5))
        ctimes = {outcome.message.ctime for (outcome,) in sent if isinstance(outcome, Duplicate)}
        assert len(ctimes) == 1
        assert len(await machines[0].in_band_messages_since("ann", None, TimeOrOffset(time=0))) == 1


async def test_nodes_that_meet_the_same_new_users_do_not_lock_each_other_out(url: str) -> None:
    uids = [f"user{number}" for number in range(2_000)]
    begun: list[int] = []

    async def meet(database: Database, number: int) -> None:
        shuffled = [(uid, bucket_of(uid)) for uid in Random(number).sample(uids, len(uids))]

        def introduce(connection: Connection) -> None:
            begun.append(number)  # again, if this was a deadlock
            statements.ask(connection, statements.introduce, shuffled)
            statements.ask(connection, statements.lock, shuffled)

        await database.write(introduce)

    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(database_at(url)) for _ in range(4)]
        await asyncio.gather(*(meet(database, n) for n, database in enumerate(databases)))
    assert sorted(begun) == [0, 1, 2, 3]


# Commits without an answer


class Forgetful(Around):
    """It says nothing of its first commits, whether it has made them or not; or is away."""

    def __init__(self, database: Database, fates: Sequence[str]) -> None:
        super().__init__(database)
        self._fates = [*fates, "answered"]

    async def write(self, work: Work[T]) -> T:
        fate = self._fates[0]
        if fate == "away":
            del self._fates[0]
            raise StorageUnavailable("nobody is there")
        result = await (self._undo(work) if fate == "undone" else self.database.write(work))
        if fate == "answered":
            return result
        del self._fates[0]
        raise OutcomeUnknown("no answer", result)

    async def _undo(self, work: Work[T]) -> T:
        results: list[T] = []

        def do_in_vain(connection: Connection) -> None:
            results.append(work(connection))
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await self.database.write(do_in_vain)
        return results[0]


@pytest.mark.parametrize(
    "fates",
    [
        ["committed"],
        ["undone"],
        ["committed", "away", "away"],
        ["undone", "away", "committed"],
        ["undone", "undone", "committed"],
    ],
    ids="-".join,
)
async def test_a_commit_without_an_answer_is_looked_for(
    url: str, fates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its senders hear that it is stored, and it is published as what is stored now."""
    monkeypatch.setattr("gregor.state_machines.sql.LOOK_SECONDS", 0.01)
    earlier, new = create("ann", "a", msg_id="earlier"), create("ann", "a", msg_id="new")
    async with opened(database_at(url), Forgetful(database_at(url), fates)) as (sure, unsure):
        await sure.consume_message(earlier)
        outcomes = await unsure.consume_messages([new, earlier, new])
        assert [type(outcome) for outcome in outcomes] == [Stored, Duplicate, Duplicate]
        log = await sure.in_band_messages_since("ann", None, TimeOrOffset(time=0))
        assert [message.msg_id for message in log] == ["earlier", "new"]
        assert outcomes[0].message == log[1]


async def test_who_waits_for_a_store_that_stays_away_is_told(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gregor.state_machines.sql.LOOK_SECONDS", 0.01)
    fates = ["committed"] + ["away"] * 10
    async with opened(Forgetful(database_at(url), fates)) as (machine,):
        message = create("ann", "a")
        with pytest.raises(StorageUnavailable):
            await machine.consume_message(message)
        (outcome,) = await machine.consume_messages([message])
        assert isinstance(outcome, Duplicate)


# Clocks


class Settable:
    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self) -> Time:
        return ahead(self.seconds)()


@pytest.mark.parametrize("seconds", [-6, 6])
async def test_a_node_with_a_wrong_clock_refuses_to_write_until_it_is_set(
    url: str, seconds: float
) -> None:
    clock = Settable(seconds)
    async with (
        database_at(url) as database,
        SQLStateMachine(database, clock, compare_seconds=0.01) as machine,
    ):
        assert MOST_SKEW < abs(machine.skew) <= 6 * SECOND
        with pytest.raises(ClockSkew, match="set both by NTP"):
            await machine.consume_message(create("ann", "a"))
        (trouble,) = await machine.troubles()
        assert "6.0 s" in trouble or "5.9 s" in trouble
        assert await machine.ctimes(["ann"]) == {"ann": 0}  # it reads all the same
        clock.seconds = 0
        async with asyncio.timeout(10):
            while machine.skew:  # noqa: ASYNC110 (it is compared again soon, and tells nobody)
                await asyncio.sleep(0.01)
        await machine.consume_message(create("ann", "a"))
        assert await machine.troubles() == []


async def test_a_clock_that_is_a_little_wrong_is_only_told_of(url: str) -> None:
    async with (
        database_at(url) as database,
        SQLStateMachine(database, ahead(4), compare_seconds=60) as machine,
    ):
        await machine.consume_message(create("ann", "a"))
        assert await machine.troubles() == []
