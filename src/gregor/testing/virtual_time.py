"""An event loop on virtual time: when no task is ready, it jumps to the next timer.

Hours pass in milliseconds, and each run is the same. Tasks must not wait for sockets or threads:
they are not polled. When no task is ready and no timer is set, `run` raises Deadlock instead of
blocking forever.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from gregor.core.instant import SECOND, Time

T = TypeVar("T")

START: Time = 1_767_225_600 * SECOND
"""The wall clock of a virtual loop starts here: 2026-01-01T00:00:00Z."""


class Deadlock(RuntimeError):
    """All tasks wait, and no timer can wake one."""


class _JumpingSelector(selectors.SelectSelector):
    """A selector that advances `now` by the time-out, instead of waiting or asking the system."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Deadlock("all tasks wait, and no timer is set")
        self.now += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop whose `time()` is virtual."""

    def __init__(self) -> None:
        self._virtual_selector = _JumpingSelector()
        super().__init__(self._virtual_selector)

    def time(self) -> float:
        return self._virtual_selector.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like asyncio.run, on virtual time. Raises Deadlock if all tasks wait and no timer is set."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


def clock() -> Time:
    """The wall clock of the running loop, in microseconds."""
    return START + round(asyncio.get_running_loop().time() * SECOND)
