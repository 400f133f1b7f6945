"""What a bucket contains in one shard: users, their messages, what is left of forgotten ones. Read
to copy and to compare a bucket that moves.

Each function runs inside the transaction of its caller.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from gregor.core.buckets import bucket_of
from gregor.core.instant import Time
from gregor.core.message import UID, MsgID
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.statements import (
    BucketKey,
    CopiedMessage,
    CopiedPruned,
    CopiedTombstone,
    PrunedMessage,
    Statement,
)

R = TypeVar("R")
C = TypeVar("C", Time, MsgID)

MAX_PAGE_ROWS = 512  # that one transaction copies
MAX_PAGE_USERS = 10_000


class Extent(NamedTuple):
    """What a user's row says, and the number of messages in the log."""

    ctime: Time
    mark: Time = 0
    floor: Time = 0
    epoch: Time = 0
    erased_at: Time = 0
    messages: int = 0

    @property
    def has_forgotten(self) -> bool:
        """Whether the log does not tell everything: messages of this life may be pruned."""
        return self.floor > self.epoch

    def is_ahead_of(self, other: "Extent | None") -> bool:
        """Whether the clock, the mark, the floor or the epoch is later."""
        mine = (self.ctime, self.mark, self.floor, self.epoch)
        theirs = (0, 0, 0, 0) if other is None else other[: len(mine)]
        return any(ours > their for ours, their in zip(mine, theirs, strict=True))

    def is_complete_in(self, copy: "Extent | None") -> bool:
        """Whether a copy has everything. It has more messages if some were pruned here since."""
        return copy is not None and copy[:-1] == self[:-1] and copy.messages >= self.messages

    def is_continued_by(self, copy: "Extent | None") -> bool:
        """Whether a copy lacks nothing but the messages after its clock."""
        return (
            copy is not None
            and (copy.mark, copy.floor, copy.epoch) == (self.mark, self.floor, self.epoch)
            and copy.ctime < self.ctime
        )


class Load(NamedTuple):
    """The contents of a bucket: messages, and ids of forgotten ones. The bytes are those of the
    messages, without indexes."""

    users: int = 0
    messages: int = 0
    pruned: int = 0
    bytes: int = 0


def extents(connection: DatabaseConnection, buckets: Iterable[int]) -> dict[UID, Extent]:
    """The extents of the users of these buckets who have something here."""
    rows = connection.execute_rows(statements.USERS_OF_BUCKETS, map(BucketKey, buckets))
    return {row.uid: Extent(*row[1:]) for row in rows}


# Page by page


class Kind(NamedTuple, Generic[R, C]):
    """A kind of rows. A page has the next ones of these users after the cursor of each, one user
    after the other; if it has fewer than MAX_PAGE_ROWS rows, it is the last one."""

    page: Callable[[DatabaseConnection, Mapping[UID, C]], list[R]]
    place_of: Callable[[R], tuple[UID, C]]


def _page(
    statement: Statement[R], connection: DatabaseConnection, cursors: Mapping[UID, C]
) -> list[R]:
    rows: list[R] = []
    for uid, after in cursors.items():
        limit = MAX_PAGE_ROWS - len(rows)
        rows += connection.execute(statement, uid=uid, after=after, limit=limit)
        if len(rows) == MAX_PAGE_ROWS:
            break
    return rows


def _digests(connection: DatabaseConnection, cursors: Mapping[UID, Time]) -> list[PrunedMessage]:
    return [
        PrunedMessage(row.uid, row.msg_id, row.ctime, message_of(row).contents_digest())
        for row in MESSAGES.page(connection, cursors)
    ]


MESSAGES: Kind[CopiedMessage, Time] = Kind(
    partial(_page, statements.COPIED_MESSAGES), lambda row: (row.uid, row.ctime)
)
"""The messages of the logs, not reduced. The cursors are ctimes."""

DIGESTS: Kind[PrunedMessage, Time] = Kind(_digests, lambda row: (row.uid, row.ctime))
"""The same, in the form that is left of messages when they are forgotten."""

PRUNED: Kind[CopiedPruned, MsgID] = Kind(
    partial(_page, statements.COPIED_PRUNED), lambda row: (row.uid, row.msg_id)
)
"""What is left of forgotten messages. The cursors are ids."""

TOMBSTONES: Kind[CopiedTombstone, MsgID] = Kind(
    partial(_page, statements.COPIED_TOMBSTONES), lambda row: (row.uid, row.msg_id)
)
"""The ids that were dismissed and have not arrived. The cursors are ids."""


def loads(connection: DatabaseConnection, buckets: Iterable[int]) -> dict[int, Load]:
    """The loads of these buckets here, whether this shard holds them or not; empty ones are left
    out. Reads all their messages."""
    rows = connection.execute_rows(statements.LOADS, map(BucketKey, buckets))
    return {row.bucket: Load(*row[1:]) for row in rows}


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
