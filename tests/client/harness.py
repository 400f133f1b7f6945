"""One node with a memory store, and clients that connect to it, on virtual time."""

import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

from gregor.client import (
    Client,
    Created,
    Dismissed,
    Event,
    MemoryStore,
    OutOfBandReceived,
    WriteRejected,
)
from gregor.client.connection import Connect, Token
from gregor.client.events import Subscription
from gregor.client.store import ClientStore
from gregor.consumers.broadcaster import Broadcaster
from gregor.core.instant import Time
from gregor.core.message import InBandMessage
from gregor.core.state import State
from gregor.interfaces import Caller
from gregor.node.node import Node
from gregor.stores.memory import MemoryStateMachine
from gregor.testing import virtual_time
from gregor.testing.transport import MemoryServer, token_is_uid

P = ParamSpec("P")

UNUSED_URL = "http://unused"


def on_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run the test on an event loop with virtual time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        virtual_time.run(test(*args, **kwargs))

    return run


class ClientHarness:
    """One node and its server in memory; creates clients and injects messages and faults."""

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
        clock: Callable[[], Time] = virtual_time.clock,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> Client:
        return Client(
            UNUSED_URL,
            token,
            device_id=device_id,
            store=MemoryStore() if store is None else store,
            connect=connect or self.server.connect,
            clock=clock,
            jitter=jitter,
        )

    async def inject(self, *messages: InBandMessage) -> None:
        """Inject messages, as a backend does."""
        await self.node.inject(Caller("backend"), messages)

    async def state(self, device_id: str | None = None) -> State:
        return await self.machine.state("alice", device_id)

    def lose_frame(self, frame_type: str, times: int = 1) -> None:
        """Break the connection instead of delivering the next frame of this type, `times` times."""
        remaining = times

        def is_lost(frame: str) -> bool:
            nonlocal remaining
            if remaining and f'"type":"{frame_type}"' in frame:
                remaining -= 1
                return True
            return False

        self.server.lost = is_lost


@asynccontextmanager
async def client_harness(
    machine_type: type[MemoryStateMachine] = MemoryStateMachine,
    clock: Callable[[], Time] = virtual_time.clock,
    **server_options: Any,
) -> AsyncIterator[ClientHarness]:
    machine = machine_type(clock)
    async with (
        Node(machine, Broadcaster(), clock=clock, jitter=lambda: 0.5) as node,
        MemoryServer(node, **({"authenticate": token_is_uid} | server_options)) as server,
    ):
        yield ClientHarness(machine, node, server)


def categories(state: State) -> list[str]:
    return [item.category for item in state]


def event_summaries(events: Subscription) -> list[str]:
    """The pending events as short texts, such as "created mail"."""
    return [_summary(event) for event in events.take_pending()]


def _summary(event: Event) -> str:
    match event:
        case Created(item):
            return f"created {item.category}"
        case Dismissed(item, why):
            return f"{why} {item.category}"
        case OutOfBandReceived(system):
            return f"out of band {system}"
        case WriteRejected(message):
            return f"rejected {message.msg_id}"
        case _:
            return type(event).__name__.lower()
