"""Which schema a database has, which code may write to it, and which nodes run on it (decision 29).

Code is named by the revision of the schema for which it was written. Functions that take a
connection run inside the transaction of their caller.
"""

from typing import NamedTuple

from gregor.core.instant import SECOND
from gregor.errors import NodeTooOld, SetupError
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.statements import NodeRow
from gregor.stores.sql.tables import NEWEST_REVISION

OLDEST_SERVED = "0008"
"""The oldest schema on which this code can serve. It answers with NotMigrated what needs a later
one."""

SILENCE = 30 * SECOND
"""For how long a node that has been killed counts as running. Nodes register every 10 s."""

LAST_UNREGISTERED = "0004"
"""Code of this schema and before accepts no other one, reads no oldest writer, and is not
registered."""


class Schema(NamedTuple):
    """What a database says of its schema: its revision, and the oldest code that may write."""

    revision: str
    oldest_writer: str

    def has(self, revision: str) -> bool:
        """Whether the database has what this revision has added."""
        return self.revision >= revision


def read_schema(connection: DatabaseConnection) -> Schema | None:
    """The schema of the database; None if it has none."""
    if not _has_table(connection, "alembic_version"):
        return None
    revision = next((row.revision for row in connection.execute(statements.SCHEMA_REVISION)), None)
    if revision is None:
        return None
    if not _has_table(connection, "oldest_writer"):
        return Schema(revision, revision)  # code before schema 0005 accepts no other schema
    (oldest,) = connection.execute(statements.OLDEST_WRITER)
    return Schema(revision, oldest.revision)


def existing_schema(connection: DatabaseConnection) -> Schema:
    """The schema of a database that has one. Raises SetupError if it has none."""
    schema = read_schema(connection)
    if schema is None:
        raise SetupError("the database has no tables yet; prepare it with `gregor migrate`")
    return schema


def require_writer(connection: DatabaseConnection) -> None:
    """Raises NodeTooOld if this code may not write to the database."""
    for row in connection.execute(statements.OLDEST_WRITER):
        require_not_too_old(row.revision)


def require_not_too_old(oldest_writer: str) -> None:
    """Raises NodeTooOld if this code is older than the oldest that may write."""
    if oldest_writer > NEWEST_REVISION:
        raise NodeTooOld(
            f"this node's code is too old to write: it was written for schema {NEWEST_REVISION}, "
            f"and the database accepts {oldest_writer} and later; upgrade the node "
            "(pip install -U gregor-sync)"
        )


def running_nodes(connection: DatabaseConnection, found: str) -> list[NodeRow]:
    """The nodes that run on a database whose schema has been `found`."""
    if not connection.dialect.has_row_locks:
        return []  # a file: this process is alone
    registered: list[NodeRow] = []
    if _has_table(connection, "nodes"):
        registered = connection.execute(statements.RUNNING_NODES, silence=SILENCE)
    unregistered = min(found, LAST_UNREGISTERED)
    clients = connection.execute(statements.UNREGISTERED_NODES)
    return registered + [
        NodeRow(f"{c.sessions} connections from {c.client}", unregistered) for c in clients
    ]


def register(connection: DatabaseConnection, name: str) -> None:
    """Say that the node with this name runs this code. Repeat it at least every SILENCE."""
    connection.execute(statements.DELETE_SILENT_NODES, silence=SILENCE)
    connection.execute_rows(statements.REGISTER_NODE, [NodeRow(name, NEWEST_REVISION)])


def unregister(connection: DatabaseConnection, name: str) -> None:
    """Say that the node has ended."""
    connection.execute(statements.DELETE_NODE, name=name)


def _has_table(connection: DatabaseConnection, name: str) -> bool:
    (count,) = connection.execute(statements.HAS_TABLE, name=name)
    return bool(count.tables)
