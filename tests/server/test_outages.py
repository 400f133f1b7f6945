"""Outages of the store and the pub/sub: a server recovers from them without a restart."""

import asyncio
import re
from collections.abc import AsyncIterator

import asyncpg
import httpx
import pytest
import pytest_asyncio

from gregor.clock import now
from gregor.consumers.peers import LOSSES_OF_A_SPLIT
from gregor.core.instant import SECOND
from tests.fleet.servers import PostgreSQL, Redis
from tests.server.harness import RawDevice, Served, creation, serving, shared_settings, to
from tests.timeouts import TIMEOUT_SECONDS


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def postgresql() -> AsyncIterator[PostgreSQL]:
    """A PostgreSQL that tests may kill or freeze; each test starts it again."""
    async with PostgreSQL() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def redis() -> AsyncIterator[Redis]:
    async with Redis() as server:
        yield server


pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT_TIMES = {"store_seconds": 1.0, "sweep_seconds": 0.5}


async def readiness(served: Served, query: str = "") -> tuple[int, list[str]]:
    answer = await served.http.get(f"/readyz{query}")
    return answer.status_code, answer.json()["problems"]


async def wait_ready_status(served: Served, status: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (await readiness(served))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def wait_metric(served: Served, name: str, value: float) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while await served.metric(name) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def asks_to_retry(answer: httpx.Response) -> bool:
    """Whether the answer is the 503 that asks the caller to retry."""
    problem = answer.json()
    assert int(answer.headers["retry-after"]) >= 1
    return (answer.status_code, problem["code"], problem["action"]) == (503, "unavailable", "retry")


async def assert_all_requests_ask_to_retry(served: Served) -> None:
    reads = [served.http.get(f"/v1/users/u/{name}") for name in ("state", "count", "messages")]
    async with asyncio.timeout(TIMEOUT_SECONDS):
        answers = await asyncio.gather(served.post(to("u")), *reads)
    assert all(asks_to_retry(answer) for answer in answers)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_store_outage_asks_callers_to_retry_and_server_recovers(
    postgresql: PostgreSQL, fault: str
) -> None:
    settings = shared_settings(await postgresql.create_database(), **SHORT_TIMES)
    async with serving(settings) as served, await served.synced("u") as device:
        await device.assert_usable()
        if fault == "killed":
            await postgresql.kill()
        else:
            postgresql.pause()

        error = await device.consume(creation(msg_id="m"))
        assert (error["type"], error["code"], error["action"]) == ("error", "unavailable", "retry")
        await assert_all_requests_ask_to_retry(served)
        status, problems = await readiness(served)
        assert (status, bool(problems)) == (503, True)
        assert (await served.http.get("/healthz")).status_code == 200
        new_device = await RawDevice.connect(served.url)
        await new_device.send("hello", token="u", device_id="d2", protocol=2)
        assert (await new_device.receive())["action"] == "retry"
        assert await new_device.wait_closed() == 1013

        if fault == "killed":
            await postgresql.start()
        else:
            postgresql.resume()
        await wait_ready_status(served, 200)
        ack = await device.consume(creation(msg_id="m"))
        assert ack["results"][0]["status"] in ("stored", "duplicate")
        assert (await served.post(to("u"))).status_code == 200
        async with await served.synced("u", "d2") as new_device:
            await new_device.assert_usable()


async def test_ready_metric_follows_store_without_readiness_requests(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gregor.server.readiness.CHECK_INTERVAL_SECONDS", 0.1)
    settings = shared_settings(await postgresql.create_database(), **SHORT_TIMES)
    async with serving(settings) as served:
        await wait_metric(served, "gregor_ready ", 1)
        await postgresql.kill()
        await wait_metric(served, "gregor_ready ", 0)
        await postgresql.start()
        await wait_metric(served, "gregor_ready ", 1)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_pubsub_outage_delays_messages_and_loses_none(
    postgresql: PostgreSQL, redis: Redis, fault: str
) -> None:
    store = await postgresql.create_database()
    settings = shared_settings(store, pubsub=redis.url, **SHORT_TIMES)
    async with (
        serving(settings) as sender,
        serving(settings) as receiver,
        await receiver.synced("u") as device,
    ):
        await device.assert_usable()
        await device.receive_type("messages")
        if fault == "killed":
            await redis.kill()
        else:
            redis.pause()
        await wait_ready_status(sender, 503)
        await wait_ready_status(receiver, 503)
        status, (problem,) = await readiness(sender, "?exclude=pubsub")
        assert (status, "pub/sub" in problem) == (200, True)
        assert await receiver.metric("gregor_pubsub_up ") == 0

        assert (await sender.post(to("u", msg_id="during outage"))).status_code == 200
        assert (await device.receive_type("messages"))["messages"][0]["msg_id"] == "during outage"
        assert await sender.metric("gregor_pubsub_dropped_total") >= 1

        if fault == "killed":
            await redis.start()
        else:
            redis.resume()
        await wait_ready_status(sender, 200)
        await wait_ready_status(receiver, 200)
        assert await receiver.metric("gregor_pubsub_up ") == 1
        assert await receiver.metric("gregor_pubsub_interruptions_total") == 1
        reason = "closed" if fault == "killed" else "silent"
        name = f'gregor_pubsub_reconnects_total{{reason="{reason}"}}'
        assert await receiver.metric(name) >= 1


async def test_nodes_on_different_pubsubs_notice_and_deliver_by_the_sweep(
    postgresql: PostgreSQL, redis: Redis
) -> None:
    store = await postgresql.create_database()
    async with (
        Redis() as other_redis,
        serving(shared_settings(store, pubsub=redis.url)) as sender,
        serving(shared_settings(store, pubsub=other_redis.url)) as receiver,
        await receiver.synced("u") as device,
    ):
        await device.assert_usable()
        await device.receive_type("messages")
        assert await receiver.metric("gregor_pubsub_split ") == 0
        for number in range(LOSSES_OF_A_SPLIT):
            assert (await sender.post(to("u", msg_id=f"m{number}"))).status_code == 200
            frame = await device.receive_type("messages")
            assert frame["messages"][0]["msg_id"] == f"m{number}"
        await wait_metric(receiver, "gregor_pubsub_split ", 1)
        assert await receiver.metric("gregor_pubsub_up ") == 1
        assert await receiver.metric("gregor_pubsub_peers ") == 0


async def test_nodes_on_one_pubsub_hear_each_other(postgresql: PostgreSQL, redis: Redis) -> None:
    settings = shared_settings(await postgresql.create_database(), pubsub=redis.url)
    async with serving(settings) as one, serving(settings) as two:
        for served in (one, two):
            await wait_metric(served, "gregor_pubsub_peers ", 1)
            assert await served.metric("gregor_pubsub_split ") == 0


@pytest.mark.parametrize("publishes", [True, False])
async def test_erase_reaches_the_devices_of_another_server(
    postgresql: PostgreSQL, redis: Redis, publishes: bool
) -> None:
    """At once over the pub/sub; without one, by the sweep."""
    seconds = 1000.0 if publishes else 0.5
    settings = shared_settings(
        await postgresql.create_database(),
        pubsub=redis.url if publishes else None,
        sweep_seconds=seconds,
    )
    async with (
        serving(settings) as one,
        serving(settings) as two,
        await two.synced("u") as device,
    ):
        await device.assert_usable()
        epoch = (await one.http.delete("/v1/users/u")).json()["epoch"]
        told = {"type": "erased", "epoch": epoch, "uid": "u"}
        assert await device.receive_type("erased") == told
        assert await device.wait_closed() == 4010
        assert (await two.http.get("/v1/users/u/state")).json()["items"] == []


async def test_server_with_wrong_clock_is_not_ready_and_rejects_messages(
    postgresql: PostgreSQL,
) -> None:
    settings = shared_settings(await postgresql.create_database())
    async with serving(settings, clock=lambda: now() + 6 * SECOND) as served:
        status, (problem,) = await readiness(served)
        assert status == 503
        assert re.search(r"(5\.\d|6\.0) s ahead of the database's", problem)
        assert asks_to_retry(await served.post(to("u")))
        # The skew is a lower bound: the time that the measurement takes is subtracted.
        assert -6 <= await served.metric("gregor_clock_skew_seconds") < -5
        assert (await served.http.get("/v1/users/u/state")).status_code == 200


async def test_excluding_unknown_part_is_rejected() -> None:
    async with serving() as served:
        assert await readiness(served, "?exclude=pubsub&exclude=store") == (200, [])
        answer = await served.http.get("/readyz?exclude=redis")
        problem = answer.json()
        assert (answer.status_code, problem["field"]) == (422, "exclude")
        assert "store, pubsub" in problem["detail"]


async def test_store_that_refuses_writes_is_not_ready_until_it_takes_them(
    postgresql: PostgreSQL,
) -> None:
    url = await postgresql.create_database()
    async with serving(shared_settings(url)) as served:
        assert await served.metric("gregor_writes_failing") == 0
        connection = await asyncpg.connect(url)
        await connection.execute("ALTER TABLE messages ADD CHECK (ctime < 0) NOT VALID")
        assert asks_to_retry(await served.post(to("u")))
        await wait_metric(served, "gregor_writes_failing", 1)
        status, (problem,) = await readiness(served)
        assert status == 503
        assert problem.startswith("writes fail: the store: new row for relation")
        await connection.execute("ALTER TABLE messages DROP CONSTRAINT messages_ctime_check")
        await connection.close()
        await wait_ready_status(served, 200)
        await wait_metric(served, "gregor_writes_failing", 0)
