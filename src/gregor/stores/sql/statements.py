"""Every SQL statement of a store: why it is needed, its text, its parameters, the type of its rows.

The text is the same for SQLite and PostgreSQL. `:name` is a parameter; `database_now()` is the
database's clock in microseconds; `database_size(…)` is the size of a text in bytes;
`database_tables` lists its tables. A statement about many rows
reads them from the table `input`: each dialect makes that table of one JSON parameter (decision 2),
so a statement is prepared once, whatever the number of rows.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Annotated, Any, Generic, NamedTuple, TypeAlias, TypeVar, get_args, get_type_hints

from gregor.core.instant import Time
from gregor.core.item_history import Author
from gregor.core.message import UID, Category, DeviceID, Digest, Key, MsgID
from gregor.core.state import Item
from gregor.interfaces import Erasure
from gregor.stores.sql.rows import body_of

R = TypeVar("R")
Row = TypeVar("Row", bound=tuple[Any, ...])

JSONText: TypeAlias = Annotated[str, "JSON"]
"""JSON, as it was sent or as it was encoded here; never null."""

FOREVER = 2**62
"""`expires_at` of an item that does not expire, so that one index holds all live items in order."""


class Statement(Generic[R]):
    """A statement with named parameters, and what makes of the values of a row what it returns:
    `_make` or another class method of the row's type, whose fields are the names of the columns; or
    no_row."""

    def __init__(self, text: str, row: Callable[[Iterable[Any]], R]) -> None:
        self.text = text
        self.row = row

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of its result."""
        return getattr(self._row_type, "_fields", ())

    @cached_property
    def returns_json(self) -> bool:
        """Whether JSON can hold all values of its result: it cannot hold bytes."""
        return self.columns != () and all(
            _kinds(hint) & _SQL_TYPES.keys() for hint in get_type_hints(self._row_type).values()
        )

    @cached_property
    def json_columns(self) -> tuple[str, ...]:
        """The names of the columns of its result that hold JSON."""
        hints = get_type_hints(self._row_type, include_extras=True)
        return tuple(name for name, hint in hints.items() if hint == JSONText)

    @property
    def _row_type(self) -> Any:
        return getattr(self.row, "__self__", None)


class BulkStatement(Statement[R], Generic[Row, R]):
    """A statement about many rows. It reads them from the table `input`, whose columns are the
    fields of their type. `looks_up`: its result has at most one row for each of them."""

    def __init__(
        self,
        text: str,
        input: type[Row],
        row: Callable[[Iterable[Any]], R],
        *,
        looks_up: bool = False,
    ) -> None:
        super().__init__(text, row)
        self.input = input
        self.looks_up = looks_up


class Insert(Generic[Row]):
    """An insert of whole rows into a table, whose columns are the fields of their type."""

    def __init__(self, table: str, row: type[Row]) -> None:
        self.table = table
        self.columns = columns_of(row)


def columns_of(row: type[tuple[Any, ...]]) -> dict[str, str]:
    """The SQL type of each field of a row."""
    return {name: _sql_type(hint) for name, hint in get_type_hints(row).items()}


def _sql_type(hint: Any) -> str:
    """The SQL type of a field, which may be `| None`."""
    (kind,) = _kinds(hint) & _SQL_TYPES.keys()
    return _SQL_TYPES[kind]


def _kinds(hint: Any) -> set[Any]:
    return {hint, *get_args(hint)}


_SQL_TYPES = {str: "TEXT", int: "BIGINT", bool: "BOOLEAN"}


def no_row(values: Iterable[Any]) -> None:
    """For statements that return no rows."""


# Visibility: the rules of `gregor.core.visibility` as conditions on a row of `messages`. Tests
# compare the two. A row without a category creates no item.

_ITEM_TIME = """
    CASE WHEN messages.starts_at > messages.ctime THEN messages.starts_at ELSE messages.ctime END
"""
_IN_SCOPE = """(
    messages.device_id IS NULL
    OR messages.device_id = :device_id
    OR CAST(:device_id AS TEXT) IS NULL
)"""


def _live(time: str) -> str:
    """Every known death counts. With this condition, a query can use the index `live_items`."""
    return (
        "messages.category IS NOT NULL AND messages.dismissed_at IS NULL"
        f" AND messages.expires_at > {time}"
    )


def _not_dead_at(time: str) -> str:
    """Deaths after a stated time do not count."""
    return (
        "messages.category IS NOT NULL"
        f" AND (messages.dismissed_at IS NULL OR messages.dismissed_at > {time})"
    )


def _begun(time: str) -> str:
    return f"(messages.starts_at IS NULL OR messages.starts_at <= {time})"


_LIVE_NOW = f"{_live(':now')} AND {_IN_SCOPE}"


def _live_at(columns: str, condition: str = "true") -> str:
    """These columns of the items that were live at `:time` by the messages up to `:known`, and that
    meet a condition. They are live now, or died since: each part has its index, so the cost does
    not grow with the user's log."""
    common = f"""
        messages.ctime <= :known AND messages.expires_at > :time AND {_IN_SCOPE} AND {condition}
    """
    return f"""
        SELECT {columns} FROM messages
        WHERE messages.uid = :uid AND messages.dismissed_at IS NULL
            AND messages.category IS NOT NULL AND {common}
        UNION ALL
        SELECT {columns} FROM messages
        WHERE messages.uid = :uid AND messages.dismissed_at > :known
            AND messages.category IS NOT NULL AND {common}
    """


# Rows that several statements share


class UserKey(NamedTuple):
    uid: UID


class UserRow(NamedTuple):
    uid: UID
    bucket: int


class UserClock(NamedTuple):
    uid: UID
    ctime: Time


class UserRecord(NamedTuple):
    """A user after a batch: the clock, the mark, and the hash with the instant up to which items
    that have expired are not in it."""

    uid: UID
    ctime: Time
    bucket: int
    hash: str
    hashed_until: Time
    mark: Time


class ItemKey(NamedTuple):
    uid: UID
    msg_id: MsgID


class Death(NamedTuple):
    """The id of an item, and the ctime of its dismissal."""

    uid: UID
    msg_id: MsgID
    ctime: Time


class BucketKey(NamedTuple):
    bucket: int


# Consuming


# On a database with row locks, a user is locked by the row that holds the user's clock. There is no
# deadlock: a transaction inserts users before it holds any lock, the lock order is the order of
# uids, and a row that is not committed yet is not visible, so no transaction waits to lock it.
INSERT_USERS = BulkStatement(
    """
    INSERT INTO users (uid, ctime, bucket)
    SELECT input.uid, 0, input.bucket FROM input
    WHERE NOT EXISTS (SELECT 1 FROM users WHERE users.uid = input.uid)
    ORDER BY input.uid
    ON CONFLICT DO NOTHING
    """,
    UserRow,
    no_row,
)

LOCK_USERS = BulkStatement(
    """
    SELECT users.uid FROM input JOIN users ON users.uid = input.uid
    ORDER BY users.uid FOR UPDATE OF users
    """,
    UserKey,
    no_row,
)


class LockedUser(NamedTuple):
    """A user of a batch, before it is stored: the clock, the mark, the history floor, the epoch,
    the hash (None: not computed yet), and a dismissed id if there is a tombstone. With each user
    comes the oldest code that may write: so every batch asks it, without a statement of its own."""

    uid: UID
    ctime: Time
    mark: Time
    floor: Time
    epoch: Time
    hash: str | None
    hashed_until: Time
    tombstone: UID | None
    oldest_writer: str


