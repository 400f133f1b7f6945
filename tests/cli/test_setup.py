"""What keeps a server from starting is said in one line, which says what to do; exit status 1."""

import socket
import sqlite3
import subprocess
from pathlib import Path

import asyncpg
import pytest

from gregor.testing.backends import PostgreSQL, Redis
from tests.cli.conftest import Shell, first

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--listen", "9911", ("`listen`", "give HOST:PORT")),
        ("--listen", "127.0.0.1:99999", ("`listen`", "give HOST:PORT")),
        ("--auth", "magic", ("`auth`", "'open' or 'jwt'")),
        ("--store", "mysql://localhost/x", ("sqlite:///FILE",)),
        ("--store", "gregor.db", ("is not a store URL", "sqlite:///gregor.db")),
        ("--log-format", "xml", ("`log_format`", "'console' or 'json'")),
        ("--sweep-seconds", "0", ("`sweep_seconds`", "greater than 0")),
        ("--drain-seconds", "-1", ("`drain_seconds`", "greater than or equal to 0")),
        ("--store-seconds", "0", ("`store_seconds`", "greater than 0")),
        ("--store-connections", "0", ("`store_connections`", "greater than or equal to 1")),
        ("--workers", "0", ("`workers`", "greater than or equal to 1")),
    ],
)
def test_a_bad_setting_is_named(
    shell: Shell, option: str, value: str, words: tuple[str, ...]
) -> None:
    assert shell("serve", option, value).complained(*words)


def test_a_bad_variable_is_named(shell: Shell) -> None:
    said = shell("serve", env={"GREGOR_SWEEP_SECONDS": "soon"})
    assert said.complained("`sweep_seconds`", "valid number")


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ("listen = 9911", ("`listen`", "valid string")),
        ("lisen = '127.0.0.1:0'", ("`lisen`", "there is none of that name", "listen, store")),
        ("listen = ", ("gregor.toml", "Invalid value")),
    ],
)
def test_a_bad_file_is_named(shell: Shell, contents: str, words: tuple[str, ...]) -> None:
    (shell.folder / "gregor.toml").write_text(contents)
    assert shell("--config", "gregor.toml", "serve").complained(*words)


def test_a_file_that_is_not_there_is_named(shell: Shell) -> None:
    assert shell("--config", "no.toml", "serve").complained("no.toml does not exist")


def test_an_option_goes_before_a_variable_and_that_before_the_file(shell: Shell) -> None:
    (shell.folder / "gregor.toml").write_text('store = "sqlite:///file.db"')
    migrate = ("--config", "gregor.toml", "migrate", "--json")
    variable = {"GREGOR_STORE": "sqlite:///variable.db"}
    option = ("--store", "sqlite:///option.db")
    assert shell(*migrate).json["store"] == "sqlite:///file.db"
    assert shell(*migrate, env=variable).json["store"] == "sqlite:///variable.db"
    assert shell(*migrate, *option, env=variable).json["store"] == "sqlite:///option.db"


def test_open_access_is_for_this_machine_only(shell: Shell) -> None:
    said = shell.process("serve", "--auth", "open", "--listen", "0.0.0.0:0")
    assert said.complained("--auth open", "loopback", "use --auth jwt")


def test_signed_access_needs_a_secret(shell: Shell) -> None:
    assert shell.process("serve", "--auth", "jwt").complained("GREGOR_JWT_SECRET", "openssl rand")
    short = shell.process("serve", "--auth", "jwt", env={"GREGOR_JWT_SECRET": "short"})
    assert short.complained("5 bytes", "openssl rand")
    assert "short" not in short.err.replace("the JWT secret", "")


