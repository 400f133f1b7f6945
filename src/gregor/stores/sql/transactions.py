"""The transactions of the state machine on a database: store a batch, or read one user.

Functions of a connection, which depend on nothing but its dialect. The cost of a batch is
proportional to what is live and what is new: not to the length of the user's log, and not to the
product of the batch's ranges and the items.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from gregor.core.buckets import bucket_of
from gregor.core.facts import DismissedRange, dismissed_ranges
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, Category, DeviceID, Dismissal, InBandMessage, MsgID
from gregor.core.range_deaths import Pattern, range_deaths
from gregor.core.state import Counts, Item, State, state_hash
from gregor.core.sync import (
    MAX_BYTES_READ,
    Changes,
    ItemFate,
    Snapshot,
    Sync,
    groups,
    left_of,
    max_changes,
    since,
)
from gregor.errors import Conflict, WrongShard
from gregor.interfaces import Duplicate, Rejected, Stored, StoreOutcome
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.statements import (
    FOREVER,
    BucketKey,
    BulkStatement,
    Death,
    ItemKey,
    LockedUser,
    MatchedItem,
    MessageRow,
    Placement,
    RangePattern,
    RangeRow,
    StoredItem,
    StoredRange,
    UserClock,
    UserKey,
    UserRecord,
    UserRow,
)

# A range need not dismiss expired items, and must not read all items that ever expired. But a clock
# that lags or is set back shows an expired item again, so a range also dismisses items that expired
# less than this time ago. No clock may be wrong by more.
MAX_CLOCK_DIFFERENCE = 3600 * SECOND

# How many patterns of one user's ranges are looked up by themselves in one transaction.
MAX_PATTERNS = 4

# How many items are read in one statement, since their sizes are not known before.
ITEMS_IN_BLOCK = 32

T = TypeVar("T")


# The transaction that consumes


def consume(
    connection: DatabaseConnection,
    messages: Sequence[InBandMessage],
    now: Time,
    *,
    any_bucket: bool = False,
) -> list[StoreOutcome]:
    """Store a batch, and return the outcome of each message. Runs inside a transaction.
    With `any_bucket`, messages are accepted whichever shard holds their users.

    Facts are order-free, so the messages are not processed one by one: first all new messages are
    stored, then all deaths that follow from old or new facts.
    """
    # Lock the users before reading: what is read then stays true until the commit.
    users = _lock_users(connection, {message.uid for message in messages})
    closed = {} if any_bucket else _closed_users(connection, messages)
    known = _read_known(connection, messages)
    return _consume(connection, messages, now, users, closed, known)


def consume_new(
    connection: DatabaseConnection,
    messages: Sequence[InBandMessage],
    now: Time,
    *,
    any_bucket: bool = False,
) -> list[StoreOutcome]:
    """The same for messages that are not stamped and whose ids are new; raises UniqueViolation if
    an id is known."""
    users = _lock_users(connection, {message.uid for message in messages})
    closed = {} if any_bucket else _closed_users(connection, messages)
    return _consume(connection, messages, now, users, closed, {})


def _closed_users(
    connection: DatabaseConnection, messages: Sequence[InBandMessage]
) -> dict[UID, WrongShard]:
    """The users whose messages this shard rejects, with the error. This stays true until the
    commit: closing or releasing a bucket waits for every transaction that has locked users."""
    buckets = {message.uid: bucket_of(message.uid) for message in messages}
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


def _consume(
    connection: DatabaseConnection,
    messages: Sequence[InBandMessage],
    now: Time,
    users: Mapping[UID, LockedUser],
    closed: Mapping[UID, WrongShard],
    known: dict[ItemKey, InBandMessage],
) -> list[StoreOutcome]:
    clocks = {user.uid: user.ctime for user in users.values()}
    outcomes: list[StoreOutcome] = []
    new: list[InBandMessage] = []
    stored: list[InBandMessage] = []
    has_late_replay = False
    for message in messages:
        earlier = known.get(ItemKey(message.uid, message.msg_id))
        clock = clocks.get(message.uid, 0)
        if message.uid in closed:
            outcomes.append(Rejected(message, closed[message.uid]))
        elif earlier is not None:
            outcomes.append(_resolve_known_id(message, earlier))
        elif message.stamped and message.ctime <= clock:
            has_late_replay = True
            _insert(connection, new)
            new = []
            outcomes.append(_insert_late_replay(connection, message, known))
        else:
            new.append(message.stamp(message.ctime or max(now, clock + 1), clock))
            outcomes.append(Stored(new[-1]))
            clocks[message.uid] = new[-1].ctime
        match outcomes[-1]:
            case Stored(message):
                known[ItemKey(message.uid, message.msg_id)] = message
                stored.append(message)
    _insert(connection, new)
    _store_deaths(connection, stored, users, now, has_late_replay)
    if stored:
        uids = {message.uid for message in stored}
        rows = [UserRecord(uid, clocks[uid], bucket_of(uid)) for uid in uids]
        connection.execute_rows(statements.UPSERT_CLOCKS, rows)
    return outcomes


def _resolve_known_id(message: InBandMessage, earlier: InBandMessage) -> StoreOutcome:
    if earlier.same_contents(message):
        return Duplicate(earlier)
    return Rejected(message, Conflict("this msg_id is known with other contents", field="msg_id"))


def _insert_late_replay(
    connection: DatabaseConnection, message: InBandMessage, known: dict[ItemKey, InBandMessage]
) -> StoreOutcome:
    """Store a replay whose ctime is behind the user's clock, between its neighbours in the log."""
    uid, ctime = message.uid, message.ctime
    (successor,) = connection.execute(statements.NEXT_MESSAGE, uid=uid, ctime=ctime)
    if successor.ctime == message.ctime:
        error = Conflict("another message of this user has this ctime", field="ctime")
        return Rejected(message, error)
    (previous,) = connection.execute(statements.PREVIOUS_CTIME, uid=uid, ctime=ctime)
    connection.execute(statements.UPDATE_PREV, uid=uid, ctime=successor.ctime, prev=ctime)
    known_successor = known.get(ItemKey(uid, successor.msg_id))
    if known_successor is not None:  # the batch may contain its id again
        stamped = known_successor.stamp(known_successor.ctime, message.ctime)
        known[ItemKey(uid, successor.msg_id)] = stamped
    stored = message.stamp(message.ctime, previous.ctime)
    _insert(connection, [stored])
    return Stored(stored)


