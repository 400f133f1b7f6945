"""One named SQL statement per query, with its reason above it.

A statement about many users takes its input rows as one JSON document: its text is the same
for any number of rows, it is compiled once, and SQLite runs it in a single step, during which the
other threads of the process run.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import count
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    CursorResult,
    Integer,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql import Executable
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from gregor.storage.tables import (
    buckets,
    dismissed_ids,
    dismissed_ranges,
    messages,
    shard,
    users,
)

Rows = Iterable[Sequence[object]]


class _JSONElements(FunctionElement[Any]):
    """The elements of a JSON array, as a table."""

    inherit_cache = True
    name = "json_elements"


@compiles(_JSONElements, "sqlite")
def _json_elements_on_sqlite(element: _JSONElements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_JSONElements, "postgresql")
def _json_elements_on_postgresql(element: _JSONElements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


class _DatabaseClock(FunctionElement[int]):
    """The database's clock, in microseconds, at evaluation (not at the start of the statement)."""

    inherit_cache = True
    name = "database_now"
    type = BigInteger()


@compiles(_DatabaseClock, "sqlite")
def _database_clock_on_sqlite(element: _DatabaseClock, compiler: SQLCompiler, **kw: Any) -> str:
    return (
        "database_now()"  # defined in sqlite.py: the process that holds the file has the only clock
    )


