"""The servers of a demo; each request goes to a random one."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Self

from msgspec import Raw

from gregor.cli.remote import RemoteServer
from gregor.core.message import Message
from gregor.errors import Unavailable
from gregor.protocol.answers import StateAnswer
from gregor.protocol.frames import Result


class Servers:
    """The nodes of a fleet, or a single server. Each request goes to a random one of them and
    raises Unavailable if that one does not answer. Open it with `async with`."""

    def __init__(self, urls: Sequence[str], rng: Random) -> None:
        self.urls = urls
        self._remotes = [RemoteServer(url) for url in urls]
        self._rng = rng
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for remote in self._remotes:
            await self._stack.enter_async_context(remote)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def send(self, messages: Sequence[Message | Raw]) -> Sequence[Result]:
        return await self._rng.choice(self._remotes).send(messages)

    async def state(self, uid: str, device: str) -> StateAnswer:
        return await self._rng.choice(self._remotes).state(uid, device)

    async def metrics(self) -> list[str]:
        """The metrics of each server that answers, in the format of Prometheus."""
        pages = []
        for remote in self._remotes:
            try:
                pages.append(await remote.metrics())
            except Unavailable:
                continue
        return pages
