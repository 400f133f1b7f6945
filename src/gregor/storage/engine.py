"""Open the database that a URL names."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gregor.errors import SetupError
from gregor.storage.database import Database, Work, redacted
from gregor.storage.postgresql import PostgreSQLDatabase
from gregor.storage.sqlite import SQLiteDatabase

READ_CONNECTIONS = 8
TIMEOUT_SECONDS = 10.0

POSTGRESQL = ("postgresql", "postgres")  # libpq accepts both


def _prepare_nothing(connection: Connection) -> None:
    """Leave the database unchanged."""


def database_at(
    url: str,
    prepare: Work[None] = _prepare_nothing,
    *,
    connections: int = READ_CONNECTIONS,
    seconds: float = TIMEOUT_SECONDS,
) -> Database:
    """The database at this URL, to be opened with `async with`; opening it runs `prepare` first.
    Raises SetupError if the URL is not one of a supported database.

    The URL is `sqlite:///FILE`, or `sqlite://` in memory, or any URL that libpq accepts for
    PostgreSQL, unix sockets included: `postgresql://user@/name?host=/run/postgresql`. On
    PostgreSQL there are up to `connections` concurrent readers besides the one writer, and each
    query times out after `seconds`.
    """
    parsed = parse_url(url)

    def prepare_with_url_in_errors(connection: Connection) -> None:
        try:
            prepare(connection)
        except SetupError as error:  # there may be several databases
            raise SetupError(f"{redacted(url)}: {error.message}") from error

    if parsed.drivername in POSTGRESQL:
        return PostgreSQLDatabase(
            url, prepare_with_url_in_errors, connections=connections, seconds=seconds
        )
    return SQLiteDatabase(parsed, prepare_with_url_in_errors)


@asynccontextmanager
async def databases_at(
    urls: Mapping[str, str], prepare: Work[None] = _prepare_nothing
) -> AsyncIterator[dict[str, Database]]:
    """The databases at these URLs, opened, by name."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(database_at(url, prepare))
            for name, url in urls.items()
        }


def is_shared(url: str) -> bool:
    """Whether several nodes can use the database at this URL at once."""
    return parse_url(url).drivername in POSTGRESQL


def parse_url(url: str) -> URL:
    """The URL of a store. Raises SetupError if the store is not supported."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise SetupError(
            f"{redacted(url)!r} is not a store URL such as sqlite:///gregor.db"
        ) from error
    if parsed.drivername not in ("sqlite", *POSTGRESQL):
        raise SetupError(
            f"{redacted(url)!r} is not a store that is known; there "
            "are sqlite:///FILE, sqlite:// in memory, and postgresql://USER@HOST/DATABASE"
        )
    return parsed
