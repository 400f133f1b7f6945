"""Three shards, whose databases somebody may have a hand in."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, func, select

from gregor.clock import now
from gregor.core.buckets import bucket_of
from gregor.core.instant import TimeOrOffset
from gregor.core.message import UID, InBandMessage
from gregor.errors import StorageUnavailable
from gregor.interfaces import StateMachineOfRecord, Stored
from gregor.state_machines import moving
from gregor.state_machines.sharded import ShardedStateMachine, read_map
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage import tables
from gregor.storage.database import Database, Work
from gregor.storage.engine import databases_at
from gregor.storage.migrations import migrate

T = TypeVar("T")
FROM_THE_BEGINNING = TimeOrOffset(time=1)


class Around:
    """A Database around which something may happen."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.down = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Whoever opened the database closes it."""

    async def write(self, work: Work[T]) -> T:
        self._fail_if_down()
        return await self.database.write(work)

    async def read(self, work: Work[T]) -> T:
        self._fail_if_down()
        return await self.database.read(work)

    def _fail_if_down(self) -> None:
        if self.down:
            raise StorageUnavailable("it is down")


async def store(machine: StateMachineOfRecord, message: InBandMessage) -> InBandMessage:
    """The message as it was stored now."""
    (outcome,) = await machine.consume_messages([message])
    assert isinstance(outcome, Stored), outcome
    return outcome.message


class World:
    """The databases of the shards, each of which can go down for whoever opens a machine here."""

    def __init__(self, databases: Mapping[str, Database], urls: Mapping[str, str]) -> None:
        self.databases = databases
        self.urls = urls
        self.seen = {name: Around(database) for name, database in databases.items()}

    @asynccontextmanager
    async def machine(self) -> AsyncIterator[ShardedStateMachine]:
        """What one node has."""
        machines = {name: SQLStateMachine(d, now) for name, d in self.seen.items()}
        async with ShardedStateMachine(machines) as machine:
            yield machine

    async def holder(self, uid: UID) -> str:
        return (await self.holders([uid]))[uid]

    async def holders(self, uids: Iterable[UID]) -> dict[UID, str]:
        placed = await read_map(self.databases)
        return {uid: placed[bucket_of(uid)].shard for uid in uids}

    async def user_of(self, shard: str) -> UID:
        """Somebody whom this shard holds."""
        placed = await read_map(self.databases)
        return next(
            uid
            for uid in (f"user{n}" for n in range(10_000))
            if placed[bucket_of(uid)].shard == shard
        )

    async def log(self, machine: ShardedStateMachine, uid: UID) -> Sequence[InBandMessage]:
        return await machine.in_band_messages_since(uid, None, FROM_THE_BEGINNING)


@asynccontextmanager
async def opened(urls: Mapping[str, str]) -> AsyncIterator[World]:
    """The shards with these names, empty and of one map."""
    async with databases_at(urls, migrate) as databases:
        await moving.establish(databases)
        yield World(databases, urls)


class Killed(Exception):
    """The mover is no more."""


class Mortal(Around):
    """A database whose user is killed right before, or after, its last transaction."""

    def __init__(self, database: Database, lives: Callable[[], bool], after: bool) -> None:
        super().__init__(database)
        self._lives = lives
        self._after = after

    async def write(self, work: Work[T]) -> T:
        lives = self._lives()
        if not lives and not self._after:
            raise Killed
        result = await self.database.write(work)
        if not lives:
            raise Killed
        return result


class Hasty(Around):
    """A shard of which so many buckets can be closed at once; with more, the time is over before
    anything else could be done."""

    def __init__(self, database: Database, most: int) -> None:
        super().__init__(database)
        self._most = most

    async def write(self, work: Work[T]) -> T:
        result = await self.database.write(work)
        await self.database.write(self._open_if_too_many)
        return result

    def _open_if_too_many(self, connection: Connection) -> None:
        closed = tables.buckets.c.closed_until > 0
        several = connection.scalar(select(func.count()).where(closed))
        if several is not None and several > self._most:
            connection.execute(tables.buckets.update().values(closed_until=0))
