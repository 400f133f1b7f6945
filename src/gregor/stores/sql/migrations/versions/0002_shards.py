"""Shards: the bucket of each user, and the map of which shard holds which bucket."""

import sqlalchemy as sa
from alembic import op

from gregor.core.buckets import bucket_of

revision = "0002"
down_revision = "0001"

AT_ONCE = 10_000
Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
users = sa.table("users", sa.column("uid", sa.Text), sa.column("bucket", sa.Integer))


def upgrade() -> None:
    op.add_column(
        "users", sa.Column("bucket", sa.Integer, nullable=False, server_default=sa.text("-1"))
    )
    _fill()
    op.create_index("users_of_bucket", "users", ["bucket"])
    op.create_table("shard", sa.Column("name", Name, primary_key=True))
    op.create_table(
        "buckets",
        sa.Column("bucket", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("shard", Name, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("closed_until", sa.BigInteger, nullable=False),
    )


def _fill() -> None:
    """Store the bucket of each existing user."""
    connection = op.get_bind()
    some = sa.select(users.c.uid).where(users.c.uid > sa.bindparam("after", type_=sa.Text))
    some = some.order_by(users.c.uid).limit(AT_ONCE)
    fill = (
        sa.update(users)
        .where(users.c.uid == sa.bindparam("of"))
        .values(bucket=sa.bindparam("found"))
    )
    last = ""
    while uids := list(connection.scalars(some, {"after": last})):
        connection.execute(fill, [{"of": uid, "found": bucket_of(uid)} for uid in uids])
        last = uids[-1]
