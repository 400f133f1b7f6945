"""Sessions with PostgreSQL: how to connect, and the settings that every session has."""

import asyncpg

from gregor.stores.sql.tables import NEWEST_REVISION

CONNECT_TIMEOUT_SECONDS = 5.0

# The node that holds the locks of users may freeze in the middle of a transaction. Other nodes wait
# at most this long; then the server ends the transaction, and the frozen node has to retry it.
IDLE_IN_TRANSACTION_TIMEOUT = "5s"

# Every query can use an index, row by row. Without these settings the planner, whose statistics lag
# behind tables that grow as fast as ours, would sometimes scan a whole table, with the rows of all
# users; and a cached plan that was made while the tables were small would use the wrong index.
PLANNER_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "jit": "off",
}


async def connect(url: str, seconds: float) -> asyncpg.Connection:
    """A connection whose queries time out after `seconds`. Raises ValueError if the URL is invalid,
    and DRIVER_ERRORS."""
    return await asyncpg.connect(
        url,
        timeout=min(CONNECT_TIMEOUT_SECONDS, seconds),
        # The server times out first, and says why; a server that is down says nothing.
        command_timeout=seconds + 1,
        server_settings={
            **PLANNER_SETTINGS,
            "application_name": f"gregor-{NEWEST_REVISION}",
            "statement_timeout": f"{seconds * 1000:.0f}",
            "idle_in_transaction_session_timeout": IDLE_IN_TRANSACTION_TIMEOUT,
        },
    )
