"""A database within one transaction, on a connection of asyncpg."""

from collections.abc import Iterable, Sequence
from functools import cache
from math import inf
from time import monotonic
from typing import Any, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from gregor.stores.sql.database import TransactionTooLong
from gregor.stores.sql.dialect import POSTGRESQL, encode_rows, sql_of
from gregor.stores.sql.statements import BulkStatement, Insert, Row, Statement, no_row
from gregor.stores.sql.sync_bridge import wait_for

R = TypeVar("R")


class PostgreSQLConnection:
    """A DatabaseConnection of asyncpg, for a transaction that `run_sync` runs, and in which each
    statement may take `seconds`."""

    dialect = POSTGRESQL

    def __init__(
        self, driver: asyncpg.Connection | PoolConnectionProxy, seconds: float = inf
    ) -> None:
        self._driver = driver
        self._seconds = seconds
        self._end = inf  # when it is given up

    def execute(self, statement: Statement[R], /, **parameters: object) -> list[R]:
        self._check_time()
        text, names = sql_of(statement, POSTGRESQL)
        rows = wait_for(self._driver.fetch(text, *(parameters[name] for name in names)))
        if statement.row is no_row:
            return []
        return [statement.row(row) for row in rows]

    def execute_rows(self, statement: BulkStatement[Row, R], rows: Iterable[Row]) -> list[R]:
        return self.execute(statement, rows=encode_rows(rows))

    def insert(self, insert: Insert[Row], rows: Sequence[Row]) -> None:
        if rows:
            self._check_time()
            wait_for(self._driver.execute(_insert_sql(insert), *zip(*rows, strict=True)))

    def execute_sql(self, text: str) -> list[tuple[Any, ...]]:
        self._check_time()
        return [tuple(row) for row in wait_for(self._driver.fetch(text))]

    def give_up_after(self, seconds: float) -> None:
        """What it waits for counts here, so it has as long as one of its statements."""
        self._end = monotonic() + self._seconds

    def _check_time(self) -> None:
        if monotonic() > self._end:
            raise TransactionTooLong("the store: a transaction took too long")


@cache
def _insert_sql(insert: Insert[Any]) -> str:
    arrays = ", ".join(
        f"${n}::{type_}[]" for n, type_ in enumerate(insert.columns.values(), start=1)
    )
    columns = ", ".join(insert.columns)
    return f"INSERT INTO {insert.table} ({columns}) SELECT * FROM unnest({arrays})"
