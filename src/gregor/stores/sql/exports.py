"""What a store knows of its users, read page by page for an export.

A page of a user is one transaction, and most users have one page. The parts of a user come in an
order in which nothing can be missed: an id that was dismissed and has not arrived is read before
the deaths of stored items, in case it arrives meanwhile, and a message is read before what is left
of forgotten ones.
"""

from collections.abc import Callable
from typing import NamedTuple

from gregor.core.export import (
    ExportedMessage,
    ExportedPruned,
    ExportedTombstone,
    ExportedUser,
    ExportPage,
    ExportPlace,
    Record,
)
from gregor.core.message import UID
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.rows import message_of

PAGE_ROWS = 200


def users_after(connection: DatabaseConnection, uid: UID, limit: int) -> list[UID]:
    """The next users after this uid who have something here, which may be an old copy."""
    rows = connection.execute(statements.KNOWN_USERS_AFTER, after=uid, limit=limit)
    return [row.uid for row in rows]


def read_export_page(connection: DatabaseConnection, uid: UID, place: ExportPlace) -> ExportPage:
    """What there is of the user from this place on, up to a number of rows."""
    rows = connection.execute(statements.USER_LINE, uid=uid)
    user = ExportedUser(*rows[0]) if rows else ExportedUser(uid)
    records: list[Record] = []
    for part in range(place.part, len(_PARTS)):
        start = place if part == place.part else ExportPlace(part)
        limit = PAGE_ROWS - len(records)
        found = _PARTS[part](connection, uid, start, limit)
        records += [row.record for row in found]
        if len(found) == limit:
            return ExportPage(user, tuple(records), found[-1].place)
    return ExportPage(user, tuple(records))


class _Placed(NamedTuple):
    """A record, and the place after it."""

    record: Record
    place: ExportPlace


_Part = Callable[[DatabaseConnection, UID, ExportPlace, int], list[_Placed]]


def _tombstones(
    connection: DatabaseConnection, uid: UID, start: ExportPlace, limit: int
) -> list[_Placed]:
    """The ids that were dismissed and have not arrived."""
    statement = statements.COPIED_TOMBSTONES
    rows = connection.execute(statement, uid=uid, after=start.msg_id, limit=limit)
    return [
        _Placed(ExportedTombstone(uid, row.msg_id, row.ctime), start._replace(msg_id=row.msg_id))
        for row in rows
    ]


def _deaths(
    connection: DatabaseConnection, uid: UID, start: ExportPlace, limit: int
) -> list[_Placed]:
    """The deaths of stored items of which the messages may be forgotten."""
    statement = statements.FORGOTTEN_DEATHS
    rows = connection.execute(statement, uid=uid, after=start.ctime, limit=limit)
    return [
        _Placed(
            ExportedTombstone(uid, row.msg_id, row.dismissed_at), start._replace(ctime=row.ctime)
        )
        for row in rows
    ]


def _messages(
    connection: DatabaseConnection, uid: UID, start: ExportPlace, limit: int
) -> list[_Placed]:
    statement = statements.COPIED_MESSAGES
    rows = connection.execute(statement, uid=uid, after=start.ctime, limit=limit)
    return [
        _Placed(ExportedMessage.of(message_of(row), row.author), start._replace(ctime=row.ctime))
        for row in rows
    ]


def _pruned(
    connection: DatabaseConnection, uid: UID, start: ExportPlace, limit: int
) -> list[_Placed]:
    statement = statements.COPIED_PRUNED
    rows = connection.execute(statement, uid=uid, after=start.msg_id, limit=limit)
    return [
        _Placed(
            ExportedPruned(uid, row.msg_id, row.ctime, row.digest),
            start._replace(msg_id=row.msg_id),
        )
        for row in rows
    ]


_PARTS: tuple[_Part, ...] = (_tombstones, _deaths, _messages, _pruned)
