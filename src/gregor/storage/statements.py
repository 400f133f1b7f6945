"""One named statement per question, with its reason above it.

A question about many users at once brings its rows as one JSON document: the statement is the
same text however many rows there are, it is compiled once, and SQLite answers it in a single
step, during which the other threads of the process run.
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
def _on_sqlite(element: _JSONElements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **kw)})"


@compiles(_JSONElements, "postgresql")
def _on_postgresql(element: _JSONElements, compiler: SQLCompiler, **kw: Any) -> str:
    return f"json_array_elements(CAST({compiler.process(element.clauses, **kw)} AS JSON))"


class _Now(FunctionElement[int]):
    """The database's own clock, in microseconds, and not as it was when the statement began."""

    inherit_cache = True
    name = "now_there"
    type = BigInteger()


@compiles(_Now, "sqlite")
def _now_on_sqlite(element: _Now, compiler: SQLCompiler, **kw: Any) -> str:
    return "now_there()"  # a function of ours: the process that holds the file is its only clock


@compiles(_Now, "postgresql")
def _now_on_postgresql(element: _Now, compiler: SQLCompiler, **kw: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


now_there = _Now()


_given = _JSONElements(bindparam("rows", type_=Text)).table_valued("value", name="given")


def _text(place: int) -> ColumnElement[str]:
    return cast(_given.c.value.op("->>")(literal_column(str(place))), Text)


def _number(place: int) -> ColumnElement[int]:
    return cast(_given.c.value.op("->>")(literal_column(str(place))), BigInteger)


def ask(connection: Connection, statement: Executable, rows: Rows) -> CursorResult[Any]:
    """Put a question about these rows."""
    return connection.execute(statement, {"rows": msgspec.json.encode(list(rows)).decode()})


# Consuming. Rows: see each statement.

# On a database with row locks, a user is locked by the row that holds the clock. Nobody waits in a
# circle: who makes rows holds no locks yet, who locks goes by the order of uids, and a row that is
# not committed yet is not seen, so that nobody waits to lock it. Rows: (uid, bucket).
introduce = (
    postgresql.insert(users)
    .from_select(
        ["uid", "ctime", "bucket"],
        select(_text(0), literal_column("0"), cast(_number(1), Integer))
        .select_from(_given)
        .where(~select(users.c.uid).where(users.c.uid == _text(0)).correlate(_given).exists())
        .order_by(_text(0)),
    )
    .on_conflict_do_nothing()
)
lock = (
    select(users.c.uid)
    .select_from(_given.join(users, users.c.uid == _text(0)))
    .order_by(users.c.uid)
    .with_for_update(of=users)
)

# The users of a batch. With their clocks comes what tells most new items apart from the dead
# without asking for each: whether ids of the user are awaited at all, and how far the user's ranges
# reach. Not asked while locking: who waits for a lock sees the row as it is then, and all else as
# it was before. Rows: (uid).
# PostgreSQL would answer EXISTS from a table of everybody's ids, which it makes each time.
_awaited = select(dismissed_ids.c.uid).where(dismissed_ids.c.uid == users.c.uid).limit(1)
_reach = select(func.max(dismissed_ranges.c.end_time)).where(dismissed_ranges.c.uid == users.c.uid)
users_taken = select(
    users.c.uid,
    users.c.ctime,
    _awaited.scalar_subquery().label("awaited"),
    func.coalesce(_reach.scalar_subquery(), 0).label("reach"),
).select_from(_given.join(users, users.c.uid == _text(0)))

# The messages that are known by these ids already. Rows: (uid, msg_id).
known_messages = select(
    messages.c.uid, messages.c.msg_id, messages.c.ctime, messages.c.prev, messages.c.message
).select_from(
    _given.join(messages, and_(messages.c.uid == _text(0), messages.c.msg_id == _text(1)))
)

# Which new items were said to be dead before they came. Rows: (uid, msg_id).
ids_awaiting = select(
    dismissed_ids.c.uid, dismissed_ids.c.msg_id, dismissed_ids.c.ctime
).select_from(
    _given.join(
        dismissed_ids,
        and_(dismissed_ids.c.uid == _text(0), dismissed_ids.c.msg_id == _text(1)),
    )
)

# Which ranges may reach a new item: those that end no earlier than it. Rows: (uid, ctime).
ranges_reaching = select(dismissed_ranges).select_from(
    _given.join(
        dismissed_ranges,
        and_(dismissed_ranges.c.uid == _text(0), dismissed_ranges.c.end_time >= _number(1)),
    )
)


def _covered(dead: ColumnElement[bool]) -> Select[Any]:
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
        _given.join(
            messages,
            and_(
                messages.c.uid == _text(0),
                dead,
                messages.c.category.is_not(None),
                messages.c.expires_at > _number(6),
                messages.c.ctime <= _number(2),
                category_matches,
            ),
        )
    )