# The users of a batch. With these, most new items are known to be live without asking for each.
# Not part of the locking statement: a statement that waits for a lock sees the locked row as it is
# afterwards, and all other rows as they were before.
# Not EXISTS: PostgreSQL would build a hash table of the ids of all users for each query.
LOCKED_USERS = BulkStatement(
    """
    SELECT users.uid, users.ctime, users.mark, users.floor, users.epoch, users.hash,
        users.hashed_until,
        (SELECT uid FROM dismissed_ids WHERE dismissed_ids.uid = users.uid LIMIT 1) AS tombstone,
        (SELECT revision FROM oldest_writer) AS oldest_writer
    FROM input JOIN users ON users.uid = input.uid
    """,
    UserKey,
    LockedUser._make,
    looks_up=True,
)


class StoredMessage(NamedTuple):
    """A message as its row has it; the JSON is as it was sent. `dismissed_at` is of its item."""

    uid: UID
    msg_id: MsgID
    ctime: Time
    prev: Time
    message: JSONText
    dismissed_at: Time | None


# The stored messages with these ids.
KNOWN_MESSAGES = BulkStatement(
    """
    SELECT messages.uid, messages.msg_id, messages.ctime, messages.prev, messages.message,
        messages.dismissed_at
    FROM input
    JOIN messages ON messages.uid = input.uid AND messages.msg_id = input.msg_id
    """,
    ItemKey,
    StoredMessage._make,
    looks_up=True,
)


class PrunedMessage(NamedTuple):
    """What is left of a message whose contents are forgotten."""

    uid: UID
    msg_id: MsgID
    ctime: Time
    digest: Digest


# The messages with these ids whose contents are forgotten.
PRUNED_MESSAGES = BulkStatement(
    """
    SELECT pruned.uid, pruned.msg_id, pruned.ctime, pruned.digest
    FROM input JOIN pruned ON pruned.uid = input.uid AND pruned.msg_id = input.msg_id
    """,
    ItemKey,
    PrunedMessage._make,
)

INSERT_PRUNED = Insert("pruned", PrunedMessage)


# The tombstones of new items, which were dismissed before they arrived.
MATCHING_TOMBSTONES = BulkStatement(
    """
    SELECT dismissed_ids.uid, dismissed_ids.msg_id, dismissed_ids.ctime
    FROM input
    JOIN dismissed_ids
        ON dismissed_ids.uid = input.uid AND dismissed_ids.msg_id = input.msg_id
    """,
    ItemKey,
    Death._make,
)


class StoredRange(NamedTuple):
    """A range of a dismissal, with the scope and the id of its message; `skip_msg_ids` is a JSON
    array."""

    uid: UID
    ctime: Time
    end_time: Time
    category: Category
    prefix: bool
    skip_msg_ids: JSONText
    scheduled: bool
    device_id: DeviceID | None
    own: MsgID


# The ranges that may cover a late replay: those that end at or after its ctime.
RANGES_ENDING_AFTER = BulkStatement(
    """
    SELECT dismissed_ranges.uid, dismissed_ranges.ctime, dismissed_ranges.end_time,
        dismissed_ranges.category, dismissed_ranges.prefix, dismissed_ranges.skip_msg_ids,
        dismissed_ranges.scheduled, messages.device_id, messages.msg_id AS own
    FROM input
    JOIN dismissed_ranges
        ON dismissed_ranges.uid = input.uid AND dismissed_ranges.end_time >= input.ctime
    JOIN messages
        ON messages.uid = dismissed_ranges.uid AND messages.ctime = dismissed_ranges.ctime
    """,
    UserClock,
    StoredRange._make,
)


class KeyCtime(NamedTuple):
    uid: UID
    key: Key
    ctime: Time


class StoredKey(NamedTuple):
    """A key of a dismissal, with the scope and the id of its message."""

    uid: UID
    ctime: Time
    end_time: Time
    key: Key
    device_id: DeviceID | None
    own: MsgID


# The dismissals of a key that may cover a late replay: those that end at or after its ctime.
KEYS_ENDING_AFTER = BulkStatement(
    """
    SELECT dismissed_keys.uid, dismissed_keys.ctime, dismissed_keys.end_time, dismissed_keys.key,
        messages.device_id, messages.msg_id AS own
    FROM input
    JOIN dismissed_keys
        ON dismissed_keys.uid = input.uid AND dismissed_keys.key = input.key
            AND dismissed_keys.end_time >= input.ctime
    JOIN messages ON messages.uid = dismissed_keys.uid AND messages.ctime = dismissed_keys.ctime
    """,
    KeyCtime,
    StoredKey._make,
)


class RangePattern(NamedTuple):
    """What new ranges of a user may cover: items whose category matches, up to the latest end of
    the ranges. `ctime` is the earliest of the ranges. Items that had expired by `expired` are not
    looked up."""

    uid: UID
    ctime: Time
    end_time: Time
    category: Category
    prefix: int  # 0 or 1
    expired: Time


class MatchedItem(NamedTuple):
    """An item that ranges may cover, or dismissed keys: then with the key as its category."""

    uid: UID
    msg_id: MsgID
    ctime: Time
    category: Category
    device_id: DeviceID | None
    starts_at: Time | None

    @property
    def time(self) -> Time:
        return max(self.ctime, self.starts_at or 0)


# The `+` keeps PostgreSQL from reading all ctimes of the user instead of what is live.
_MATCHED = """
    SELECT messages.uid, messages.msg_id, messages.ctime, messages.category, messages.device_id,
        messages.starts_at
    FROM input
    JOIN messages ON messages.uid = input.uid
        AND {alive}
        AND +messages.ctime <= input.end_time
        AND (
            messages.category = input.category
            OR input.prefix = 1
            AND substr(messages.category, 1, length(input.category)) = input.category
        )
    """

# The items that new ranges may dismiss: those that are live and match. The caller compares them
# with the single ranges. An item that had expired by `expired` is left out: it is dead already.
ITEMS_MATCHED = BulkStatement(
    _MATCHED.format(alive=_live("input.expired")), RangePattern, MatchedItem._make
)

# The same for ranges of which one is replayed behind the user's clock: it may be an earlier death
# of an item that is dead already. This statement reads the user's whole log.
ITEMS_MATCHED_IN_LOG = BulkStatement(
    _MATCHED.format(alive=f"{_not_dead_at('input.ctime')} AND messages.expires_at > input.expired"),
    RangePattern,
    MatchedItem._make,
)


# SQLite uses the indexes of keys only if a statement says that the key is not NULL. The `+` keeps
# it from reading all ctimes of the user instead.


class NamedKey(NamedTuple):
    """A key that new dismissals name, with the latest of their ends, and the earliest of their
    ctimes."""

    uid: UID
    key: Key
    ctime: Time
    end_time: Time


_NAMED = """
    SELECT messages.uid, messages.msg_id, messages.ctime, messages.key AS category,
        messages.device_id, messages.starts_at
    FROM input
    JOIN messages ON messages.uid = input.uid AND messages.key = input.key
        AND messages.key IS NOT NULL AND {alive} AND +messages.ctime <= input.end_time
    """

# The items that new dismissals of keys may dismiss.
ITEMS_NAMED = BulkStatement(
    _NAMED.format(alive="messages.dismissed_at IS NULL"), NamedKey, MatchedItem._make
)

# The same for late replays: each item that ever had the key.
ITEMS_NAMED_IN_LOG = BulkStatement(
    _NAMED.format(alive=_not_dead_at("input.ctime")), NamedKey, MatchedItem._make
)


class KeyedItem(NamedTuple):
    """An item with a key."""

    uid: UID
    key: Key
    device_id: DeviceID | None
    ctime: Time


class FoundPredecessor(NamedTuple):
    """The predecessor of the item that was created at `successor`."""

    uid: UID
    successor: Time
    msg_id: MsgID
    ctime: Time


