"""A connection that writes to a database of schema 0006 as its code did."""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

from gregor.core.instant import Time
from gregor.core.message import UID, Category, DeviceID, MsgID
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.dialect import ROWS, encode_rows
from gregor.stores.sql.statements import (
    BulkStatement,
    Insert,
    Row,
    ScopeHash,
    ScopeKey,
    Statement,
    UserRecord,
    no_row,
)

R = TypeVar("R")


class SchemaOf0006:
    """A DatabaseConnection to a database without schema 0007. Columns that it lacks read as they
    would be after the migration, and are not written. Hashes are not kept."""

    def __init__(self, connection: DatabaseConnection) -> None:
        self.dialect = connection.dialect
        self._connection = connection

    def execute(self, statement: Statement[R], /, **parameters: object) -> list[R]:
        return self._connection.execute(_older(statement), **parameters)

    def execute_rows(self, statement: BulkStatement[Row, R], rows: Iterable[Row]) -> list[R]:
        return self.execute(statement, **{ROWS: encode_rows(rows)})

    def insert(self, insert: Insert[Row], rows: Sequence[Row]) -> None:
        older = _OLDER_INSERTS.get(insert.table)
        if older is not None:
            cut = [row[: len(older.columns)] for row in rows]
            self._connection.insert(older, cut)

    def execute_sql(self, text: str) -> list[tuple[Any, ...]]:
        return self._connection.execute_sql(text)

    def give_up_after(self, seconds: float) -> None:
        self._connection.give_up_after(seconds)


class _MessageRowOf0006(NamedTuple):
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


class _RangeRowOf0006(NamedTuple):
    """The first columns of a RangeRow."""

    uid: UID
    ctime: Time
    number: int
    end_time: Time
    category: Category
    prefix: bool
    skip_msg_ids: str


_OLDER_INSERTS: dict[str, Insert[Any]] = {
    "messages": Insert("messages", _MessageRowOf0006),
    "dismissed_ranges": Insert("dismissed_ranges", _RangeRowOf0006),
}

_COLUMNS = {
    r"\bmessages\.key\b": "CAST(NULL AS TEXT)",
    r"\bmessages\.starts_at\b": "CAST(NULL AS BIGINT)",
    r"\busers\.hash\b": "CAST(NULL AS TEXT)",
    r"\busers\.hashed_until\b": "CAST(0 AS BIGINT)",
    r"\busers\.mark\b": "CAST(0 AS BIGINT)",
    r"\busers\.floor\b": "CAST(0 AS BIGINT)",
    r"\busers\.epoch\b": "CAST(0 AS BIGINT)",
    r"\bdismissed_ranges\.scheduled\b": "false",
}

_OLDER_STATEMENTS: dict[Statement[Any], Statement[Any]] = {
    statements.UPSERT_CLOCKS: BulkStatement(
        """
        INSERT INTO users (uid, ctime, bucket)
        SELECT input.uid, input.ctime, input.bucket FROM input WHERE true
        ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime
        """,
        UserRecord,
        no_row,
    ),
    statements.USER_HEAD: Statement(
        """
        SELECT users.ctime, CAST(0 AS BIGINT), CAST(0 AS BIGINT), CAST(0 AS BIGINT),
            CAST(NULL AS TEXT), CAST(0 AS BIGINT), CAST(NULL AS TEXT)
        FROM users WHERE users.uid = :uid
        """,
        statements.UserHead._make,
    ),
    # No hash is kept, so none need be computed by a batch.
    statements.LIVE_ENTRIES: BulkStatement(
        "SELECT input.uid, NULL, 0, NULL, 0 FROM input WHERE false",
        statements.UserClock,
        statements.LiveEntry._make,
    ),
    statements.SCOPE_HASHES: BulkStatement(
        "SELECT input.uid, input.device_id, NULL FROM input WHERE false",
        ScopeKey,
        ScopeHash._make,
    ),
    statements.UPSERT_SCOPE_HASHES: BulkStatement(
        "SELECT input.uid FROM input WHERE false", ScopeHash, no_row
    ),
}


@cache
def _older(statement: Statement[R]) -> Statement[R]:
    """The statement for schema 0006."""
    if statement in _OLDER_STATEMENTS:
        return _OLDER_STATEMENTS[statement]
    text = statement.text
    for column, value in _COLUMNS.items():
        text = re.sub(column, value, text)
    if text == statement.text:
        return statement
    if isinstance(statement, BulkStatement):
        return BulkStatement(text, statement.input, statement.row)
    return Statement(text, statement.row)
