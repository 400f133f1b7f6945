"""Runs a migration, which SQLAlchemy executes, on a connection of asyncpg."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

from gregor.errors import SetupError

LOCK_NOT_AVAILABLE = "55P03"


async def run_on_postgresql(
    connect: Callable[[], Awaitable[Any]], work: Callable[[Connection], None]
) -> None:
    """Run the work in one transaction. Raises SetupError if it waits too long for a lock, and
    asyncpg's errors."""
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        poolclass=NullPool,
        # A migration that waited for another one must see what that one has done.
        isolation_level="READ COMMITTED",
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(work)
    except DBAPIError as error:
        cause = error.orig.__cause__ if error.orig is not None else None
        if getattr(cause, "sqlstate", "") == LOCK_NOT_AVAILABLE:
            raise SetupError(
                "a table that must change is in use for long, by a backup or a report perhaps; "
                "nothing has changed; try again when that has ended"
            ) from error
        raise cause or error from error
    finally:
        await engine.dispose()
