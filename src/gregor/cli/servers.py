"""Several servers that do the same work, as a command sees them: whichever answers."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from typing import Any, Self

from msgspec import Raw

from gregor.cli.remote import Remote
from gregor.core.message import Message
from gregor.errors import Unavailable
from gregor.protocol.answers import StateAnswer
from gregor.protocol.frames import Result


class Servers:
    """The nodes of a fleet, or the one server that there is. Each question goes to one of them,
    chosen anew; Unavailable means that this one did not answer. Open it with `async with`."""

    def __init__(self, urls: Sequence[str], mind: Random) -> None:
        self.urls = urls
        self._remotes = [Remote(url) for url in urls]
        self._mind = mind
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for remote in self._remotes:
            await self._stack.enter_async_context(remote)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    async def send(self, messages: Sequence[Message | Raw]) -> Sequence[Result]:
        return await self._mind.choice(self._remotes).send(messages)

    async def state(self, uid: str, device: str) -> StateAnswer:
        return await self._mind.choice(self._remotes).state(uid, device)

    async def metrics(self) -> list[str]:
        """What each that answers tells about itself, as Prometheus has it."""
        pages = []
        for remote in self._remotes:
            try:
                pages.append(await remote.metrics())
            except Unavailable:
                continue
        return pages
