"""Two deployments on one Redis, Redis Cluster or NATS, and somebody who can only publish there."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import NamedTuple

import pytest

from gregor.clock import now
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.channels import SignedChannels, UnsignedChannels
from gregor.consumers.publisher import Publisher
from gregor.core.deployment import Deployment
from gregor.core.instant import SECOND
from gregor.core.message import create, out_of_band
from gregor.node.node import Node
from gregor.pubsub.interface import PubSub
from gregor.pubsub.remote import pubsub_at
from gregor.stores.memory import MemoryStateMachine
from tests.fleet.server_groups import RedisCluster
from tests.fleet.servers import ManagedServer
from tests.node.fakes import BACKEND, FakeListener, RecordingObserver, attached, sync_device
from tests.timeouts import TIMEOUT_SECONDS

SWEEP_SECONDS = 60.0  # so that what arrives soon came over the pub/sub


class AttachedNode(NamedTuple):
    """A node, with a device of `u`."""

    node: Node
    listener: FakeListener
    observer: RecordingObserver

    @property
    def refused(self) -> int:
        return len(self.observer.invalid_publications)


class SharedPubSub(NamedTuple):
    """Two nodes of one deployment, `a` and `b`; a node of another, with a store of its own; and
    somebody else who publishes."""

    a: AttachedNode
    b: AttachedNode
    other: AttachedNode
    outsider: PubSub
    deployment: Deployment
    others: Deployment

    async def deliver(self, msg_id: str) -> None:
        """A message stored at `a` reaches the device at `b` over the pub/sub."""
        await self.a.node.inject(BACKEND, [create("u", "c", msg_id=msg_id)])
        await soon(lambda: msg_id in self.b.listener.ids)
        assert self.b.observer.repaired_counts == []


async def soon(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not condition():  # noqa: ASYNC110 (a server is in between)
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def redis_cluster_url() -> Iterator[str]:
    cluster = RedisCluster()
    asyncio.run(cluster.__aenter__())
    yield cluster.url
    asyncio.run(cluster.__aexit__())


@pytest.fixture(params=["redis", "nats", "cluster"])
def server_url(request: pytest.FixtureRequest) -> str:
    match request.param:
        case "cluster":
            url: str = request.getfixturevalue("redis_cluster_url")
            return url
        case kind:
            server: ManagedServer = request.getfixturevalue(f"{kind}_server")
            return server.url


@pytest.fixture
async def shared(server_url: str) -> AsyncIterator[SharedPubSub]:
    async with AsyncExitStack() as stack:
        store, others = MemoryStateMachine(now), MemoryStateMachine(now)

        async def attached_node(machine: MemoryStateMachine) -> AttachedNode:
            pubsub = await stack.enter_async_context(pubsub_at(server_url))
            observer, listener = RecordingObserver(), FakeListener()
            node = Node(
                machine,
                Broadcaster(),
                Publisher(pubsub),
                clock=now,
                observer=observer,
                sweep_seconds=SWEEP_SECONDS,
            )
            await stack.enter_async_context(node)
            await stack.enter_async_context(attached(node, "u", listener))
            await sync_device(node)
            return AttachedNode(node, listener, observer)

        for machine in (store, others):
            await machine.consume_message(create("u", "c", msg_id="known"))
        deployments = [await machine.deployment() for machine in (store, others)]
        assert deployments[0] is not None
        assert deployments[1] is not None
        yield SharedPubSub(
            await attached_node(store),
            await attached_node(store),
            await attached_node(others),
            await stack.enter_async_context(pubsub_at(server_url)),
            deployments[0],
            deployments[1],
        )


async def test_deployments_do_not_hear_each_other(shared: SharedPubSub) -> None:
    both = (create("u", "c", msg_id="theirs"), out_of_band("u", "s", "theirs"))
    await shared.other.node.inject(BACKEND, both)
    await shared.other.node.erase(BACKEND, "u")
    await shared.deliver("ours")
    assert shared.a.listener.ids == shared.b.listener.ids == ["ours"]
    assert shared.a.listener.out_of_band == shared.b.listener.out_of_band == []
    assert shared.a.refused == shared.b.refused == shared.other.refused == 0
    assert shared.other.listener.ids == ["theirs"]


async def test_nodes_of_another_deployment_are_no_peers(shared: SharedPubSub) -> None:
    peers = [node.node.peers for node in (shared.a, shared.b, shared.other)]
    await soon(lambda: [p.heard for p in peers if p is not None] == [1, 1, 0])


async def test_forged_message_is_refused_and_silences_nobody(shared: SharedPubSub) -> None:
    """55 s ahead, on every channel that an outsider can name, signed in every way it can."""
    known = await shared.a.node.state_machine.ctime("u")
    message = {
        "uid": "u",
        "msg_id": "forged",
        "ctime": now() + 55 * SECOND,
        "prev": known,
        "creation": {"category": "bank.alert", "body": "you won"},
    }
    envelope = json.dumps({"node": "outsider", "messages": [message]}).encode()
    ours, theirs = SignedChannels(shared.deployment), SignedChannels(shared.others)
    other_key = SignedChannels(Deployment(shared.deployment.id, b"a guess"))
    channel = ours.of("u")
    payloads = [
        envelope,
        b"",
        b"\xff\n[error] forged line\n",
        other_key.sign(channel, envelope, now()),
        theirs.sign(channel, envelope, now()),
        theirs.sign(theirs.of("u"), envelope, now()),
        ours.sign(ours.of("v"), envelope, now()),
        ours.sign(channel, envelope, now())[:-1],
    ]
    for payload in payloads:
        await shared.outsider.publish(channel, payload)
    await shared.outsider.publish(UnsignedChannels().of("u"), envelope)
    await soon(lambda: shared.a.refused == shared.b.refused == len(payloads))
    await shared.deliver("real")
    assert shared.a.listener.ids == shared.b.listener.ids == ["real"]
    assert not any("forged" in str(e) for e in shared.b.observer.invalid_publications)