# Which items a new range kills, ids to be skipped left aside: those that live and match. An item
# that had expired by `expired` is dead as it is.
# Rows: (uid, ctime, end, category, prefix, range, expired).
items_covered = _covered(messages.c.dismissed_at.is_(None))

# The same for a range that is replayed behind the user's clock: it may be an earlier death of an
# item that is dead already. This one reads the user's log.
items_covered_ever = _covered(
    or_(messages.c.dismissed_at.is_(None), messages.c.dismissed_at > _number(1))
)

# The earliest death counts. Rows: (uid, msg_id, ctime), each id once.
bury = (
    update(messages)
    .values(dismissed_at=_number(2))
    .where(
        messages.c.uid == _text(0),
        messages.c.msg_id == _text(1),
        messages.c.category.is_not(None),
        or_(messages.c.dismissed_at.is_(None), messages.c.dismissed_at > _number(2)),
    )
)

# A replay between two messages becomes the predecessor of the later one. Rows: (uid, ctime, prev).
relink = (
    update(messages)
    .values(prev=_number(2))
    .where(messages.c.uid == _text(0), messages.c.ctime == _number(1))
)

# The neighbours of a ctime in a user's log.
last_before = select(func.max(messages.c.ctime)).where(
    messages.c.uid == bindparam("uid"), messages.c.ctime < bindparam("ctime")
)
first_from = (
    select(messages.c.ctime, messages.c.msg_id)
    .where(messages.c.uid == bindparam("uid"), messages.c.ctime >= bindparam("ctime"))
    .order_by(messages.c.ctime)
    .limit(1)
)


# An upsert is built by the dialect that will run it.
_INSERTS: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


@cache
def move_clocks(dialect: str) -> Executable:
    """The users' clocks, now. Rows: (uid, ctime, bucket)."""
    rows = select(_text(0), _number(1), cast(_number(2), Integer)).select_from(_given).where(true())
    insert = _INSERTS[dialect](users).from_select(["uid", "ctime", "bucket"], rows)
    moved: Executable = insert.on_conflict_do_update(
        index_elements=["uid"], set_={"ctime": insert.excluded.ctime}
    )
    return moved


@cache
def await_ids(dialect: str) -> Executable:
    """Remember dismissed ids whose item has yet to come. Rows: (uid, msg_id, ctime)."""
    known = (
        select(messages.c.uid)
        .where(messages.c.uid == _text(0), messages.c.msg_id == _text(1))
        .correlate(_given)
        .exists()
    )
    rows = select(_text(0), _text(1), _number(2)).select_from(_given).where(~known)
    insert = _INSERTS[dialect](dismissed_ids).from_select(["uid", "msg_id", "ctime"], rows)
    earliest: Executable = insert.on_conflict_do_update(
        index_elements=["uid", "msg_id"],
        set_={"ctime": insert.excluded.ctime},
        where=insert.excluded.ctime < dismissed_ids.c.ctime,
    )
    return earliest


# What was awaited has come, and its row knows its death. Rows: (uid, msg_id).
forget_ids = delete(dismissed_ids).where(
    tuple_(dismissed_ids.c.uid, dismissed_ids.c.msg_id).in_(
        select(_text(0), _text(1)).select_from(_given)
    )
)


# Shards

