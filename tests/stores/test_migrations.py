"""The migrations create exactly the tables of a new file, and keep the stored messages."""

import asyncio
import gzip
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import asyncpg
import msgspec
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect

from gregor.core.buckets import bucket_of
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import Dismissal, InBandMessage, Range, create, dismiss
from gregor.errors import SetupError, StorageUnavailable
from gregor.interfaces import Duplicate, Rejected, Stored
from gregor.shards.bucket_contents import misplaced_users
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql import migrations, statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.migrations import (
    migrate,
    require_served,
    requiring_no_shard,
    revision,
    roll_back,
)
from gregor.stores.sql.migrations.upgrade import NEWEST, Upgrade
from gregor.stores.sql.schema import Schema
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import MessageRow, RangeRow, UserRecord
from gregor.stores.sql.store_url import database_at, databases_at
from gregor.stores.sql.tables import CREATE_TABLES, NEWEST_REVISION, OLDEST_WRITERS
from gregor.testing import oracle
from tests.stores.logs import stored_log
from tests.stores.schema_0006 import SchemaOf0006
from tests.stores.sqlalchemy_migration import OnSQLAlchemy

T = TypeVar("T")
LATER = 1_767_226_000_000_000  # shortly after the messages in the files were stored


async def on_sqlalchemy(url: str, work: Callable[[Connection], T]) -> T:
    migration = OnSQLAlchemy(work)
    async with database_at(url, migration):
        return migration.results[0]


async def read_revision(url: str) -> str | None:
    async with database_at(url) as database:
        return await database.read(revision)


def schema(connection: Connection) -> dict[str, object]:
    """The columns, keys and indexes of each table, apart from collations, and partial indexes and
    those of expressions, which other tests compare."""
    inspector = inspect(connection)
    return {
        name: (
            [
                (c["name"], _type(c["type"]), c["nullable"], _default(c["default"]))
                for c in inspector.get_columns(name)
            ],
            inspector.get_pk_constraint(name)["constrained_columns"],
            [c["column_names"] for c in inspector.get_unique_constraints(name)],
            [
                (i["name"], i["column_names"])
                for i in inspector.get_indexes(name)
                if "duplicates_constraint" not in i and "expressions" not in i
            ],
        )
        for name in inspector.get_table_names()
    }


def _default(default: str | None) -> str | None:
    return None if default is None else default.removesuffix("::integer").strip("'()")


def _type(column_type: object) -> str:
    return str(column_type).removesuffix(' COLLATE "C"')


def partial_indexes(connection: Connection) -> list[tuple[str, str]]:
    inspector = inspect(connection)
    return [
        (str(index["name"]), str(index["dialect_options"]["sqlite_where"]))
        for name in inspector.get_table_names()
        for index in inspector.get_indexes(name)
        if index.get("dialect_options")
    ]


SKIPPED_EXPRESSIONS = pytest.mark.filterwarnings(
    "ignore:Skipped unsupported reflection of expression-based index"
)


def create_tables(connection: Connection) -> None:
    for statement in CREATE_TABLES:
        connection.exec_driver_sql(statement)


@SKIPPED_EXPRESSIONS
async def test_migrations_create_the_tables_of_a_new_file(url: str) -> None:
    def created(connection: Connection) -> dict[str, object]:
        create_tables(connection)
        return schema(connection)

    def migrated(connection: Connection) -> dict[str, object]:
        NEWEST.run(connection)
        return schema(connection)

    tables = await on_sqlalchemy("sqlite://", created)
    assert tables == await on_sqlalchemy(url, migrated)
    assert {"users", "messages", "shard", "alembic_version"} < set(tables)


@SKIPPED_EXPRESSIONS
async def test_migrations_create_the_partial_indexes_of_a_new_file() -> None:
    def created(connection: Connection) -> list[tuple[str, str]]:
        create_tables(connection)
        return partial_indexes(connection)

    def migrated(connection: Connection) -> list[tuple[str, str]]:
        NEWEST.run(connection)
        return partial_indexes(connection)

    indexes = await on_sqlalchemy("sqlite://", created)
    assert indexes == await on_sqlalchemy("sqlite://", migrated)
    names = [name for name, _ in indexes]
    assert names == ["deaths", "dismissals", "late_deaths", "live_items", "live_keys"]