@compiles(_DatabaseClock, "postgresql")
def _database_clock_on_postgresql(element: _DatabaseClock, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


database_now = _DatabaseClock()


_input = _JSONElements(bindparam("rows", type_=Text)).table_valued("value", name="input")


def _text(position: int) -> ColumnElement[str]:
    """The value at this position of an input row, as text."""
    return cast(_input.c.value.op("->>")(literal_column(str(position))), Text)


def _number(position: int) -> ColumnElement[int]:
    """The value at this position of an input row, as an integer."""
    return cast(_input.c.value.op("->>")(literal_column(str(position))), BigInteger)


def execute(connection: Connection, statement: Executable, rows: Rows) -> CursorResult[Any]:
    """Execute a statement with these input rows."""
    return connection.execute(statement, {"rows": msgspec.json.encode(list(rows)).decode()})


# Consuming. Each statement names the columns of its input rows.

# On a database with row locks, a user is locked by the row that holds the user's clock. There is no
# deadlock: a transaction inserts users before it holds any lock, the lock order is the order of
# uids, and a row that is not committed yet is not visible, so no transaction waits to lock it.
# Rows: (uid, bucket).
insert_users = (
    postgresql.insert(users)
    .from_select(
        ["uid", "ctime", "bucket"],
        select(_text(0), literal_column("0"), cast(_number(1), Integer))
        .select_from(_input)
        .where(~select(users.c.uid).where(users.c.uid == _text(0)).correlate(_input).exists())
        .order_by(_text(0)),
    )
    .on_conflict_do_nothing()
)
lock_users = (
    select(users.c.uid)
    .select_from(_input.join(users, users.c.uid == _text(0)))
    .order_by(users.c.uid)
    .with_for_update(of=users)
)

# The users of a batch: their clocks, whether a user has tombstones of ids at all, and the latest
# end of the user's ranges. With these, most new items are known to be live without asking for each.
# Not part of the locking statement: a statement that waits for a lock sees the locked row as it is
# afterwards, and all other rows as they were before. Rows: (uid).
# Not EXISTS: PostgreSQL would build a hash table of the ids of all users for each query.
_tombstone = select(dismissed_ids.c.uid).where(dismissed_ids.c.uid == users.c.uid).limit(1)
_latest_range_end = select(func.max(dismissed_ranges.c.end_time)).where(
    dismissed_ranges.c.uid == users.c.uid
)
locked_users = select(
    users.c.uid,
    users.c.ctime,
    _tombstone.scalar_subquery().label("tombstone"),
    func.coalesce(_latest_range_end.scalar_subquery(), 0).label("latest_range_end"),
).select_from(_input.join(users, users.c.uid == _text(0)))

# The stored messages with these ids. Rows: (uid, msg_id).
known_messages = select(
    messages.c.uid, messages.c.msg_id, messages.c.ctime, messages.c.prev, messages.c.message
).select_from(
    _input.join(messages, and_(messages.c.uid == _text(0), messages.c.msg_id == _text(1)))
)

# The tombstones of new items, which were dismissed before they arrived. Rows: (uid, msg_id).
matching_tombstones = select(
    dismissed_ids.c.uid, dismissed_ids.c.msg_id, dismissed_ids.c.ctime
).select_from(
    _input.join(
        dismissed_ids,
        and_(dismissed_ids.c.uid == _text(0), dismissed_ids.c.msg_id == _text(1)),
    )
)

# The ranges that may cover a new item: those that end at or after its ctime. Rows: (uid, ctime).
ranges_ending_after = select(dismissed_ranges).select_from(
    _input.join(
        dismissed_ranges,
        and_(dismissed_ranges.c.uid == _text(0), dismissed_ranges.c.end_time >= _number(1)),
    )
)


def _items_covered(can_be_dismissed: ColumnElement[bool]) -> Select[Any]:
    category_matches = or_(
        messages.c.category == _text(3),
        and_(
            _number(4) == 1,
            func.substr(messages.c.category, 1, func.length(_text(3))) == _text(3),
        ),
    )
    return select(
        messages.c.uid, messages.c.msg_id, messages.c.category, _number(5).label("range")
    ).select_from(
        _input.join(
            messages,
            and_(
                messages.c.uid == _text(0),
                can_be_dismissed,
                messages.c.category.is_not(None),
                messages.c.expires_at > _number(6),
                messages.c.ctime <= _number(2),
                category_matches,
            ),
        )
    )


# The items that a new range dismisses: those that are live and match. The caller applies the ids to
# skip. An item that had expired by `expired` is left out: it is dead already.
# Rows: (uid, ctime, end, category, prefix, range, expired).
items_covered = _items_covered(messages.c.dismissed_at.is_(None))

# The same for a range that is replayed behind the user's clock: it may be an earlier death of an
# item that is dead already. This statement reads the user's whole log.
items_covered_in_log = _items_covered(
    or_(messages.c.dismissed_at.is_(None), messages.c.dismissed_at > _number(1))
)

# Dismiss items; the earliest death takes precedence. Rows: (uid, msg_id, ctime), each id once.
dismiss_items = (
    update(messages)
    .values(dismissed_at=_number(2))
    .where(
        messages.c.uid == _text(0),
        messages.c.msg_id == _text(1),
        messages.c.category.is_not(None),
        or_(messages.c.dismissed_at.is_(None), messages.c.dismissed_at > _number(2)),
    )
)

# A replay between two messages becomes the predecessor of the later. Rows: (uid, ctime, prev).
update_prev = (
    update(messages)
    .values(prev=_number(2))
    .where(messages.c.uid == _text(0), messages.c.ctime == _number(1))
)

# The neighbours of a ctime in a user's log.
previous_ctime = select(func.max(messages.c.ctime)).where(
    messages.c.uid == bindparam("uid"), messages.c.ctime < bindparam("ctime")
)
next_message = (
    select(messages.c.ctime, messages.c.msg_id)
    .where(messages.c.uid == bindparam("uid"), messages.c.ctime >= bindparam("ctime"))
    .order_by(messages.c.ctime)
    .limit(1)
)


# An upsert is built for the dialect that runs it.
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@cache
def upsert_clocks(dialect: str) -> Executable:
    """Set the users' clocks. Rows: (uid, ctime, bucket)."""
    rows = select(_text(0), _number(1), cast(_number(2), Integer)).select_from(_input).where(true())
    insert = _INSERTS[dialect](users).from_select(["uid", "ctime", "bucket"], rows)
    upsert: Executable = insert.on_conflict_do_update(
        index_elements=["uid"], set_={"ctime": insert.excluded.ctime}
    )
    return upsert


@cache
def insert_tombstones(dialect: str) -> Executable:
    """Store tombstones of dismissed ids whose item has not arrived. Rows: (uid, msg_id, ctime)."""
    known = (
        select(messages.c.uid)
        .where(messages.c.uid == _text(0), messages.c.msg_id == _text(1))
        .correlate(_input)
        .exists()
    )
    rows = select(_text(0), _text(1), _number(2)).select_from(_input).where(~known)
    insert = _INSERTS[dialect](dismissed_ids).from_select(["uid", "msg_id", "ctime"], rows)
    upsert: Executable = insert.on_conflict_do_update(
        index_elements=["uid", "msg_id"],
        set_={"ctime": insert.excluded.ctime},
        where=insert.excluded.ctime < dismissed_ids.c.ctime,
    )
    return upsert


# The item has arrived, and its row holds its death. Rows: (uid, msg_id).
delete_tombstones = delete(dismissed_ids).where(
    tuple_(dismissed_ids.c.uid, dismissed_ids.c.msg_id).in_(
        select(_text(0), _text(1)).select_from(_input)
    )
)


# Shards

# Those of the buckets that another shard holds, with their placement. Rows: (bucket).
_own_shard = select(shard.c.name).scalar_subquery()
_input_bucket = cast(_number(0), Integer)
buckets_of_other_shards = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).select_from(
    _input.join(buckets, and_(buckets.c.bucket == _input_bucket, buckets.c.shard != _own_shard))
)
# The same for writes: a closed bucket does not accept messages either.
buckets_not_writable = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).select_from(
    _input.join(
        buckets,
        and_(
            buckets.c.bucket == _input_bucket,
            or_(buckets.c.shard != _own_shard, buckets.c.closed_until > database_now),
        ),
    )
)

