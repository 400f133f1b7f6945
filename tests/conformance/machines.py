"""The state machines of record there are, and how each is opened."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from gregor.core.instant import Time
from gregor.interfaces import StateMachineOfRecord
from gregor.state_machines.memory import MemoryStateMachine
from gregor.state_machines.moving import establish
from gregor.state_machines.sharded import ShardedStateMachine
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
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


def sharded(urls: Sequence[str]) -> OpenMachine:
    @asynccontextmanager
    async def opened(clock: Callable[[], Time]) -> AsyncIterator[StateMachineOfRecord]:
        async with AsyncExitStack() as stack:
            databases = {
                f"shard{number}": await stack.enter_async_context(database_at(url, migrate))
                for number, url in enumerate(urls)
            }
            await establish(databases)
            machines = {name: SQLStateMachine(d, clock) for name, d in databases.items()}
            yield await stack.enter_async_context(ShardedStateMachine(machines))

    return opened
