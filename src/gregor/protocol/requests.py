"""The request bodies of the HTTP API that are not one message, and what the parameters may be.

A server reads each entry of `messages` and `uids` by itself."""

from typing import Literal, TypeAlias, get_args

from msgspec import Raw, Struct

from gregor.core.message import UID
from gregor.limits import DEFAULT_LIMITS

MAX_USERS = DEFAULT_LIMITS.uids
# Enough for a message of the largest size to MAX_USERS users with the longest ids.
MAX_REQUEST = 8 * 1024 * 1024
MAX_STATE_ITEMS = 500  # in a page of a state

EPOCH_HEADER = "Gregor-Epoch"
"""The header in which a device says with a write which epoch of its user it knows."""

JSON_LINES = "application/jsonl"
SQLITE_FILE = "application/vnd.sqlite3"
"""The media types of an export and of a backup."""

Order: TypeAlias = Literal["oldest", "newest"]
"""Which items of a state come first."""

ORDERS: tuple[Order, ...] = get_args(Order)


class BatchRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Up to 500 messages, each accepted or rejected independently of the others."""

    messages: tuple[Raw, ...]


class MultiUserRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """One message for many users, under one msg_id; each uid is accepted or rejected independently
    of the others."""

    uids: tuple[UID, ...]
    message: Raw


class PruneRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Forget now what is past for as long as `older_than` says, a duration such as `30d`; by
    default, for as long as the server keeps history."""

    older_than: str | None = None