# The items whose place these take, dead or live: of the same key and scope, with the next smaller
# ctime. One look-up each in the index `keyed_items`.
PREDECESSORS = BulkStatement(
    """
    SELECT input.uid, input.ctime AS successor, messages.msg_id, messages.ctime
    FROM input
    JOIN messages ON messages.uid = input.uid AND messages.ctime = (
        SELECT earlier.ctime FROM messages AS earlier
        WHERE earlier.uid = input.uid AND earlier.key = input.key AND earlier.key IS NOT NULL
            AND coalesce(earlier.device_id, '') = coalesce(input.device_id, '')
            AND earlier.ctime < input.ctime
        ORDER BY earlier.ctime DESC LIMIT 1
    )
    """,
    KeyedItem,
    FoundPredecessor._make,
    looks_up=True,
)


class FoundSuccessor(NamedTuple):
    uid: UID
    ctime: Time
    successor: Time | None


# When items were replaced by a later one: asked for late replays only.
SUCCESSORS = BulkStatement(
    """
    SELECT input.uid, input.ctime, (
        SELECT later.ctime FROM messages AS later
        WHERE later.uid = input.uid AND later.key = input.key AND later.key IS NOT NULL
            AND coalesce(later.device_id, '') = coalesce(input.device_id, '')
            AND later.ctime > input.ctime
        ORDER BY later.ctime LIMIT 1
    ) AS successor
    FROM input
    """,
    KeyedItem,
    FoundSuccessor._make,
)


class DeadItem(NamedTuple):
    """An item that has died, and the ctime of the message of which it died; `size` is that of its
    own message."""

    uid: UID
    msg_id: MsgID
    ctime: Time
    device_id: DeviceID | None
    expires_at: Time
    dismissed_at: Time
    starts_at: Time | None
    size: int


_DISMISS = """
    UPDATE messages SET dismissed_at = input.ctime FROM input
    WHERE messages.uid = input.uid AND messages.msg_id = input.msg_id
        AND messages.category IS NOT NULL AND {condition}
    RETURNING messages.uid, messages.msg_id, messages.ctime, messages.device_id,
        messages.expires_at, messages.dismissed_at, messages.starts_at,
        database_size(messages.message) AS size
    """

# Dismiss the items that are not dead. Each id occurs once.
DISMISS_ITEMS = BulkStatement(
    _DISMISS.format(condition="messages.dismissed_at IS NULL"), Death, DeadItem._make
)

# Give items that are dead an earlier death, if this is one: only a late replay can be.
DISMISS_EARLIER = BulkStatement(
    _DISMISS.format(condition="messages.dismissed_at > input.ctime"), Death, DeadItem._make
)

# A replay between two messages becomes the predecessor of the later.
UPDATE_PREV = Statement(
    """
    UPDATE messages SET prev = :prev WHERE uid = :uid AND ctime = :ctime
    """,
    no_row,
)


class NextMessage(NamedTuple):
    ctime: Time
    msg_id: MsgID


# The neighbours of a ctime in a user's log.
NEXT_MESSAGE = Statement(
    """
    SELECT ctime, msg_id FROM messages WHERE uid = :uid AND ctime >= :ctime ORDER BY ctime LIMIT 1
    """,
    NextMessage._make,
)


class Clock(NamedTuple):
    ctime: Time


PREVIOUS_CTIME = Statement(
    """
    SELECT coalesce(max(ctime), 0) AS ctime FROM messages WHERE uid = :uid AND ctime < :ctime
    """,
    Clock._make,
)

# `WHERE true` keeps SQLite from reading ON as part of a join.
UPSERT_CLOCKS = BulkStatement(
    """
    INSERT INTO users (uid, ctime, bucket, hash, hashed_until, mark)
    SELECT input.uid, input.ctime, input.bucket, input.hash, input.hashed_until, input.mark
    FROM input WHERE true
    ON CONFLICT (uid) DO UPDATE SET ctime = excluded.ctime, hash = excluded.hash,
        hashed_until = excluded.hashed_until, mark = excluded.mark
    """,
    UserRecord,
    no_row,
)

# Store tombstones of dismissed ids whose item has not arrived. Returns the users of those that are
# new, and of those that get an earlier time, which only the dismissal of a late replay gives.
INSERT_TOMBSTONES = BulkStatement(
    """
    INSERT INTO dismissed_ids (uid, msg_id, ctime)
    SELECT input.uid, input.msg_id, input.ctime FROM input
    WHERE NOT EXISTS (
        SELECT 1 FROM messages
        WHERE messages.uid = input.uid AND messages.msg_id = input.msg_id
    )
    ON CONFLICT (uid, msg_id) DO UPDATE SET ctime = excluded.ctime
        WHERE excluded.ctime < dismissed_ids.ctime
    RETURNING dismissed_ids.uid
    """,
    Death,
    UserKey._make,
)

# The item has arrived, and its row holds its death.
DELETE_TOMBSTONES = BulkStatement(
    """
    DELETE FROM dismissed_ids WHERE (uid, msg_id) IN (SELECT uid, msg_id FROM input)
    """,
    ItemKey,
    no_row,
)


class HeldItems(NamedTuple):
    """How many items a user has, the bytes of their messages, and how many have not begun."""

    uid: UID
    items: int
    bytes: int
    scheduled: int


_HELD = """
    input.uid, count(messages.uid) AS items,
    CAST(coalesce(sum(database_size(messages.message)), 0) AS BIGINT) AS bytes,
    count(CASE WHEN messages.starts_at > input.ctime THEN 1 END) AS scheduled
"""

# What users have that is limited. Reads all that is live, so it is not asked with every batch.
HOLDINGS = BulkStatement(
    f"""
    SELECT {_HELD}
    FROM input LEFT JOIN messages ON messages.uid = input.uid AND {_live("input.ctime")}
    GROUP BY input.uid
    """,
    UserClock,
    HeldItems._make,
)


class UserSince(NamedTuple):
    """A user of whom it is known what was live at the time `ctime` by all messages up to the
    `clock`. It is asked what has changed since then, until `now`."""

    uid: UID
    clock: Time
    ctime: Time
    now: Time


# What these users had at that time and have no longer: it has died, or has expired. Reads only what
# has changed.
_GONE = f"""
    SELECT {_HELD}
    FROM input JOIN messages ON messages.uid = input.uid AND messages.category IS NOT NULL
        AND messages.dismissed_at > input.clock AND messages.expires_at > input.ctime
    GROUP BY input.uid
    UNION ALL
    SELECT {_HELD}
    FROM input JOIN messages ON messages.uid = input.uid AND {_live("input.ctime")}
        AND messages.expires_at <= input.now
    GROUP BY input.uid
"""


class HeldSince(NamedTuple):
    """What a user has got since a clock, and the bytes of all messages since then; or with negative
    numbers, what the user has lost."""

    uid: UID
    items: int
    bytes: int
    scheduled: int
    written: int


# What has changed for users since a clock, because other processes have stored something: what has
# arrived and was not dead before; and what is gone of this, and of what there was.
_ARRIVED = """
    messages.expires_at > input.ctime
    AND (messages.dismissed_at IS NULL OR messages.dismissed_at > input.clock)
"""
CHANGED_SINCE = BulkStatement(
    f"""
    SELECT input.uid, count(CASE WHEN {_ARRIVED} THEN 1 END) AS items,
        CAST(coalesce(
            sum(CASE WHEN {_ARRIVED} THEN database_size(messages.message) END), 0
        ) AS BIGINT) AS bytes,
        count(CASE WHEN messages.starts_at > input.ctime AND {_ARRIVED} THEN 1 END) AS scheduled,
        CAST(sum(database_size(messages.message)) AS BIGINT) AS written
    FROM input JOIN messages ON messages.uid = input.uid AND messages.ctime > input.clock
    GROUP BY input.uid
    UNION ALL
    SELECT gone.uid, -gone.items, -gone.bytes, -gone.scheduled, 0
    FROM ({_GONE}) AS gone
    """,
    UserSince,
    HeldSince._make,
)


