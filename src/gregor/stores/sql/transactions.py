"""The transaction of the state machine that stores a batch.

Functions of a connection, which depend on nothing but its dialect. The cost of a batch is
proportional to what is live and what is new: not to the length of the user's log, and not to the
product of the batch's dismissals and the items.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from msgspec import Struct

from gregor.core.buckets import bucket_of
from gregor.core.facts import DismissedRange, dismissed_keys, dismissed_ranges
from gregor.core.history import stored_too_late, wrong_epoch
from gregor.core.instant import Time
from gregor.core.item_history import Author
from gregor.core.message import UID, InBandMessage
from gregor.core.sync import UserTime
from gregor.core.visibility import has_begun, has_expired
from gregor.errors import Conflict, InvalidMessage, LimitExceeded, WrongShard
from gregor.interfaces import Duplicate, Rejected, Slot, Stored, StoreOutcome
from gregor.stores.sql import statements
from gregor.stores.sql.allowance import Allowance
from gregor.stores.sql.database import DatabaseConnection, UniqueViolation
from gregor.stores.sql.deaths import Deaths, StoredBatch, store_deaths
from gregor.stores.sql.hashes import Change, check_sums, update_hashes
from gregor.stores.sql.rows import json_of, message_of, size_of
from gregor.stores.sql.schema import require_not_too_old
from gregor.stores.sql.statements import (
    FOREVER,
    BucketKey,
    BulkStatement,
    ItemKey,
    JSONText,
    KeyRow,
    LockedUser,
    MessageRow,
    Placement,
    PrunedMessage,
    RangeRow,
    UserKey,
    UserRecord,
    UserRow,
)


def consume(
    connection: DatabaseConnection,
    slots: Sequence[Slot],
    now: Time,
    *,
    any_bucket: bool = False,
    allowance: Allowance | None = None,
) -> list[StoreOutcome]:
    """Store a batch, and return the outcome of each message. Runs inside a transaction.
    With `any_bucket`, messages are accepted whichever shard holds their users. The `allowance` says
    what new messages may add.

    Facts are order-free, so the messages are not processed one by one: first all new messages are
    stored, then all deaths that follow from old or new facts.
    """
    # Lock the users before reading: what is read then stays true until the commit.
    users = _lock_users(connection, {slot.message.uid for slot in slots})
    closed = {} if any_bucket else closed_users(connection, {s.message.uid for s in slots})
    known, dead = _read_known(connection, slots)
    pruned = _read_pruned(connection, slots, users)
    if allowance is not None:
        allowance.open(connection, users, slots)
    log = _Log(connection, users, closed, known, pruned, allowance=allowance)
    return _consume(connection, slots, now, log, dead)


def consume_new(
    connection: DatabaseConnection,
    slots: Sequence[Slot],
    now: Time,
    *,
    any_bucket: bool = False,
    allowance: Allowance | None = None,
) -> list[StoreOutcome]:
    """The same for messages that are not stamped and whose ids are new; raises UniqueViolation if
    an id is known. It may be known also of a message that cannot be stored as a new one."""
    users = _lock_users(connection, {slot.message.uid for slot in slots})
    closed = {} if any_bucket else closed_users(connection, {s.message.uid for s in slots})
    pruned = _read_pruned(connection, slots, users)
    if allowance is not None:
        allowance.open(connection, users, slots)
    log = _Log(connection, users, closed, {}, pruned, allowance=allowance)
    outcomes = _consume(connection, slots, now, log, frozenset())
    for outcome in outcomes:
        match outcome:
            case Rejected(error=InvalidMessage() | LimitExceeded()):
                raise UniqueViolation("a message was refused before its id was looked up")
    return outcomes


def store_copies(
    connection: DatabaseConnection, slots: Sequence[Slot], now: Time
) -> list[StoreOutcome]:
    """The same for messages of a bucket that moves here from another shard, as they are stored
    there: they keep their predecessors, and do not move marks."""
    users = _lock_users(connection, {slot.message.uid for slot in slots})
    known, dead = _read_known(connection, slots)
    log = _Log(connection, users, {}, known, {}, origin=_Origin.ANOTHER_SHARD)
    return _consume(connection, slots, now, log, dead)


def import_messages(
    connection: DatabaseConnection, slots: Sequence[Slot], now: Time
) -> list[StoreOutcome]:
    """The same for messages of an export. They keep what came before them, as far as it was not
    here. One after the user's clock is stored although it is not after the floor: what is forgotten
    reaches nothing that is later than itself, but for ids."""
    users = _lock_users(connection, {slot.message.uid for slot in slots})
    known, dead = _read_known(connection, slots)
    pruned = _read_pruned(connection, slots, users)
    log = _Log(connection, users, {}, known, pruned, origin=_Origin.AN_EXPORT)
    return _consume(connection, slots, now, log, dead)


def closed_users(connection: DatabaseConnection, uids: Iterable[UID]) -> dict[UID, WrongShard]:
    """The users whose messages this shard rejects, with the error. This stays true until the
    commit: closing or releasing a bucket waits for every transaction that has locked users."""
    buckets = {uid: bucket_of(uid) for uid in uids}
    errors = _wrong_shards(connection, statements.BUCKETS_NOT_WRITABLE, set(buckets.values()))
    by_bucket = {error.bucket: error for error in errors}
    return {uid: by_bucket[bucket] for uid, bucket in buckets.items() if bucket in by_bucket}


def _wrong_shards(
    connection: DatabaseConnection,
    statement: BulkStatement[BucketKey, Placement],
    buckets: Iterable[int],
) -> list[WrongShard]:
    rows = connection.execute_rows(statement, map(BucketKey, buckets))
    return [WrongShard(row.bucket, row.shard, row.version) for row in rows]


class _Origin(Enum):
    """Where messages come from."""

    SENDERS = "senders"
    AN_EXPORT = "an export"
    ANOTHER_SHARD = "another shard"


class _NewMessage(Struct, frozen=True):
    """A message as it is stored, its JSON, and who has sent it."""

    stored: InBandMessage
    json: JSONText
    author: Author | None


class _Part(NamedTuple):
    """The messages of a batch of which it is not known yet what comes of them, and those of them
    that are late replays."""

    stored: list[InBandMessage]
    late: list[InBandMessage]


_NO_TIME = UserTime(0)  # of a user who has no messages


class _Log:
    """The logs of the users of a batch, while its messages are stored in them."""

    def __init__(
        self,
        connection: DatabaseConnection,
        users: Mapping[UID, LockedUser],
        closed: Mapping[UID, WrongShard],
        known: dict[ItemKey, InBandMessage],
        pruned: Mapping[ItemKey, PrunedMessage],
        *,
        origin: _Origin = _Origin.SENDERS,
        allowance: Allowance | None = None,
    ) -> None:
        self.users = users
        self.times = {
            user.uid: UserTime(user.ctime, user.mark, user.floor) for user in users.values()
        }
        self.pruned = pruned
        self.stored: list[InBandMessage] = []
        self._connection = connection
        self._closed = closed
        self._known = known
        self._origin = origin
        self.allowance = allowance
        self._pending: list[_NewMessage] = []  # to be inserted together
        self._part = _Part([], [])
        self._with_tombstones = {u.uid for u in users.values() if u.tombstone is not None}
        self._deaths: list[Deaths] = []

    def add(self, slot: Slot, now: Time) -> StoreOutcome:
        """Store a message, or say why not. What has come of its item is not known yet."""
        message = slot.message
        if message.uid in self._closed:
            return Rejected(message, self._closed[message.uid])
        if slot.epoch is not None and slot.epoch != self._epoch_of(message.uid):
            return Rejected(message, wrong_epoch(slot.epoch, self._epoch_of(message.uid)))
        key = ItemKey(message.uid, message.msg_id)
        if key in self._known:
            return _resolve_known_id(message, self._known[key])
        if key in self.pruned:
            return _resolve_pruned_id(message, self.pruned[key])
        outcome = self._add_new(message, slot.author, now)
        match outcome:
            case Stored(stored):
                self._known[key] = stored
                self.stored.append(stored)
                self._part.stored.append(stored)
                if self.allowance is not None:
                    self.allowance.add(stored, is_replay=message.stamped)
        return outcome

    def _exceeded_by(self, new: _NewMessage, now: Time) -> LimitExceeded | None:
        """What stands against a new message. A replay is not limited."""
        if self.allowance is None:
            return None
        message, size = new.stored, size_of(new.json)
        if self.allowance.has_room_for(message, size):
            return None
        # Near a limit: what came before this message is stored with all that follows from it, so
        # that the database knows what the user has.
        if not self.allowance.is_settled(message.uid):
            self.settle(now)
        return self.allowance.exceeded_by(message, size)

    def _epoch_of(self, uid: UID) -> Time:
        user = self.users.get(uid)
        return 0 if user is None else user.epoch

    def flush(self) -> None:
        """Insert what is pending."""
        _insert(self._connection, self._pending)
        self._pending = []

    def settle(self, now: Time) -> None:
        """Insert what is pending, and store the deaths that follow from all that has been added
        since this was called last: as if what comes now were another batch."""
        self.flush()
        part = StoredBatch(*self._part, self._with_tombstones, now)
        deaths = store_deaths(self._connection, part)
        self._deaths.append(deaths)
        self._with_tombstones |= deaths.tombstones.keys()
        self._part = _Part([], [])
        if self.allowance is not None:
            self.allowance.settle(deaths)

    @property
    def deaths(self) -> Deaths:
        """What has come of all that is settled."""
        return Deaths.of_parts(self._deaths)

    def _add_new(self, message: InBandMessage, author: Author | None, now: Time) -> StoreOutcome:
        time = self.times.get(message.uid, _NO_TIME)
        is_replay = message.stamped
        if is_replay and message.ctime <= self._refused_up_to(time):
            return Rejected(message, stored_too_late(time.floor))
        if is_replay and message.ctime <= time.clock:
            return self._add_late_replay(message, author, time)
        try:
            stored = self._stamped(message, time, now)
        except InvalidMessage as error:
            return Rejected(message, error.as_value())
        new = _NewMessage(stored, json_of(stored), author)
        if not is_replay and (exceeded := self._exceeded_by(new, now)) is not None:
            return Rejected(message, exceeded)
        self._pending.append(new)
        self.times[message.uid] = UserTime(stored.ctime, time.mark, time.floor)
        return Stored(stored)

    def _refused_up_to(self, time: UserTime) -> Time:
        return min(time.floor, time.clock) if self._origin is _Origin.AN_EXPORT else time.floor

    def _stamped(self, message: InBandMessage, time: UserTime, now: Time) -> InBandMessage:
        match self._origin:
            case _Origin.SENDERS if not message.stamped:
                return message.stamp_new(time.next_ctime(now), time.clock)
            case _Origin.SENDERS:
                return message.stamp(message.ctime, time.clock)
            case _Origin.ANOTHER_SHARD:
                return message
            case _Origin.AN_EXPORT:
                # What it comes after here: the user's clock, unless nothing was stored yet.
                clock = 0 if time.clock == self._epoch_of(message.uid) else time.clock
                return message.stamp(message.ctime, max(message.prev, clock))

    def _add_late_replay(
        self, message: InBandMessage, author: Author | None, time: UserTime
    ) -> StoreOutcome:
        """Store a replay that is behind the user's clock between its neighbours in the log. No
        cursor could hear of it, so the clock moves on, and is marked."""
        self.flush()
        uid, ctime = message.uid, message.ctime
        (previous,) = self._connection.execute(statements.PREVIOUS_CTIME, uid=uid, ctime=ctime)
        stored = message.stamp(ctime, previous.ctime)
        for successor in self._connection.execute(statements.NEXT_MESSAGE, uid=uid, ctime=ctime):
            if successor.ctime == ctime:
                error = Conflict("another message of this user has this ctime", field="ctime")
                return Rejected(message, error)
            self._follow(ItemKey(uid, successor.msg_id), successor.ctime, stored)
        _insert(self._connection, [_NewMessage(stored, json_of(stored), author)])
        self._part.late.append(stored)
        if self._origin is not _Origin.ANOTHER_SHARD:
            self.times[uid] = time._replace(clock=time.clock + 1, mark=time.clock + 1)
        return Stored(stored)

    def _follow(self, successor: ItemKey, ctime: Time, stored: InBandMessage) -> None:
        """The message at this ctime comes after a new one."""
        self._connection.execute(
            statements.UPDATE_PREV, uid=stored.uid, ctime=ctime, prev=stored.ctime
        )
        known = self._known.get(successor)
        if known is not None:  # the batch may contain its id again
            self._known[successor] = known.stamp(ctime, stored.ctime)


def _resolve_known_id(message: InBandMessage, earlier: InBandMessage) -> StoreOutcome:
    if earlier.same_contents(message):
        return Duplicate(earlier)
    return Rejected(message, _conflict())


def _resolve_pruned_id(message: InBandMessage, pruned: PrunedMessage) -> StoreOutcome:
    if pruned.digest == message.contents_digest():
        return Duplicate(message.stamp(pruned.ctime, 0))
    return Rejected(message, _conflict())


def _conflict() -> Conflict:
    return Conflict("this msg_id is known with other contents", field="msg_id")


def _consume(
    connection: DatabaseConnection,
    slots: Sequence[Slot],
    now: Time,
    log: _Log,
    dead: frozenset[ItemKey],
) -> list[StoreOutcome]:
    """Store messages, of which those with the `dead` items were known before."""
    outcomes = [log.add(slot, now) for slot in slots]
    log.settle(now)
    deaths = log.deaths
    _update_users(connection, log, deaths, now)
    if log.allowance is not None:
        log.allowance.close({uid: time.clock for uid, time in log.times.items()})
    deaths = deaths._replace(dead=deaths.dead | dead | log.pruned.keys())
    return [_judged(outcome, deaths, now) for outcome in outcomes]


def _update_users(connection: DatabaseConnection, log: _Log, deaths: Deaths, now: Time) -> None:
    """Store the clocks, marks and hashes of the users of these messages."""
    uids = {message.uid for message in log.stored}
    if not uids:
        return
    change = Change([m for m in log.stored if m.creation is not None], deaths.died)
    hashes = update_hashes(connection, log.users, uids, change, now)
    rows = [
        UserRecord(uid, log.times[uid].clock, bucket_of(uid), *hashes[uid], log.times[uid].mark)
        for uid in uids
    ]
    connection.execute_rows(statements.UPSERT_CLOCKS, rows)


# Rows


def _insert(connection: DatabaseConnection, new: Sequence[_NewMessage]) -> None:
    if not new:
        return
    connection.insert(statements.INSERT_MESSAGES, list(map(_message_row, new)))
    dismissing = [each.stored for each in new if each.stored.dismissal is not None]
    if not dismissing:
        return
    ranges = [_range_row(m, n, r) for m in dismissing for n, r in enumerate(dismissed_ranges(m))]
    connection.insert(statements.INSERT_RANGES, ranges)
    connection.insert(statements.INSERT_KEYS, [row for m in dismissing for row in _key_rows(m)])


def _message_row(new: _NewMessage) -> MessageRow:
    message = new.stored
    creation = message.creation
    category = expires_at = starts_at = key = None
    if creation is not None:
        category, key = creation.category, creation.key
        expires_at = creation.expires_at(message.ctime)
        if expires_at is None:
            expires_at = FOREVER
        starts_at = creation.starts_at(message.ctime)
    return MessageRow(
        message.uid,
        message.ctime,
        message.prev,
        message.msg_id,
        message.device_id,
        new.json,
        category,
        expires_at,
        None,  # `dismissed_at`: deaths are stored after all messages
        key,
        starts_at,
        new.author,
    )


def _range_row(message: InBandMessage, number: int, range_: DismissedRange) -> RangeRow:
    return RangeRow(
        uid=message.uid,
        ctime=message.ctime,
        number=number,
        end_time=range_.end,
        category=range_.category,
        prefix=range_.prefix,
        skip_msg_ids=json_of(range_.skip_msg_ids),
        scheduled=range_.scheduled,
    )


def _key_rows(message: InBandMessage) -> Iterable[KeyRow]:
    ends: dict[str, Time] = {}
    for key in dismissed_keys(message):
        ends[key.key] = max(key.end, ends.get(key.key, 0))
    return [KeyRow(message.uid, key, message.ctime, end) for key, end in ends.items()]


# Outcomes


def _judged(outcome: StoreOutcome, deaths: Deaths, now: Time) -> StoreOutcome:
    """The outcome, with what has come of the message by the end of this transaction."""
    match outcome:
        case Stored(message):
            dead, expired, scheduled = _fate_of(message, deaths, now)
            dismissed, replaced = deaths.dismissed_by(message), deaths.replaced_by(message)
            return Stored(message, dead, expired, dismissed, scheduled, replaced)
        case Duplicate(message):
            return Duplicate(message, *_fate_of(message, deaths, now))
        case _:
            return outcome


def _fate_of(message: InBandMessage, deaths: Deaths, now: Time) -> tuple[bool, bool, bool]:
    """Whether the item of a stored message is dead, has expired, and is yet to begin."""
    if message.creation is None:
        return False, False, False
    expired = has_expired(message.expires_at, now)
    return deaths.include(message), expired, not has_begun(message.starts_at, now)


# Hashes


def check_hashes(
    connection: DatabaseConnection, uids: Sequence[UID], now: Time, *, any_bucket: bool = False
) -> list[UID]:
    """Compare the hashes that are kept for these users with their items, and repair those that
    differ. Returns the users of these. Users that another shard holds are left out."""
    held = uids if any_bucket else _held_users(connection, uids)
    users = lock_existing(connection, [UserKey(uid) for uid in held])
    return check_sums(connection, {uid: user for uid, user in users.items() if user.ctime}, now)


# Reads and locks


def _lock_users(connection: DatabaseConnection, uids: Iterable[UID]) -> dict[UID, LockedUser]:
    """Lock the users, so that no other transaction writes for them until the commit. Raises
    NodeTooOld if this code may not write; if it may, that stays true until the commit."""
    keys = [UserKey(uid) for uid in uids]
    if connection.dialect.has_row_locks:
        rows = [UserRow(key.uid, bucket_of(key.uid)) for key in keys]
        connection.execute_rows(statements.INSERT_USERS, rows)
    return lock_existing(connection, keys)


def lock_existing(connection: DatabaseConnection, keys: Sequence[UserKey]) -> dict[UID, LockedUser]:
    """The same for the users that the database has."""
    if connection.dialect.has_row_locks:
        connection.execute_rows(statements.LOCK_USERS, keys)
    locked = connection.execute_rows(statements.LOCKED_USERS, keys)
    for user in locked[:1]:
        require_not_too_old(user.oldest_writer)
    return {user.uid: user for user in locked}


def wait_for_writers(connection: DatabaseConnection) -> None:
    """Wait until no transaction writes messages, and let none begin before the commit. Raises
    StorageUnavailable if that takes too long."""
    if connection.dialect.has_row_locks:
        connection.execute(statements.SET_LOCK_TIMEOUT)
        connection.execute(statements.WAIT_FOR_WRITERS)


def read_database_clock(connection: DatabaseConnection) -> Time | None:
    """The database's clock, in microseconds; None if it is the clock of this machine."""
    if not connection.dialect.has_row_locks:
        return None  # the process that holds the file has the only clock
    (clock,) = connection.execute(statements.DATABASE_TIME)
    return clock.ctime


