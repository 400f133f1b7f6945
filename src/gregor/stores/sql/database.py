"""The interface to a database: transactions, their results, and errors with their action.

A transaction is a plain function of a connection (decision 1). The connection is synchronous, so
that one function works with the asynchronous driver of PostgreSQL and with the synchronous driver
of SQLite.
"""

import sqlite3
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, TypeAlias, TypeVar

from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.stores.sql.dialect import Dialect
from gregor.stores.sql.statements import BulkStatement, Insert, Row, Statement

T = TypeVar("T")
R = TypeVar("R")


class DatabaseConnection(Protocol):
    """A database within one transaction."""

    dialect: Dialect

    def execute(self, statement: Statement[R], /, **parameters: object) -> list[R]:
        """Run a statement with these parameters, and return its rows."""
        ...

    def execute_rows(self, statement: BulkStatement[Row, R], rows: Iterable[Row]) -> list[R]:
        """Run a statement once for these input rows."""
        ...

    def insert(self, insert: Insert[Row], rows: Sequence[Row]) -> None:
        """Insert rows. Raises UniqueViolation."""
        ...

    def execute_sql(self, text: str) -> list[tuple[Any, ...]]:
        """Run SQL text as it is, for pragmas and tests."""
        ...

    def give_up_after(self, seconds: float) -> None:
        """Let the rest of the transaction raise TransactionTooLong when it has taken this processor
        time, if the database runs in this process. On a server, its statements together have the
        time of one, and the last one as much again."""
        ...


Work: TypeAlias = Callable[[DatabaseConnection], T]


class Migration(Protocol):
    """Brings the schema up to date, or only checks it."""

    def is_due(self, connection: DatabaseConnection) -> bool:
        """Whether the migration must run. Raises SetupError if the database cannot be used."""
        ...

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        """Run, in one transaction. Idempotent. Raises SetupError, and the driver's errors."""
        ...

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        """The same. `connect` makes a connection of asyncpg."""
        ...


class PoolUse(NamedTuple):
    """How a pool of connections is used at a moment."""

    in_use: int
    limit: int
    waiting: int  # transactions that wait for a connection


class Database(Protocol):
    """A database, to be opened with `async with`. Opening raises SetupError, which names the
    problem; opening may then be retried."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: Any) -> None: ...

    async def write(self, work: Work[T]) -> T:
        """Run the work in one transaction, which is durable when this returns.

        The work may run again from its beginning if the database has rolled it back. Raises
        UniqueViolation, StorageUnavailable if the database does not answer, TransactionTooLong if
        it has given the work up, and CommitUnknown if it did not answer the commit. A caller that
        must learn the outcome must not be cancelled while it waits.
        """
        ...

    async def read(self, work: Work[T]) -> T:
        """Run the work, which only reads, on one snapshot of the database. Idempotent. Raises
        StorageUnavailable if the database does not answer."""
        ...

    @property
    def history(self) -> Hashable:
        """A value that changes when what was committed before may be lost, as when another server
        takes over. A read that began before the change may have seen what is lost."""
        ...

    async def check_role(self) -> None:
        """Ask the server whether `history` has changed. Raises StorageUnavailable if it does not
        answer, or may not take writes."""
        ...

    async def scrub(self) -> None:
        """Overwrite what committed transactions have deleted, where this process can: in the file
        of an SQLite database, and empty its WAL. Idempotent. Raises StorageUnavailable."""
        ...

    def pools(self) -> Mapping[str, PoolUse]:
        """How its pools of connections are used now, by their names."""
        ...


MIGRATION_NOT_KEPT = "the database has not kept its new schema; look at its log and its disk"


class Unreachable(SetupError):
    """The database does not answer. There may be nothing else wrong with it."""


class StorageBroken(GregorError):
    """The disk did not confirm a write. Memory may no longer match the disk, so the process must
    end; the next process reads what was really stored."""


class UniqueViolation(GregorError):
    """A row with this key exists. The whole transaction was rolled back."""


class TransactionTooLong(StorageUnavailable):
    """The database answers, and has given the work up, because it took too long. Nothing was
    stored. Less work at once may succeed."""


class CommitUnknown(StorageUnavailable):
    """The connection broke during the commit: the database may have committed, or may still be
    about to. `result` is what the work returned. Read the database to find out."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
