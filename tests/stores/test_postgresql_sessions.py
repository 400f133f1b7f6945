"""Sessions with PostgreSQL: settings that a role cannot change, passwords that do, and servers that
take each other's place."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from gregor.errors import SetupError, StorageUnavailable
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.postgresql.session import settings
from gregor.stores.sql.store_url import database_at
from tests.fleet.replication import StandbyPostgreSQL
from tests.fleet.servers import POLL_SECONDS, PostgreSQL

SECONDS = 10.0
DEADLINE_SECONDS = 60.0

MAY_CREATE_TABLES = "GRANT ALL ON SCHEMA public TO app"

# For each of our settings, a value that does harm.
HARMFUL = {
    "plan_cache_mode": "force_generic_plan",
    "enable_indexscan": "off",
    "enable_indexonlyscan": "off",
    "enable_nestloop": "off",
    "enable_seqscan": "on",
    "enable_bitmapscan": "on",
    "enable_hashjoin": "on",
    "enable_mergejoin": "on",
    "enable_material": "on",
    "jit": "on",
    "lock_timeout": "300",
    "idle_session_timeout": "300",
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "300",
    "statement_timeout": "300",
}


@pytest.fixture
async def server() -> AsyncIterator[PostgreSQL]:
    """A server that a test may stop, or whose roles it may change."""
    async with PostgreSQL() as server:
        yield server


@asynccontextmanager
async def admin_of(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


def insert_user(uid: str) -> Callable[[DatabaseConnection], None]:
    def work(connection: DatabaseConnection) -> None:
        connection.execute_sql(f"INSERT INTO users (uid, ctime, bucket) VALUES ('{uid}', 0, 0)")

    return work


def count_users(connection: DatabaseConnection) -> object:
    return connection.execute_sql("SELECT count(*) FROM users")[0][0]


def settings_in_use(connection: DatabaseConnection) -> dict[str, str]:
    return dict(connection.execute_sql("SELECT name, setting FROM pg_settings"))


# Settings


async def test_settings_are_ours_whatever_the_role_has(server: PostgreSQL) -> None:
    url = await server.create_database()
    ours = settings(18, SECONDS)
    assert HARMFUL.keys() == ours.keys()
    async with admin_of(url) as admin:
        await admin.execute("CREATE ROLE app LOGIN; GRANT ALL ON SCHEMA public TO app")
        for name, value in HARMFUL.items():
            await admin.execute(
                f"ALTER ROLE app IN DATABASE {Path(url).name} SET {name} = '{value}'"
            )
    async with database_at(url.replace("postgres@", "app@"), migrate, seconds=SECONDS) as database:
        await database.write(insert_user("u"))
        for transact in (database.read, database.write):
            in_use = await transact(settings_in_use)
            assert {name: in_use[name] for name in ours} == ours


async def test_schema_and_options_are_those_of_the_operator(server: PostgreSQL) -> None:
    url = await server.create_database()
    async with admin_of(url) as admin:
        await admin.execute("CREATE ROLE app LOGIN; CREATE SCHEMA gregor AUTHORIZATION app")
        await admin.execute("ALTER ROLE app SET search_path = gregor")
        as_app = url.replace("postgres@", "app@")
        options = "-c%20work_mem=1MB%20-c%20search_path=gregor,public"
        for url_of_app in (as_app, f"{as_app}?options={options}"):
            async with database_at(url_of_app, migrate) as database:
                in_use = await database.read(settings_in_use)
                await database.write(insert_user(in_use["search_path"]))
        assert in_use["work_mem"] == "1024"
        assert await admin.fetchval("SELECT count(*) FROM gregor.users") == 2


@asynccontextmanager
async def pooler_that_changes(old: bytes, new: bytes, port: int) -> AsyncIterator[int]:
    """A port in front of a server, which receives other bytes than were sent."""

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while chunk := await reader.read(65_536):
                writer.write(chunk.replace(old, new))
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(forward(reader, server_writer), forward(server_reader, writer))

    async with asyncio.TaskGroup() as tasks:
        relay = await asyncio.start_server(
            lambda reader, writer: tasks.create_task(serve(reader, writer)), "127.0.0.1"
        )
        async with relay:
            yield relay.sockets[0].getsockname()[1]


async def test_setting_that_is_dropped_in_between_is_named(postgresql_server: PostgreSQL) -> None:
    change = b"('lock_timeout', '0'", b"('lock_timeout', '9'"
    async with pooler_that_changes(*change, postgresql_server.port) as port:
        with pytest.raises(SetupError, match="lock_timeout were set, but do not hold"):
            async with database_at(f"postgresql://postgres@127.0.0.1:{port}/postgres"):
                pass


# Passwords


@pytest.fixture
async def url_of_app(server: PostgreSQL) -> AsyncIterator[str]:
    """The URL of a database for the role `app`, which needs a password."""
    url = await server.create_database()
    async with admin_of(url) as admin:
        await admin.execute(f"CREATE ROLE app LOGIN PASSWORD 'old'; {MAY_CREATE_TABLES}")
        (server.directory / "data" / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhost all app 127.0.0.1/32 scram-sha-256\n"
        )
        await admin.execute("SELECT pg_reload_conf()")
        yield url.replace("postgres@", "app@")


async def needs_password(url: str) -> None:
    """Wait until the server has read its new configuration."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        with suppress(asyncpg.InvalidPasswordError):
            while True:
                await (await asyncpg.connect(url)).close()


