"""Which code may write to the database, and which nodes run on it.

It may run again on a database that has these tables: `gregor migrate --rollback` only sets the
revision back.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

Name = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "oldest_writer", sa.Column("revision", Name, primary_key=True), if_not_exists=True
    )
    op.execute(
        "INSERT INTO oldest_writer (revision) SELECT '0004' "
        "WHERE NOT EXISTS (SELECT 1 FROM oldest_writer)"
    )
    op.create_table(
        "nodes",
        sa.Column("name", Name, primary_key=True),
        sa.Column("revision", Name, nullable=False),
        sa.Column("seen_at", sa.BigInteger, nullable=False),
        if_not_exists=True,
    )
