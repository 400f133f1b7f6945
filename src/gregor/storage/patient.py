"""A database that may be away while others are there, from the beginning on."""

import asyncio
from typing import Any, Self, TypeVar

from gregor.errors import SetupError, StorageUnavailable
from gregor.storage.database import Database, Unreachable, Work

T = TypeVar("T")


class PatientDatabase:
    """A Database over one that need not answer when it is opened: then it is opened by the first
    question that finds it there, and those before raise StorageUnavailable. It is prepared as
    ever; if that fails so late, this too is what the questions raise."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._open = False
        self._opening = asyncio.Lock()

    async def __aenter__(self) -> Self:
        try:
            await self._database.__aenter__()
            self._open = True
        except Unreachable:
            pass  # whoever asks hears of it
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        if self._open:
            await self._database.__aexit__(*exc_info)

    async def write(self, work: Work[T]) -> T:
        await self._ensure_open()
        return await self._database.write(work)

    async def read(self, work: Work[T]) -> T:
        await self._ensure_open()
        return await self._database.read(work)

    async def _ensure_open(self) -> None:
        if self._open:
            return
        async with self._opening:
            if not self._open:
                try:
                    await self._database.__aenter__()
                except SetupError as error:
                    raise StorageUnavailable(error.message) from error
                self._open = True
