"""SQLite: one thread runs all work, on one connection.

The connection locks the file exclusively: in versions before 3.51.3, two connections to one WAL
could corrupt it.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from gregor.clock import now
from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.storage.database import StorageBroken, UniqueViolation, Work

T = TypeVar("T")


class SQLiteDatabase:
    """A Database in a file, which is created when it is opened; `prepare` brings it up to date.

    `sqlite:///gregor.db` is a relative path, `sqlite:////var/lib/gregor.db` an absolute one, and
    `sqlite://` is in memory. Cancelling a caller does not stop its transaction.
    """

    def __init__(self, url: URL, prepare: Work[None] = lambda connection: None) -> None:
        self.url = url
        self._prepare = prepare
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._engine: Engine | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._thread.shutdown()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await self._in_thread(engine.dispose)
        self._thread.shutdown()

    async def write(self, work: Work[T]) -> T:
        return await self._transact("BEGIN IMMEDIATE", work)

    async def read(self, work: Work[T]) -> T:
        return await self._transact("BEGIN", work)

    async def _transact(self, begin: str, work: Work[T]) -> T:
        engine = self._engine
        if engine is None:
            raise StorageUnavailable("the database is not open")
        return await self._in_thread(lambda: self._transaction(engine, begin, work))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _transaction(self, engine: Engine, begin: str, work: Work[T]) -> T:
        try:
            connecting = engine.connect().execution_options(begin=begin)
            with connecting as connection, connection.begin():
                return work(connection)
        except DBAPIError as error:
            raise _translated(error, self.url) from error

    def _open(self) -> None:
        if sqlite3.sqlite_version_info < (3, 38):
            raise SetupError(
                f"SQLite {sqlite3.sqlite_version} is too old; Gregor needs 3.38 or later"
            )
        path = self.url.database or ""
        if path and not Path(path).absolute().parent.is_dir():
            raise SetupError(f"the directory of {path} does not exist; make it first")
        engine = create_engine(self.url, poolclass=StaticPool)
        event.listen(engine, "connect", configure)
        event.listen(engine, "begin", _begin)
        try:
            with engine.connect() as connection, connection.begin():
                self._prepare(connection)
        except DBAPIError as error:
            engine.dispose()
            raise _cannot_open(error, path) from error
        except BaseException:
            engine.dispose()
            raise
        self._engine = engine


def configure(connection: sqlite3.Connection, record: object = None) -> None:
    connection.isolation_level = None  # no implicit transactions: `_begin` begins them
    for setting in (
        "locking_mode = EXCLUSIVE",
        "busy_timeout = 0",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 4000",
        "cache_size = -65536",
    ):
        connection.execute(f"PRAGMA {setting}")
    connection.create_function("database_now", 0, now)


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(options.get("begin", "BEGIN IMMEDIATE"))


def _translated(error: DBAPIError, url: URL) -> GregorError:
    """The error to raise for a driver's error."""
    name = getattr(error.orig, "sqlite_errorname", "")
    if name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
        return UniqueViolation(f"{url}: {error.orig}")
    if name in ("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_CORRUPT", "SQLITE_NOTADB"):
        return StorageBroken(f"{url}: {error.orig} ({name}); the process must end")
    if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
        return StorageUnavailable(f"{url}: the disk is full or refuses writes; make room on it")
    return StorageUnavailable(f"{url}: {error.orig}")


def _cannot_open(error: DBAPIError, path: str) -> SetupError:
    name = getattr(error.orig, "sqlite_errorname", "")
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return SetupError(f"{path} is open in another process; stop that one, or use another file")
    if name in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY_DIRECTORY"):
        return SetupError(f"{path} cannot be written; give this user rights on it and its folder")
    if name == "SQLITE_NOTADB":
        return SetupError(f"{path} is not an SQLite database; choose another file")
    if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
        return SetupError(f"{path}: the disk is full; make room on it")
    return SetupError(f"{path} cannot be opened: {error.orig} ({name})")
