"""A connection to one device, as its conversation uses it: read a frame, write one, close."""

from collections.abc import Sequence
from typing import Protocol

from gregor.protocol.effects import Close, Send


class ChannelClosed(Exception):
    """The connection to the device has ended, by either side."""


class Socket(Protocol):
    """A socket to which text frames can be written without waiting, while it is `ready`."""

    @property
    def ready(self) -> bool: ...
    def write(self, texts: Sequence[str]) -> None:
        """Write these frames, together: each write is a call of the operating system."""
        ...


class NoSocket:
    """For channels without such a socket: never ready."""

    ready = False

    def write(self, texts: Sequence[str]) -> None:
        raise AssertionError("write to a socket that is not ready")


NO_SOCKET = NoSocket()


class Channel(Protocol):
    """A connection to one device. A reader and a writer use it at the same time."""

    @property
    def socket(self) -> Socket:
        """Takes frames directly while no `write` is pending, and it is ready."""
        ...

    async def read(self) -> str | None:
        """The next frame of the device: its text, or None if it is binary. Raises ChannelClosed
        when the connection has ended, also after a Close was written."""
        ...

    async def write(self, effect: Send | Close) -> None:
        """Send a frame, or close the connection. Waits until the connection accepts it. Raises
        ChannelClosed if the connection has ended."""
        ...