# A transaction that writes messages locks this table from its first statement until its commit.
# This lock waits for all of them, and later ones see what has changed meanwhile. PostgreSQL only:
# on SQLite there is one transaction at a time.
wait_for_writers = text("LOCK TABLE users IN SHARE MODE")

# Short, because other transactions queue behind the waiting lock.
set_lock_timeout = text("SET LOCAL lock_timeout = '200ms'")

placements = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).order_by(buckets.c.bucket)
# The placements that are newer in this database. Rows: (bucket, shard, version).
newer_placements = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).select_from(
    _input.join(buckets, and_(buckets.c.bucket == _input_bucket, buckets.c.version > _number(2)))
)

# Close buckets that this shard holds. Rows: (bucket, until).
close_buckets = (
    update(buckets)
    .where(buckets.c.bucket == _input_bucket, buckets.c.shard == _own_shard)
    .values(closed_until=_number(1))
    .returning(buckets.c.bucket, buckets.c.shard, buckets.c.version)
)
# Give buckets to another shard, if this shard holds them and they are still closed until that time.
# Rows: (bucket, until, shard).
release_buckets = (
    update(buckets)
    .where(
        buckets.c.bucket == _input_bucket,
        buckets.c.shard == _own_shard,
        buckets.c.closed_until == _number(1),
        buckets.c.closed_until > database_now,
    )
    .values(shard=_text(2), version=buckets.c.version + 1, closed_until=0)
    .returning(buckets.c.bucket, buckets.c.shard, buckets.c.version)
)
# The holder claims buckets: with a higher version, and open, so a move of them must start again.
# Rows: (bucket).
claim_buckets = (
    update(buckets)
    .where(buckets.c.bucket == _input_bucket, buckets.c.shard == _own_shard)
    .values(version=buckets.c.version + 1, closed_until=0)
    .returning(buckets.c.bucket, buckets.c.shard, buckets.c.version)
)
# Undo `close_buckets`. Rows: (bucket, until).
reopen_buckets = (
    update(buckets)
    .where(buckets.c.bucket == _input_bucket, buckets.c.closed_until == _number(1))
    .values(closed_until=0)
)
shard_name = select(shard.c.name)
any_user = select(users.c.uid).limit(1)
# The next users after a uid, in order.
users_after = (
    select(users.c.uid, users.c.bucket)
    .where(users.c.uid > bindparam("after"))
    .order_by(users.c.uid)
    .limit(bindparam("limit"))
)


@cache
def upsert_newer_placements(dialect: str) -> Executable:
    """Store the placements that are newer than the known ones; other rows are not even locked.
    Rows: (bucket, shard, version)."""
    known = (
        select(buckets.c.bucket)
        .where(buckets.c.bucket == _input_bucket, buckets.c.version >= _number(2))
        .correlate(_input)
        .exists()
    )
    rows = (
        select(_input_bucket, _text(1), _number(2), literal_column("0", Integer))
        .select_from(_input)
        .where(~known)
    )
    insert = _INSERTS[dialect](buckets).from_select(
        ["bucket", "shard", "version", "closed_until"], rows
    )
    upsert: Executable = insert.on_conflict_do_update(
        index_elements=["bucket"],
        set_={
            "shard": insert.excluded.shard,
            "version": insert.excluded.version,
            "closed_until": 0,
        },
        where=insert.excluded.version > buckets.c.version,
    )
    return upsert


# The users of buckets, with their clocks and numbers of messages. Rows: (bucket).
_message_count = select(func.count()).where(messages.c.uid == users.c.uid)
users_of_buckets = select(
    users.c.uid, users.c.ctime, _message_count.scalar_subquery().label("messages")
).select_from(_input.join(users, and_(users.c.bucket == _input_bucket, users.c.ctime > 0)))