class ItemAt(NamedTuple):
    uid: UID
    msg_id: MsgID
    ctime: Time


# What users have of these items: those that are live at this time.
HELD_AMONG = BulkStatement(
    f"""
    SELECT {_HELD}
    FROM input JOIN messages ON messages.uid = input.uid AND messages.msg_id = input.msg_id
        AND {_live("input.ctime")}
    GROUP BY input.uid
    """,
    ItemAt,
    HeldItems._make,
)


class TombstoneCount(NamedTuple):
    uid: UID
    tombstones: int


TOMBSTONE_COUNTS = BulkStatement(
    """
    SELECT input.uid, count(*) AS tombstones
    FROM input JOIN dismissed_ids ON dismissed_ids.uid = input.uid GROUP BY input.uid
    """,
    UserKey,
    TombstoneCount._make,
)

# Which of these ids would become tombstones: no message has them, and no dismissal named them yet.
NEW_TOMBSTONES = BulkStatement(
    """
    SELECT input.uid, input.msg_id FROM input
    WHERE NOT EXISTS (
        SELECT 1 FROM messages
        WHERE messages.uid = input.uid AND messages.msg_id = input.msg_id
    ) AND NOT EXISTS (
        SELECT 1 FROM dismissed_ids
        WHERE dismissed_ids.uid = input.uid AND dismissed_ids.msg_id = input.msg_id
    )
    """,
    ItemKey,
    ItemKey._make,
)


class MessageRow(NamedTuple):
    """A message as it is stored: `message` is the JSON that was sent. Only a creation has a
    category, a time of expiry, and perhaps a key and a start."""

    uid: UID
    ctime: Time
    prev: Time
    msg_id: MsgID
    device_id: DeviceID | None
    message: JSONText
    category: Category | None
    expires_at: Time | None
    dismissed_at: Time | None = None
    key: Key | None = None
    starts_at: Time | None = None
    author: Author | None = None


INSERT_MESSAGES = Insert("messages", MessageRow)


class RangeRow(NamedTuple):
    """A range of a dismissal as it is stored, with its number in the dismissal. `skip_msg_ids` is
    a JSON array."""

    uid: UID
    ctime: Time
    number: int
    end_time: Time
    category: Category
    prefix: bool
    skip_msg_ids: JSONText
    scheduled: bool


INSERT_RANGES = Insert("dismissed_ranges", RangeRow)


class KeyRow(NamedTuple):
    """A key of a dismissal as it is stored: once for each dismissal, with the latest end."""

    uid: UID
    key: Key
    ctime: Time
    end_time: Time


INSERT_KEYS = Insert("dismissed_keys", KeyRow)


# The hashes that are kept


class LiveEntry(NamedTuple):
    """An item without a death, as far as a hash needs it."""

    uid: UID
    device_id: DeviceID | None
    ctime: Time
    msg_id: MsgID
    expires_at: Time


# The items that are live after a ctime.
LIVE_ENTRIES = BulkStatement(
    f"""
    SELECT messages.uid, messages.device_id, messages.ctime, messages.msg_id, messages.expires_at
    FROM input JOIN messages ON messages.uid = input.uid AND {_live("input.ctime")}
    """,
    UserClock,
    LiveEntry._make,
)


class Period(NamedTuple):
    """The time of a user after `first`, up to `last`."""

    uid: UID
    first: Time
    last: Time


# The items that expired in a period, and did not die before.
EXPIRED_ENTRIES = BulkStatement(
    f"""
    SELECT messages.uid, messages.device_id, messages.ctime, messages.msg_id, messages.expires_at
    FROM input
    JOIN messages ON messages.uid = input.uid AND {_live("input.first")}
        AND messages.expires_at <= input.last
    """,
    Period,
    LiveEntry._make,
)


class ScopeKey(NamedTuple):
    uid: UID
    device_id: DeviceID


class ScopeHash(NamedTuple):
    uid: UID
    device_id: DeviceID
    hash: str


SCOPE_HASHES = BulkStatement(
    """
    SELECT scope_hashes.uid, scope_hashes.device_id, scope_hashes.hash
    FROM input JOIN scope_hashes
        ON scope_hashes.uid = input.uid AND scope_hashes.device_id = input.device_id
    """,
    ScopeKey,
    ScopeHash._make,
)

# All scopes of these users.
SCOPE_HASHES_OF_USERS = BulkStatement(
    """
    SELECT scope_hashes.uid, scope_hashes.device_id, scope_hashes.hash
    FROM input JOIN scope_hashes ON scope_hashes.uid = input.uid
    """,
    UserKey,
    ScopeHash._make,
)

UPSERT_SCOPE_HASHES = BulkStatement(
    """
    INSERT INTO scope_hashes (uid, device_id, hash)
    SELECT input.uid, input.device_id, input.hash FROM input WHERE true
    ON CONFLICT (uid, device_id) DO UPDATE SET hash = excluded.hash
    """,
    ScopeHash,
    no_row,
)


class UserHash(NamedTuple):
    uid: UID
    hash: str
    hashed_until: Time


UPDATE_HASHES = BulkStatement(
    """
    UPDATE users SET hash = input.hash, hashed_until = input.hashed_until FROM input
    WHERE users.uid = input.uid
    """,
    UserHash,
    no_row,
)


# Erasing a user


ERASURE = Statement(
    "SELECT users.epoch, users.erased_at FROM users WHERE users.uid = :uid", Erasure._make
)


class KeyAt(NamedTuple):
    key: str | Time


class Erasing(NamedTuple):
    """How the rows of `:uid` with a ctime up to `:epoch` are deleted from a table, which may be
    many, in parts: those after a key."""

    first: str | Time
    key_at: Statement[KeyAt]
    delete_up_to: Statement[None]
    delete_rest: Statement[None]

    @classmethod
    def of(cls, table: str, key: str, first: str | Time) -> "Erasing":
        after = f"uid = :uid AND {key} > :after"
        delete = f"DELETE FROM {table} WHERE {after} AND +ctime <= :epoch"
        select = f"SELECT {key} AS key FROM {table} WHERE {after}"
        return cls(
            first,
            Statement(f"{select} ORDER BY {key} LIMIT 1 OFFSET :rows", KeyAt._make),
            Statement(f"{delete} AND {key} <= :last", no_row),
            Statement(delete, no_row),
        )


ERASED_IN_PARTS = (
    Erasing.of("messages", "ctime", first=0),
    Erasing.of("dismissed_ranges", "ctime", first=0),
    Erasing.of("dismissed_ids", "msg_id", first=""),
    Erasing.of("pruned", "msg_id", first=""),
)

# What else an erase deletes. The hashes are computed again when they are needed.
DELETE_ERASED_KEYS = Statement(
    "DELETE FROM dismissed_keys WHERE uid = :uid AND ctime <= :epoch", no_row
)
DELETE_SCOPE_HASHES = Statement("DELETE FROM scope_hashes WHERE uid = :uid", no_row)

# The user's row after an erase. Messages that came later, and their mark, stay.
RAISE_EPOCH = Statement(
    """
    UPDATE users SET epoch = :epoch, erased_at = :erased_at, hash = NULL, hashed_until = 0,
        ctime = CASE WHEN ctime < :epoch THEN :epoch ELSE ctime END,
        floor = CASE WHEN floor < :epoch THEN :epoch ELSE floor END,
        mark = CASE WHEN mark <= :epoch THEN 0 ELSE mark END
    WHERE uid = :uid
    """,
    no_row,
)


