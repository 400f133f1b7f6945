"""PostgreSQL 14 or later: one connection that writes, and a pool of those that read.

What the server undoes because of others (a deadlock, a serialization failure) is done again, and
so is what a connection took with it when it broke, as long as no commit was asked for. A commit
without an answer is told as OutcomeUnknown.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.storage.database import AlreadyThere, OutcomeUnknown, Unreachable, Work, shown

T = TypeVar("T")

OLDEST = 14
ATTEMPTS = 5
CONNECT_SECONDS = 5.0

# The node that holds the locks of users may be frozen in the middle of a transaction. The others
# wait for as long as this; then the server ends its transaction, and it has to begin anew.
IDLE_IN_TRANSACTION = "5s"

# What is asked for is found by an index, row by row. Without these the planner, which knows little
# of tables that grow as fast as ours, would now and then read one whole, for all users at once; and
# a plan that was made while they were small, and is kept, would go by the wrong index.
PLANS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "jit": "off",
}

UNIQUE_VIOLATION = "23505"
UNDONE = ("40001", "40P01")  # serialization failure, deadlock: the same may well succeed now
NO_MORE = ("57P01", "57P02", "57P03", "25006")  # shutdown, crash, starting, or only a replica now


class Undone(StorageUnavailable):
    """The server has undone the transaction, for nothing that is wrong with it."""


class ConnectionBroken(StorageUnavailable):
    """The connection has broken, or could not be made. Nothing was committed."""


class PostgreSQLDatabase:
    """A Database on a server that others use as well.

    The connection that writes is not the readers' to exhaust. No answer is awaited for longer than
    `seconds`. The schema is not made here: `prepare` may do that, or only look at it.
    """

    def __init__(self, url: str, prepare: Work[None], *, connections: int, seconds: float) -> None:
        self.url = url
        self._prepare = prepare
        self._seconds = seconds
        self._writing = self._engine(1, isolation_level="READ COMMITTED")
        self._reading = self._engine(
            connections, isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    def _engine(self, connections: int, **options: Any) -> AsyncEngine:
        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=self._seconds,
            execution_options=options,
        )

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            self.url,
            timeout=min(CONNECT_SECONDS, self._seconds),
            # The server gives up first, and says why; a server that is gone says nothing.
            command_timeout=self._seconds + 1,
            server_settings={
                **PLANS,
                "application_name": "gregor",
                "statement_timeout": f"{self._seconds * 1000:.0f}",
                "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION,
            },
        )

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _open(self) -> None:
        try:
            connection = await self._connect()
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise _cannot_open(error, self.url) from error
        major = connection.get_server_version().major
        durable = await connection.fetchval("SHOW synchronous_commit")
        await connection.close(timeout=CONNECT_SECONDS)
        if major < OLDEST:
            raise SetupError(f"PostgreSQL {major} is too old; Gregor needs {OLDEST} or later")
        if durable == "off":
            raise SetupError(
                "synchronous_commit is off, so that a crash could lose what was acknowledged; "
                "say: ALTER DATABASE … SET synchronous_commit = on"
            )
        await self.write(self._prepare)

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._writing.dispose()
        await self._reading.dispose()

    async def write(self, work: Work[T]) -> T:
        return await _again(lambda: self._write(work))

    async def read(self, work: Work[T]) -> T:
        return await _again(lambda: self._read(work))

    async def _write(self, work: Work[T]) -> T:
        async with self._connected(self._writing) as connection:
            result = await connection.run_sync(work)
            try:
                await connection.commit()
            except (OSError, DBAPIError) as error:
                if _is_broken(error):
                    raise OutcomeUnknown(_said(error), result) from error
                raise
            return result

    async def _read(self, work: Work[T]) -> T:
        async with self._connected(self._reading) as connection:
            return await connection.run_sync(work)

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """A connection for one transaction, which ends with the block: undone, if not committed."""
        try:
            async with engine.connect() as connection:
                try:
                    yield connection
                except OSError:  # time-outs among them: nothing it may still say is of use
                    await connection.invalidate()
                    raise
        except PoolTimeout as error:
            raise StorageUnavailable("all connections to the store are busy") from error
        except (OSError, DBAPIError) as error:
            raise _translated(error) from error


async def _again(transaction: Callable[[], Awaitable[T]]) -> T:
    """What was undone through no fault of its own is done again, after a moment. A connection may
    have broken long ago, unnoticed until it was used: that is tried once more, at once."""
    for attempt in range(1, ATTEMPTS):
        try:
            return await transaction()
        except ConnectionBroken:
            if attempt > 1:
                raise
        except Undone:
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))
    return await transaction()


def _is_broken(error: OSError | DBAPIError) -> bool:
    """Whether the connection is of no use any more, as opposed to what was said over it."""
    if isinstance(error, DBAPIError):
        code = _code(error)
        return error.connection_invalidated or code.startswith("08") or code in NO_MORE
    return True


def _translated(error: OSError | DBAPIError) -> GregorError:
    """What a driver's error means for whoever asked."""
    if _is_broken(error):
        return ConnectionBroken(_said(error))
    code = _code(error)
    if code in UNDONE:
        return Undone(_said(error))
    if code == UNIQUE_VIOLATION:
        return AlreadyThere(_said(error))
    return StorageUnavailable(_said(error))


def _code(error: OSError | DBAPIError) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _said(error: Exception) -> str:
    """The store's, or the driver's, own words."""
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        error = cause if isinstance(cause, Exception) else error
    if isinstance(error, TimeoutError):
        return "the store has not answered in time"
    return f"the store: {error}"


def _cannot_open(error: Exception, url: str) -> SetupError:
    name = shown(url)
    match error:
        case asyncpg.InvalidCatalogNameError():
            return SetupError(f"{name}: {error}; make it first, with createdb")
        case asyncpg.InvalidAuthorizationSpecificationError():
            return SetupError(f"{name}: {error}; mend user and password in the URL of --store")
        case OSError() | asyncpg.PostgresError():
            reason = "no answer" if isinstance(error, TimeoutError) else str(error)
            return Unreachable(
                f"{name} cannot be reached: {reason}; start PostgreSQL, or mend --store"
            )
        case _:
            return SetupError(f"{name} is not a URL that libpq would take: {error}")
