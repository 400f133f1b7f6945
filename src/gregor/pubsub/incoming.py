"""The queue of received pub/sub events, for a single reader."""

import asyncio
from collections.abc import AsyncIterator

from gregor.pubsub.interface import Event, Interrupted

MAX_QUEUED_EVENTS = 10_000


class IncomingQueue:
    """Events in order, at most MAX_QUEUED_EVENTS. If the reader is too slow and the queue
    overflows, one Interrupted replaces all queued events: the node then reads what it has missed
    from the store, at once."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue(MAX_QUEUED_EVENTS)

    def put(self, event: Event) -> None:
        """Append an event. Never blocks and never fails."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            while not self._events.empty():
                self._events.get_nowait()
            self._events.put_nowait(Interrupted())

    async def received(self) -> AsyncIterator[Event]:
        """The queued events, and those still to come. Never ends."""
        while True:
            yield await self._events.get()
