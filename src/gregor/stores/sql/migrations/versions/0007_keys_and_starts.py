"""Items have keys and starts, and the hash of a state is kept as a sum.

A message's ranges no longer reach the item that it creates itself and, if the message is of a
device, no longer what only another device sees. Items that died of such a range stay dead: their
ids are added to the stored dismissal, as in 0004, so that the state still follows from the
messages. The hashes are computed when they are first needed.

Code before this schema does not know what it must keep up, so it may not write any more.
"""

from collections.abc import Sequence
from itertools import groupby

import msgspec
import sqlalchemy as sa
from alembic import op
from msgspec import Raw

revision = "0007"
down_revision = "0006"

BATCH_SIZE = 1_000
Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

messages = sa.table(
    "messages",
    sa.column("uid", sa.Text),
    sa.column("ctime", sa.BigInteger),
    sa.column("msg_id", sa.Text),
    sa.column("device_id", sa.Text),
    sa.column("message", sa.Text),
    sa.column("category", sa.Text),
    sa.column("dismissed_at", sa.BigInteger),
)
ranges = sa.table("dismissed_ranges", sa.column("uid", sa.Text), sa.column("ctime", sa.BigInteger))


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        # First, so that no writer holds a lock for which a later step waits. Readers are kept
        # waiting only from the first new column on.
        op.execute("LOCK TABLE users IN SHARE MODE")
    _create_partial_index("deaths", ["uid", "dismissed_at"], "dismissed_at IS NOT NULL")
    _name_items_that_are_not_reached_any_more()
    _add_columns()
    _create_tables()
    scope = sa.text("coalesce(device_id, '')")
    _create_partial_index("keyed_items", ["uid", "key", scope, "ctime"], "key IS NOT NULL")
    live = "key IS NOT NULL AND dismissed_at IS NULL"
    _create_partial_index("live_keys", ["uid", "key", "ctime"], live)


def _create_partial_index(name: str, columns: Sequence[str | sa.TextClause], where: str) -> None:
    text = sa.text(where)
    op.create_index(name, "messages", columns, sqlite_where=text, postgresql_where=text)


def _add_columns() -> None:
    zero, false = sa.text("0"), sa.text("false")
    op.add_column("users", sa.Column("hash", Name))
    op.add_column(
        "users", sa.Column("hashed_until", sa.BigInteger, nullable=False, server_default=zero)
    )
    op.add_column("users", sa.Column("mark", sa.BigInteger, nullable=False, server_default=zero))
    op.add_column("messages", sa.Column("key", Name))
    op.add_column("messages", sa.Column("starts_at", sa.BigInteger))
    scheduled = sa.Column("scheduled", sa.Boolean, nullable=False, server_default=false)
    op.add_column("dismissed_ranges", scheduled)


def _create_tables() -> None:
    op.create_table(
        "scope_hashes",
        sa.Column("uid", Name, nullable=False),
        sa.Column("device_id", Name, nullable=False),
        sa.Column("hash", Name, nullable=False),
        sa.PrimaryKeyConstraint("uid", "device_id"),
    )
    op.create_table(
        "dismissed_keys",
        sa.Column("uid", Name, nullable=False),
        sa.Column("key", Name, nullable=False),
        sa.Column("ctime", sa.BigInteger, nullable=False),
        sa.Column("end_time", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("uid", "key", "ctime"),
    )


def _name_items_that_are_not_reached_any_more() -> None:
    """Name these items in the dismissal of which they died. No two messages of a user have the same
    ctime, so the death of an item says which dismissal that was."""
    connection = op.get_bind()
    dismissal, item = messages.alias("dismissal"), messages.alias("item")
    has_range = sa.exists().where(
        ranges.c.uid == dismissal.c.uid, ranges.c.ctime == dismissal.c.ctime
    )
    place = sa.tuple_(item.c.uid, item.c.dismissed_at, item.c.ctime)
    last = [
        sa.bindparam(name, type_=type_)
        for name, type_ in (
            ("uid", sa.Text),
            ("dismissed_at", sa.BigInteger),
            ("ctime", sa.BigInteger),
        )
    ]
    next_items = (
        sa.select(item.c.uid, item.c.dismissed_at, item.c.ctime, item.c.msg_id)
        .join(
            dismissal,
            sa.and_(dismissal.c.uid == item.c.uid, dismissal.c.ctime == item.c.dismissed_at),
        )
        .where(
            item.c.dismissed_at.is_not(None),
            item.c.category.is_not(None),
            sa.or_(item.c.ctime == dismissal.c.ctime, item.c.device_id != dismissal.c.device_id),
            has_range,
            place > sa.tuple_(*last),
        )
        .order_by(item.c.uid, item.c.dismissed_at, item.c.ctime)
        .limit(BATCH_SIZE)
    )
    place_read: dict[str, object] = {"uid": "", "dismissed_at": 0, "ctime": 0}
    while items := connection.execute(next_items, place_read).all():
        for (uid, ctime), died in groupby(items, key=lambda row: (row.uid, row.dismissed_at)):
            _name(connection, uid, ctime, [row.msg_id for row in died])
        uid, dismissed_at, ctime, _ = items[-1]
        place_read = {"uid": uid, "dismissed_at": dismissed_at, "ctime": ctime}


def _name(connection: sa.Connection, uid: str, ctime: int, died: Sequence[str]) -> None:
    """Name these items in the dismissal of the message with this ctime."""
    this = sa.and_(messages.c.uid == uid, messages.c.ctime == ctime)
    stored = connection.scalars(sa.select(messages.c.message).where(this)).one()
    naming = with_ids(stored, died)
    connection.execute(sa.update(messages).where(this).values(message=naming))


def with_ids(stored: str, died: Sequence[str]) -> str:
    """The JSON of a message whose dismissal also names these ids, after those that were added
    before."""
    message = msgspec.json.decode(stored, type=dict[str, Raw])
    dismissal = msgspec.json.decode(message["dismissal"], type=dict[str, Raw])
    named = msgspec.json.decode(dismissal.get("msg_ids", b"[]"), type=list[str])
    before = msgspec.json.decode(dismissal.get("added", b"0"), type=int)
    added = [msg_id for msg_id in died if msg_id not in named]
    if not added:
        return stored
    dismissal["msg_ids"] = Raw(msgspec.json.encode([*named, *added]))
    dismissal["added"] = Raw(msgspec.json.encode(before + len(added)))
    message["dismissal"] = Raw(msgspec.json.encode(dismissal))
    return msgspec.json.encode(message).decode()
