"""A server that cannot start prints one line that says what to do, and exits with status 1."""

import asyncio
import gzip
import socket
import sqlite3
import subprocess
from pathlib import Path

import asyncpg
import jwt
import pytest

from gregor.stores.sql.statements import REGISTER_NODE, NodeRow
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.tables import NEWEST_REVISION, OLDEST_WRITERS
from tests.cli.conftest import Shell, first_json
from tests.fleet.servers import PostgreSQL, Redis

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--listen", "9911", ("`listen`", "give HOST:PORT")),
        ("--listen", "127.0.0.1:99999", ("`listen`", "give HOST:PORT")),
        ("--auth", "magic", ("`auth`", "'open' or 'jwt'")),
        ("--store", "mysql://localhost/x", ("sqlite:///FILE",)),
        ("--store", "gregor.db", ("is not a store URL", "sqlite:///gregor.db")),
        ("--log-format", "xml", ("`log_format`", "'console' or 'json'")),
        ("--sweep-seconds", "0", ("`sweep_seconds`", "greater than 0")),
        ("--lame-duck-seconds", "-1", ("`lame_duck_seconds`", "greater than or equal to 0")),
        ("--drain-seconds", "-1", ("`drain_seconds`", "greater than or equal to 0")),
        ("--store-seconds", "0", ("`store_seconds`", "greater than 0")),
        ("--store-connections", "0", ("`store_connections`", "greater than or equal to 1")),
        ("--allow-origin", "*", ("`allow_origin`", "https://app.example.com")),
        ("--workers", "0", ("`workers`", "greater than or equal to 1")),
    ],
)
def test_invalid_setting_is_named(
    shell: Shell, option: str, value: str, expected: tuple[str, ...]
) -> None:
    assert shell("serve", option, value).failed_with(*expected)


def test_invalid_variable_is_named(shell: Shell) -> None:
    result = shell("serve", env={"GREGOR_SWEEP_SECONDS": "soon"})
    assert result.failed_with("`sweep_seconds`", "valid number")


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        ("listen = 9911", ("`listen`", "valid string")),
        ("lisen = '127.0.0.1:0'", ("`lisen`", "unknown setting", "listen, store")),
        ("listen = ", ("gregor.toml", "Invalid value")),
    ],
)
def test_invalid_config_file_is_named(
    shell: Shell, contents: str, expected: tuple[str, ...]
) -> None:
    (shell.folder / "gregor.toml").write_text(contents)
    del shell.environment["GREGOR_LISTEN"]  # which takes precedence over the file
    assert shell("--config", "gregor.toml", "serve").failed_with(*expected)


def test_missing_config_file_is_named(shell: Shell) -> None:
    assert shell("--config", "no.toml", "serve").failed_with("no.toml does not exist")


def test_precedence_is_option_then_variable_then_file(shell: Shell) -> None:
    (shell.folder / "gregor.toml").write_text('store = "sqlite:///file.db"')
    migrate = ("--config", "gregor.toml", "migrate", "--json")
    variable = {"GREGOR_STORE": "sqlite:///variable.db"}
    option = ("--store", "sqlite:///option.db")
    assert shell(*migrate).json["store"] == "sqlite:///file.db"
    assert shell(*migrate, env=variable).json["store"] == "sqlite:///variable.db"
    assert shell(*migrate, *option, env=variable).json["store"] == "sqlite:///option.db"


def test_migrate_says_that_it_rewrites_an_older_file(shell: Shell) -> None:
    older = Path(__file__).parents[1] / "stores" / "schema_0002" / "store.sqlite.gz"
    (shell.folder / "gregor.db").write_bytes(gzip.decompress(older.read_bytes()))
    (shell.folder / "gregor.db").chmod(0o600)
    migrate = ("migrate", "--json", "--store", "sqlite:///gregor.db")
    first, second = shell(*migrate), shell(*migrate)
    (said,) = first.err.splitlines()
    assert "rewriting the file" in said
    assert "gregor.db" in said
    assert (second.json, second.err) == (first.json, "")


# Secrets in files


def test_store_is_read_from_a_file(shell: Shell) -> None:
    file = shell.folder / "store-url"
    file.write_text("sqlite:///in-file.db\n")
    variable = {"GREGOR_STORE_FILE": str(file)}
    assert shell("migrate", env=variable).status == 0
    assert (shell.folder / "in-file.db").exists()
    option = ("--store", "sqlite:///option.db")
    assert shell("migrate", "--json", *option, env=variable).json["store"] == "sqlite:///option.db"
    assert shell("migrate", "--store", f"file://{file}").status == 0


