"""A database says how many of its connections are in use, and how many transactions wait."""

import asyncio
from collections.abc import Callable

import asyncpg

from gregor.stores.sql.database import DatabaseConnection, PoolUse
from gregor.stores.sql.store_url import database_at
from tests.server.harness import until

COUNT_CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


def running(sql: str) -> Callable[[DatabaseConnection], object]:
    return lambda connection: connection.execute_sql(sql)


async def test_pools_of_postgresql_show_use_and_waiting(postgresql_url: str) -> None:
    wait_for_lock = running("SELECT pg_advisory_xact_lock_shared(1)")
    holder = await asyncpg.connect(postgresql_url)
    async with database_at(postgresql_url, connections=2) as database:
        idle = {"writer": PoolUse(0, 1, 0), "reader": PoolUse(0, 2, 0)}
        assert database.pools() == idle
        await holder.execute("SELECT pg_advisory_lock(1)")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(database.read(wait_for_lock))
            for _ in range(3):
                tasks.create_task(database.write(wait_for_lock))
            busy = {"writer": PoolUse(1, 1, 2), "reader": PoolUse(2, 2, 3)}
            await until(lambda: database.pools() == busy)
            assert await holder.fetchval(COUNT_CONNECTIONS) == 1 + 2  # as many as it may have
            await holder.execute("SELECT pg_advisory_unlock(1)")
        assert database.pools() == idle
    assert database.pools() == idle
    await holder.close()


async def test_transaction_that_gives_up_waiting_is_not_counted(postgresql_url: str) -> None:
    async with database_at(postgresql_url, connections=1) as database:
        sleep = asyncio.create_task(database.read(running("SELECT pg_sleep(60)")))
        await until(lambda: database.pools()["reader"].in_use == 1)
        waiting = asyncio.create_task(database.read(running("SELECT 1")))
        await until(lambda: database.pools()["reader"].waiting == 1)
        waiting.cancel()
        await until(lambda: database.pools()["reader"] == PoolUse(1, 1, 0))
        sleep.cancel()
        await until(lambda: database.pools()["reader"] == PoolUse(0, 1, 0))
