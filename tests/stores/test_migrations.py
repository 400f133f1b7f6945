"""The migrations create exactly the tables that the code knows, and keep the stored messages."""

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gregor.core.instant import SECOND
from gregor.core.message import create
from gregor.errors import SetupError
from gregor.interfaces import Duplicate
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations import SchemaWork, migrate, require_newest, revision, upgrade_to
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import MessageRow
from gregor.stores.sql.store_url import database_at, databases_at
from gregor.stores.sql.tables import metadata

T = TypeVar("T")
LATER = 1_767_226_000_000_000  # shortly after the messages in the files were stored


SQLAlchemyWork: TypeAlias = Callable[[Connection], T]


async def inspected(url: str, prepare: SQLAlchemyWork[None], work: SQLAlchemyWork[T]) -> T:
    """The result of the work on the database after `prepare`."""
    results: list[T] = []

    @SchemaWork
    def prepare_and_work(connection: Connection) -> None:
        prepare(connection)
        results.append(work(connection))

    async with database_at(url, prepare_and_work):
        return results[0]


def leave_unchanged(connection: Connection) -> None:
    pass


async def test_migrations_create_the_tables_and_nothing_else(url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )

    assert await inspected(url, migrate.run, differences) == []


async def test_migrations_create_every_index_and_constraint() -> None:
    """Alembic does not compare these in full on SQLite: partial indexes, primary keys."""

    def schema(connection: Connection) -> dict[str, object]:
        inspector = inspect(connection)
        return {
            name: (
                [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)],
                inspector.get_pk_constraint(name)["constrained_columns"],
                [c["column_names"] for c in inspector.get_unique_constraints(name)],
                [
                    (i["name"], i["column_names"], _where(i.get("dialect_options")))
                    for i in inspector.get_indexes(name)
                ],
            )
            for name in inspector.get_table_names()
            if name != "alembic_version"
        }

    def create_all(connection: Connection) -> None:
        metadata.create_all(connection)

    migrated_schema = await inspected("sqlite://", migrate.run, schema)
    created_schema = await inspected("sqlite://", create_all, schema)
    assert created_schema == migrated_schema
    assert set(migrated_schema) == set(metadata.tables)


def _where(options: object) -> str:
    where = options.get("sqlite_where") if isinstance(options, dict) else None
    return str(where)