# Which buckets are not for this database to take, and who has them. Rows: (bucket).
_here = select(shard.c.name).scalar_subquery()
_given_bucket = cast(_number(0), Integer)
held_elsewhere = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).select_from(
    _given.join(buckets, and_(buckets.c.bucket == _given_bucket, buckets.c.shard != _here))
)
# The same for what is written, which waits while a bucket is closed.
not_written_here = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).select_from(
    _given.join(
        buckets,
        and_(
            buckets.c.bucket == _given_bucket,
            or_(buckets.c.shard != _here, buckets.c.closed_until > now_there),
        ),
    )
)

# Who writes has this table locked from its first statement on, until it has committed. This waits
# for all of them, and whoever comes later sees what has been changed meanwhile. PostgreSQL only:
# to SQLite they come one by one.
await_writers = text("LOCK TABLE users IN SHARE MODE")

# For so long, while others wait behind it.
await_writers_briefly = text("SET LOCAL lock_timeout = '200ms'")

placements = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).order_by(buckets.c.bucket)
# Those that are newer here. Rows: (bucket, shard, version).
newer = select(buckets.c.bucket, buckets.c.shard, buckets.c.version).select_from(
    _given.join(buckets, and_(buckets.c.bucket == _given_bucket, buckets.c.version > _number(2)))
)

# Rows: (bucket, until).
close_buckets = (
    update(buckets)
    .where(buckets.c.bucket == _given_bucket, buckets.c.shard == _here)
    .values(closed_until=_number(1))
    .returning(buckets.c.bucket, buckets.c.shard, buckets.c.version)
)
# Whoever holds the buckets closed until then, and still does, gives them away.
# Rows: (bucket, until, shard).
release_buckets = (
    update(buckets)
    .where(
        buckets.c.bucket == _given_bucket,
        buckets.c.shard == _here,
        buckets.c.closed_until == _number(1),
        buckets.c.closed_until > now_there,
    )
    .values(shard=_text(2), version=buckets.c.version + 1, closed_until=0)
    .returning(buckets.c.bucket, buckets.c.shard, buckets.c.version)
)
# Whoever holds the buckets says so anew, and whoever has closed them begins again. Rows: (bucket).
reaffirm_buckets = (
    update(buckets)
    .where(buckets.c.bucket == _given_bucket, buckets.c.shard == _here)
    .values(version=buckets.c.version + 1, closed_until=0)
    .returning(buckets.c.bucket, buckets.c.shard, buckets.c.version)
)
# Rows: (bucket, until).
reopen_buckets = (
    update(buckets)
    .where(buckets.c.bucket == _given_bucket, buckets.c.closed_until == _number(1))
    .values(closed_until=0)
)
name_here = select(shard.c.name)
any_user = select(users.c.uid).limit(1)
# Some of the users who come after one, in order.
buckets_of_users = (
    select(users.c.uid, users.c.bucket)
    .where(users.c.uid > bindparam("after"))
    .order_by(users.c.uid)
    .limit(bindparam("most"))
)


@cache
def adopt_placements(dialect: str) -> Executable:
    """Whatever is newer than what is known; all else is left alone, and not even locked.
    Rows: (bucket, shard, version)."""
    known = (
        select(buckets.c.bucket)
        .where(buckets.c.bucket == _given_bucket, buckets.c.version >= _number(2))
        .correlate(_given)
        .exists()
    )
    rows = (
        select(_given_bucket, _text(1), _number(2), literal_column("0", Integer))
        .select_from(_given)
        .where(~known)
    )
    insert = _INSERTS[dialect](buckets).from_select(
        ["bucket", "shard", "version", "closed_until"], rows
    )
    adopted: Executable = insert.on_conflict_do_update(
        index_elements=["bucket"],
        set_={
            "shard": insert.excluded.shard,
            "version": insert.excluded.version,
            "closed_until": 0,
        },
        where=insert.excluded.version > buckets.c.version,
    )
    return adopted


# The users of buckets, how far each has come, and by how many messages. Rows: (bucket).
_stored = select(func.count()).where(messages.c.uid == users.c.uid)
users_of_buckets = select(
    users.c.uid, users.c.ctime, _stored.scalar_subquery().label("messages")
).select_from(_given.join(users, and_(users.c.bucket == _given_bucket, users.c.ctime > 0)))

