"""The effects that the sessions of both sides have: what their transports carry out."""

from typing import NamedTuple

from gregor.protocol.frames import Frame, encode


class Send(NamedTuple):
    """Write this frame."""

    frame: Frame
    encoded: str | None = None

    @property
    def text(self) -> str:
        return encode(self.frame) if self.encoded is None else self.encoded


class Close(NamedTuple):
    """Close the connection, with a close code of WebSockets."""

    code: int
    reason: str
