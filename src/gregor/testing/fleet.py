"""A fleet on this machine: nodes in processes of their own over one PostgreSQL, a pub/sub between.

    async with Fleet(nodes=2) as fleet:
        await fleet.nodes[0].kill()
        await fleet.nodes[0].start()

Everything comes from wheels, and listens on loopback.
"""

import sys
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Self

import httpx

from gregor.errors import SetupError
from gregor.state_machines.moving import Mover, establish
from gregor.storage.database import Database
from gregor.storage.engine import database_at, databases_at
from gregor.storage.migrations import migrate
from gregor.testing.backends import NATS, Backend, PostgreSQL, Redis
from gregor.testing.proxy import Proxy

PUBSUBS: dict[str, type[Backend]] = {"redis": Redis, "nats": NATS}


class Node(Backend):
    """One `gregor serve`. Its clock may be `ahead` of this machine's, by seconds."""

    program = "gregor"

    def __init__(self, stores: Sequence[str], pubsub: str, *, ahead: float = 0.0) -> None:
        super().__init__()
        self.stores = stores
        self._pubsub = pubsub
        self._ahead = ahead

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _command(self) -> list[str]:
        listen = f"127.0.0.1:{self.port}"
        python = [sys.executable, "-m"]
        if self._ahead:
            module = "gregor.testing.ahead"
            return [*python, module, str(self._ahead), listen, *self.stores, self._pubsub]
        stores = [word for store in self.stores for word in ("--store", store)]
        where = ["--listen", listen, *stores, "--pubsub", self._pubsub]
        return [*python, "gregor.cli", "serve", *where]

    async def _answers(self) -> bool:
        async with httpx.AsyncClient(trust_env=False) as http:
            try:
                answer = await http.get(f"{self.url}/readyz")
            except httpx.HTTPError:
                return False
        return answer.status_code == httpx.codes.OK


class Fleet:
    """PostgreSQL, a pub/sub and nodes. By `ahead` seconds the last one's clock is ahead. With
    `proxied`, what the nodes say to the pub/sub passes through the `proxy`. With several `shards`,
    `shards` has the URL of each by its name, and of these so many, the last ones, are `unused` in
    the beginning."""

    def __init__(
        self,
        nodes: int = 2,
        pubsub: str = "redis",
        *,
        ahead: float = 0.0,
        proxied: bool = False,
        shards: int = 1,
        unused: int = 0,
    ) -> None:
        if pubsub not in PUBSUBS:
            raise SetupError(f"there is no pub/sub {pubsub!r} to start; there are redis and nats")
        self.postgresql = PostgreSQL()
        self.pubsub = PUBSUBS[pubsub]()
        self.proxy: Proxy | None = None
        self.nodes: Sequence[Node] = ()
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
            await stack.enter_async_context(self.postgresql)
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
            if self._proxied:
                self.proxy = Proxy("127.0.0.1", self.pubsub.port)
                await stack.enter_async_context(self.proxy)
                url = url.replace(f":{self.pubsub.port}", f":{self.proxy.port}")
            self.nodes = [Node(self.stores, url, ahead=ahead) for ahead in self._clocks]
            for node in self.nodes:
                await stack.enter_async_context(node)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def new_database(self) -> str:
        """The URL of an empty one, whose schema is up to date."""
        url = await self.postgresql.create_database()
        async with database_at(url, migrate):
            return url

    async def _establish(self) -> None:
        """Make one map of the shards; those to be unused come to it last."""
        async with self.databases() as databases:
            used = list(databases)[: len(databases) - self._unused]
            await establish({name: databases[name] for name in used})
            await establish(databases)
        self.stores = [f"{name}={url}" for name, url in self.shards.items()]

    def databases(self) -> AbstractAsyncContextManager[dict[str, Database]]:
        """The databases of the shards, opened beside the nodes."""
        return databases_at(self.shards)

    async def level(self) -> None:
        """Move buckets until each shard carries about as much."""
        async with self.databases() as databases:
            mover = Mover(databases)
            await mover.move(await mover.plan())

    @property
    def urls(self) -> list[str]:
        """Of the nodes."""
        return [node.url for node in self.nodes]
