"""The transaction that erases a user.

An erase is a history floor at the epoch with nothing kept. To raise an epoch is idempotent and does
not depend on an order, so the same function removes what other shards have left of the user.
"""

from collections.abc import Collection, Sequence

from gregor.core.buckets import bucket_of
from gregor.core.instant import Time
from gregor.core.message import UID
from gregor.core.sync import UserTime
from gregor.interfaces import NEVER_ERASED, Erasure
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.statements import Erasing, PendingErasure, UserKey, UserRow
from gregor.stores.sql.transactions import closed_users, lock_existing

MAX_ERASURES_READ = 100
MAX_ROWS_DELETED = 20_000  # by one statement: none may take long


def read_erasure(connection: DatabaseConnection, uid: UID) -> Erasure:
    """The user's last erase."""
    return next(iter(connection.execute(statements.ERASURE, uid=uid)), NEVER_ERASED)


def erase(
    connection: DatabaseConnection,
    uid: UID,
    now: Time,
    others: Collection[str] = (),
    *,
    any_bucket: bool = False,
) -> Erasure:
    """Delete everything of the user, and record that the `others`, which are shards, may have old
    copies; this one is left out. Raises WrongShard if this shard accepts no messages of the user;
    with `any_bucket`, it is not asked. Each call erases again, also a user who is not known."""
    connection.execute_rows(statements.INSERT_USERS, [UserRow(uid, bucket_of(uid))])
    (user,) = lock_existing(connection, [UserKey(uid)]).values()
    for error in () if any_bucket else closed_users(connection, [uid]).values():
        raise error
    time = UserTime(user.ctime, user.mark, user.floor)
    erasure = Erasure(epoch=time.next_ctime(now), erased_at=now)
    raise_epoch(connection, uid, erasure)
    pending = [PendingErasure(shard, uid, *erasure) for shard in others]
    connection.execute_rows(statements.UPSERT_PENDING_ERASURES, pending)
    return erasure


def raise_epoch(connection: DatabaseConnection, uid: UID, erasure: Erasure) -> bool:
    """Delete what this database has of a user up to an erase, and return whether it knows the user.
    One whom it does not know stays unknown. Idempotent."""
    user = lock_existing(connection, [UserKey(uid)]).get(uid)
    if user is not None and user.epoch < erasure.epoch:
        for table in statements.ERASED_IN_PARTS:
            _delete(connection, table, uid, erasure.epoch)
        connection.execute(statements.DELETE_ERASED_KEYS, uid=uid, epoch=erasure.epoch)
        connection.execute(statements.DELETE_SCOPE_HASHES, uid=uid)
        connection.execute(statements.RAISE_EPOCH, uid=uid, **erasure._asdict())
    return user is not None


def _delete(connection: DatabaseConnection, table: Erasing, uid: UID, epoch: Time) -> None:
    after = table.first
    while found := connection.execute(table.key_at, uid=uid, after=after, rows=MAX_ROWS_DELETED):
        last = found[0].key
        connection.execute(table.delete_up_to, uid=uid, after=after, last=last, epoch=epoch)
        after = last
    connection.execute(table.delete_rest, uid=uid, after=after, epoch=epoch)


# Old copies on other shards


def pending_erasures(connection: DatabaseConnection, shard: str) -> list[PendingErasure]:
    """The next erasures of users, who were here, that the other shard has not heard of."""
    return connection.execute(statements.PENDING_ERASURES, shard=shard, limit=MAX_ERASURES_READ)


def remove_copies(connection: DatabaseConnection, erasures: Sequence[PendingErasure]) -> bool:
    """Remove what this shard has of users who were erased on another; return whether it knows one
    of them. The erasures are in the order of uids."""
    known = [raise_epoch(connection, e.uid, Erasure(e.epoch, e.erased_at)) for e in erasures]
    return any(known)


def forget_pending(connection: DatabaseConnection, done: Sequence[PendingErasure]) -> None:
    """Forget that these erasures were pending. Later ones of the same users stay."""
    connection.execute_rows(statements.DELETE_PENDING_ERASURES, done)