def _insert(connection: DatabaseConnection, new: Sequence[InBandMessage]) -> None:
    connection.insert(statements.INSERT_MESSAGES, [_message_row(message) for message in new])
    ranges = [_range_row(m, n, r) for m in new for n, r in enumerate(_ranges_of(m))]
    connection.insert(statements.INSERT_RANGES, ranges)


def _message_row(message: InBandMessage) -> MessageRow:
    creation = message.creation
    category = expires_at = None
    if creation is not None:
        category = creation.category
        expires_at = creation.expires_at(message.ctime)
        if expires_at is None:
            expires_at = FOREVER
    return MessageRow(
        uid=message.uid,
        ctime=message.ctime,
        prev=message.prev,
        msg_id=message.msg_id,
        device_id=message.device_id,
        message=_json(message),
        category=category,
        expires_at=expires_at,
    )


def _ranges_of(message: InBandMessage) -> Iterable[DismissedRange]:
    return () if message.dismissal is None else dismissed_ranges(message.dismissal, message.ctime)


def _range_row(message: InBandMessage, number: int, range_: DismissedRange) -> RangeRow:
    return RangeRow(
        uid=message.uid,
        ctime=message.ctime,
        number=number,
        end_time=range_.end,
        category=range_.category,
        prefix=range_.prefix,
        skip_msg_ids=_json(range_.skip_msg_ids),
    )


