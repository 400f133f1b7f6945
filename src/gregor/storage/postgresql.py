"""PostgreSQL 14 or later: one connection that writes, and a pool of connections that read.

A transaction is retried if the server rolled it back because of others (a deadlock, a
serialization failure), or if its connection broke before the commit was sent. A commit without an
answer raises CommitUnknown.
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
from gregor.storage.database import CommitUnknown, UniqueViolation, Unreachable, Work, redacted

T = TypeVar("T")

MIN_VERSION = 14
MAX_ATTEMPTS = 5
CONNECT_TIMEOUT_SECONDS = 5.0

# The node that holds the locks of users may freeze in the middle of a transaction. Other nodes wait
# at most this long; then the server ends the transaction, and the frozen node has to retry it.
IDLE_IN_TRANSACTION_TIMEOUT = "5s"

# Every query can use an index, row by row. Without these settings the planner, whose statistics lag
# behind tables that grow as fast as ours, would sometimes scan a whole table, with the rows of all
# users; and a cached plan that was made while the tables were small would use the wrong index.
PLANNER_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "jit": "off",
}

UNIQUE_VIOLATION = "23505"
ROLLED_BACK = ("40001", "40P01")  # serialization failure, deadlock: a retry may succeed
SERVER_GONE = (
    "57P01",
    "57P02",
    "57P03",
    "25006",
)  # shutdown, crash, starting up, or read-only (a replica after a failover)


class TransactionRolledBack(StorageUnavailable):
    """The server rolled the transaction back because of others. The same may succeed now."""


class ConnectionBroken(StorageUnavailable):
    """The connection broke, or could not be made. Nothing was committed."""


class PostgreSQLDatabase:
    """A Database on a server that other processes use as well.

    Writes have a connection of their own, so readers cannot starve them. Each query times out
    after `seconds`. `prepare` may create the schema, or only check it.
    """

    def __init__(self, url: str, prepare: Work[None], *, connections: int, seconds: float) -> None:
        self.url = url
        self._prepare = prepare
        self._timeout_seconds = seconds
        self._write_engine = self._engine(1, isolation_level="READ COMMITTED")
        self._read_engine = self._engine(
            connections, isolation_level="REPEATABLE READ", postgresql_readonly=True
        )

    def _engine(self, connections: int, **options: Any) -> AsyncEngine:
        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=self._timeout_seconds,
            execution_options=options,
        )

    async def _connect(self) -> asyncpg.Connection:
        return await asyncpg.connect(
            self.url,
            timeout=min(CONNECT_TIMEOUT_SECONDS, self._timeout_seconds),
            # The server times out first, and says why; a server that is down says nothing.
            command_timeout=self._timeout_seconds + 1,
            server_settings={
                **PLANNER_SETTINGS,
                "application_name": "gregor",
                "statement_timeout": f"{self._timeout_seconds * 1000:.0f}",
                "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
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
        synchronous_commit = await connection.fetchval("SHOW synchronous_commit")
        await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)
        if major < MIN_VERSION:
            raise SetupError(f"PostgreSQL {major} is too old; Gregor needs {MIN_VERSION} or later")
        if synchronous_commit == "off":
            raise SetupError(
                "synchronous_commit is off, so a crash could lose acknowledged messages; "
                "run: ALTER DATABASE … SET synchronous_commit = on"
            )
        await self.write(self._prepare)

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._write_engine.dispose()
        await self._read_engine.dispose()

    async def write(self, work: Work[T]) -> T:
        return await _with_retries(lambda: self._write(work))

    async def read(self, work: Work[T]) -> T:
        return await _with_retries(lambda: self._read(work))

    async def _write(self, work: Work[T]) -> T:
        async with self._connected(self._write_engine) as connection:
            result = await connection.run_sync(work)
            try:
                await connection.commit()
            except (OSError, DBAPIError) as error:
                if _is_broken(error):
                    raise CommitUnknown(_describe(error), result) from error
                raise
            return result

    async def _read(self, work: Work[T]) -> T:
        async with self._connected(self._read_engine) as connection:
            return await connection.run_sync(work)

    @asynccontextmanager
    async def _connected(self, engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        """A connection for one transaction, which is rolled back at the end if not committed."""
        try:
            async with engine.connect() as connection:
                try:
                    yield connection
                except OSError:  # also a time-out: a late answer is of no use
                    await connection.invalidate()
                    raise
        except PoolTimeout as error:
            raise StorageUnavailable("all connections to the store are busy") from error
        except (OSError, DBAPIError) as error:
            raise _translated(error) from error


async def _with_retries(transaction: Callable[[], Awaitable[T]]) -> T:
    """Retry what the server rolled back because of others, with backoff. A connection may have
    broken long before it was used: that is retried once, without a delay."""
    for attempt in range(1, MAX_ATTEMPTS):
        try:
            return await transaction()
        except ConnectionBroken:
            if attempt > 1:
                raise
        except TransactionRolledBack:
            await asyncio.sleep(random.uniform(0, 0.01 * 2**attempt))
    return await transaction()


def _is_broken(error: OSError | DBAPIError) -> bool:
    """Whether the connection is broken, and not only the statement that was sent over it."""
    if isinstance(error, DBAPIError):
        code = _code(error)
        return error.connection_invalidated or code.startswith("08") or code in SERVER_GONE
    return True


def _translated(error: OSError | DBAPIError) -> GregorError:
    """The error to raise for a driver's error."""
    if _is_broken(error):
        return ConnectionBroken(_describe(error))
    code = _code(error)
    if code in ROLLED_BACK:
        return TransactionRolledBack(_describe(error))
    if code == UNIQUE_VIOLATION:
        return UniqueViolation(_describe(error))
    return StorageUnavailable(_describe(error))


def _code(error: OSError | DBAPIError) -> str:
    return getattr(getattr(error, "orig", None), "sqlstate", None) or ""


def _describe(error: Exception) -> str:
    """The message of the server or of the driver."""
    if isinstance(error, DBAPIError):
        cause = error.orig.__cause__ if error.orig is not None else None
        error = cause if isinstance(cause, Exception) else error
    if isinstance(error, TimeoutError):
        return "the store has not answered in time"
    return f"the store: {error}"


def _cannot_open(error: Exception, url: str) -> SetupError:
    name = redacted(url)
    match error:
        case asyncpg.InvalidCatalogNameError():
            return SetupError(f"{name}: {error}; make it first, with createdb")
        case asyncpg.InvalidAuthorizationSpecificationError():
            return SetupError(
                f"{name}: {error}; correct the user or password in the URL of --store"
            )
        case OSError() | asyncpg.PostgresError():
            reason = "no answer" if isinstance(error, TimeoutError) else str(error)
            return Unreachable(
                f"{name} cannot be reached: {reason}; start PostgreSQL, or correct --store"
            )
        case _:
            return SetupError(f"{name} is not a URL that libpq accepts: {error}")
