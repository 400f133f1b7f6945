"""A database says which deployment it belongs to, from schema 0009 on."""

from pathlib import Path

import pytest

from gregor.clock import now
from gregor.stores.new_deployment import new_deployment
from gregor.stores.sql.deployment import keep_deployment, read_deployment, replace_deployment
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.migrations.upgrade import NEWEST, Upgrade
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.tables import NEWEST_REVISION
from tests.stores.sqlalchemy_migration import OnSQLAlchemy
from tests.stores.test_schema import run_node


async def test_every_new_store_is_a_deployment_of_its_own(url: str) -> None:
    async with (
        database_at(url, migrate) as database,
        SQLStateMachine(database, now) as machine,
        database_at("sqlite://", migrate) as other,
    ):
        deployment = await machine.deployment()
        assert deployment is not None
        assert (len(deployment.id), len(deployment.key)) == (16, 32)
        assert await machine.deployment() == deployment
        theirs = await other.read(read_deployment)
        assert theirs is not None
        assert theirs.id != deployment.id
        assert theirs.key != deployment.key


async def test_migration_makes_the_deployment_and_running_it_again_keeps_it(
    postgresql_url: str,
) -> None:
    async with database_at(postgresql_url, OnSQLAlchemy(Upgrade("0008").run)) as database:
        assert await database.read(read_deployment) is None
        async with database_at(postgresql_url, migrate):
            deployment = await database.read(read_deployment)
        assert deployment is not None
        async with database_at(postgresql_url, OnSQLAlchemy(NEWEST.run)):
            assert await database.read(read_deployment) == deployment


async def test_file_of_the_schema_before_gets_a_deployment(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'gregor.db'}"
    async with (
        database_at(url, OnSQLAlchemy(Upgrade("0008").run)) as database,
        SQLStateMachine(database, now) as machine,
    ):
        assert await machine.deployment() is None
    async with database_at(url, migrate) as database:
        assert await database.read(read_deployment) is not None


async def test_deployment_is_not_used_while_a_node_runs_that_does_not_know_it(
    postgresql_url: str,
) -> None:
    async with (
        database_at(postgresql_url, migrate) as database,
        SQLStateMachine(database, now) as machine,
    ):
        await database.write(run_node("old", "0008"))
        assert await machine.deployment() is None
        await database.write(run_node("old", NEWEST_REVISION))
        assert await machine.deployment() is not None


async def test_deployment_is_kept_unless_it_is_replaced(url: str) -> None:
    ours, theirs = new_deployment(), new_deployment()
    async with database_at(url, migrate) as database:
        await database.write(lambda c: replace_deployment(c, ours))
        assert await database.write(lambda c: keep_deployment(c, theirs)) == ours
        await database.write(lambda c: replace_deployment(c, theirs))
        assert await database.read(read_deployment) == theirs


def test_no_deployment_shows_its_key() -> None:
    deployment = new_deployment()
    for text in (repr(deployment), str(deployment), f"{[deployment]}"):
        assert deployment.key.hex() not in text
        assert repr(deployment.key) not in text


@pytest.mark.parametrize("number", [0, 2])
async def test_database_belongs_to_one_deployment_only(url: str, number: int) -> None:
    async with database_at(url, migrate) as database:
        second = f"INSERT INTO deployment (number, id, key) VALUES ({number}, 'x', 'y')"
        with pytest.raises(Exception, match="one_deployment"):
            await database.write(lambda c: c.execute_sql(second))
