"""Tells the other nodes what this one has stored, over a pub/sub."""

from typing import TypeVar

import msgspec
from msgspec import Raw, Struct

from gregor.core.message import UID, InBandMessage, Message, parse_message
from gregor.errors import GregorError, Malformed
from gregor.protocol.frames import MAX_FRAME
from gregor.pubsub.interface import PubSub, Received

MAX_PUBLICATION = MAX_FRAME
"""In bytes. Whatever is stored can be told to a device in one frame, and so to another node."""

CHANNELS = "gregor:user:"

M = TypeVar("M", bound=Message)


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """What travels between nodes: a message, and which node says so."""

    node: str
    message: Raw


class Publisher:
    """A MessageConsumer that publishes on the user's channel. It never fails its sender: the
    message is stored, and whoever does not hear of it now will find it."""

    def __init__(self, pubsub: PubSub, node: str) -> None:
        self.pubsub = pubsub
        self.node = node

    async def consume_message(self, message: Message) -> Message:
        await self.pubsub.publish(channel_of(message.uid), seal(self.node, message))
        return message


def channel_of(uid: UID) -> str:
    return CHANNELS + uid


def user_of(channel: str) -> UID:
    return channel.removeprefix(CHANNELS)


def seal(node: str, message: Message) -> bytes:
    """What a node publishes when it has stored, or passes on, a message."""
    return msgspec.json.encode(Envelope(node, Raw(msgspec.json.encode(message))))


def open_envelope(received: Received) -> tuple[str, Message]:
    """The node and the message in a payload, which anybody may have put there.
    Raises Malformed if it is not a stored message of the channel's user."""
    if len(received.payload) > MAX_PUBLICATION:
        raise Malformed(f"a publication of {len(received.payload)} bytes")
    try:
        envelope = msgspec.json.decode(received.payload, type=Envelope)
        message = parse_message(envelope.message, stamped=True)
    except (msgspec.DecodeError, UnicodeError, RecursionError, GregorError) as error:
        raise Malformed(f"not a publication: {error}") from error
    if channel_of(message.uid) != received.channel:
        raise Malformed("a publication of another user")
    if isinstance(message, InBandMessage) and message.prev >= message.ctime:
        raise Malformed("a publication that was never stored")
    return envelope.node, message
