"""The copy of a bucket on the shard to which it moves, while it is made.

A copy of a user has no floor until it is complete, so one that was interrupted is made again. Each
step is a transaction of the target. It raises Outdated, and changes nothing, if the bucket has been
claimed since the copy was begun, or if a user has been erased since the input of the step was read:
an erase raises the epoch of each copy that there is.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from gregor.core.buckets import bucket_of
from gregor.core.instant import Time
from gregor.core.message import UID
from gregor.interfaces import Slot, StoreOutcome
from gregor.shards.bucket_contents import Extent
from gregor.shards.shard_map import Outdated, require_newest
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.statements import (
    CopiedMessage,
    CopiedPruned,
    CopiedTombstone,
    CopiedUser,
    Death,
    NewCopy,
    Placement,
    PrunedMessage,
    UserKey,
)
from gregor.stores.sql.transactions import lock_existing, store_copies

Claim = Sequence[Placement]
"""The placements of the buckets of a move, as their holder has claimed them for it."""


def begin(connection: DatabaseConnection, claim: Claim, extents: Mapping[UID, Extent]) -> None:
    """Begin copies of these users with nothing but their epochs."""
    require_newest(connection, claim)
    keys = [UserKey(uid) for uid in extents]
    lock_existing(connection, keys)
    for statement in statements.DELETE_COPIES:
        connection.execute_rows(statement, keys)
    rows = [NewCopy(uid, bucket_of(uid), e.epoch, e.erased_at) for uid, e in extents.items()]
    connection.execute_rows(statements.BEGIN_COPIES, rows)


def store_messages(
    connection: DatabaseConnection, claim: Claim, rows: Sequence[CopiedMessage], now: Time
) -> list[StoreOutcome]:
    """Store messages, with the deaths of their items that do not follow from other messages."""
    _require_current(connection, claim, rows)
    deaths = [Death(row.uid, row.msg_id, row.died_at) for row in rows if row.died_at is not None]
    connection.execute_rows(statements.INSERT_TOMBSTONES, deaths)
    return store_copies(connection, [Slot(message_of(row), row.author) for row in rows], now)


def store_pruned(
    connection: DatabaseConnection, claim: Claim, rows: Sequence[CopiedPruned]
) -> None:
    """Store what is left of forgotten messages."""
    _require_current(connection, claim, rows)
    pruned = [PrunedMessage(row.uid, row.msg_id, row.ctime, row.digest) for row in rows]
    connection.execute_rows(statements.INSERT_COPIED_PRUNED, pruned)


def store_tombstones(
    connection: DatabaseConnection, claim: Claim, rows: Sequence[CopiedTombstone]
) -> None:
    """Store dismissed ids that have not arrived."""
    _require_current(connection, claim, rows)
    deaths = [Death(row.uid, row.msg_id, row.ctime) for row in rows]
    connection.execute_rows(statements.INSERT_TOMBSTONES, deaths)


def finish(connection: DatabaseConnection, claim: Claim, extents: Mapping[UID, Extent]) -> None:
    """Say that the copies of these users are complete: give them their clocks, marks and floors."""
    require_newest(connection, claim)
    _require_epochs(connection, {uid: extent.epoch for uid, extent in extents.items()})
    rows = [CopiedUser(uid, e.ctime, e.mark, e.floor) for uid, e in extents.items()]
    connection.execute_rows(statements.FINISH_COPIES, rows)


class _Row(Protocol):
    """A row of a user with this epoch."""

    @property
    def uid(self) -> UID: ...
    @property
    def epoch(self) -> Time: ...


def _require_current(connection: DatabaseConnection, claim: Claim, rows: Sequence[_Row]) -> None:
    require_newest(connection, claim)
    _require_epochs(connection, {row.uid: row.epoch for row in rows})


def _require_epochs(connection: DatabaseConnection, epochs: Mapping[UID, Time]) -> None:
    """Raises Outdated unless the copies of these users have these epochs, until the commit."""
    users = lock_existing(connection, [UserKey(uid) for uid in epochs])
    if {uid: user.epoch for uid, user in users.items()} != epochs:
        raise Outdated("a user was erased while it was copied")
