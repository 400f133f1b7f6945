"""What a database needs before it can be used: a schema that this code serves, and the right name.

A database that needs no migration is only asked for its schema. `upgrade.py`, which loads Alembic
and SQLAlchemy, is imported when there is a migration to run.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from gregor.errors import SetupError
from gregor.extras import required_extra
from gregor.stores.new_deployment import new_deployment
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.deployment import keep_deployment
from gregor.stores.sql.schema import (
    LAST_UNREGISTERED,
    OLDEST_SERVED,
    Schema,
    read_schema,
    running_nodes,
)
from gregor.stores.sql.sqlite import lacks_auto_vacuum, transact, vacuum
from gregor.stores.sql.statements import SET_OLDEST_WRITER, SET_REVISION, SHARD_NAME
from gregor.stores.sql.tables import CREATE_TABLES, NEWEST_REVISION, OLDEST_WRITERS
from gregor.stores.sql.transactions import wait_for_writers


class Preparation(NamedTuple):
    """A Migration to the newest schema, or with `may_migrate` False only a check that this code
    serves the one that a database has. A schema that is newer is served too, if the database says
    that this code may write to it. Unless it `may_be_shard`, a database that is a shard of several
    is refused."""

    may_migrate: bool
    may_be_shard: bool = True

    def is_due(self, connection: DatabaseConnection) -> bool:
        schema = read_schema(connection)
        is_older = schema is None or schema.revision < NEWEST_REVISION
        _require_known(schema)
        if not self.may_migrate:
            _require_served(schema)
        shard = None if self.may_be_shard else _shard(connection, schema)
        if shard is not None:
            raise SetupError(
                f"this database is shard {shard!r} of several; name all shards: "
                f"--store {shard}=URL --store NAME=URL"
            )
        if is_older and self.may_migrate:
            _require_no_node_before(OLDEST_WRITERS[NEWEST_REVISION], connection, schema)
        return self.may_migrate and (is_older or _needs_vacuum(connection))

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        if transact(driver, "BEGIN IMMEDIATE", _is_older_file):
            with required_extra("server"):
                from gregor.stores.sql.migrations.upgrade import NEWEST
            NEWEST.on_sqlite(driver)
        if transact(driver, "BEGIN", _needs_vacuum):
            vacuum(driver)

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        with required_extra("server"):
            from gregor.stores.sql.migrations.upgrade import NEWEST
        await NEWEST.on_postgresql(connect)


migrate = Preparation(may_migrate=True)
"""Brings the schema up to date. Idempotent. Raises SetupError if this code may not write to the
schema, or if a node runs whose code could not write to the newest one."""

require_served = Preparation(may_migrate=False)
"""Raises SetupError, which names the command to run, if this code does not serve the schema."""


def requiring_no_shard(preparation: Preparation) -> Preparation:
    """The same, which then raises SetupError if the database is a shard of several."""
    return preparation._replace(may_be_shard=False)


def finish(connection: DatabaseConnection) -> None:
    """Let only code of the newest schema write from now on. Idempotent. Raises SetupError if an
    older node runs. When this is committed, what older code has begun to write is committed."""
    schema = read_schema(connection)
    _require_no_node_before(NEWEST_REVISION, connection, schema)
    wait_for_writers(connection)
    if schema is not None and schema.oldest_writer < NEWEST_REVISION:
        connection.execute(SET_OLDEST_WRITER, revision=NEWEST_REVISION)


def roll_back(connection: DatabaseConnection) -> None:
    """Let nodes start whose code accepts only schema LAST_UNREGISTERED. Nothing is removed, so
    newer nodes keep running; to start a new one, migrate again. Idempotent. Raises SetupError if
    such code may not write any more."""
    schema = read_schema(connection)
    if schema is None or schema.oldest_writer > LAST_UNREGISTERED:
        raise SetupError(
            f"code of schema {LAST_UNREGISTERED} may not write to this database any more; "
            "restore a backup, or run newer code"
        )
    connection.execute(SET_REVISION, revision=LAST_UNREGISTERED)


def revision(connection: DatabaseConnection) -> str | None:
    """The revision of the database's schema; None if it has no schema."""
    schema = read_schema(connection)
    return None if schema is None else schema.revision


def _require_known(schema: Schema | None) -> None:
    """Raises SetupError if this code may not write to the schema."""
    if schema is None:
        return
    if schema.oldest_writer > NEWEST_REVISION:
        raise SetupError(
            f"the database has schema {schema.revision}, and accepts only code of schema "
            f"{schema.oldest_writer} or newer; this version of Gregor was written for "
            f"{NEWEST_REVISION}; run the newer version: pip install -U gregor-sync"
        )
    if schema.revision < NEWEST_REVISION and schema.revision not in OLDEST_WRITERS:
        raise SetupError(
            f"the database has schema {schema.revision!r}, which no version of Gregor has made; "
            "restore it from a backup"
        )


def _require_served(schema: Schema | None) -> None:
    """Raises SetupError if the schema is older than this code can serve."""
    if schema is None or not schema.has(OLDEST_SERVED):
        problem = (
            "has no tables yet" if schema is None else f"has the older schema {schema.revision}"
        )
        raise SetupError(
            f"the database {problem}; prepare it with `gregor migrate --store URL`, "
            "or start with --migrate"
        )


def _require_no_node_before(
    revision: str, connection: DatabaseConnection, schema: Schema | None
) -> None:
    """Raises SetupError, which names them, if nodes run whose code is older."""
    if schema is None:
        return
    older = [
        f"{node.name} (schema {node.revision})"
        for node in running_nodes(connection, schema.revision)
        if node.revision < revision
    ]
    if older:
        raise SetupError(
            f"nodes run whose code is older than schema {revision}: {', '.join(older)}; upgrade or "
            "stop them, then try again (a node that was killed counts for 30 s)"
        )


def _shard(connection: DatabaseConnection, schema: Schema | None) -> str | None:
    """The name of this shard; None if the database is not one of several."""
    if schema is None or not schema.has("0002"):  # which has no such table
        return None
    return next((row.name for row in connection.execute(SHARD_NAME)), None)


def _is_older_file(connection: DatabaseConnection) -> bool:
    """Whether the file has an older schema. A new one gets its tables."""
    schema = read_schema(connection)
    if schema is not None:
        return not schema.has(NEWEST_REVISION)
    for statement in CREATE_TABLES:
        connection.execute_sql(statement)
    keep_deployment(connection, new_deployment())
    return False


def _needs_vacuum(connection: DatabaseConnection) -> bool:
    return not connection.dialect.has_row_locks and lacks_auto_vacuum(connection)
