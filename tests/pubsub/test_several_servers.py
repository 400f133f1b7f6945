"""RemotePubSub on several servers: the death or freeze of one of them costs a reconnect."""

import asyncio
from collections.abc import Sequence

import psutil
import pytest
from redis.asyncio import Redis as Client

from gregor.errors import SetupError
from gregor.pubsub.interface import PubSub, Received
from gregor.pubsub.remote import pubsub_at
from tests.fleet.server_groups import (
    MASTER,
    NATSCluster,
    RedisCluster,
    RedisSentinel,
    SentinelServer,
    ServerGroup,
)
from tests.fleet.servers import ManagedServer, Redis
from tests.pubsub.test_faults import FAST_HEARTBEAT_SECONDS, assert_delivers, setup_error, until
from tests.timeouts import TIMEOUT_SECONDS

GROUPS = [RedisSentinel, RedisCluster, NATSCluster]


def servers_in_use(members: Sequence[ManagedServer]) -> list[ManagedServer]:
    """The servers to which this process has connections."""
    connections = psutil.Process().net_connections("tcp")
    ports = {c.raddr.port for c in connections if c.raddr and c.status == "ESTABLISHED"}
    return [member for member in members if member.port in ports]


async def assert_carries(
    publisher: PubSub, subscriber: PubSub, channel: str = "from another server"
) -> None:
    """What one publishes reaches the other, perhaps after a moment: servers of a cluster learn
    of a subscription a moment after it is confirmed."""
    await subscriber.subscribe(channel)
    received = asyncio.ensure_future(anext(aiter(subscriber.received())))
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not received.done():
            await publisher.publish(channel, b"payload")
            await asyncio.wait([received], timeout=0.01)
    if received.result() != Received(channel, b"payload"):  # an earlier event came first
        await assert_carries(publisher, subscriber, channel)


@pytest.mark.parametrize("kind", [RedisCluster, NATSCluster])
async def test_publications_reach_subscribers_on_other_servers(kind: type[ServerGroup]) -> None:
    async with kind() as group:
        one, two, _ = (pubsub_at(member.url) for member in group.members)
        async with one, two:
            assert len(servers_in_use(group.members)) == 2
            await assert_carries(one, two)
            await assert_carries(two, one)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
@pytest.mark.parametrize("kind", GROUPS)
async def test_another_server_is_used_when_the_one_in_use_is_lost(
    kind: type[ServerGroup], fault: str
) -> None:
    async with (
        kind() as group,
        pubsub_at(group.url, heartbeat_seconds=FAST_HEARTBEAT_SECONDS) as pubsub,
        pubsub_at(group.url, heartbeat_seconds=FAST_HEARTBEAT_SECONDS) as other,
    ):
        lost = servers_in_use(group.members)[0]
        assert pubsub.up
        if fault == "killed":
            await lost.kill()
        else:
            lost.pause()
        await until(lambda: sum(pubsub.reconnects.values()) + sum(other.reconnects.values()) > 0)
        await until(lambda: pubsub.up and other.up)
        # Soon: on a busy machine, the first connection that was given up was one to another server.
        await until(lambda: lost not in servers_in_use(group.members))
        await assert_carries(pubsub, other)


# Redis Sentinel


async def test_planned_failover_of_sentinel_is_followed() -> None:
    async with (
        RedisSentinel() as group,
        pubsub_at(group.url, heartbeat_seconds=FAST_HEARTBEAT_SECONDS) as pubsub,
    ):
        async with Client(port=group.sentinels[0].port) as client:
            await client.execute_command("SENTINEL FAILOVER", MASTER)
        # Sentinel closes the connections to the old master when it makes it a replica.
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while group.replica not in servers_in_use(group.members):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await until(lambda: pubsub.up)
        assert await group.master_port() == group.replica.port
        assert group.master not in servers_in_use(group.members)


