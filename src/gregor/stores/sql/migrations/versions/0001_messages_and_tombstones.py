"""The first schema: users' clocks, their messages, and the tombstones."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
live = sa.text("dismissed_at IS NULL AND category IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("uid", Name, primary_key=True),
        sa.Column("ctime", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "messages",
        sa.Column("uid", Name, nullable=False),
        sa.Column("ctime", sa.BigInteger, nullable=False),
        sa.Column("prev", sa.BigInteger, nullable=False),
        sa.Column("msg_id", Name, nullable=False),
        sa.Column("device_id", Name),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("category", Name),
        sa.Column("expires_at", sa.BigInteger),
        sa.Column("dismissed_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("uid", "ctime"),
        sa.UniqueConstraint("uid", "msg_id"),
    )
    op.create_index(
        "live_items",
        "messages",
        ["uid", "expires_at", "category", "ctime"],
        sqlite_where=live,
        postgresql_where=live,
    )
    op.create_table(
        "dismissed_ids",
        sa.Column("uid", Name, nullable=False),
        sa.Column("msg_id", Name, nullable=False),
        sa.Column("ctime", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("uid", "msg_id"),
    )
    op.create_table(
        "dismissed_ranges",
        sa.Column("uid", Name, nullable=False),
        sa.Column("ctime", sa.BigInteger, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("end_time", sa.BigInteger, nullable=False),
        sa.Column("category", Name, nullable=False),
        sa.Column("prefix", sa.Boolean, nullable=False),
        sa.Column("skip_msg_ids", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("uid", "ctime", "number"),
    )
    op.create_index("reaching_ranges", "dismissed_ranges", ["uid", "end_time"])
