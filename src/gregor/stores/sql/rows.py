"""Messages, as they are in the rows of a store."""

from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from gregor.core.instant import Time
from gregor.core.message import InBandMessage


class _Logged(Protocol):
    """A row with a message."""

    @property
    def ctime(self) -> Time: ...
    @property
    def prev(self) -> Time: ...
    @property
    def message(self) -> str: ...


def message_of(row: _Logged) -> InBandMessage:
    """The message of a row, stamped."""
    return _decoder.decode(row.message).stamp(row.ctime, row.prev)


def body_of(message: str) -> Raw:
    """The body of a stored creation, as bytes. All of it was checked before it was stored."""
    return _decode_body(message).creation.body


class _StoredCreation(Struct):
    body: Raw


class _StoredBody(Struct):
    """What is needed of a stored message for its item: the rest is in columns."""

    creation: _StoredCreation


def json_of(value: object) -> str:
    """The value as it is stored."""
    return _encoder.encode(value).decode()


def size_of(json: str) -> int:
    """In bytes, as the database counts it."""
    return len(json) if json.isascii() else len(json.encode())


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(InBandMessage)
_decode_body = msgspec.json.Decoder(_StoredBody).decode
