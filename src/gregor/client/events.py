"""The events of a client: how the visible state has changed, and why.

Applying Created and Dismissed to the state at the time of subscribing gives the state at any later
time. So each item is reported as created once, however often it arrives: from the outbox, in an
ack, in a publication, in a redelivery, after a resync or a restart.
"""

import asyncio
from collections import deque
from collections.abc import Iterable
from typing import Any, Literal, Self, TypeAlias

from msgspec import Struct

from gregor.client.own_loop import OwnLoop
from gregor.core.message import JSON, InBandMessage, System
from gregor.core.state import Item
from gregor.errors import Erased
from gregor.protocol.frames import Problem

MAX_PENDING_EVENTS = 1_000

Why: TypeAlias = Literal["dismissed", "expired", "replaced"]


class Created(Struct, frozen=True):
    """An item has become visible: it has arrived, or has begun."""

    item: Item


class Dismissed(Struct, frozen=True):
    """An item is no longer visible. `why` is `replaced` if the message that dismissed it, or that
    put an item with its key in its place, also created an item, as far as this device received it.
    Hiding an item gives `dismissed`, and so does a clock that is set back to before its start."""

    item: Item
    why: Why


class OutOfBandReceived(Struct, frozen=True):
    """An out-of-band message has arrived."""

    system: System
    body: JSON


class Synced(Struct, frozen=True):
    """A sync is complete: the replica has all that the node had stored at that time."""


class WriteRejected(Struct, frozen=True):
    """The node has rejected a message of this device for good. The message is no longer shown, and
    stays in `Client.rejected()` until it is discarded."""

    message: InBandMessage
    error: Problem


class Online(Struct, frozen=True):
    """The client is connected, and the first sync is complete."""


class Offline(Struct, frozen=True):
    """There is no connection: it is lost, or the first attempt to connect has failed. The attempts
    that follow are not reported; `Client.status` says what is wrong now. With `final`, the client
    does not retry, because its token is refused and always the same, or because the user was
    erased. Reading on the device still works, and so does writing, unless the user was erased."""

    reason: str
    final: bool = False


class Missed(Struct, frozen=True):
    """This subscriber was too slow, and its pending events were dropped. Read the state again; the
    events that follow continue from there."""


Event: TypeAlias = (
    Created
    | Dismissed
    | OutOfBandReceived
    | Synced
    | WriteRejected
    | Online
    | Offline
    | Missed
    | Erased
)
"""Erased, which is also the error of what is asked of the client then: the user was erased on the
server, and everything of it on this device is gone; each item that was visible is reported as
dismissed before. Wipe what the app keeps of the user beside the client. The client takes no writes,
and does not connect, until `Client.reconnect`."""


class Subscription:
    """The events from now on, for one subscriber: `async for event in client.events()`.

    Its queue holds up to 1,000 pending events. When the queue is full, the next event drops them
    all and leaves a single Missed. The iteration ends when the client closes.
    """

    def __init__(self) -> None:
        self._pending: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._closed = False
        self._own_loop = OwnLoop()

    def put(self, events: Iterable[Event]) -> None:
        for event in events:
            if len(self._pending) == MAX_PENDING_EVENTS:
                self._pending.clear()
                event = Missed()
            self._pending.append(event)
        self._arrived.set()

    def take_pending(self) -> list[Event]:
        """Remove and return the pending events, without waiting."""
        events = list(self._pending)
        self._pending.clear()
        return events

    def close(self) -> None:
        """End the subscription. Idempotent. The pending events can still be read."""
        self._closed = True
        self._arrived.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        self._own_loop.require()
        while not self._pending:
            if self._closed:
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        return self._pending.popleft()
