"""A database that may be unavailable when the process starts, while others are available."""

import asyncio
from collections.abc import Hashable, Mapping
from typing import Any, Self, TypeVar

from gregor.errors import SetupError, StorageUnavailable
from gregor.stores.sql.database import Database, PoolUse, Unreachable, Work

T = TypeVar("T")


class LazyDatabase:
    """A Database over another one that may be unreachable when it is opened. Then the first
    read or write that can reach it opens it; earlier ones raise StorageUnavailable. It is prepared
    as usual; if that fails at this late point, reads and writes raise StorageUnavailable too."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._is_open = False
        self._open_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            await self._database.__aenter__()
            self._is_open = True
        except Unreachable:
            pass  # each read and write raises StorageUnavailable until it is open
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._is_open:
            await self._database.__aexit__(*exc_info)

    async def write(self, work: Work[T]) -> T:
        await self._ensure_open()
        return await self._database.write(work)

    async def read(self, work: Work[T]) -> T:
        await self._ensure_open()
        return await self._database.read(work)

    @property
    def history(self) -> Hashable:
        return self._database.history

    async def check_role(self) -> None:
        await self._ensure_open()
        await self._database.check_role()

    async def scrub(self) -> None:
        await self._ensure_open()
        await self._database.scrub()

    def pools(self) -> Mapping[str, PoolUse]:
        return self._database.pools()

    async def _ensure_open(self) -> None:
        if self._is_open:
            return
        async with self._open_lock:
            if not self._is_open:
                try:
                    await self._database.__aenter__()
                except SetupError as error:
                    raise StorageUnavailable(error.message) from error
                self._is_open = True
