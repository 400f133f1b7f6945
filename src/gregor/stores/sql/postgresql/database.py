"""PostgreSQL 14 or later: one connection that writes, and a pool of connections that read.

All of them lead to one primary. If one turns out to lead to a standby, or to a primary with another
history, all are replaced (decision 26).

A transaction is retried if the server rolled it back because of others (a deadlock, a
serialization failure), or if its connection broke before the commit was sent. A commit without an
answer raises CommitUnknown.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from math import inf
from typing import Any, Self, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from gregor.backoff import Backoff
from gregor.errors import SetupError, StorageUnavailable
from gregor.log_event import LogEvent
from gregor.stores.sql.database import (
    MIGRATION_NOT_KEPT,
    CommitUnknown,
    Migration,
    PoolUse,
    Work,
)
from gregor.stores.sql.postgresql.connection import PostgreSQLConnection
from gregor.stores.sql.postgresql.errors import (
    DRIVER_ERRORS,
    ConnectionBroken,
    TransactionRolledBack,
    cannot_open,
    describe,
    is_broken,
    is_standby,
    translated,
)
from gregor.stores.sql.postgresql.pool import PatientPool
from gregor.stores.sql.postgresql.role import (
    BEGIN_READ,
    BEGIN_WRITE,
    Timeline,
    begin,
    timeline_of,
)
from gregor.stores.sql.postgresql.session import (
    CONNECT_TIMEOUT_SECONDS,
    check_pooling,
    connect,
    is_at_limit,
    is_refused,
)
from gregor.stores.sql.postgresql.start_checks import require_durable, require_privileges
from gregor.stores.sql.sync_bridge import run_sync
from gregor.urls import redacted

log = logging.getLogger("gregor.store")

T = TypeVar("T")

MAX_ATTEMPTS = 5
BACKOFF = Backoff(0.02, 0.16)


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
        self._writer: PatientPool | None = None
        self._readers: PatientPool | None = None
        self._timeline: Timeline | None = None

    @property
    def history(self) -> Timeline | None:
        return self._timeline

    async def _connect(self, *_: object, **__: object) -> asyncpg.Connection:
        connection = await connect(self.url, self._timeout_seconds)
        try:
            await self._follow(await timeline_of(connection))
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def check_role(self) -> None:
        async with self._connection(self._readers) as driver:
            timeline = await timeline_of(driver)
        await self._follow(timeline)

    async def _follow(self, timeline: Timeline) -> None:
        """The server that a connection leads to has this history."""
        before, self._timeline = self._timeline, timeline
        if before is not None and timeline != before:
            log.warning(
                LogEvent(
                    "failover", store=redacted(self.url), before=before.number, now=timeline.number
                )
            )
            await self._replace_connections()

    async def _replace_connections(self) -> None:
        """Let no transaction begin on a connection that is open now."""
        for pool in (self._writer, self._readers):
            if pool is not None:
                await pool.expire()

    async def __aenter__(self) -> Self:
        try:
            await self._open()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def _open(self) -> None:
        try:
            await check_pooling(self.url, self._timeout_seconds)
        except (ValueError, *DRIVER_ERRORS) as error:
            raise cannot_open(error, self.url) from error
        await self._check_server()
        if self._migration is not None:
            await _with_retries(partial(self._migrate, self._migration))
        self._writer = await self._pool(1)
        self._readers = await self._pool(self._max_readers)

    async def _check_server(self) -> None:
        try:
            connection = await self._connect()
            try:
                await require_durable(connection)
                await require_privileges(connection)
            finally:
                await connection.close(timeout=CONNECT_TIMEOUT_SECONDS)
        except (ValueError, *DRIVER_ERRORS) as error:
            raise cannot_open(error, self.url) from error

    async def _migrate(self, migration: Migration) -> None:
        try:
            if await self._is_due(migration):
                await migration.on_postgresql(self._connect)
                if await self._is_due(migration):
                    raise SetupError(MIGRATION_NOT_KEPT)
        except DRIVER_ERRORS as error:
            raise translated(error) from error

    async def _is_due(self, migration: Migration) -> bool:
        driver = await self._connect()
        try:
            return await run_sync(lambda: migration.is_due(PostgreSQLConnection(driver)))
        finally:
            await driver.close(timeout=CONNECT_TIMEOUT_SECONDS)

    async def _pool(self, connections: int) -> PatientPool:
        pool = await asyncpg.create_pool(
            min_size=0,
            max_size=connections,
            # A connection is kept until it breaks: it holds its prepared statements.
            max_inactive_connection_lifetime=0,
            max_queries=inf,
            connect=self._connect,
            reset=_keep_session,
        )
        return PatientPool(pool)

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
        async with self._transaction(self._writer, BEGIN_WRITE) as driver:
            connection = PostgreSQLConnection(driver, self._timeout_seconds)
            result = await run_sync(lambda: work(connection))
            try:
                with noting_warnings(driver) as warnings:
                    done = await driver.execute("COMMIT")
            except DRIVER_ERRORS as error:
                if is_broken(error):
                    raise CommitUnknown(describe(error), result) from error
                raise
            if warnings:  # it has not waited for the synchronous standby
                raise CommitUnknown(f"the store: {warnings[0]}", result)
            if done != "COMMIT":  # the server rolls a failed transaction back without an error
                raise StorageUnavailable("the store has not committed a failed transaction")
            return result

    async def _read(self, work: Work[T]) -> T:
        async with self._transaction(self._readers, BEGIN_READ) as driver:
            result = await run_sync(lambda: work(PostgreSQLConnection(driver)))
            await driver.execute("COMMIT")
            return result

    @asynccontextmanager
    async def _transaction(
        self, pool: PatientPool | None, statement: str
    ) -> AsyncIterator[PoolConnectionProxy]:
        """A connection in a transaction, which the block commits, and which is rolled back if the
        block raises."""
        async with self._connection(pool) as driver:
            await begin(driver, statement)
            yield driver

    @asynccontextmanager
    async def _connection(self, pool: PatientPool | None) -> AsyncIterator[PoolConnectionProxy]:
        """A connection of the pool. Raises what the driver's errors mean."""
        if pool is None:
            raise StorageUnavailable("the database is not open")
        try:
            driver = await self._acquire(pool)
            try:
                yield driver
            except BaseException as error:
                await _roll_back(driver, error)
                raise
            finally:
                with suppress(*DRIVER_ERRORS):  # it broke after the transaction, which counts
                    await pool.release(driver)
        except DRIVER_ERRORS as error:
            if is_standby(error):
                await self._replace_connections()
            raise translated(error) from error

    async def scrub(self) -> None:
        pass  # the server's vacuum does it in its time

    def pools(self) -> Mapping[str, PoolUse]:
        pools = {"writer": (self._writer, 1), "reader": (self._readers, self._max_readers)}
        return {
            name: PoolUse(0, limit, 0) if pool is None else pool.use()
            for name, (pool, limit) in pools.items()
        }

    async def _acquire(self, pool: PatientPool) -> PoolConnectionProxy:
        try:
            return await pool.acquire(self._timeout_seconds)
        except DRIVER_ERRORS as error:
            if isinstance(error, TimeoutError) and pool.is_busy:
                raise StorageUnavailable("all connections to the store are busy") from error
            if pool is self._writer and await self._make_room(error):
                raise TransactionRolledBack(describe(error)) from error
            raise

    async def _make_room(self, error: Exception) -> bool:
        """Let a reader give its connection up, as the writer was refused one: otherwise the
        readers, of which there are several, would keep it out. Returns whether to retry."""
        if self._readers is None or not is_refused(error):
            return False
        return await self._readers.give_up_one() and is_at_limit(error)


@contextmanager
def noting_warnings(driver: PoolConnectionProxy) -> Iterator[list[str]]:
    """The warnings of the server while the block runs."""
    warnings: list[str] = []

    def note(_: object, message: asyncpg.PostgresLogMessage) -> None:
        if message.severity_en == "WARNING":
            warnings.append(str(message))

    driver.add_log_listener(note)
    try:
        yield warnings
    finally:
        driver.remove_log_listener(note)


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
        return is_broken(error)
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
