"""The tables, one word for one thing. The migrations make them; a test holds the two equal."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    and_,
    text,
)

FOREVER = 2**62
"""`expires_at` of an item that does not expire, so that one index holds what is live in order."""

metadata = MetaData()

# Bytes decide what is equal and what begins with what, in every database.
Name = Text().with_variant(Text(collation="C"), "postgresql")

users = Table(
    "users",
    metadata,
    Column("uid", Name, primary_key=True),
    Column("ctime", BigInteger, nullable=False),  # the user's clock
    Column("bucket", Integer, nullable=False, server_default=text("-1")),  # see core/buckets.py
)
Index("users_of_bucket", users.c.bucket)

messages = Table(
    "messages",
    metadata,
    Column("uid", Name, nullable=False),
    Column("ctime", BigInteger, nullable=False),
    Column("prev", BigInteger, nullable=False),
    Column("msg_id", Name, nullable=False),
    Column("device_id", Name),
    Column("message", Text, nullable=False),  # as it was sent
    # Of a creation only:
    Column("category", Name),
    Column("expires_at", BigInteger),
    Column("dismissed_at", BigInteger),
    PrimaryKeyConstraint("uid", "ctime"),
    UniqueConstraint("uid", "msg_id"),
)

# What is live, and nothing else: a state and a range dismissal cost what they find here, however
# long the user's log has grown.
Index(
    "live_items",
    messages.c.uid,
    messages.c.expires_at,
    messages.c.category,
    messages.c.ctime,
    sqlite_where=and_(messages.c.dismissed_at.is_(None), messages.c.category.is_not(None)),
    postgresql_where=and_(messages.c.dismissed_at.is_(None), messages.c.category.is_not(None)),
)

dismissed_ids = Table(
    "dismissed_ids",  # of items that have yet to arrive
    metadata,
    Column("uid", Name, nullable=False),
    Column("msg_id", Name, nullable=False),
    Column("ctime", BigInteger, nullable=False),  # of the dismissal
    PrimaryKeyConstraint("uid", "msg_id"),
)

dismissed_ranges = Table(
    "dismissed_ranges",
    metadata,
    Column("uid", Name, nullable=False),
    Column("ctime", BigInteger, nullable=False),  # of the dismissal
    Column("number", Integer, nullable=False),  # of the range within the dismissal
    Column("end_time", BigInteger, nullable=False),
    Column("category", Name, nullable=False),
    Column("prefix", Boolean, nullable=False),
    Column("skip_msg_ids", Text, nullable=False),  # a JSON array
    PrimaryKeyConstraint("uid", "ctime", "number"),
)

# A new item asks only for the ranges whose end reaches it.
Index("reaching_ranges", dismissed_ranges.c.uid, dismissed_ranges.c.end_time)

# The name of this database among the shards; no row, if it is not one of several.
shard = Table("shard", metadata, Column("name", Name, primary_key=True))

# Who holds which bucket, as far as this database knows; nothing, if it holds all. Of what it has
# let go itself it always knows.
buckets = Table(
    "buckets",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("shard", Name, nullable=False),
    Column("version", BigInteger, nullable=False),  # of two that differ, the higher one is right
    Column("closed_until", BigInteger, nullable=False),  # for writes, by this database's clock
)
