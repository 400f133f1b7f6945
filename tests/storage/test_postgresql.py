"""A server that others use as well: it undoes transactions, breaks connections, and goes away."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import Connection

from gregor.errors import SetupError, StorageUnavailable
from gregor.storage.database import AlreadyThere, Database, OutcomeUnknown, shown
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import PostgreSQL, Redis

COUNT = "SELECT count(*) FROM users"


@pytest.fixture
async def database(postgresql_url: str) -> AsyncIterator[Database]:
    async with database_at(postgresql_url, migrate) as database:
        yield database


@pytest.fixture
async def server() -> AsyncIterator[PostgreSQL]:
    """One that may be hurt."""
    async with PostgreSQL() as server:
        yield server


def doing(*statements: str) -> Callable[[Connection], None]:
    def work(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    return work


def asking(statement: str) -> Callable[[Connection], object]:
    return lambda connection: connection.exec_driver_sql(statement).scalar()


def add(uid: str) -> str:
    return f"INSERT INTO users VALUES ('{uid}', 0, 0)"


def fails_first(statement: str) -> Callable[[Connection], None]:
    """Work that adds a user, and says something else as well when it is done for the first time."""
    times = iter((statement, "SELECT 1", "SELECT 1"))
    return lambda connection: doing(add("u"), next(times))(connection)


# What is done again


async def test_what_could_not_be_serialized_is_done_again(database: Database) -> None:
    raising = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"
    await database.write(fails_first(raising))
    assert await database.read(asking(COUNT)) == 1


async def test_of_two_in_a_deadlock_both_succeed(postgresql_url: str, database: Database) -> None:
    await database.write(doing(add("a"), add("b")))

    def lock(*uids: str) -> Callable[[Connection], None]:
        first, second = (f"SELECT 1 FROM users WHERE uid = '{uid}' FOR UPDATE" for uid in uids)
        return doing(first, "SELECT pg_sleep(0.1)", second)

    async with database_at(postgresql_url) as other:
        await asyncio.gather(database.write(lock("a", "b")), other.write(lock("b", "a")))


async def test_a_connection_that_is_terminated_before_the_commit_is_replaced(
    database: Database,
) -> None:
    await database.write(fails_first("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert await database.read(asking(COUNT)) == 1


async def test_connections_that_broke_while_nobody_used_them_are_replaced(
    server: PostgreSQL,
) -> None:
    async with database_at(await server.create_database(), migrate) as database:
        await asyncio.gather(*(database.read(asking("SELECT pg_sleep(0.05)")) for _ in range(8)))
        await server.kill()
        await server.start()
        await database.write(doing(add("u")))
        assert await asyncio.gather(*(database.read(asking(COUNT)) for _ in range(20))) == [1] * 20


# What is not known


BREAK_AT_COMMIT = (
    """CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER leave AFTER INSERT ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION leave()""",
)


async def test_a_commit_without_an_answer_is_told_with_what_it_would_have_made(
    database: Database,
) -> None:
    await database.write(doing(*BREAK_AT_COMMIT))

    def work(connection: Connection) -> str:
        connection.exec_driver_sql(add("u"))
        return "the result"

    with pytest.raises(OutcomeUnknown) as unknown:
        await database.write(work)
    assert unknown.value.result == "the result"


# What ends


async def test_a_key_that_is_there_is_told_apart(database: Database) -> None:
    with pytest.raises(AlreadyThere):
        await database.write(doing(add("u"), add("u")))


async def test_a_reader_sees_one_moment(database: Database) -> None:
    seen: list[object] = []
    begun = asyncio.Event()

    def look_twice(connection: Connection) -> None:
        seen.append(asking(COUNT)(connection))
        begun.set()
        doing("SELECT pg_sleep(0.3)")(connection)
        seen.append(asking(COUNT)(connection))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.read(look_twice))
        await begun.wait()
        await database.write(doing(add("u")))
    assert seen == [0, 0]


async def test_a_reader_only_reads(database: Database) -> None:
    with pytest.raises(StorageUnavailable, match="read-only"):
        await database.read(doing(add("u")))


async def test_readers_do_not_keep_the_writer_waiting(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate, connections=2) as database:
        readers = [
            asyncio.create_task(database.read(asking("SELECT pg_sleep(0.5)"))) for _ in range(10)
        ]
        await asyncio.sleep(0)
        await database.write(doing(add("u")))
        assert not all(reader.done() for reader in readers)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert await database.read(asking(COUNT)) == 1


async def test_a_server_that_says_nothing_is_not_waited_for(server: PostgreSQL) -> None:
    async with database_at(await server.create_database(), migrate, seconds=0.2) as database:
        server.pause()
        for attempt in (database.write(doing(add("u"))), database.read(asking(COUNT))):
            with pytest.raises(StorageUnavailable):
                async with asyncio.timeout(20):
                    await attempt
        server.resume()
        await database.write(doing(add("v")))


async def test_a_statement_that_takes_too_long_ends(postgresql_url: str) -> None:
    async with database_at(postgresql_url, seconds=1) as database:
        with pytest.raises(StorageUnavailable, match="statement timeout"):
            await database.read(asking("SELECT pg_sleep(60)"))


async def test_a_server_that_has_gone_and_come_back_is_used_again(server: PostgreSQL) -> None:
    async with database_at(await server.create_database(), migrate) as database:
        await server.kill()
        for attempt in (database.write(doing(add("u"))), database.read(asking(COUNT))):
            with pytest.raises(StorageUnavailable):
                await attempt
        await server.start()
        await database.write(doing(add("u")))
        assert await database.read(asking(COUNT)) == 1


# What is in the way when it is opened


async def refusal(url: str) -> str:
    with pytest.raises(SetupError) as refused:
        async with database_at(url, migrate):
            pass
    return refused.value.message


async def test_over_a_unix_socket_it_is_the_same(server: PostgreSQL) -> None:
    async with database_at(server.socket_url, migrate) as database:
        assert await database.read(asking(COUNT)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_where_nobody_answers_the_message_says_what_to_do() -> None:
    message = await refusal(f"postgresql://someone:secret@127.0.0.1:{free_port()}/db")
    assert "cannot be reached" in message
    assert "start PostgreSQL, or mend --store" in message
    assert "secret" not in message


async def test_where_something_else_answers_it_is_said(redis_server: Redis) -> None:
    message = await refusal(redis_server.url.replace("redis://", "postgresql://"))
    assert "cannot be reached" in message


async def test_a_database_that_is_not_there_is_to_be_made(postgresql_server: PostgreSQL) -> None:
    message = await refusal(postgresql_server.url.removesuffix("postgres") + "nowhere")
    assert "nowhere" in message
    assert "createdb" in message


async def test_a_user_that_is_not_there_is_named(postgresql_server: PostgreSQL) -> None:
    message = await refusal(postgresql_server.url.replace("postgres@", "nobody:secret@"))
    assert "nobody" in message
    assert "mend user and password" in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["postgresql://[::1/db", "postgresql://host:port/db"])
async def test_what_is_no_url_is_told(url: str) -> None:
    assert "URL" in await refusal(url)


async def test_commits_that_are_not_durable_are_refused(postgresql_server: PostgreSQL) -> None:
    url = await postgresql_server.create_database()
    name = Path(url).name
    async with database_at(url, doing(f"ALTER DATABASE {name} SET synchronous_commit = off")):
        pass
    assert "synchronous_commit is off" in await refusal(url)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:secret@host/db?password=secret&sslpassword=secret",
        "postgresql://u:sec/secret@host/db",
        "postgresql://u:sec@secret@host/db",
    ],
)
def test_no_part_of_a_password_is_shown(url: str) -> None:
    assert shown(url) == "postgresql://u:***@host/db"
