"""What Alembic runs. The caller passes the connection, inside the caller's transaction."""

from alembic import context

from gregor.stores.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
