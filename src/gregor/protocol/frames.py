"""The frames of the conversation, and their one JSON encoding. `spec/protocol.md` in types."""

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Raw, Struct

from gregor.core.instant import MAX_TIME, Time
from gregor.core.message import (
    MAX_BATCH,
    MAX_BODY,
    MAX_MESSAGE,
    UID,
    DeviceID,
    InBandMessage,
    MsgID,
    check_text,
    field_of,
)
from gregor.core.state import Changes, DismissedRange, Item, Snapshot, Sync
from gregor.errors import GregorError, Malformed, Turn
from gregor.interfaces import Duplicate, Outcome, Passed, Rejected, Stored

PROTOCOL = 1
MAX_FRAME = 1024 * 1024
PAGE_BYTES = 256 * 1024
PAGE_ENTRIES = 500

T = TypeVar("T")
Cursor: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TIME)]


class Frame(Struct, frozen=True, tag_field="type", forbid_unknown_fields=True, omit_defaults=True):
    """One JSON object of the conversation."""


# Device to node


class Hello(Frame, frozen=True, tag="hello", kw_only=True):
    """Who I am and what I know. The first frame of every conversation."""

    token: Annotated[str, Meta(max_length=8192)]
    device_id: Annotated[str, Meta(min_length=1, max_length=128)]
    cursor: Cursor = 0
    protocol: int

    def __post_init__(self) -> None:
        check_text("device_id", self.device_id, 128)


class Consume(Frame, frozen=True, tag="consume"):
    """Messages from this device. Each is read on its own, so that a bad one spoils no other."""

    n: int
    messages: tuple[Raw, ...]


class Verify(Frame, frozen=True, tag="verify"):
    """Send me a sync from this cursor, with its hash; from 0, a snapshot."""

    cursor: Cursor


DeviceFrame: TypeAlias = Hello | Consume | Verify


# Node to device


class Limits(Struct, frozen=True):
    """What the node takes."""

    messages: int = MAX_BATCH
    message_bytes: int = MAX_MESSAGE
    body_bytes: int = MAX_BODY
    frame_bytes: int = MAX_FRAME


class Welcome(Frame, frozen=True, tag="welcome"):
    uid: UID
    device_id: DeviceID
    now: Time
    limits: Limits


class SyncPage(Frame, frozen=True, tag="sync"):
    """Part of a Sync. Changes continue `prev`; a snapshot continues nothing, and has 0 there.
    `cursor` is what the replica knows after this page (of a snapshot: after the last). With
    `more`, another page follows. The hash is that of the whole."""

    mode: Literal["changes", "snapshot"]
    prev: Time
    cursor: Time
    as_of: Time
    hash: str
    more: bool = False
    messages: tuple[InBandMessage, ...] = ()
    items: tuple[Item, ...] = ()
    dismissed_ids: tuple[tuple[MsgID, Time], ...] = ()
    dismissed_ranges: tuple[DismissedRange, ...] = ()


class Messages(Frame, frozen=True, tag="messages"):
    """What came after `prev`, up to `cursor`, for this device."""

    prev: Time
    messages: tuple[InBandMessage, ...]
    cursor: Time


class OutOfBand(Frame, frozen=True, tag="out_of_band"):
    system: str
    body: Raw


class Problem(Struct, frozen=True, omit_defaults=True):
    """An error as data: the code, a sentence, and whose turn it is."""

    code: str
    message: str
    turn: Turn
    field: str | None = None

    @classmethod
    def of(cls, error: GregorError) -> "Problem":
        return cls(error.code, error.message, error.turn, error.field)


class Result(Struct, frozen=True, omit_defaults=True):
    """What became of one message. `passed` is an out-of-band one; only `rejected` has an error."""

    status: Literal["stored", "duplicate", "rejected", "passed"]
    uid: UID | None = None
    msg_id: MsgID | None = None
    ctime: Time | None = None
    error: Problem | None = None

    @property
    def to_repeat(self) -> bool:
        """Whether the message was not taken for now: its part of the store did not answer."""
        return self.error is not None and self.error.turn is Turn.RETRY

    @classmethod
    def of(cls, outcome: Outcome) -> "Result":
        match outcome:
            case Stored(message):
                return cls("stored", message.uid, message.msg_id, message.ctime)
            case Duplicate(message):
                return cls("duplicate", message.uid, message.msg_id, message.ctime)
            case Rejected(InBandMessage() as message, error):
                return cls("rejected", message.uid, message.msg_id, error=Problem.of(error))
            case Rejected(message, error):
                return cls("rejected", message.uid, error=Problem.of(error))
            case Passed(message):
                return cls("passed", message.uid)


