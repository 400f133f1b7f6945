"""A range ends at the ctime of its dismissal at the latest.

Until this schema, a range whose stated end was later dismissed also what was created until then.
These items stay dead: their ids are added to the stored dismissal, so that the state still follows
from the messages. `added` says how many, so that the message that was sent is still a duplicate.
"""

from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op
from msgspec import Raw

revision = "0004"
down_revision = "0003"

BATCH_SIZE = 1_000
messages = sa.table(
    "messages",
    sa.column("uid", sa.Text),
    sa.column("ctime", sa.BigInteger),
    sa.column("msg_id", sa.Text),
    sa.column("message", sa.Text),
    sa.column("category", sa.Text),
    sa.column("dismissed_at", sa.BigInteger),
)
ranges = sa.table(
    "dismissed_ranges",
    sa.column("uid", sa.Text),
    sa.column("ctime", sa.BigInteger),
    sa.column("end_time", sa.BigInteger),
)


def upgrade() -> None:
    connection = op.get_bind()
    after = sa.tuple_(
        sa.bindparam("uid", type_=sa.Text), sa.bindparam("ctime", type_=sa.BigInteger)
    )
    next_dismissals = (
        sa.select(ranges.c.uid, ranges.c.ctime)
        .where(sa.tuple_(ranges.c.uid, ranges.c.ctime) > after, ranges.c.end_time > ranges.c.ctime)
        .distinct()
        .order_by(ranges.c.uid, ranges.c.ctime)
        .limit(BATCH_SIZE)
    )
    last = {"uid": "", "ctime": 0}
    while dismissals := connection.execute(next_dismissals, last).all():
        for dismissal in dismissals:
            _name_later_items(connection, dismissal.uid, dismissal.ctime)
        last = {"uid": dismissals[-1].uid, "ctime": dismissals[-1].ctime}
    late = ranges.c.end_time > ranges.c.ctime
    connection.execute(sa.update(ranges).where(late).values(end_time=ranges.c.ctime))


def _name_later_items(connection: sa.Connection, uid: str, ctime: int) -> None:
    """Name the items in this dismissal that died of it, and were created after it."""
    later = sa.select(messages.c.msg_id).where(
        messages.c.uid == uid,
        messages.c.ctime > ctime,
        messages.c.category.is_not(None),
        messages.c.dismissed_at == ctime,
    )
    killed = connection.scalars(later.order_by(messages.c.ctime)).all()
    if killed:
        this = sa.and_(messages.c.uid == uid, messages.c.ctime == ctime)
        stored = connection.scalars(sa.select(messages.c.message).where(this)).one()
        naming = with_ids(stored, killed)
        connection.execute(sa.update(messages).where(this).values(message=naming))


def with_ids(stored: str, killed: Any) -> str:
    """The JSON of a message whose dismissal also names these ids."""
    message = msgspec.json.decode(stored, type=dict[str, Raw])
    dismissal = msgspec.json.decode(message["dismissal"], type=dict[str, Raw])
    sent = msgspec.json.decode(dismissal.get("msg_ids", b"[]"), type=list[str])
    added = [msg_id for msg_id in killed if msg_id not in sent]
    dismissal["msg_ids"] = Raw(msgspec.json.encode([*sent, *added]))
    dismissal["added"] = Raw(msgspec.json.encode(len(added)))
    message["dismissal"] = Raw(msgspec.json.encode(dismissal))
    return msgspec.json.encode(message).decode()
