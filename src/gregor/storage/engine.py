"""Which database a URL means."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from sqlalchemy import Connection
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from gregor.errors import SetupError
from gregor.storage.database import Database, Work, shown
from gregor.storage.postgresql import PostgreSQLDatabase
from gregor.storage.sqlite import SQLiteDatabase

CONNECTIONS = 8
SECONDS = 10.0

POSTGRESQL = ("postgresql", "postgres")  # libpq takes both


def _as_it_is(connection: Connection) -> None:
    """What prepares a database that is to be taken as it is."""


def database_at(
    url: str,
    prepare: Work[None] = _as_it_is,
    *,
    connections: int = CONNECTIONS,
    seconds: float = SECONDS,
) -> Database:
    """The database at this URL, to be opened with `async with`; `prepare` is the first that is
    done with it. Raises SetupError if it is not the URL of one that is supported.

    `sqlite:///FILE`, or `sqlite://` in memory, or any URL that libpq takes for PostgreSQL, unix
    sockets included: `postgresql://user@/name?host=/run/postgresql`. There, `connections` may read
    at once, beside the one that writes, and no answer is awaited longer than `seconds`.
    """
    parsed = parse_url(url)

    def prepare_this(connection: Connection) -> None:
        try:
            prepare(connection)
        except SetupError as error:  # of several, which?
            raise SetupError(f"{shown(url)}: {error.message}") from error

    if parsed.drivername in POSTGRESQL:
        return PostgreSQLDatabase(url, prepare_this, connections=connections, seconds=seconds)
    return SQLiteDatabase(parsed, prepare_this)


@asynccontextmanager
async def databases_at(
    urls: Mapping[str, str], prepare: Work[None] = _as_it_is
) -> AsyncIterator[dict[str, Database]]:
    """The databases at these URLs, open, by their names."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(database_at(url, prepare))
            for name, url in urls.items()
        }


def is_shared(url: str) -> bool:
    """Whether several nodes can use the database at this URL at once."""
    return parse_url(url).drivername in POSTGRESQL


def parse_url(url: str) -> URL:
    """The URL of a store. Raises SetupError if it is none that is supported."""
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise SetupError(
            f"{shown(url)!r} is not a store URL such as sqlite:///gregor.db"
        ) from error
    if parsed.drivername not in ("sqlite", *POSTGRESQL):
        raise SetupError(
            f"{shown(url)!r} is not a store that is known; there "
            "are sqlite:///FILE, sqlite:// in memory, and postgresql://USER@HOST/DATABASE"
        )
    return parsed
