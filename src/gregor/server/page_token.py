"""Page tokens: where the next page of a state begins, for one user and one query.

A token is opaque to callers. It holds all that the next page needs, so that any server can answer
it, and keeps nothing on a server. Its digest finds damage and mistakes; it is no protection against
a forger, who may read the state of that user anyway.
"""

from base64 import b64decode, urlsafe_b64encode
from contextlib import suppress
from hashlib import sha256
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import astuple

from gregor.core.admission import check_text
from gregor.core.instant import TimeOrOffset
from gregor.core.message import MAX_MSG_ID, UID, Ctime, MsgID
from gregor.core.state_page import PageStart, StateQuery
from gregor.errors import InvalidMessage, Malformed

DIGEST_BYTES = 16

_Hash = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class _Contents(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """The fields of a PageStart, with the bounds that they have if a server made them."""

    as_of: Ctime
    known: Ctime
    hash: _Hash
    after_time: Ctime
    after_id: MsgID

    def __post_init__(self) -> None:
        check_text("after_id", self.after_id, MAX_MSG_ID)


class StateRequest(Struct, frozen=True):
    """What was asked for, on every page of one reading. Their `limit` may differ."""

    uid: UID
    query: StateQuery
    at: TimeOrOffset | None

    def token_of(self, start: PageStart) -> str:
        """The token with which the same request is answered from this start."""
        contents = msgspec.json.encode(astuple(start))
        return urlsafe_b64encode(self._digest(contents) + contents).decode().rstrip("=")

    def start_of(self, token: str) -> PageStart:
        """Where the page of this token begins. Raises Malformed if it was not given for this
        request."""
        with suppress(ValueError, InvalidMessage):
            start = _start_in(token)
            if self.token_of(start) == token:
                return start
        raise Malformed(
            "`page` is not the `next_page` of an answer to this request: repeat the request that"
            " was answered with it, unchanged but for `page` and `limit`, or begin without `page`",
            field="page",
        )

    def _digest(self, contents: bytes) -> bytes:
        query = self.query
        selection = (query.device_id, sorted(set(query.prefixes)), query.key, query.newest_first)
        asked = msgspec.json.encode((self.uid, self.at, selection))
        return sha256(asked + contents).digest()[:DIGEST_BYTES]


def _start_in(token: str) -> PageStart:
    """Raises ValueError or InvalidMessage if there is none."""
    padded = token + "=" * (-len(token) % 4)
    contents = b64decode(padded, b"-_", validate=True)[DIGEST_BYTES:]
    return PageStart(*astuple(_decoder.decode(contents)))


_decoder = msgspec.json.Decoder(_Contents)
