"""An in-memory pub/sub for the nodes of one process."""

from collections.abc import AsyncIterator

from gregor.pubsub.incoming import IncomingQueue
from gregor.pubsub.interface import Event, Received


class Exchange:
    """The subscriptions that connected MemoryPubSubs share."""

    def __init__(self) -> None:
        self.channels: dict[str, dict[MemoryPubSub, None]] = {}


class MemoryPubSub:
    """One node's PubSub over an Exchange. A node that reads too slowly receives Interrupted."""

    up = True
    dropped = 0

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._incoming = IncomingQueue()

    async def publish(self, channel: str, payload: bytes) -> None:
        for subscriber in list(self._exchange.channels.get(channel, ())):
            subscriber.put(Received(channel, payload))

    async def subscribe(self, channel: str) -> None:
        self._exchange.channels.setdefault(channel, {})[self] = None

    async def unsubscribe(self, channel: str) -> None:
        subscribers = self._exchange.channels.get(channel, {})
        subscribers.pop(self, None)
        if not subscribers:
            self._exchange.channels.pop(channel, None)

    def received(self) -> AsyncIterator[Event]:
        return self._incoming.received()

    def put(self, event: Event) -> None:
        """Queue an event for the reader of this pub/sub."""
        self._incoming.put(event)
