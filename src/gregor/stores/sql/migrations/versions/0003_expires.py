"""Rename `dtime` to `expires` in the creations of stored messages."""

import sqlalchemy as sa
from alembic import op

from gregor.core.renamed_fields import with_expires

revision = "0003"
down_revision = "0002"

BATCH_SIZE = 1_000
messages = sa.table(
    "messages",
    sa.column("uid", sa.Text),
    sa.column("ctime", sa.BigInteger),
    sa.column("message", sa.Text),
)


def upgrade() -> None:
    connection = op.get_bind()
    # `"dtime"` may occur in a body only; then the message is rewritten unchanged.
    after = sa.tuple_(
        sa.bindparam("uid", type_=sa.Text), sa.bindparam("ctime", type_=sa.BigInteger)
    )
    next_rows = (
        sa.select(messages.c.uid, messages.c.ctime, messages.c.message)
        .where(
            sa.tuple_(messages.c.uid, messages.c.ctime) > after,
            messages.c.message.contains('"dtime"', autoescape=True),
        )
        .order_by(messages.c.uid, messages.c.ctime)
        .limit(BATCH_SIZE)
    )
    rewrite = (
        sa.update(messages)
        .where(messages.c.uid == sa.bindparam("of"), messages.c.ctime == sa.bindparam("at"))
        .values(message=sa.bindparam("renamed"))
    )
    last = {"uid": "", "ctime": 0}
    while rows := connection.execute(next_rows, last).all():
        renamed = [
            {"of": row.uid, "at": row.ctime, "renamed": with_expires(row.message).decode()}
            for row in rows
        ]
        connection.execute(rewrite, renamed)
        last = {"uid": rows[-1].uid, "ctime": rows[-1].ctime}
