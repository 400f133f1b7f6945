"""Redis 7, from Debian's packages: sharded pub/sub in a cluster, TLS, and permissions."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis as Client

from gregor.pubsub.remote import RemotePubSub, pubsub_at
from gregor.testing.pubsub_conformance import Connect, PubSubConformance
from tests.fleet.server_groups import MASTER, ClusterMember, RedisCluster, SentinelServer
from tests.fleet.servers import ManagedServer, Redis
from tests.pubsub.test_faults import FAST_HEARTBEAT_SECONDS, assert_delivers, setup_error, until
from tests.pubsub.test_remote import connect_to, running
from tests.pubsub.test_several_servers import assert_carries, servers_in_use

DEBIAN_REDIS = "/usr/bin/redis-server"


class Redis7(Redis):
    """Debian's Redis."""

    executable = DEBIAN_REDIS


class Redis7ClusterMember(ClusterMember):
    """Debian's Redis, as a member of a cluster."""

    executable = DEBIAN_REDIS


class Redis7Sentinel(SentinelServer):
    """Debian's Redis, as a Sentinel."""

    executable = DEBIAN_REDIS


@pytest.fixture(scope="module")
def redis7_cluster() -> Iterator[RedisCluster]:
    for group in running(RedisCluster(replicas=1, member=Redis7ClusterMember)):
        assert isinstance(group, RedisCluster)
        yield group


class TestShardedRedisCluster(PubSubConformance):
    @pytest.fixture
    def connect(self, redis7_cluster: RedisCluster) -> Connect:
        return connect_to(redis7_cluster.url)


class TestUnshardedRedis7Cluster(PubSubConformance):
    @pytest.fixture
    def connect(self, redis7_cluster: RedisCluster) -> Connect:
        return connect_to(f"{redis7_cluster.url}?sharded=no")


def fast_pubsub(group: RedisCluster) -> RemotePubSub:
    return pubsub_at(group.url, heartbeat_seconds=FAST_HEARTBEAT_SECONDS)


async def shard_channels(port: int) -> set[bytes]:
    """The channels of sharded pub/sub to which clients of this server are subscribed."""
    async with Client(port=port) as client:
        return set(await client.execute_command("PUBSUB", "SHARDCHANNELS"))


async def test_each_shard_carries_its_own_channels(redis7_cluster: RedisCluster) -> None:
    channels = [f"channel {number}" for number in range(100)]
    async with pubsub_at(redis7_cluster.url) as pubsub:
        for channel in channels:
            await pubsub.subscribe(channel)
        held = [await shard_channels(master.port) for master in redis7_cluster.masters]
    mine = [{c for c in part if c.startswith(b"channel")} for part in held]
    assert set.union(*mine) == {channel.encode() for channel in channels}
    assert sum(map(len, mine)) == len(channels)
    assert all(mine)
    # Each has a heartbeat of its own, so that each that is silent is noticed.
    assert all(any(c.startswith(b"gregor:heart:") for c in part) for part in held)


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_replica_of_a_shard_is_used_when_its_master_is_lost(fault: str) -> None:
    async with (
        RedisCluster(replicas=1, member=Redis7ClusterMember) as group,
        fast_pubsub(group) as pubsub,
        fast_pubsub(group) as other,
    ):
        assert servers_in_use(group.members) == group.masters
        if fault == "killed":
            await group.masters[1].kill()
        else:
            group.masters[1].pause()
        await until(lambda: bool(pubsub.reconnects) and bool(other.reconnects))
        await until(lambda: pubsub.up and other.up)
        for number in range(20):
            channel = f"after {number}"
            await assert_carries(pubsub, other, channel)


async def set_slot(server: Redis, slot: int, state: str, of: Redis) -> None:
    async with Client(port=of.port) as client:
        node = await client.execute_command("CLUSTER", "MYID")
    async with Client(port=server.port) as client:
        await client.execute_command("CLUSTER", "SETSLOT", slot, state, node)


async def test_shard_without_a_server_makes_only_sharded_pubsub_down() -> None:
    async with (
        RedisCluster(member=Redis7ClusterMember) as group,
        fast_pubsub(group) as pubsub,
        pubsub_at(f"{group.url}?sharded=no", heartbeat_seconds=FAST_HEARTBEAT_SECONDS) as unsharded,
    ):
        await group.masters[0].kill()
        await until(lambda: pubsub.reconnects["refused"] >= 2)
        assert not pubsub.up
        await until(lambda: unsharded.up)
        await group.masters[0].start()
        await until(lambda: pubsub.up)
        await assert_carries(pubsub, pubsub)


