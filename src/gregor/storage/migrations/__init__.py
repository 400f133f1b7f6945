"""The schema's history, and how a database is brought up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gregor.errors import SetupError


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, inside the caller's transaction.
    Raises SetupError if it is newer than this code knows."""
    config = _config()
    scripts = ScriptDirectory.from_config(config)
    found = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise SetupError(
            f"the database has schema {found}, which is newer than this version of Gregor knows "
            f"({scripts.get_current_head()}); run the newer version: pip install -U gregor-sync"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def revision(connection: Connection) -> str | None:
    """The schema that the database has; None if it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
