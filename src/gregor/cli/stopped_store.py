"""A store that a command opens itself, without a server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gregor.clock import now
from gregor.config import Settings
from gregor.errors import SetupError
from gregor.server.composition import Parts
from gregor.stores.sql.store_url import parse_url


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Parts]:
    """The parts of a server with these settings, of which the databases and the state machine are
    open. Raises SetupError if they cannot be used, or if an SQLite file does not exist."""
    require_files(settings)
    parts = Parts(settings.model_copy(update={"pubsub": None}), now)
    async with parts.opened_store():
        yield parts


def require_files(settings: Settings) -> None:
    """Raises SetupError if an SQLite file of these settings does not exist."""
    for url in settings.stores.values():
        parsed = parse_url(url)
        if not parsed.is_shared and not Path(parsed.path).is_file():
            raise SetupError(f"{url}: there is no such file; give the URL of the store")
