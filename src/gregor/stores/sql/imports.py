"""The transaction that takes lines of an export.

An import is three merges that depend on no order: epochs and floors rise, and messages are a set.
So a user that is here already is merged, and an import that was killed is just run again. Only the
order within a user matters, to keep the user's cursors: messages come in the order of their
ctimes, and the clock, the mark and the floor when all lines of the user are in.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from gregor.core.buckets import bucket_of
from gregor.core.export import (
    ExportedMessage,
    ExportedPruned,
    ExportedTombstone,
    ImportPart,
    Record,
    Taken,
    Verdict,
    accepted,
)
from gregor.core.instant import Time
from gregor.core.message import UID
from gregor.errors import Conflict, Erased
from gregor.interfaces import Duplicate, Erasure, Rejected, Slot
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.erase import raise_epoch
from gregor.stores.sql.hashes import Change, update_hashes
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.statements import (
    CopiedUser,
    DeadItem,
    Death,
    ItemKey,
    LockedUser,
    PendingErasure,
    PrunedMessage,
    UserClock,
    UserKey,
    UserRecord,
    UserRow,
)
from gregor.stores.sql.transactions import closed_users, import_messages, lock_existing

R = TypeVar("R", bound=Record)


class _Entry(Generic[R]):
    """A line on its way into the store, and what has come of it so far."""

    __slots__ = ("record", "verdict")

    def __init__(self, record: R, epoch: Time) -> None:
        self.record = record
        self.verdict: Verdict = Taken.STORED
        if record.time <= epoch:
            self.verdict = Erased(f"the user was erased at {epoch}, after this", epoch=epoch)

    @property
    def key(self) -> ItemKey:
        return ItemKey(self.record.uid, self.record.msg_id)

    def find(self, ctime: Time, *, same_contents: bool) -> None:
        """The store has a message with this id."""
        if not same_contents:
            error = Conflict("this msg_id is known with other contents", field="msg_id")
            self.verdict = error
        else:
            same = ctime == self.record.time
            self.verdict = Taken.KNOWN if same else Taken.KNOWN_AT_ANOTHER_TIME


class Imported(NamedTuple):
    """What has come of each line, and whether something that was stored was erased by them."""

    verdicts: list[list[Verdict]]
    erases: bool


def import_parts(
    connection: DatabaseConnection,
    parts: Sequence[ImportPart],
    now: Time,
    others: Collection[str] = (),
    *,
    any_bucket: bool = False,
) -> Imported:
    """Take these lines, and return what has come of each. A user who is erased by them may have
    old copies on the `others`, which are shards. Raises WrongShard if this shard accepts no
    messages of one of the users; with `any_bucket`, it is not asked."""
    uids = {part.user.uid for part in parts}
    users = _lock(connection, uids)
    for error in () if any_bucket else closed_users(connection, uids).values():
        raise error
    erases = _raise_epochs(connection, users, parts, others)
    users = lock_existing(connection, [UserKey(uid) for uid in uids])
    entries: list[list[_Entry[Any]]] = [
        [_Entry(r, users[part.user.uid].epoch) for r in part.records] for part in parts
    ]
    _bury(connection, _open(entries, ExportedTombstone), users, now)
    _store(connection, _open(entries, ExportedMessage), now)
    _store_pruned(connection, _open(entries, ExportedPruned))
    verdicts = [[entry.verdict for entry in lines] for lines in entries]
    _finish(connection, parts, verdicts, users)
    return Imported(verdicts, erases)


def _open(entries: Sequence[Sequence[_Entry[Any]]], kind: type[R]) -> list[_Entry[R]]:
    """Those of a kind that are not refused."""
    return [
        entry
        for lines in entries
        for entry in lines
        if isinstance(entry.record, kind) and entry.verdict is Taken.STORED
    ]


def _lock(connection: DatabaseConnection, uids: Iterable[UID]) -> dict[UID, LockedUser]:
    rows = [UserRow(uid, bucket_of(uid)) for uid in uids]
    connection.execute_rows(statements.INSERT_USERS, rows)
    return lock_existing(connection, [UserKey(row.uid) for row in rows])


def _raise_epochs(
    connection: DatabaseConnection,
    users: Mapping[UID, LockedUser],
    parts: Iterable[ImportPart],
    others: Collection[str],
) -> bool:
    """Returns whether one of the users had something before."""
    erases = False
    for user, *_ in parts:
        if user.epoch > users[user.uid].epoch:
            erases = erases or users[user.uid].ctime > 0
            erasure = Erasure(user.epoch, user.erased_at)
            raise_epoch(connection, user.uid, erasure)
            pending = [PendingErasure(shard, user.uid, *erasure) for shard in others]
            if pending:
                connection.execute_rows(statements.UPSERT_PENDING_ERASURES, pending)
    return erases


# Deaths


def _bury(
    connection: DatabaseConnection,
    entries: Sequence[_Entry[ExportedTombstone]],
    users: Mapping[UID, LockedUser],
    now: Time,
) -> None:
    """Let items be dead from these times on: those that are stored, and those that will be."""
    forgotten = _pruned_among(connection, entries)
    at: dict[ItemKey, Time] = {}
    for entry in entries:
        if entry.key in forgotten:
            entry.verdict = Taken.KNOWN
        else:
            at[entry.key] = min(entry.record.at, at.get(entry.key, entry.record.at))
    if not at:
        return
    deaths = [Death(*key, time) for key, time in at.items()]
    connection.execute_rows(statements.INSERT_TOMBSTONES, deaths)
    died = connection.execute_rows(statements.DISMISS_ITEMS, deaths)
    connection.execute_rows(statements.DISMISS_EARLIER, deaths)
    if died:
        _mark_deaths(connection, died, users, now)


def _mark_deaths(
    connection: DatabaseConnection,
    died: Sequence[DeadItem],
    users: Mapping[UID, LockedUser],
    now: Time,
) -> None:
    """No cursor could hear of these deaths, so the clocks move on, and are marked."""
    uids = {item.uid for item in died}
    hashes = update_hashes(connection, users, uids, Change((), died), now)
    clocks = {uid: users[uid].ctime + 1 for uid in uids}
    rows = [
        UserRecord(uid, clock, bucket_of(uid), *hashes[uid], mark=clock)
        for uid, clock in clocks.items()
    ]
    connection.execute_rows(statements.UPSERT_CLOCKS, rows)


# Messages


def _store(
    connection: DatabaseConnection, entries: Sequence[_Entry[ExportedMessage]], now: Time
) -> None:
    if not entries:
        return
    slots = [Slot(entry.record.message, entry.record.author) for entry in entries]
    outcomes = import_messages(connection, slots, now)
    for entry, outcome in zip(entries, outcomes, strict=True):
        match outcome:
            case Duplicate(message):
                entry.find(message.ctime, same_contents=True)
            case Rejected(error=error):
                entry.verdict = error


def _store_pruned(
    connection: DatabaseConnection, entries: Sequence[_Entry[ExportedPruned]]
) -> None:
    """Store what is left of forgotten messages, where nothing is known of them."""
    keys = [entry.key for entry in entries]
    known = _pruned_among(connection, entries)
    for stored in connection.execute_rows(statements.KNOWN_MESSAGES, keys) if keys else ():
        digest = message_of(stored).contents_digest()
        key = ItemKey(stored.uid, stored.msg_id)
        known[key] = PrunedMessage(*key, stored.ctime, digest)
    new: dict[ItemKey, PrunedMessage] = {}
    for entry in entries:
        record = entry.record
        row = PrunedMessage(record.uid, record.msg_id, record.ctime, record.digest)
        if (found := known.get(entry.key)) is not None:
            entry.find(found.ctime, same_contents=found.digest == record.digest)
        else:
            known[entry.key] = new[entry.key] = row
    if new:
        connection.execute_rows(statements.INSERT_COPIED_PRUNED, new.values())


def _pruned_among(
    connection: DatabaseConnection, entries: Sequence[_Entry[Any]]
) -> dict[ItemKey, PrunedMessage]:
    """What is left of those messages with these ids whose contents are forgotten here."""
    keys = [entry.key for entry in entries]
    rows = connection.execute_rows(statements.PRUNED_MESSAGES, keys) if keys else []
    return {ItemKey(row.uid, row.msg_id): row for row in rows}


# The end of a user


def _finish(
    connection: DatabaseConnection,
    parts: Sequence[ImportPart],
    verdicts: Sequence[Sequence[Verdict]],
    before: Mapping[UID, LockedUser],
) -> None:
    """Give the users of whom all lines are in the clock, the mark and the floor of the file, if
    these are later than theirs."""
    ended = {
        UserClock(part.user.uid, part.user.ctime): (
            part.user,
            part.accepted + accepted(part.records, v),
        )
        for part, v in zip(parts, verdicts, strict=True)
        if part.ends and part.user.ctime
    }
    if not ended:
        return
    users = lock_existing(connection, [UserKey(uid) for uid, _ in ended])
    stored = {
        UserClock(row.uid, row.ctime): row.messages
        for row in connection.execute_rows(statements.MESSAGES_UP_TO, ended)
    }
    rows: dict[UID, CopiedUser] = {}
    for key, (user, taken) in ended.items():
        here = users[user.uid]
        clock, mark = max(here.ctime, user.ctime), max(here.mark, user.mark)
        has_others = stored[key] > taken or before[user.uid].floor > user.floor
        if has_others and mark <= user.ctime:
            # A cursor of the store that wrote the file cannot hear of these.
            clock = mark = clock + 1
        rows[user.uid] = CopiedUser(user.uid, clock, mark, max(here.floor, user.floor))
    connection.execute_rows(statements.FINISH_COPIES, rows.values())
