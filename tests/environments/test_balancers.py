"""Load balancers with the configurations in deploy/, while both nodes are restarted under load.

The devices are real: most are a Client on a WebSocket, some read server-sent events as a browser's
EventSource does. A device's gap is the longest time from the moment at which a message is sent to
that at which the device has it. Gaps are printed, and asserted with room for a busy machine.
"""

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
import pytest

from gregor.client import AsyncProducer, Client
from gregor.client.events import Created
from gregor.core.message import MsgID
from gregor.server.auth import Identity, Role, make_token
from tests.environments.balancers import Caddy, HAProxy, LoadBalancer, Nginx
from tests.fleet.fleet import Fleet, NodeProcess

USERS, CLIENTS_PER_USER, STREAMS_PER_USER = 10, 27, 3  # 300 devices
MESSAGE_INTERVAL_SECONDS = 0.25  # of each user
SECRET = "the secret of a fleet behind a balancer"
QUIET_SECONDS = 3.0
LARGEST_GAP_SECONDS = 5.0
SETTLE_SECONDS = 30.0


class SteadyLoad:
    """Messages to all users through a balancer, and when each device received them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.now = asyncio.get_running_loop().time
        self.users = [f"u{number}" for number in range(USERS)]
        self.sent: dict[MsgID, float] = {}
        self.acknowledged: dict[str, set[MsgID]] = defaultdict(set)
        self.arrivals: dict[str, dict[MsgID, float]] = {}  # by device
        self.owner: dict[str, str] = {}  # of a device
        self.repeated_posts = 0
        self.is_over = False

    def add_device(self, device: str, uid: str) -> dict[MsgID, float]:
        """The arrivals of a new device, which it adds."""
        self.owner[device] = uid
        return self.arrivals.setdefault(device, {})

    async def send_steadily(self, uid: str, producer: AsyncProducer) -> None:
        """Send messages until `is_over`. Raises the error of one that is not stored in the end."""
        number = 0
        while not self.is_over:
            msg_id = f"{uid}-{number}"
            self.sent[msg_id] = self.now()
            await producer.create(uid, "chat", number, msg_id=msg_id)
            self.acknowledged[uid].add(msg_id)
            await asyncio.sleep(MESSAGE_INTERVAL_SECONDS)
            number += 1

    async def pause_of_producer(self, seconds: float) -> None:
        """The producer's sleep between two attempts."""
        self.repeated_posts += 1
        await asyncio.sleep(seconds)

    def longest_gap(self, kind: str, since: float, until: float) -> float:
        """The longest time for which a device of this kind waited for a message that was sent in
        this time."""
        return max(
            arrived - self.sent[msg_id]
            for device, arrivals in self.arrivals.items()
            if kind in device
            for msg_id, arrived in arrivals.items()
            if since <= self.sent[msg_id] < until
        )

    def missing(self) -> int:
        """How many acknowledged messages devices lack."""
        return sum(
            len(self.acknowledged[self.owner[device]] - arrivals.keys())
            for device, arrivals in self.arrivals.items()
        )


class FleetWithTokens(Fleet):
    """Behind a balancer: open access refuses what a proxy forwards."""

    def _node(self, pubsub: str, ahead: float) -> NodeProcess:
        node = super()._node(pubsub, ahead)
        settings = {"GREGOR_AUTH": "jwt", "GREGOR_JWT_SECRET": SECRET, "GREGOR_ADMIN_LISTEN": ""}
        node._environment = {**(node._environment or {}), **settings}
        return node


def token_of(uid: str, role: Role = Role.DEVICE) -> str:
    return make_token(SECRET, Identity(uid, role))


async def read_client(client: Client, load: SteadyLoad, arrivals: dict[MsgID, float]) -> None:
    async for event in client.events():
        if isinstance(event, Created):
            arrivals[event.item.msg_id] = load.now()


