"""What the errors of PostgreSQL and of its driver mean: which one to raise instead."""

import asyncpg

from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.stores.sql.database import UniqueViolation, Unreachable
from gregor.stores.sql.postgresql.session import USE_SESSIONS, SessionNotKept, is_at_limit
from gregor.urls import redacted

UNIQUE_VIOLATION = "23505"
ROLLED_BACK = ("40001", "40P01")  # serialization failure, deadlock: a retry may succeed
SERVER_GONE = (
    "57P01",
    "57P02",
    "57P03",
    "25006",
    "25P03",
)  # shutdown, crash, starting up, read-only (a replica after a failover), idle in a transaction
# A prepared statement is missing, or there already: it was prepared in another session.
SESSION_CHANGED = ("26000", "42P05")

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


def is_broken(error: BaseException) -> bool:
    """Whether the connection is broken, and not only the statement that was sent over it."""
    if isinstance(error, ValueError):  # a parameter that the driver cannot encode
        return False
    if isinstance(error, asyncpg.PostgresError):
        code = error.sqlstate or ""
        return code.startswith("08") or code in (*SERVER_GONE, *SESSION_CHANGED)
    return True


def translated(error: BaseException) -> GregorError:
    """The error to raise for a driver's error."""
    if is_broken(error):
        return ConnectionBroken(describe(error))
    code = getattr(error, "sqlstate", "")
    if code in ROLLED_BACK:
        return TransactionRolledBack(describe(error))
    if code == UNIQUE_VIOLATION:
        return UniqueViolation(describe(error))
    return StorageUnavailable(describe(error))


def describe(error: BaseException) -> str:
    """The message of the server or of the driver."""
    if isinstance(error, TimeoutError):
        return "the store has not answered in time"
    if getattr(error, "sqlstate", "") in SESSION_CHANGED:
        return f"the store: {error.args[0]}; {USE_SESSIONS}"
    return f"the store: {error}"


def cannot_open(error: Exception, url: str) -> SetupError:
    name = redacted(url)
    match error:
        case asyncpg.InvalidCatalogNameError():
            return SetupError(f"{name}: {error}; make it first, with createdb")
        case asyncpg.InvalidAuthorizationSpecificationError():
            return SetupError(
                f"{name}: {error}; correct the user or password in the URL of --store"
            )
        case _ if is_at_limit(error):
            return Unreachable(
                f"{name} has no connection left: {error}; raise this limit, or lower "
                "--store-connections"
            )
        case SessionNotKept() | asyncpg.ProtocolViolationError():
            return SetupError(f"{name}: {error}")
        case OSError() | asyncpg.PostgresError() | asyncpg.InternalClientError():
            reason = "no answer" if isinstance(error, TimeoutError) else str(error)
            return Unreachable(
                f"{name} cannot be reached: {reason}; start PostgreSQL, or correct --store"
            )
        case _:
            return SetupError(f"{name} is not a URL that libpq accepts: {error}")
