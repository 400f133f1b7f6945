"""Decodes frames of later versions: a device ignores unknown frame types and fields.

So the protocol can grow without a new version number, and old devices stay connected to new nodes.
All other code decodes messages strictly. Each type that forbids unknown fields, and that a
`messages` or `sync` frame carries, therefore has a lenient counterpart here. It is used only after
strict decoding has failed, and is converted to the strict type before it leaves this module.
"""

from typing import TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from gregor.core.instant import TimeOrOffset
from gregor.core.message import Creation, Dismissal, InBandMessage, KeyDismissal, Range
from gregor.errors import InvalidMessage
from gregor.protocol.frames import (
    Ack,
    Error,
    GoAway,
    Messages,
    NodeFrame,
    OutOfBand,
    SyncPage,
    UserErased,
    Welcome,
    decode,
)

T = TypeVar("T")


class _LenientTime(TimeOrOffset, frozen=True, forbid_unknown_fields=False):
    pass


class _LenientCreation(Creation, frozen=True, forbid_unknown_fields=False):
    expires: _LenientTime | None = None
    starts: _LenientTime | None = None


class _LenientRange(Range, frozen=True, forbid_unknown_fields=False):
    end_time: _LenientTime | None = None


class _LenientKey(KeyDismissal, frozen=True, forbid_unknown_fields=False):
    end_time: _LenientTime | None = None


class _LenientDismissal(Dismissal, frozen=True, forbid_unknown_fields=False):
    ranges: tuple[_LenientRange, ...] = ()
    keys: tuple[_LenientKey, ...] = ()


class _LenientMessage(InBandMessage, frozen=True, forbid_unknown_fields=False):
    creation: _LenientCreation | None = None
    dismissal: _LenientDismissal | None = None

    def __post_init__(self) -> None:
        """A message without a known creation or dismissal is valid here; it is dropped later."""


class _LenientMessages(Messages, frozen=True, tag="messages"):
    messages: tuple[_LenientMessage, ...]


class _LenientSyncPage(SyncPage, frozen=True, tag="sync"):
    messages: tuple[_LenientMessage, ...] = ()


_LenientFrame: TypeAlias = (
    Welcome | _LenientSyncPage | _LenientMessages | OutOfBand | Ack | Error | GoAway | UserErased
)
_strict_decoder: msgspec.json.Decoder[NodeFrame] = msgspec.json.Decoder(NodeFrame)
_lenient_decoder: msgspec.json.Decoder[_LenientFrame] = msgspec.json.Decoder(_LenientFrame)
_KNOWN_TAGS = frozenset(
    frame_type.__struct_config__.tag
    for frame_type in (Welcome, SyncPage, Messages, OutOfBand, Ack, Error, GoAway, UserErased)
)


class _AnyFrame(Struct):
    type: str


_type_decoder = msgspec.json.Decoder(_AnyFrame)


def decode_node_frame(text: str | bytes) -> NodeFrame | None:
    """Decode a frame of a node, without unknown fields; None if the frame type is unknown.
    Raises Malformed, which names the field, if it is not a frame of any version."""
    return decode(_decode_any_version, text)


def _decode_any_version(text: str | bytes) -> NodeFrame | None:
    try:
        return _strict_decoder.decode(text)
    except (msgspec.ValidationError, InvalidMessage):
        return _decode_lenient(text)


def _decode_lenient(text: str | bytes) -> NodeFrame | None:
    if _type_decoder.decode(text).type not in _KNOWN_TAGS:
        return None
    match _lenient_decoder.decode(text):
        case _LenientMessages(prev=prev, messages=messages, cursor=cursor):
            return Messages(prev, _without_unknown(messages), cursor)
        case _LenientSyncPage() as page:
            fields = {name: getattr(page, name) for name in SyncPage.__struct_fields__}
            return SyncPage(**{**fields, "messages": _without_unknown(page.messages)})
        case frame:
            return frame


def _without_unknown(messages: tuple[_LenientMessage, ...]) -> tuple[InBandMessage, ...]:
    known = (m for m in messages if m.creation is not None or m.dismissal)
    return tuple(_strict(message, InBandMessage) for message in known)


_STRICT_TYPES: dict[type[Struct], type[Struct]] = {
    _LenientTime: TimeOrOffset,
    _LenientCreation: Creation,
    _LenientRange: Range,
    _LenientKey: KeyDismissal,
    _LenientDismissal: Dismissal,
}


def _strict(lenient: Struct, strict_type: type[T]) -> T:
    """The strict value that corresponds to a lenient one."""
    fields = {name: _strict_field(getattr(lenient, name)) for name in lenient.__struct_fields__}
    return strict_type(**fields)


def _strict_field(field: object) -> object:
    match field:
        case Struct() if type(field) in _STRICT_TYPES:
            return _strict(field, _STRICT_TYPES[type(field)])
        case tuple():
            return tuple(_strict_field(element) for element in field)
        case _:
            return field