async def test_frozen_and_dead_sentinels_do_not_matter() -> None:
    async with RedisSentinel() as group:
        frozen, dead, _ = group.sentinels
        frozen.pause()
        await dead.kill()
        for _ in range(5):  # in different orders
            async with pubsub_at(group.url) as pubsub:
                assert pubsub.up


async def test_replica_that_a_sentinel_takes_for_the_master_is_not_used() -> None:
    async with (
        Redis() as master,
        Redis("--replicaof", "127.0.0.1", str(master.port)) as replica,
        SentinelServer(replica) as mistaken,
    ):
        message = await setup_error(f"redis+sentinel://127.0.0.1:{mistaken.port}/{MASTER}")
        assert f"127.0.0.1:{replica.port} is a replica, and no master" in message


async def test_setup_error_names_a_master_that_no_sentinel_knows() -> None:
    async with Redis() as master, SentinelServer(master) as sentinel:
        message = await setup_error(f"redis+sentinel://127.0.0.1:{sentinel.port}/unknown")
        assert "knows no master 'unknown'" in message


async def test_sentinels_have_credentials_of_their_own() -> None:
    async with (
        Redis("--requirepass", "p@ss/word") as master,
        SentinelServer(master, "--requirepass", "of&sentinel") as sentinel,
    ):
        address = f"redis+sentinel://:p%40ss%2Fword@127.0.0.1:{sentinel.port}/{MASTER}/3"
        assert "Authentication required" in await setup_error(address)
        async with pubsub_at(f"{address}?sentinel_password=of%26sentinel") as pubsub:
            await assert_delivers(pubsub)


# Redis Cluster


async def test_one_member_is_enough_to_reach_the_cluster() -> None:
    async with RedisCluster() as group:
        alive, *dead = group.members
        for member in dead:
            await member.kill()
        async with pubsub_at(group.url) as pubsub:
            assert servers_in_use(group.members) == [alive]
            await assert_delivers(pubsub)


async def test_setup_error_for_a_server_that_is_not_part_of_a_cluster() -> None:
    async with Redis() as server:
        message = await setup_error(f"redis+cluster://127.0.0.1:{server.port}")
        assert "is not part of a cluster" in message


# Invalid URLs


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("redis://a,b", "use redis+sentinel:// or redis+cluster://"),
        ("redis://127.0.0.1/x", "the database 'x' is not a number"),
        ("redis://127.0.0.1?db=x", "the value of the option `db` is invalid"),
        ("redis://127.0.0.1?colour=red", "unknown option `colour`"),
        ("redis://127.0.0.1?creds=x", "unknown option `creds`"),
        ("rediss://127.0.0.1?ssl_ca_certs=/nonsense", "the file /nonsense of the option"),
        ("redis+sentinel://a,b", "name the Sentinels and the master"),
        ("redis+sentinel://a,b/m/x", "the database 'x' is not a number"),
        ("redis+sentinel://a/m?sentinel=x", "unknown option `sentinel`"),
        ("redis+cluster://a/0", "name members of the cluster"),
        ("redis+cluster://a?db=0", "unknown option `db`"),
        ("redis+cluster://a?sharded=maybe", "`sharded` is yes or no"),
        ("nats://a/b", "name servers, and nothing else"),
        ("nats://a,nats://b", "is not a valid URL"),
        ("nats://a?tls_ca=/etc/hosts", "unknown option `tls_ca`"),
        ("nats://a?creds=/nonsense", "the file /nonsense of the option `creds` cannot be read"),
        ("nats://a?creds=/etc/hosts&nkey=/etc/hosts", "one of the options `creds` and `nkey`"),
        ("nats://a?timeout=1", "unknown option `timeout`; the options are creds, nkey"),
        ("nats://a:99999999", "is not a valid URL"),
    ],
)
def test_setup_error_names_what_is_wrong_with_a_url(url: str, problem: str) -> None:
    with pytest.raises(SetupError) as raised:
        pubsub_at(url)
    assert problem in raised.value.message
