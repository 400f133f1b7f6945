"""Deadlines of many connections, of which few are ever reached.

A timer of the event loop for each would be made and thrown away with each request. Here a deadline
is an entry of the slot in which it ends, and the event loop has one timer, for the next slot.
"""

import math
from asyncio import AbstractEventLoop
from collections.abc import Callable

TICK_SECONDS = 0.1


class Deadlines:
    """Calls what its deadlines say, at most a tick after they have ended. It ticks only while one
    of them is set."""

    def __init__(self, loop: AbstractEventLoop, tick_seconds: float = TICK_SECONDS) -> None:
        self._loop = loop
        self._tick_seconds = tick_seconds
        self._slots: dict[int, dict[Deadline, None]] = {}
        self._ticks = False  # whether a timer of the loop is set

    def deadline(self, reached: Callable[[], object]) -> "Deadline":
        """A deadline that is not set."""
        return Deadline(self, reached)

    def add(self, deadline: "Deadline", seconds: float) -> int:
        slot = math.ceil((self._loop.time() + seconds) / self._tick_seconds)
        self._slots.setdefault(slot, {})[deadline] = None
        self._start()
        return slot

    def remove(self, deadline: "Deadline", slot: int) -> None:
        self._slots.get(slot, {}).pop(deadline, None)

    def _start(self) -> None:
        if not self._ticks:
            self._ticks = True
            self._loop.call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        self._ticks = False
        now = self._loop.time() / self._tick_seconds
        for slot in sorted(slot for slot in self._slots if slot <= now):
            for deadline in self._slots.pop(slot):
                deadline.reach()
        if self._slots:
            self._start()


class Deadline:
    """A moment by which something must have happened. Only the last `set` counts."""

    __slots__ = ("_deadlines", "_reached", "_slot")

    def __init__(self, deadlines: Deadlines, reached: Callable[[], object]) -> None:
        self._deadlines = deadlines
        self._reached = reached
        self._slot: int | None = None

    def set(self, seconds: float) -> None:
        """Call `reached` after this time, unless it is set again or cancelled before."""
        self.cancel()
        self._slot = self._deadlines.add(self, seconds)

    def cancel(self) -> None:
        if self._slot is not None:
            self._deadlines.remove(self, self._slot)
            self._slot = None

    def close(self) -> None:
        """Cancel it for good, and forget what it calls, which mostly refers to this deadline."""
        self.cancel()
        self._reached = _nothing

    def reach(self) -> None:
        """It has ended."""
        if self._slot is not None:  # not cancelled by another one of the same slot
            self._slot = None
            self._reached()


def _nothing() -> None:
    pass
