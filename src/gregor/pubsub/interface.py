"""What a pub/sub is to us: four verbs over bytes and channels, and a word when it is down."""

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol, TypeAlias


class Received(NamedTuple):
    """Somebody, perhaps this node, has published this."""

    channel: str
    payload: bytes


class Interrupted(NamedTuple):
    """The connection was lost and stands again: anything may have been missed meanwhile."""


Event: TypeAlias = Received | Interrupted


class PubSub(Protocol):
    """Carries payloads between nodes: each at most once, in no promised order.

    Nobody may rely on it for more than speed. What is published while it is down is lost, and it
    says so afterwards with `Interrupted`; `up` tells how it stands now.
    """

    @property
    def up(self) -> bool:
        """Whether what is published now will probably arrive."""
        ...

    @property
    def dropped(self) -> int:
        """How many of the payloads handed to it it knows, or must fear, to have lost."""
        ...

    async def publish(self, channel: str, payload: bytes) -> None:
        """Hand over a payload. Never fails and never waits for its arrival."""
        ...

    async def subscribe(self, channel: str) -> None:
        """Returns when everything that is published on the channel from now on will be received,
        or, while the pub/sub is down, when that is noted for its return. Twice is once."""
        ...

    async def unsubscribe(self, channel: str) -> None:
        """The opposite; what is on its way may still be received. Twice is once."""
        ...

    def received(self) -> AsyncIterator[Event]:
        """What arrives on the channels subscribed to, for the one reader that there is."""
        ...
