"""The interface of a pub/sub: publish and subscribe to bytes on channels, and report outages."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, TypeAlias


class Received(NamedTuple):
    """A payload that a node, possibly this one, has published."""

    channel: str
    payload: bytes


class Interrupted(NamedTuple):
    """The connection was lost and is restored, or a queue overflowed: any payload may have been
    missed."""


Event: TypeAlias = Received | Interrupted


class PubSub(Protocol):
    """Carries payloads between nodes: each at most once, in no guaranteed order.

    Use it for speed only, never for reliability. Payloads that are published while it is down are
    lost; when it is up again, it reports that with `Interrupted`.
    """

    @property
    def up(self) -> bool:
        """Whether a payload that is published now will probably arrive."""
        ...

    @property
    def dropped(self) -> int:
        """The number of published payloads that were lost, or may have been lost."""
        ...

    async def publish(self, channel: str, payload: bytes) -> None:
        """Publish a payload. Never fails, and never waits for its arrival."""
        ...

    async def subscribe(self, channel: str) -> None:
        """Subscribe to a channel. Idempotent. When it returns, every payload that is published on
        the channel from now on will be received; but servers of a NATS cluster learn of it a
        moment later than the one that this node is connected to. If the pub/sub is down, it
        returns at once, and the subscription takes effect when the pub/sub is up again."""
        ...

    async def unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel. Idempotent. Payloads in flight may still be received."""
        ...

    def received(self) -> AsyncIterator[Event]:
        """The payloads of the subscribed channels, and interruptions. For a single reader."""
        ...
