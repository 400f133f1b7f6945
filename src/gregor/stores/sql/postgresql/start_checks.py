"""What is checked once, when a database is opened: its version, its durability, its privileges."""

import logging

import asyncpg

from gregor.errors import SetupError
from gregor.log_event import LogEvent

log = logging.getLogger("gregor.store")

MIN_VERSION = 14

# A table that does not exist is left to the check of the schema.
MISSING_PRIVILEGES = """
SELECT format('GRANT %s ON %I TO %I', string_agg(privilege, ', ' ORDER BY n), t, current_user)
FROM unnest($1::text[] || $2::text[]) AS t,
     unnest('{SELECT, INSERT, UPDATE, DELETE}'::text[]) WITH ORDINALITY AS p (privilege, n)
WHERE to_regclass(quote_ident(t)) IS NOT NULL
  AND (t = ANY ($1) OR privilege = 'SELECT')
  AND NOT has_table_privilege(to_regclass(quote_ident(t)), privilege)
GROUP BY t ORDER BY t
"""

WRITTEN_TABLES = (
    *("users", "messages", "dismissed_ids", "dismissed_ranges", "dismissed_keys"),
    *("scope_hashes", "pruned", "leases", "pending_erasures"),
    *("shard", "buckets", "nodes"),
)
READ_TABLES = ("alembic_version", "oldest_writer", "deployment")


async def require_durable(connection: asyncpg.Connection) -> None:
    """Raises SetupError if the server is too old, or acknowledges commits that a crash may undo.
    Warns if the loss of the primary may undo what a standby should have."""
    major = connection.get_server_version().major
    if major < MIN_VERSION:
        raise SetupError(f"PostgreSQL {major} is too old; Gregor needs {MIN_VERSION} or later")
    level = await connection.fetchval("SHOW synchronous_commit")
    standbys = await connection.fetchval("SHOW synchronous_standby_names")
    if level == "off":
        raise SetupError(
            "synchronous_commit is off, so a crash could lose acknowledged messages; "
            "run: ALTER DATABASE … SET synchronous_commit = on"
        )
    if standbys and level not in ("on", "remote_apply"):
        log.warning(
            LogEvent(
                "commits are acknowledged before the standby has them",
                synchronous_commit=level,
                synchronous_standby_names=standbys,
                action="run: ALTER DATABASE … SET synchronous_commit = on",
            )
        )


async def require_privileges(connection: asyncpg.Connection) -> None:
    """Raises SetupError, with the statements to type, if the role may not use the tables."""
    grants = [
        row[0] for row in await connection.fetch(MISSING_PRIVILEGES, WRITTEN_TABLES, READ_TABLES)
    ]
    if grants:
        raise SetupError(
            f"the role of --store lacks privileges; run as the owner: {'; '.join(grants)}"
        )
