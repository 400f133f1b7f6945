"""Whose turn it is on the one connection of an SQLite file: writes and reads take turns.

A commit that waits is next after the read under way, however many reads wait, and so is a read
after a commit. Within each kind, they are served as they came.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Turns of one event loop, of which one is under way at a time."""

    def __init__(self) -> None:
        self._writes: deque[asyncio.Future[None]] = deque()
        self._reads: deque[asyncio.Future[None]] = deque()
        self._is_taken = False
        self._was_write = False

    @asynccontextmanager
    async def turn(self, *, is_write: bool) -> AsyncIterator[None]:
        """Run the block when it is its turn."""
        await self._take(self._writes if is_write else self._reads)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, waiting: "deque[asyncio.Future[None]]") -> None:
        if not self._is_taken:
            self._is_taken = True
            return
        turn = asyncio.get_running_loop().create_future()
        waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came together with the turn
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while waiting := self._next():
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._is_taken = False

    def _next(self) -> "deque[asyncio.Future[None]]":
        """Those who wait of the other kind than the last, if any; else those of the same."""
        kinds = (self._reads, self._writes) if self._was_write else (self._writes, self._reads)
        waiting = kinds[0] or kinds[1]
        self._was_write = waiting is self._writes
        return waiting
