"""All implementations of a state machine of record, and how each is opened."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

from gregor.core.instant import Time
from gregor.interfaces import StateMachineOfRecord
from gregor.shards.shard_map import establish
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at, databases_at
from gregor.testing.conformance import OpenMachine


@asynccontextmanager
async def memory(clock: Callable[[], Time]) -> AsyncIterator[StateMachineOfRecord]:
    yield MemoryStateMachine(clock)


def sql(url: str) -> OpenMachine:
    @asynccontextmanager
    async def opened(clock: Callable[[], Time]) -> AsyncIterator[StateMachineOfRecord]:
        async with (
            database_at(url, migrate) as database,
            SQLStateMachine(database, clock) as machine,
        ):
            yield machine

    return opened


def sharded(urls: Mapping[str, str]) -> OpenMachine:
    @asynccontextmanager
    async def opened(clock: Callable[[], Time]) -> AsyncIterator[StateMachineOfRecord]:
        async with databases_at(urls, migrate) as databases:
            await establish(databases)
            machines = {name: SQLStateMachine(d, clock) for name, d in databases.items()}
            async with ShardedStateMachine(machines) as machine:
                yield machine

    return opened
