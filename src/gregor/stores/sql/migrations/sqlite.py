"""Runs a migration, which SQLAlchemy executes, on a connection of sqlite3."""

import sqlite3
from collections.abc import Callable

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool


def run_on_sqlite(driver: sqlite3.Connection, work: Callable[[Connection], None]) -> None:
    """Run the work in one transaction. The connection stays open. Raises sqlite3.Error."""
    # The pool is never disposed of, which would close its connection.
    engine = create_engine("sqlite://", creator=lambda: driver, poolclass=StaticPool)
    event.listen(engine, "begin", lambda c: c.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            work(connection)
    except DBAPIError as error:
        raise error.orig or error from error
