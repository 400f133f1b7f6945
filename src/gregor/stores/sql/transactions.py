"""The transactions of the state machine on a database: store a batch, or read one user.

Functions of a connection, which depend on nothing but its dialect. The cost of a batch is
proportional to what is live and what is new: not to the length of the user's log, and not to the
product of the batch's ranges and the items.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import msgspec
from msgspec import Raw, Struct

from gregor.core.buckets import bucket_of
from gregor.core.facts import DismissedRange, dismissed_ranges
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, Category, DeviceID, Dismissal, InBandMessage, MsgID
from gregor.core.range_deaths import Pattern, range_deaths
from gregor.core.state import Counts, Item, State, state_hash
from gregor.core.sync import (
    EXPIRY_GRACE,
    MAX_BYTES_READ,
    Changes,
    FateOf,
    ItemFate,
    Page,
    PageLimits,
    PolledState,
    Recipient,
    Reduced,
    Snapshot,
    Start,
    Sync,
    first_page,
    max_changes,
    reductions,
    require_not_ahead,
    what_is_left,
)
from gregor.core.visibility import has_expired
from gregor.errors import Conflict, WrongShard
from gregor.interfaces import Duplicate, Rejected, Stored, StoreOutcome
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.schema import require_not_too_old
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
READ_MESSAGES = 200  # of a user's log at a time

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
    known, dead = _read_known(connection, messages)
    return _consume(connection, messages, now, users, closed, known, dead)


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
    return _consume(connection, messages, now, users, closed, {}, frozenset())


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
    dead: frozenset[ItemKey],
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
    deaths = _store_deaths(connection, stored, users, now, has_late_replay)
    if stored:
        uids = {message.uid for message in stored}
        rows = [UserRecord(uid, clocks[uid], bucket_of(uid)) for uid in uids]
        connection.execute_rows(statements.UPSERT_CLOCKS, rows)
    deaths = deaths._replace(dead=deaths.dead | dead)
    return [_judged(outcome, deaths, now) for outcome in outcomes]


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


class _Deaths(NamedTuple):
    """What has died: the keys of the items, and how many items each dismissal has killed that were
    live before it, by its user and ctime."""

    dead: frozenset[ItemKey]
    dismissed: Mapping[UserClock, int]

    # Most batches dismiss nothing: then no key is built.

    def include(self, message: InBandMessage) -> bool:
        return bool(self.dead) and ItemKey(message.uid, message.msg_id) in self.dead

    def dismissed_by(self, message: InBandMessage) -> int:
        if not self.dismissed:
            return 0
        return self.dismissed.get(UserClock(message.uid, message.ctime), 0)


def _judged(outcome: StoreOutcome, deaths: _Deaths, now: Time) -> StoreOutcome:
    """The outcome, with what has come of the message by the end of this transaction."""
    match outcome:
        case Stored(message):
            return Stored(
                message, *_end_of_item(message, deaths, now), deaths.dismissed_by(message)
            )
        case Duplicate(message):
            return Duplicate(message, *_end_of_item(message, deaths, now))
        case _:
            return outcome


def _end_of_item(message: InBandMessage, deaths: _Deaths, now: Time) -> tuple[bool, bool]:
    """Whether the item of a stored message is dead, and whether it has expired."""
    if message.creation is None:
        return False, False
    return deaths.include(message), has_expired(message.expires_at, now)


def _store_deaths(
    connection: DatabaseConnection,
    stored: Sequence[InBandMessage],
    users: Mapping[UID, LockedUser],
    now: Time,
    has_late_replay: bool,
) -> _Deaths:
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
    dismissed: Counter[UserClock] = Counter()
    if deaths:
        rows = connection.execute_rows(statements.DISMISS_ITEMS, _deaths(deaths))
        dismissed.update(
            UserClock(row.uid, row.dismissed_at)
            for row in rows
            if row.ctime < row.dismissed_at < row.expires_at
        )
    if dismissed_ids:
        connection.execute_rows(statements.INSERT_TOMBSTONES, _deaths(dismissed_ids))
    return _Deaths(frozenset(deaths), dismissed)


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
    """Lock the users, so that no other transaction writes for them until the commit. Raises
    NodeTooOld if this code may not write; if it may, that stays true until the commit."""
    keys = [UserKey(uid) for uid in uids]
    if connection.dialect.has_row_locks:
        rows = [UserRow(key.uid, bucket_of(key.uid)) for key in keys]
        connection.execute_rows(statements.INSERT_USERS, rows)
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
    connection: DatabaseConnection, messages: Sequence[InBandMessage]
) -> tuple[dict[ItemKey, InBandMessage], frozenset[ItemKey]]:
    """The stored messages with the ids of these, and those of them whose item is dead."""
    ids = [ItemKey(message.uid, message.msg_id) for message in messages]
    rows = connection.execute_rows(statements.KNOWN_MESSAGES, ids)
    known = {ItemKey(row.uid, row.msg_id): message_of(row) for row in rows}
    dead = (ItemKey(row.uid, row.msg_id) for row in rows if row.dismissed_at is not None)
    return known, frozenset(dead)


def read_state(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, now: Time, at: Time | None
) -> PolledState:
    clock = _read_clock(connection, uid)
    if at is None:
        rows = connection.execute(statements.VISIBLE_ITEMS, uid=uid, device_id=device_id, now=now)
        return PolledState(State.of(map(_item, rows), now), clock)
    rows = connection.execute(statements.VISIBLE_ITEMS_AT, uid=uid, device_id=device_id, at=at)
    return PolledState(State.of(map(_item, rows), at), min(at, clock))


def _read_clock(connection: DatabaseConnection, uid: UID) -> Time:
    return next((row.ctime for row in connection.execute(statements.USER_CLOCK, uid=uid)), 0)


def read_counts(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    prefixes: Iterable[Category],
    now: Time,
) -> Counts:
    return Counts.of(_read_categories(connection, uid, device_id, now), prefixes, now)


def read_segments(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    prefix: Category,
    now: Time,
) -> Counts:
    return Counts.of_segments(_read_categories(connection, uid, device_id, now), prefix, now)


def _read_categories(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, now: Time
) -> Iterator[tuple[Category, int]]:
    """How many items of each category the device sees now."""
    rows = connection.execute(statements.VISIBLE_CATEGORIES, uid=uid, device_id=device_id, now=now)
    return ((row.category, row.items) for row in rows)


def read_since(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, start: Start, now: Time
) -> Sequence[InBandMessage]:
    return what_is_left(_read_reductions(connection, uid, device_id, start, now))


def read_page(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    start: Start,
    now: Time,
    limits: PageLimits,
) -> Page:
    clock = _read_clock(connection, uid)
    require_not_ahead(start, clock)
    return first_page(_read_reductions(connection, uid, device_id, start, now), clock, limits)


def _read_reductions(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, start: Start, now: Time
) -> Iterator[Reduced]:
    """The log from the start on, reduced. It is read in pieces, as far as the caller takes it."""
    recipient = Recipient(device_id, start.known, now)
    first = start.first
    while True:
        log = _read_log(connection, uid, first, READ_MESSAGES)
        yield from reductions(log, recipient, _read_fates(connection, uid, log))
        if len(log) < READ_MESSAGES:
            return
        first = log[-1].ctime + 1


def _read_log(
    connection: DatabaseConnection, uid: UID, first: Time, limit: int
) -> list[InBandMessage]:
    rows = connection.execute(statements.MESSAGES_FROM, uid=uid, start=first, limit=limit)
    return [message_of(row) for row in rows]


def read_sync(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, cursor: Time, now: Time
) -> Sync:
    clock = _read_clock(connection, uid)
    sent = connection.execute(
        statements.VISIBLE_IDS, uid=uid, device_id=device_id, now=now - EXPIRY_GRACE
    )
    content: Changes | Snapshot | None = None
    if 0 < cursor <= clock:
        content = _read_changes(connection, uid, device_id, cursor, now, max_changes(len(sent)))
    if content is None:
        ctimes = sorted(row.ctime for row in sent)
        content = Snapshot.of(ctimes, partial(read_items, connection, uid))
    hash_ = state_hash((row.ctime, row.msg_id) for row in sent if row.expires_at > now)
    return Sync(content, clock, now, hash_)


def _read_changes(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    cursor: Time,
    now: Time,
    limit: int,
) -> Changes | None:
    """The messages after the cursor, reduced; None if there are more than `limit`."""
    log = _read_log(connection, uid, cursor + 1, limit + 1)
    if len(log) > limit:
        return None
    recipient = Recipient(device_id, cursor, now)
    return Changes(what_is_left(reductions(log, recipient, _read_fates(connection, uid, log))))


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


def _read_fates(connection: DatabaseConnection, uid: UID, log: Sequence[InBandMessage]) -> FateOf:
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
