"""Publishes the messages that this node has stored to the other nodes, over a pub/sub."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Literal, NamedTuple

import msgspec
from msgspec import Raw, Struct

from gregor.clock import now
from gregor.consumers.channels import Channels, UnsignedChannels
from gregor.core.admission import check_text
from gregor.core.instant import Time
from gregor.core.message import MAX_MSG_ID, UID, InBandMessage, Message, MsgID, parse_message
from gregor.core.sync import just_stored
from gregor.errors import GregorError, Malformed
from gregor.interfaces import Accepted, BatchConsumer, Relayed, Stored
from gregor.pubsub.interface import PubSub

MAX_BATCH_BYTES = 64 * 1024
"""Messages share an envelope up to this size; a larger message has an envelope of its own. An
envelope costs the pub/sub and its subscribers about as much as a single message, but the more
messages share it, the more are lost with it."""

ENVELOPE_VERSION = 1
"""Nodes of the next version may change the envelope, if they raise its version. For ever, it is a
JSON object whose field `version` has this number, or is left out for version 1, and its channel
names the user."""


class EnvelopeVersion(Struct, frozen=True, omit_defaults=True):
    """What can be read of an envelope of any version."""

    version: int = 1


class Envelope(EnvelopeVersion, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a node publishes of one user: messages, in order, and the name of the node. So that no
    node asks the store, `dead` are the msg_ids of those whose item was dead when they were stored,
    and `replaced` has, by msg_id, the predecessor of each item that devices are not sent."""

    node: str
    messages: Sequence[Raw]
    dead: Sequence[MsgID] = ()
    replaced: Mapping[MsgID, MsgID] = {}


class ErasureNotice(EnvelopeVersion, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What says that this node has erased the user of the channel. The epoch is not in it: the
    others read it from the store, so that no notice can erase. A node that does not know this
    version reads the store as well."""

    version: Literal[2]
    node: str
    event: Literal["erased"]


class UnknownVersion(Exception):
    """It is an envelope of a version that this node does not know."""

    def __init__(self, version: int) -> None:
        super().__init__(f"an envelope of version {version}, which this node does not know")


class Publisher(BatchConsumer):
    """A MessageConsumer that publishes messages on the user's channel. A lost payload is not an
    error for the sender: the message is stored, and the other nodes find it in the store.

    `node` is the name by which a node recognises its own payloads. It must be unique among all
    nodes, also of one process; by default it is random.

    A Node that is opened with it sets its `channels`, which are those of the store's deployment,
    and its `clock`."""

    def __init__(self, pubsub: PubSub, node: str | None = None) -> None:
        self.pubsub = pubsub
        self.node = node or token_hex(8)
        self.channels: Channels = UnsignedChannels()
        self.clock: Callable[[], Time] = now

    async def consume_batch(self, accepted: Sequence[Accepted]) -> None:
        """Publish messages. Messages of one user share envelopes."""
        by_user: defaultdict[UID, list[_Encoded]] = defaultdict(list)
        for outcome in accepted:
            by_user[outcome.message.uid].append(_encode(outcome))
        for uid, encoded in by_user.items():
            for batch in _batches(encoded):
                await self.publish(self.channels.of(uid), _encode_envelope(self.node, batch))

    async def publish_erasure(self, uid: UID) -> None:
        """Publish that this node has erased the user."""
        notice = ErasureNotice(version=2, node=self.node, event="erased")
        await self.publish(self.channels.of(uid), msgspec.json.encode(notice))

    async def publish(self, channel: str, json: bytes) -> None:
        """Publish this JSON on one of the channels, signed."""
        await self.pubsub.publish(channel, self.channels.sign(channel, json, self.clock()))


class _Encoded(NamedTuple):
    """A message, and its JSON."""

    outcome: Accepted
    json: Raw


def encode_envelope(node: str, *accepted: Accepted) -> bytes:
    """The JSON with which a node publishes messages of one user."""
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


def decode_envelope(uid: UID, json: bytes, own_node: str) -> list[Accepted] | ErasureNotice:
    """The messages that were published for this user, or the notice that it is; no messages if this
    node has published it. Raises Malformed unless it contains valid messages of the user, stamped
    if they are in-band; UnknownVersion if it is an envelope of another version, of which nothing is
    known. The texts have nothing of what was published."""
    try:
        envelope = _decode(json)
        if envelope.node == own_node:
            return []
        if isinstance(envelope, ErasureNotice):
            return envelope
        messages = [parse_message(message, stamped=True) for message in envelope.messages]
        for predecessor in envelope.replaced.values():
            check_text("replaced", predecessor, MAX_MSG_ID)
    except (msgspec.DecodeError, UnicodeError, RecursionError, GregorError) as error:
        raise Malformed("the payload is not a valid envelope") from error
    for message in messages:
        if message.uid != uid:
            raise Malformed("the envelope contains a message of another user")
        if isinstance(message, InBandMessage) and message.prev >= message.ctime:
            raise Malformed("a message in the envelope is not newer than its predecessor")
    dead = frozenset(envelope.dead)
    return [_accepted(message, dead, envelope.replaced) for message in messages]


def _decode(json: bytes) -> Envelope | ErasureNotice:
    try:
        envelope = msgspec.json.decode(json, type=Envelope)
        version = envelope.version
    except msgspec.ValidationError:
        version = msgspec.json.decode(json, type=EnvelopeVersion).version
        if version == ENVELOPE_VERSION:
            raise
        with suppress(msgspec.ValidationError):
            return msgspec.json.decode(json, type=ErasureNotice)
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
