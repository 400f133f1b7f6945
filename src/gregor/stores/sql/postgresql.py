"""PostgreSQL 14 or later: one connection that writes, and a pool of connections that read.

A transaction is retried if the server rolled it back because of others (a deadlock, a
serialization failure), or if its connection broke before the commit was sent. A commit without an
answer raises CommitUnknown.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cache, partial
from math import inf
from typing import Any, Self, TypeVar

import asyncpg
from asyncpg.pool import Pool, PoolConnectionProxy

from gregor.backoff import Backoff
from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.stores.sql.database import (
    MIGRATION_NOT_KEPT,
    CommitUnknown,
    Migration,
    UniqueViolation,
    Unreachable,
    Work,
)
from gregor.stores.sql.dialect import POSTGRESQL, encode_rows, sql_of
from gregor.stores.sql.statements import BulkStatement, Insert, Row, Statement, no_row
from gregor.stores.sql.sync_bridge import run_sync, wait_for
from gregor.urls import redacted

T = TypeVar("T")
R = TypeVar("R")

MIN_VERSION = 14
MAX_ATTEMPTS = 5
BACKOFF = Backoff(0.02, 0.16)
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
    "25P03",
)  # shutdown, crash, starting up, read-only (a replica after a failover), idle in a transaction

# InternalClientError: a statement was begun after the server's last message, but before its close.
DRIVER_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class TransactionRolledBack(StorageUnavailable):
    """The server rolled the transaction back because of others. The same may succeed now."""


class ConnectionBroken(StorageUnavailable):
    """The connection broke, or could not be made. Nothing was committed."""


class PostgreSQLConnection:
    """A DatabaseConnection of asyncpg, for a transaction that `run_sync` runs."""

    dialect = POSTGRESQL

    def __init__(self, driver: asyncpg.Connection | PoolConnectionProxy) -> None:
        self._driver = driver

    def execute(self, statement: Statement[R], /, **parameters: object) -> list[R]:
        text, names = sql_of(statement, POSTGRESQL)
        rows = wait_for(self._driver.fetch(text, *(parameters[name] for name in names)))
        if statement.row is no_row:
            return []
        return [statement.row(row) for row in rows]

    def execute_rows(self, statement: BulkStatement[Row, R], rows: Iterable[Row]) -> list[R]:
        return self.execute(statement, rows=encode_rows(rows))

    def insert(self, insert: Insert[Row], rows: Sequence[Row]) -> None:
        if rows:
            wait_for(self._driver.execute(_insert_sql(insert), *zip(*rows, strict=True)))

    def execute_sql(self, text: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in wait_for(self._driver.fetch(text))]


@cache
def _insert_sql(insert: Insert[Any]) -> str:
    arrays = ", ".join(
        f"${n}::{type_}[]" for n, type_ in enumerate(insert.columns.values(), start=1)
    )
    columns = ", ".join(insert.columns)
    return f"INSERT INTO {insert.table} ({columns}) SELECT * FROM unnest({arrays})"


class PostgreSQLDatabase:
    """A Database on a server that other processes use as well.

    Writes have a connection of their own, so readers cannot starve them. Each query times out
    after `seconds`. `migration` may create the schema, or only check it.
    """

    def __init__(
        self, url: str, migration: Migration | None, *, connections: int, seconds: float
    ) -> None:
        self.url = url
        self._migration = migration
        self._max_readers = connections
        self._timeout_seconds = seconds
        self._writer: Pool | None = None
        self._readers: Pool | None = None

    async def _connect(self, *_: object, **__: object) -> asyncpg.Connection:
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
            try:
                major = connection.get_server_version().major
                synchronous_commit = await connection.fetchval("SHOW synchronous_commit")
            finally:
                await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)
        except (ValueError, *DRIVER_ERRORS) as error:
            raise _cannot_open(error, self.url) from error
        if major < MIN_VERSION:
            raise SetupError(f"PostgreSQL {major} is too old; Gregor needs {MIN_VERSION} or later")
        if synchronous_commit == "off":
            raise SetupError(
                "synchronous_commit is off, so a crash could lose acknowledged messages; "
                "run: ALTER DATABASE … SET synchronous_commit = on"
            )
        if self._migration is not None:
            await _with_retries(partial(self._migrate, self._migration))
        self._writer = await self._pool(1)
        self._readers = await self._pool(self._max_readers)

    async def _migrate(self, migration: Migration) -> None:
        try:
            if await self._is_due(migration):
                await migration.on_postgresql(self._connect)
                if await self._is_due(migration):
                    raise SetupError(MIGRATION_NOT_KEPT)
        except DRIVER_ERRORS as error:
            raise _translated(error) from error

    async def _is_due(self, migration: Migration) -> bool:
        driver = await self._connect()
        try:
            return await run_sync(lambda: migration.is_due(PostgreSQLConnection(driver)))
        finally:
            await driver.close(timeout=CONNECT_TIMEOUT_SECONDS)

    async def _pool(self, connections: int) -> Pool:
        return await asyncpg.create_pool(
            min_size=0,
            max_size=connections,
            # A connection is kept until it breaks: it holds its prepared statements.
            max_inactive_connection_lifetime=0,
            max_queries=inf,
            connect=self._connect,
            reset=_keep_session,
        )

    async def __aexit__(self, *exc_info: Any) -> None:
        for pool in (self._writer, self._readers):
            if pool is not None:
                pool.terminate()  # no transaction is under way: what is read or stored is complete
        self._writer = self._readers = None

    async def write(self, work: Work[T]) -> T:
        return await _with_retries(lambda: self._write(work))

    async def read(self, work: Work[T]) -> T:
        return await _with_retries(lambda: self._read(work))

    async def _write(self, work: Work[T]) -> T:
        async with self._transaction(self._writer, "READ COMMITTED") as driver:
            result = await run_sync(lambda: work(PostgreSQLConnection(driver)))
            try:
                done = await driver.execute("COMMIT")
            except DRIVER_ERRORS as error:
                if _is_broken(error):
                    raise CommitUnknown(_describe(error), result) from error
                raise
            if done != "COMMIT":  # the server rolls a failed transaction back without an error
                raise StorageUnavailable("the store has not committed a failed transaction")
            return result

    async def _read(self, work: Work[T]) -> T:
        async with self._transaction(self._readers, "REPEATABLE READ READ ONLY") as driver:
            result = await run_sync(lambda: work(PostgreSQLConnection(driver)))
            await driver.execute("COMMIT")
            return result

    @asynccontextmanager
    async def _transaction(
        self, pool: Pool | None, level: str
    ) -> AsyncIterator[PoolConnectionProxy]:
        """A connection in a transaction, which is rolled back if the block raises."""
        if pool is None:
            raise StorageUnavailable("the database is not open")
        try:
            driver = await self._acquire(pool)
            try:
                await driver.execute(f"BEGIN ISOLATION LEVEL {level}")
                yield driver
            except BaseException as error:
                await _roll_back(driver, error)
                raise
            finally:
                with suppress(*DRIVER_ERRORS):  # it broke after the transaction, which counts
                    await pool.release(driver)
        except DRIVER_ERRORS as error:
            raise _translated(error) from error

    async def _acquire(self, pool: Pool) -> PoolConnectionProxy:
        try:
            return await pool.acquire(timeout=self._timeout_seconds)
        except TimeoutError as error:
            if pool.get_size() == pool.get_max_size() and not pool.get_idle_size():
                raise StorageUnavailable("all connections to the store are busy") from error
            raise


async def _keep_session(driver: object) -> None:
    """Run when a connection returns to its pool. Sessions have no state that must be reset, so it
    need not cost a round trip."""


async def _roll_back(driver: PoolConnectionProxy, error: BaseException) -> None:
    """Undo the transaction of a block that raised. A connection that may be broken, or may still
    receive a late answer, is closed instead."""
    is_rolled_back = False
    try:
        if not _interrupts(error):
            with suppress(*DRIVER_ERRORS):  # the original error says more
                await driver.execute("ROLLBACK")
                is_rolled_back = True
    finally:
        if not is_rolled_back:
            with suppress(asyncpg.InterfaceError):  # it is closed already
                driver.terminate()


def _interrupts(error: BaseException) -> bool:
    """Whether the error, such as a cancellation, leaves a statement without its answer."""
    if isinstance(error, DRIVER_ERRORS):
        return _is_broken(error)
    return isinstance(error, CommitUnknown) or not isinstance(error, Exception)


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
            await asyncio.sleep(BACKOFF.delay(attempt - 1, random.random()))
    return await transaction()


def _is_broken(error: BaseException) -> bool:
    """Whether the connection is broken, and not only the statement that was sent over it."""
    if isinstance(error, ValueError):  # a parameter that the driver cannot encode
        return False
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        return code.startswith("08") or code in SERVER_GONE
    return True


def _translated(error: BaseException) -> GregorError:
    """The error to raise for a driver's error."""
    if _is_broken(error):
        return ConnectionBroken(_describe(error))
    code = getattr(error, "sqlstate", "")
    if code in ROLLED_BACK:
        return TransactionRolledBack(_describe(error))
    if code == UNIQUE_VIOLATION:
        return UniqueViolation(_describe(error))
    return StorageUnavailable(_describe(error))


def _describe(error: BaseException) -> str:
    """The message of the server or of the driver."""
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
        case OSError() | asyncpg.PostgresError() | asyncpg.InternalClientError():
            reason = "no answer" if isinstance(error, TimeoutError) else str(error)
            return Unreachable(
                f"{name} cannot be reached: {reason}; start PostgreSQL, or correct --store"
            )
        case _:
            return SetupError(f"{name} is not a URL that libpq accepts: {error}")
