"""Migrations for tests: to any revision, or none."""

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations.postgresql import run_on_postgresql
from gregor.stores.sql.migrations.sqlite import run_on_sqlite

T = TypeVar("T")


class OnSQLAlchemy(Generic[T]):
    """A Migration that runs the work once, on a connection of SQLAlchemy."""

    def __init__(self, work: Callable[[Connection], T]) -> None:
        self._work = work
        self.results: list[T] = []

    def is_due(self, connection: DatabaseConnection) -> bool:
        return not self.results

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        run_on_sqlite(driver, self._run)

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        await run_on_postgresql(connect, self._run)

    def _run(self, connection: Connection) -> None:
        self.results.append(self._work(connection))