class PendingErasure(NamedTuple):
    """A user who was erased, and a shard that may have an old copy from before."""

    shard: str
    uid: UID
    epoch: Time
    erased_at: Time


# For other shards than this one.
UPSERT_PENDING_ERASURES = BulkStatement(
    """
    INSERT INTO pending_erasures (shard, uid, epoch, erased_at)
    SELECT input.shard, input.uid, input.epoch, input.erased_at FROM input
    WHERE input.shard <> (SELECT name FROM shard)
    ON CONFLICT (shard, uid) DO UPDATE SET epoch = excluded.epoch, erased_at = excluded.erased_at
    """,
    PendingErasure,
    no_row,
)

PENDING_ERASURES = Statement(
    """
    SELECT shard, uid, epoch, erased_at FROM pending_erasures WHERE shard = :shard
    ORDER BY uid LIMIT :limit
    """,
    PendingErasure._make,
)

DELETE_PENDING_ERASURES = BulkStatement(
    """
    DELETE FROM pending_erasures WHERE (shard, uid, epoch) IN (SELECT shard, uid, epoch FROM input)
    """,
    PendingErasure,
    no_row,
)


# Pruning


class UserFloor(NamedTuple):
    """A user, and up to when what is past is forgotten."""

    uid: UID
    floor: Time


# A message may lose its contents if its ctime is up to the floor, and so is the death or the expiry
# of its item, if it has one. Each of these has its index, whatever is live or younger. The `+`
# keeps a query from reading all ctimes of the user instead.
_PAST = tuple(
    f"messages.uid = {{uid}} AND {condition}"
    for condition in (
        "messages.dismissed_at IS NOT NULL AND messages.dismissed_at <= :floor"
        " AND +messages.ctime <= :floor",
        "messages.dismissed_at IS NULL AND messages.category IS NOT NULL"
        " AND messages.expires_at <= :floor AND +messages.ctime <= :floor",
        "messages.dismissed_at > messages.expires_at AND messages.dismissed_at > :floor"
        " AND messages.expires_at <= :floor AND +messages.ctime <= :floor",
        "messages.category IS NULL AND messages.ctime <= :floor",
    )
)

_A_PAST_MESSAGE = " OR ".join(
    f"(SELECT 1 FROM messages WHERE {past.format(uid='input.uid')} LIMIT 1) IS NOT NULL"
    for past in _PAST
)

# The users who have messages that may lose their contents.
# Not EXISTS, nor a join: of many users, PostgreSQL would read more than is asked for.
USERS_TO_PRUNE = BulkStatement(
    f"SELECT input.uid FROM input WHERE {_A_PAST_MESSAGE}", UserKey, UserKey._make
)

# The first such messages of a user.
PAST_MESSAGES = Statement(
    " UNION ALL ".join(
        f"SELECT messages.uid, messages.ctime FROM messages WHERE {past.format(uid=':uid')}"
        for past in _PAST
    )
    + " LIMIT :limit",
    UserClock._make,
)

# Returns those whose floor was lower.
RAISE_FLOORS = BulkStatement(
    """
    UPDATE users SET floor = input.floor FROM input
    WHERE users.uid = input.uid AND users.floor < input.floor RETURNING users.uid
    """,
    UserFloor,
    UserKey._make,
)

# Returns those that were there.
DELETE_MESSAGES = BulkStatement(
    """
    DELETE FROM messages WHERE (uid, ctime) IN (SELECT uid, ctime FROM input)
    RETURNING uid, msg_id, ctime, prev, message, dismissed_at
    """,
    UserClock,
    StoredMessage._make,
)

# The ranges of these dismissals.
DELETE_RANGES = BulkStatement(
    "DELETE FROM dismissed_ranges WHERE (uid, ctime) IN (SELECT uid, ctime FROM input)",
    UserClock,
    no_row,
)

DELETE_KEYS = BulkStatement(
    "DELETE FROM dismissed_keys WHERE (uid, key, ctime) IN (SELECT uid, key, ctime FROM input)",
    KeyCtime,
    no_row,
)

# Idempotent: another shard may have copied the row here before.
ADD_PRUNED = BulkStatement(
    """
    INSERT INTO pruned (uid, msg_id, ctime, digest)
    SELECT input.uid, input.msg_id, input.ctime, input.digest FROM input WHERE true
    ON CONFLICT DO NOTHING
    """,
    PrunedMessage,
    no_row,
)


class KnownID(NamedTuple):
    """An id that is kept without contents, and since when."""

    uid: UID
    msg_id: MsgID
    ctime: Time


class TableOfIDs(NamedTuple):
    """What is asked of a table of ids: the next ones after one, in order, and to delete some."""

    after: Statement[KnownID]
    delete: BulkStatement[ItemKey, None]


def _table_of_ids(table: str) -> TableOfIDs:
    return TableOfIDs(
        Statement(
            f"""
            SELECT uid, msg_id, ctime FROM {table} WHERE (uid, msg_id) > (:uid, :msg_id)
            ORDER BY uid, msg_id LIMIT :limit
            """,
            KnownID._make,
        ),
        BulkStatement(
            f"DELETE FROM {table} WHERE (uid, msg_id) IN (SELECT uid, msg_id FROM input)",
            ItemKey,
            no_row,
        ),
    )


PRUNED_IDS = _table_of_ids("pruned")
TOMBSTONES = _table_of_ids("dismissed_ids")

# A transaction that changes what a bucket holds, and locks no user whom it may have to insert,
# begins with this: see WAIT_FOR_WRITERS.
LOCK_AS_WRITER = Statement("LOCK TABLE users IN ROW EXCLUSIVE MODE", no_row)


class LeaseHolder(NamedTuple):
    holder: str


# Take a lease that nobody has, or whose time has run out; or renew one's own. Returns the holder if
# that has succeeded.
TAKE_LEASE = Statement(
    """
    INSERT INTO leases (name, holder, until)
    VALUES (:name, :holder, database_now() + :duration)
    ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, until = excluded.until
        WHERE leases.holder = excluded.holder OR leases.until <= database_now()
    RETURNING holder
    """,
    LeaseHolder._make,
)

DELETE_LEASE = Statement("DELETE FROM leases WHERE name = :name AND holder = :holder", no_row)


# Shards


class Placement(NamedTuple):
    """The shard that holds a bucket. The version grows by one with each placement of the bucket."""

    bucket: int
    shard: str
    version: int


# Those of the buckets that another shard holds, with their placement.
BUCKETS_OF_OTHER_SHARDS = BulkStatement(
    """
    SELECT buckets.bucket, buckets.shard, buckets.version
    FROM input JOIN buckets ON buckets.bucket = input.bucket
        AND buckets.shard <> (SELECT name FROM shard)
    """,
    BucketKey,
    Placement._make,
    looks_up=True,
)

# The same for writes: a closed bucket does not accept messages either.
BUCKETS_NOT_WRITABLE = BulkStatement(
    """
    SELECT buckets.bucket, buckets.shard, buckets.version
    FROM input JOIN buckets ON buckets.bucket = input.bucket
        AND (buckets.shard <> (SELECT name FROM shard) OR buckets.closed_until > database_now())
    """,
    BucketKey,
    Placement._make,
    looks_up=True,
)

# A transaction that writes messages locks this table from its first statement until its commit.
# This lock waits for all of them, and later ones see what has changed meanwhile. PostgreSQL only:
# on SQLite there is one transaction at a time.
WAIT_FOR_WRITERS = Statement("LOCK TABLE users IN SHARE MODE", no_row)