def read_user_clocks(
    connection: DatabaseConnection, uids: Iterable[UID], *, any_bucket: bool = False
) -> dict[UID, Time]:
    """The clocks of these users; without `any_bucket`, those that another shard holds are left
    out."""
    held = list(uids) if any_bucket else _held_users(connection, uids)
    rows = connection.execute_rows(statements.USER_CLOCKS, map(UserKey, held))
    return dict.fromkeys(held, 0) | {row.uid: row.ctime for row in rows}


def _held_users(connection: DatabaseConnection, uids: Iterable[UID]) -> list[UID]:
    buckets = {uid: bucket_of(uid) for uid in uids}
    elsewhere = {error.bucket for error in wrong_shards(connection, set(buckets.values()))}
    return [uid for uid, bucket in buckets.items() if bucket not in elsewhere]


def raise_if_wrong_shard(connection: DatabaseConnection, uid: UID) -> None:
    """Raises WrongShard if another shard holds the user. Call it in the transaction that reads:
    then the transaction reads all messages that the user had at that moment."""
    for wrong_shard in wrong_shards(connection, [bucket_of(uid)]):
        raise wrong_shard


def wrong_shards(connection: DatabaseConnection, buckets: Iterable[int]) -> list[WrongShard]:
    """A WrongShard error for each of these buckets that another shard holds."""
    return _wrong_shards(connection, statements.BUCKETS_OF_OTHER_SHARDS, buckets)


def _read_known(
    connection: DatabaseConnection, slots: Sequence[Slot]
) -> tuple[dict[ItemKey, InBandMessage], frozenset[ItemKey]]:
    """The stored messages with the ids of these, and those of them whose item is dead."""
    ids = [ItemKey(slot.message.uid, slot.message.msg_id) for slot in slots]
    rows = connection.execute_rows(statements.KNOWN_MESSAGES, ids)
    known = {ItemKey(row.uid, row.msg_id): message_of(row) for row in rows}
    dead = (ItemKey(row.uid, row.msg_id) for row in rows if row.dismissed_at is not None)
    return known, frozenset(dead)


def _read_pruned(
    connection: DatabaseConnection, slots: Sequence[Slot], users: Mapping[UID, LockedUser]
) -> dict[ItemKey, PrunedMessage]:
    """What is left of those messages with these ids whose contents are forgotten."""
    with_floor = {uid for uid, user in users.items() if user.floor}
    ids = [ItemKey(s.message.uid, s.message.msg_id) for s in slots if s.message.uid in with_floor]
    rows = connection.execute_rows(statements.PRUNED_MESSAGES, ids) if ids else []
    return {ItemKey(row.uid, row.msg_id): row for row in rows}
