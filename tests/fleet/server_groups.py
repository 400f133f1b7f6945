"""Several real servers that work together: Redis with Sentinel, Redis Cluster, a NATS cluster.

    async with RedisSentinel() as servers:
        await servers.master.kill()

A group can be started, killed and paused as a whole, like a ManagedServer; its `members` one by
one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self

import msgspec
from redis.asyncio import Redis as RedisClient

from tests.fleet.servers import (
    NATS,
    POLL_SECONDS,
    START_TIMEOUT_SECONDS,
    ManagedServer,
    Redis,
    request_line,
)
from tests.ports import CLUSTER_PORTS, free_port

MASTER = "gregor-master"
DOWN_AFTER_MILLISECONDS = 500


class ServerGroup:
    """Servers that are started in order. The subclass sets `members` and `url`."""

    members: Sequence[ManagedServer] = ()
    url = ""

    def __init__(self) -> None:
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.aclose()

    async def _open(self, stack: AsyncExitStack) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        """Start all servers again, and wait until they work together."""
        await asyncio.gather(*(member.start() for member in self.members))
        await self._wait_until_united()

    async def _wait_until_united(self) -> None:
        """Wait until the servers know each other."""

    async def stop(self) -> None:
        await asyncio.gather(*(member.stop() for member in self.members))

    async def kill(self) -> None:
        await asyncio.gather(*(member.kill() for member in self.members))

    def pause(self) -> None:
        for member in self.members:
            member.pause()

    def resume(self) -> None:
        for member in self.members:
            member.resume()


# Redis with Sentinel


class SentinelServer(Redis):
    """A Redis Sentinel, which watches one master."""

    def __init__(self, master: Redis, *options: str) -> None:
        super().__init__(*options)
        self._master = master

    async def _prepare(self) -> None:
        await super()._prepare()
        (self.directory / "sentinel.conf").write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.directory}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self._master.port} 2\n"
            f"sentinel down-after-milliseconds {MASTER} {DOWN_AFTER_MILLISECONDS}\n"
            f"sentinel failover-timeout {MASTER} 3000\n"
        )

    def _command(self) -> list[str]:
        return [self.executable, "sentinel.conf", "--sentinel", *self._options]

    async def ask(self, command: str) -> list[bytes]:
        """The reply to `SENTINEL command` about the master."""
        async with RedisClient(port=self.port) as client:
            reply: list[bytes] = await client.execute_command(f"SENTINEL {command}", MASTER)
        return reply


class RedisSentinel(ServerGroup):
    """A master, a replica, and three Sentinels, which elect the replica when the master is
    down."""

    def __init__(self) -> None:
        super().__init__()
        self.master = Redis()
        self.replica = Redis()
        self.sentinels: Sequence[SentinelServer] = ()

    async def _open(self, stack: AsyncExitStack) -> None:
        await stack.enter_async_context(self.master)
        self.replica = Redis("--replicaof", "127.0.0.1", str(self.master.port))
        await stack.enter_async_context(self.replica)
        self.sentinels = [SentinelServer(self.master) for _ in range(3)]
        for sentinel in self.sentinels:
            await stack.enter_async_context(sentinel)
        self.members = [self.master, self.replica, *self.sentinels]
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        self.url = f"redis+sentinel://{addresses}/{MASTER}"
        await self._wait_until_united()

    async def _wait_until_united(self) -> None:
        async def united() -> bool:
            others = [await sentinel.ask("SENTINELS") for sentinel in self.sentinels]
            replicas = [await sentinel.ask("REPLICAS") for sentinel in self.sentinels]
            return all(len(o) == 2 for o in others) and all(len(r) == 1 for r in replicas)

        await wait_until(united)

    async def master_port(self) -> int:
        """The port of the master, as a Sentinel says."""
        _, port = await self.sentinels[0].ask("GET-MASTER-ADDR-BY-NAME")
        return int(port)


# Redis Cluster


class ClusterMember(Redis):
    """A member of a Redis Cluster."""

    def _choose_port(self) -> int:
        return free_port(CLUSTER_PORTS)

    def _command(self) -> list[str]:
        cluster = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        return [*super()._command(), *cluster]


class RedisCluster(ServerGroup):
    """Three masters, each with this number of replicas."""

    def __init__(self, replicas: int = 0, member: type[ClusterMember] = ClusterMember) -> None:
        super().__init__()
        self.masters = [member() for _ in range(3)]
        self.replicas = [member() for _ in range(3 * replicas)]
        self.members = [*self.masters, *self.replicas]

    async def _open(self, stack: AsyncExitStack) -> None:
        for member in self.members:
            await stack.enter_async_context(member)
        self.url = f"redis+cluster://{','.join(f'127.0.0.1:{m.port}' for m in self.members)}"
        await self._divide_slots()
        await self._wait_until_united()
        masters = [*self.masters] * len(self.replicas)
        await asyncio.gather(*map(self._replicate, self.replicas, masters))

    async def _divide_slots(self) -> None:
        """Give each master a third of the slots, and introduce the members to each other."""
        ends = [0, 5461, 10923, 16384]
        for number, master in enumerate(self.masters):
            async with RedisClient(port=master.port) as client:
                await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                slots = range(ends[number], ends[number + 1])
                await client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        async with RedisClient(port=self.members[0].port) as client:
            for member in self.members[1:]:
                await client.execute_command("CLUSTER", "MEET", "127.0.0.1", member.port)

    async def _replicate(self, replica: Redis, master: Redis) -> None:
        async with RedisClient(port=master.port) as client:
            master_id = await client.execute_command("CLUSTER", "MYID")
        async with RedisClient(port=replica.port) as client:
            await client.execute_command("CLUSTER", "REPLICATE", master_id)

        async def follows() -> bool:
            async with RedisClient(port=self.members[0].port) as client:
                slots = await client.execute_command("CLUSTER", "SLOTS")
            return str(replica.port) in str(slots)

        await wait_until(follows)

    async def _wait_until_united(self) -> None:
        async def united() -> bool:
            states = []
            for member in self.members:
                async with RedisClient(port=member.port) as client:
                    states.append(await client.execute_command("CLUSTER", "INFO"))
            known = b"cluster_known_nodes:%d\r" % len(self.members)
            return all(b"cluster_state:ok" in state and known in state for state in states)

        await wait_until(united)


# NATS


class NATSCluster(ServerGroup):
    """Three NATS servers."""

    def __init__(self, *options: str) -> None:
        super().__init__()
        ports = [free_port() for _ in range(3)]
        routes = ",".join(f"nats://127.0.0.1:{port}" for port in ports)
        self.members = [
            NATS(
                *("--cluster_name", "test", "--cluster", f"nats://127.0.0.1:{port}"),
                *("--routes", routes, *options),
            )
            for port in ports
        ]

    async def _open(self, stack: AsyncExitStack) -> None:
        for member in self.members:
            await stack.enter_async_context(member)
        self.url = f"nats://{','.join(f'127.0.0.1:{member.port}' for member in self.members)}"
        await self._wait_until_united()

    async def _wait_until_united(self) -> None:
        async def united() -> bool:
            lines = [await request_line(member.url, b"") for member in self.members]
            about = [msgspec.json.decode(line.removeprefix(b"INFO ")) for line in lines]
            return all(len(server.get("connect_urls", ())) == 3 for server in about)

        await wait_until(united)


async def wait_until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds. An error of a server counts as not yet."""
    async with asyncio.timeout(START_TIMEOUT_SECONDS):
        while not await condition():  # noqa: ASYNC110 (there is no event to wait for)
            await asyncio.sleep(POLL_SECONDS)