async def test_migrate_is_idempotent(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    revisions = [await inspected(url, migrate.run, revision) for _ in range(2)]
    assert revisions[0] is not None
    assert revisions[0] == revisions[1]


async def test_new_file_has_no_schema(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    async with database_at(url):
        pass
    assert await inspected(url, leave_unchanged, revision) is None


def set_revision(connection: DatabaseConnection, version: str) -> None:
    connection.execute_sql(f"UPDATE alembic_version SET version_num = '{version}'")


async def test_newer_schema_is_refused_with_the_command_to_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    async with database_at(url, migrate) as database:
        await database.write(lambda c: set_revision(c, "9999"))
    with pytest.raises(SetupError, match=r"9999.*pip install -U gregor-sync"):
        async with database_at(url, migrate):
            pass
    assert await inspected(url, leave_unchanged, revision) == "9999"


# On a database that nodes share, a node creates tables only with --migrate.


async def test_node_refuses_schema_that_its_code_does_not_know(postgresql_url: str) -> None:
    with pytest.raises(SetupError, match=r"no tables yet.*gregor migrate --store"):
        async with database_at(postgresql_url, require_newest):
            pass
    async with database_at(postgresql_url, migrate):
        pass
    async with database_at(postgresql_url, require_newest) as database:
        await database.write(lambda c: set_revision(c, "9999"))
    for prepare in (require_newest, migrate):
        with pytest.raises(SetupError, match=r"9999.*pip install -U gregor-sync"):
            async with database_at(postgresql_url, prepare):
                pass


async def test_concurrent_migrations_wait_for_each_other(postgresql_url: str) -> None:
    databases = [database_at(postgresql_url, migrate) for _ in range(5)]
    await asyncio.gather(*(database.__aenter__() for database in databases))
    assert await inspected(postgresql_url, leave_unchanged, revision) is not None
    for database in databases:
        await database.__aexit__(None, None, None)


# Files written by the commit before schema 0003, which renamed `dtime`: a store, two shards of one
# map, and a device's store (tests/client/test_store.py).

SCHEMA_0002 = Path(__file__).parent / "schema_0002"


def unpack(name: str, folder: Path) -> str:
    """Unpack a copy of the file, and return its URL."""
    path = folder / f"{name}.sqlite"
    path.write_bytes(gzip.decompress((SCHEMA_0002 / f"{name}.sqlite.gz").read_bytes()))
    return f"sqlite:///{path}"


def stored_messages(connection: DatabaseConnection) -> list[tuple[str, str, str]]:
    rows = connection.execute_sql("SELECT uid, msg_id, message FROM messages ORDER BY 1, ctime")
    return [(uid, msg_id, message) for uid, msg_id, message in rows]


def expected_messages(before: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """The renamed field follows the category and the body, so it is the last one of its name."""
    offset, time = '"dtime":{"offset":', '"dtime":{"time":'

    def renamed(msg_id: str, message: str) -> str:
        if (
            msg_id == "trap"
        ):  # its category and its body contain `dtime`, its creation has no such field
            return message
        for old in (offset, time):
            head, separator, tail = message.rpartition(old)
            if separator:
                return head + old.replace("dtime", "expires") + tail
        return message

    return [(uid, msg_id, renamed(msg_id, message)) for uid, msg_id, message in before]


async def read_without_migration(url: str) -> list[tuple[str, str, str]]:
    async with database_at(url) as database:
        return await database.read(stored_messages)


@pytest.mark.parametrize("name", ["store", "shard-a", "shard-b"])
async def test_messages_in_file_of_schema_0002_are_kept_with_renamed_field(
    name: str, tmp_path: Path
) -> None:
    url = unpack(name, tmp_path)
    before = await read_without_migration(url)
    assert sum('"dtime":' in message for _, _, message in before) >= 5
    async with database_at(url, migrate) as database:
        after = await database.read(stored_messages)
        machine = SQLStateMachine(database, lambda: LATER)
        async with machine:
            for uid in {uid for uid, _, _ in after}:
                items = {item.msg_id: item for item in await machine.state(uid)}
                assert set(items) == {"plain", "offset", "time", "trap"}
                offset = items["offset"]
                assert offset.expires_at == offset.ctime + 365 * 86_400 * SECOND
                assert bytes(offset.raw_body) == b'[1, 2.50,  "x"]'
                assert items["time"].expires_at == 4_102_444_800_000_000
                # A message that was stored before is a duplicate when it is sent again.
                resent = create(uid, "mail", items["offset"].raw_body, expires="365d",
                               msg_id="offset")  # fmt: skip
                (outcome,) = await machine.consume_messages([resent])
                assert isinstance(outcome, Duplicate)
    assert after == expected_messages(before)


async def test_messages_in_postgresql_of_schema_0002_are_kept_with_renamed_field(
    postgresql_url: str, tmp_path: Path
) -> None:
    before = await read_without_migration(unpack("store", tmp_path))
    rows = [
        MessageRow(uid, n, n - 1, msg_id, None, message, None, None)
        for n, (uid, msg_id, message) in enumerate(before, start=1)
    ]
    schema_0002 = SchemaWork(lambda connection: upgrade_to(connection, "0002"))
    async with database_at(postgresql_url, schema_0002) as database:
        await database.write(lambda c: c.insert(statements.INSERT_MESSAGES, rows))
    async with database_at(postgresql_url, migrate) as database:
        assert await database.read(stored_messages) == expected_messages(before)


async def test_shards_of_schema_0002_are_served_after_each_is_migrated(tmp_path: Path) -> None:
    urls = {name[-1]: unpack(name, tmp_path) for name in ("shard-a", "shard-b")}
    async with databases_at(urls, migrate) as databases:
        machines = {name: SQLStateMachine(d, lambda: LATER) for name, d in databases.items()}
        async with ShardedStateMachine(machines) as machine:
            for uid in ("alice", "bob", "carol", "dan"):
                assert len(await machine.state(uid)) == 4
