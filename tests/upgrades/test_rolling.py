"""docs/upgrading.md, run step by step under load: nothing is lost, and all devices agree.

Each step is checked by its own output; what the senders and the devices saw is checked at the end.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from random import Random

import asyncpg
import httpx
import pytest

from gregor.cli.demo_devices import Demo
from gregor.cli.demo_run import DEVICES_PER_USER, busiest, read_stream, run_stream
from gregor.cli.sample import SAMPLE
from gregor.clock import now
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at
from gregor.stores.sql.tables import NEWEST_REVISION
from tests.faults.harness import RecordingServers, inconsistencies, logged_errors, records_of
from tests.fleet.servers import PostgreSQL, Redis
from tests.upgrades.versions import (
    PRESENT,
    RollingFleet,
    SingleServer,
    VersionedNode,
    Versions,
    http_client,
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
            *inconsistencies(await records_of(fleet), servers, demo.score),
            *(f"{d.device} of {d.uid} {d.what}" for d in demo.score.differences),
            *(f"a node logged: {line}" for line in logged_errors(fleet)),
            *(f"a node logged: {line}" for line in logs if "invalid payload" in line),
        ]


async def migrated(fleet: RollingFleet, *options: str) -> str:
    """The output of a `gregor migrate` of the present version that has succeeded."""
    status, output = await fleet.migrate(PRESENT, *options)
    assert status == 0, output
    return output


async def upgrade(fleet: RollingFleet) -> None:
    """The nodes first, which serve the older schema; then the database, under load."""
    await fleet.roll(PRESENT)
    assert not any(map(signs, fleet.nodes))
    assert f"has schema {NEWEST_REVISION}; code of schema 0008" in await migrated(fleet)
    for node in fleet.nodes:
        await signing(node)


async def upgrade_the_database_first(fleet: RollingFleet) -> None:
    """The new nodes sign when the last old one is gone."""
    await migrated(fleet)
    first, second = fleet.nodes
    await first.restart(PRESENT)
    await asyncio.sleep(3)
    assert not signs(first)
    await second.restart(PRESENT)
    for node in fleet.nodes:
        await signing(node)
    assert "code of schema 0009 and newer" in await migrated(fleet, "--finish")


async def upgrade_and_go_back(fleet: RollingFleet) -> None:
    await upgrade(fleet)
    await fleet.roll("0008")


def signs(node: VersionedNode) -> bool:
    """Whether the node has said that it signs what it publishes, or began with it."""
    log = node.log()
    return log.rfind("are signed now") >= log.rfind("are not signed yet")


async def signing(node: VersionedNode) -> None:
    """Wait until the node signs what it publishes, and believes nothing else."""
    async with asyncio.timeout(60):
        while not signs(node):  # noqa: ASYNC110 (polls a process)
            await asyncio.sleep(0.1)


ROLLS = [upgrade, upgrade_the_database_first, upgrade_and_go_back]


@pytest.mark.slow
@pytest.mark.timeout(600)  # nodes take half a minute to begin to sign, and more on a busy machine
@pytest.mark.parametrize("roll", ROLLS, ids=[roll.__name__ for roll in ROLLS])
@pytest.mark.parametrize("shards", [1, 2])
async def test_fleet_is_rolled_from_the_previous_schema_to_the_present_one(
    versions: Versions,
    shards: int,
    roll: Callable[[RollingFleet], Awaitable[None]],
    tmp_path: Path,
) -> None:
    async with RollingFleet(versions, "0008", shards=shards) as fleet:
        assert await play(fleet, tmp_path, roll) == []
        for store in fleet.shards.values() or fleet.stores:
            assert await users_with_wrong_hashes(store) == []


async def users_with_wrong_hashes(store: str) -> Sequence[str]:
    """The users of a database whose kept hash is not that of their items."""
    async with (
        database_at(store) as database,
        SQLStateMachine(database, now, may_become_shard=False) as machine,
    ):
        rows = await database.read(lambda c: c.execute_sql("SELECT uid FROM users"))
        assert rows
        return await machine.check_hashes([uid for (uid,) in rows])


async def send(url: str, msg_id: str, **creation: object) -> httpx.Response:
    message = {"uid": "ann", "msg_id": msg_id, "creation": {"category": "c", "body": 1, **creation}}
    async with http_client(url) as http:
        return await http.post("/v1/messages", json={"messages": [message]})


async def prune(url: str) -> httpx.Response:
    async with http_client(url) as http:
        return await http.post("/v1/prune")


async def test_node_that_has_become_too_old_refuses_writes_and_says_why(
    versions: Versions, postgresql_server: PostgreSQL, redis_server: Redis
) -> None:
    """Also one that was not stopped: it was frozen, or its machine was away."""
    store = await postgresql_server.create_database()
    status, output = await versions.run("0008", "migrate", "--store", store)
    assert status == 0, output
    async with VersionedNode(versions, "0008", [store], redis_server.url) as node:
        assert (await send(node.url, "before")).status_code == 200
        connection = await asyncpg.connect(store)
        await connection.execute("DELETE FROM nodes")  # it has not been heard of for long
        status, output = await versions.run(PRESENT, "migrate", "--finish", "--store", store)
        assert status == 0, output
        answer = await send(node.url, "after")
        assert answer.status_code == 503
        assert f"accepts {NEWEST_REVISION} and later; upgrade the node" in answer.text
        async with asyncio.timeout(60):
            while "too old to write" not in await node.problems():  # noqa: ASYNC110 (polls a process)
                await asyncio.sleep(0.1)
        assert await connection.fetchval("SELECT count(*) FROM messages") == 1
        await connection.close()


async def test_file_is_upgraded_and_can_be_taken_back_until_that_is_finished(
    versions: Versions, tmp_path: Path
) -> None:
    store = f"sqlite:///{tmp_path / 'gregor.db'}"
    for msg_id, version in (("0", "0008"), ("1", PRESENT), ("2", "0008"), ("3", PRESENT)):
        async with SingleServer(versions, version, store) as server:
            assert (await send(server.url, msg_id)).status_code == 200
            (result,) = (await send(server.url, "0")).json()["results"]
            assert result["status"] == "duplicate"
            await server.stop()
    status, output = await versions.run(PRESENT, "migrate", "--finish", "--store", store)
    assert status == 0, output
    status, output = await versions.run("0008", "serve", "--store", store)
    assert status == 1
    assert f"accepts only code of schema {NEWEST_REVISION} or newer" in output
    status, output = await versions.run(PRESENT, "migrate", "--rollback", "--store", store)
    assert status == 1
    assert "may not write to this database any more" in output
    assert await users_with_wrong_hashes(store) == []


USERS = [f"user {number}" for number in range(6)]  # of both shards


def contents(uid: str) -> list[dict[str, object]]:
    """Messages of each kind, for one user."""
    created = {"category": "mail.new", "body": {"uid": uid}}
    messages: list[dict[str, object]] = [
        {"msg_id": "live", "creation": created},
        {"msg_id": "dead", "creation": created},
        {"msg_id": "d1", "creation": created, "device_id": "phone"},
        {"msg_id": "first", "creation": {**created, "key": "badge"}},
        {"msg_id": "second", "creation": {**created, "key": "badge"}},
        {"msg_id": "later", "creation": {**created, "starts": {"offset": "90d"}}},
        {"msg_id": "short", "creation": {**created, "expires": {"offset": "1s"}}},
        {"msg_id": "by id", "dismissal": {"msg_ids": ["dead", "to come"]}},
        {"msg_id": "by key", "dismissal": {"keys": [{"key": "other"}]}},
        {"msg_id": "by range", "dismissal": {"ranges": [{"category": "chat", "prefix": True}]}},
    ]
    return [{"uid": uid, **message} for message in messages]


async def read_all(url: str) -> list[dict[str, object]]:
    """What the server tells of each user, but for its clock."""
    answers: list[dict[str, object]] = []
    async with http_client(url) as http:
        for uid in USERS:
            for query in ("state", "state?device_id=phone", "messages", "messages?since=-1h"):
                answer = (await http.get(f"/v1/users/{uid}/{query}")).json()
                answers.append({k: v for k, v in answer.items() if k not in ("as_of", "epoch")})
    return answers


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "shards"])
async def test_data_of_the_version_before_is_the_same_after_the_migration(
    versions: Versions,
    kind: str,
    tmp_path: Path,
    postgresql_server: PostgreSQL,
    redis_server: Redis,
) -> None:
    match kind:
        case "sqlite":
            stores = [f"sqlite:///{tmp_path / 'gregor.db'}"]
        case "postgresql":
            stores = [await postgresql_server.create_database()]
        case _:
            stores = [f"{name}={await postgresql_server.create_database()}" for name in "ab"]
    options = [option for store in stores for option in ("--store", store)]

    async def migrated(version: str) -> VersionedNode:
        status, output = await versions.run(version, "migrate", *options)
        assert status == 0, output
        if kind == "sqlite":
            return SingleServer(versions, version, stores[0])
        return VersionedNode(versions, version, stores, redis_server.url)

    async with await migrated("0008") as node:
        before = await fill(node.url)
        await node.stop()
    async with await migrated(PRESENT) as node:
        await check_data(node.url, before)


async def fill(url: str) -> list[dict[str, object]]:
    """Store the contents of all users. Returns what can be read."""
    async with http_client(url) as http:
        messages = [message for uid in USERS for message in contents(uid)]
        answer = await http.post("/v1/messages", json={"messages": messages})
        assert {result["status"] for result in answer.json()["results"]} == {"stored"}
        while (await http.get(f"/v1/users/{USERS[0]}/count")).json()["counts"][""] != 3:  # noqa: ASYNC110 (polls a process)
            await asyncio.sleep(0.1)  # until `short` has expired
    return await read_all(url)


async def check_data(url: str, before: list[dict[str, object]]) -> None:
    """The data is as it was, and can be pruned."""
    assert await read_all(url) == before
    async with http_client(url) as http:
        answer = await http.post("/v1/prune", json={"older_than": "100ms"})
        assert answer.json() == {"users": len(USERS), "contents": 6 * len(USERS), "ids": 0}
        again = {"uid": USERS[0], "msg_id": "dead", "creation": {"category": "x", "body": 1}}
        assert (await http.post("/v1/messages", json=again)).status_code == 409
    live = [answer for answer in await read_all(url) if "items" in answer]
    assert live == [answer for answer in before if "items" in answer]
