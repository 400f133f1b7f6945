"""PostgreSQL: retries, broken connections, unknown commits, time-outs, and errors when opening."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from gregor.errors import SetupError, StorageUnavailable
from gregor.stores.sql.database import (
    CommitUnknown,
    Database,
    DatabaseConnection,
    UniqueViolation,
)
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.statements import Statement
from gregor.stores.sql.store_url import database_at
from tests.fleet.servers import PostgreSQL, Redis
from tests.ports import free_port
from tests.timeouts import TIMEOUT_SECONDS

COUNT_USERS = "SELECT count(*) FROM users"


IDLE_IN_TRANSACTION = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '25P03'; END $$"


@pytest.fixture
async def database(postgresql_url: str) -> AsyncIterator[Database]:
    async with database_at(postgresql_url, migrate) as database:
        yield database


@pytest.fixture
async def server() -> AsyncIterator[PostgreSQL]:
    """A server that a test may stop, pause or kill."""
    async with PostgreSQL() as server:
        yield server


def run(*statements: str) -> Callable[[DatabaseConnection], None]:
    def work(connection: DatabaseConnection) -> None:
        for statement in statements:
            connection.execute_sql(statement)

    return work


def query(statement: str) -> Callable[[DatabaseConnection], object]:
    return lambda connection: connection.execute_sql(statement)[0][0]


def insert_user(uid: str) -> str:
    return f"INSERT INTO users (uid, ctime, bucket) VALUES ('{uid}', 0, 0)"


def insert_after_failure(statement: str) -> Callable[[DatabaseConnection], None]:
    """Work that inserts a user; the first time, it also executes a statement, which fails."""
    second_statements = iter((statement, "SELECT 1", "SELECT 1"))
    return lambda connection: run(insert_user("u"), next(second_statements))(connection)


# Retries


async def test_serialization_failure_is_retried(database: Database) -> None:
    failure = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END $$"
    await database.write(insert_after_failure(failure))
    assert await database.read(query(COUNT_USERS)) == 1


async def test_deadlock_is_retried_and_both_transactions_succeed(
    postgresql_url: str, database: Database
) -> None:
    await database.write(run(insert_user("a"), insert_user("b")))

    def lock(*uids: str) -> Callable[[DatabaseConnection], None]:
        first, second = (f"SELECT 1 FROM users WHERE uid = '{uid}' FOR UPDATE" for uid in uids)
        return run(first, "SELECT pg_sleep(0.1)", second)

    async with database_at(postgresql_url) as other:
        await asyncio.gather(database.write(lock("a", "b")), other.write(lock("b", "a")))


async def test_transaction_is_retried_if_connection_breaks_before_commit(
    database: Database,
) -> None:
    await database.write(insert_after_failure("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert await database.read(query(COUNT_USERS)) == 1


async def test_transaction_that_the_server_ended_for_being_idle_is_retried(
    database: Database,
) -> None:
    await database.write(insert_after_failure(IDLE_IN_TRANSACTION))
    assert await database.read(query(COUNT_USERS)) == 1


async def test_work_that_ignores_a_failed_statement_is_not_reported_as_committed(
    database: Database,
) -> None:
    def insert_twice(connection: DatabaseConnection) -> None:
        run(insert_user("u"))(connection)
        with suppress(asyncpg.UniqueViolationError):
            run(insert_user("u"))(connection)

    with pytest.raises(StorageUnavailable, match="failed transaction"):
        await database.write(insert_twice)
    assert await database.read(query(COUNT_USERS)) == 0


async def test_idle_connections_that_broke_are_replaced(
    server: PostgreSQL,
) -> None:
    async with database_at(await server.create_database(), migrate) as database:
        await asyncio.gather(*(database.read(query("SELECT pg_sleep(0.05)")) for _ in range(8)))
        await server.kill()
        await server.start()
        await database.write(run(insert_user("u")))
        assert (
            await asyncio.gather(*(database.read(query(COUNT_USERS)) for _ in range(20)))
            == [1] * 20
        )


# Connections

BACKEND = "SELECT pg_backend_pid()"


async def test_cancelled_transaction_is_rolled_back_and_its_connection_is_not_reused(
    database: Database,
) -> None:
    pid = await database.write(query(BACKEND))
    is_writing = asyncio.Event()

    def insert_and_sleep(connection: DatabaseConnection) -> None:
        run(insert_user("u"))(connection)
        is_writing.set()
        run("SELECT pg_sleep(60)")(connection)

    writing = asyncio.create_task(database.write(insert_and_sleep))
    await is_writing.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await database.write(query(BACKEND)) != pid
    assert await database.read(query(COUNT_USERS)) == 0


async def test_failed_transaction_is_rolled_back_and_keeps_its_connection(
    database: Database,
) -> None:
    pid = await database.write(query(BACKEND))

    def insert_and_fail(connection: DatabaseConnection) -> None:
        run(insert_user("u"))(connection)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await database.write(insert_and_fail)
    with pytest.raises(UniqueViolation):
        await database.write(run(insert_user("u"), insert_user("u")))
    with pytest.raises(StorageUnavailable, match="missing"):
        await database.write(run(insert_user("u"), "SELECT * FROM missing"))
    assert await database.write(query(BACKEND)) == pid
    assert await database.read(query(COUNT_USERS)) == 0


async def test_parameter_that_cannot_be_encoded_is_not_retried(database: Database) -> None:
    attempts = []
    number = Statement("SELECT CAST(:number AS BIGINT)", tuple)

    def work(connection: DatabaseConnection) -> None:
        attempts.append(1)
        connection.execute(number, number=2**64)

    with pytest.raises(StorageUnavailable, match="invalid input"):
        await database.write(work)
    assert attempts == [1]


@asynccontextmanager
async def relay_to(port: int, hides_end: asyncio.Event) -> AsyncIterator[int]:
    """A port that forwards to this one. While `hides_end` is set, a connection that the server
    closes stays open."""

    async def forward(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_client: bool
    ) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65_536):
                writer.write(chunk)
        if not (to_client and hides_end.is_set()):
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        up, down = forward(reader, server_writer, False), forward(server_reader, writer, True)
        await asyncio.gather(up, down)
        writer.close()

    async with asyncio.TaskGroup() as tasks:
        relay = await asyncio.start_server(
            lambda reader, writer: tasks.create_task(serve(reader, writer)), "127.0.0.1"
        )
        async with relay:
            yield relay.sockets[0].getsockname()[1]


async def test_statement_between_last_message_and_close_of_server_is_retried(
    postgresql_url: str, database: Database
) -> None:
    hides_end = asyncio.Event()
    async with relay_to(urlsplit(postgresql_url).port or 0, hides_end) as port:
        url = urlsplit(postgresql_url)._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()
        async with database_at(url) as behind_relay:
            pid = await behind_relay.write(query(BACKEND))
            hides_end.set()
            await database.read(query(f"SELECT pg_terminate_backend({pid}, 5000)"))
            for _ in range(20):  # until the server's last message is read
                await asyncio.sleep(0)
            await behind_relay.write(run(insert_user("u")))
    assert await database.read(query(COUNT_USERS)) == 1


# Unknown commits

BREAK_AT_COMMIT = (
    """CREATE FUNCTION terminate() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$""",
    """CREATE CONSTRAINT TRIGGER terminate AFTER INSERT ON users
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION terminate()""",
)


async def test_unknown_commit_raises_error_with_the_result_of_the_work(
    database: Database,
) -> None:
    await database.write(run(*BREAK_AT_COMMIT))

    def work(connection: DatabaseConnection) -> str:
        connection.execute_sql(insert_user("u"))
        return "the result"

    with pytest.raises(CommitUnknown) as raised:
        await database.write(work)
    assert raised.value.result == "the result"


# Errors, isolation and time-outs


async def test_existing_key_raises_unique_violation(database: Database) -> None:
    with pytest.raises(UniqueViolation):
        await database.write(run(insert_user("u"), insert_user("u")))


async def test_read_sees_one_snapshot(database: Database) -> None:
    counts: list[object] = []
    counted_once = asyncio.Event()

    def count_twice(connection: DatabaseConnection) -> None:
        counts.append(query(COUNT_USERS)(connection))
        counted_once.set()
        run("SELECT pg_sleep(0.3)")(connection)
        counts.append(query(COUNT_USERS)(connection))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(database.read(count_twice))
        await counted_once.wait()
        await database.write(run(insert_user("u")))
    assert counts == [0, 0]


async def test_read_that_writes_is_rejected(database: Database) -> None:
    with pytest.raises(StorageUnavailable, match="read-only"):
        await database.read(run(insert_user("u")))


async def test_busy_readers_do_not_delay_the_writer(postgresql_url: str) -> None:
    async with database_at(postgresql_url, migrate, connections=2) as database:
        readers = [
            asyncio.create_task(database.read(query("SELECT pg_sleep(0.5)"))) for _ in range(10)
        ]
        await asyncio.sleep(0)
        await database.write(run(insert_user("u")))
        assert not all(reader.done() for reader in readers)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        assert await database.read(query(COUNT_USERS)) == 1


async def test_server_that_does_not_answer_is_unavailable_after_timeout(server: PostgreSQL) -> None:
    async with database_at(await server.create_database(), migrate, seconds=0.2) as database:
        server.pause()
        for attempt in (database.write(run(insert_user("u"))), database.read(query(COUNT_USERS))):
            with pytest.raises(StorageUnavailable):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await attempt
        server.resume()
        await database.write(run(insert_user("v")))


async def test_slow_statement_is_ended_by_statement_timeout(postgresql_url: str) -> None:
    async with database_at(postgresql_url, seconds=1) as database:
        with pytest.raises(StorageUnavailable, match="statement timeout"):
            await database.read(query("SELECT pg_sleep(60)"))


async def test_server_that_was_restarted_is_used_again(server: PostgreSQL) -> None:
    async with database_at(await server.create_database(), migrate) as database:
        await server.kill()
        for attempt in (database.write(run(insert_user("u"))), database.read(query(COUNT_USERS))):
            with pytest.raises(StorageUnavailable):
                await attempt
        await server.start()
        await database.write(run(insert_user("u")))
        assert await database.read(query(COUNT_USERS)) == 1


# Errors when opening


async def open_error(url: str) -> str:
    with pytest.raises(SetupError) as raised:
        async with database_at(url, migrate):
            pass
    return raised.value.message


async def test_unix_socket_url_opens_the_database(server: PostgreSQL) -> None:
    async with database_at(server.socket_url, migrate) as database:
        assert await database.read(query(COUNT_USERS)) == 0


async def test_unreachable_server_error_says_what_to_do() -> None:
    message = await open_error(f"postgresql://user:secret@127.0.0.1:{free_port()}/db")
    assert "cannot be reached" in message
    assert "start PostgreSQL, or correct --store" in message
    assert "secret" not in message


async def test_server_that_is_not_postgresql_is_unreachable(redis_server: Redis) -> None:
    message = await open_error(redis_server.url.replace("redis://", "postgresql://"))
    assert "cannot be reached" in message


async def test_missing_database_error_says_how_to_create_it(postgresql_server: PostgreSQL) -> None:
    message = await open_error(postgresql_server.url.removesuffix("postgres") + "missing")
    assert "missing" in message
    assert "createdb" in message


async def test_unknown_user_is_named_in_error(postgresql_server: PostgreSQL) -> None:
    message = await open_error(postgresql_server.url.replace("postgres@", "unknown_user:secret@"))
    assert "unknown_user" in message
    assert "correct the user or password" in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["postgresql://[::1/db", "postgresql://host:port/db"])
async def test_malformed_url_is_named_in_error(url: str) -> None:
    assert "URL" in await open_error(url)


async def test_server_without_durable_commits_is_refused(postgresql_server: PostgreSQL) -> None:
    url = await postgresql_server.create_database()
    name = Path(url).name
    async with database_at(url) as database:
        await database.write(run(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    assert "synchronous_commit is off" in await open_error(url)
