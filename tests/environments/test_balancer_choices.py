"""Which node a load balancer chooses, with the configurations in deploy/, and what it repeats."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.environments.balancers import Caddy, HAProxy, LoadBalancer, Nginx
from tests.timeouts import TIMEOUT_SECONDS

ALL = (Nginx, HAProxy, Caddy)


class DefaultNginx(Nginx):
    """nginx with its default for `max_fails`."""

    def _places(self) -> Mapping[str, str]:
        servers = {f"{url.removeprefix('http://')} max_fails=0": "" for url in self._nodes}
        without = {old: old.removesuffix(" max_fails=0") for old in servers}
        return {**super()._places(), **without}


class ScriptedNode:
    """A node that answers each request with this status, and counts them."""

    def __init__(self) -> None:
        self.status = 200
        self.ready_status = 200
        self.requests = 0
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "ScriptedNode":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.refuse()

    def refuse(self) -> None:
        """Close the listener: further connections are refused."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request of a connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length: 2" in head:
            await reader.read(2)
        if head.startswith(b"get /readyz?exclude=pubsub "):
            status = self.ready_status
        else:
            self.requests += 1
            status = self.status
        answer = f"HTTP/1.1 {status} -\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(answer.encode())
        writer.close()


@asynccontextmanager
async def balanced(
    kind: type[LoadBalancer],
) -> AsyncIterator[tuple[Sequence[ScriptedNode], httpx.AsyncClient]]:
    """Two nodes behind a balancer, and a client of the balancer."""
    async with (
        ScriptedNode() as one,
        ScriptedNode() as two,
        kind([one.url, two.url]) as balancer,
        httpx.AsyncClient(base_url=balancer.url, trust_env=False, timeout=TIMEOUT_SECONDS) as http,
    ):
        for node in (one, two):
            node.requests = 0
        yield (one, two), http


async def statuses(http: httpx.AsyncClient, method: str) -> set[int]:
    """The statuses of ten requests, one after the other."""
    content = b"{}" if method == "POST" else None
    return {(await http.request(method, "/v1/x", content=content)).status_code for _ in range(10)}


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("kind", ALL)
async def test_node_that_refuses_connections_is_not_noticed(
    kind: type[LoadBalancer], method: str
) -> None:
    async with balanced(kind) as (nodes, http):
        nodes[0].refuse()
        assert await statuses(http, method) == {200}


@pytest.mark.parametrize("kind", [HAProxy, Caddy])
async def test_lame_duck_gets_no_more_requests(kind: type[LoadBalancer]) -> None:
    async with balanced(kind) as (nodes, http):
        nodes[0].ready_status = 503
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                before = nodes[0].requests
                assert await statuses(http, "POST") == {200}
                if nodes[0].requests == before:
                    break


@pytest.mark.parametrize(
    ("kind", "method", "expected"),
    [
        (Nginx, "GET", {200}),
        (Nginx, "POST", {200}),
        (HAProxy, "GET", {200}),
        (HAProxy, "POST", {200, 503}),
        (Caddy, "GET", {200, 503}),
    ],
)
async def test_answer_503_is_repeated_on_the_other_node(
    kind: type[LoadBalancer], method: str, expected: set[int]
) -> None:
    async with balanced(kind) as (nodes, http):
        nodes[0].status = 503
        assert await statuses(http, method) == expected


@pytest.mark.parametrize(("kind", "tried"), [(Nginx, {20}), (DefaultNginx, {2, 3, 4})])
async def test_nginx_excludes_nodes_that_answer_503_unless_told_otherwise(
    kind: type[LoadBalancer], tried: set[int]
) -> None:
    async with balanced(kind) as (nodes, http):
        for node in nodes:
            node.status = 503
        await statuses(http, "POST")
        assert sum(node.requests for node in nodes) in tried