async def read_stream(http: httpx.AsyncClient, load: SteadyLoad, uid: str, device: str) -> None:
    """Read events as the EventSource of a browser: after the end of a stream, it waits as long as
    the last `retry` says, and resumes from the last id. Another status than 200 is an error."""
    arrivals = load.add_device(device, uid)
    last_id, retry = "0", 1.0
    while True:
        headers = {"Last-Event-ID": last_id}
        try:
            async with http.stream("GET", f"/v1/users/{uid}/events", headers=headers) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    name, _, value = line.partition(": ")
                    if name == "retry":
                        retry = int(value) / 1000
                    elif name == "id":
                        last_id = value
                    elif name == "data":
                        for msg_id in created(json.loads(value)):
                            arrivals.setdefault(msg_id, load.now())
        except httpx.TransportError:
            pass
        await asyncio.sleep(retry)


def created(frame: dict[str, list[dict[str, str]]]) -> list[MsgID]:
    """The ids of the messages in the data of an event."""
    return [entry["msg_id"] for name in ("messages", "items") for entry in frame.get(name, ())]


@asynccontextmanager
async def under_load(url: str) -> AsyncIterator[SteadyLoad]:
    """While the block runs, 300 devices are connected, and messages are sent to them."""
    load = SteadyLoad(url)
    limits = httpx.Limits(max_connections=None)
    token = token_of("backend", Role.SERVICE)
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx.AsyncClient(
            base_url=url, headers=headers, timeout=None, limits=limits, trust_env=False
        ) as http,
        AsyncProducer(url, token, sleep=load.pause_of_producer) as producer,
        AsyncExitStack() as stack,
        asyncio.TaskGroup() as tasks,
    ):
        background = []
        clients = []
        for uid in load.users:
            for number in range(CLIENTS_PER_USER):
                device = f"{uid}-client{number}"
                client = Client(url, token_of(uid), device_id=device)
                arrivals = load.add_device(device, uid)
                background.append(tasks.create_task(read_client(client, load, arrivals)))
                clients.append(await stack.enter_async_context(client))
            for number in range(STREAMS_PER_USER):
                reading = read_stream(http, load, uid, f"{uid}-stream{number}")
                background.append(tasks.create_task(reading))
        await asyncio.gather(*(client.wait_synced() for client in clients))
        sending = [tasks.create_task(load.send_steadily(uid, producer)) for uid in load.users]
        yield load
        load.is_over = True
        await asyncio.gather(*sending)
        async with asyncio.timeout(SETTLE_SECONDS):
            while load.missing():  # noqa: ASYNC110 (arrivals have no event)
                await asyncio.sleep(0.05)
        for task in background:
            task.cancel()
        await assert_equal(http, load, clients)


async def assert_equal(
    http: httpx.AsyncClient, load: SteadyLoad, clients: Sequence[Client]
) -> None:
    """Assert that the store and all devices show exactly the acknowledged messages."""
    for uid in load.users:
        state = (await http.get(f"/v1/users/{uid}/state")).json()
        assert {item["msg_id"] for item in state["items"]} == load.acknowledged[uid]
    for client in clients:
        shown = {item.msg_id for item in client.state().items}
        assert shown == load.acknowledged[load.owner[client.device_id]]
        assert client.mismatches == 0


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("balancers")  # one at a time: each loads two cores
@pytest.mark.parametrize("kind", [Nginx, HAProxy, Caddy])
async def test_rolling_restart_behind_balancer_is_not_noticed(kind: type[LoadBalancer]) -> None:
    async with (
        FleetWithTokens(nodes=2) as fleet,
        kind(fleet.urls) as balancer,
        under_load(balancer.url) as load,
    ):
        await asyncio.sleep(QUIET_SECONDS)
        begun = load.now()
        for node in fleet.nodes:
            await node.stop()
            await node.start()
        ended = load.now()
        await asyncio.sleep(QUIET_SECONDS)
    gaps = {
        f"{kind} {when}": round(load.longest_gap(kind, since, until), 2)
        for kind in ("client", "stream")
        for when, since, until in (("before", 0.0, begun), ("restart", begun, ended))
    }
    print(f"{balancer.program}: longest gaps in seconds {gaps}")
    print(f"{load.repeated_posts} of {len(load.sent)} POSTs repeated by the producer")
    assert max(gaps.values()) < LARGEST_GAP_SECONDS
