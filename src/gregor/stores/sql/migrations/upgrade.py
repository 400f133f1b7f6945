"""Runs the migrations with Alembic, on a connection of SQLAlchemy."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from gregor.stores.sql.migrations.postgresql import run_on_postgresql
from gregor.stores.sql.migrations.sqlite import run_on_sqlite
from gregor.stores.sql.tables import NEWEST_REVISION, OLDEST_WRITERS

# Two nodes that start at the same time must not both create the tables.
_MIGRATION_LOCK = "SELECT pg_advisory_xact_lock(6732763)"

# A change of a table waits for the transactions that use it, and all later ones wait behind it. So
# it gives up soon, if a backup or a report holds the table, and can be tried again.
_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"


class Upgrade(NamedTuple):
    """Brings the schema up to a revision. Idempotent."""

    revision: str

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        run_on_sqlite(driver, self.run)

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        await run_on_postgresql(connect, self.run)

    def run(self, connection: Connection) -> None:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(_MIGRATION_LOCK)
            connection.exec_driver_sql(_LOCK_TIMEOUT)
        config = Config()
        folder = str(Path(__file__).parent)
        config.set_main_option("script_location", folder.replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, self.revision)
        if self.revision == NEWEST_REVISION:
            oldest = {"oldest": OLDEST_WRITERS[NEWEST_REVISION]}
            connection.execute(_RAISE_OLDEST_WRITER, oldest)


# The oldest writer is never lowered: `gregor migrate --finish` may have raised it further.
_RAISE_OLDEST_WRITER = text("UPDATE oldest_writer SET revision = :oldest WHERE revision < :oldest")

NEWEST = Upgrade(NEWEST_REVISION)
