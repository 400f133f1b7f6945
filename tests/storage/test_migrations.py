"""The schema's history leads to the tables that the code knows, and to no others."""

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, inspect

from gregor.errors import SetupError
from gregor.storage.engine import database_at
from gregor.storage.migrations import migrate, revision
from gregor.storage.tables import metadata


async def test_the_migrations_make_the_tables_and_nothing_else() -> None:
    def differences(connection: Connection) -> list[object]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(
            compare_metadata(MigrationContext.configure(connection, opts=options), metadata)
        )

    async with database_at("sqlite://", migrate) as database:
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