# Short, because other transactions queue behind the waiting lock.
SET_LOCK_TIMEOUT = Statement("SET LOCAL lock_timeout = '200ms'", no_row)

PLACEMENTS = Statement(
    """
    SELECT bucket, shard, version FROM buckets ORDER BY bucket
    """,
    Placement._make,
)

PLACEMENT = Statement(
    """
    SELECT bucket, shard, version FROM buckets WHERE bucket = :bucket
    """,
    Placement._make,
)

PLACEMENTS_OF = BulkStatement(
    """
    SELECT buckets.bucket, buckets.shard, buckets.version
    FROM input JOIN buckets ON buckets.bucket = input.bucket
    ORDER BY buckets.bucket
    """,
    BucketKey,
    Placement._make,
)

# Let no transaction change these placements until the commit. PostgreSQL only.
LOCK_PLACEMENTS = BulkStatement(
    """
    SELECT buckets.bucket FROM input JOIN buckets ON buckets.bucket = input.bucket
    ORDER BY buckets.bucket FOR SHARE OF buckets
    """,
    BucketKey,
    no_row,
)

# The placements that are newer in this database.
NEWER_PLACEMENTS = BulkStatement(
    """
    SELECT buckets.bucket, buckets.shard, buckets.version
    FROM input JOIN buckets ON buckets.bucket = input.bucket AND buckets.version > input.version
    """,
    Placement,
    Placement._make,
)


class ClosedBucket(NamedTuple):
    """A bucket, and until when it is closed, by the database's clock."""

    bucket: int
    until: Time


# Close buckets that this shard holds.
CLOSE_BUCKETS = BulkStatement(
    """
    UPDATE buckets SET closed_until = input.until FROM input
    WHERE buckets.bucket = input.bucket AND buckets.shard = (SELECT name FROM shard)
    RETURNING buckets.bucket, buckets.shard, buckets.version
    """,
    ClosedBucket,
    Placement._make,
)


class ReleasedBucket(NamedTuple):
    """A closed bucket, and the shard to which it moves."""

    bucket: int
    until: Time
    shard: str


# Give buckets to another shard, if this shard holds them and they are still closed until that time.
RELEASE_BUCKETS = BulkStatement(
    """
    UPDATE buckets SET shard = input.shard, version = buckets.version + 1, closed_until = 0
    FROM input
    WHERE buckets.bucket = input.bucket AND buckets.shard = (SELECT name FROM shard)
        AND buckets.closed_until = input.until AND buckets.closed_until > database_now()
    RETURNING buckets.bucket, buckets.shard, buckets.version
    """,
    ReleasedBucket,
    Placement._make,
)

# The holder claims buckets: with a higher version, and open, so a move of them must start again.
CLAIM_BUCKETS = BulkStatement(
    """
    UPDATE buckets SET version = buckets.version + 1, closed_until = 0 FROM input
    WHERE buckets.bucket = input.bucket AND buckets.shard = (SELECT name FROM shard)
    RETURNING buckets.bucket, buckets.shard, buckets.version
    """,
    BucketKey,
    Placement._make,
)

# Undo CLOSE_BUCKETS.
REOPEN_BUCKETS = BulkStatement(
    """
    UPDATE buckets SET closed_until = 0 FROM input
    WHERE buckets.bucket = input.bucket AND buckets.closed_until = input.until
    """,
    ClosedBucket,
    no_row,
)


class ShardName(NamedTuple):
    name: str


SHARD_NAME = Statement("SELECT name FROM shard", ShardName._make)

INSERT_SHARD = Insert("shard", ShardName)


# Whether there are users: one of them.
ANY_USER = Statement("SELECT uid, bucket FROM users LIMIT 1", UserRow._make)

# The next users after a uid, in order.
USERS_AFTER = Statement(
    """
    SELECT uid, bucket FROM users WHERE uid > :after ORDER BY uid LIMIT :limit
    """,
    UserRow._make,
)

# Store the placements that are newer than the known ones; other rows are not even locked.
UPSERT_NEWER_PLACEMENTS = BulkStatement(
    """
    INSERT INTO buckets (bucket, shard, version, closed_until)
    SELECT input.bucket, input.shard, input.version, 0 FROM input
    WHERE NOT EXISTS (
        SELECT 1 FROM buckets
        WHERE buckets.bucket = input.bucket AND buckets.version >= input.version
    )
    ON CONFLICT (bucket) DO UPDATE
        SET shard = excluded.shard, version = excluded.version, closed_until = 0
        WHERE excluded.version > buckets.version
    RETURNING bucket, shard, version
    """,
    Placement,
    Placement._make,
)


class UserExtent(NamedTuple):
    uid: UID
    ctime: Time
    mark: Time
    floor: Time
    epoch: Time
    erased_at: Time
    messages: int


class CopiedMessage(NamedTuple):
    """A message of a user with this epoch; the JSON is as it was sent."""

    uid: UID
    msg_id: MsgID
    ctime: Time
    prev: Time
    message: JSONText
    author: Author | None
    epoch: Time
    died_at: Time | None


class CopiedPruned(NamedTuple):
    uid: UID
    msg_id: MsgID
    ctime: Time
    epoch: Time
    digest: Digest


class CopiedTombstone(NamedTuple):
    uid: UID
    msg_id: MsgID
    ctime: Time
    epoch: Time


# The users of buckets, with what their rows say, and their numbers of messages.
USERS_OF_BUCKETS = BulkStatement(
    """
    SELECT users.uid, users.ctime, users.mark, users.floor, users.epoch, users.erased_at,
        (SELECT count(*) FROM messages WHERE messages.uid = users.uid) AS messages
    FROM input JOIN users ON users.bucket = input.bucket AND users.ctime > 0
    """,
    BucketKey,
    UserExtent._make,
)

# The next messages of a user, in order. With each comes the user's epoch, and the death of its item
# if the message of which it died may be forgotten.
COPIED_MESSAGES = Statement(
    """
    SELECT messages.uid, messages.msg_id, messages.ctime, messages.prev, messages.message,
        messages.author, users.epoch,
        CASE WHEN messages.dismissed_at <= users.floor THEN messages.dismissed_at END AS died_at
    FROM messages JOIN users ON users.uid = messages.uid
    WHERE messages.uid = :uid AND messages.ctime > :after ORDER BY messages.ctime LIMIT :limit
    """,
    CopiedMessage._make,
)

# The next ids, in order, of messages whose contents are forgotten.
COPIED_PRUNED = Statement(
    """
    SELECT pruned.uid, pruned.msg_id, pruned.ctime, users.epoch, pruned.digest
    FROM pruned JOIN users ON users.uid = pruned.uid
    WHERE pruned.uid = :uid AND pruned.msg_id > :after ORDER BY pruned.msg_id LIMIT :limit
    """,
    CopiedPruned._make,
)

# The next ids, in order, that were dismissed and have not arrived.
COPIED_TOMBSTONES = Statement(
    """
    SELECT dismissed_ids.uid, dismissed_ids.msg_id, dismissed_ids.ctime, users.epoch
    FROM dismissed_ids JOIN users ON users.uid = dismissed_ids.uid
    WHERE dismissed_ids.uid = :uid AND dismissed_ids.msg_id > :after
    ORDER BY dismissed_ids.msg_id LIMIT :limit
    """,
    CopiedTombstone._make,
)


class NewCopy(NamedTuple):
    """A user of whom a copy is begun."""

    uid: UID
    bucket: int
    epoch: Time
    erased_at: Time


