"""Every user has a bucket.

Code before schema 0002 stores none, and the default for it, -1, is no bucket: the messages of such
a user are left behind when the user's bucket moves. Those users get their bucket, and the database
refuses to store more of them. It may run again (see 0005).
"""

import sqlalchemy as sa
from alembic import op

from gregor.core.buckets import bucket_of

revision = "0006"
down_revision = "0005"

AT_ONCE = 10_000
users = sa.table("users", sa.column("uid", sa.Text), sa.column("bucket", sa.Integer))
check = sa.CheckConstraint("bucket >= 0", name="users_have_buckets")


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        # First, so that no node stores such a user between the repair and the constraint. NOT
        # VALID: stored rows are not read, which would keep the writers of a large table waiting.
        # After the repair, none is left that the constraint would have refused.
        op.alter_column("users", "bucket", server_default=None)
        op.execute("ALTER TABLE users DROP CONSTRAINT IF EXISTS users_have_buckets")
        op.execute(
            "ALTER TABLE users ADD CONSTRAINT users_have_buckets CHECK (bucket >= 0) NOT VALID"
        )
        _repair()
    else:
        _repair()
        with op.batch_alter_table("users", recreate="always", table_args=(check,)) as table:
            table.alter_column("bucket", server_default=None)


def _repair() -> None:
    """Store the bucket of each user who has none."""
    connection = op.get_bind()
    some = sa.select(users.c.uid).where(users.c.bucket < 0).limit(AT_ONCE)
    store = (
        sa.update(users)
        .where(users.c.uid == sa.bindparam("of"))
        .values(bucket=sa.bindparam("found"))
    )
    while uids := list(connection.scalars(some)):
        connection.execute(store, [{"of": uid, "found": bucket_of(uid)} for uid in uids])
