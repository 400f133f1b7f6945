"""Users have a history floor and can be erased; messages have authors.

Code before this schema does not look at floors and epochs, so it may not write any more.
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("LOCK TABLE users IN SHARE MODE")  # no writer holds a lock that a step needs
    for name in ("floor", "epoch", "erased_at"):
        column = sa.Column(name, sa.BigInteger, nullable=False, server_default=sa.text("0"))
        op.add_column("users", column)
    op.add_column("messages", sa.Column("author", Name))
    _create_partial_index("dismissals", ["uid", "ctime"], "category IS NULL")
    _create_partial_index("late_deaths", ["uid", "expires_at"], "dismissed_at > expires_at")
    op.create_table(
        "pruned",
        sa.Column("uid", Name, nullable=False),
        sa.Column("msg_id", Name, nullable=False),
        sa.Column("ctime", sa.BigInteger, nullable=False),
        sa.Column("digest", Name, nullable=False),
        sa.PrimaryKeyConstraint("uid", "msg_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "leases",
        sa.Column("name", Name, nullable=False),
        sa.Column("holder", Name, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "pending_erasures",
        sa.Column("shard", Name, nullable=False),
        sa.Column("uid", Name, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("erased_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("shard", "uid"),
    )


def _create_partial_index(name: str, columns: list[str], where: str) -> None:
    text = sa.text(where)
    op.create_index(name, "messages", columns, sqlite_where=text, postgresql_where=text)
