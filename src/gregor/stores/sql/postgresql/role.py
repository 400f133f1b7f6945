"""Whether a connection leads to a primary, and which history that primary continues.

A standby that is promoted begins a new timeline. What the old primary had committed and not yet
replicated is not part of it (decision 26).
"""

from typing import NamedTuple

import asyncpg

from gregor.stores.sql.postgresql.errors import NotPrimary


class Timeline(NamedTuple):
    """A history of commits: the cluster, by its system identifier, and its timeline."""

    system: int
    number: int


# Any role may ask all of this, unless a provider has taken it away. pg_control_checkpoint would
# give the old timeline until the first checkpoint after a promotion; pg_walfile_name raises an
# error on a standby.
ROLE = """
SELECT pg_is_in_recovery(),
       (SELECT system_identifier FROM pg_control_system()),
       CASE WHEN pg_is_in_recovery() THEN '' ELSE pg_walfile_name(pg_current_wal_lsn()) END
"""

TIMELINE_DIGITS = 8  # hexadecimal, at the beginning of the name of a WAL file

# A read must not be answered by a primary that has become a standby, with or without a broken
# connection. A standby refuses READ WRITE, so that costs no round trip of its own.
BEGIN_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ WRITE; SET TRANSACTION READ ONLY"
BEGIN_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED"


UNKNOWN = Timeline(0, 0)
"""Of a server that does not tell: a failover then shows by broken connections, and by cursors that
are ahead."""

NOT_TOLD = (
    asyncpg.InsufficientPrivilegeError,
    asyncpg.FeatureNotSupportedError,
    asyncpg.UndefinedFunctionError,
)


async def timeline_of(connection: asyncpg.Connection) -> Timeline:
    """The history that the primary at the other end continues. Not in a transaction. Raises
    NotPrimary, and DRIVER_ERRORS."""
    try:
        in_recovery, system, wal_file = await connection.fetchrow(ROLE)
    except NOT_TOLD:
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise NotPrimary from None
        return UNKNOWN
    if in_recovery:
        raise NotPrimary
    return Timeline(system, int(wal_file[:TIMELINE_DIGITS], 16))


async def begin(connection: asyncpg.Connection, statement: str) -> None:
    """Begin a transaction with one of the statements above. Raises NotPrimary for a read on a
    standby, and DRIVER_ERRORS."""
    try:
        await connection.execute(statement)
    except asyncpg.FeatureNotSupportedError as error:
        raise NotPrimary from error