# The numbers of users, messages and bytes of these buckets. Rows: (bucket).
loads = (
    select(
        users.c.bucket,
        func.count(users.c.uid.distinct()).label("users"),
        func.count().label("messages"),
        cast(func.coalesce(func.sum(func.length(messages.c.message)), 0), BigInteger).label(
            "bytes"
        ),
    )
    .select_from(
        _input.join(users, users.c.bucket == _input_bucket).join(
            messages, messages.c.uid == users.c.uid
        )
    )
    .group_by(users.c.bucket)
)


def delete_bucket(table: Table) -> Executable:
    """Delete the rows of the users of `bucket` in a table."""
    uids = select(users.c.uid).where(users.c.bucket == bindparam("bucket"))
    return delete(table).where(table.c.uid.in_(uids))


_BLOCK_SIZES = tuple(2**power for power in range(9, -1, -1))


def insert(connection: Connection, table: Table, rows: Sequence[Sequence[object]]) -> None:
    """Insert whole rows, in blocks of one statement each: row by row, each insert would release the
    interpreter lock and then wait for a busy event loop to get it back."""
    start = 0
    for size in _BLOCK_SIZES:
        while len(rows) - start >= size:
            block = rows[start : start + size]
            values = tuple(value for row in block for value in row)
            connection.exec_driver_sql(
                _insert_sql(table, size, connection.dialect.paramstyle), values
            )
            start += size


@cache
def _insert_sql(table: Table, rows: int, paramstyle: str) -> str:
    width = len(table.columns)
    is_numbered = paramstyle == "numeric_dollar"
    names = (f"${n}" if is_numbered else "?" for n in count(1))
    groups = ", ".join(f"({', '.join(next(names) for _ in range(width))})" for _ in range(rows))
    return f"INSERT INTO {table.name} VALUES {groups}"


# The database's clock, in microseconds.
database_time = select(database_now)


# Reading one user, `uid`

user_clock = select(users.c.ctime).where(users.c.uid == bindparam("uid"))

# The clocks of users. Rows: (uid).
user_clocks = select(users.c.uid, users.c.ctime).select_from(
    _input.join(users, users.c.uid == _text(0))
)

_is_live = and_(
    messages.c.uid == bindparam("uid"),
    messages.c.dismissed_at.is_(None),
    messages.c.category.is_not(None),
    messages.c.expires_at > bindparam("now"),
)

# The live items without their contents: enough for a hash.
live_ids = select(messages.c.ctime, messages.c.msg_id, messages.c.device_id).where(_is_live)

# The live items.
live_items = select(messages.c.ctime, messages.c.message).where(_is_live)

# The items that are live at a stated time. This statement reads the whole log up to then.
visible_at = select(messages.c.ctime, messages.c.message).where(
    messages.c.uid == bindparam("uid"),
    messages.c.category.is_not(None),
    messages.c.ctime <= bindparam("at"),
    messages.c.expires_at > bindparam("at"),
    or_(messages.c.dismissed_at.is_(None), messages.c.dismissed_at > bindparam("at")),
)

# The messages since a time. Overlap is harmless, a gap is not; therefore >=.
messages_since = (
    select(messages.c.ctime, messages.c.prev, messages.c.message)
    .where(messages.c.uid == bindparam("uid"), messages.c.ctime >= bindparam("start"))
    .order_by(messages.c.ctime)
)
messages_since_limited = messages_since.limit(bindparam("limit"))

# Whether the items that messages name are live, dismissed or expired. Rows: (uid, msg_id).
item_fates = select(
    messages.c.msg_id,
    messages.c.ctime,
    messages.c.device_id,
    messages.c.expires_at,
    messages.c.dismissed_at,
).select_from(
    _input.join(
        messages,
        and_(
            messages.c.uid == _text(0),
            messages.c.msg_id == _text(1),
            messages.c.category.is_not(None),
        ),
    )
)

# The tombstones for items that a replica at `cursor` may still receive: of ids, and ranges.
unmatched_tombstones = select(dismissed_ids.c.msg_id, dismissed_ids.c.ctime).where(
    dismissed_ids.c.uid == bindparam("uid")
)
ranges_after = (
    select(dismissed_ranges)
    .where(
        dismissed_ranges.c.uid == bindparam("uid"),
        dismissed_ranges.c.end_time > bindparam("cursor"),
    )
    .order_by(dismissed_ranges.c.end_time)
)
