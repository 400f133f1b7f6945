"""Messages and items, as they are in the rows of a store."""

from typing import Protocol

import msgspec
from msgspec import Raw, Struct

from gregor.core.instant import Time
from gregor.core.message import InBandMessage
from gregor.core.state import Item
from gregor.stores.sql.statements import FOREVER, StoredItem


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


def item_of(row: StoredItem) -> Item:
    """The item of a row. Only the body is taken from the JSON, as bytes: the rest is in columns,
    and all of it was checked before it was stored."""
    return Item(
        row.msg_id,
        row.ctime,
        row.category,
        _body_decoder.decode(row.message).creation.body,
        row.device_id,
        None if row.expires_at == FOREVER else row.expires_at,
        row.starts_at,
        row.key,
    )


class _StoredCreation(Struct):
    body: Raw


class _StoredBody(Struct):
    """What is needed of a stored message for its item."""

    creation: _StoredCreation


def json_of(value: object) -> str:
    """The value as it is stored."""
    return _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(InBandMessage)
_body_decoder = msgspec.json.Decoder(_StoredBody)
