"""Sessions with PostgreSQL: how to connect, and the settings that every session has.

A session has state: settings, and prepared statements. A connection pooler in between must keep it
for as long as the connection lasts, as PgBouncer does with `pool_mode = session`.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from gregor.stores.sql.postgresql.url import Connecting, connecting

CONNECT_TIMEOUT_SECONDS = 5.0

# The node that holds the locks of users may freeze in the middle of a transaction. Other nodes wait
# at most this long; then the server ends the transaction, and the frozen node has to retry it.
IDLE_IN_TRANSACTION_TIMEOUT_SECONDS = 5

# Every query can use an index, row by row. Without these settings the planner, whose statistics lag
# behind tables that grow as fast as ours, would sometimes scan a whole table, with the rows of all
# users; and a cached plan that was made while the tables were small would use the wrong index.
PLANNER_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_nestloop": "on",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_material": "off",
    "jit": "off",
}

# Those that a role or a database may have, and that would end our transactions or sessions. A
# statement, which may wait for a lock, ends with its own time-out.
OTHER_SETTINGS = {
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": f"{IDLE_IN_TRANSACTION_TIMEOUT_SECONDS * 1000}",
}
SINCE_17 = {"transaction_timeout": "0"}

USE_SESSIONS = (
    "let the pooler between here and PostgreSQL pool by session (PgBouncer: pool_mode = session), "
    "or connect to PostgreSQL directly"
)

# Transactions of two open connections, one after the other, are compared so often.
POOLING_ROUNDS = 5


def is_at_limit(error: BaseException) -> bool:
    """Whether PostgreSQL, or PgBouncer in front of it, accepts no more connections now."""
    if isinstance(error, asyncpg.ProtocolViolationError):
        return "no more connections allowed" in str(error)
    return isinstance(error, asyncpg.TooManyConnectionsError)


def is_refused(error: BaseException) -> bool:
    """Whether a connection was not made although others may live: PgBouncer lets those wait that
    are beyond the size of its pool."""
    return is_at_limit(error) or isinstance(error, TimeoutError)


class SessionNotKept(ConnectionError):
    """Something between the node and PostgreSQL does not keep the state of a session."""


def settings(version: int, seconds: float) -> Mapping[str, str]:
    """The settings of a session with this major version of PostgreSQL, in the units of
    pg_settings."""
    return {
        **PLANNER_SETTINGS,
        **OTHER_SETTINGS,
        **(SINCE_17 if version >= 17 else {}),
        "statement_timeout": f"{seconds * 1000:.0f}",
    }


async def connect(url: str, seconds: float) -> asyncpg.Connection:
    """A connection with our settings, whose queries time out after `seconds`. Raises
    DRIVER_ERRORS, of which ClientConfigurationError says that the URL is invalid."""
    how = connecting(url)
    driver = await _connect(how, seconds)
    try:
        async with asyncio.timeout(min(CONNECT_TIMEOUT_SECONDS, seconds)):
            await _set(driver, how.settings)
            await _set_ours(driver, settings(driver.get_server_version().major, seconds))
    except BaseException:
        driver.terminate()
        raise
    return driver


async def _set_ours(driver: asyncpg.Connection, wanted: Mapping[str, str]) -> None:
    """Give the session these settings, and check that it has them."""
    await _set(driver, wanted)
    names = ", ".join(f"'{name}'" for name in wanted)
    rows = await _rows(driver, f"SELECT name, setting FROM pg_settings WHERE name IN ({names})")
    found = {row["name"]: row["setting"] for row in rows}
    if different := sorted(name for name, value in wanted.items() if found.get(name) != value):
        raise SessionNotKept(
            f"the settings {', '.join(different)} were set, but do not hold; {USE_SESSIONS}"
        )


async def _set(driver: asyncpg.Connection, values: Mapping[str, str]) -> None:
    # Not as start-up parameters: PgBouncer refuses those, or ignores them without a word. Not with
    # SET either, which takes a quoted list as one value.
    if values:
        calls = (f"set_config({_text(n)}, {_text(v)}, false)" for n, v in values.items())
        await driver.execute(f"SELECT {', '.join(calls)}")


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


async def _rows(driver: asyncpg.Connection, query: str) -> list[Any]:
    """The rows of a query in a transaction, without a named prepared statement: this works behind
    any pooler that knows transactions."""
    async with driver.transaction():
        statement = await driver.prepare(query, name="")
        rows: list[Any] = await statement.fetch()
    return rows


# Servers


async def _connect(how: Connecting, seconds: float) -> asyncpg.Connection:
    """A connection to the first usable server."""
    failures: list[tuple[str, Exception]] = []
    share = seconds / len(how.servers)  # a server that is silent must leave time for the next
    for arguments in how.servers:
        limit = min(arguments.pop("timeout", CONNECT_TIMEOUT_SECONDS), share)
        try:
            # The server times out first, and says why; a server that is down says nothing.
            return await asyncpg.connect(timeout=limit, command_timeout=seconds + 1, **arguments)
        except (
            OSError,
            asyncpg.CannotConnectNowError,
            asyncpg.TargetServerAttributeNotMatched,
        ) as error:
            failures.append((_place(arguments), error))
    raise _no_server(failures)


def _place(arguments: dict[str, Any]) -> str:
    return f"{arguments['host'] or 'localhost'}:{arguments['port'] or 5432}"


def _no_server(failures: list[tuple[str, Exception]]) -> Exception:
    (_, error), *others = failures
    if others or isinstance(error, asyncpg.TargetServerAttributeNotMatched):
        return ConnectionError("; ".join(f"{place}: {_reason(e)}" for place, e in failures))
    return error


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "no answer"
        case asyncpg.TargetServerAttributeNotMatched():
            return "not the kind of server that target_session_attrs asks for, such as a standby"
        case _:
            return str(error)


# Poolers


async def check_pooling(url: str, seconds: float) -> None:
    """Raises SessionNotKept if a pooler in between gives the transactions of one connection
    different sessions, and DRIVER_ERRORS. Nothing is set: that would reach other clients."""
    async with _plain(url, seconds) as first:
        if await _backend(first) == first.get_server_pid():
            return  # PostgreSQL itself: a pooler invents a process id
        async with _plain(url, seconds) as second:
            rounds = [
                (await _backend(first), await _backend(second)) for _ in range(POOLING_ROUNDS)
            ]
    # By session, each connection has a process of PostgreSQL for itself, and keeps it.
    if len(set(rounds)) > 1 or rounds[0][0] == rounds[0][1]:
        raise SessionNotKept(
            "a pooler in between pools by transaction, but settings and prepared statements "
            f"belong to a session; {USE_SESSIONS}"
        )


@asynccontextmanager
async def _plain(url: str, seconds: float) -> AsyncIterator[asyncpg.Connection]:
    driver = await _connect(connecting(url), seconds)
    try:
        yield driver
    finally:
        driver.terminate()


async def _backend(driver: asyncpg.Connection) -> int:
    """The process of PostgreSQL that runs a transaction of this connection."""
    try:
        ((pid,),) = await _rows(driver, "SELECT pg_backend_pid()")
    except (asyncpg.ProtocolViolationError, asyncpg.ConnectionDoesNotExistError) as error:
        if "pooling mode" not in str(error):
            raise
        raise SessionNotKept(
            f"a pooler in between refuses transactions: {error}; {USE_SESSIONS}"
        ) from error
    return int(pid)
