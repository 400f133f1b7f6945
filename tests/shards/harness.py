"""Shards whose databases can be down, crash their caller, or reopen closed buckets too early."""

from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from gregor.clock import now
from gregor.core.buckets import bucket_of
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, InBandMessage
from gregor.errors import StorageUnavailable
from gregor.interfaces import StateMachineOfRecord, Stored
from gregor.shards import shard_map
from gregor.shards.shard_map import read_map
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql import statements
from gregor.stores.sql.database import Database, DatabaseConnection, PoolUse, Work
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import databases_at

T = TypeVar("T")
FROM_BEGINNING = TimeOrOffset(time=1)


class FlakyDatabase:
    """A Database that can be `down`: then it raises StorageUnavailable."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.down = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """The database stays open: the code that opened it closes it."""

    async def write(self, work: Work[T]) -> T:
        self._fail_if_down()
        return await self.database.write(work)

    async def read(self, work: Work[T]) -> T:
        self._fail_if_down()
        return await self.database.read(work)

    @property
    def history(self) -> Hashable:
        return self.database.history

    async def check_role(self) -> None:
        self._fail_if_down()
        await self.database.check_role()

    async def scrub(self) -> None:
        self._fail_if_down()
        await self.database.scrub()

    def pools(self) -> Mapping[str, PoolUse]:
        return self.database.pools()

    def _fail_if_down(self) -> None:
        if self.down:
            raise StorageUnavailable("it is down")


async def store(machine: StateMachineOfRecord, message: InBandMessage) -> InBandMessage:
    """Store a new message, and return it as it was stored."""
    (outcome,) = await machine.consume_messages([message])
    assert isinstance(outcome, Stored), outcome
    return outcome.message


class ShardHarness:
    """The databases of the shards. Each can be down for the machines that are opened here, by
    `flaky[name].down = True`; `databases` themselves are always up."""

    def __init__(self, databases: Mapping[str, Database], urls: Mapping[str, str]) -> None:
        self.databases = databases
        self.urls = urls
        self.flaky = {name: FlakyDatabase(database) for name, database in databases.items()}

    @asynccontextmanager
    async def machine(self, clock: Callable[[], Time] = now) -> AsyncIterator[ShardedStateMachine]:
        """The state machine of one node."""
        machines = {name: SQLStateMachine(d, clock) for name, d in self.flaky.items()}
        async with ShardedStateMachine(machines) as machine:
            yield machine

    async def holder(self, uid: UID) -> str:
        return (await self.holders([uid]))[uid]

    async def holders(self, uids: Iterable[UID]) -> dict[UID, str]:
        placed = await read_map(self.databases)
        return {uid: placed[bucket_of(uid)].shard for uid in uids}

    async def user_of(self, shard: str) -> UID:
        """A user whom this shard holds."""
        placed = await read_map(self.databases)
        return next(
            uid
            for uid in (f"user{n}" for n in range(10_000))
            if placed[bucket_of(uid)].shard == shard
        )

    async def log(self, machine: ShardedStateMachine, uid: UID) -> Sequence[InBandMessage]:
        return await machine.in_band_messages_since(uid, None, FROM_BEGINNING)


@asynccontextmanager
async def opened(urls: Mapping[str, str]) -> AsyncIterator[ShardHarness]:
    """Empty shards of one map, with these names."""
    async with databases_at(urls, migrate) as databases:
        await shard_map.establish(databases)
        yield ShardHarness(databases, urls)


class SimulatedCrash(Exception):
    """The process that uses the database has crashed."""


class CrashingDatabase(FlakyDatabase):
    """A database whose caller crashes right before, or after, its last write."""

    def __init__(
        self, database: Database, survives_write: Callable[[], bool], crash_after_write: bool
    ) -> None:
        super().__init__(database)
        self._survives_write = survives_write
        self._crash_after_write = crash_after_write

    async def write(self, work: Work[T]) -> T:
        survives = self._survives_write()
        if not survives and not self._crash_after_write:
            raise SimulatedCrash
        result = await self.database.write(work)
        if not survives:
            raise SimulatedCrash
        return result


class EarlyReopeningDatabase(FlakyDatabase):
    """A shard whose buckets open again at once if more than `max_closed` are closed together, as if
    the time for which they were closed had passed."""

    def __init__(self, database: Database, max_closed: int) -> None:
        super().__init__(database)
        self._max_closed = max_closed

    async def write(self, work: Work[T]) -> T:
        result = await self.database.write(work)
        await self.database.write(self._reopen_if_too_many)
        return result

    def _reopen_if_too_many(self, connection: DatabaseConnection) -> None:
        closed = "SELECT bucket FROM buckets WHERE closed_until > 0"
        if len(connection.execute_sql(closed)) > self._max_closed:
            connection.execute_sql("UPDATE buckets SET closed_until = 0")


class ClosureRecorder(FlakyDatabase):
    """A shard that records, in microseconds, for how long its buckets are still closed at the end
    of each write."""

    def __init__(self, database: Database, closures: list[int]) -> None:
        super().__init__(database)
        self._closures = closures

    async def write(self, work: Work[T]) -> T:
        def work_and_record(connection: DatabaseConnection) -> T:
            result = work(connection)
            ((until,),) = connection.execute_sql("SELECT max(closed_until) FROM buckets")
            if until:
                (clock,) = connection.execute(statements.DATABASE_TIME)
                self._closures.append(until - (clock.ctime or 0))
            return result

        return await self.database.write(work_and_record)
