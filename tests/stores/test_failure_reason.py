"""Each failure of a commit has a stable reason, taken from what the real driver raises."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing

import asyncpg
import pytest

from gregor.errors import NodeTooOld, StorageUnavailable
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.failure_reason import FailureReason, failure_reason
from gregor.stores.sql.store_url import database_at


def caused_by(error: BaseException) -> StorageUnavailable:
    failure = StorageUnavailable("the store: …")
    failure.__cause__ = error
    return failure


def running(*statements: str) -> Callable[[DatabaseConnection], object]:
    return lambda connection: [connection.execute_sql(sql) for sql in statements]


CREATE_TABLE = "CREATE TABLE t (n int)"


@pytest.mark.parametrize(
    ("statements", "reason"),
    [
        (("INSERT INTO missing VALUES (1)",), FailureReason.SCHEMA),
        (("SET TRANSACTION READ ONLY", CREATE_TABLE), FailureReason.READ_ONLY),
        (("CREATE ROLE guest", "SET ROLE guest", CREATE_TABLE), FailureReason.PERMISSION),
        (("SET LOCAL statement_timeout = 1", "SELECT pg_sleep(9)"), FailureReason.TIMEOUT),
        (("SELECT pg_terminate_backend(pg_backend_pid())",), FailureReason.CONNECTION),
        (("DO $$ BEGIN RAISE SQLSTATE '53100'; END $$",), FailureReason.DISK_FULL),
        (("SELECT 1 / 0",), FailureReason.OTHER),
    ],
)
async def test_reason_of_a_failure_of_postgresql(
    postgresql_url: str, statements: tuple[str, ...], reason: FailureReason
) -> None:
    async with database_at(postgresql_url) as database:
        with pytest.raises(StorageUnavailable) as raised:
            await database.write(running(*statements))
    assert failure_reason(raised.value) is reason


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("INSERT INTO missing VALUES (1)", FailureReason.SCHEMA),
        ("PRAGMA query_only = on", FailureReason.READ_ONLY),
        ("PRAGMA max_page_count = 1", FailureReason.DISK_FULL),
    ],
)
async def test_reason_of_a_failure_of_sqlite(sql: str, reason: FailureReason) -> None:
    async with database_at("sqlite://") as database:
        await database.write(running("CREATE TABLE t (n)"))
        with pytest.raises(StorageUnavailable) as raised:  # noqa: PT012
            await database.write(running(sql))
            await database.write(running("CREATE TABLE u AS SELECT randomblob(100000)"))
    assert failure_reason(raised.value) is reason


async def test_reason_without_a_server_is_the_connection() -> None:
    with pytest.raises(ConnectionRefusedError) as raised:
        await asyncpg.connect("postgresql://127.0.0.1:1/x")
    assert failure_reason(caused_by(raised.value)) is FailureReason.CONNECTION


async def test_reason_of_silence_is_the_timeout() -> None:
    with pytest.raises(TimeoutError) as raised:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    assert failure_reason(caused_by(raised.value)) is FailureReason.TIMEOUT


def test_reason_of_a_connection_that_is_closed_here() -> None:
    assert failure_reason(caused_by(asyncpg.InterfaceError("closed"))) is FailureReason.CONNECTION
    with closing(sqlite3.connect(":memory:")) as driver:
        driver.close()
        with pytest.raises(sqlite3.Error) as raised:
            driver.execute("SELECT 1")
    assert failure_reason(caused_by(raised.value)) is FailureReason.CONNECTION


def test_reason_is_other_where_no_driver_failed() -> None:
    assert failure_reason(StorageUnavailable("it is not open")) is FailureReason.OTHER


def test_reason_of_a_node_that_is_too_old_is_the_schema() -> None:
    assert failure_reason(NodeTooOld("upgrade it")) is FailureReason.SCHEMA


def test_reason_is_that_of_the_drivers_error() -> None:
    error = asyncpg.PostgresError.new({"C": "53100", "M": "could not extend file"})
    assert failure_reason(caused_by(caused_by(error))) is FailureReason.DISK_FULL