class Ack(Frame, frozen=True, tag="ack"):
    n: int
    results: tuple[Result, ...]


class Error(Frame, frozen=True, tag="error"):
    """Something went wrong. With `n`, the consume of that number was not looked at."""

    code: str
    message: str
    turn: Turn
    field: str | None = None
    n: int | None = None

    @classmethod
    def of(cls, error: GregorError, n: int | None = None) -> "Error":
        return cls(error.code, error.message, error.turn, error.field, n)


class GoAway(Frame, frozen=True, tag="goaway"):
    """Connect again, elsewhere or here, at a random moment within this time."""

    reconnect_after_ms: int


NodeFrame: TypeAlias = Welcome | SyncPage | Messages | OutOfBand | Ack | Error | GoAway


_encoder = msgspec.json.Encoder()
_device_decoder: msgspec.json.Decoder[DeviceFrame] = msgspec.json.Decoder(DeviceFrame)
_node_decoder: msgspec.json.Decoder[NodeFrame] = msgspec.json.Decoder(NodeFrame)


Entry: TypeAlias = InBandMessage | Item | tuple[MsgID, Time] | DismissedRange


def encode(frame: Struct) -> str:
    """The frame as the text that travels."""
    return _encoder.encode(frame).decode()


def decode_device_frame(text: str | bytes) -> DeviceFrame:
    """What a device said. Raises Malformed, which names the field."""
    return _decode(_device_decoder, text)


def decode_node_frame(text: str | bytes) -> NodeFrame:
    """What a node said. Raises Malformed, which names the field."""
    return _decode(_node_decoder, text)


def pages(sync: Sync, start: Time) -> Iterator[SyncPage]:
    """A sync from the cursor `start` as the frames that carry it, none large; at least one."""
    match sync.content:
        case Changes(messages):
            mode: Literal["changes", "snapshot"] = "changes"
            entries: list[tuple[str, Entry]] = [("messages", message) for message in messages]
        case Snapshot(items, ids, ranges):
            mode, start = "snapshot", 0
            entries = [
                *(("items", item) for item in items),
                *(("dismissed_ids", id_) for id_ in ids),
                *(("dismissed_ranges", range_) for range_ in ranges),
            ]
    chunks = list(_chunks(entries))
    for number, chunk in enumerate(chunks, start=1):
        more = number < len(chunks)
        last = chunk[-1][1] if chunk else None
        # A page of changes can be applied at once, so that a broken line costs no repetition.
        cursor = last.ctime if more and isinstance(last, InBandMessage) else sync.cursor
        contents: dict[str, list[Entry]] = {}
        for name, entry in chunk:
            contents.setdefault(name, []).append(entry)
        page = {name: tuple(part) for name, part in contents.items()}
        blank = SyncPage(mode, start, cursor, sync.as_of, sync.hash, more)
        yield msgspec.structs.replace(blank, **page)
        start = cursor if mode == "changes" else 0


def weight(entry: Entry) -> int:
    """About how many bytes it takes in a frame."""
    return len(_encoder.encode(entry))


def _chunks(entries: list[tuple[str, Entry]]) -> Iterator[list[tuple[str, Entry]]]:
    chunk: list[tuple[str, Entry]] = []
    size = 0
    for named in entries:
        size += weight(named[1])
        if chunk and (size > PAGE_BYTES or len(chunk) == PAGE_ENTRIES):
            yield chunk
            chunk, size = [], weight(named[1])
        chunk.append(named)
    yield chunk


def _decode(decoder: msgspec.json.Decoder[T], text: str | bytes) -> T:
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise Malformed(str(error), field=field_of(error)) from error
    except GregorError as error:
        raise Malformed(error.message, field=error.field) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Malformed(f"not a JSON object: {error}") from error
    except RecursionError as error:
        raise Malformed("the JSON is nested too deeply") from error
