"""SQLite: one thread runs all work, on one connection.

The connection locks the file exclusively: in versions before 3.51.3, two connections to one WAL
could corrupt it.
"""

import asyncio
import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cache, partial
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from time import sleep, thread_time
from typing import IO, Any, Self, TypeVar

import msgspec

from gregor.clock import now
from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.job import Job
from gregor.log_event import LogEvent
from gregor.stores.sql.database import (
    MIGRATION_NOT_KEPT,
    DatabaseConnection,
    Migration,
    PoolUse,
    StorageBroken,
    TransactionTooLong,
    UniqueViolation,
    Work,
)
from gregor.stores.sql.dialect import ROWS, SQLITE, encode_rows, sql_of
from gregor.stores.sql.private_file import make_private, warn_if_public
from gregor.stores.sql.sqlite_pages import Layout, overwrite_gaps
from gregor.stores.sql.statements import BulkStatement, Insert, Row, Statement, no_row
from gregor.stores.sql.timed_work import TimedWork
from gregor.stores.sql.turns import Turns
from gregor.stores.sql.worker_thread import WorkerThread

log = logging.getLogger("gregor.store.sqlite")

T = TypeVar("T")
R = TypeVar("R")

MIN_VERSION = (3, 38)
IN_MEMORY = ":memory:"
CACHED_STATEMENTS = 256
BEGIN_WRITE = "BEGIN IMMEDIATE"
STEPS_BETWEEN_CHECKS = 50_000  # of SQLite's virtual machine: a few milliseconds
MAX_BLOCK = 512  # rows that one statement inserts; a power of two
FEW_ROWS = 4  # to read more of them by themselves takes longer than to have them put into one
MAPS_SCRUBBED = 16  # at a time: of 50 MB, in some 40 ms

# A step of a backup copies a megabyte. Then those who wait get their turn.
BACKUP_PAGES = 256
BACKUP_PAUSE_SECONDS = 0.001


class SQLiteConnection:
    """A DatabaseConnection of sqlite3, in the thread of its database."""

    dialect = SQLITE

    def __init__(self, driver: sqlite3.Connection) -> None:
        self.driver = driver

    def execute(self, statement: Statement[R], /, **parameters: object) -> list[R]:
        text = sql_of(statement, SQLITE).text
        if statement.row is no_row or "RETURNING" in text or not statement.returns_json:
            return self._row_by_row(statement, text, parameters)
        # All rows in one step: row by row, each would release the interpreter lock and then wait
        # for a busy event loop to get it back.
        (columns,) = self.driver.execute(_in_one_row(statement), parameters).fetchall()
        return list(map(statement.row, zip(*_decoded(statement, columns), strict=True)))

    def execute_rows(self, statement: BulkStatement[Row, R], rows: Iterable[Row]) -> list[R]:
        rows = list(rows)
        parameters = {ROWS: encode_rows(rows)}
        if len(rows) <= FEW_ROWS and (statement.looks_up or statement.row is no_row):
            text = sql_of(statement, SQLITE, of_few_rows=True).text
            return self._row_by_row(statement, text, parameters)
        return self.execute(statement, **parameters)

    def _row_by_row(
        self, statement: Statement[R], text: str, parameters: Mapping[str, object]
    ) -> list[R]:
        rows = self.driver.execute(text, parameters)
        return [statement.row(row) for row in rows.fetchall()]

    def insert(self, insert: Insert[Row], rows: Sequence[Row]) -> None:
        # In blocks of one statement each: row by row, each insert would release the interpreter
        # lock and then wait for a busy event loop to get it back.
        start, left = 0, len(rows)
        while left:
            size = min(MAX_BLOCK, 1 << (left.bit_length() - 1))  # few sizes, so few statements
            values = tuple(chain.from_iterable(rows[start : start + size]))
            self.driver.execute(_insert_sql(insert, size), values)
            start, left = start + size, left - size

    def execute_sql(self, text: str) -> list[tuple[Any, ...]]:
        return self.driver.execute(text).fetchall()

    def give_up_after(self, seconds: float) -> None:
        """What this thread waits for, such as a slow disk, does not count."""
        end = thread_time() + seconds
        self.driver.set_progress_handler(lambda: thread_time() > end, STEPS_BETWEEN_CHECKS)


