"""What the errors of PostgreSQL and of its driver mean: which one to raise instead."""

import asyncpg

from gregor.errors import GregorError, SetupError, StorageUnavailable
from gregor.stores.sql.database import TransactionTooLong, UniqueViolation, Unreachable
from gregor.stores.sql.postgresql.session import USE_SESSIONS, SessionNotKept, is_at_limit
from gregor.urls import redacted

UNIQUE_VIOLATION = "23505"
STATEMENT_TIMEOUT = "57014"
ROLLED_BACK = ("40001", "40P01")  # serialization failure, deadlock: a retry may succeed
SERVER_GONE = (
    "57P01",
    "57P02",
    "57P03",
    "57P04",
    "57P05",
    "25006",
    "25P03",
)  # shutdown, crash, starting up, database dropped, idle session, read-only (a standby after a
# failover), idle in a transaction
# A prepared statement is missing, or there already: it was prepared in another session.
SESSION_CHANGED = ("26000", "42P05")

# InternalClientError: a statement was begun after the server's last message, but before its close.
DRIVER_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class NotPrimary(ConnectionError):
    """The connection leads to a standby. What it has may be old, and it takes no writes."""

    def __init__(self) -> None:
        super().__init__("the server is in recovery: a standby, not the primary")


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


def is_standby(error: BaseException) -> bool:
    """Whether the error shows that the connection leads to a standby."""
    return isinstance(error, NotPrimary | asyncpg.ReadOnlySQLTransactionError)


def translated(error: BaseException) -> GregorError:
    """The error to raise for a driver's error."""
    if is_broken(error):
        return ConnectionBroken(describe(error))
    code = getattr(error, "sqlstate", "")
    if code in ROLLED_BACK:
        return TransactionRolledBack(describe(error))
    if code == UNIQUE_VIOLATION:
        return UniqueViolation(describe(error))
    if code == STATEMENT_TIMEOUT:
        return TransactionTooLong(describe(error))
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
        case NotPrimary():
            return Unreachable(
                f"{name}: {error}; let --store name the primary, or promote this server"
            )
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
