"""Tells the other nodes what this one has stored, over a pub/sub."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import msgspec
from msgspec import Raw, Struct

from gregor.core.message import UID, InBandMessage, Message, parse_message
from gregor.errors import GregorError, Malformed
from gregor.interfaces import BatchConsumer
from gregor.protocol.frames import MAX_FRAME
from gregor.pubsub.interface import PubSub, Received

MAX_PUBLICATION = MAX_FRAME
"""In bytes. Whatever is stored can be told to a device in one frame, and so to another node."""

FULL = 64 * 1024
"""In bytes. Messages share a publication, which costs the pub/sub and all who hear it about as
much as one message does; but what is lost with it is to be little."""

CHANNELS = "gregor:user:"


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """What travels between nodes: messages of one user, in order, and which node says so."""

    node: str
    messages: Sequence[Raw]


class Publisher(BatchConsumer):
    """A MessageConsumer that publishes on the user's channel. It never fails its sender: the
    message is stored, and whoever does not hear of it now will find it."""

    def __init__(self, pubsub: PubSub, node: str) -> None:
        self.pubsub = pubsub
        self.node = node

    async def consume_batch(self, messages: Sequence[Message]) -> None:
        users: defaultdict[UID, list[Message]] = defaultdict(list)
        for message in messages:
            users[message.uid].append(message)
        for uid, theirs in users.items():
            for batch in _filled(map(_encoded, theirs)):
                await self.pubsub.publish(channel_of(uid), _sealed(self.node, batch))


def channel_of(uid: UID) -> str:
    return CHANNELS + uid


def user_of(channel: str) -> UID:
    return channel.removeprefix(CHANNELS)


def seal(node: str, *messages: Message) -> bytes:
    """What a node publishes when it has stored, or passes on, messages of one user."""
    return _sealed(node, [_encoded(message) for message in messages])


def _sealed(node: str, messages: Sequence[Raw]) -> bytes:
    return msgspec.json.encode(Envelope(node, messages))


def _encoded(message: Message) -> Raw:
    return Raw(msgspec.json.encode(message))


def _filled(messages: Iterable[Raw]) -> Iterator[list[Raw]]:
    batch: list[Raw] = []
    size = 0
    for message in messages:
        length = len(memoryview(message))
        if batch and size + length > FULL:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += length
    yield batch


def open_envelope(received: Received, reader: str) -> list[Message]:
    """The messages in a payload, which anybody may have put there; none if it is the echo of what
    the reader has published. Raises Malformed if they are not stored messages of the channel's
    user."""
    if len(received.payload) > MAX_PUBLICATION:
        raise Malformed(f"a publication of {len(received.payload)} bytes")
    try:
        envelope = msgspec.json.decode(received.payload, type=Envelope)
        if envelope.node == reader:
            return []
        messages = [parse_message(message, stamped=True) for message in envelope.messages]
    except (msgspec.DecodeError, UnicodeError, RecursionError, GregorError) as error:
        raise Malformed(f"not a publication: {error}") from error
    for message in messages:
        if channel_of(message.uid) != received.channel:
            raise Malformed("a publication of another user")
        if isinstance(message, InBandMessage) and message.prev >= message.ctime:
            raise Malformed("a publication that was never stored")
    return messages
