"""A database that opens, or says what is in the way; and one that fails while it is in use."""

import os
import sys
from asyncio.subprocess import PIPE, Process, create_subprocess_exec
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import Connection

from gregor.core.message import create
from gregor.errors import SetupError, StorageUnavailable
from gregor.interfaces import Duplicate, Stored
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.engine import database_at, parse_url
from gregor.storage.migrations import migrate

HOLD = """
import asyncio, sys
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate

async def hold():
    async with database_at(sys.argv[1], migrate):
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(hold())
"""


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def clock() -> int:
    return 1_000


async def refusal(url: str) -> str:
    """What is said of a store that cannot be opened."""
    with pytest.raises(SetupError) as refused:
        async with database_at(url, migrate):
            pass
    return refused.value.message


@asynccontextmanager
async def held_open(url: str) -> AsyncIterator[Process]:
    """Another process has the database open."""
    process = await create_subprocess_exec(sys.executable, "-c", HOLD, url, stdin=PIPE, stdout=PIPE)
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    try:
        yield process
    finally:
        await process.communicate(b"")  # at the end of its input it ends


async def test_a_second_process_on_the_same_file_is_refused(tmp_path: Path) -> None:
    url = url_of(tmp_path / "gregor.db")
    async with held_open(url):
        assert "open in another process" in await refusal(url)
    async with database_at(url, migrate):  # it has gone
        pass


async def test_a_process_that_was_killed_leaves_the_file_to_the_next(tmp_path: Path) -> None:
    url = url_of(tmp_path / "gregor.db")
    async with held_open(url) as process:
        process.kill()
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        await machine.consume_message(create("u", "a"))


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database " * 1000)
    assert "is not an SQLite database" in await refusal(url_of(path))
    assert path.read_text().startswith("not a database")


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "gregor.db"
    message = await refusal(url_of(path))
    assert str(path) in message
    assert "does not exist" in message


async def test_a_directory_in_which_nobody_may_write_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    if os.access(closed, os.W_OK):  # we are root, to whom nearly everything is open
        closed = Path("/proc")
    message = await refusal(url_of(closed / "gregor.db"))
    assert f"{closed / 'gregor.db'} cannot be written" in message


async def test_a_directory_is_no_database(tmp_path: Path) -> None:
    assert "cannot be written" in await refusal(url_of(tmp_path))


async def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "does not exist" in await refusal(url_of(tmp_path / "file" / "gregor.db"))


@pytest.mark.parametrize(
    "url", ["", "gregor.db", "mysql://h/db", "sqlite+aiosqlite:///x", "nonsense://"]
)
def test_what_is_no_store_is_refused_by_its_name(url: str) -> None:
    with pytest.raises(SetupError, match="sqlite:///"):
        parse_url(url)


async def test_a_commit_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """The settings that this takes, on the connection that is used."""

    def settings(connection: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "locking_mode")
        return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]

    async with database_at(url_of(tmp_path / "gregor.db"), migrate) as database:
        assert await database.read(settings) == ["wal", 2, "exclusive"]


async def test_a_transaction_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    def fails(connection: Connection) -> None:
        connection.exec_driver_sql("INSERT INTO users VALUES ('u', 5, 0)")
        raise ValueError("in the middle")

    def users(connection: Connection) -> int | None:
        return connection.exec_driver_sql("SELECT count(*) FROM users").scalar()

    async with database_at(url_of(tmp_path / "gregor.db"), migrate) as database:
        with pytest.raises(ValueError, match="in the middle"):
            await database.write(fails)
        assert await database.read(users) == 0


async def test_what_a_reader_does_is_not_kept() -> None:
    """Reads see one moment, and a failing question is Unavailable, not the driver's error."""

    def nonsense(connection: Connection) -> None:
        connection.exec_driver_sql("SELECT * FROM nowhere")

    async with database_at("sqlite://", migrate) as database:
        with pytest.raises(StorageUnavailable, match="nowhere") as failed:
            await database.read(nonsense)
    assert failed.value.__cause__ is not None


async def test_a_database_that_is_not_open_is_unavailable() -> None:
    with pytest.raises(StorageUnavailable):
        await database_at("sqlite://").read(lambda connection: None)


def give_room(connection: Connection, pages: int) -> None:
    """Let the database grow by so many pages and no further."""
    used = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0
    connection.exec_driver_sql(f"PRAGMA max_page_count = {used + pages}")


async def test_on_a_full_disk_nothing_is_accepted_and_nothing_lost(tmp_path: Path) -> None:
    large = [create("u", "a", "x" * 60_000, msg_id=f"m{n}") for n in range(3)]
    url = url_of(tmp_path / "gregor.db")
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        await machine.consume_message(large[0])
        await database.write(lambda c: give_room(c, 0))
        for message in large[1:]:
            with pytest.raises(StorageUnavailable, match="disk is full"):
                await machine.consume_message(message)
        assert [item.msg_id for item in await machine.state("u")] == ["m0"]
        await database.write(lambda c: give_room(c, 1_000_000))
        first, *others = await machine.consume_messages(large)
        assert isinstance(first, Duplicate)
        assert [type(outcome) for outcome in others] == [Stored, Stored]
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        assert [item.msg_id for item in await machine.state("u")] == ["m0", "m1", "m2"]


FILL = """
import asyncio, resource, sys
from gregor.core.message import create
from gregor.errors import Unavailable
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate

async def fill():
    stored = 0
    async with database_at(sys.argv[1], migrate) as database:
        async with SQLStateMachine(database, lambda: 1000) as machine:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, most))
            try:
                for n in range(100):
                    await machine.consume_message(create("u", "a", "x" * 60_000, msg_id=f"m{n}"))
                    stored += 1
            except Unavailable as error:
                print(error.message)
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            await machine.consume_message(create("u", "a", "room again", msg_id="last"))
    print(stored)

asyncio.run(fill())
"""


async def test_a_file_system_that_refuses_to_grow_is_unavailable_until_it_grows(
    tmp_path: Path,
) -> None:
    url = url_of(tmp_path / "gregor.db")
    process = await create_subprocess_exec(
        sys.executable, "-c", FILL, url, stdout=PIPE, stderr=PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err
    refused, stored = out.decode().splitlines()
    assert "disk is full or refuses writes" in refused
    assert 0 < int(stored) < 100
    async with database_at(url, migrate) as database, SQLStateMachine(database, clock) as machine:
        ids = [item.msg_id for item in await machine.state("u")]
    assert ids == [*(f"m{n}" for n in range(int(stored))), "last"]
