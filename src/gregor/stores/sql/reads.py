"""The transactions of the state machine that read one user.

The cost of a read is proportional to what it returns and to what is live, or, of a sync that
continues a recent cursor, to what is new: not to the length of the user's log.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from gregor.core.history import require_remembered
from gregor.core.instant import Time
from gregor.core.message import UID, Category, DeviceID, InBandMessage, MsgID
from gregor.core.state import Counts, Item
from gregor.core.state_hash import hash_of
from gregor.core.state_page import PageStart, StatePage, StateQuery, first_items, size_of
from gregor.core.sync import (
    EXPIRY_GRACE,
    MAX_BYTES_READ,
    Changes,
    ItemFate,
    Knowledge,
    Page,
    PageLimits,
    Predecessor,
    Recipient,
    Reduced,
    Snapshot,
    Start,
    Sync,
    UserTime,
    first_page,
    is_sent,
    max_changes,
    reductions,
    require_continued,
    what_is_left,
)
from gregor.core.visibility import At
from gregor.interfaces import NEVER_ERASED, Erasure
from gregor.stores.sql import statements
from gregor.stores.sql.database import DatabaseConnection
from gregor.stores.sql.dialect import ROWS, encode_rows
from gregor.stores.sql.hashes import read_hash
from gregor.stores.sql.rows import message_of
from gregor.stores.sql.statements import (
    FOREVER,
    BulkStatement,
    ItemKey,
    KeyedItem,
    Prefix,
    UserHead,
)

# How many items, and messages of a user's log, are read in one statement: a few at first, since
# their sizes are not known before; then as many as have about so many bytes.
FIRST_ITEMS, READ_ITEMS = 32, 256
FIRST_MESSAGES, READ_MESSAGES = 25, 200
READ_BYTES = 1024 * 1024


# States


def read_state_page(
    connection: DatabaseConnection,
    uid: UID,
    query: StateQuery,
    now: Time,
    at: Time | None = None,
) -> StatePage:
    """The first page of a state: now, when each known message counts, or at a stated time."""
    head = _read_head(connection, uid, query.device_id)
    user = _time_of(head)
    if at is None:
        hash_ = read_hash(connection, uid, query.device_id, head, now)
        empty = StatePage((), now, hash_, user.clock, epoch=_erasure_in(head).epoch)
        return _filled(connection, uid, query, empty, FOREVER)
    require_remembered(At(at), user)
    live = connection.execute(
        statements.LIVE_IDS_AT, uid=uid, device_id=query.device_id, time=at, known=at
    )
    empty = StatePage((), at, hash_of(live), min(at, user.clock), epoch=_erasure_in(head).epoch)
    return _filled(connection, uid, query, empty, at)


def read_next_state_page(
    connection: DatabaseConnection, uid: UID, query: StateQuery, start: PageStart
) -> StatePage:
    """A later page, which begins there."""
    head = _read_head(connection, uid, query.device_id)
    require_remembered(start, _time_of(head))
    empty = StatePage((), start.as_of, start.hash, start.known, epoch=_erasure_in(head).epoch)
    return _filled(connection, uid, query, empty, start.known, start)


def _filled(
    connection: DatabaseConnection,
    uid: UID,
    query: StateQuery,
    empty: StatePage,
    known: Time,
    start: PageStart | None = None,
) -> StatePage:
    """The page with its items; messages count up to the ctime `known`."""
    ctimes = connection.execute(
        _statement_for(query),
        **{ROWS: encode_rows(Prefix(prefix) for prefix in query.prefixes or ("",))},
        uid=uid,
        device_id=query.device_id,
        key=query.key,
        time=empty.as_of,
        known=known,
        after_time=_first_time(query) if start is None else start.after_time,
        after_id="" if start is None else start.after_id,
        limit=FOREVER if query.limit is None else query.limit + 1,
    )
    items = read_items(connection, uid, ctimes[: query.limit], query.max_bytes)
    return empty.filled(items, more=len(items) < len(ctimes))


def _first_time(query: StateQuery) -> Time:
    """A time before all, in the order of the query."""
    return FOREVER if query.newest_first else -1


def _statement_for(query: StateQuery) -> BulkStatement[Prefix, Time]:
    newest = query.newest_first
    if query.key is not None:
        return statements.NEWEST_WITH_KEY if newest else statements.OLDEST_WITH_KEY
    if query.prefixes:
        return statements.NEWEST_WITH_PREFIX if newest else statements.OLDEST_WITH_PREFIX
    return statements.NEWEST_ITEMS if newest else statements.OLDEST_ITEMS


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


# Messages since


def read_since(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, start: Start, now: Time
) -> Sequence[InBandMessage]:
    require_remembered(start, _time_of(_read_head(connection, uid, device_id)))
    return what_is_left(_read_reductions(connection, uid, device_id, start, now))


def read_page(
    connection: DatabaseConnection,
    uid: UID,
    device_id: DeviceID | None,
    start: Start,
    now: Time,
    limits: PageLimits,
) -> Page:
    time = _time_of(_read_head(connection, uid, device_id))
    require_remembered(start, time)
    require_continued(start, time)
    return first_page(_read_reductions(connection, uid, device_id, start, now), time.clock, limits)


def _read_reductions(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, start: Start, now: Time
) -> Iterator[Reduced]:
    """The log from the start on, reduced. It is read in pieces, as far as the caller takes it."""
    recipient = Recipient(device_id, start.known, now)
    first, limit = start.first, FIRST_MESSAGES
    while True:
        log = _read_log(connection, uid, first, limit)
        read = list(reductions(log, recipient, _read_knowledge(connection, uid, log, recipient)))
        yield from read
        if len(log) < limit:
            return
        first = log[-1].ctime + 1
        each = sum(size for _, _, size in read) // limit
        limit = max(1, min(READ_MESSAGES, 2 * limit, READ_BYTES // max(each, 1)))


def _read_log(
    connection: DatabaseConnection, uid: UID, first: Time, limit: int
) -> list[InBandMessage]:
    rows = connection.execute(statements.MESSAGES_FROM, uid=uid, start=first, limit=limit)
    return [message_of(row) for row in rows]


def _read_knowledge(
    connection: DatabaseConnection, uid: UID, log: Sequence[InBandMessage], recipient: Recipient
) -> Knowledge:
    """What the reduction of these messages needs to know."""
    fates = _read_fates(connection, uid, log)
    left_out = [m for m in log if m.key is not None and not _is_sent(fates[m.msg_id], recipient)]
    predecessors = _read_predecessors(connection, uid, left_out)
    return Knowledge(fates.get, lambda message: predecessors.get(message.ctime))


def _is_sent(fate: ItemFate, recipient: Recipient) -> bool:
    return is_sent(fate, fate.dismissed_at, recipient.device_id, recipient.now)


def _read_fates(
    connection: DatabaseConnection, uid: UID, log: Sequence[InBandMessage]
) -> dict[MsgID, ItemFate]:
    """The fates of the items that these messages create or dismiss."""
    msg_ids = {message.msg_id for message in log if message.creation is not None}
    for message in log:
        if message.dismissal is not None:
            msg_ids.update(message.dismissal.msg_ids)
    rows = connection.execute_rows(statements.ITEM_FATES, [ItemKey(uid, id_) for id_ in msg_ids])
    return {
        row.msg_id: ItemFate(row.ctime, row.device_id, row.expires_at, row.dismissed_at)
        for row in rows
    }


def _read_predecessors(
    connection: DatabaseConnection, uid: UID, messages: Iterable[InBandMessage]
) -> dict[Time, Predecessor]:
    """The predecessors of the items that these messages create, by the ctimes of the messages."""
    keyed = [
        KeyedItem(uid, message.key, message.device_id, message.ctime)
        for message in messages
        if message.key is not None
    ]
    if not keyed:
        return {}
    rows = connection.execute_rows(statements.PREDECESSORS, keyed)
    return {row.successor: Predecessor(row.msg_id, row.ctime) for row in rows}


# Syncs


def read_sync(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, cursor: Time, now: Time
) -> Sync:
    head = _read_head(connection, uid, device_id)
    time = _time_of(head)
    content: Changes | Snapshot | None = None
    if cursor > 0 and time.continues(cursor):
        content = _read_changes(connection, uid, device_id, cursor, now)
    if content is None:
        ctimes = sorted(_read_sent(connection, uid, device_id, now))
        content = Snapshot.of(ctimes, partial(read_items, connection, uid))
    hash_ = read_hash(connection, uid, device_id, head, now)
    return Sync(content, time.clock, now, hash_, *_erasure_in(head))


def _read_changes(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, cursor: Time, now: Time
) -> Changes | None:
    """The messages after the cursor, reduced; None if a snapshot is smaller. What is live is only
    counted if the messages are too many for any snapshot."""
    few = max_changes(0)
    log = _read_log(connection, uid, cursor + 1, few + 1)
    if len(log) > few:
        limit = max_changes(len(_read_sent(connection, uid, device_id, now)))
        log = _read_log(connection, uid, cursor + 1, limit + 1)
        if len(log) > limit:
            return None
    recipient = Recipient(device_id, cursor, now)
    knowledge = _read_knowledge(connection, uid, log, recipient)
    return Changes(what_is_left(reductions(log, recipient, knowledge)))


def _read_sent(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None, now: Time
) -> list[Time]:
    """The ctimes of the items that are sent to the device."""
    since = now - EXPIRY_GRACE
    rows = connection.execute(statements.LIVE_IDS, uid=uid, device_id=device_id, now=since)
    return [row.ctime for row in rows]


def read_items(
    connection: DatabaseConnection,
    uid: UID,
    ctimes: Sequence[Time],
    max_bytes: int | None = MAX_BYTES_READ,
) -> list[Item]:
    """The first of the items with these ctimes, live or dead, in this order, until they have so
    many bytes."""
    items: list[Item] = []
    most = FOREVER if max_bytes is None else max_bytes
    size, start, block = 0, 0, FIRST_ITEMS
    while start < len(ctimes) and size < most:
        read = _read_block(connection, uid, ctimes[start : start + block])
        left, size = most - size, size + sum(map(size_of, read))
        items += read if size < most else first_items(read, left)
        start += block
        block = max(1, min(READ_ITEMS, 2 * block, READ_BYTES * start // max(size, 1)))
    return items


def _read_block(connection: DatabaseConnection, uid: UID, ctimes: Sequence[Time]) -> list[Item]:
    rows = {ROWS: encode_rows(zip(ctimes, strict=True))}
    read = connection.execute(statements.ITEMS_AT, uid=uid, **rows)
    by_ctime = {item.ctime: item for item in read}
    return [by_ctime[ctime] for ctime in ctimes if ctime in by_ctime]


# The user


def _read_head(
    connection: DatabaseConnection, uid: UID, device_id: DeviceID | None
) -> list[UserHead]:
    return connection.execute(statements.USER_HEAD, uid=uid, device_id=device_id)


def _time_of(head: Sequence[UserHead]) -> UserTime:
    return UserTime(head[0].ctime, head[0].mark, head[0].floor) if head else UserTime(0)


def _erasure_in(head: Sequence[UserHead]) -> Erasure:
    return Erasure(head[0].epoch, head[0].erased_at) if head else NEVER_ERASED
