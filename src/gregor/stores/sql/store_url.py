"""Open the database that a URL names."""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from gregor.errors import SetupError
from gregor.extras import required_extra
from gregor.stores.sql.database import Database, DatabaseConnection, Migration
from gregor.stores.sql.sqlite import SQLiteDatabase, migrating
from gregor.urls import redacted, resolved

READ_CONNECTIONS = 8
TIMEOUT_SECONDS = 10.0

# libpq accepts the first two, and SQLAlchemy writes the third.
POSTGRESQL = ("postgresql", "postgres", "postgresql+asyncpg")


class StoreURL(NamedTuple):
    """The URL of a supported store; `path` is the file of an SQLite one, empty in memory."""

    is_shared: bool
    path: str


def database_at(
    url: str,
    migration: Migration | None = None,
    *,
    connections: int = READ_CONNECTIONS,
    seconds: float = TIMEOUT_SECONDS,
) -> Database:
    """The database at this URL, to be opened with `async with`; opening it runs `migration` first.
    Raises SetupError if the URL is not one of a supported database, or if its extra is not
    installed.

    The URL is `sqlite:///FILE`, or `sqlite://` in memory, or any URL that libpq accepts for
    PostgreSQL, unix sockets and several hosts included: `postgresql://user@/name?host=/run/postgresql`.
    `file:///PATH` is a file that holds such a URL; PostgreSQL's is read at each connect. On
    PostgreSQL there are up to `connections` concurrent readers besides the one writer, and each
    query times out after `seconds`.
    """
    parsed = parse_url(url)
    named = None if migration is None else MigrationOfURL(migration, url)
    if parsed.is_shared:
        with required_extra("postgresql"):
            from gregor.stores.sql.postgresql.database import PostgreSQLDatabase
        return PostgreSQLDatabase(url, named, connections=connections, seconds=seconds)
    return SQLiteDatabase(parsed.path, None if named is None else migrating(named))


class MigrationOfURL(NamedTuple):
    """A Migration whose errors name the URL: there may be several databases."""

    migration: Migration
    url: str

    def is_due(self, connection: DatabaseConnection) -> bool:
        with naming(self.url):
            return self.migration.is_due(connection)

    def on_sqlite(self, driver: sqlite3.Connection) -> None:
        with naming(self.url):
            self.migration.on_sqlite(driver)

    async def on_postgresql(self, connect: Callable[[], Awaitable[Any]]) -> None:
        with naming(self.url):
            await self.migration.on_postgresql(connect)


@contextmanager
def naming(url: str) -> Iterator[None]:
    """While the block runs, the errors that it raises to set the database right name its URL."""
    try:
        yield
    except SetupError as error:
        raise SetupError(f"{redacted(url)}: {error.message}") from error


@asynccontextmanager
async def databases_at(
    urls: Mapping[str, str], migration: Migration | None = None
) -> AsyncIterator[dict[str, Database]]:
    """The databases at these URLs, opened, by name."""
    async with AsyncExitStack() as stack:
        yield {
            name: await stack.enter_async_context(database_at(url, migration))
            for name, url in urls.items()
        }


def is_shared(url: str) -> bool:
    """Whether several nodes can use the database at this URL at once."""
    return parse_url(url).is_shared


def _has_valid_hosts(url: str) -> bool:
    """Whether each host of the URL, of which libpq accepts several, has a numeric port or none."""
    try:
        for host in urlsplit(url).netloc.rpartition("@")[2].split(","):
            _ = urlsplit(f"//{host}").port
    except ValueError:
        return False
    return True


def parse_url(url: str) -> StoreURL:
    """What the URL of a store says. Raises SetupError if the store is not supported."""
    shown, url = redacted(url), resolved(url)  # a file is shown by its name
    scheme, separator, rest = url.partition("://")
    is_url = scheme and separator and (rest[:1] in ("", "/") or scheme != "sqlite")
    if not is_url or not _has_valid_hosts(url):
        raise SetupError(f"{shown!r} is not a store URL such as sqlite:///gregor.db")
    if scheme == "sqlite":
        return StoreURL(False, rest[1:].partition("?")[0])
    if scheme in POSTGRESQL:
        return StoreURL(True, "")
    raise SetupError(
        f"{shown!r} is not a store that is known; there "
        "are sqlite:///FILE, sqlite:// in memory, and postgresql://USER@HOST/DATABASE"
    )