def test_an_address_that_is_taken_is_named(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = shell.process("serve", "--listen", f"127.0.0.1:{port}")
    assert said.complained(f"127.0.0.1:{port}", "in use", "--listen HOST:PORT")


# Stores


def test_a_store_of_a_newer_schema_is_left_alone(shell: Shell) -> None:
    assert shell("migrate", "--store", "sqlite:///gregor.db").status == 0
    with sqlite3.connect(shell.folder / "gregor.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    for command in ("serve", "migrate"):
        said = shell.process(command, "--store", "sqlite:///gregor.db")
        assert said.complained("schema 9999", "newer", "pip install -U gregor-sync")


def test_a_store_belongs_to_one_process(shell: Shell) -> None:
    with shell.serving("--store", "sqlite:///gregor.db"):
        for command in (("serve", "--listen", "127.0.0.1:0"), ("migrate",)):
            said = shell.process(*command, "--store", "sqlite:///gregor.db")
            assert said.complained("gregor.db is open in another process", "another file")


def test_a_missing_folder_is_named(shell: Shell) -> None:
    said = shell.process("serve", "--store", "sqlite:///nowhere/gregor.db")
    assert said.complained("nowhere/gregor.db", "does not exist", "make it first")


def test_a_folder_that_cannot_be_written_is_named(shell: Shell) -> None:
    said = shell.process("serve", "--store", "sqlite:////proc/gregor.db")
    assert said.complained("/proc/gregor.db cannot be written", "rights")


def test_a_file_of_something_else_is_left_alone(shell: Shell) -> None:
    letter: Path = shell.folder / "letter.txt"
    letter.write_text("Dear all, this is no database. " * 40)
    said = shell.process("serve", "--store", "sqlite:///letter.txt")
    assert said.complained("letter.txt is not an SQLite database")
    assert letter.read_text().startswith("Dear all")


def test_a_store_is_made_and_brought_up_to_date(shell: Shell) -> None:
    made = shell("migrate", "--json").json
    assert made == {"store": "sqlite:///gregor.db", "schema": made["schema"]}
    assert "newest" in shell("migrate").out


def test_a_server_that_is_told_to_stop_ends_well(shell: Shell) -> None:
    with shell.serving() as process:
        process.terminate()
        assert process.wait(30) == 0


# Stores that several servers share


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ("--workers 3 needs a store", "--store postgresql://")),
        (("--pubsub", "redis://localhost"), ("--workers 3 needs a store",)),
        (("--store", "postgresql:///x"), ("--workers 3 needs a pub/sub", "--pubsub redis://")),
    ],
)
def test_workers_need_what_they_can_share(
    shell: Shell, options: tuple[str, ...], words: tuple[str, ...]
) -> None:
    assert shell("serve", "--workers", "3", *options).complained(*words)


def test_what_is_wrong_is_not_said_by_each_worker(
    shell: Shell, postgresql_url: str, redis_server: Redis
) -> None:
    several = ("serve", "--workers", "3", "--listen", "127.0.0.1:0", "--pubsub", redis_server.url)
    assert shell.process(*several, "--store", postgresql_url).complained("gregor migrate --store")
    nowhere = ("--store", "postgresql://u:secret@127.0.0.1:1/x")
    assert shell.process(*several, *nowhere).complained("u:***@127.0.0.1:1/x")


def test_workers_are_not_started_by_hand(shell: Shell) -> None:
    assert shell.process("worker").complained("gregor serve --workers N")


def test_a_shared_store_is_prepared_when_somebody_says_so(
    shell: Shell, postgresql_url: str
) -> None:
    unprepared = shell.process("serve", "--store", postgresql_url)
    assert unprepared.complained("no tables yet", "gregor migrate --store", "--migrate")
    assert shell("migrate", "--store", postgresql_url).status == 0
    with shell.serving("--store", postgresql_url):
        assert shell("send", "alice", "c", "1").status == 0


def test_a_server_prepares_its_store_if_it_is_told_to(shell: Shell, postgresql_url: str) -> None:
    with shell.serving("--store", postgresql_url, "--migrate"):
        assert shell("send", "alice", "c", "1").status == 0