def test_store_stays_a_file_that_is_read_again(shell: Shell) -> None:
    file = shell.folder / "store-url"
    file.write_text("sqlite:///in-file.db")
    shown = shell("migrate", "--json", env={"GREGOR_STORE_FILE": "store-url"}).json["store"]
    assert shown == file.absolute().as_uri()


def test_shards_are_read_from_a_file_each(shell: Shell) -> None:
    for name in "ab":
        (shell.folder / name).write_text(f"sqlite:///shard-{name}.db")
    stores = " ".join(f"{name}=file://{shell.folder}/{name}" for name in "ab")
    assert shell("migrate", env={"GREGOR_STORE": stores}).status == 0
    assert (shell.folder / "shard-b.db").exists()


def test_config_file_names_a_file_of_a_secret(shell: Shell) -> None:
    (shell.folder / "secret").write_text(SECRET)
    (shell.folder / "gregor.toml").write_text(f'jwt_secret_file = "{shell.folder}/secret"')
    token = shell("--config", "gregor.toml", "token", "ann").out.strip()
    assert jwt.decode(token, SECRET, algorithms=["HS256"])["sub"] == "ann"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("STORE", "migrate"),
        ("STORE", "serve"),
        ("PUBSUB", "serve"),
        ("JWT_SECRET", "serve"),
        ("TOKEN", "state ann"),
    ],
)
def test_file_of_a_secret_that_cannot_be_read_is_named(
    shell: Shell, name: str, command: str
) -> None:
    missing, empty = shell.folder / "missing", shell.folder / "empty"
    empty.touch()
    variable = f"GREGOR_{name}_FILE"
    result = shell(*command.split(), env={variable: str(missing)})
    assert result.failed_with(f"`{name.lower()}_file`", f"{missing} cannot be read: No such file")
    assert shell(*command.split(), env={variable: str(empty)}).failed_with(f"{empty} is empty")
    both = {variable: str(empty), f"GREGOR_{name}": "x"}
    assert shell(*command.split(), env=both).failed_with(f"`{name.lower()}`", "not both")


def test_file_without_a_url_is_named_and_not_shown(shell: Shell) -> None:
    file = shell.folder / "store-url"
    file.write_text("hunter2")
    result = shell("migrate", env={"GREGOR_STORE_FILE": str(file)})
    assert result.failed_with(file.as_uri(), "is not a store URL")
    assert "hunter2" not in result.err


def test_file_with_several_stores_is_refused(shell: Shell) -> None:
    file = shell.folder / "stores"
    file.write_text("a=sqlite:///a.db b=sqlite:///b.db")
    result = shell("migrate", env={"GREGOR_STORE_FILE": str(file)})
    assert result.failed_with(str(file), "one URL", "NAME=file:///PATH")


def test_auth_open_requires_a_loopback_address(shell: Shell) -> None:
    result = shell.process("serve", "--auth", "open", "--listen", "0.0.0.0:0")
    assert result.failed_with("--auth open", "loopback", "use --auth jwt")


def test_auth_jwt_requires_a_long_secret(shell: Shell) -> None:
    assert shell.process("serve", "--auth", "jwt").failed_with("GREGOR_JWT_SECRET", "openssl rand")
    short = shell.process("serve", "--auth", "jwt", env={"GREGOR_JWT_SECRET": "short"})
    assert short.failed_with("5 bytes", "openssl rand")
    assert "short" not in short.err.replace("the JWT secret", "")


