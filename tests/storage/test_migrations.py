"""The schema's history leads to the tables that the code knows, and to no others."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gregor.errors import SetupError
from gregor.storage.engine import database_at
from gregor.storage.migrations import expect_newest, migrate, revision
from gregor.storage.tables import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """A new, empty database of either kind."""
    if request.param == "sqlite":
        return "sqlite://"
    url: str = request.getfixturevalue("postgresql_url")
    return url


async def test_the_migrations_make_the_tables_and_nothing_else(url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )

    async with database_at(url, migrate) as database:
        assert await database.read(differences) == []


async def test_the_migrations_make_every_index_and_constraint() -> None:
    """Which alembic does not compare in full on SQLite: partial indexes, primary keys."""

    def outline(connection: Connection) -> dict[str, object]:
        found = inspect(connection)
        return {
            name: (
                [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(name)],
                found.get_pk_constraint(name)["constrained_columns"],
                [c["column_names"] for c in found.get_unique_constraints(name)],
                [
                    (i["name"], i["column_names"], _where(i.get("dialect_options")))
                    for i in found.get_indexes(name)
                ],
            )
            for name in found.get_table_names()
            if name != "alembic_version"
        }

    async with database_at("sqlite://", migrate) as migrated:
        ours = await migrated.read(outline)
    async with database_at("sqlite://", metadata.create_all) as created:
        assert await created.read(outline) == ours
    assert set(ours) == set(metadata.tables)


def _where(options: object) -> str:
    where = options.get("sqlite_where") if isinstance(options, dict) else None
    return str(where)


async def test_to_migrate_twice_is_to_migrate_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    revisions = []
    for _ in range(2):
        async with database_at(url, migrate) as database:
            revisions.append(await database.read(revision))
    assert revisions[0] is not None
    assert revisions[0] == revisions[1]


async def test_a_new_file_has_no_schema(tmp_path: Path) -> None:
    async with database_at(f"sqlite:///{tmp_path / 'gregor.db'}") as database:
        assert await database.read(revision) is None


async def test_a_schema_from_the_future_is_refused_with_the_command_that_mends_it(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"

    def from_the_future(connection: Connection) -> None:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    async with database_at(url, migrate) as database:
        await database.write(from_the_future)
    with pytest.raises(SetupError, match=r"9999.*pip install -U gregor-sync"):
        async with database_at(url, migrate):
            pass
    async with database_at(url) as database:
        assert await database.read(revision) == "9999"


# On a database that nodes share, only who was told to makes tables.


def new_schema(found: str) -> Callable[[Connection], None]:
    def pretend(connection: Connection) -> None:
        connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{found}'")

    return pretend


async def test_a_node_wants_the_schema_that_its_code_knows(postgresql_url: str) -> None:
    with pytest.raises(SetupError, match=r"no tables yet.*gregor migrate --store"):
        async with database_at(postgresql_url, expect_newest):
            pass
    async with database_at(postgresql_url, migrate):
        pass
    async with database_at(postgresql_url, expect_newest) as database:
        await database.write(new_schema("9999"))
    for prepare in (expect_newest, migrate):
        with pytest.raises(SetupError, match=r"9999.*pip install -U gregor-sync"):
            async with database_at(postgresql_url, prepare):
                pass


async def test_nodes_that_migrate_at_once_take_turns(postgresql_url: str) -> None:
    databases = [database_at(postgresql_url, migrate) for _ in range(5)]
    await asyncio.gather(*(database.__aenter__() for database in databases))
    revisions = [await database.read(revision) for database in databases]
    assert len(set(revisions)) == 1
    for database in databases:
        await database.__aexit__(None, None, None)
