"""RemotePubSub passes the conformance suite on real servers of each kind."""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest

from gregor.pubsub.interface import PubSub
from gregor.pubsub.remote import pubsub_at
from gregor.testing.pubsub_conformance import Connect, PubSubConformance
from tests.fleet.server_groups import NATSCluster, RedisCluster, RedisSentinel, ServerGroup
from tests.fleet.servers import NATS, Redis


def connect_to(url: str) -> Connect:
    def open_pubsub() -> AbstractAsyncContextManager[PubSub]:
        return pubsub_at(url)

    return open_pubsub


def running(group: ServerGroup) -> Iterator[ServerGroup]:
    """For a fixture of a whole module: the group is not bound to an event loop."""
    asyncio.run(group.__aenter__())
    try:
        yield group
    finally:
        asyncio.run(group.__aexit__())


@pytest.fixture(scope="module")
def redis_sentinel() -> Iterator[ServerGroup]:
    yield from running(RedisSentinel())


@pytest.fixture(scope="module")
def redis_cluster() -> Iterator[ServerGroup]:
    yield from running(RedisCluster())


@pytest.fixture(scope="module")
def nats_cluster() -> Iterator[ServerGroup]:
    yield from running(NATSCluster())


class TestRedis(PubSubConformance):
    @pytest.fixture
    def connect(self, redis_server: Redis) -> Connect:
        return connect_to(redis_server.url)


class TestRedisSentinel(PubSubConformance):
    @pytest.fixture
    def connect(self, redis_sentinel: ServerGroup) -> Connect:
        return connect_to(redis_sentinel.url)


class TestRedisCluster(PubSubConformance):
    """Each client is connected to any of the members."""

    @pytest.fixture
    def connect(self, redis_cluster: ServerGroup) -> Connect:
        return connect_to(redis_cluster.url)


class TestNATS(PubSubConformance):
    @pytest.fixture
    def connect(self, nats_server: NATS) -> Connect:
        return connect_to(nats_server.url)


class TestNATSCluster(PubSubConformance):
    """All clients are connected to one server: the others learn of a subscription a moment after
    it is confirmed. See test_several_servers.py for publications from one server to another."""

    @pytest.fixture
    def connect(self, nats_cluster: ServerGroup) -> Connect:
        return connect_to(nats_cluster.members[0].url)