def _store_deaths(
    connection: DatabaseConnection,
    stored: Sequence[InBandMessage],
    users: Mapping[UID, LockedUser],
    now: Time,
    has_late_replay: bool,
) -> None:
    """Store every death that follows from these messages, which are stored already: of the items
    that they create, by earlier facts, and of any item by their own dismissals. `users` are those
    of the batch as they were before it."""
    deaths: dict[ItemKey, Time] = {}
    created = [(m, users[m.uid]) for m in stored if m.creation is not None and m.uid in users]
    _keep_earliest(
        deaths, _deaths_by_tombstone(connection, [m for m, u in created if u.tombstone is not None])
    )
    _keep_earliest(
        deaths,
        _deaths_by_earlier_range(
            connection, [m for m, u in created if m.ctime <= u.latest_range_end]
        ),
    )
    dismissing = [(m, m.dismissal) for m in stored if m.dismissal is not None]
    dismissed_ids: dict[ItemKey, Time] = {}
    if dismissing:
        dismissals = ((m, id_) for m, d in dismissing for id_ in d.msg_ids)
        _keep_earliest(dismissed_ids, ((ItemKey(m.uid, id_), m.ctime) for m, id_ in dismissals))
        _keep_earliest(deaths, dismissed_ids.items())
        _keep_earliest(deaths, _deaths_by_new_range(connection, dismissing, now, has_late_replay))
    if deaths:
        connection.execute_rows(statements.DISMISS_ITEMS, _deaths(deaths))
    if dismissed_ids:
        connection.execute_rows(statements.INSERT_TOMBSTONES, _deaths(dismissed_ids))


def _deaths(times: Mapping[ItemKey, Time]) -> list[Death]:
    return [Death(key.uid, key.msg_id, at) for key, at in times.items()]


