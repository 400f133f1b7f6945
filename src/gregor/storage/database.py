"""The interface of a database: transactions in, results out, and errors that say what to do next.

A transaction is an ordinary function of a connection, so that the same function works on a
database with an asynchronous driver and on one with a synchronous driver.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from sqlalchemy import Connection

from gregor.errors import GregorError, SetupError, StorageUnavailable

T = TypeVar("T")

Work: TypeAlias = Callable[[Connection], T]


class Database(Protocol):
    """A database, to be opened with `async with`. Opening raises SetupError, which names the
    problem; opening may then be retried."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: Any) -> None: ...

    async def write(self, work: Work[T]) -> T:
        """Run the work in one transaction, which is durable when this returns.

        The work may run again from its beginning if the database has rolled it back. Raises
        UniqueViolation, StorageUnavailable if the database does not answer, and CommitUnknown if
        it did not answer the commit. A caller that must learn the outcome must not be cancelled
        while it waits.
        """
        ...

    async def read(self, work: Work[T]) -> T:
        """Run the work, which only reads, on one snapshot of the database. Idempotent. Raises
        StorageUnavailable if the database does not answer."""
        ...


def redacted(url: str) -> str:
    """The URL of a store without anything in it that might be a secret, well-formed or not."""
    scheme, separator, rest = url.partition("://")
    if scheme.startswith("sqlite"):
        return url
    credentials, at, location = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return scheme + separator + user + (":***" if colon else "") + at + location.partition("?")[0]


class Unreachable(SetupError):
    """The database does not answer. There may be nothing else wrong with it."""


class StorageBroken(GregorError):
    """The disk did not confirm a write. Memory may no longer match the disk, so the process must
    end; the next process reads what was really stored."""


class UniqueViolation(GregorError):
    """A row with this key exists. The whole transaction was rolled back."""


class CommitUnknown(StorageUnavailable):
    """The connection broke during the commit: the database may have committed, or may still be
    about to. `result` is what the work returned. Read the database to find out."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
