"""A store says which deployment it is, and has the key with which its nodes sign.

Code before this schema signs nothing. It may still write: nodes sign when none of it runs any more.
The shards of a map are one deployment, so that `gregor migrate` makes it when all are migrated.
"""

from secrets import token_hex

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
ID_BYTES, KEY_BYTES = 8, 32


def upgrade() -> None:
    op.create_table(
        "deployment",
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        sa.Column("id", Name, nullable=False),
        sa.Column("key", Name, nullable=False),
        sa.PrimaryKeyConstraint("number"),
        sa.CheckConstraint("number = 1", name="one_deployment"),
    )
    insert = sa.text(
        "INSERT INTO deployment (number, id, key) SELECT 1, :id, :key "
        "WHERE NOT EXISTS (SELECT 1 FROM shard)"
    ).bindparams(
        sa.bindparam("id", token_hex(ID_BYTES), sa.Text),
        sa.bindparam("key", token_hex(KEY_BYTES), sa.Text),
    )
    op.get_bind().execute(insert)
