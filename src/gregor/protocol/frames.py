"""The frames of the conversation and their JSON encoding, as specified in `spec/protocol.md`."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from gregor.core.admission import check_id, check_text
from gregor.core.instant import MAX_TIME, Time
from gregor.core.message import (
    UID,
    DeviceID,
    InBandMessage,
    MsgID,
    field_of,
)
from gregor.core.state import Item
from gregor.core.sync import Changes, Snapshot, Sync
from gregor.errors import Action, Erased, GregorError, LimitExceeded, Malformed, error_from_code
from gregor.interfaces import Duplicate, Outcome, Rejected, Relayed, Stored
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.protocol.json_parts import array_elements, members_before_error, object_members

PROTOCOL = 2
MAX_TOKEN = 8192
MAX_FRAME = DEFAULT_LIMITS.frame_bytes
PAGE_BYTES = 256 * 1024
PAGE_ENTRIES = 500

S = TypeVar("S")
T = TypeVar("T")
E = TypeVar("E", InBandMessage, Item)
Cursor: TypeAlias = Annotated[Time, Meta(ge=0, le=MAX_TIME)]
"""A time that is checked when it arrives: a device keeps it, and sends it in its next hello."""


class Frame(Struct, frozen=True, tag_field="type", omit_defaults=True):
    """One JSON object of the conversation."""


# Device to node. A node rejects an unknown field and names it: ignoring it would lose its contents.


class _StrictFrame(Frame, frozen=True, forbid_unknown_fields=True):
    pass


class Hello(_StrictFrame, frozen=True, tag="hello", kw_only=True):
    """The first frame of every conversation: the device's token, id and cursor."""

    token: Annotated[str, Meta(max_length=MAX_TOKEN)]
    device_id: Annotated[str, Meta(min_length=1, max_length=128)]
    cursor: Cursor = 0
    epoch: Cursor | None = None
    protocol: int

    def __post_init__(self) -> None:
        check_text("device_id", self.device_id, 128)
        check_id("device_id", self.device_id)


class Consume(_StrictFrame, frozen=True, tag="consume"):
    """Messages from this device. Each is parsed separately, so one that is invalid, or not even
    JSON, affects no other."""

    n: int
    messages: tuple[Raw, ...]


class _ConsumeNumber(Frame, frozen=True, tag="consume"):
    n: int


class Verify(_StrictFrame, frozen=True, tag="verify"):
    """Requests a sync from this cursor, with its hash; from 0, a snapshot."""

    cursor: Cursor


DeviceFrame: TypeAlias = Hello | Consume | Verify


# Node to device. A device ignores unknown frame types and fields (see later_versions.py).


class Welcome(Frame, frozen=True, tag="welcome"):
    """The token is valid. `epoch` is the user's; None: this node is of a version without epochs."""

    uid: UID
    device_id: DeviceID
    now: Cursor
    limits: Limits
    epoch: Cursor | None = None


class SyncPage(Frame, frozen=True, tag="sync"):
    """One page of a Sync. Changes continue `prev`; in a snapshot it is 0. `cursor` is the cursor
    of the replica after this page (of a snapshot: after the last page). With `more`, another page
    follows. The hash is that of the state after the last page."""

    mode: Literal["changes", "snapshot"]
    prev: Cursor
    cursor: Cursor
    as_of: Cursor
    hash: str
    more: bool = False
    messages: tuple[InBandMessage, ...] = ()
    items: tuple[Item, ...] = ()


class Messages(Frame, frozen=True, tag="messages"):
    """The messages for this device after `prev`, up to `cursor` inclusive."""

    prev: Cursor
    messages: tuple[InBandMessage, ...]
    cursor: Cursor


class OutOfBand(Frame, frozen=True, tag="out_of_band"):
    system: str
    body: Raw


class Exceeded(NamedTuple):
    """Of an error `limit`: the limit, its maximum, and how long to wait, if that helps."""

    limit: str | None = None
    maximum: int | None = None
    retry_after_ms: int | None = None


