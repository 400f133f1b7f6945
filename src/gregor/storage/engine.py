"""A database, opened: transactions in, results out, and drivers' errors translated on the way.

On SQLite all work is done on one connection by one thread, which also holds the file for itself:
two connections to one WAL could corrupt it in versions before 3.51.3. A transaction is an ordinary
function of a connection, so that the same function serves a database whose driver is asynchronous.
"""

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import StaticPool

from gregor.errors import GregorError, SetupError, StorageUnavailable

T = TypeVar("T")

Work = Callable[[Connection], T]


class StorageBroken(GregorError):
    """The disk did not confirm a write. What is in memory can no longer be trusted to be what is
    on disk, so the process must end; the next one reads what was really stored."""


class AlreadyThere(GregorError):
    """A row with this key is there. The whole transaction has been undone."""


class Database:
    """An SQLite database, which is created and migrated when it is opened.

    `sqlite:///gregor.db` is a file in this folder, `sqlite:////var/lib/gregor.db` one anywhere,
    and `sqlite://` lives in memory. Open it with `async with`; SetupError says what is in the way.
    """

    def __init__(self, url: str, prepare: Work[None] = lambda connection: None) -> None:
        self.url = parse_url(url)
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
        """Do the work in one transaction, which is durable when this returns.
        Cancelling the caller does not cancel a transaction that has begun."""
        return await self._transact("BEGIN IMMEDIATE", work)

    async def read(self, work: Work[T]) -> T:
        """Do the work, which only reads, at one moment of the database."""
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
            opened = engine.connect().execution_options(begin=begin)
            with opened as connection, connection.begin():
                return work(connection)
        except DBAPIError as error:
            raise translated(error, self.url) from error

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


def parse_url(url: str) -> URL:
    """The URL of a store. Raises SetupError if it is none that is supported."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SetupError(f"{url!r} is not a store URL such as sqlite:///gregor.db") from error
    if parsed.drivername != "sqlite":
        raise SetupError(f"{url!r}: this version stores in sqlite:///FILE, or sqlite:// in memory")
    return parsed


def configure(connection: sqlite3.Connection, record: object = None) -> None:
    connection.isolation_level = None  # we say ourselves when a transaction begins
    for setting in (
        "locking_mode = EXCLUSIVE",
        "busy_timeout = 0",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 4000",
        "cache_size = -65536",
    ):
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: Connection) -> None:
    options = connection.get_execution_options()
    connection.exec_driver_sql(options.get("begin", "BEGIN IMMEDIATE"))


def translated(error: DBAPIError, url: URL) -> GregorError:
    """What a driver's error means for whoever asked."""
    name = getattr(error.orig, "sqlite_errorname", "")
    if name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
        return AlreadyThere(f"{url}: {error.orig}")
    if name in ("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_CORRUPT", "SQLITE_NOTADB"):
        return StorageBroken(f"{url}: {error.orig} ({name}); the process ends here")
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
