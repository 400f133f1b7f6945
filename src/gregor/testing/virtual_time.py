"""An event loop whose time is a number: where nothing is ready, it jumps to the next timer.

Hours pass in milliseconds, and twice the same. Nothing may wait for the outside, for sockets or
for threads: where nothing is ready and no timer is set, everybody waits for ever, and `run` says
so instead of joining them.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from gregor.core.instant import SECOND, Time

T = TypeVar("T")

START: Time = 1_767_225_600 * SECOND
"""Where the wall clock of a virtual loop begins: 2026-01-01T00:00:00Z."""


class Deadlock(RuntimeError):
    """Every task waits, and nothing is left that could wake one."""


class _Jump(selectors.SelectSelector):
    """Waiting, without the wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise Deadlock("all tasks wait, and no timer is set")
        if not ready and timeout:
            self.now += timeout
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, in no time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def clock() -> Time:
    """The wall clock of the running loop, in microseconds."""
    return START + round(asyncio.get_running_loop().time() * SECOND)
