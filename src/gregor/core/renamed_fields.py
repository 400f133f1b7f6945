"""Converts messages of earlier versions, whose creations have `dtime` in place of `expires`.

Used by the migrations of stores and of client stores. Do not change it: a migration must do the
same at every version.
"""

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType


class _OldCreation(Struct, rename={"expires": "dtime"}):
    category: Raw
    body: Raw
    expires: Raw | UnsetType = UNSET


class _OldMessage(Struct):
    uid: Raw
    msg_id: Raw
    ctime: int = 0
    prev: int = 0
    device_id: str | None = None
    creation: _OldCreation | None = None
    dismissal: Raw | UnsetType = UNSET


class _Creation(Struct, omit_defaults=True):
    category: Raw
    body: Raw
    expires: Raw | UnsetType = UNSET


class _Message(Struct, omit_defaults=True):
    uid: Raw
    msg_id: Raw
    ctime: int = 0
    prev: int = 0
    device_id: str | None = None
    creation: _Creation | None = None
    dismissal: Raw | UnsetType = UNSET


_decoder = msgspec.json.Decoder(_OldMessage)


def with_expires(message: bytes | str | Raw) -> bytes:
    """The JSON of the message with `dtime` renamed to `expires`. The body is copied byte for
    byte. Not idempotent: a message that already has `expires` would lose it."""
    old = _decoder.decode(message)
    creation = None
    if old.creation is not None:
        creation = _Creation(old.creation.category, old.creation.body, old.creation.expires)
    return msgspec.json.encode(
        _Message(old.uid, old.msg_id, old.ctime, old.prev, old.device_id, creation, old.dismissal)
    )
