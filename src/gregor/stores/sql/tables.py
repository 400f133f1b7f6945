"""The tables. The migrations create them; a test checks that the two agree."""

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

metadata = MetaData()

# Equality and prefixes are compared byte for byte, in every database.
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
    # Of creations only:
    Column("category", Name),
    Column("expires_at", BigInteger),
    Column("dismissed_at", BigInteger),
    PrimaryKeyConstraint("uid", "ctime"),
    UniqueConstraint("uid", "msg_id"),
)

# Live items only: the cost of a state and of a range dismissal is proportional to what is live,
# however long the user's log is.
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
    "dismissed_ids",  # the tombstones of items that have not arrived yet
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

# For a new item, only the ranges whose end is at or after its ctime are read.
Index("reaching_ranges", dismissed_ranges.c.uid, dismissed_ranges.c.end_time)

# The name of this shard; no row if the database is not one of several shards.
shard = Table("shard", metadata, Column("name", Name, primary_key=True))

# The shard map as far as this database knows it; no rows if it holds all buckets. Of the buckets
# that it released itself it always knows.
buckets = Table(
    "buckets",
    metadata,
    Column("bucket", Integer, primary_key=True, autoincrement=False),
    Column("shard", Name, nullable=False),
    Column("version", BigInteger, nullable=False),  # the higher version takes precedence
    Column("closed_until", BigInteger, nullable=False),  # for writes, by this database's clock
)
