"""Publishes the messages that this node has stored to the other nodes, over a pub/sub."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw, Struct

from gregor.core.admission import check_text
from gregor.core.message import MAX_MSG_ID, UID, InBandMessage, Message, MsgID, parse_message
from gregor.core.sync import just_stored
from gregor.errors import GregorError, Malformed
from gregor.interfaces import Accepted, BatchConsumer, Relayed, Stored
from gregor.protocol.frames import MAX_FRAME
from gregor.pubsub.interface import PubSub, Received

MAX_ENVELOPE_BYTES = MAX_FRAME
"""Every stored message fits in one frame to a device, and so in one envelope to another node."""

MAX_BATCH_BYTES = 64 * 1024
"""Messages share an envelope up to this size; a larger message has an envelope of its own. An
envelope costs the pub/sub and its subscribers about as much as a single message, but the more
messages share it, the more are lost with it."""

CHANNEL_PREFIX = "gregor:user:"


ENVELOPE_VERSION = 1
"""Nodes of the next version may change the envelope, if they raise its version. For ever, it is a
JSON object whose field `version` has this number, or is left out for version 1, and its channel
names the user."""


class EnvelopeVersion(Struct, frozen=True, omit_defaults=True):
    """What can be read of an envelope of any version."""

    version: int = 1


class Envelope(EnvelopeVersion, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A payload on the pub/sub: messages of one user, in order, and the publishing node. So that no
    node asks the store, `dead` are the msg_ids of those whose item was dead when they were stored,
    and `replaced` has, by msg_id, the predecessor of each item that devices are not sent."""

    node: str
    messages: Sequence[Raw]
    dead: Sequence[MsgID] = ()
    replaced: Mapping[MsgID, MsgID] = {}


class ErasureNotice(EnvelopeVersion, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A payload that says that this node has erased the user of the channel. The epoch is not in
    it: payloads are untrusted, so the others read it from the store. A node that does not know this
    version reads the store as well."""

    version: Literal[2]
    node: str
    event: Literal["erased"]


class UnknownVersion(Exception):
    """The payload is an envelope of a version that this node does not know."""

    def __init__(self, version: int) -> None:
        super().__init__(f"an envelope of version {version}, which this node does not know")


class Publisher(BatchConsumer):
    """A MessageConsumer that publishes messages on the user's channel. A lost payload is not an
    error for the sender: the message is stored, and the other nodes find it in the store.

    `node` is the name by which a node recognises its own payloads. It must be unique among all
    nodes, also of one process; by default it is random."""

    def __init__(self, pubsub: PubSub, node: str | None = None) -> None:
        self.pubsub = pubsub
        self.node = node or token_hex(8)

    async def consume_batch(self, accepted: Sequence[Accepted]) -> None:
        """Publish messages. Messages of one user share envelopes."""
        by_user: defaultdict[UID, list[_Encoded]] = defaultdict(list)
        for outcome in accepted:
            by_user[outcome.message.uid].append(_encode(outcome))
        for uid, encoded in by_user.items():
            for batch in _batches(encoded):
                await self.pubsub.publish(channel_of(uid), _encode_envelope(self.node, batch))

    async def publish_erasure(self, uid: UID) -> None:
        """Publish that this node has erased the user."""
        payload = msgspec.json.encode(ErasureNotice(version=2, node=self.node, event="erased"))
        await self.pubsub.publish(channel_of(uid), payload)


def channel_of(uid: UID) -> str:
    return CHANNEL_PREFIX + uid


def user_of(channel: str) -> UID:
    return channel.removeprefix(CHANNEL_PREFIX)


class _Encoded(NamedTuple):
    """A message, and its JSON."""

    outcome: Accepted
    json: Raw


def encode_envelope(node: str, *accepted: Accepted) -> bytes:
    """The payload with which a node publishes messages of one user."""
    return _encode_envelope(node, [_encode(outcome) for outcome in accepted])


def _encode_envelope(node: str, encoded: Sequence[_Encoded]) -> bytes:
    stored = [outcome for outcome, _ in encoded if isinstance(outcome, Stored)]
    envelope = Envelope(
        node=node,
        messages=[json for _, json in encoded],
        dead=[outcome.message.msg_id for outcome in stored if outcome.dead],
        replaced=dict(_predecessors(stored)),
    )
    return msgspec.json.encode(envelope)


def _predecessors(stored: Iterable[Stored]) -> Iterator[tuple[MsgID, MsgID]]:
    """The msg_id of each message whose item is not sent to devices, and that of the predecessor, of
    which they are told instead."""
    for outcome in stored:
        if outcome.replaced is not None:
            sent = just_stored(outcome.message, outcome.dead)
            if sent is None or sent.creation is None:
                yield outcome.message.msg_id, outcome.replaced


def _encode(outcome: Accepted) -> _Encoded:
    return _Encoded(outcome, Raw(msgspec.json.encode(outcome.message)))


def _batches(encoded: Iterable[_Encoded]) -> Iterator[list[_Encoded]]:
    batch: list[_Encoded] = []
    size = 0
    for message in encoded:
        length = len(memoryview(message.json))
        if batch and size + length > MAX_BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(message)
        size += length
    yield batch


def decode_envelope(received: Received, own_node: str) -> list[Accepted] | ErasureNotice:
    """The messages of a payload, or the notice that it is; no messages if this node has published
    it. The payload is untrusted: raises Malformed unless it contains valid messages of the
    channel's user, stamped if they are in-band; UnknownVersion if it is an envelope of another
    version, of which nothing is known."""
    if len(received.payload) > MAX_ENVELOPE_BYTES:
        raise Malformed(f"the payload is too large: {len(received.payload)} bytes")
    try:
        envelope = _decode(received.payload)
        if envelope.node == own_node:
            return []
        if isinstance(envelope, ErasureNotice):
            return envelope
        messages = [parse_message(message, stamped=True) for message in envelope.messages]
        for predecessor in envelope.replaced.values():
            check_text("replaced", predecessor, MAX_MSG_ID)
    except (msgspec.DecodeError, UnicodeError, RecursionError, GregorError) as error:
        raise Malformed(f"the payload is not an envelope: {error}") from error
    for message in messages:
        if channel_of(message.uid) != received.channel:
            raise Malformed("the envelope contains a message of another user")
        if isinstance(message, InBandMessage) and message.prev >= message.ctime:
            raise Malformed("a message in the envelope is not newer than its predecessor")
    dead = frozenset(envelope.dead)
    return [_accepted(message, dead, envelope.replaced) for message in messages]


def _decode(payload: bytes) -> Envelope | ErasureNotice:
    try:
        envelope = msgspec.json.decode(payload, type=Envelope)
        version = envelope.version
    except msgspec.ValidationError:
        version = msgspec.json.decode(payload, type=EnvelopeVersion).version
        if version == ENVELOPE_VERSION:
            raise
        with suppress(msgspec.ValidationError):
            return msgspec.json.decode(payload, type=ErasureNotice)
    if version != ENVELOPE_VERSION:
        raise UnknownVersion(version)
    return envelope


def _accepted(
    message: Message, dead: Collection[MsgID], replaced: Mapping[MsgID, MsgID]
) -> Accepted:
    match message:
        case InBandMessage(msg_id=msg_id):
            return Stored(message, dead=msg_id in dead, replaced=replaced.get(msg_id))
        case _:
            return Relayed(message)
