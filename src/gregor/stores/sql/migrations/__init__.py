"""What a database needs before it can be used: the newest schema, and the right name.

A database that has the newest schema is only asked for it. `upgrade.py`, which loads Alembic and
SQLAlchemy, is imported when there is a migration to run.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from gregor.errors import SetupError
from gregor.extras import required_extra
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.sqlite import transact
from gregor.stores.sql.statements import HAS_SCHEMA, SCHEMA_REVISION, SHARD_NAME
from gregor.stores.sql.tables import CREATE_TABLES, NEWEST_REVISION

REVISIONS = ("0001", "0002", "0003", NEWEST_REVISION)


class Preparation(NamedTuple):
    """A Migration to the newest schema, or with `may_migrate` False only a check that a database
    has it. Unless it `may_be_shard`, a database that is a shard of several is refused."""

    may_migrate: bool
    may_be_shard: bool = True

    def is_due(self, connection: DatabaseConnection) -> bool:
        found = revision(connection)
        if found not in (None, *REVISIONS):
            raise SetupError(
                f"the database has schema {found}, which is newer than this version of Gregor "
                f"knows ({NEWEST_REVISION}); run the newer version: pip install -U gregor-sync"
            )
        if found != NEWEST_REVISION and not self.may_migrate:
            problem = "has no tables yet" if found is None else f"has the older schema {found}"
            raise SetupError(
                f"the database {problem}; prepare it with `gregor migrate --store URL`, "
                "or start with --migrate"
            )
        shard = None if self.may_be_shard else _shard(connection, found)
        if shard is not None:
            raise SetupError(
                f"this database is shard {shard!r} of several; name all shards: "
                f"--store {shard}=URL --store NAME=URL"
            )
        return found != NEWEST_REVISION

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        if not transact(driver, "BEGIN IMMEDIATE", _create_tables_if_new):
            with required_extra("server"):
                from gregor.stores.sql.migrations.upgrade import NEWEST
            NEWEST.on_sqlite(driver)

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        with required_extra("server"):
            from gregor.stores.sql.migrations.upgrade import NEWEST
        await NEWEST.on_postgresql(connect)


migrate = Preparation(may_migrate=True)
"""Brings the schema up to date. Idempotent. Raises SetupError if the schema is newer than this code
knows."""

require_newest = Preparation(may_migrate=False)
"""Raises SetupError, which names the command to run, if the schema is not the one that this code
needs."""


def requiring_no_shard(preparation: Preparation) -> Preparation:
    """The same, which then raises SetupError if the database is a shard of several."""
    return preparation._replace(may_be_shard=False)


def revision(connection: DatabaseConnection) -> str | None:
    """The revision of the database's schema; None if it has no schema."""
    (has_schema,) = connection.execute(HAS_SCHEMA)
    if not has_schema.tables:
        return None
    return next((row.version for row in connection.execute(SCHEMA_REVISION)), None)


def _shard(connection: DatabaseConnection, revision: str | None) -> str | None:
    """The name of this shard; None if the database is not one of several."""
    if revision in (None, "0001"):  # which has no such table
        return None
    return next((row.name for row in connection.execute(SHARD_NAME)), None)


def _create_tables_if_new(connection: DatabaseConnection) -> bool:
    if revision(connection) is not None:
        return False
    for statement in CREATE_TABLES:
        connection.execute_sql(statement)
    return True
