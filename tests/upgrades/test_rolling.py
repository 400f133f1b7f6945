"""docs/upgrading.md, run step by step under load: nothing is lost, and all devices agree.

Each step is checked by its own output; what the senders and the devices saw is checked at the end.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import asyncpg
import httpx
import pytest

from gregor.cli.demo_devices import Demo
from gregor.cli.demo_run import DEVICES_PER_USER, busiest, read_stream, run_stream
from gregor.cli.sample import SAMPLE
from gregor.stores.sql.tables import NEWEST_REVISION
from tests.faults.harness import RecordingServers, inconsistencies, logged_errors
from tests.fleet.servers import PostgreSQL, Redis
from tests.upgrades.versions import (
    PRESENT,
    RollingFleet,
    SingleServer,
    VersionedNode,
    Versions,
)

DEVICES = 30
STREAM_SECONDS = 8


async def play(
    fleet: RollingFleet, folder: Path, steps: Callable[[RollingFleet], Awaitable[None]]
) -> list[str]:
    """Play a stream to all nodes at once, and take the steps meanwhile. Returns the problems."""
    seed = Random().randrange(10**6)
    print(f"seed {seed}")
    rng = Random(seed)
    lines = await read_stream(SAMPLE)
    users = busiest(lines, -(-DEVICES // DEVICES_PER_USER))

    async def take_steps() -> None:
        await steps(fleet)

    async with RecordingServers(fleet.urls, Random(rng.random())) as servers:
        demo = Demo(servers, folder, DEVICES)
        await run_stream(demo, lines, STREAM_SECONDS, users, DEVICES, rng, take_steps())
        assert len(servers.acknowledged) > 5_000
        logs = [line for node in fleet.nodes for line in node.log().splitlines()]
        return [
            *await inconsistencies(fleet, servers, demo.score),
            *(f"{d.device} of {d.uid} {d.what}" for d in demo.score.differences),
            *(f"a node logged: {line}" for line in logged_errors(fleet)),
            *(f"a node logged: {line}" for line in logs if "invalid payload" in line),
        ]


async def migrated(fleet: RollingFleet, *options: str) -> str:
    """The output of a `gregor migrate` of the present version that has succeeded."""
    status, output = await fleet.migrate(PRESENT, *options)
    assert status == 0, output
    return output


async def upgrade_from_0004(fleet: RollingFleet) -> None:
    """Upgrade, with a node of each version in between."""
    first, second = fleet.nodes
    assert f"schema {NEWEST_REVISION}; code of schema 0004 and newer" in await migrated(fleet)
    await first.restart(PRESENT)
    status, output = await fleet.migrate(PRESENT, "--finish")
    assert status == 1
    assert "connections from" in output
    assert "(schema 0004)" in output
    await second.restart(PRESENT)


async def roll_back_to_0004(fleet: RollingFleet) -> None:
    """Code of schema 0004 accepts its own schema only, so the database has to say it has that."""
    first, second = fleet.nodes
    await migrated(fleet, "--rollback")
    await first.restart("0004")
    await second.restart("0004")


async def upgrade_and_finish(fleet: RollingFleet) -> None:
    """With the version before in between, which serves the newer schema."""
    await migrated(fleet)
    await fleet.nodes[0].restart("0005")
    await fleet.roll(PRESENT)
    assert f"code of schema {NEWEST_REVISION} and newer" in await migrated(fleet, "--finish")


async def there_back_and_there_again(fleet: RollingFleet) -> None:
    await upgrade_from_0004(fleet)
    await roll_back_to_0004(fleet)
    await upgrade_and_finish(fleet)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2])
async def test_fleet_is_rolled_from_the_landed_version_to_the_present_one_and_back(
    versions: Versions, shards: int, tmp_path: Path
) -> None:
    async with RollingFleet(versions, "0004", shards=shards) as fleet:
        assert await play(fleet, tmp_path, there_back_and_there_again) == []


async def forward_without_migration_and_back(fleet: RollingFleet) -> None:
    """Code one schema newer serves beside the older one, before and after the migration."""
    first, second = fleet.nodes
    await first.restart(PRESENT)
    await second.restart(PRESENT)
    await migrated(fleet)
    await first.restart("0005")
    await second.restart("0005")


@pytest.mark.slow
async def test_fleet_is_rolled_from_the_previous_schema_to_the_present_one_and_back(
    versions: Versions, tmp_path: Path
) -> None:
    async with RollingFleet(versions, "0005") as fleet:
        assert await play(fleet, tmp_path, forward_without_migration_and_back) == []


async def send(url: str, msg_id: str) -> httpx.Response:
    message = {"uid": "ann", "msg_id": msg_id, "creation": {"category": "c", "body": 1}}
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.post(f"{url}/v1/messages", json={"messages": [message]})


async def test_node_that_has_become_too_old_refuses_writes_and_says_why(
    versions: Versions, postgresql_server: PostgreSQL, redis_server: Redis
) -> None:
    """Also one that was not stopped: it was frozen, or its machine was away."""
    store = await postgresql_server.create_database()
    status, output = await versions.run(PRESENT, "migrate", "--store", store)
    assert status == 0, output
    async with VersionedNode(versions, "0005", [store], redis_server.url) as node:
        assert (await send(node.url, "before")).status_code == 200
        connection = await asyncpg.connect(store)
        await connection.execute("UPDATE oldest_writer SET revision = $1", NEWEST_REVISION)
        answer = await send(node.url, "after")
        assert answer.status_code == 503
        assert f"accepts {NEWEST_REVISION} and later; upgrade the node" in answer.text
        async with asyncio.timeout(30):
            while "too old to write" not in await node.problems():  # noqa: ASYNC110 (polls a process)
                await asyncio.sleep(0.1)
        assert await connection.fetchval("SELECT count(*) FROM messages") == 1
        await connection.close()


async def test_file_is_upgraded_and_rolled_back(versions: Versions, tmp_path: Path) -> None:
    """A file is migrated when a newer version opens it, and the version before opens it again."""
    store = f"sqlite:///{tmp_path / 'gregor.db'}"
    for number, version in enumerate(["0004", PRESENT, "0005", PRESENT]):
        async with SingleServer(versions, version, store) as server:
            assert (await send(server.url, str(number))).status_code == 200
            await server.stop()
    status, output = await versions.run(PRESENT, "migrate", "--rollback", "--store", store)
    assert status == 0, output
    async with SingleServer(versions, "0004", store) as server:
        for number in range(4):
            (result,) = (await send(server.url, str(number))).json()["results"]
            assert result["status"] == "duplicate"