def test_address_in_use_is_named(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = shell.process("serve", "--listen", f"127.0.0.1:{port}")
    assert result.failed_with(f"127.0.0.1:{port}", "in use", "--listen HOST:PORT")


# Stores


def test_store_that_accepts_only_newer_code_is_rejected(shell: Shell) -> None:
    assert shell("migrate", "--store", "sqlite:///gregor.db").status == 0
    with sqlite3.connect(shell.folder / "gregor.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.execute("UPDATE oldest_writer SET revision = '9999'")
    connection.close()
    for command in ("serve", "migrate"):
        result = shell.process(command, "--store", "sqlite:///gregor.db")
        assert result.failed_with("schema 9999", "newer", "pip install -U gregor-sync")


def test_sqlite_file_open_in_another_process_is_rejected(shell: Shell) -> None:
    with shell.serving("--store", "sqlite:///gregor.db"):
        for command in (("serve", "--listen", "127.0.0.1:0"), ("migrate",)):
            result = shell.process(*command, "--store", "sqlite:///gregor.db")
            assert result.failed_with("gregor.db is open in another process", "another file")


def test_missing_folder_of_a_store_is_named(shell: Shell) -> None:
    result = shell.process("serve", "--store", "sqlite:///nowhere/gregor.db")
    assert result.failed_with("nowhere/gregor.db", "does not exist", "make it first")


def test_read_only_folder_of_a_store_is_named(shell: Shell) -> None:
    result = shell.process("serve", "--store", "sqlite:////proc/gregor.db")
    assert result.failed_with("/proc/gregor.db cannot be written", "rights")


def test_file_that_is_not_sqlite_is_rejected_unchanged(shell: Shell) -> None:
    letter: Path = shell.folder / "letter.txt"
    letter.write_text("Dear all, this is no database. " * 40)
    result = shell.process("serve", "--store", "sqlite:///letter.txt")
    assert result.failed_with("letter.txt is not an SQLite database")
    assert letter.read_text().startswith("Dear all")


def test_migrate_creates_the_store_and_is_idempotent(shell: Shell) -> None:
    result = shell("migrate", "--json").json
    schema = {"schema": NEWEST_REVISION, "oldest_writer": OLDEST_WRITERS[NEWEST_REVISION]}
    assert result == {"store": "sqlite:///gregor.db", **schema}
    assert f"has schema {NEWEST_REVISION}" in shell("migrate").out


def test_migration_is_finished_and_cannot_be_rolled_back(shell: Shell) -> None:
    """The schema of keys and starts is for code that knows them."""
    shell("migrate")
    assert shell("migrate", "--rollback").failed_with("gregor.db", "may not write", "backup")
    for _ in range(2):  # finish is idempotent, and migrates again first
        finished = shell("migrate", "--finish", "--json").json
        assert set(finished.values()) == {"sqlite:///gregor.db", NEWEST_REVISION}
    assert shell("migrate", "--rollback").failed_with("gregor.db", "may not write", "backup")


def test_finish_and_rollback_exclude_each_other(shell: Shell) -> None:
    assert shell("migrate", "--finish", "--rollback").status == 2


def test_migration_names_the_nodes_that_are_too_old(shell: Shell, postgresql_url: str) -> None:
    assert shell("migrate", "--store", postgresql_url).status == 0
    with asyncio.Runner() as runner:
        runner.run(_register_node(postgresql_url, "web-1 (process 7)", "0004"))
    result = shell.process("migrate", "--finish", "--store", postgresql_url)
    assert result.failed_with("web-1 (process 7) (schema 0004)", "upgrade or stop them")


async def _register_node(url: str, name: str, revision: str) -> None:
    async with database_at(url) as database:
        row = [NodeRow(name, revision)]
        await database.write(lambda c: c.execute_rows(REGISTER_NODE, row))


def test_sigterm_ends_the_server_with_status_0(shell: Shell) -> None:
    with shell.serving() as process:
        process.terminate()
        assert process.wait(30) == 0


# Stores that several servers share


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), ("--workers 3 needs a store", "--store postgresql://")),
        (("--pubsub", "redis://localhost"), ("--workers 3 needs a store",)),
        (("--store", "postgresql:///x"), ("--workers 3 needs a pub/sub", "--pubsub redis://")),
    ],
)
def test_workers_need_a_shared_store_and_a_pubsub(
    shell: Shell, options: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert shell("serve", "--workers", "3", *options).failed_with(*expected)


def test_setup_error_of_all_workers_is_printed_once(
    shell: Shell, postgresql_url: str, redis_server: Redis
) -> None:
    serve = ("serve", "--workers", "3", "--listen", "127.0.0.1:0", "--pubsub", redis_server.url)
    assert shell.process(*serve, "--store", postgresql_url).failed_with("gregor migrate --store")
    unreachable = ("--store", "postgresql://u:secret@127.0.0.1:1/x")
    assert shell.process(*serve, *unreachable).failed_with("u:***@127.0.0.1:1/x")


def test_worker_command_without_parent_fails(shell: Shell) -> None:
    assert shell.process("worker").failed_with("gregor serve --workers N")


def test_postgresql_store_needs_migrate_before_serve(shell: Shell, postgresql_url: str) -> None:
    empty = shell.process("serve", "--store", postgresql_url)
    assert empty.failed_with("no tables yet", "gregor migrate --store", "--migrate")
    assert shell("migrate", "--store", postgresql_url).status == 0
    with shell.serving("--store", postgresql_url):
        assert shell("send", "alice", "c", "1").status == 0


def test_migrate_option_migrates_the_store_before_serving(
    shell: Shell, postgresql_url: str
) -> None:
    with shell.serving("--store", postgresql_url, "--migrate"):
        assert shell("send", "alice", "c", "1").status == 0


async def test_migrate_accepts_several_stores(shell: Shell, postgresql_server: PostgreSQL) -> None:
    stores = [await postgresql_server.create_database() for _ in range(2)]
    options = [word for store in stores for word in ("--store", store)]
    results = shell.process("migrate", *options, "--json").lines
    assert [result["store"] for result in results] == stores
    await _set_schema(stores[1], "9999")
    result = shell.process("migrate", *options)
    assert stores[0] in result.out
    assert result.failed_with(stores[1], "schema 9999", "newer", "pip install -U gregor-sync")
    assert shell.process("serve", "--store", stores[1]).failed_with("schema 9999", "newer")
    await _set_schema(stores[1], "")
    assert shell.process("serve", "--store", stores[1]).status == 1


async def _set_schema(url: str, revision: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("UPDATE alembic_version SET version_num = $1", revision)
    await connection.execute("UPDATE oldest_writer SET revision = $1", revision)
    await connection.close()


@pytest.mark.parametrize(
    ("store", "expected"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", ("u:***@127.0.0.1:1/x", "start PostgreSQL")),
        ("postgresql://u:secret@127.0.0.1:port/x", ("not a store URL",)),
        ("mysql://u:secret@127.0.0.1/x", ("there are sqlite", "postgresql://USER@HOST/DATABASE")),
    ],
)
def test_unusable_store_is_named_without_its_password(
    shell: Shell, store: str, expected: tuple[str, ...]
) -> None:
    for command in (("serve", "--listen", "127.0.0.1:0"), ("migrate",)):
        result = shell.process(*command, "--store", store)
        assert result.failed_with(*expected)
        assert "secret" not in result.err


def test_postgresql_with_unknown_role_or_database_is_named(
    shell: Shell, postgresql_server: PostgreSQL
) -> None:
    address = f"127.0.0.1:{postgresql_server.port}"
    result = shell.process("serve", "--store", f"postgresql://no_such_role@{address}/postgres")
    assert result.failed_with(address, "no_such_role", "correct the user or password")
    result = shell.process("serve", "--store", f"postgresql://postgres@{address}/no_such_database")
    assert result.failed_with(address, "no_such_database", "createdb")


@pytest.mark.parametrize(
    ("pubsub", "expected"),
    [
        ("redis://:secret@127.0.0.1:1", ("127.0.0.1:1 cannot be used", "tart it")),
        ("nats://u:secret@127.0.0.1:1", ("127.0.0.1:1 cannot be used", "tart it")),
        ("kafka://u:secret@127.0.0.1", ("kafka", "redis://HOST:PORT/DB or nats://HOST:PORT")),
    ],
)
def test_unusable_pubsub_is_named_without_its_password(
    shell: Shell, pubsub: str, expected: tuple[str, ...]
) -> None:
    result = shell.process("serve", "--listen", "127.0.0.1:0", "--pubsub", pubsub)
    assert result.failed_with(*expected)
    assert "secret" not in result.err


def test_logs_and_output_contain_no_password(
    shell: Shell, postgresql_url: str, redis_server: Redis
) -> None:
    store = postgresql_url.replace("postgres@", "postgres:secret@")
    options = ("--store", store, "--pubsub", redis_server.url, "--migrate")
    with shell.serving(*options) as process:
        process.terminate()
        assert process.stderr is not None
        assert "secret" not in process.stderr.read()
    result = shell("migrate", "--store", store)
    assert "postgres:***@" in result.out
    assert "secret" not in result.out


def test_message_sent_to_one_server_reaches_a_device_on_another(
    shell: Shell, postgresql_url: str, redis_server: Redis
) -> None:
    fleet = ("--store", postgresql_url, "--pubsub", redis_server.url, "--sweep-seconds", "1000")
    assert shell("migrate", "--store", postgresql_url).status == 0
    with shell.serving(*fleet):
        watch = ("watch", "alice", "--json", "--url", shell.environment["GREGOR_URL"])
        with shell.running(*watch, stdout=subprocess.PIPE) as watching, shell.serving(*fleet):
            assert watching.stdout is not None
            first_json(watching.stdout, event="synced")
            assert shell("send", "alice", "c", "1", "--msg-id", "m").status == 0
            assert first_json(watching.stdout, event="created")["item"]["msg_id"] == "m"
