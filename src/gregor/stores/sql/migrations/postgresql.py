"""Runs a migration, which SQLAlchemy executes, on a connection of asyncpg."""

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


async def run_on_postgresql(
    connect: Callable[[], Awaitable[Any]], work: Callable[[Connection], None]
) -> None:
    """Run the work in one transaction. Raises asyncpg's errors."""
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
        raise cause or error from error
    finally:
        await engine.dispose()