RECORD_SEPARATOR = "\x1e"  # no JSON contains it (RFC 7464)

_values = msgspec.json.Decoder(list[Any])


@cache
def _in_one_row(statement: Statement[Any]) -> str:
    """The statement with all its rows in one: of each column a JSON array of its values; or, of one
    that holds JSON, these texts, joined, because to quote them takes longer than to read them. All
    are in the order of the rows, which SQLite keeps for such aggregates of a subquery."""
    columns = ", ".join(
        f"group_concat({name}, char({ord(RECORD_SEPARATOR)}))"
        if name in statement.json_columns
        else f"json_group_array({name})"
        for name in statement.columns
    )
    return f"SELECT {columns} FROM ({sql_of(statement, SQLITE).text})"


def _decoded(statement: Statement[Any], columns: Sequence[str | None]) -> Iterator[list[Any]]:
    """The values of each column of a result that came in one row."""
    for name, values in zip(statement.columns, columns, strict=True):
        if name not in statement.json_columns:
            yield _values.decode(values or "")
        else:  # null, if there are no rows
            yield [] if values is None else values.split(RECORD_SEPARATOR)


@cache
def _insert_sql(insert: Insert[Any], rows: int) -> str:
    row = f"({', '.join('?' for _ in insert.columns)})"
    columns = ", ".join(insert.columns)
    return f"INSERT INTO {insert.table} ({columns}) VALUES {', '.join([row] * rows)}"


