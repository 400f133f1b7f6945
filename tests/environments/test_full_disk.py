"""A PostgreSQL whose disk is really full: a small file system holds the database."""

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from gregor.clock import now
from gregor.core.message import MsgID, create
from gregor.errors import Unavailable
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from tests.fleet.servers import PostgreSQL
from tests.server.harness import until

SIZE = "48m"
AS_ROOT = [] if os.geteuid() == 0 else ["sudo"]


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Let the folder, while the block runs, be a small disk of its owner."""
    options = f"size={SIZE},uid={folder.stat().st_uid},mode=0700"
    subprocess.run([*AS_ROOT, "mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run([*AS_ROOT, "umount", "--lazy", folder], check=True)


@asynccontextmanager
async def database_on_small_disk() -> AsyncIterator[tuple[str, Path]]:
    """The URL of a database, and the disk that holds its tables, though not the server's log."""
    async with PostgreSQL() as server:
        disk = server.directory / "disk"
        disk.mkdir()
        os.chown(disk, server.directory.stat().st_uid, -1)
        with small_disk(disk):
            url = await server.create_database()
            connection = await asyncpg.connect(server.url)
            await connection.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
            await connection.execute(
                f"ALTER DATABASE {url.rpartition('/')[2]} SET TABLESPACE small"
            )
            await connection.close()
            yield url, disk
            await server.stop()


async def send_until_refused(machine: SQLStateMachine) -> tuple[list[MsgID], Unavailable]:
    """The messages that were acknowledged, and the error of the one that was not."""
    acknowledged: list[MsgID] = []
    while True:
        message = create("ann", "mail", "x" * 60_000)
        try:
            await machine.consume_message(message)
        except Unavailable as error:
            return acknowledged, error
        acknowledged.append(message.msg_id)


async def test_full_disk_of_postgresql_refuses_writes_until_there_is_room() -> None:
    async with database_on_small_disk() as (url, disk):
        database = database_at(url, migrate)
        async with database, SQLStateMachine(database, now) as machine:
            ballast = disk / "ballast"
            ballast.write_bytes(bytes(16 * 2**20))
            acknowledged, error = await send_until_refused(machine)
            assert "No space left on device" in str(error)
            assert await machine.problems() == [f"writes fail: {error}"]

            ballast.unlink()
            await until(lambda: not machine.writes.problems())
            message = create("ann", "mail")
            await machine.consume_message(message)
            shown = [item.msg_id for item in (await machine.state("ann")).items]
            assert shown == [*acknowledged, message.msg_id]
