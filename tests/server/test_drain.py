"""A server of a fleet leaves: its devices go on elsewhere, from where they were."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from websockets.exceptions import InvalidStatus

from gregor.testing.backends import Redis
from tests.server.world import Device, Served, creation, serving, shared_settings, to

SECONDS = 1.0


class Fleet(NamedTuple):
    """Two servers over one store, which hear of each other at once. `here` will leave."""

    here: Served
    there: Served


@asynccontextmanager
async def fleet(store: str, pubsub: str) -> AsyncIterator[Fleet]:
    settings = shared_settings(store, pubsub=pubsub, drain_seconds=SECONDS, sweep_seconds=1000)
    async with serving(settings) as here, serving(settings) as there:
        yield Fleet(here, there)


@pytest.fixture
async def world(postgresql_url: str, redis_server: Redis) -> AsyncIterator[Fleet]:
    async with fleet(postgresql_url, redis_server.url) as world:
        yield world


async def test_devices_are_sent_away_evenly_over_the_time_that_there_is(world: Fleet) -> None:
    devices = [await world.here.synced("u", f"d{number}") for number in range(60)]
    clock = asyncio.get_running_loop().time
    began = clock()

    async def sent_away(device: Device) -> float:
        goaway = await device.heard("goaway")
        when = clock() - began
        assert goaway["reconnect_after_ms"] == 1000 * SECONDS
        assert await device.closed() == 1012
        return when

    drain = asyncio.create_task(world.here.server.drain())
    whens = await asyncio.gather(*(sent_away(device) for device in devices))
    await drain
    tenths = [round(10 * when) for when in whens]
    assert max(tenths.count(tenth) for tenth in set(tenths)) <= 30
    assert max(whens) - min(whens) > 0.7 * SECONDS


async def test_a_few_devices_do_not_hold_up_the_end(world: Fleet) -> None:
    async with await world.here.synced("u"):
        async with asyncio.timeout(0.5 * SECONDS):
            await world.here.server.drain()


async def test_whoever_has_not_been_sent_away_yet_is_still_served(world: Fleet) -> None:
    here, there = world
    devices = [await here.synced("u", f"d{number}") for number in range(10)]
    drain = asyncio.create_task(here.server.drain())
    await devices[0].heard("goaway")

    last = devices[-1]
    stored = (await there.post(to("u", msg_id="m"))).json()["results"][0]
    frame = await last.heard("messages")
    assert [message["ctime"] for message in frame["messages"]] == [stored["ctime"]]
    error = await last.consume(creation())
    assert (error["type"], error["turn"]) == ("error", "retry")

    with pytest.raises(InvalidStatus) as refused:
        await here.device("u", "newcomer")
    assert refused.value.response.status_code == 503
    answer = await here.post(to("u"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await here.http.get("/readyz")).status_code == 503
    assert (await here.http.get("/v1/users/u/count")).json()["counts"] == {"": 1}

    assert await last.closed() == 1012
    await drain


async def test_they_go_on_elsewhere_without_a_gap(world: Fleet) -> None:
    here, there = world
    devices = [await here.synced("u", f"d{number}") for number in range(10)]
    acked: list[int] = []
    heard: list[list[int]] = [[] for _ in devices]

    async def write() -> None:
        """A backend that tries the next server when one says no."""
        for number in range(100):
            for server in (here, there):
                answer = await server.post(to("u", body=number))
                if answer.status_code == 200:
                    acked.append(answer.json()["results"][0]["ctime"])
                    break
            await asyncio.sleep(SECONDS / 60)

    async def listen(number: int) -> None:
        """Hear of messages one after the other, first here, and then there."""
        device, cursor = devices[number], 0
        while len(heard[number]) < 100:
            frame = await device.hear()
            if frame["type"] == "goaway":
                await device.close()
                device = await there.device("u", f"d{number}", cursor)
                continue
            if frame["type"] == "sync":
                assert (frame["mode"], frame["prev"]) == ("changes", cursor)
            else:
                assert (frame["type"], frame["prev"]) == ("messages", cursor)
            cursor = frame["cursor"]
            heard[number] += [message["ctime"] for message in frame.get("messages", ())]
        await device.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(len(devices)):
            tasks.create_task(listen(number))
        writing = tasks.create_task(write())
        while min(len(ctimes) for ctimes in heard) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await here.server.drain()
        await writing
    assert len(acked) == 100
    assert heard == [acked] * len(devices)
