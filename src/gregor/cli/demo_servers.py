"""The servers of a demo; each request goes to a random one."""

from collections.abc import Sequence
from random import Random
from typing import Any, Self

import httpx

from gregor.cli.remote import REPLAY_ATTEMPTS, CommandProducer
from gregor.client import AsyncProducer
from gregor.core.message import Message
from gregor.errors import Unavailable
from gregor.protocol.answers import StateAnswer
from gregor.protocol.frames import Result


class RandomServer(httpx.AsyncBaseTransport):
    """Sends each request to a random server, like a load balancer."""

    def __init__(self, urls: Sequence[str], rng: Random) -> None:
        self._urls = [httpx.URL(url) for url in urls]
        self._rng = rng
        self._http = httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        server = self._rng.choice(self._urls)
        request.url = request.url.copy_with(host=server.host, port=server.port)
        return await self._http.handle_async_request(request)

    async def aclose(self) -> None:
        await self._http.aclose()


class Servers:
    """The nodes of a fleet, or a single server. Each attempt of a request goes to a random one of
    them; Unavailable is raised if they do not answer for about a minute. Open it with
    `async with`."""

    def __init__(self, urls: Sequence[str], rng: Random) -> None:
        self.urls = urls
        self._producer = AsyncProducer(
            urls[0],
            max_attempts=REPLAY_ATTEMPTS,
            transport=RandomServer(urls, rng),
            jitter=rng.random,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._producer.close()

    async def send(self, messages: Sequence[Message]) -> Sequence[Result]:
        return await self._producer.send(messages)

    async def state(self, uid: str, device_id: str) -> StateAnswer:
        return await self._producer.state(uid, device_id)

    async def metrics(self) -> list[str]:
        """The metrics of each server that answers, in the format of Prometheus."""
        pages = []
        for url in self.urls:
            try:
                async with CommandProducer(url) as server:
                    pages.append(await server.metrics())
            except Unavailable:
                continue
        return pages
