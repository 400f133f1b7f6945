"""The handshake on the node's side: a device says who it is, first and only once.

A transport that knows the device already, such as an HTTP request, resumes without a hello. What a
session may do depends on its phase; a conversation that has been closed stays closed, also if the
token turns out to be valid afterwards.
"""

from collections.abc import Mapping
from enum import Enum, auto
from typing import Literal, TypeAlias

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID
from gregor.errors import ProtocolError
from gregor.protocol.frames import PROTOCOL, Hello


class Phase(Enum):
    GREETING = auto()
    AUTHENTICATING = auto()
    OPEN = auto()
    CLOSED = auto()


HandshakeEvent: TypeAlias = Literal["hello", "authenticated", "resume", "close"]

TRANSITIONS: Mapping[Phase, Mapping[HandshakeEvent, Phase]] = {
    Phase.GREETING: {
        "hello": Phase.AUTHENTICATING,
        "resume": Phase.AUTHENTICATING,
        "close": Phase.CLOSED,
    },
    Phase.AUTHENTICATING: {"authenticated": Phase.OPEN, "close": Phase.CLOSED},
    Phase.OPEN: {"close": Phase.CLOSED},
    Phase.CLOSED: {},
}


class Handshake:
    """The phase of a conversation, and the user and device once they are known, with the user's
    epoch as far as the device knows it. Each method does one transition, and returns whether the
    phase allows it."""

    __slots__ = ("device_id", "epoch", "phase", "uid")

    def __init__(self) -> None:
        self.phase = Phase.GREETING
        self.uid: UID = ""
        self.device_id: DeviceID = ""
        self.epoch: Time | None = None

    def hello(self, hello: Hello) -> bool:
        """The device says who it is. Raises ProtocolError if it speaks another protocol."""
        if hello.protocol != PROTOCOL:
            raise ProtocolError(
                f"this node supports protocol {PROTOCOL}, not {hello.protocol}; "
                "update the older side"
            )
        self.device_id, self.epoch = hello.device_id, hello.epoch
        return self._move("hello")

    def resume(self, device_id: DeviceID, epoch: Time | None) -> bool:
        """The transport says who the device is."""
        self.device_id, self.epoch = device_id, epoch
        return self._move("resume")

    def authenticated(self, uid: UID) -> bool:
        """The device's token belongs to this user."""
        self.uid = uid
        return self._move("authenticated")

    def close(self) -> bool:
        """The conversation ends."""
        return self._move("close")

    def _move(self, event: HandshakeEvent) -> bool:
        following = TRANSITIONS[self.phase].get(event)
        self.phase = following or self.phase
        return following is not None
