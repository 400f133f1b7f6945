"""What has arrived from other nodes, and waits for the one reader that there is."""

import asyncio
from collections.abc import AsyncIterator

from gregor.pubsub.interface import Event, Interrupted

QUEUE = 10_000


class Arrivals:
    """Events in order, so many at most: a reader who does not keep up is told Interrupted in
    place of all that waits, for what it has missed it finds elsewhere, and at once."""

    def __init__(self) -> None:
        self._events: asyncio.Queue[Event] = asyncio.Queue(QUEUE)

    def take(self, event: Event) -> None:
        """Something has arrived."""
        try:
            self._events.put_nowait(event)
        except asyncio.QueueFull:
            while not self._events.empty():
                self._events.get_nowait()
            self._events.put_nowait(Interrupted())

    async def received(self) -> AsyncIterator[Event]:
        while True:
            yield await self._events.get()
