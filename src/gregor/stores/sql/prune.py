"""The transaction that forgets what is past, in small steps (decision 40).

A walk first goes over the users: what is past loses its contents, and its id and a digest of the
contents are kept. Then it goes over the ids: those that are old enough are forgotten. A step looks
at a few users or ids, changes a few rows, and commits, so that no writer waits for long; it costs
little where there is nothing to prune. Steps are idempotent: a walk that was interrupted leaves
nothing to be repaired.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from gregor.core.facts import dismissed_keys
from gregor.core.history import Cutoff
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage, MsgID
from gregor.interfaces import PruneStep
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.dialect import ROWS, encode_rows
from gregor.stores.sql.hashes import account_for_expiries
from gregor.stores.sql.leases import Lease
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.schema import require_writer
from gregor.stores.sql.statements import (
    ItemKey,
    KeyCtime,
    PrunedMessage,
    UserClock,
    UserFloor,
    UserKey,
)
from gregor.stores.sql.transactions import closed_users, lock_existing

# What one step looks at or changes, at most.
STEP_USERS = 200
STEP_USERS_WRITTEN = 20
STEP_MESSAGES = 100
STEP_IDS = 1_000
STEP_PAGES = 250  # of an SQLite file that are given back

TABLES = {"pruned": statements.PRUNED_IDS, "dismissed_ids": statements.TOMBSTONES}
"""The ids, in the order in which a walk goes over them."""


class _Place(NamedTuple):
    """Where a step begins: after this id of a table. Text that cannot be a uid, which has no
    NUL."""

    table: str
    uid: UID = ""
    msg_id: MsgID = ""

    @classmethod
    def in_text(cls, text: str) -> "_Place | None":
        """None if it is a user, or the beginning."""
        return cls(*text[1:].split("\0")) if text.startswith("\0") else None

    @property
    def text(self) -> str:
        return "\0" + "\0".join(self)


def prune(
    connection: DatabaseConnection,
    lease: Lease,
    cutoff: Cutoff,
    after: str,
    now: Time,
    *,
    any_bucket: bool = False,
) -> PruneStep:
    """Take the step after this place, and return what it has done and where the next one begins.
    Users whose bucket another shard holds, or is moving, are left out, but for `any_bucket`. Raises
    LeaseHeld if another node prunes this database."""
    lease.take(connection)
    require_writer(connection)
    if connection.dialect.has_row_locks:
        connection.execute(statements.LOCK_AS_WRITER)
    place = _Place.in_text(after)
    if place is None:
        step = _forget_contents(connection, cutoff, after, now, any_bucket)
    else:
        step = _forget_ids(connection, cutoff, place, any_bucket)
    if not connection.dialect.has_row_locks:
        _give_pages_back(connection)
    if step.last is None:
        lease.give_up(connection)
    return step


def _give_pages_back(connection: DatabaseConnection) -> None:
    """Let an SQLite file shrink by some of the pages that are free. (Python's driver steps through
    this pragma once, whatever number it is given: that is one page.)"""
    ((free,),) = connection.execute_sql("PRAGMA freelist_count")
    for _ in range(min(free, STEP_PAGES)):
        connection.execute_sql("PRAGMA incremental_vacuum(1)")


# Contents


def _forget_contents(
    connection: DatabaseConnection, cutoff: Cutoff, after: UID, now: Time, any_bucket: bool
) -> PruneStep:
    users = connection.execute(statements.USERS_AFTER, after=after, limit=STEP_USERS)
    if not users:
        return PruneStep(_Place("pruned").text)
    floor = min(cutoff.floor, now)
    uids = _writable(connection, (user.uid for user in users), any_bucket)
    found = _find(connection, _to_prune(connection, uids, floor), floor)
    last = users[-1].uid if found.all else [after, *found.finished][-1]
    if not found.messages:
        return PruneStep(last)
    raised = _raise_floors(connection, {message.uid for message in found.messages}, floor, now)
    messages = _take(connection, found.messages)
    kept = [message for message in messages if message.ctime > cutoff.ids]
    connection.execute_rows(statements.ADD_PRUNED, map(_pruned, kept))
    return PruneStep(last, raised, len(messages), len(messages) - len(kept))


def _writable(
    connection: DatabaseConnection, uids: Iterable[UID], any_bucket: bool
) -> Sequence[UID]:
    """Those of the users whom this shard holds and may write. That stays true until the commit."""
    uids = list(uids)
    closed: Mapping[UID, object] = {} if any_bucket else closed_users(connection, uids)
    return [uid for uid in uids if uid not in closed]


def _to_prune(connection: DatabaseConnection, uids: Sequence[UID], floor: Time) -> Sequence[UID]:
    """Those of the users who have past messages, in order."""
    rows = connection.execute(
        statements.USERS_TO_PRUNE, **{ROWS: encode_rows(map(UserKey, uids)), "floor": floor}
    )
    found = {row.uid for row in rows}
    return [uid for uid in uids if uid in found]


class _Found(NamedTuple):
    """Past messages, the users of whom these are all, in order, and whether these are all users."""

    messages: Sequence[UserClock]
    finished: Sequence[UID]
    all: bool


def _find(connection: DatabaseConnection, uids: Sequence[UID], floor: Time) -> _Found:
    """The first past messages of these users, as many as a step takes."""
    messages: list[UserClock] = []
    for number, uid in enumerate(uids):
        if number == STEP_USERS_WRITTEN:
            return _Found(messages, uids[:number], all=False)
        limit = STEP_MESSAGES - len(messages)
        messages += connection.execute(statements.PAST_MESSAGES, uid=uid, floor=floor, limit=limit)
        if len(messages) == STEP_MESSAGES:
            return _Found(messages, uids[:number], all=False)
    return _Found(messages, uids, all=True)


def _raise_floors(
    connection: DatabaseConnection, uids: Iterable[UID], floor: Time, now: Time
) -> int:
    """Lock the users and raise their floors, when their sums have nothing that will go. Returns
    how many had a lower floor: each once in a walk, however many steps a user takes."""
    users = lock_existing(connection, [UserKey(uid) for uid in uids])
    lagging = {uid: user for uid, user in users.items() if user.hashed_until < floor}
    account_for_expiries(connection, lagging, now)
    floors = [UserFloor(uid, floor) for uid in users]
    return len(connection.execute_rows(statements.RAISE_FLOORS, floors))


def _take(connection: DatabaseConnection, past: Sequence[UserClock]) -> list[InBandMessage]:
    """Delete these messages, with the rows of what they dismiss, and return those that there
    were: of what has been found, some may have gone before the users were locked."""
    messages = [
        message_of(row) for row in connection.execute_rows(statements.DELETE_MESSAGES, past)
    ]
    ranges = [UserClock(m.uid, m.ctime) for m in messages if m.dismissal and m.dismissal.ranges]
    if ranges:
        connection.execute_rows(statements.DELETE_RANGES, ranges)
    keys = [KeyCtime(m.uid, key.key, m.ctime) for m in messages for key in dismissed_keys(m)]
    if keys:
        connection.execute_rows(statements.DELETE_KEYS, keys)
    return messages


def _pruned(message: InBandMessage) -> PrunedMessage:
    return PrunedMessage(message.uid, message.msg_id, message.ctime, message.contents_digest())


# Ids


def _forget_ids(
    connection: DatabaseConnection, cutoff: Cutoff, place: _Place, any_bucket: bool
) -> PruneStep:
    table = TABLES[place.table]
    ids = connection.execute(table.after, uid=place.uid, msg_id=place.msg_id, limit=STEP_IDS)
    old = [id_ for id_ in ids if id_.ctime <= cutoff.ids]
    if old:
        writable = set(_writable(connection, {id_.uid for id_ in old}, any_bucket))
        old = [id_ for id_ in old if id_.uid in writable]
        connection.execute_rows(table.delete, [ItemKey(id_.uid, id_.msg_id) for id_ in old])
    return PruneStep(_next_place(place, ids), ids=len(old))


def _next_place(place: _Place, ids: Sequence[statements.KnownID]) -> str | None:
    if len(ids) == STEP_IDS:
        return place._replace(uid=ids[-1].uid, msg_id=ids[-1].msg_id).text
    after = [*TABLES, None][[*TABLES].index(place.table) + 1]
    return None if after is None else _Place(after).text