class SQLiteDatabase:
    """A Database in a file, which is created when it is opened; `prepare` brings its schema up to
    date, or checks it. An empty path is a database in memory. Cancelling a caller does not stop its
    transaction."""

    def __init__(self, path: str, prepare: Callable[[sqlite3.Connection], None] | None) -> None:
        self.path = path
        self._prepare = prepare or _write_nothing
        self._thread = WorkerThread("sqlite")
        self._driver: sqlite3.Connection | None = None
        self._file: int | None = None  # opened to overwrite what is deleted
        self._transactions = 0  # those that run or wait for the thread
        self._turn = Lock()  # a transaction, or a step of a backup
        self._turns = Turns(self._submit)

    async def __aenter__(self) -> Self:
        try:
            await self._in_thread(self._open)
        except BaseException:
            self._thread.end()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        driver, self._driver = self._driver, None
        if driver is not None:
            await self._in_thread(driver.close)
        if self._file is not None:  # not earlier: to close a file releases the locks on it
            os.close(self._file)
            self._file = None
        self._thread.end()

    async def write(self, work: Work[T]) -> T:
        return await self._transact(BEGIN_WRITE, work)

    async def read(self, work: Work[T]) -> T:
        return await self._transact("BEGIN", work)

    @property
    def history(self) -> None:
        return None  # a file that is open here is not replaced

    async def check_role(self) -> None:
        pass

    async def scrub(self) -> None:
        """Writers need not wait for all of it: the pages of a few pointer maps are done at a time.
        From the last to the first, because incremental vacuum moves pages to the front."""
        if self.path and self._driver is not None:
            maps = await self._in_thread(partial(self._prepare_scrub, self._driver))
            for first in reversed(range(0, maps, MAPS_SCRUBBED)):
                numbers = range(first, min(first + MAPS_SCRUBBED, maps))
                await self._in_thread(partial(self._scrub, self._driver, numbers))

    def _prepare_scrub(self, driver: sqlite3.Connection) -> int:
        """The number of pointer maps of the file."""
        with _translating(self.path):
            if lacks_auto_vacuum(SQLiteConnection(driver)):
                vacuum(driver)
            flush(driver)
            if self._file is None:
                self._file = os.open(self.path, os.O_RDWR)
            return Layout.of(self._file).maps

    def _scrub(self, driver: sqlite3.Connection, numbers: range) -> None:
        assert self._file is not None
        with _translating(self.path):
            flush(driver)
            layout = Layout.of(self._file)
            for number in numbers:
                overwrite_gaps(self._file, layout, number)

    async def backup(self) -> IO[bytes]:
        """A copy of the database at one instant: an open file that no folder lists any more.
        Transactions run between the steps of copying; what they write goes to the copy as well.
        Raises StorageUnavailable."""
        if self._driver is None:
            raise StorageUnavailable("the database is not open")
        return await asyncio.to_thread(self._backup, self._driver)

    def _backup(self, driver: sqlite3.Connection) -> IO[bytes]:
        # Beside the file, where there is a disk for a file of this size, and only for this user.
        beside = os.path.dirname(os.path.abspath(self.path)) if self.path else None
        with (
            _translating(self.path),
            TemporaryDirectory(prefix=".gregor-backup-", dir=beside) as folder,
        ):
            path = os.path.join(folder, "copy")
            with closing(sqlite3.connect(path)) as copy, self._turn:
                driver.backup(copy, pages=BACKUP_PAGES, progress=self._let_others)
            return open(path, "rb")

    def _let_others(self, *_: object) -> None:
        """Between two steps of a backup."""
        self._turn.release()
        try:
            sleep(BACKUP_PAUSE_SECONDS)
        finally:
            self._turn.acquire()
        if self._driver is None:
            raise StorageUnavailable("the database was closed while it was copied")

    async def _transact(self, begin: str, work: Work[T]) -> T:
        driver = self._driver
        if driver is None:
            raise StorageUnavailable("the database is not open")
        self._transactions += 1
        try:
            return await self._turns.run(
                lambda: self._transaction(driver, begin, work), is_write=begin == BEGIN_WRITE
            )
        finally:
            self._transactions -= 1

    def pools(self) -> Mapping[str, PoolUse]:
        in_use = min(self._transactions, 1)
        return {"file": PoolUse(in_use, 1, self._transactions - in_use)}

    def _submit(self, call: Callable[[], object]) -> None:
        self._thread.submit(call)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        def undisturbed() -> T:
            with self._turn:
                return work()

        job = Job(undisturbed)
        self._submit(job.run)
        return await job.done

    def _transaction(self, driver: sqlite3.Connection, begin: str, work: Work[T]) -> T:
        timed = TimedWork(work)
        try:
            with self._turn, _translating(self.path or "sqlite://"):
                return transact(driver, begin, timed)
        finally:
            timed.ended()

    def _open(self) -> None:
        if sqlite3.sqlite_version_info < MIN_VERSION:
            needed = ".".join(map(str, MIN_VERSION))
            raise SetupError(
                f"SQLite {sqlite3.sqlite_version} is too old; Gregor needs {needed} or later"
            )
        if self.path and not Path(self.path).absolute().parent.is_dir():
            raise SetupError(f"the directory of {self.path} does not exist; make it first")
        is_file = self.path not in ("", IN_MEMORY)
        if is_file:
            make_private(self.path)
        driver: sqlite3.Connection | None = None
        try:
            driver = sqlite3.connect(
                self.path or IN_MEMORY,
                check_same_thread=False,  # it is closed by whichever thread closes the database
                cached_statements=CACHED_STATEMENTS,
            )
            configure(driver)
            self._prepare(driver)
        except sqlite3.Error as error:
            _close(driver)
            raise _cannot_open(error, self.path) from error
        except BaseException:
            _close(driver)
            raise
        if is_file:
            warn_if_public(self.path)
        self._driver = driver


def transact(driver: sqlite3.Connection, begin: str, work: Work[T]) -> T:
    """Run the work in one transaction. Raises sqlite3.Error."""
    driver.execute(begin)
    try:
        result = work(SQLiteConnection(driver))
        driver.execute("COMMIT")
        return result
    except BaseException:
        driver.set_progress_handler(None, 0)
        if driver.in_transaction:
            driver.execute("ROLLBACK")
        raise
    finally:
        driver.set_progress_handler(None, 0)  # what `give_up_after` has set