async def test_migrations_create_the_index_of_keyed_items_of_a_new_file(url: str) -> None:
    """With the expression of the statements, or it would not be used."""

    def definition(connection: Connection) -> str:
        is_sqlite = connection.dialect.name == "sqlite"
        text = connection.exec_driver_sql(
            "SELECT sql FROM sqlite_master WHERE name = 'keyed_items'"
            if is_sqlite
            else "SELECT indexdef FROM pg_indexes WHERE indexname = 'keyed_items'"
        ).scalar_one()
        for noise in ("::text", '"', "(", ")", "using btree ", "public."):
            text = text.lower().replace(noise, "")
        return " ".join(text.split())

    def created(connection: Connection) -> str:
        create_tables(connection)
        return definition(connection)

    def migrated(connection: Connection) -> str:
        NEWEST.run(connection)
        return definition(connection)

    new = await on_sqlalchemy("sqlite://", created)
    assert "uid, key, coalescedevice_id, '', ctime where key is not null" in new
    assert await on_sqlalchemy(url, migrated) == new


async def test_names_are_compared_byte_for_byte_on_postgresql(postgresql_url: str) -> None:
    query = """
        SELECT table_name, column_name FROM information_schema.columns
        WHERE table_schema = current_schema() AND data_type = 'text' AND collation_name IS NULL
        """
    async with database_at(postgresql_url, migrate) as database:
        others = await database.read(lambda c: c.execute_sql(query))
    assert set(others) == {("messages", "message"), ("dismissed_ranges", "skip_msg_ids")}


def test_code_knows_the_revisions_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    scripts = list(ScriptDirectory.from_config(config).walk_revisions())
    assert [script.revision for script in reversed(scripts)] == list(OLDEST_WRITERS)


