"""Connections to a Redis Cluster.

Before Redis 7, a cluster broadcasts each publication to all its members: one connection to any of
them is enough. Since Redis 7 there is sharded pub/sub: each shard carries the channels of its own
slots, so that a cluster carries more than one server can. Then a link has a connection to one
server of each shard, to its master or a replica: both accept subscriptions and publications, and
forward them within the shard. So the death of a server costs a reconnect, and not the time until
the cluster has elected another master.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from random import shuffle
from typing import Any, TypeAlias, TypeVar

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from gregor.pubsub.first_open import first_open
from gregor.pubsub.link import Candidates, Link, LinkLost, OnMessage, OutgoingPayload
from gregor.pubsub.redis import (
    OPTIONS,
    ORDINARY,
    PORT,
    SHARDED,
    PubSubCommands,
    RedisConnections,
    RedisLink,
    ask,
    hello,
    here,
    redis_connections,
)
from gregor.pubsub.server_url import Address, parse_server_url, with_default_port

FIRST_SHARDED_VERSION = 7

Shard: TypeAlias = tuple[Address, ...]
"""The servers of a shard, which share its slots: the master first."""

T = TypeVar("T")


def cluster_candidates(url: str) -> Candidates:
    """The cluster at redis+cluster:// or rediss+cluster://, by way of each member that the URL
    names. Raises SetupError for an invalid URL."""
    parsed = parse_server_url(url, OPTIONS - {"db"} | {"sharded"})
    if parsed.path or not parsed.addresses:
        raise parsed.invalid("name members of the cluster: redis+cluster://HOST:PORT,HOST:PORT")
    if (sharded := parsed.options.get("sharded", "yes")) not in ("yes", "no"):
        raise parsed.invalid("the option `sharded` is yes or no")
    connections = redis_connections(parsed)
    addresses = [with_default_port(address, PORT) for address in parsed.addresses]

    def candidates() -> list[Link]:
        shuffle(addresses)
        return [ClusterLink(connections, a, may_shard=sharded == "yes") for a in addresses]

    return candidates


class ClusterLink:
    """A Link to all shards of a cluster, or to one member that broadcasts to the others."""

    def __init__(self, connections: RedisConnections, member: Address, *, may_shard: bool) -> None:
        self._connections = connections
        self._member = member
        self._may_shard = may_shard
        self._links: list[Link] = []
        self._link_of_slot: Mapping[int, int] = {}

    async def open(self) -> None:
        about = await hello(self._connections.to(self._member))
        if about["mode"] != "cluster":
            raise LinkLost(f"{self._member.host}:{self._member.port} is not part of a cluster")
        if self._may_shard and int(about["version"].partition(".")[0]) >= FIRST_SHARDED_VERSION:
            slots = await ask(self._connections.to(self._member), "CLUSTER", "SLOTS")
            shards, self._link_of_slot = parse_slots(slots, self._member)
            await self._open_links(shards, SHARDED)
        else:
            self._link_of_slot = dict.fromkeys(range(REDIS_CLUSTER_HASH_SLOTS), 0)
            await self._open_links([(self._member,)], ORDINARY)

    async def _open_links(self, shards: Sequence[Shard], commands: PubSubCommands) -> None:
        async def open_link(servers: Shard) -> None:
            candidates = [
                RedisLink(here(partial(self._connections.to, server)), commands)
                for server in servers
            ]
            link = await first_open(candidates)
            opened[servers] = link
            self._links.append(link)  # at once, for `close`

        opened: dict[Shard, Link] = {}
        await together(open_link(shard) for shard in shards)
        self._links = [opened[shard] for shard in shards]

    def heartbeat_channels(self, name: str) -> Sequence[str]:
        channels: dict[int, str] = {}
        for number in count():
            channel = f"{name}{{{number}}}"
            channels.setdefault(self._link_index(channel), channel)
            if len(channels) == len(self._links):
                return list(channels.values())
        raise AssertionError("each shard has a slot")

    async def listen(self, on_message: OnMessage) -> None:
        await together(link.listen(on_message) for link in self._links)

    async def publish(self, payloads: Sequence[OutgoingPayload]) -> int:
        groups = self._by_link(payloads, lambda payload: payload.channel)
        return sum(await together(link.publish(group) for link, group in groups))

    async def subscribe(self, channels: Collection[str]) -> None:
        groups = self._by_link(channels, str)
        await together(link.subscribe(group) for link, group in groups)

    async def unsubscribe(self, channels: Collection[str]) -> None:
        groups = self._by_link(channels, str)
        await together(link.unsubscribe(group) for link, group in groups)

    async def close(self) -> None:
        for link in self._links:
            await link.close()

    def _by_link(
        self, values: Collection[T], channel_of: Callable[[T], str]
    ) -> list[tuple[Link, list[T]]]:
        groups: dict[int, list[T]] = {}
        for value in values:
            groups.setdefault(self._link_index(channel_of(value)), []).append(value)
        return [(self._links[index], group) for index, group in groups.items()]

    def _link_index(self, channel: str) -> int:
        return self._link_of_slot[key_slot(channel.encode())]


def parse_slots(reply: Any, asked: Address) -> tuple[list[Shard], dict[int, int]]:
    """The reply to CLUSTER SLOTS, from the server that was asked: the shards, and the index of the
    shard of each slot. Raises LinkLost if a slot has none."""
    shards: dict[Shard, int] = {}
    shard_of_slot: dict[int, int] = {}
    for first, last, *servers in reply:
        shard = tuple(_addresses(servers, asked))
        index = shards.setdefault(shard, len(shards))
        shard_of_slot |= dict.fromkeys(range(first, last + 1), index)
    if len(shard_of_slot) < REDIS_CLUSTER_HASH_SLOTS:
        raise LinkLost("the cluster is incomplete: a slot has no server")
    return list(shards), shard_of_slot


def _addresses(servers: Sequence[Any], asked: Address) -> Iterator[Address]:
    """A server that does not know its own host leaves it out."""
    for host, port, *_ in servers:
        yield Address((host or b"").decode() or asked.host, port)


async def together(calls: Iterator[Awaitable[T]]) -> list[T]:
    """Wait for all calls. If one is lost, the others are cancelled and LinkLost is raised."""
    lost: list[BaseException] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(_result(call)) for call in calls]
    except* LinkLost as group:
        lost.extend(group.exceptions)
    if lost:
        raise lost[0]
    return [task.result() for task in running]


async def _result(call: Awaitable[T]) -> T:
    return await call