def migrating(migration: Migration) -> Callable[[sqlite3.Connection], None]:
    """What prepares an SQLiteDatabase by this migration."""

    def is_due(driver: sqlite3.Connection) -> bool:
        return transact(driver, "BEGIN IMMEDIATE", migration.is_due)

    def prepare(driver: sqlite3.Connection) -> None:
        if is_due(driver):
            migration.on_sqlite(driver)
            if is_due(driver):
                raise SetupError(MIGRATION_NOT_KEPT)

    return prepare


def _write_nothing(driver: sqlite3.Connection) -> None:
    """Fails if the file cannot be written, or is open in another process."""
    transact(driver, "BEGIN IMMEDIATE", lambda connection: None)


def configure(driver: sqlite3.Connection) -> None:
    driver.isolation_level = None  # no implicit transactions: `transact` begins them
    for setting in (
        "auto_vacuum = INCREMENTAL",  # of a new file; another needs a VACUUM
        "secure_delete = ON",
        "locking_mode = EXCLUSIVE",
        "busy_timeout = 0",
        "journal_mode = WAL",
        "synchronous = FULL",
        "wal_autocheckpoint = 4000",
        "cache_size = -65536",
    ):
        driver.execute(f"PRAGMA {setting}")
    driver.create_function("database_now", 0, now)


def flush(driver: sqlite3.Connection) -> None:
    """Bring everything to the file, and keep nothing in its WAL or in memory."""
    driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    driver.execute("PRAGMA shrink_memory")


def lacks_auto_vacuum(connection: DatabaseConnection) -> bool:
    """Whether the file was made before files gave space back."""
    return connection.execute_sql("PRAGMA auto_vacuum") == [(0,)]


def vacuum(driver: sqlite3.Connection) -> None:
    """Rewrite the file, which then gives space back, and holds nothing that was deleted before. No
    transaction can run meanwhile. It needs twice the space of the file."""
    path = driver.execute("PRAGMA database_list").fetchone()[2]
    reason = "once, so that it gives space back and keeps nothing that is deleted"
    log.warning(LogEvent("rewriting the file", store=path, reason=reason))
    driver.execute("VACUUM")
    flush(driver)


@contextmanager
def _translating(path: str) -> Iterator[None]:
    """Raises what the errors of the driver and of the file mean."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error, path) from error
    except OSError as error:
        raise StorageUnavailable(f"{path}: {error}") from error


def _close(driver: sqlite3.Connection | None) -> None:
    if driver is not None:
        driver.close()


def _translated(error: sqlite3.Error, path: str) -> GregorError:
    """The error to raise for a driver's error."""
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"):
        return UniqueViolation(f"{path}: {error}")
    if name in ("SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_CORRUPT", "SQLITE_NOTADB"):
        return StorageBroken(f"{path}: {error} ({name}); the process must end")
    if name == "SQLITE_INTERRUPT":
        return TransactionTooLong(f"{path}: a transaction took too long")
    if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
        return StorageUnavailable(f"{path}: the disk is full or refuses writes; make room on it")
    return StorageUnavailable(f"{path}: {error}")


def _cannot_open(error: sqlite3.Error, path: str) -> SetupError:
    name = getattr(error, "sqlite_errorname", "")
    if name in ("SQLITE_BUSY", "SQLITE_LOCKED"):
        return SetupError(f"{path} is open in another process; stop that one, or use another file")
    if name in ("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_READONLY_DIRECTORY"):
        return SetupError(f"{path} cannot be written; give this user rights on it and its folder")
    if name == "SQLITE_NOTADB":
        return SetupError(f"{path} is not an SQLite database; choose another file")
    if name in ("SQLITE_FULL", "SQLITE_IOERR_WRITE"):
        return SetupError(f"{path}: the disk is full; make room on it")
    return SetupError(f"{path} cannot be opened: {error} ({name})")
