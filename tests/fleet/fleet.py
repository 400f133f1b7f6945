"""A fleet on this machine: node processes on one PostgreSQL server, connected by a pub/sub.

    async with Fleet(nodes=2) as fleet:
        await fleet.nodes[0].kill()
        await fleet.nodes[0].start()

All servers come from wheels and listen on loopback.
"""

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from enum import Enum
from typing import Any, Self

import httpx

from gregor.errors import SetupError
from gregor.limits import OFF
from gregor.shards.rebalance import Rebalancer
from gregor.shards.shard_map import establish
from gregor.stores.sql.database import Database
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.store_url import database_at, databases_at
from tests.fleet import skewed_node
from tests.fleet.proxy import Proxy
from tests.fleet.replication import ReplicatedPostgreSQL
from tests.fleet.server_groups import NATSCluster, RedisCluster, RedisSentinel, ServerGroup
from tests.fleet.servers import NATS, ManagedServer, Redis

PUBSUBS: dict[str, type[ManagedServer] | type[ServerGroup]] = {
    "redis": Redis,
    "sentinel": RedisSentinel,
    "cluster": RedisCluster,
    "nats": NATS,
    "nats-cluster": NATSCluster,
}


WITHOUT_LIMITS = {f"GREGOR_{name.upper()}": "0" for name in OFF}
"""The environment of a node to which devices send as fast as they can. (Earlier versions have no
options for that.)"""


class Replication(Enum):
    """Whether PostgreSQL has a standby, and whether a commit waits for it."""

    NONE = "none"
    ASYNCHRONOUS = "asynchronous"
    SYNCHRONOUS = "synchronous"


class NodeProcess(ManagedServer):
    """One `gregor serve` process. Its clock is `ahead` seconds ahead of this machine's."""

    program = "gregor"

    def __init__(self, stores: Sequence[str], pubsub: str, *, ahead: float = 0.0) -> None:
        super().__init__()
        self._environment = os.environ | WITHOUT_LIMITS
        self.stores = stores
        self._pubsub = pubsub
        self._ahead = ahead

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        listen = f"127.0.0.1:{self.port}"
        if self._ahead:
            program = [sys.executable, skewed_node.__file__]
            return [*program, str(self._ahead), listen, *self.stores, self._pubsub]
        stores = [argument for store in self.stores for argument in ("--store", store)]
        options = ["--listen", listen, *stores, "--pubsub", self._pubsub]
        return [sys.executable, "-m", "gregor.cli", "serve", *options]

    async def _is_ready(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                response = await http.get(f"{self.url}/readyz")
            except httpx.HTTPError:
                return False
        return response.status_code == httpx.codes.OK


class Fleet:
    """PostgreSQL, a pub/sub and nodes. The clock of the last node is `ahead` seconds ahead. With
    `proxied`, the nodes reach the pub/sub through `proxy`. With more than one of `shards`, the
    attribute `shards` maps their names to their URLs; the last `unused` shards hold no buckets at
    first. With `replication`, the nodes reach PostgreSQL through the virtual address of
    `replicated`. Opened with `async with`. Raises SetupError for an unknown pub/sub."""

    def __init__(
        self,
        nodes: int = 2,
        pubsub: str = "redis",
        *,
        ahead: float = 0.0,
        proxied: bool = False,
        shards: int = 1,
        unused: int = 0,
        replication: Replication = Replication.NONE,
    ) -> None:
        if pubsub not in PUBSUBS:
            raise SetupError(f"unknown pub/sub {pubsub!r}; choose one of {', '.join(PUBSUBS)}")
        self.replicated = ReplicatedPostgreSQL(synchronous=replication is Replication.SYNCHRONOUS)
        self.postgresql = self.replicated.primary
        self._replication = replication
        self.pubsub = PUBSUBS[pubsub]()
        self.proxy: Proxy | None = None
        self.nodes: Sequence[NodeProcess] = ()
        self.stores: Sequence[str] = ()
        self.store = ""
        self.shards: dict[str, str] = {}
        self._shards = shards
        self._unused = unused
        self._proxied = proxied
        self._clocks = [0.0] * (nodes - 1) + [ahead]
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            server = self.postgresql if self._has_no_standby else self.replicated
            await stack.enter_async_context(server)
            await stack.enter_async_context(self.pubsub)
            if self._shards == 1:
                self.store = await self.new_database()
                self.stores = [self.store]
            else:
                self.shards = {
                    f"shard{n + 1}": await self.new_database() for n in range(self._shards)
                }
                await self._establish()
            url = self.pubsub.url
            if self._proxied and isinstance(self.pubsub, ManagedServer):
                self.proxy = Proxy("127.0.0.1", self.pubsub.port)
                await stack.enter_async_context(self.proxy)
                url = url.replace(f":{self.pubsub.port}", f":{self.proxy.port}")
            self.nodes = [self._node(url, ahead) for ahead in self._clocks]
            for node in self.nodes:
                await stack.enter_async_context(node)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    def _node(self, pubsub: str, ahead: float) -> NodeProcess:
        return NodeProcess(self.stores, pubsub, ahead=ahead)

    @property
    def _has_no_standby(self) -> bool:
        return self._replication is Replication.NONE

    async def new_database(self) -> str:
        """Create an empty database with the current schema; its URL."""
        server = self.postgresql if self._has_no_standby else self.replicated
        url = await server.create_database()
        async with database_at(url, migrate):
            return url

    async def _establish(self) -> None:
        """Create the shard map. The unused shards are added last, so they hold no buckets."""
        async with self.databases() as databases:
            used = list(databases)[: len(databases) - self._unused]
            await establish({name: databases[name] for name in used})
            await establish(databases)
        self.stores = [f"{name}={url}" for name, url in self.shards.items()]

    def databases(self) -> AbstractAsyncContextManager[dict[str, Database]]:
        """Open the databases, by `database_urls`, in addition to the nodes' connections."""
        return databases_at(self.database_urls)

    @property
    def database_urls(self) -> dict[str, str]:
        """By the names of the shards; the single store of a fleet without shards is named ""."""
        return self.shards or {"": self.store}

    async def rebalance(self) -> None:
        """Rebalance: move buckets until the shards hold about as many messages."""
        async with self.databases() as databases:
            rebalancer = Rebalancer(databases)
            await rebalancer.move(await rebalancer.plan())

    @property
    def urls(self) -> list[str]:
        """The URLs of the nodes."""
        return [node.url for node in self.nodes]
