"""The drain of a server of a fleet: its devices reconnect to another server and miss nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest
from websockets.exceptions import InvalidStatus

from gregor.config import Settings
from gregor.consumers.broadcaster import Broadcaster
from gregor.core import message as core
from gregor.errors import Unavailable
from gregor.interfaces import Caller, Stored
from gregor.node.node import Node
from gregor.server.app import Server
from gregor.server.auth import OpenAuthenticator
from gregor.server.connections import RECONNECT_AFTER_MS
from gregor.server.metrics import Metrics
from gregor.server.service import Service
from gregor.stores.memory import MemoryStateMachine
from gregor.testing import virtual_time
from tests.client.harness import on_virtual_time
from tests.fleet.servers import Redis
from tests.node.channels import FakeChannel
from tests.server.harness import RawDevice, Served, creation, serving, shared_settings, to

DRAIN_SECONDS = 1.0


class TwoServers(NamedTuple):
    """Two servers on one store and one pub/sub. The tests drain `draining`."""

    draining: Served
    other: Served


@asynccontextmanager
async def two_servers(store: str, pubsub: str) -> AsyncIterator[TwoServers]:
    settings = shared_settings(
        store, pubsub=pubsub, drain_seconds=DRAIN_SECONDS, sweep_seconds=1000
    )
    async with serving(settings) as draining, serving(settings) as other:
        yield TwoServers(draining, other)


@pytest.fixture
async def fleet(postgresql_url: str, redis_server: Redis) -> AsyncIterator[TwoServers]:
    async with two_servers(postgresql_url, redis_server.url) as servers:
        yield servers


async def test_drain_sends_goaway_to_every_device_and_closes(fleet: TwoServers) -> None:
    devices = [await fleet.draining.synced("u", f"d{number}") for number in range(60)]

    async def receive_goaway(device: RawDevice) -> None:
        goaway = await device.receive_type("goaway")
        assert goaway["reconnect_after_ms"] == RECONNECT_AFTER_MS
        assert await device.wait_closed() == 1012

    async with asyncio.TaskGroup() as tasks:
        for device in devices:
            tasks.create_task(receive_goaway(device))
        await fleet.draining.server.drain()


class DrainTimes(NamedTuple):
    """When a drain sent each device away, and when it was complete, in seconds after its start."""

    closed: list[float]
    complete: float


async def drain_on_virtual_time(
    devices: int, seconds: float, *, blocked: bool = False
) -> DrainTimes:
    """Drain a service with this number of devices, which read nothing if they are blocked. Returns
    when all conversations have ended. Needs a loop with virtual time."""
    clock = asyncio.get_running_loop().time
    node = Node(MemoryStateMachine(virtual_time.clock), Broadcaster(), clock=virtual_time.clock)
    service = Service(node, OpenAuthenticator(), Metrics())
    channels = [FakeChannel() for _ in range(devices)]
    async with asyncio.TaskGroup() as tasks:
        for channel in channels:
            tasks.create_task(service.serve(channel))
        await asyncio.sleep(1.0)
        for channel in channels:
            channel.blocked = blocked
        started = clock()
        await service.drain(seconds)
        complete = clock() - started
    return DrainTimes([channel.closed_at - started for channel in channels], complete)


@on_virtual_time
async def test_drain_sends_devices_away_evenly_over_drain_time() -> None:
    times = await drain_on_virtual_time(devices=60, seconds=DRAIN_SECONDS)
    batches = [[0.1 * batch] * 6 for batch in range(10)]
    assert times.closed == pytest.approx([when for batch in batches for when in batch])
    assert times.complete == pytest.approx(0.9)


@on_virtual_time
async def test_drain_of_one_device_does_not_wait_for_drain_time() -> None:
    assert await drain_on_virtual_time(devices=1, seconds=DRAIN_SECONDS) == DrainTimes([0.0], 0.0)


@on_virtual_time
async def test_device_that_reads_nothing_does_not_outlast_the_drain() -> None:
    times = await drain_on_virtual_time(devices=1, seconds=DRAIN_SECONDS, blocked=True)
    assert times.complete == pytest.approx(1.0)


@on_virtual_time
async def test_lame_duck_is_unready_but_admits_and_stores_as_before() -> None:
    node = Node(MemoryStateMachine(virtual_time.clock), Broadcaster(), clock=virtual_time.clock)
    server = Server(
        node, authenticator=OpenAuthenticator(), lame_duck_seconds=2.0, drain_seconds=0.0
    )
    async with node, asyncio.TaskGroup() as tasks:
        stopping = tasks.create_task(server.drain())
        await asyncio.sleep(1.9)
        assert not server.service.readiness.ready
        server.service.require_room_for_device()
        message = core.create("u", "chat")
        (outcome,) = await server.service.inject(Caller("test"), [message])
        assert isinstance(outcome, Stored)
        assert not stopping.done()
        await asyncio.sleep(0.2)
        assert stopping.done()
        with pytest.raises(Unavailable, match="stopping"):
            server.service.require_room_for_device()


@on_virtual_time
async def test_host_that_stops_during_the_lame_duck_time_does_not_wait_for_it() -> None:
    node = Node(MemoryStateMachine(virtual_time.clock), Broadcaster(), clock=virtual_time.clock)
    server = Server(
        node, authenticator=OpenAuthenticator(), lame_duck_seconds=1000.0, drain_seconds=0.0
    )
    async with node, asyncio.TaskGroup() as tasks:
        started = asyncio.get_running_loop().time()
        first = tasks.create_task(server.drain())
        await asyncio.sleep(0.1)
        await server.drain()
        assert asyncio.get_running_loop().time() - started < 1.0
        assert server.service.draining
        first.cancel()


def test_only_servers_with_others_beside_them_are_lame_ducks_by_default() -> None:
    assert Settings(store="sqlite://").lame_duck == 0.0
    assert Settings(store="sqlite://", pubsub="redis://localhost").lame_duck == 2.0
    assert Settings(store="sqlite://", lame_duck_seconds=1.5).lame_duck == 1.5


async def test_draining_server_still_serves_devices_that_are_connected(fleet: TwoServers) -> None:
    draining, other = fleet
    devices = [await draining.synced("u", f"d{number}") for number in range(10)]
    drain = asyncio.create_task(draining.server.drain())
    await devices[0].receive_type("goaway")

    last = devices[-1]
    stored = (await other.post(to("u", msg_id="m"))).json()["results"][0]
    frame = await last.receive_type("messages")
    assert [message["ctime"] for message in frame["messages"]] == [stored["ctime"]]
    error = await last.consume(creation())
    assert (error["type"], error["action"]) == ("error", "retry")

    with pytest.raises(InvalidStatus) as refused:
        await draining.device("u", "new")
    assert refused.value.response.status_code == 503
    answer = await draining.post(to("u"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert (await draining.http.get("/readyz")).status_code == 503
    assert (await draining.http.get("/v1/users/u/count")).json()["counts"] == {"": 1}

    assert await last.wait_closed() == 1012
    await drain


async def test_devices_continue_on_other_server_without_gap(fleet: TwoServers) -> None:
    draining, other = fleet
    devices = [await draining.synced("u", f"d{number}") for number in range(10)]
    acked: list[int] = []
    received: list[list[int]] = [[] for _ in devices]

    async def write() -> None:
        """A backend that fails over to the other server."""
        for number in range(100):
            for server in (draining, other):
                answer = await server.post(to("u", body=number))
                if answer.status_code == 200:
                    acked.append(answer.json()["results"][0]["ctime"])
                    break
            await asyncio.sleep(DRAIN_SECONDS / 60)

    async def read(number: int) -> None:
        """Receive all messages in order, first from one server, and then from the other."""
        device, cursor = devices[number], 0
        while len(received[number]) < 100:
            frame = await device.receive()
            if frame["type"] == "goaway":
                await device.close()
                device = await other.device("u", f"d{number}", cursor)
                continue
            if frame["type"] == "sync":
                assert (frame["mode"], frame["prev"]) == ("changes", cursor)
            else:
                assert (frame["type"], frame["prev"]) == ("messages", cursor)
            cursor = frame["cursor"]
            received[number] += [message["ctime"] for message in frame.get("messages", ())]
        await device.close()

    async with asyncio.TaskGroup() as tasks:
        for number in range(len(devices)):
            tasks.create_task(read(number))
        writer = tasks.create_task(write())
        while min(len(ctimes) for ctimes in received) < 10:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await draining.server.drain()
        await writer
    assert len(acked) == 100
    assert received == [acked] * len(devices)