# How much each of these buckets holds. Rows: (bucket).
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
        _given.join(users, users.c.bucket == _given_bucket).join(
            messages, messages.c.uid == users.c.uid
        )
    )
    .group_by(users.c.bucket)
)


def of_bucket(table: Table) -> Executable:
    """Remove what the users of the bucket `of` have in a table."""
    theirs = select(users.c.uid).where(users.c.bucket == bindparam("of"))
    return delete(table).where(table.c.uid.in_(theirs))


_BLOCKS = tuple(2**power for power in range(9, -1, -1))


def insert(connection: Connection, table: Table, rows: Sequence[Sequence[object]]) -> None:
    """Whole rows, in blocks of one statement each: an insert row by row would take and release
    the interpreter's lock for every one of them, and wait each time for a busy event loop."""
    start = 0
    for size in _BLOCKS:
        while len(rows) - start >= size:
            block = rows[start : start + size]
            values = tuple(value for row in block for value in row)
            connection.exec_driver_sql(
                _insert_text(table, size, connection.dialect.paramstyle), values
            )
            start += size


@cache
def _insert_text(table: Table, rows: int, paramstyle: str) -> str:
    width = len(table.columns)
    numbered = paramstyle == "numeric_dollar"
    places = (f"${n}" if numbered else "?" for n in count(1))
    groups = ", ".join(f"({', '.join(next(places) for _ in range(width))})" for _ in range(rows))
    return f"INSERT INTO {table.name} VALUES {groups}"


# The database's own time, in microseconds.
time_there = select(now_there)


# Reading one user, `uid`

clock = select(users.c.ctime).where(users.c.uid == bindparam("uid"))

# The clocks of users. Rows: (uid).
clocks = select(users.c.uid, users.c.ctime).select_from(_given.join(users, users.c.uid == _text(0)))

_is_live = and_(
    messages.c.uid == bindparam("uid"),
    messages.c.dismissed_at.is_(None),
    messages.c.category.is_not(None),
    messages.c.expires_at > bindparam("now"),
)

# What is visible now, without the contents: enough for a hash.
live_names = select(messages.c.ctime, messages.c.msg_id, messages.c.device_id).where(_is_live)

# What is visible now.
live = select(messages.c.ctime, messages.c.message).where(_is_live)

# What was, or will be, visible at a stated time. This one reads the log up to then.
visible_at = select(messages.c.ctime, messages.c.message).where(
    messages.c.uid == bindparam("uid"),
    messages.c.category.is_not(None),
    messages.c.ctime <= bindparam("at"),
    messages.c.expires_at > bindparam("at"),
    or_(messages.c.dismissed_at.is_(None), messages.c.dismissed_at > bindparam("at")),
)

# A device that was away asks for its user's messages. Overlap is harmless, a gap is not: hence >=.
since = (
    select(messages.c.ctime, messages.c.prev, messages.c.message)
    .where(messages.c.uid == bindparam("uid"), messages.c.ctime >= bindparam("start"))
    .order_by(messages.c.ctime)
)
since_at_most = since.limit(bindparam("most"))

# What has become of items that messages name. Rows: (uid, msg_id).
fates = select(
    messages.c.msg_id,
    messages.c.ctime,
    messages.c.device_id,
    messages.c.expires_at,
    messages.c.dismissed_at,
).select_from(
    _given.join(
        messages,
        and_(
            messages.c.uid == _text(0),
            messages.c.msg_id == _text(1),
            messages.c.category.is_not(None),
        ),
    )
)

# The tombstones of what may still arrive at a replica that knows all up to `cursor`.
awaited_ids = select(dismissed_ids.c.msg_id, dismissed_ids.c.ctime).where(
    dismissed_ids.c.uid == bindparam("uid")
)
ranges_ahead = (
    select(dismissed_ranges)
    .where(
        dismissed_ranges.c.uid == bindparam("uid"),
        dismissed_ranges.c.end_time > bindparam("cursor"),
    )
    .order_by(dismissed_ranges.c.end_time)
)
