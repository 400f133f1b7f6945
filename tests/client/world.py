"""One node, its devices, and a person's day in no time."""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

from gregor.client import Client, Created, Dismissed, Event, MemoryStore
from gregor.client.connection import Connect, Token
from gregor.client.events import Subscription
from gregor.client.store import ClientStore
from gregor.consumers.broadcaster import Broadcaster
from gregor.core.message import InBandMessage
from gregor.core.state import State
from gregor.node import Node
from gregor.state_machines.memory import MemoryStateMachine
from gregor.testing import virtual_time
from gregor.testing.transport import MemoryServer, token_is_uid

P = ParamSpec("P")

NOWHERE = "http://nowhere"


def in_no_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run the test on a loop whose time jumps."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        virtual_time.run(test(*args, **kwargs))

    return run


class World:
    def __init__(self, machine: MemoryStateMachine, node: Node, server: MemoryServer) -> None:
        self.machine = machine
        self.node = node
        self.server = server

    def device(
        self,
        device_id: str = "laptop",
        token: Token = "alice",
        *,
        store: ClientStore | None = None,
        connect: Connect | None = None,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> Client:
        return Client(
            NOWHERE,
            token,
            device_id=device_id,
            store=MemoryStore() if store is None else store,
            connect=connect or self.server.connect,
            clock=virtual_time.clock,
            jitter=jitter,
        )

    async def backend(self, *messages: InBandMessage) -> None:
        """A backend injects messages."""
        await self.node.inject(messages)

    async def state(self, device_id: str | None = None) -> State:
        return await self.machine.state("alice", device_id)

    def lose(self, what: str, times: int = 1) -> None:
        """Break the connection instead of carrying the next frame of this type."""
        left = [times]

        def lost(frame: str) -> bool:
            if left[0] and f'"type":"{what}"' in frame:
                left[0] -= 1
                return True
            return False

        self.server.lost = lost


@asynccontextmanager
async def world(
    machine: type[MemoryStateMachine] = MemoryStateMachine, **server: Any
) -> AsyncIterator[World]:
    clock = virtual_time.clock
    store = machine(clock)
    async with (
        Node(store, [Broadcaster()], clock=clock, jitter=lambda: 0.5) as node,
        MemoryServer(node, **({"authenticate": token_is_uid} | server)) as front,
    ):
        yield World(store, node, front)


def categories(state: State) -> list[str]:
    return [item.category for item in state]


def story(events: Subscription) -> list[str]:
    """What a listener has been told since it was last asked, in words."""
    return [_words(event) for event in events.waiting()]


def _words(event: Event) -> str:
    match event:
        case Created(item):
            return f"created {item.category}"
        case Dismissed(item, why):
            return f"{why} {item.category}"
        case _:
            return type(event).__name__.lower()