def _deaths_by_tombstone(
    connection: DatabaseConnection, created: Sequence[InBandMessage]
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths of new items that were dismissed by id before they arrived."""
    if not created:
        return
    ids = [ItemKey(message.uid, message.msg_id) for message in created]
    tombstones = connection.execute_rows(statements.MATCHING_TOMBSTONES, ids)
    yield from ((ItemKey(row.uid, row.msg_id), row.ctime) for row in tombstones)
    if tombstones:
        matched = [ItemKey(row.uid, row.msg_id) for row in tombstones]
        connection.execute_rows(statements.DELETE_TOMBSTONES, matched)


def _deaths_by_earlier_range(
    connection: DatabaseConnection, created: Sequence[InBandMessage]
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths of new items that an earlier range covers."""
    if not created:
        return
    first_ctimes: dict[UID, Time] = {}
    _keep_earliest(first_ctimes, ((message.uid, message.ctime) for message in created))
    keys = [UserClock(uid, ctime) for uid, ctime in first_ctimes.items()]
    ranges = connection.execute_rows(statements.RANGES_ENDING_AFTER, keys)
    items = [
        MatchedItem(message.uid, message.msg_id, message.ctime, message.creation.category)
        for message in created
        if message.creation is not None
    ]
    yield from _range_deaths(_by_user((row.uid, _range(row)) for row in ranges), items)


def _deaths_by_new_range(
    connection: DatabaseConnection,
    dismissing: Sequence[tuple[InBandMessage, Dismissal]],
    now: Time,
    has_late_replay: bool,
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths of items that these new dismissals cover by range."""
    ranges = _by_user((m.uid, r) for m, d in dismissing for r in dismissed_ranges(d, m.ctime))
    if not ranges:
        return
    statement = statements.ITEMS_MATCHED_IN_LOG if has_late_replay else statements.ITEMS_MATCHED
    patterns = [pattern for uid in ranges for pattern in _patterns(uid, ranges[uid], now)]
    yield from _range_deaths(ranges, connection.execute_rows(statement, patterns))


def _patterns(uid: UID, ranges: Sequence[DismissedRange], now: Time) -> Iterator[RangePattern]:
    """A few patterns that together match all that these ranges cover. The database compares each
    pattern with each live item, so instead of many there is one that matches every category."""
    patterns = {Pattern(range_.category, range_.prefix) for range_ in ranges}
    if len(patterns) > MAX_PATTERNS:
        patterns = {Pattern("", prefix=True)}
    first_ctime = min(range_.ctime for range_ in ranges)
    for pattern in patterns:
        yield RangePattern(
            uid=uid,
            ctime=first_ctime,
            end_time=max(range_.end for range_ in ranges),
            category=pattern.category,
            prefix=int(pattern.prefix),
            expired=min(now, first_ctime) - MAX_CLOCK_DIFFERENCE,
        )


def _range_deaths(
    ranges: Mapping[UID, Sequence[DismissedRange]], items: Iterable[MatchedItem]
) -> Iterator[tuple[ItemKey, Time]]:
    """The deaths of these items by the ranges of their users."""
    for uid, matched in _by_user((item.uid, item) for item in items).items():
        for item, at in range_deaths(ranges.get(uid, ()), matched):
            yield ItemKey(uid, item.msg_id), at


def _by_user(values: Iterable[tuple[UID, T]]) -> dict[UID, list[T]]:
    grouped: defaultdict[UID, list[T]] = defaultdict(list)
    for uid, value in values:
        grouped[uid].append(value)
    return grouped


def _keep_earliest(earliest: dict[T, Time], times: Iterable[tuple[T, Time]]) -> None:
    """Keep the earliest time of each key."""
    for key, at in times:
        earliest[key] = min(at, earliest.get(key, at))


# Reads and locks


def _lock_users(connection: DatabaseConnection, uids: Iterable[UID]) -> dict[UID, LockedUser]:
    """Lock the users, so that no other transaction writes for them until the commit."""
    keys = [UserKey(uid) for uid in uids]
    if connection.dialect.has_row_locks:
        rows = [UserRow(key.uid, bucket_of(key.uid)) for key in keys]
        connection.execute_rows(statements.INSERT_USERS, rows)
        connection.execute_rows(statements.LOCK_USERS, keys)
    return {user.uid: user for user in connection.execute_rows(statements.LOCKED_USERS, keys)}


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
    connection: DatabaseConnection, messages: Sequence[InBandMessage]
) -> dict[ItemKey, InBandMessage]:
    ids = [ItemKey(message.uid, message.msg_id) for message in messages]
    rows = connection.execute_rows(statements.KNOWN_MESSAGES, ids)
    return {ItemKey(row.uid, row.msg_id): message_of(row) for row in rows}


def read_state(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, now: Time, at: Time | None
) -> State:
    if at is None:
        rows = connection.execute(statements.VISIBLE_ITEMS, uid=uid, device_id=device_id, now=now)
    else:
        rows = connection.execute(statements.VISIBLE_ITEMS_AT, uid=uid, device_id=device_id, at=at)
    return State.of(map(_item, rows), now if at is None else at)


def read_counts(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    prefixes: Iterable[Category],
    now: Time,
) -> Counts:
    rows = connection.execute(statements.VISIBLE_CATEGORIES, uid=uid, device_id=device_id, now=now)
    return Counts.of(((row.category, row.items) for row in rows), prefixes, now)


def read_since(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, start: Time, now: Time
) -> list[InBandMessage]:
    rows = connection.execute(statements.MESSAGES_SINCE, uid=uid, start=start)
    log = [message_of(row) for row in rows]
    return list(since(log, device_id, start, now, _read_fates(connection, uid, log)))


def read_sync(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, cursor: Time, now: Time
) -> Sync:
    clock = next((row.ctime for row in connection.execute(statements.USER_CLOCK, uid=uid)), 0)
    rows = connection.execute(statements.VISIBLE_IDS, uid=uid, device_id=device_id, now=now)
    ids = [(row.ctime, row.msg_id) for row in rows]
    content: Changes | Snapshot | None = None
    if 0 < cursor <= clock:
        content = _read_changes(connection, uid, device_id, cursor, now, max_changes(len(ids)))
    if content is None:
        content = _read_snapshot(connection, uid, sorted(ctime for ctime, _ in ids), clock)
    return Sync(content, clock, now, state_hash(ids))


def _read_changes(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    cursor: Time,
    now: Time,
    limit: int,
) -> Changes | None:
    """The messages after the cursor, reduced; None if there are more than `limit`."""
    rows = connection.execute(
        statements.MESSAGES_SINCE_LIMITED, uid=uid, start=cursor + 1, limit=limit + 1
    )
    log = [message_of(row) for row in rows]
    if len(log) > limit:
        return None
    fates = _read_fates(connection, uid, log)
    return Changes(tuple(since(log, device_id, cursor + 1, now, fates)))


def _read_snapshot(
    connection: DatabaseConnection, uid: UID, ctimes: Sequence[Time], clock: Time
) -> Snapshot:
    first, *others = [*groups(ctimes), ()]
    items = read_items(connection, uid, first)
    unread = tuple(group for group in (left_of(first, items), *others) if group)
    tombstones = connection.execute(statements.UNMATCHED_TOMBSTONES, uid=uid)
    ranges = connection.execute(statements.RANGES_AFTER, uid=uid, cursor=clock)
    return Snapshot(
        tuple(items),
        tuple((tombstone.msg_id, tombstone.ctime) for tombstone in tombstones),
        tuple(_range(row) for row in ranges),
        unread,
    )


def read_items(connection: DatabaseConnection, uid: UID, ctimes: Sequence[Time]) -> list[Item]:
    """The items with these ctimes, live or dead, up to MAX_BYTES_READ and one block."""
    items: list[Item] = []
    size = 0
    for start in range(0, len(ctimes), ITEMS_IN_BLOCK):
        if size >= MAX_BYTES_READ:
            break
        keys = [UserClock(uid, ctime) for ctime in ctimes[start : start + ITEMS_IN_BLOCK]]
        rows = connection.execute_rows(statements.ITEMS_AT, keys)
        size += sum(len(row.message) for row in rows)
        items += sorted(map(_item, rows), key=Item.order)
    return items


def _read_fates(
    connection: DatabaseConnection, uid: UID, log: Sequence[InBandMessage]
) -> Callable[[MsgID], ItemFate | None]:
    """The fates of the items that these messages create or dismiss."""
    msg_ids = {message.msg_id for message in log if message.creation is not None}
    for message in log:
        if message.dismissal is not None:
            msg_ids.update(message.dismissal.msg_ids)
    rows = connection.execute_rows(statements.ITEM_FATES, [ItemKey(uid, id_) for id_ in msg_ids])
    fates = {
        row.msg_id: ItemFate(row.ctime, row.device_id, row.expires_at, row.dismissed_at)
        for row in rows
    }
    return fates.get


class _Logged(Protocol):
    """A row with a message."""

    @property
    def ctime(self) -> Time: ...
    @property
    def prev(self) -> Time: ...
    @property
    def message(self) -> str: ...


def message_of(row: _Logged) -> InBandMessage:
    """The message of a row, stamped."""
    return _decoder.decode(row.message).stamp(row.ctime, row.prev)


def _item(row: StoredItem) -> Item:
    """The item of a row. Only the body is taken from the JSON, as bytes: the rest is in columns,
    and all of it was checked before it was stored."""
    return Item(
        row.msg_id,
        row.ctime,
        row.category,
        _body_decoder.decode(row.message).creation.body,
        row.device_id,
        None if row.expires_at == FOREVER else row.expires_at,
    )


class _StoredCreation(Struct):
    body: Raw


class _StoredBody(Struct):
    """What is needed of a stored message for its item."""

    creation: _StoredCreation


def _range(row: StoredRange) -> DismissedRange:
    skip = msgspec.json.decode(row.skip_msg_ids, type=tuple[MsgID, ...])
    return DismissedRange(row.end_time, row.ctime, row.category, bool(row.prefix), skip)


def _json(value: object) -> str:
    return _encoder.encode(value).decode()


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(InBandMessage)
_body_decoder = msgspec.json.Decoder(_StoredBody)
