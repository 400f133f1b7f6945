"""Publishes the messages that this node has stored to the other nodes, over a pub/sub."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from secrets import token_hex

import msgspec
from msgspec import Raw, Struct

from gregor.core.message import UID, InBandMessage, Message, parse_message
from gregor.errors import GregorError, Malformed
from gregor.interfaces import BatchConsumer
from gregor.protocol.frames import MAX_FRAME
from gregor.pubsub.interface import PubSub, Received

MAX_ENVELOPE_BYTES = MAX_FRAME
"""Every stored message fits in one frame to a device, and so in one envelope to another node."""

MAX_BATCH_BYTES = 64 * 1024
"""Messages share an envelope up to this size; a larger message has an envelope of its own. An
envelope costs the pub/sub and its subscribers about as much as a single message, but the more
messages share it, the more are lost with it."""

CHANNEL_PREFIX = "gregor:user:"


class Envelope(Struct, frozen=True, forbid_unknown_fields=True):
    """A payload on the pub/sub: messages of one user, in order, and the publishing node."""

    node: str
    messages: Sequence[Raw]


class Publisher(BatchConsumer):
    """A MessageConsumer that publishes messages on the user's channel. A lost payload is not an
    error for the sender: the message is stored, and the other nodes find it in the store.

    `node` is the name by which a node recognises its own payloads. It must be unique among all
    nodes, also of one process; by default it is random."""

    def __init__(self, pubsub: PubSub, node: str | None = None) -> None:
        self.pubsub = pubsub
        self.node = node or token_hex(8)

    async def consume_batch(self, messages: Sequence[Message]) -> None:
        """Publish messages. Messages of one user share envelopes."""
        by_user: defaultdict[UID, list[Message]] = defaultdict(list)
        for message in messages:
            by_user[message.uid].append(message)
        for uid, user_messages in by_user.items():
            for batch in _batches(map(_encode_message, user_messages)):
                await self.pubsub.publish(channel_of(uid), _encode_envelope(self.node, batch))


def channel_of(uid: UID) -> str:
    return CHANNEL_PREFIX + uid


def user_of(channel: str) -> UID:
    return channel.removeprefix(CHANNEL_PREFIX)


def encode_envelope(node: str, *messages: Message) -> bytes:
    """The payload with which a node publishes messages of one user."""
    return _encode_envelope(node, [_encode_message(message) for message in messages])


def _encode_envelope(node: str, messages: Sequence[Raw]) -> bytes:
    return msgspec.json.encode(Envelope(node, messages))


def _encode_message(message: Message) -> Raw:
    return Raw(msgspec.json.encode(message))


def _batches(messages: Iterable[Raw]) -> Iterator[list[Raw]]:
    batch: list[Raw] = []
    size = 0
    for message in messages:
        length = len(memoryview(message))
        if batch and size + length > MAX_BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += length
    yield batch


def decode_envelope(received: Received, own_node: str) -> list[Message]:
    """The messages of a payload; none if this node has published it. The payload is untrusted:
    raises Malformed unless it contains valid messages of the channel's user, stamped if they are
    in-band."""
    if len(received.payload) > MAX_ENVELOPE_BYTES:
        raise Malformed(f"the payload is too large: {len(received.payload)} bytes")
    try:
        envelope = msgspec.json.decode(received.payload, type=Envelope)
        if envelope.node == own_node:
            return []
        messages = [parse_message(message, stamped=True) for message in envelope.messages]
    except (msgspec.DecodeError, UnicodeError, RecursionError, GregorError) as error:
        raise Malformed(f"the payload is not an envelope: {error}") from error
    for message in messages:
        if channel_of(message.uid) != received.channel:
            raise Malformed("the envelope contains a message of another user")
        if isinstance(message, InBandMessage) and message.prev >= message.ctime:
            raise Malformed("a message in the envelope is not newer than its predecessor")
    return messages