# The row of a user of whom a copy is begun: its clock will say how far the copy is.
BEGIN_COPIES = BulkStatement(
    """
    INSERT INTO users (uid, ctime, bucket, epoch, erased_at)
    SELECT input.uid, 0, input.bucket, input.epoch, input.erased_at FROM input WHERE true
    ON CONFLICT (uid) DO UPDATE SET ctime = 0, mark = 0, floor = 0, hash = NULL, hashed_until = 0,
        epoch = excluded.epoch, erased_at = excluded.erased_at
    """,
    NewCopy,
    no_row,
)

INSERT_COPIED_PRUNED = BulkStatement(
    """
    INSERT INTO pruned (uid, msg_id, ctime, digest)
    SELECT input.uid, input.msg_id, input.ctime, input.digest FROM input
    WHERE NOT EXISTS (
        SELECT 1 FROM messages
        WHERE messages.uid = input.uid AND messages.msg_id = input.msg_id
    )
    ON CONFLICT DO NOTHING
    """,
    PrunedMessage,
    no_row,
)


class CopiedUser(NamedTuple):
    uid: UID
    ctime: Time
    mark: Time
    floor: Time


# Say that the copies of these users are complete.
FINISH_COPIES = BulkStatement(
    """
    UPDATE users SET mark = input.mark, floor = input.floor,
        ctime = CASE WHEN users.ctime < input.ctime THEN input.ctime ELSE users.ctime END
    FROM input WHERE users.uid = input.uid
    """,
    CopiedUser,
    no_row,
)


# Exporting and importing


class UserLine(NamedTuple):
    """What an export says of a user."""

    uid: UID
    ctime: Time
    mark: Time
    epoch: Time
    floor: Time
    erased_at: Time


USER_LINE = Statement(
    """
    SELECT uid, ctime, mark, epoch, floor, erased_at FROM users WHERE uid = :uid
    """,
    UserLine._make,
)

# The next users after a uid who have something.
KNOWN_USERS_AFTER = Statement(
    """
    SELECT uid, bucket FROM users WHERE uid > :after AND ctime > 0 ORDER BY uid LIMIT :limit
    """,
    UserRow._make,
)


class ForgottenDeath(NamedTuple):
    uid: UID
    msg_id: MsgID
    ctime: Time
    dismissed_at: Time


# The next deaths of stored items, in the order of the items, whose messages may be forgotten.
FORGOTTEN_DEATHS = Statement(
    """
    SELECT messages.uid, messages.msg_id, messages.ctime, messages.dismissed_at
    FROM messages JOIN users ON users.uid = messages.uid
    WHERE messages.uid = :uid AND messages.ctime > :after
        AND messages.dismissed_at <= users.floor
    ORDER BY messages.ctime LIMIT :limit
    """,
    ForgottenDeath._make,
)


class MessageCount(NamedTuple):
    uid: UID
    ctime: Time
    messages: int


# How many messages there are of these users up to a ctime, with those that are forgotten.
MESSAGES_UP_TO = BulkStatement(
    """
    SELECT input.uid, input.ctime,
        (
            SELECT count(*) FROM messages
            WHERE messages.uid = input.uid AND messages.ctime <= input.ctime
        ) + (
            SELECT count(*) FROM pruned
            WHERE pruned.uid = input.uid AND pruned.ctime <= input.ctime
        ) AS messages
    FROM input
    """,
    UserClock,
    MessageCount._make,
)


class BucketLoad(NamedTuple):
    bucket: int
    users: int
    messages: int
    pruned: int
    bytes: int


# The numbers of users, messages, pruned messages, and bytes of these buckets.
LOADS = BulkStatement(
    """
    SELECT users.bucket, count(DISTINCT users.uid) AS users, count(messages.uid) AS messages,
        (
            SELECT count(*) FROM users AS pruning JOIN pruned ON pruned.uid = pruning.uid
            WHERE pruning.bucket = users.bucket
        ) AS pruned,
        CAST(coalesce(sum(length(messages.message)), 0) AS BIGINT) AS bytes
    FROM input
    JOIN users ON users.bucket = input.bucket AND users.ctime > 0
    LEFT JOIN messages ON messages.uid = users.uid
    GROUP BY users.bucket
    """,
    BucketKey,
    BucketLoad._make,
)


def delete_of_bucket(table: str) -> Statement[None]:
    """Delete the rows of the users of `:bucket` in a table."""
    return Statement(
        f"DELETE FROM {table} WHERE uid IN (SELECT uid FROM users WHERE bucket = :bucket)", no_row
    )


# The tables of a bucket's contents, the users last: the others are found by them.
TABLES_OF_BUCKETS = (
    "messages",
    "dismissed_ids",
    "dismissed_ranges",
    "dismissed_keys",
    "scope_hashes",
    "pruned",
    "users",
)
DELETE_BUCKET = tuple(delete_of_bucket(table) for table in TABLES_OF_BUCKETS)


def _delete_copies(table: str) -> BulkStatement[UserKey, None]:
    """Delete the rows of users in a table."""
    text = f"DELETE FROM {table} WHERE uid IN (SELECT uid FROM input)"
    return BulkStatement(text, UserKey, no_row)


DELETE_COPIES = tuple(_delete_copies(table) for table in TABLES_OF_BUCKETS if table != "users")

DATABASE_TIME = Statement("SELECT database_now() AS ctime", Clock._make)


# Reading one user, `:uid`


class UserHead(NamedTuple):
    """A user's clock, mark, history floor, last erase and hash (None: not computed yet), with the
    hash of one of the scopes that a device sees, if there are any."""

    ctime: Time
    mark: Time
    floor: Time
    epoch: Time
    erased_at: Time
    hash: str | None
    hashed_until: Time
    scope_hash: str | None


# The user, once for each scope that `:device_id` (NULL: any device) sees, and at least once.
USER_HEAD = Statement(
    """
    SELECT users.ctime, users.mark, users.floor, users.epoch, users.erased_at, users.hash,
        users.hashed_until, scope_hashes.hash AS scope_hash
    FROM users
    LEFT JOIN scope_hashes ON scope_hashes.uid = users.uid AND (
        scope_hashes.device_id = :device_id OR CAST(:device_id AS TEXT) IS NULL
    )
    WHERE users.uid = :uid
    """,
    UserHead._make,
)


USER_CLOCKS = BulkStatement(
    """
    SELECT users.uid, users.ctime FROM input JOIN users ON users.uid = input.uid
    """,
    UserKey,
    UserClock._make,
)


class Entry(NamedTuple):
    """What a hash is made of."""

    ctime: Time
    msg_id: MsgID


# The items that are live after `:now` in a scope that `:device_id` (NULL: any device) sees.
LIVE_IDS = Statement(
    f"SELECT ctime, msg_id FROM messages WHERE uid = :uid AND {_LIVE_NOW}", Entry._make
)

# The same, at a past or future time.
LIVE_IDS_AT = Statement(_live_at("messages.ctime, messages.msg_id"), Entry._make)

# Those of the items that had expired by `:last`.
EXPIRED_IDS = Statement(
    f"""
    SELECT ctime, msg_id FROM messages
    WHERE uid = :uid AND {_LIVE_NOW} AND messages.expires_at <= :last
    """,
    Entry._make,
)


class CategoryCount(NamedTuple):
    category: Category
    items: int


# How many items of each category `:device_id` (NULL: any device) sees now.
VISIBLE_CATEGORIES = Statement(
    f"""
    SELECT category, count(*) AS items FROM messages
    WHERE uid = :uid AND {_LIVE_NOW} AND {_begun(":now")}
    GROUP BY category
    """,
    CategoryCount._make,
)


class LoggedMessage(NamedTuple):
    """A message of a user's log; the JSON is as it was sent."""

    ctime: Time
    prev: Time
    message: JSONText