async def break_connections(server: PostgreSQL) -> None:
    async with admin_of(server.url) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'app'"
        )
    for _ in range(20):  # until the server's last messages are read
        await asyncio.sleep(0)


def in_passfile(file: Path, url: str, password: str) -> str:
    file.write_text(f"*:*:*:app:{password}\n")
    file.chmod(0o600)
    return f"{url}?passfile={file}"


def in_file_of_variable(file: Path, url: str, password: str) -> str:
    in_passfile(file, url, password)
    return url


def in_store_file(file: Path, url: str, password: str) -> str:
    file.write_text(url.replace("app@", f"app:{password}@"))
    return file.as_uri()


@pytest.mark.parametrize("write_password", [in_passfile, in_file_of_variable, in_store_file])
async def test_changed_password_needs_no_restart(
    server: PostgreSQL,
    url_of_app: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_password: Callable[[Path, str, str], str],
) -> None:
    await needs_password(url_of_app)
    if write_password is in_file_of_variable:
        monkeypatch.setenv("PGPASSFILE", str(tmp_path / "file"))
    url = write_password(tmp_path / "file", url_of_app, "old")
    async with database_at(url, migrate) as database:
        await database.write(insert_user("u"))
        async with admin_of(server.url) as admin:
            await admin.execute("ALTER ROLE app PASSWORD 'new'")
        await database.write(insert_user("w"))  # on the connection that there is
        await break_connections(server)
        with pytest.raises(StorageUnavailable, match="password authentication failed"):
            await database.write(insert_user("v"))
        write_password(tmp_path / "file", url_of_app, "new")
        await database.write(insert_user("v"))
        assert await database.read(count_users) == 3


# Servers that take each other's place


@pytest.fixture
async def standby(server: PostgreSQL) -> AsyncIterator[StandbyPostgreSQL]:
    async with StandbyPostgreSQL(server) as standby:
        yield standby


def url_of(*servers: PostgreSQL, database: str = "postgres") -> str:
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://postgres@{hosts}/{database}"


async def write_until_stored(database: Database, uid: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            with suppress(StorageUnavailable):
                return await database.write(insert_user(uid))
            await asyncio.sleep(POLL_SECONDS)


async def test_node_follows_a_failover_to_the_other_server_of_its_url(
    server: PostgreSQL, standby: StandbyPostgreSQL
) -> None:
    # The standby is first: the driver would take it, as it answers.
    async with database_at(url_of(standby, server), migrate) as database:
        await database.write(insert_user("u"))
        await standby.catch_up()
        await server.kill()
        with pytest.raises(StorageUnavailable, match="Connect call failed"):
            await database.write(insert_user("v"))
        await standby.promote()
        await write_until_stored(database, "v")
        assert await database.read(count_users) == 2


async def test_url_without_a_server_to_write_to_names_each(
    server: PostgreSQL, standby: StandbyPostgreSQL
) -> None:
    await server.kill()
    with pytest.raises(SetupError) as raised:
        async with database_at(url_of(server, standby)):
            pass
    assert f"127.0.0.1:{server.port}: " in raised.value.message
    assert f"127.0.0.1:{standby.port}: not the kind of server" in raised.value.message


async def test_server_that_does_not_answer_leaves_time_for_the_next(
    postgresql_url: str,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = postgresql_url.replace("@", f"@127.0.0.1:{silent.getsockname()[1]},")
        async with database_at(f"{url}?connect_timeout=1", migrate) as database:
            await database.write(insert_user("u"))
