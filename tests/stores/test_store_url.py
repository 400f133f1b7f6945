"""Opening a database, the errors that say why it cannot be opened, and failures while in use."""

import os
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gregor.core.message import create
from gregor.errors import SetupError, StorageUnavailable
from gregor.interfaces import Duplicate, Stored
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at, parse_url

OPEN_DATABASE_SCRIPT = """
import asyncio, sys
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.migrations import migrate

async def main():
    async with database_at(sys.argv[1], migrate):
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def clock() -> int:
    return 1_000


async def open_error(url: str) -> str:
    """The message of the error that opening the database raises."""
    with pytest.raises(SetupError) as raised:
        async with database_at(url, migrate):
            pass
    return raised.value.message


@asynccontextmanager
async def held_open(url: str) -> AsyncIterator[Process]:
    """Another process has the database open."""
    process = await create_subprocess_exec(
        sys.executable, "-c", OPEN_DATABASE_SCRIPT, url, stdin=PIPE, stdout=PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    try:
        yield process
    finally:
        await process.communicate(b"")  # it exits at the end of its input


async def test_file_that_is_open_in_another_process_is_refused(tmp_path: Path) -> None:
    url = url_of(tmp_path / "gregor.db")
    async with held_open(url):
        assert "open in another process" in await open_error(url)
    async with database_at(url, migrate):  # the other process has exited
        pass


async def test_file_can_be_opened_after_its_process_was_killed(tmp_path: Path) -> None:
    url = url_of(tmp_path / "gregor.db")
    async with held_open(url) as process:
        process.kill()
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        await machine.consume_message(create("u", "a"))


async def test_file_that_is_not_a_database_is_refused_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 1000)
    assert "is not an SQLite database" in await open_error(url_of(path))
    assert path.read_text().startswith("not a database")


async def test_missing_directory_is_named_in_error(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "gregor.db"
    message = await open_error(url_of(path))
    assert str(path) in message
    assert "does not exist" in message


async def test_directory_without_write_permission_is_named_in_error(tmp_path: Path) -> None:
    directory = tmp_path / "read_only"
    directory.mkdir(mode=0o500)
    if os.access(directory, os.W_OK):  # root may write to nearly everything
        directory = Path("/proc")
    message = await open_error(url_of(directory / "gregor.db"))
    assert f"{directory / 'gregor.db'} cannot be written" in message


async def test_path_of_directory_is_refused(tmp_path: Path) -> None:
    assert "cannot be written" in await open_error(url_of(tmp_path))


async def test_path_below_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "does not exist" in await open_error(url_of(tmp_path / "file" / "gregor.db"))


@pytest.mark.parametrize(
    "url", ["", "gregor.db", "mysql://h/db", "sqlite+aiosqlite:///x", "nonsense://"]
)
def test_unsupported_store_url_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="sqlite:///"):
        parse_url(url)


async def test_durability_settings_are_set_on_the_connection(tmp_path: Path) -> None:
    """They make a commit durable before it returns."""

    def settings(connection: DatabaseConnection) -> list[object]:
        names = ("journal_mode", "synchronous", "locking_mode")
        return [connection.execute_sql(f"PRAGMA {name}")[0][0] for name in names]

    async with database_at(url_of(tmp_path / "gregor.db"), migrate) as database:
        assert await database.read(settings) == ["wal", 2, "exclusive"]


async def test_failed_transaction_is_rolled_back(tmp_path: Path) -> None:
    def insert_and_fail(connection: DatabaseConnection) -> None:
        connection.execute_sql("INSERT INTO users (uid, ctime, bucket) VALUES ('u', 5, 0)")
        raise ValueError("in the middle")

    def count_users(connection: DatabaseConnection) -> int:
        return len(connection.execute_sql("SELECT uid FROM users"))

    async with database_at(url_of(tmp_path / "gregor.db"), migrate) as database:
        with pytest.raises(ValueError, match="in the middle"):
            await database.write(insert_and_fail)
        assert await database.read(count_users) == 0


async def test_failed_query_raises_storage_unavailable_with_its_cause() -> None:
    def query_missing_table(connection: DatabaseConnection) -> None:
        connection.execute_sql("SELECT * FROM missing")

    async with database_at("sqlite://", migrate) as database:
        with pytest.raises(StorageUnavailable, match="missing") as raised:
            await database.read(query_missing_table)
    assert raised.value.__cause__ is not None


async def test_database_that_is_not_open_is_unavailable() -> None:
    with pytest.raises(StorageUnavailable):
        await database_at("sqlite://").read(lambda connection: None)


def limit_growth(connection: DatabaseConnection, pages: int) -> None:
    """Let the database grow by at most so many pages."""
    ((used,),) = connection.execute_sql("PRAGMA page_count")
    connection.execute_sql(f"PRAGMA max_page_count = {used + pages}")


async def test_full_disk_rejects_messages_and_loses_none(tmp_path: Path) -> None:
    large = [create("u", "a", "x" * 60_000, msg_id=f"m{n}") for n in range(3)]
    url = url_of(tmp_path / "gregor.db")
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        await machine.consume_message(large[0])
        await database.write(lambda c: limit_growth(c, 0))
        for message in large[1:]:
            with pytest.raises(StorageUnavailable, match="disk is full"):
                await machine.consume_message(message)
        assert [item.msg_id for item in await machine.state("u")] == ["m0"]
        await database.write(lambda c: limit_growth(c, 1_000_000))
        first, *others = await machine.consume_messages(large)
        assert isinstance(first, Duplicate)
        assert [type(outcome) for outcome in others] == [Stored, Stored]
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        assert [item.msg_id for item in await machine.state("u")] == ["m0", "m1", "m2"]


FILL_DISK_SCRIPT = """
import asyncio, resource, sys
from gregor.core.message import create
from gregor.errors import Unavailable
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.migrations import migrate

async def main():
    stored = 0
    async with database_at(sys.argv[1], migrate) as database:
        async with SQLStateMachine(database, lambda: 1000) as machine:
            _, hard_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard_limit))
            try:
                for n in range(100):
                    await machine.consume_message(create("u", "a", "x" * 60_000, msg_id=f"m{n}"))
                    stored += 1
            except Unavailable as error:
                print(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard_limit, hard_limit))
            await machine.consume_message(create("u", "a", "after the limit", msg_id="last"))
    print(stored)

asyncio.run(main())
"""


async def test_file_size_limit_is_storage_unavailable_until_it_is_raised(
    tmp_path: Path,
) -> None:
    url = url_of(tmp_path / "gregor.db")
    process = await create_subprocess_exec(
        sys.executable, "-c", FILL_DISK_SCRIPT, url, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    error, stored = out.decode().splitlines()
    assert "disk is full or refuses writes" in error
    assert 0 < int(stored) < 100
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        ids = [item.msg_id for item in await machine.state("u")]
    assert ids == [*(f"m{n}" for n in range(int(stored))), "last"]