def exceeded(error: GregorError) -> Exceeded:
    """What the error says of a limit: nothing, if it is not about one."""
    if not isinstance(error, LimitExceeded):
        return Exceeded()
    return Exceeded(error.limit, error.maximum, error.retry_after_ms)


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error as data: the code, a message for people, and the action of the receiver. Only
    `erased` has an `epoch`; only `limit` has the name of the `limit`, its `maximum`, and, where
    waiting helps, `retry_after_ms`."""

    code: str
    message: str
    action: Action
    field: str | None = None
    epoch: Cursor | None = None
    limit: str | None = None
    maximum: int | None = None
    retry_after_ms: int | None = None

    @classmethod
    def of(cls, error: GregorError) -> "Problem":
        epoch = error.epoch if isinstance(error, Erased) else None
        return cls(error.code, error.message, error.action, error.field, epoch, *exceeded(error))

    def error(self) -> GregorError:
        """The error that it describes."""
        return error_from_code(
            self.code,
            self.message,
            self.field,
            self.action,
            self.epoch,
            limit=self.limit,
            maximum=self.maximum,
            retry_after_ms=self.retry_after_ms,
        )


class Result(Struct, frozen=True, omit_defaults=True):
    """The result of one message: `relayed` if it is out-of-band; only `rejected` has an error.

    Of a message that is stored it says whether its item is `visible` now on the devices that it is
    for, and when it starts and expires; `stored` also how many items its dismissal has `dismissed`,
    and the id of the one whose place it has taken (`replaced`)."""

    status: Literal["stored", "duplicate", "rejected", "relayed"]
    uid: UID | None = None
    msg_id: MsgID | None = None
    ctime: Cursor | None = None
    error: Problem | None = None
    visible: bool | None = None
    starts_at: Time | None = None
    expires_at: Time | None = None
    dismissed: int | None = None
    replaced: MsgID | None = None

    @property
    def should_retry(self) -> bool:
        """Whether to retry the message: the shard that holds its user did not answer, or a rate is
        used up."""
        return self.error is not None and self.error.action is Action.RETRY

    @classmethod
    def of(cls, outcome: Outcome) -> "Result":
        match outcome:
            case Stored() as stored:
                return cls._of_stored("stored", stored, stored.dismissed, stored.replaced)
            case Duplicate() as duplicate:
                return cls._of_stored("duplicate", duplicate)
            case Rejected(InBandMessage() as message, error):
                return cls("rejected", message.uid, message.msg_id, error=Problem.of(error))
            case Rejected(message, error):
                uid = None if message is None else message.uid
                return cls("rejected", uid, error=Problem.of(error))
            case Relayed(message):
                return cls("relayed", message.uid)

    @classmethod
    def _of_stored(
        cls,
        status: Literal["stored", "duplicate"],
        outcome: Stored | Duplicate,
        dismissed: int | None = None,
        replaced: MsgID | None = None,
    ) -> "Result":
        message = outcome.message
        ended = outcome.dead or outcome.expired
        return cls(
            status,
            message.uid,
            message.msg_id,
            message.ctime,
            visible=message.creation is not None and not (ended or outcome.scheduled),
            starts_at=message.starts_at,
            expires_at=message.expires_at,
            dismissed=dismissed,
            replaced=replaced,
        )


class Ack(Frame, frozen=True, tag="ack"):
    n: int
    results: tuple[Result, ...]


class Error(Frame, frozen=True, tag="error"):
    """An error. With `n`, the consume of that number was not processed."""

    code: str
    message: str
    action: Action
    field: str | None = None
    n: int | None = None
    limit: str | None = None
    maximum: int | None = None
    retry_after_ms: int | None = None

    @classmethod
    def of(cls, error: GregorError, n: int | None = None) -> "Error":
        return cls(error.code, error.message, error.action, error.field, n, *exceeded(error))

    def problem(self) -> Problem:
        """The same without the number of the consume."""
        return Problem(
            self.code,
            self.message,
            self.action,
            self.field,
            limit=self.limit,
            maximum=self.maximum,
            retry_after_ms=self.retry_after_ms,
        )


class GoAway(Frame, frozen=True, tag="goaway"):
    """Asks the device to reconnect, to any node, after a random delay of up to this time."""

    reconnect_after_ms: int


class UserErased(Frame, frozen=True, tag="erased"):
    """The user with this uid was erased, at this ctime. The device wipes what it holds of the user;
    the conversation ends."""

    epoch: Cursor
    uid: UID | None = None


NodeFrame: TypeAlias = Welcome | SyncPage | Messages | OutOfBand | Ack | Error | GoAway | UserErased


_encoder = msgspec.json.Encoder()
_device_decoder: msgspec.json.Decoder[DeviceFrame] = msgspec.json.Decoder(DeviceFrame)
_number_decoder = msgspec.json.Decoder(_ConsumeNumber)


def encode(frame: Struct) -> str:
    """The frame as JSON text."""
    return _encoder.encode(frame).decode()


def decode_device_frame(text: str | bytes) -> DeviceFrame:
    """Decode a frame of a device. Raises Malformed, which names the field if there is one."""
    return decode(_decode_device_frame, text)


def _decode_device_frame(text: str | bytes) -> DeviceFrame:
    try:
        return _device_decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        fields = object_members(_utf8(text))
        if "messages" not in fields:
            raise
        return _decode_apart(fields)


def _decode_apart(fields: dict[str, Raw]) -> DeviceFrame:
    """Decode a consume of which not every message is JSON: first all but the messages."""
    messages = array_elements(fields["messages"])
    consume = _device_decoder.decode(msgspec.json.encode({**fields, "messages": ()}))
    return msgspec.structs.replace(consume, messages=messages)


def consume_number(text: str) -> int | None:
    """The `n` of a consume that cannot be decoded; None if it is not a consume, or has no `n`."""
    fields = dict(members_before_error(_utf8(text)))
    numbered = {name: fields[name] for name in ("type", "n") if name in fields}
    try:
        return _number_decoder.decode(msgspec.json.encode(numbered)).n
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _utf8(text: str | bytes) -> bytes:
    return text.encode(errors="surrogatepass") if isinstance(text, str) else text


def pages(sync: Sync, start: Time) -> Iterator[SyncPage]:
    """Split what is read of a sync from the cursor `start` into pages of limited size; at least one
    page."""
    match sync.content:
        case Changes(messages):
            yield from _pages_of_changes(sync, messages, start)
        case Snapshot(items):
            chunks = list(_chunks(items))
            for number, chunk in enumerate(chunks, start=1):
                page = SyncPage("snapshot", 0, sync.cursor, sync.as_of, sync.hash)
                more = number < len(chunks) or sync.rest is not None
                yield msgspec.structs.replace(page, more=more, items=chunk)


def _pages_of_changes(
    sync: Sync, messages: Sequence[InBandMessage], start: Time
) -> Iterator[SyncPage]:
    chunks = list(_chunks(messages))
    for number, chunk in enumerate(chunks, start=1):
        more = number < len(chunks)
        # The device applies each page of changes at once; a reconnect continues after it.
        cursor = chunk[-1].ctime if more else sync.cursor
        page = SyncPage("changes", start, cursor, sync.as_of, sync.hash, more)
        yield msgspec.structs.replace(page, messages=chunk)
        start = cursor


def encoded_size(entry: InBandMessage | Item) -> int:
    """Approximately how many bytes the entry adds to a frame."""
    return len(_encoder.encode(entry))


def _chunks(entries: Sequence[E]) -> Iterator[tuple[E, ...]]:
    chunk: list[E] = []
    size = 0
    for entry in entries:
        size += encoded_size(entry)
        if chunk and (size > PAGE_BYTES or len(chunk) == PAGE_ENTRIES):
            yield tuple(chunk)
            chunk, size = [], encoded_size(entry)
        chunk.append(entry)
    yield tuple(chunk)


def decode(decode_text: Callable[[S], T], text: S) -> T:
    """Decode a text. Each error is raised as Malformed, which names the field if there is one."""
    try:
        return decode_text(text)
    except msgspec.ValidationError as error:
        raise Malformed(str(error), field=field_of(error)) from error
    except GregorError as error:
        raise Malformed(error.message, field=error.field) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Malformed(f"not a JSON object: {error}") from error
    except RecursionError as error:
        raise Malformed("the JSON is nested too deeply") from error