class StoredItem(NamedTuple):
    """The columns of an item. `message` is the JSON of its message, which contains the body."""

    msg_id: MsgID
    ctime: Time
    category: Category
    device_id: DeviceID | None
    expires_at: Time
    starts_at: Time | None
    key: Key | None
    message: JSONText

    @classmethod
    def item(cls, values: Iterable[Any]) -> Item:
        """The item itself, at once: a state has many."""
        msg_id, ctime, category, device_id, expires_at, starts_at, key, message = values
        end = None if expires_at == FOREVER else expires_at
        return Item(msg_id, ctime, category, body_of(message), device_id, end, starts_at, key)


_ITEM = """
    messages.msg_id, messages.ctime, messages.category, messages.device_id, messages.expires_at,
    messages.starts_at, messages.key, messages.message
"""


class Prefix(NamedTuple):
    prefix: Category


_HAS_PREFIX = """EXISTS (
    SELECT 1 FROM input WHERE substr(messages.category, 1, length(input.prefix)) = input.prefix
)"""


class ItemCtime(NamedTuple):
    """The ctime of the message that created an item."""

    ctime: Time

    @classmethod
    def value(cls, values: Iterable[Any]) -> Time:
        ctime: Time
        (ctime,) = values
        return ctime


def _page_of_state(*, newest_first: bool, condition: str) -> BulkStatement[Prefix, Time]:
    """The first `:limit` items that `:device_id` sees at `:time` by the messages up to `:known`,
    that come after a place in the order, and that meet a condition."""
    after, order = ("<", "DESC") if newest_first else (">", "ASC")
    columns = f"messages.ctime, messages.msg_id, {_ITEM_TIME} AS item_time"
    visible = _live_at(columns, f"{_begun(':time')} AND {condition}")
    return BulkStatement(
        f"""
        SELECT visible.ctime FROM ({visible}) AS visible
        WHERE (visible.item_time, visible.msg_id) {after} (:after_time, :after_id)
        ORDER BY visible.item_time {order}, visible.msg_id {order} LIMIT :limit
        """,
        Prefix,
        ItemCtime.value,
    )


OLDEST_ITEMS = _page_of_state(newest_first=False, condition="true")
NEWEST_ITEMS = _page_of_state(newest_first=True, condition="true")

# Those whose category begins with one of the prefixes.
OLDEST_WITH_PREFIX = _page_of_state(newest_first=False, condition=_HAS_PREFIX)
NEWEST_WITH_PREFIX = _page_of_state(newest_first=True, condition=_HAS_PREFIX)

# Those with the key as well: few, whatever the order.
_HAS_KEY = f"messages.key = :key AND messages.key IS NOT NULL AND {_HAS_PREFIX}"
OLDEST_WITH_KEY = _page_of_state(newest_first=False, condition=_HAS_KEY)
NEWEST_WITH_KEY = _page_of_state(newest_first=True, condition=_HAS_KEY)

# The items that the user's messages with these ctimes created, live or dead.
ITEMS_AT = BulkStatement(
    f"""
    SELECT {_ITEM}
    FROM input
    JOIN messages ON messages.uid = :uid AND messages.ctime = input.ctime
        AND messages.category IS NOT NULL
    """,
    ItemCtime,
    StoredItem.item,
)

# The next messages of the log, from a ctime on.
MESSAGES_FROM = Statement(
    """
    SELECT ctime, prev, message FROM messages WHERE uid = :uid AND ctime >= :start
    ORDER BY ctime LIMIT :limit
    """,
    LoggedMessage._make,
)


class ItemFateRow(NamedTuple):
    msg_id: MsgID
    ctime: Time
    device_id: DeviceID | None
    expires_at: Time
    dismissed_at: Time | None


# Whether the items that messages name are live, dismissed or expired.
ITEM_FATES = BulkStatement(
    """
    SELECT messages.msg_id, messages.ctime, messages.device_id, messages.expires_at,
        messages.dismissed_at
    FROM input
    JOIN messages ON messages.uid = input.uid AND messages.msg_id = input.msg_id
        AND messages.category IS NOT NULL
    """,
    ItemKey,
    ItemFateRow._make,
)


# The history of one item


class AuthoredMessage(NamedTuple):
    """A message with its author, and the death of its item."""

    ctime: Time
    prev: Time
    message: JSONText
    author: Author | None
    dismissed_at: Time | None


_AUTHORED = """
    SELECT messages.ctime, messages.prev, messages.message, messages.author, messages.dismissed_at
    FROM messages WHERE messages.uid = :uid AND
"""
MESSAGE_WITH_ID = Statement(f"{_AUTHORED} messages.msg_id = :msg_id", AuthoredMessage._make)

# One at most: the cause of a death at this ctime.
MESSAGE_AT = Statement(f"{_AUTHORED} messages.ctime = :ctime", AuthoredMessage._make)


# The schema, and the nodes that run on it


class TableCount(NamedTuple):
    tables: int


# Whether the database has a table. One without a schema does not even have `alembic_version`.
HAS_TABLE = Statement(
    "SELECT count(*) AS tables FROM database_tables WHERE name = :name", TableCount._make
)


class Revision(NamedTuple):
    revision: str


# The schema's revision, as Alembic keeps it.
SCHEMA_REVISION = Statement("SELECT version_num AS revision FROM alembic_version", Revision._make)

OLDEST_WRITER = Statement("SELECT revision FROM oldest_writer", Revision._make)

SET_OLDEST_WRITER = Statement("UPDATE oldest_writer SET revision = :revision", no_row)

SET_REVISION = Statement("UPDATE alembic_version SET version_num = :revision", no_row)


class DeploymentRow(NamedTuple):
    """Which deployment the database is of. The key is in hexadecimal digits."""

    id: str
    key: str


DEPLOYMENT = Statement("SELECT id, key FROM deployment", DeploymentRow._make)

# Of the deployment that is already there, nothing is changed.
INSERT_DEPLOYMENT = Statement(
    """
    INSERT INTO deployment (number, id, key) VALUES (1, :id, :key) ON CONFLICT (number) DO NOTHING
    """,
    no_row,
)

REPLACE_DEPLOYMENT = Statement(
    """
    INSERT INTO deployment (number, id, key) VALUES (1, :id, :key)
    ON CONFLICT (number) DO UPDATE SET id = excluded.id, key = excluded.key
    """,
    no_row,
)


class NodeRow(NamedTuple):
    """A node, and the revision for which its code was written."""

    name: str
    revision: str


# Register a node, or say that it still runs.
REGISTER_NODE = BulkStatement(
    """
    INSERT INTO nodes (name, revision, seen_at)
    SELECT input.name, input.revision, database_now() FROM input WHERE true
    ON CONFLICT (name) DO UPDATE SET revision = excluded.revision, seen_at = excluded.seen_at
    """,
    NodeRow,
    no_row,
)

DELETE_NODE = Statement("DELETE FROM nodes WHERE name = :name", no_row)

# Forget the nodes that have not said for this long that they run.
DELETE_SILENT_NODES = Statement(
    "DELETE FROM nodes WHERE seen_at < database_now() - :silence", no_row
)

RUNNING_NODES = Statement(
    """
    SELECT name, revision FROM nodes WHERE seen_at >= database_now() - :silence ORDER BY name
    """,
    NodeRow._make,
)


class SessionCount(NamedTuple):
    """The machine that a node connects from, and its number of connections."""

    client: str
    sessions: int


# Code before schema 0005 does not register, and is known by the name of its sessions. PostgreSQL
# only.
UNREGISTERED_NODES = Statement(
    """
    SELECT coalesce(host(client_addr), 'this machine') AS client, count(*) AS sessions
    FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'gregor'
    GROUP BY client_addr ORDER BY client_addr
    """,
    SessionCount._make,
)
