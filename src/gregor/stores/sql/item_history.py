"""The transaction that reads what became of one item, and why: a few look-ups, however much there
is."""

from gregor.core.instant import Time
from gregor.core.item_history import Authored, ItemHistory, Trace, history_of
from gregor.core.message import UID, MsgID
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.statements import AuthoredMessage, ItemKey


def read_item_history(
    connection: DatabaseConnection, uid: UID, msg_id: MsgID, now: Time
) -> ItemHistory:
    return history_of(uid, msg_id, _read_trace(connection, uid, msg_id), now)


def _read_trace(connection: DatabaseConnection, uid: UID, msg_id: MsgID) -> Trace:
    for row in connection.execute(statements.MESSAGE_WITH_ID, uid=uid, msg_id=msg_id):
        killer = _read_killer(connection, uid, row.dismissed_at)
        return Trace(_authored(row), died_at=row.dismissed_at, killer=killer)
    forgotten = _read_forgotten(connection, uid, msg_id)
    if forgotten is not None:
        return Trace(forgotten=forgotten)
    keys = [ItemKey(uid, msg_id)]
    for tombstone in connection.execute_rows(statements.MATCHING_TOMBSTONES, keys):
        killer = _read_killer(connection, uid, tombstone.ctime)
        return Trace(died_at=tombstone.ctime, killer=killer)
    return Trace()


def _read_forgotten(connection: DatabaseConnection, uid: UID, msg_id: MsgID) -> Time | None:
    """When the message was stored whose contents are forgotten; None if they are not."""
    # Without a floor there may be no table of forgotten messages yet.
    head = connection.execute(statements.USER_HEAD, uid=uid, device_id="")
    if not head or not head[0].floor:
        return None
    rows = connection.execute_rows(statements.PRUNED_MESSAGES, [ItemKey(uid, msg_id)])
    return rows[0].ctime if rows else None


def _read_killer(connection: DatabaseConnection, uid: UID, died_at: Time | None) -> Authored | None:
    if died_at is None:
        return None
    rows = connection.execute(statements.MESSAGE_AT, uid=uid, ctime=died_at)
    return _authored(rows[0]) if rows else None


def _authored(row: AuthoredMessage) -> Authored:
    return Authored(message_of(row), row.author)
