"""A pub/sub between the nodes of one process."""

from collections.abc import AsyncIterator

from gregor.pubsub.arrivals import Arrivals
from gregor.pubsub.interface import Event, Received


class Exchange:
    """What the MemoryPubSubs of a process share."""

    def __init__(self) -> None:
        self.channels: dict[str, dict[MemoryPubSub, None]] = {}


class MemoryPubSub:
    """One node's end of an Exchange. A node that does not keep up is told Interrupted."""

    up = True
    dropped = 0

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._arrivals = Arrivals()

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

    def received(self) -> AsyncIterator[Event]:
        return self._arrivals.received()

    def take(self, event: Event) -> None:
        """Something has arrived for this end."""
        self._arrivals.take(event)
