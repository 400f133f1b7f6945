"""The store goes away, or the pub/sub, and comes back: nobody restarts anything."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from gregor.clock import now
from gregor.core.instant import SECOND
from gregor.testing.backends import PostgreSQL, Redis
from tests.server.world import PATIENCE, Served, creation, serving, shared_settings, to


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def postgresql() -> AsyncIterator[PostgreSQL]:
    """One that may be hurt, and that each test leaves as it was."""
    async with PostgreSQL() as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def redis() -> AsyncIterator[Redis]:
    async with Redis() as server:
        yield server


pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = {"store_seconds": 1.0, "sweep_seconds": 0.5}


async def readiness(served: Served, query: str = "") -> tuple[int, list[str]]:
    answer = await served.http.get(f"/readyz{query}")
    return answer.status_code, answer.json()["troubles"]


async def until_it_answers(served: Served, status: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await readiness(served))[0] != status:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def until_it_counts(served: Served, name: str, value: float) -> None:
    async with asyncio.timeout(PATIENCE):
        while await served.metric(name) != value:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def refused(answer: httpx.Response) -> bool:
    """Whether the caller was asked to come again."""
    problem = answer.json()
    assert int(answer.headers["retry-after"]) >= 1
    return (answer.status_code, problem["code"], problem["turn"]) == (503, "unavailable", "retry")


async def everything_is_refused(served: Served) -> None:
    questions = [served.http.get(f"/v1/users/u/{it}") for it in ("state", "count", "messages")]
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(served.post(to("u")), *questions)
    assert all(refused(answer) for answer in answers)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_while_the_store_is_away_everybody_is_asked_to_come_again(
    postgresql: PostgreSQL, how: str
) -> None:
    settings = shared_settings(await postgresql.create_database(), **SHORT)
    async with serving(settings) as served, await served.synced("u") as device:
        await device.works()
        if how == "killed":
            await postgresql.kill()
        else:
            postgresql.pause()

        error = await device.consume(creation(msg_id="m"))
        assert (error["type"], error["code"], error["turn"]) == ("error", "unavailable", "retry")
        await everything_is_refused(served)
        status, troubles = await readiness(served)
        assert (status, bool(troubles)) == (503, True)
        assert (await served.http.get("/healthz")).status_code == 200
        newcomer = await served.device("u", "d2")
        assert (await newcomer.heard("error"))["turn"] == "retry"
        assert await newcomer.closed() == 1013

        if how == "killed":
            await postgresql.start()
        else:
            postgresql.resume()
        await until_it_answers(served, 200)
        ack = await device.consume(creation(msg_id="m"))
        assert ack["results"][0]["status"] in ("stored", "duplicate")
        assert (await served.post(to("u"))).status_code == 200
        async with await served.synced("u", "d2") as newcomer:
            await newcomer.works()


async def test_the_metrics_say_that_it_is_not_ready_though_nobody_asks(
    postgresql: PostgreSQL, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gregor.server.readiness.LOOK_SECONDS", 0.1)
    settings = shared_settings(await postgresql.create_database(), **SHORT)
    async with serving(settings) as served:
        await until_it_counts(served, "gregor_ready ", 1)
        await postgresql.kill()
        await until_it_counts(served, "gregor_ready ", 0)
        await postgresql.start()
        await until_it_counts(served, "gregor_ready ", 1)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_without_the_pubsub_devices_hear_later_and_miss_nothing(
    postgresql: PostgreSQL, redis: Redis, how: str
) -> None:
    store = await postgresql.create_database()
    settings = shared_settings(store, pubsub=redis.url, **SHORT)
    async with (
        serving(settings) as here,
        serving(settings) as there,
        await there.synced("u") as device,
    ):
        await device.works()
        await device.heard("messages")
        if how == "killed":
            await redis.kill()
        else:
            redis.pause()
        await until_it_answers(here, 503)
        await until_it_answers(there, 503)
        status, (trouble,) = await readiness(here, "?exclude=pubsub")
        assert (status, "pub/sub" in trouble) == (200, True)
        assert await there.metric("gregor_pubsub_up ") == 0

        assert (await here.post(to("u", msg_id="late"))).status_code == 200
        assert (await device.heard("messages"))["messages"][0]["msg_id"] == "late"
        assert await here.metric("gregor_pubsub_dropped_total") >= 1

        if how == "killed":
            await redis.start()
        else:
            redis.resume()
        await until_it_answers(here, 200)
        await until_it_answers(there, 200)
        assert await there.metric("gregor_pubsub_up ") == 1
        assert await there.metric("gregor_pubsub_interruptions_total") == 1


async def test_a_server_whose_clock_is_wrong_takes_nothing_and_says_so(
    postgresql: PostgreSQL,
) -> None:
    settings = shared_settings(await postgresql.create_database())
    async with serving(settings, clock=lambda: now() + 6 * SECOND) as served:
        status, (trouble,) = await readiness(served)
        assert (status, "6.0 s ahead" in trouble) == (503, True)
        assert refused(await served.post(to("u")))
        assert -6.1 < await served.metric("gregor_clock_skew_seconds") < -5.9
        assert (await served.http.get("/v1/users/u/state")).status_code == 200


async def test_only_parts_that_there_are_can_be_excluded() -> None:
    async with serving() as served:
        assert await readiness(served, "?exclude=pubsub&exclude=store") == (200, [])
        answer = await served.http.get("/readyz?exclude=redis")
        problem = answer.json()
        assert (answer.status_code, problem["field"]) == (422, "exclude")
        assert "store, pubsub" in problem["detail"]
