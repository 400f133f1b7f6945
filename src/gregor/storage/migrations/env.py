"""What Alembic runs; the connection is handed to it, and so is the transaction around it."""

from alembic import context

from gregor.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
