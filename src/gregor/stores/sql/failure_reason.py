"""Why a database has not accepted a commit: a few stable words, for metrics and alerts."""

from enum import StrEnum

from gregor.errors import GregorError, NodeTooOld, StorageUnavailable


class FailureReason(StrEnum):
    """What an operator looks at first. The error's message has the details."""

    DISK_FULL = "disk_full"
    READ_ONLY = "read_only"  # a standby, or a file system that became read-only
    PERMISSION = "permission"  # the role or the user of the process lacks a right
    TIMEOUT = "timeout"  # no answer in time, or a lock was not free in time
    CONNECTION = "connection"  # it broke, or could not be made
    SCHEMA = "schema"  # a table or the database is missing, or this node is too old for it
    OTHER = "other"


# The longest prefix of the code that is listed here decides.
SQLSTATES = {
    "08": FailureReason.CONNECTION,
    "25006": FailureReason.READ_ONLY,
    "25P03": FailureReason.TIMEOUT,  # idle in a transaction
    "28": FailureReason.PERMISSION,
    "3D": FailureReason.SCHEMA,
    "3F": FailureReason.SCHEMA,
    "42": FailureReason.SCHEMA,
    "42501": FailureReason.PERMISSION,
    "53100": FailureReason.DISK_FULL,
    "53300": FailureReason.CONNECTION,  # too many connections
    "55P03": FailureReason.TIMEOUT,  # lock_timeout
    "57014": FailureReason.TIMEOUT,  # statement_timeout
    "57P": FailureReason.CONNECTION,  # shutdown, crash, starting up
}
SQLITE_CODES = {
    "SQLITE_AUTH": FailureReason.PERMISSION,
    "SQLITE_CANTOPEN": FailureReason.PERMISSION,
    "SQLITE_ERROR": FailureReason.SCHEMA,  # such as "no such table"; our SQL is fixed
    "SQLITE_FULL": FailureReason.DISK_FULL,
    "SQLITE_IOERR_WRITE": FailureReason.DISK_FULL,
    "SQLITE_PERM": FailureReason.PERMISSION,
    "SQLITE_READONLY": FailureReason.READ_ONLY,
}


def failure_reason(error: StorageUnavailable) -> FailureReason:
    """The reason, from the driver's error that caused this one."""
    cause: BaseException = error
    while isinstance(cause, GregorError) and cause.__cause__ is not None:
        cause = cause.__cause__
    match getattr(cause, "sqlstate", None), getattr(cause, "sqlite_errorname", None):
        case str(sqlstate), _:
            return _of_code(sqlstate, SQLSTATES)
        case _, str(name):
            return _of_code(name, SQLITE_CODES)
    match cause:
        case NodeTooOld():
            return FailureReason.SCHEMA
        case GregorError() | ValueError():  # no driver failed; a value it cannot encode
            return FailureReason.OTHER
        case TimeoutError():
            return FailureReason.TIMEOUT
        case _:
            return FailureReason.CONNECTION


def _of_code(code: str, reasons: dict[str, FailureReason]) -> FailureReason:
    listed = [prefix for prefix in reasons if code.startswith(prefix)]
    return reasons[max(listed, key=len)] if listed else FailureReason.OTHER
