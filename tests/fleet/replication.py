"""PostgreSQL with a standby, and a proxy as the virtual address that leads to one of the two.

    async with ReplicatedPostgreSQL() as servers:
        await servers.primary.kill()
        await servers.fail_over()

The standby replicates asynchronously. With `synchronous`, the primary answers a commit when the
standby has it.
"""

import asyncio
from contextlib import AsyncExitStack
from typing import Any, Self

import asyncpg

from tests.fleet.proxy import Proxy
from tests.fleet.servers import POLL_SECONDS, START_TIMEOUT_SECONDS, PostgreSQL

STANDBY = "standby1"
"""The name of the standby, for `synchronous_standby_names`."""

STREAMING = "SELECT count(*) = 1 FROM pg_stat_replication WHERE state = 'streaming'"
SYNCHRONOUS = "SELECT count(*) = 1 FROM pg_stat_replication WHERE sync_state = 'sync'"


class StandbyPostgreSQL(PostgreSQL):
    """A hot standby of another server: a base backup of it, which then follows its log."""

    def __init__(self, primary: PostgreSQL) -> None:
        super().__init__()
        self._primary = primary

    async def _create_data(self) -> None:
        source = f"host=127.0.0.1 port={self._primary.port} user=postgres"
        await self._run_to_end(
            "pg_basebackup",
            *("--dbname", f"{source} application_name={STANDBY}", "--pgdata", str(self._data)),
            *("--write-recovery-conf", "--checkpoint=fast", "--no-sync"),
        )

    async def catch_up(self) -> None:
        """Wait until it has replayed all that the primary has written until now."""
        primary = await asyncpg.connect(self._primary.url)
        written = await primary.fetchval("SELECT pg_current_wal_lsn()::text")
        await primary.close()
        await wait_until_true(
            self.url, "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", written
        )


class ReplicatedPostgreSQL:
    """A primary and its standby. `url` leads through the virtual `address` to the primary, until
    `move_address`. Opened with `async with`."""

    def __init__(self, *, synchronous: bool = False) -> None:
        self.primary = PostgreSQL()
        self.standby = StandbyPostgreSQL(self.primary)
        self.address = Proxy("127.0.0.1", 0)
        self._synchronous = synchronous
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.primary)
            await stack.enter_async_context(self.standby)
            self.address.lead_to(self.primary.port)
            await stack.enter_async_context(self.address)
            await wait_until_true(self.primary.url, STREAMING)
            if self._synchronous:
                await self._replicate_synchronously()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def create_database(self) -> str:
        """The URL of a new, empty database, through the address."""
        url = await self.primary.create_database()
        return url.replace(f":{self.primary.port}/", f":{self.address.port}/")

    async def fail_over(self) -> None:
        """Promote the standby, then let the address lead to it."""
        await self.standby.promote()
        self.move_address()

    def move_address(self) -> None:
        """Let new connections through the address lead to the standby."""
        self.address.lead_to(self.standby.port)

    async def _replicate_synchronously(self) -> None:
        # After the base backup: the standby, when it is promoted, has no standby to wait for.
        connection = await asyncpg.connect(self.primary.url)
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{STANDBY}'")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        await wait_until_true(self.primary.url, SYNCHRONOUS)


async def wait_until_true(url: str, question: str, *arguments: object) -> None:
    """Wait until the server answers the question with true."""
    connection = await asyncpg.connect(url)
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while not await connection.fetchval(question, *arguments):  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
    await connection.close()
