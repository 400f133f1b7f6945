"""What a RemotePubSub needs of a server: one connection, from its beginning to its end.

An adapter for another kind of server implements `Link`, and nothing else: what to do when the
connection is gone, and how to notice that it has gone silent, is the same for all of them.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeAlias


class LinkLost(Exception):
    """The connection is gone, or was never had. Nothing can be done with it; open another."""


class Publication(NamedTuple):
    """A payload on its way to a channel."""

    channel: str
    payload: bytes


Take: TypeAlias = Callable[[str, bytes], None]


class Link(Protocol):
    """One connection to a server.

    `listen` runs from when it is open until it breaks. Meanwhile one task at most publishes, and
    one at most subscribes and unsubscribes. Each of them may be cancelled, and then the link is
    used no more; each raises LinkLost when the connection breaks. A link need not notice that its
    server says nothing any more: whoever uses it watches over that.
    """

    async def open(self) -> None:
        """Connect and authenticate. Raises LinkLost, with what there is to say about it."""
        ...

    async def listen(self, take: Take) -> None:
        """Hand over what arrives, until the connection breaks: it ends only with LinkLost."""
        ...

    async def publish(self, publications: Sequence[Publication]) -> int:
        """Returns when the server has taken them in, with the number of those that it cannot
        carry, because they are too large."""
        ...

    async def subscribe(self, channels: Collection[str]) -> None:
        """Returns when the server has confirmed every one of the channels, which are new."""
        ...

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """The opposite, of channels that are subscribed to."""
        ...

    async def close(self) -> None:
        """Let go of all that was opened, however far that went. Waits for nobody."""
        ...
