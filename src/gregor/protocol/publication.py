"""What a node sends to all devices of a user at once: a span of the user's clock."""

from typing import NamedTuple

from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage
from gregor.core.sync import just_stored
from gregor.interfaces import Stored
from gregor.protocol.effects import Send
from gregor.protocol.frames import Messages, encode


class Publication(NamedTuple):
    """The messages of a user from `prev` (exclusive) to `cursor` (inclusive), in order.

    `shared_frame` is the frame for all devices whose cursor is `prev`, encoded once; None if a
    creation is for one device. (A device ignores the ids of items that it does not hold, and its
    replica knows what the ranges and keys of another device reach.) `size` is the approximate size
    in bytes."""

    prev: Time
    messages: tuple[InBandMessage, ...]
    cursor: Time
    size: int
    shared_frame: Send | None

    @classmethod
    def of(cls, *stored: Stored) -> "Publication":
        """A publication of consecutive new messages, each reduced as it would be in a sync."""
        parts = (just_stored(s.message, s.dead, s.replaced) for s in stored)
        messages = tuple(message for message in parts if message is not None)
        return cls.span(stored[0].message.prev, messages, stored[-1].message.ctime)

    @classmethod
    def span(cls, prev: Time, messages: tuple[InBandMessage, ...], cursor: Time) -> "Publication":
        """A publication of the messages after `prev` and up to `cursor` that still matter."""
        frame = Messages(prev, messages, cursor)
        text = encode(frame)
        scoped = any(m.device_id is not None and m.creation is not None for m in messages)
        return cls(prev, messages, cursor, len(text), None if scoped else Send(frame, text))

    def addressed_to(self, device_id: DeviceID) -> tuple[InBandMessage, ...]:
        """The messages for this device; the creations for another device are left out."""
        addressed = (message.addressed_to(device_id) for message in self.messages)
        return tuple(message for message in addressed if message is not None)
