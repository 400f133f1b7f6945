"""PostgreSQL is backed up as usual: a dump is one moment, and nodes need not pause for it."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from gregor.clock import now
from gregor.core.instant import TimeOrOffset
from gregor.core.message import InBandMessage, create
from gregor.stores.sql.migrations import migrate, require_served
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from tests.fleet.servers import PostgreSQL, postgresql_program

USERS = ("ann", "bob", "eve")
BEGINNING = TimeOrOffset(time=1)


async def write_until(done: asyncio.Event, machine: SQLStateMachine, uid: str) -> None:
    while not done.is_set():
        await machine.consume_message(create(uid, "chat"))


async def run(program: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(postgresql_program(program), *arguments)
    assert await process.wait() == 0


async def log(machine: SQLStateMachine, uid: str) -> Sequence[InBandMessage]:
    return await machine.in_band_messages_since(uid, None, BEGINNING)


async def test_dump_of_a_store_under_load_is_one_moment(
    postgresql_server: PostgreSQL, postgresql_url: str, tmp_path: Path
) -> None:
    file, done = f"{tmp_path}/dump", asyncio.Event()
    async with (
        database_at(postgresql_url, migrate) as database,
        SQLStateMachine(database, now) as machine,
        asyncio.TaskGroup() as tasks,
    ):
        for uid in USERS:
            tasks.create_task(write_until(done, machine, uid))
            await machine.consume_message(create(uid, "chat"))
        before = {uid: await log(machine, uid) for uid in USERS}
        await run("pg_dump", "--format=custom", f"--file={file}", postgresql_url)
        done.set()
        after = {uid: await log(machine, uid) for uid in USERS}
    restored_url = await postgresql_server.create_database()
    await run("pg_restore", "--exit-on-error", f"--dbname={restored_url}", file)
    async with (
        database_at(restored_url, require_served) as database,
        SQLStateMachine(database, now) as machine,
    ):
        for uid in USERS:
            restored = await log(machine, uid)
            assert len(before[uid]) <= len(restored) <= len(after[uid]) + 1
            same = min(len(restored), len(after[uid]))
            assert restored[:same] == after[uid][:same]
            stored = await machine.consume_message(create(uid, "chat"))
            assert isinstance(stored, InBandMessage)
            assert stored.prev == restored[-1].ctime
