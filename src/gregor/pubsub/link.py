"""What a RemotePubSub needs from a server: one connection, from open to close.

An adapter for another kind of server implements only `Link`. Reconnecting after a lost connection
and detecting a silent server are the same for all of them, and are done by RemotePubSub.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeAlias


class Reason(StrEnum):
    """Why a connection was lost, or could not be opened, in one word for metrics."""

    REFUSED = "refused"  # nothing listens there
    AUTHENTICATION = "authentication"  # a wrong password, or a missing permission
    TIMEOUT = "timeout"
    CLOSED = "closed"
    SILENT = "silent"  # open, but the heartbeat does not come back
    OTHER = "other"


class LinkLost(Exception):
    """The connection is lost, or could not be opened. The link is unusable; open a new one."""

    def __init__(self, message: str, reason: Reason = Reason.OTHER) -> None:
        super().__init__(message)
        self.reason = reason


def reason_of(error: BaseException) -> Reason:
    """The reason behind an error of a socket, or behind the driver's error that it caused."""
    for cause in _causes(error):
        match cause:
            case ConnectionRefusedError():
                return Reason.REFUSED
            case OSError() if "Connect call failed" in str(cause):  # on all addresses of a name
                return Reason.REFUSED
            case TimeoutError():
                return Reason.TIMEOUT
            case ConnectionError() | EOFError():
                return Reason.CLOSED
    return Reason.OTHER


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


class OutgoingPayload(NamedTuple):
    """A payload to publish on a channel."""

    channel: str
    payload: bytes


OnMessage: TypeAlias = Callable[[str, bytes], None]


class Link(Protocol):
    """One connection to a server, or one to each of several servers that share the channels.

    `listen` runs from `open` until the connection breaks. At the same time at most one task
    publishes, and at most one task subscribes and unsubscribes. Each of these calls may be
    cancelled; the link is not used afterwards. Each raises LinkLost when the connection breaks. A
    link need not detect a silent server: RemotePubSub does that.
    """

    async def open(self) -> None:
        """Connect and authenticate. Raises LinkLost with the reason if that fails."""
        ...

    def heartbeat_channels(self, name: str) -> Sequence[str]:
        """Channels that begin with this name and together use every server of an open link."""
        ...

    async def listen(self, on_message: OnMessage) -> None:
        """Call `on_message` with the channel and payload of each message until the connection
        breaks. Never returns; raises LinkLost."""
        ...

    async def publish(self, payloads: Sequence[OutgoingPayload]) -> int:
        """Publish payloads. Returns when the server has accepted them, with the number of
        payloads that were dropped because they are too large for the server."""
        ...

    async def subscribe(self, channels: Collection[str]) -> None:
        """Subscribe to channels that are not subscribed to. Returns when the server has confirmed
        all of them."""
        ...

    async def unsubscribe(self, channels: Collection[str]) -> None:
        """Unsubscribe from channels that are subscribed to. Returns when the server has confirmed
        all of them."""
        ...

    async def close(self) -> None:
        """Release everything that `open` has opened, even if it failed or was cancelled. Does not
        wait for the server."""
        ...


Candidates: TypeAlias = Callable[[], Sequence[Link]]
"""New links to the servers of a pub/sub, in the order in which to try them. Any one of them will
do."""