async def test_several_stores_are_prepared_at_once(
    shell: Shell, postgresql_server: PostgreSQL
) -> None:
    stores = [await postgresql_server.create_database() for _ in range(2)]
    options = [word for store in stores for word in ("--store", store)]
    made = shell.process("migrate", *options, "--json").lines
    assert [line["store"] for line in made] == stores
    await _set_schema(stores[1], "9999")
    said = shell.process("migrate", *options)
    assert stores[0] in said.out
    assert said.complained(stores[1], "schema 9999", "newer", "pip install -U gregor-sync")
    assert shell.process("serve", "--store", stores[1]).complained("schema 9999", "newer")
    await _set_schema(stores[1], "")
    assert shell.process("serve", "--store", stores[1]).status == 1


async def _set_schema(url: str, revision: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("UPDATE alembic_version SET version_num = $1", revision)
    await connection.close()


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("postgresql://u:secret@127.0.0.1:1/x", ("u:***@127.0.0.1:1/x", "start PostgreSQL")),
        ("postgresql://u:secret@127.0.0.1:port/x", ("not a store URL",)),
        ("mysql://u:secret@127.0.0.1/x", ("there are sqlite", "postgresql://USER@HOST/DATABASE")),
    ],
)
def test_a_store_that_cannot_be_used_is_named_without_its_password(
    shell: Shell, store: str, words: tuple[str, ...]
) -> None:
    for command in (("serve", "--listen", "127.0.0.1:0"), ("migrate",)):
        said = shell.process(*command, "--store", store)
        assert said.complained(*words)
        assert "secret" not in said.err


def test_a_store_that_does_not_know_us_is_named(
    shell: Shell, postgresql_server: PostgreSQL
) -> None:
    place = f"127.0.0.1:{postgresql_server.port}"
    said = shell.process("serve", "--store", f"postgresql://nobody@{place}/postgres")
    assert said.complained(place, "nobody", "mend user and password")
    said = shell.process("serve", "--store", f"postgresql://postgres@{place}/nowhere")
    assert said.complained(place, "nowhere", "createdb")


@pytest.mark.parametrize(
    ("pubsub", "words"),
    [
        ("redis://:secret@127.0.0.1:1", ("127.0.0.1:1 cannot be used", "tart it")),
        ("nats://u:secret@127.0.0.1:1", ("127.0.0.1:1 cannot be used", "tart it")),
        ("kafka://u:secret@127.0.0.1", ("kafka", "redis://HOST:PORT/DB or nats://HOST:PORT")),
    ],
)
def test_a_pubsub_that_cannot_be_used_is_named_without_its_password(
    shell: Shell, pubsub: str, words: tuple[str, ...]
) -> None:
    said = shell.process("serve", "--listen", "127.0.0.1:0", "--pubsub", pubsub)
    assert said.complained(*words)
    assert "secret" not in said.err


def test_what_is_logged_has_no_password(
    shell: Shell, postgresql_url: str, redis_server: Redis
) -> None:
    store = postgresql_url.replace("postgres@", "postgres:secret@")
    options = ("--store", store, "--pubsub", redis_server.url, "--migrate")
    with shell.serving(*options) as process:
        process.terminate()
        assert process.stderr is not None
        assert "secret" not in process.stderr.read()
    made = shell("migrate", "--store", store)
    assert "postgres:***@" in made.out
    assert "secret" not in made.out


def test_two_servers_on_one_store_tell_each_other_what_is_new(
    shell: Shell, postgresql_url: str, redis_server: Redis
) -> None:
    fleet = ("--store", postgresql_url, "--pubsub", redis_server.url, "--sweep-seconds", "1000")
    assert shell("migrate", "--store", postgresql_url).status == 0
    with shell.serving(*fleet):
        watch = ("watch", "alice", "--json", "--url", shell.environment["GREGOR_URL"])
        with shell.started(*watch, stdout=subprocess.PIPE) as watching, shell.serving(*fleet):
            assert watching.stdout is not None
            first(watching.stdout, event="synced")
            assert shell("send", "alice", "c", "1", "--msg-id", "m").status == 0
            assert first(watching.stdout, event="created")["item"]["msg_id"] == "m"
