"""RemotePubSub passes the conformance suite on real Redis and NATS servers."""

from contextlib import AbstractAsyncContextManager

import pytest

from gregor.pubsub.interface import PubSub
from gregor.pubsub.remote import pubsub_at
from gregor.testing.pubsub_conformance import Connect, PubSubConformance
from tests.fleet.servers import NATS, Redis


class TestRedis(PubSubConformance):
    @pytest.fixture
    def connect(self, redis_server: Redis) -> Connect:
        def open_pubsub() -> AbstractAsyncContextManager[PubSub]:
            return pubsub_at(redis_server.url)

        return open_pubsub


class TestNATS(PubSubConformance):
    @pytest.fixture
    def connect(self, nats_server: NATS) -> Connect:
        def open_pubsub() -> AbstractAsyncContextManager[PubSub]:
            return pubsub_at(nats_server.url)

        return open_pubsub
