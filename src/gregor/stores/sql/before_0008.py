"""Serving a database that does not have schema 0008 yet, because its nodes are upgraded first.

Everything is served as before; no user is pruned or erased, and no author is stored. The migration
may happen at any moment, so each transaction first asks which schema there is, and a writer keeps
it from changing until its commit.

When OLDEST_SERVED is 0008, this file can be removed, with `is_migrated` of the state machine.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from gregor.core.instant import Time
from gregor.core.message import UID, Category, DeviceID, Key, MsgID
from gregor.interfaces import Slot, StoreOutcome
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection, Work
from gregor.stores.sql.dialect import ROWS, encode_rows
from gregor.stores.sql.statements import BulkStatement, Insert, Row, Statement, no_row

REVISION = "0008"

T = TypeVar("T")
R = TypeVar("R")
Consume = Callable[..., list[StoreOutcome]]


def reading(work: Work[T]) -> Work[T]:
    """The same work, which reads, for both schemas."""

    def read(connection: DatabaseConnection) -> T:
        return work(connection if _is_migrated(connection) else Unmigrated(connection))

    return read


def consuming(consume: Consume) -> Consume:
    """The same function that stores a batch, for both schemas."""

    def consume_on_either(
        connection: DatabaseConnection,
        slots: Sequence[Slot],
        now: Time,
        *,
        any_bucket: bool = False,
    ) -> list[StoreOutcome]:
        if connection.dialect.has_row_locks:
            connection.execute(_KEEP_SCHEMA)
        if not _is_migrated(connection):
            connection = Unmigrated(connection)
        return consume(connection, slots, now, any_bucket=any_bucket)

    return consume_on_either


def _is_migrated(connection: DatabaseConnection) -> bool:
    (schema,) = connection.execute(statements.SCHEMA_REVISION)
    return schema.revision >= REVISION


# The migration needs a lock on this table that conflicts with this one, which is held until the
# commit.
_KEEP_SCHEMA = Statement("LOCK TABLE users IN ROW EXCLUSIVE MODE", no_row)


class Unmigrated:
    """A DatabaseConnection to a database without schema 0008. Columns that it lacks read as they
    would be after the migration, and are not written."""

    def __init__(self, connection: DatabaseConnection) -> None:
        self.dialect = connection.dialect
        self._connection = connection

    def execute(self, statement: Statement[R], /, **parameters: object) -> list[R]:
        return self._connection.execute(_older(statement), **parameters)

    def execute_rows(self, statement: BulkStatement[Row, R], rows: Iterable[Row]) -> list[R]:
        return self.execute(statement, **{ROWS: encode_rows(rows)})

    def insert(self, insert: Insert[Row], rows: Sequence[Row]) -> None:
        older = _OLDER_INSERTS.get(insert.table)
        if older is None:
            self._connection.insert(insert, rows)
        else:
            self._connection.insert(older, [row[: len(older.columns)] for row in rows])

    def execute_sql(self, text: str) -> list[tuple[Any, ...]]:
        return self._connection.execute_sql(text)

    def give_up_after(self, seconds: float) -> None:
        self._connection.give_up_after(seconds)


class _OlderMessageRow(NamedTuple):
    """The first columns of a MessageRow."""

    uid: UID
    ctime: Time
    prev: Time
    msg_id: MsgID
    device_id: DeviceID | None
    message: str
    category: Category | None
    expires_at: Time | None
    dismissed_at: Time | None
    key: Key | None
    starts_at: Time | None


_OLDER_INSERTS: dict[str, Insert[Any]] = {"messages": Insert("messages", _OlderMessageRow)}

_COLUMNS = {
    r"\bmessages\.author\b": "CAST(NULL AS TEXT)",
    r"\busers\.floor\b": "CAST(0 AS BIGINT)",
    r"\busers\.epoch\b": "CAST(0 AS BIGINT)",
    r"\busers\.erased_at\b": "CAST(0 AS BIGINT)",
}


@cache
def _older(statement: Statement[R]) -> Statement[R]:
    """The statement for schema 0007."""
    text = statement.text
    for column, value in _COLUMNS.items():
        text = re.sub(column, value, text)
    if text == statement.text:
        return statement
    if isinstance(statement, BulkStatement):
        return BulkStatement(text, statement.input, statement.row)
    return Statement(text, statement.row)
