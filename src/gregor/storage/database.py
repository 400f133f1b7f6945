"""What a database is to us: transactions in, results out, and errors that say whose turn it is.

A transaction is an ordinary function of a connection, so that the same function serves a database
whose driver is asynchronous and one whose driver is not.
"""

from collections.abc import Callable
from typing import Any, Protocol, Self, TypeAlias, TypeVar

from sqlalchemy import Connection

from gregor.errors import GregorError, SetupError, StorageUnavailable

T = TypeVar("T")

Work: TypeAlias = Callable[[Connection], T]


class Database(Protocol):
    """A database, to be opened with `async with`; SetupError says what is in the way. It may then
    be tried again."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: Any) -> None: ...

    async def write(self, work: Work[T]) -> T:
        """Do the work in one transaction, which is durable when this returns.

        The work may be done again from its beginning, where the database has undone it. Raises
        AlreadyThere, StorageUnavailable if the database does not answer, and OutcomeUnknown if it
        did not answer the commit. Whoever must learn the outcome is not cancelled meanwhile.
        """
        ...

    async def read(self, work: Work[T]) -> T:
        """Do the work, which only reads, at one moment of the database. Twice-safe; raises
        StorageUnavailable if the database does not answer."""
        ...


def shown(url: str) -> str:
    """The URL of a store, without anything in it that might be a secret, well-formed or not."""
    scheme, separator, rest = url.partition("://")
    if scheme.startswith("sqlite"):
        return url
    named, at, where = rest.rpartition("@")
    user, colon, _ = named.partition(":")
    return scheme + separator + user + (":***" if colon else "") + at + where.partition("?")[0]


class Unreachable(SetupError):
    """The database does not answer, and may be fine otherwise."""


class StorageBroken(GregorError):
    """The disk did not confirm a write. What is in memory can no longer be trusted to be what is
    on disk, so the process must end; the next one reads what was really stored."""


class AlreadyThere(GregorError):
    """A row with this key is there. The whole transaction has been undone."""


class OutcomeUnknown(StorageUnavailable):
    """The connection broke while the database was asked to commit: it may have done so, or may
    still be about to. `result` is what the work returned. Look whether it is there."""

    def __init__(self, message: str, result: Any) -> None:
        super().__init__(message)
        self.result = result
