"""What a bucket contains in one shard: users, messages, their extents and digests. Read to copy
and to compare a bucket that moves.

Each function runs inside the transaction of its caller.
"""

from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from typing import NamedTuple

from msgspec.json import encode

from gregor.core.buckets import bucket_of
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.statements import BucketKey, LoggedMessage, UserMark

MAX_PAGE_MESSAGES = 512  # that one transaction copies
MAX_PAGE_USERS = 10_000


class Extent(NamedTuple):
    """A user's clock and mark, and the number of messages in the log."""

    ctime: Time
    mark: Time
    messages: int

    def is_ahead_of(self, other: "Extent | None") -> bool:
        """Whether the clock or the mark is later."""
        return other is None or self.ctime > other.ctime or self.mark > other.mark


class Load(NamedTuple):
    """The contents of a bucket; the bytes are those of the messages, without indexes."""

    users: int
    messages: int
    bytes: int


def extents(connection: DatabaseConnection, buckets: Iterable[int]) -> dict[UID, Extent]:
    """The extents of the users of these buckets who have messages here."""
    rows = connection.execute_rows(statements.USERS_OF_BUCKETS, map(BucketKey, buckets))
    return {row.uid: Extent(row.ctime, row.mark, row.messages) for row in rows}


def advance_clocks(connection: DatabaseConnection, extents: Mapping[UID, Extent]) -> None:
    """Advance the clocks and the marks of these users to those of a shard whose messages have been
    copied here. Idempotent."""
    rows = [UserMark(uid, extent.ctime, extent.mark) for uid, extent in extents.items()]
    connection.execute_rows(statements.ADVANCE_CLOCKS, rows)


def page(connection: DatabaseConnection, cursors: Mapping[UID, Time]) -> list[InBandMessage]:
    """The next messages of these users after the cursor of each, one user after the other, and not
    reduced. A page of fewer than MAX_PAGE_MESSAGES messages is the last one."""
    return [message_of(row) for _, row in _page(connection, cursors)]


class Digest(NamedTuple):
    """A message as a hash of its contents, without `prev`: a predecessor may arrive later."""

    uid: UID
    ctime: Time
    sha256: str


def digests(connection: DatabaseConnection, cursors: Mapping[UID, Time]) -> list[Digest]:
    """The messages that `page` returns, as digests."""
    return [
        Digest(uid, row.ctime, sha256(encode(message_of(row).stamp(row.ctime, 0))).hexdigest())
        for uid, row in _page(connection, cursors)
    ]


def _page(
    connection: DatabaseConnection, cursors: Mapping[UID, Time]
) -> Iterator[tuple[UID, LoggedMessage]]:
    limit = MAX_PAGE_MESSAGES
    for uid, cursor in cursors.items():
        rows = connection.execute(statements.MESSAGES_FROM, uid=uid, start=cursor + 1, limit=limit)
        yield from ((uid, row) for row in rows)
        limit -= len(rows)
        if not limit:
            return


def loads(connection: DatabaseConnection, buckets: Iterable[int]) -> dict[int, Load]:
    """The loads of these buckets here, whether this shard holds them or not; empty ones are left
    out. Reads all their messages."""
    rows = connection.execute_rows(statements.LOADS, map(BucketKey, buckets))
    return {row.bucket: Load(row.users, row.messages, row.bytes) for row in rows}


class UserPage(NamedTuple):
    """A page of checked users; `last` is the last of them, None if no users were left. The stored
    bucket of a misplaced user is not the bucket of its uid, so queries by bucket do not find it."""

    last: UID | None
    misplaced_users: list[UID]


def misplaced_users(connection: DatabaseConnection, after: UID) -> UserPage:
    """Check the stored buckets of the next users after this one."""
    rows = connection.execute(statements.USERS_AFTER, after=after, limit=MAX_PAGE_USERS)
    return UserPage(
        rows[-1].uid if rows else None,
        [row.uid for row in rows if row.bucket != bucket_of(row.uid)],
    )
