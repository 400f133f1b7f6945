"""All shards of a map are one deployment; a shard of another one is refused."""

import asyncio
from collections.abc import Mapping

import pytest

from gregor.clock import now
from gregor.core.deployment import Deployment
from gregor.core.message import create
from gregor.errors import SetupError
from gregor.shards import shard_map
from gregor.shards.rebalance import Rebalancer
from gregor.stores.new_deployment import new_deployment
from gregor.stores.sql.database import Database
from gregor.stores.sql.deployment import read_deployment, replace_deployment
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from tests.shards.harness import ShardHarness, store


async def deployments(databases: Mapping[str, Database]) -> set[Deployment | None]:
    return {await database.read(read_deployment) for database in databases.values()}


async def forget_deployments(databases: Mapping[str, Database]) -> None:
    """As a migration leaves the shards of a map."""
    for database in databases.values():
        await database.write(lambda c: c.execute_sql("DELETE FROM deployment"))


async def test_shards_of_a_map_are_one_deployment(harness: ShardHarness) -> None:
    (deployment,) = await deployments(harness.databases)
    assert deployment is not None
    async with harness.machine() as machine:
        assert await machine.deployment() == deployment


async def test_shards_that_were_migrated_become_one_deployment(harness: ShardHarness) -> None:
    await forget_deployments(harness.databases)
    async with harness.machine() as machine:
        await store(machine, create("ann", "x"))
        assert await machine.deployment() is None
        await shard_map.establish(harness.databases)
        (deployment,) = await deployments(harness.databases)
        assert await machine.deployment() == deployment is not None


async def test_two_who_migrate_at_once_make_one_deployment(harness: ShardHarness) -> None:
    await forget_deployments(harness.databases)
    establish = shard_map.establish
    await asyncio.gather(*(establish(harness.databases) for _ in range(4)))
    assert len(await deployments(harness.databases)) == 1


async def test_migration_that_was_interrupted_continues_with_the_same_deployment(
    harness: ShardHarness,
) -> None:
    async with harness.machine() as machine:
        for name in "abc":
            await store(machine, create(await harness.user_of(name), "x"))
    (deployment,) = await deployments(harness.databases)
    await forget_deployments({name: harness.databases[name] for name in "ac"})
    await shard_map.establish(harness.databases)
    assert await deployments(harness.databases) == {deployment}


@pytest.mark.parametrize("first", [True, False])
async def test_empty_database_that_is_added_adopts_the_deployment(
    harness: ShardHarness, first: bool
) -> None:
    before = await deployments(harness.databases)
    async with database_at("sqlite://", migrate) as fourth:
        new = {"d": fourth}
        databases = {**new, **harness.databases} if first else {**harness.databases, **new}
        await shard_map.establish(databases)
        assert await deployments(databases) == before


async def test_store_with_users_keeps_its_deployment_when_it_becomes_a_shard() -> None:
    async with (
        database_at("sqlite://", migrate) as old,
        database_at("sqlite://", migrate) as new,
        SQLStateMachine(old, now) as machine,
    ):
        await store(machine, create("ann", "x"))
        deployment = await machine.deployment()
        both = {"new": new, "old": old}
        await shard_map.establish(both)
        assert await deployments(both) == {deployment}


async def test_shard_of_another_deployment_is_refused_unless_it_is_empty(
    harness: ShardHarness,
) -> None:
    (deployment,) = await deployments(harness.databases)
    other = new_deployment()
    await harness.databases["b"].write(lambda c: replace_deployment(c, other))
    refused = f"shard 'b' belongs to another deployment \\({other.id}\\) than shard 'a'"
    with pytest.raises(SetupError, match=refused):
        await shard_map.read_map(harness.databases)
    with pytest.raises(SetupError, match=refused):
        await Rebalancer(harness.databases).move([])
    with pytest.raises(SetupError, match="another deployment"):
        async with harness.machine():
            pass
    await shard_map.establish(harness.databases)
    assert await deployments(harness.databases) == {deployment}


async def test_shard_of_another_deployment_with_users_is_never_adopted(
    harness: ShardHarness,
) -> None:
    async with harness.machine() as machine:
        for name in "ab":
            await store(machine, create(await harness.user_of(name), "x"))
    await harness.databases["b"].write(lambda c: replace_deployment(c, new_deployment()))
    before = await deployments(harness.databases)
    with pytest.raises(SetupError, match="another deployment"):
        await shard_map.establish(harness.databases)
    assert await deployments(harness.databases) == before


async def test_shard_that_comes_back_as_another_deployment_is_not_served(
    harness: ShardHarness,
) -> None:
    async with harness.machine() as machine:
        shard = machine.shards["b"]
        await harness.databases["b"].write(lambda c: replace_deployment(c, new_deployment()))
        shard.admitted = False  # as after it has not answered
        await shard.probe()
        assert "belongs to another deployment" in (shard.problem or "")
        await machine.shards["a"].probe()
        assert machine.shards["a"].problem is None
