"""The schema's history, and how a database is brought up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from gregor.errors import SetupError

# Two nodes that start together must not both make the tables.
_TURN = "SELECT pg_advisory_xact_lock(6732763)"


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, inside the caller's transaction.
    Raises SetupError if it is newer than this code knows."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(_TURN)
    config = _config()
    _refuse_a_newer(revision(connection), ScriptDirectory.from_config(config))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def expect_newest(connection: Connection) -> None:
    """Raises SetupError, with the command that mends it, if the schema is not what this code
    needs."""
    scripts = ScriptDirectory.from_config(_config())
    found = revision(connection)
    _refuse_a_newer(found, scripts)
    if found != scripts.get_current_head():
        what = "has no tables yet" if found is None else f"has the older schema {found}"
        raise SetupError(
            f"the database {what}; prepare it with `gregor migrate --store URL`, "
            "or start with --migrate"
        )


def _refuse_a_newer(found: str | None, scripts: ScriptDirectory) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    if found is not None and found not in known:
        raise SetupError(
            f"the database has schema {found}, which is newer than this version of Gregor knows "
            f"({scripts.get_current_head()}); run the newer version: pip install -U gregor-sync"
        )


def revision(connection: Connection) -> str | None:
    """The schema that the database has; None if it has none."""
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return config
