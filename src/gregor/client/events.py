"""What a client tells those who listen: how what a person sees has changed, and why.

Folding Created and Dismissed over the state at the moment of subscribing gives the state at any
later moment. So an item is created once, however often it arrives: from the outbox, in an ack, in
the feed, in a redelivery, after a resync or a restart.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, Self, TypeAlias

from msgspec import Struct

from gregor.core.message import JSON, InBandMessage, System
from gregor.core.state import Item
from gregor.protocol.frames import Problem

MOST_WAITING = 1_000

Why: TypeAlias = Literal["dismissed", "expired", "replaced"]


class Created(Struct, frozen=True):
    """An item has become visible."""

    item: Item


class Dismissed(Struct, frozen=True):
    """An item is no longer visible. `replaced`: the message that ended it also created one, as
    far as this device was told. An item hidden here counts as dismissed."""

    item: Item
    why: Why


class PassedBy(Struct, frozen=True):
    """An out-of-band message came."""

    system: System
    body: JSON


class Synced(Struct, frozen=True):
    """The replica knows all that the node knew a moment ago."""


class Rejected(Struct, frozen=True):
    """The node refuses this message of ours for good. It is no longer shown, and waits in
    `Client.rejected()` to be looked at."""

    message: InBandMessage
    error: Problem


class Online(Struct, frozen=True):
    """The node is there, and has told us what we had missed."""


class Offline(Struct, frozen=True):
    """The connection is gone. With `final`, the client does not try again: the token does not
    hold, or the node does not want us. Reading and writing here goes on."""

    reason: str
    final: bool = False


class Missed(Struct, frozen=True):
    """This listener was too slow, and events were dropped. Read the state anew; what follows
    continues from there."""


Event: TypeAlias = Created | Dismissed | PassedBy | Synced | Rejected | Online | Offline | Missed


class Subscription:
    """The events from now on, for one listener: `async for event in client.events()`.

    It holds at most 1,000 events for a listener that does not take them; one more drops them all
    and leaves a single Missed. It ends when the client closes.
    """

    def __init__(self) -> None:
        self._waiting: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._closed = False

    def tell(self, events: Iterable[Event]) -> None:
        for event in events:
            if len(self._waiting) == MOST_WAITING:
                self._waiting.clear()
                event = Missed()
            self._waiting.append(event)
        self._arrived.set()

    def waiting(self) -> list[Event]:
        """Take all that waits, without waiting."""
        taken = list(self._waiting)
        self._waiting.clear()
        return taken

    def close(self) -> None:
        """Nothing more will come. What waits can still be taken."""
        self._closed = True
        self._arrived.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()