def test_file_that_is_new_or_has_the_newest_schema_loads_no_alembic(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.store_url import database_at

async def main():
    for _ in range(2):
        async with database_at(sys.argv[1], migrate) as database:
            pass
    print({"alembic", "sqlalchemy"} & set(sys.modules))

asyncio.run(main())
"""
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    command = (sys.executable, "-c", program, url)
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"set()\n"


async def test_migrate_is_idempotent(url: str) -> None:
    async with database_at(url, migrate) as database:
        assert await database.read(revision) == NEWEST_REVISION
        assert not await database.read(migrate.is_due)


async def test_new_file_has_no_schema(tmp_path: Path) -> None:
    assert await read_revision(f"sqlite:///{tmp_path / 'gregor.db'}") is None


def set_schema(connection: DatabaseConnection, schema: Schema) -> None:
    connection.execute(statements.SET_REVISION, revision=schema.revision)
    connection.execute(statements.SET_OLDEST_WRITER, revision=schema.oldest_writer)


async def test_newer_schema_is_refused_with_the_command_to_upgrade(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    async with database_at(url, migrate) as database:
        await database.write(lambda c: set_schema(c, Schema("9999", "9998")))
    with pytest.raises(SetupError, match=r"9999.*9998 or newer.*pip install -U gregor-sync"):
        async with database_at(url, migrate):
            pass
    assert await read_revision(url) == "9999"


async def test_newer_schema_that_this_code_may_write_to_is_served_unchanged(
    url: str, tmp_path: Path
) -> None:
    """So the code can be rolled back, on a file as on a database that nodes share."""
    url = url if url != "sqlite://" else f"sqlite:///{tmp_path / 'gregor.db'}"
    async with database_at(url, migrate) as database:
        await database.write(lambda c: set_schema(c, Schema("9999", NEWEST_REVISION)))
    for prepare in (migrate, require_served):
        async with (
            database_at(url, prepare) as database,
            SQLStateMachine(database, lambda: LATER) as machine,
        ):
            await machine.consume_message(create("ann", "mail"))
            assert machine.schema == Schema("9999", NEWEST_REVISION)
            assert await machine.problems() == []


# Schema 0006: every user has a bucket

USER_WITHOUT_BUCKET = "INSERT INTO users (uid, ctime) VALUES ('{}', 7)"  # by code before 0002


async def test_users_without_a_bucket_get_theirs_and_no_more_can_be_stored(
    url: str, tmp_path: Path
) -> None:
    url = url if url != "sqlite://" else f"sqlite:///{tmp_path / 'gregor.db'}"
    async with database_at(url, OnSQLAlchemy(Upgrade("0004").run)) as database:
        for uid in ("ann", "bob"):
            await database.write(lambda c: c.execute_sql(USER_WITHOUT_BUCKET.format(uid)))  # noqa: B023
        assert await database.read(lambda c: misplaced_users(c, "")) == ("bob", ["ann", "bob"])
    for _ in range(2):  # also after a rollback
        async with database_at(url, OnSQLAlchemy(Upgrade("0006").run)) as database:
            assert await database.read(lambda c: misplaced_users(c, "")) == ("bob", [])
            for statement in (
                USER_WITHOUT_BUCKET.format("new"),
                "INSERT INTO users (uid, ctime, bucket) VALUES ('new', 7, -1)",
                "UPDATE users SET bucket = -1",
            ):
                with pytest.raises(StorageUnavailable, match=r"bucket|NOT NULL"):
                    await database.write(lambda c: c.execute_sql(statement))  # noqa: B023
            await database.write(roll_back)


async def test_new_file_stores_no_user_without_a_bucket() -> None:
    async with database_at("sqlite://", migrate) as database:
        for bucket in ("-1", "NULL"):
            insert = f"INSERT INTO users (uid, ctime, bucket) VALUES ('u', 7, {bucket})"
            with pytest.raises(StorageUnavailable, match=r"users_have_buckets|NOT NULL"):
                await database.write(lambda c: c.execute_sql(insert))  # noqa: B023


# On a database that nodes share, a node creates tables only with --migrate.


async def test_node_refuses_schema_that_its_code_does_not_know(postgresql_url: str) -> None:
    with pytest.raises(SetupError, match=r"no tables yet.*gregor migrate --store"):
        async with database_at(postgresql_url, require_served):
            pass
    async with database_at(postgresql_url, migrate):
        pass
    async with database_at(postgresql_url, require_served) as database:
        await database.write(lambda c: set_schema(c, Schema("9999", "9999")))
    for prepare in (require_served, migrate):
        with pytest.raises(SetupError, match=r"9999.*pip install -U gregor-sync"):
            async with database_at(postgresql_url, prepare):
                pass


async def test_concurrent_migrations_wait_for_each_other(postgresql_url: str) -> None:
    databases = [database_at(postgresql_url, migrate) for _ in range(5)]
    await asyncio.gather(*(database.__aenter__() for database in databases))
    assert await read_revision(postgresql_url) == NEWEST_REVISION
    for database in databases:
        await database.__aexit__(None, None, None)


async def test_migration_gives_up_if_a_backup_holds_a_table_that_must_change(
    postgresql_url: str,
) -> None:
    """Otherwise all writers would wait behind it until the backup has ended."""
    async with database_at(postgresql_url, OnSQLAlchemy(Upgrade("0005").run)):
        pass
    backup = await asyncpg.connect(postgresql_url)
    await backup.execute("BEGIN; LOCK TABLE users IN ACCESS SHARE MODE")
    with pytest.raises(SetupError, match=r"in use.*nothing has changed; try again"):
        async with database_at(postgresql_url, migrate):
            pass
    assert await read_revision(postgresql_url) == "0005"
    await backup.close()
    async with database_at(postgresql_url, migrate):
        pass


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
    schema_0002 = OnSQLAlchemy(Upgrade("0002").run)
    async with database_at(postgresql_url, schema_0002) as database:
        await database.write(lambda c: SchemaOf0006(c).insert(statements.INSERT_MESSAGES, rows))
    async with database_at(postgresql_url, migrate) as database:
        assert await database.read(stored_messages) == expected_messages(before)


async def test_shards_of_schema_0002_are_served_after_each_is_migrated(tmp_path: Path) -> None:
    urls = {name[-1]: unpack(name, tmp_path) for name in ("shard-a", "shard-b")}
    async with databases_at(urls, migrate) as databases:
        machines = {name: SQLStateMachine(d, lambda: LATER) for name, d in databases.items()}
        async with ShardedStateMachine(machines) as machine:
            for uid in ("alice", "bob", "carol", "dan"):
                assert len(await machine.state(uid)) == 4


async def test_shard_that_is_opened_without_its_name_is_not_migrated(tmp_path: Path) -> None:
    url = unpack("shard-a", tmp_path)
    with pytest.raises(SetupError, match=r"shard 'a' of several"):
        async with database_at(url, requiring_no_shard(migrate)):
            pass
    assert await read_revision(url) == "0002"


# Schema 0003: ranges that end after their dismissal

DAY = 86_400 * SECOND
MUTED = InBandMessage(
    "ann",
    "mute",
    dismissal=Dismissal(
        ("named",), (Range("chat", TimeOrOffset(offset=DAY)), Range("x", TimeOrOffset(offset=-1)))
    ),
).stamp(20, 10)
ENDED = dismiss("ann", "after", msg_id="end").stamp(50, 40)
LOG_0003 = [  # each message with the death of its item, as schema 0003 stored it
    (create("ann", "chat", msg_id="before").stamp(10, 0), 20),
    (MUTED, None),
    (create("ann", "chat", msg_id="muted").stamp(30, 20), 20),
    (create("ann", "mail", msg_id="named").stamp(35, 30), 20),
    (create("ann", "chat", "ü", msg_id="muted, too").stamp(40, 35), 20),
    (ENDED, None),
    (create("ann", "mail", msg_id="after").stamp(60, 50), 50),
    (create("ann", "chat", msg_id="lives").stamp(DAY + 21, 60), None),
]


def store_before_0007(
    connection: DatabaseConnection,
    rows: Sequence[MessageRow],
    ranges: Sequence[RangeRow],
    clock: Time,
) -> None:
    """Store the rows of ann as code before schema 0007 did."""
    older = SchemaOf0006(connection)
    older.insert(statements.INSERT_MESSAGES, rows)
    older.insert(statements.INSERT_RANGES, ranges)
    users = [UserRecord("ann", clock, bucket_of("ann"), "", 0, 0)]
    older.execute_rows(statements.UPSERT_CLOCKS, users)


def fill_schema_0003(connection: DatabaseConnection) -> None:
    rows = [
        MessageRow(
            message.uid,
            message.ctime,
            message.prev,
            message.msg_id,
            None,
            msgspec.json.encode(message).decode(),
            None if message.creation is None else message.creation.category,
            None if message.creation is None else statements.FOREVER,
            died,
        )
        for message, died in LOG_0003
    ]
    ranges = [
        RangeRow("ann", 20, 0, 20 + DAY, "chat", False, "[]", False),
        RangeRow("ann", 20, 1, 19, "x", False, "[]", False),
    ]
    store_before_0007(connection, rows, ranges, DAY + 21)


async def test_items_killed_by_a_range_beyond_its_dismissal_stay_dead_and_are_named_in_it(
    url: str, tmp_path: Path
) -> None:
    """So the state follows from the messages, in this store and in any that they move to."""
    url = url if url != "sqlite://" else f"sqlite:///{tmp_path / 'gregor.db'}"
    schema_0003 = OnSQLAlchemy(Upgrade("0003").run)
    async with database_at(url, schema_0003) as database:
        await database.write(fill_schema_0003)
    async with (
        database_at(url, migrate) as database,
        SQLStateMachine(database, lambda: DAY + 100) as machine,
    ):
        log = await database.read(lambda c: stored_log(c, "ann"))
        (muted,) = [message for message in log if message.msg_id == "mute"]
        assert muted.dismissal is not None
        assert muted.dismissal.msg_ids == ("named", "muted", "muted, too")
        assert [m for m in log if m.msg_id != "mute"] == [m for m, _ in LOG_0003 if m != MUTED]
        moved = MemoryStateMachine(lambda: DAY + 100)
        await moved.consume_messages(log)
        for store in (machine, moved):
            for at in (None, 10, 20, 30, 35, 40, 60):
                when = None if at is None else TimeOrOffset(time=at)
                state = await store.state("ann", None, when)
                assert [i.order() for i in state] == oracle.visible(log, None, DAY + 100, at)
            assert [item.msg_id for item in await store.state("ann")] == ["lives"]
            sent = [MUTED.stamp(0, 0), *log]
            outcomes = await store.consume_messages(sent)
            assert {type(outcome) for outcome in outcomes} == {Duplicate}
            other = msgspec.structs.replace(MUTED, dismissal=Dismissal(("named", "muted")))
            (outcome,) = await store.consume_messages([other])
            assert isinstance(outcome, Rejected)
            (outcome,) = await store.consume_messages([create("ann", "chat", msg_id="new")])
            assert isinstance(outcome, Stored)
            assert not outcome.dead


# Schema 0007: a message's ranges reach neither its own item nor those of other devices


def stored_before_0007(
    message: InBandMessage, died: Time | None
) -> tuple[MessageRow, list[RangeRow]]:
    creation, dismissal = message.creation, message.dismissal
    row = MessageRow(
        message.uid,
        message.ctime,
        message.prev,
        message.msg_id,
        message.device_id,
        msgspec.json.encode(message).decode(),
        None if creation is None else creation.category,
        None if creation is None else statements.FOREVER,
        died,
    )
    ranges = [] if dismissal is None else dismissal.ranges
    return row, [
        RangeRow("ann", message.ctime, n, message.ctime, r.category, r.prefix, "[]", False)
        for n, r in enumerate(ranges)
    ]


def update(msg_id: str, category: str, *ids: str, device_id: str | None = None) -> InBandMessage:
    """A creation that dismisses its own category as well."""
    created = create("ann", category, msg_id=msg_id, device_id=device_id)
    dismissal = Dismissal(ids, (Range(category),))
    return msgspec.structs.replace(created, dismissal=dismissal)


LOG_0006 = [  # each message with the death of its item, as schema 0006 stored it
    (create("ann", "a", msg_id="of d2", device_id="d2").stamp(10, 0), 40),
    (create("ann", "a", msg_id="of all").stamp(20, 10), 40),
    (create("ann", "a", msg_id="named", device_id="d2").stamp(30, 20), 40),
    (update("device's", "a", "named", device_id="d1").stamp(40, 30), 40),
    (update("killed itself", "b").stamp(50, 40), 50),
    (create("ann", "c", msg_id="dead before").stamp(60, 50), 70),
    (dismiss("ann", "dead before").stamp(70, 60), None),
    (create("ann", "d", msg_id="lives").stamp(80, 70), None),
]


async def test_items_that_died_of_ranges_that_do_not_reach_them_any_more_stay_dead(
    url: str, tmp_path: Path
) -> None:
    """In this store, and in any that their user moves to; and the messages are still duplicates."""
    url = url if url != "sqlite://" else f"sqlite:///{tmp_path / 'gregor.db'}"

    def fill(connection: DatabaseConnection) -> None:
        rows = [stored_before_0007(message, died) for message, died in LOG_0006]
        ranges = [range_ for _, of_row in rows for range_ in of_row]
        store_before_0007(connection, [row for row, _ in rows], ranges, 80)

    async with database_at(url, OnSQLAlchemy(Upgrade("0006").run)) as database:
        await database.write(fill)
    async with (
        database_at(url, migrate) as database,
        SQLStateMachine(database, lambda: 100) as machine,
    ):
        log = await database.read(lambda c: stored_log(c, "ann"))
        named = {m.msg_id: m.dismissal.msg_ids for m in log if m.dismissal is not None}
        assert named["device's"] == ("named", "of d2", "device's")
        assert named["killed itself"] == ("killed itself",)
        moved = MemoryStateMachine(lambda: 100)
        await moved.consume_messages(log)
        sent = [message.stamp(0, 0) for message, _ in LOG_0006]
        for store in (machine, moved):
            assert [item.msg_id for item in await store.state("ann")] == ["lives"]
            for at in (10, 20, 30, 40, 50, 60, 70):
                state = await store.state("ann", None, TimeOrOffset(time=at))
                died = {message.msg_id: died for message, died in LOG_0006}
                assert {item.msg_id for item in state} == {
                    m.msg_id
                    for m, _ in LOG_0006
                    if m.creation is not None and m.ctime <= at < (died[m.msg_id] or 100)
                }
            assert {type(o) for o in await store.consume_messages(sent)} == {Duplicate}
        assert (await machine.sync("ann", None, 0)).hash == (await moved.sync("ann", None, 0)).hash


def test_ids_are_added_after_those_that_were_added_before() -> None:
    with_ids = import_module("gregor.stores.sql.migrations.versions.0007_keys_and_starts").with_ids
    stored = Dismissal(("sent", "added"), (Range("a"),), added=1)
    message = InBandMessage("ann", "m", dismissal=stored)
    again = with_ids(msgspec.json.encode(message).decode(), ["added", "new"])
    dismissal = msgspec.json.decode(again, type=InBandMessage).dismissal
    assert dismissal == Dismissal(("sent", "added", "new"), (Range("a"),), added=2)
    assert dismissal.as_sent() == Dismissal(("sent",), (Range("a"),))
