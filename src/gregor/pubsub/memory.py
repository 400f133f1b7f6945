"""A pub/sub between the nodes of one process."""

import asyncio
from collections.abc import AsyncIterator

from gregor.pubsub.interface import Event, Interrupted, Received

QUEUE = 10_000


class Exchange:
    """What the MemoryPubSubs of a process share."""

    def __init__(self) -> None:
        self.channels: dict[str, dict[MemoryPubSub, None]] = {}


class MemoryPubSub:
    """One node's end of an Exchange. A node that does not keep up is told Interrupted."""

    up = True

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._arrived: asyncio.Queue[Event] = asyncio.Queue(QUEUE)

    async def publish(self, channel: str, payload: bytes) -> None:
        for subscriber in list(self._exchange.channels.get(channel, ())):
            subscriber.take(Received(channel, payload))

    async def subscribe(self, channel: str) -> None:
        self._exchange.channels.setdefault(channel, {})[self] = None

    async def unsubscribe(self, channel: str) -> None:
        subscribers = self._exchange.channels.get(channel, {})
        subscribers.pop(self, None)
        if not subscribers:
            self._exchange.channels.pop(channel, None)

    async def received(self) -> AsyncIterator[Event]:
        while True:
            yield await self._arrived.get()

    def take(self, event: Event) -> None:
        """Something has arrived for this end."""
        try:
            self._arrived.put_nowait(event)
        except asyncio.QueueFull:
            while not self._arrived.empty():
                self._arrived.get_nowait()
            self._arrived.put_nowait(Interrupted())
