"""The schema's revisions, and the functions that bring a database up to date."""

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gregor.errors import SetupError
from gregor.stores.sql.migrations.postgresql import run_on_postgresql
from gregor.stores.sql.migrations.sqlite import run_on_sqlite

# Two nodes that start at the same time must not both create the tables.
_MIGRATION_LOCK = "SELECT pg_advisory_xact_lock(6732763)"


class SchemaWork(NamedTuple):
    """A Migration that is a function of a connection of SQLAlchemy. Only this package loads
    SQLAlchemy, which Alembic needs: it takes 100 ms, and a device's store does without."""

    run: Callable[[Connection], None]

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        run_on_sqlite(driver, self.run)

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        await run_on_postgresql(connect, self.run)


@SchemaWork
def migrate(connection: Connection) -> None:
    """Bring the schema up to date, inside the caller's transaction. Idempotent.
    Raises SetupError if the schema is newer than this code knows."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_MIGRATION_LOCK)
    upgrade_to(connection, "head")


def upgrade_to(connection: Connection, target: str) -> None:
    """Bring the schema up to a revision, inside the caller's transaction."""
    config = _config()
    _reject_newer_schema(revision(connection), ScriptDirectory.from_config(config))
    config.attributes["connection"] = connection
    command.upgrade(config, target)


@SchemaWork
def require_newest(connection: Connection) -> None:
    """Raises SetupError, which names the command to run, if the schema is not the one that this
    code needs."""
    scripts = ScriptDirectory.from_config(_config())
    found = revision(connection)
    _reject_newer_schema(found, scripts)
    if found != scripts.get_current_head():
        problem = "has no tables yet" if found is None else f"has the older schema {found}"
        raise SetupError(
            f"the database {problem}; prepare it with `gregor migrate --store URL`, "
            "or start with --migrate"
        )


def _reject_newer_schema(found: str | None, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise SetupError(
            f"the database has schema {found}, which is newer than this version of Gregor knows "
            f"({scripts.get_current_head()}); run the newer version: pip install -U gregor-sync"
        )


def revision(connection: Connection) -> str | None:
    """The revision of the database's schema; None if it has no schema."""
    return MigrationContext.configure(connection).get_current_revision()


def requiring_no_shard(migration: SchemaWork) -> SchemaWork:
    """The migration, which then raises SetupError if the database is a shard of several."""

    @SchemaWork
    def run(connection: Connection) -> None:
        migration.run(connection)
        shard = connection.exec_driver_sql("SELECT name FROM shard").scalar()
        if shard is not None:
            raise SetupError(
                f"this database is shard {shard!r} of several; name all shards: "
                f"--store {shard}=URL --store NAME=URL"
            )

    return run


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