async def test_subscriptions_follow_a_slot_that_moves() -> None:
    async with (
        RedisCluster(member=Redis7ClusterMember) as group,
        fast_pubsub(group) as pubsub,
    ):
        await pubsub.subscribe("moving")
        async with Client(port=group.masters[0].port) as client:
            slot = await client.execute_command("CLUSTER", "KEYSLOT", "moving")
        source, target = group.masters[2], group.masters[0]
        assert slot >= 10923  # one of the last master
        await set_slot(source, slot, "MIGRATING", target)
        await set_slot(target, slot, "IMPORTING", source)
        for master in (target, source):
            await set_slot(master, slot, "NODE", target)
        await until(lambda: bool(pubsub.reconnects))
        await until(lambda: pubsub.up)
        assert b"moving" in await shard_channels(target.port)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with cert.pem, which is its own authority, and key.pem."""
    directory = tmp_path_factory.mktemp("certificate")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=redis"),
            *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"),
        ],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return directory


class TLSPort(Redis7):
    """A Redis that offers TLS only."""

    def __init__(self, certificate: Path, *options: str) -> None:
        super().__init__("--bind", "127.0.0.1 127.0.0.2", *tls_options(certificate), *options)

    def _command(self) -> list[str]:
        return [*super()._command(), "--tls-port", str(self.port), "--port", "0"]

    def _url(self) -> str:
        return f"rediss://127.0.0.1:{self.port}"

    async def _is_ready(self) -> bool:
        return "Ready to accept connections" in self.log()


class TLSSentinel(Redis7Sentinel):
    """A Sentinel that offers TLS only, and uses it to its master."""

    def __init__(self, master: Redis, certificate: Path) -> None:
        super().__init__(master, *tls_options(certificate), "--tls-replication", "yes")

    def _command(self) -> list[str]:
        return [*super()._command(), "--tls-port", str(self.port), "--port", "0"]

    async def _is_ready(self) -> bool:
        return "+monitor master" in self.log()


def tls_options(certificate: Path) -> list[str]:
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    files = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
    return [*map(str, files), "--tls-auth-clients", "no"]


async def test_tls_to_redis_checks_the_certificate(certificate: Path) -> None:
    async with TLSPort(certificate) as server:
        assert "certificate verify failed" in await setup_error(server.url)
        for options in (f"ssl_ca_certs={certificate}/cert.pem", "ssl_cert_reqs=none"):
            async with pubsub_at(f"{server.url}?{options}") as pubsub:
                await assert_delivers(pubsub)


async def test_tls_checks_the_host_unless_told_otherwise(certificate: Path) -> None:
    async with TLSPort(certificate) as server:
        url = server.url.replace("127.0.0.1", "127.0.0.2")  # not in the certificate
        url = f"{url}?ssl_ca_certs={certificate}/cert.pem"
        assert "certificate is not valid for '127.0.0.2'" in await setup_error(url)
        async with pubsub_at(f"{url}&ssl_check_hostname=no") as pubsub:
            await assert_delivers(pubsub)


async def test_tls_with_a_certificate_of_the_node(certificate: Path) -> None:
    async with TLSPort(certificate, "--tls-auth-clients", "yes") as server:
        url = f"{server.url}?ssl_ca_certs={certificate}/cert.pem"
        assert "cannot be used" in await setup_error(url)
        own = f"ssl_certfile={certificate}/cert.pem&ssl_keyfile={certificate}/key.pem"
        async with pubsub_at(f"{url}&{own}") as pubsub:
            await assert_delivers(pubsub)


async def test_tls_to_sentinel_and_to_its_master(certificate: Path) -> None:
    async with TLSPort(certificate) as master, TLSSentinel(master, certificate) as sentinel:
        url = f"rediss+sentinel://127.0.0.1:{sentinel.port}/{MASTER}"
        assert "certificate verify failed" in await setup_error(url)
        async with pubsub_at(f"{url}?ssl_ca_certs={certificate}/cert.pem") as pubsub:
            await assert_delivers(pubsub)


# Permissions, as operations.md lists them

PERMISSIONS = [
    *("on", ">secret", "resetchannels", "&gregor:*", "-@all"),
    *("+publish", "+subscribe", "+unsubscribe", "+client|setname"),
]


async def set_user(server: ManagedServer, *rules: str) -> None:
    async with Client(port=server.port) as client:
        await client.execute_command("ACL", "SETUSER", "gregor", *rules)


@pytest.mark.parametrize("missing", ["+publish", "+subscribe", "+client|setname", "&gregor:*"])
async def test_each_permission_is_needed(missing: str) -> None:
    async with Redis7() as server:
        url = server.url.replace("://", "://gregor:secret@")
        await set_user(server, *(rule for rule in PERMISSIONS if rule != missing))
        assert "no permission" in (await setup_error(url)).lower()
        await set_user(server, missing)
        async with pubsub_at(url) as pubsub:
            await assert_delivers(pubsub, "gregor:user:u")


async def test_another_database_needs_one_more_permission() -> None:
    async with Redis7() as server:
        url = server.url.replace("://", "://gregor:secret@").replace("/0", "/3")
        await set_user(server, *PERMISSIONS)
        assert "no permission" in (await setup_error(url)).lower()
        await set_user(server, "+select")
        async with pubsub_at(url) as pubsub:
            await assert_delivers(pubsub, "gregor:user:u")


async def test_server_behind_sentinel_needs_no_more_permissions() -> None:
    async with Redis7() as master, Redis7Sentinel(master) as sentinel:
        await set_user(master, *PERMISSIONS)
        url = f"redis+sentinel://gregor:secret@127.0.0.1:{sentinel.port}/{MASTER}"
        async with pubsub_at(url) as pubsub:
            await assert_delivers(pubsub, "gregor:user:u")


async def test_redis_cluster_user_with_few_permissions() -> None:
    async with RedisCluster(member=Redis7ClusterMember) as group:
        rules = [
            *("on", ">secret", "resetchannels", "&gregor:*", "-@all", "+client|setname"),
            *("+cluster|slots", "+spublish", "+ssubscribe", "+sunsubscribe"),
        ]
        for member in group.members:
            await set_user(member, *rules)
        async with pubsub_at(group.url.replace("://", "://gregor:secret@")) as pubsub:
            await assert_delivers(pubsub, "gregor:user:u")
