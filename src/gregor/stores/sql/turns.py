"""Whose turn it is on the one connection of an SQLite file: writes and reads take turns.

A commit that waits is next after the read under way, however many reads wait, and so is a read
after a commit. Within each kind, they are served as they came. The thread itself takes the next
turn: it need not wait for a busy event loop.
"""

from asyncio import Future
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from gregor.job import Job

T = TypeVar("T")


class Turns:
    """The turns of one thread, in which `submit` runs a function."""

    def __init__(self, submit: Callable[[Callable[[], None]], object]) -> None:
        self._submit = submit
        self._writes: deque[Job[Any]] = deque()
        self._reads: deque[Job[Any]] = deque()
        self._was_write = False

    def run(self, work: Callable[[], T], *, is_write: bool) -> "Future[T]":
        """Run the work in the thread, when it is its turn."""
        turn = Job(work)
        (self._writes if is_write else self._reads).append(turn)
        self._submit(self._run_next)
        return turn.done

    def _run_next(self) -> None:
        """Called once for each turn. It takes one of the other kind than the last, if there is."""
        kinds = (self._reads, self._writes) if self._was_write else (self._writes, self._reads)
        waiting = kinds[0] or kinds[1]
        self._was_write = waiting is self._writes
        waiting.popleft().run()
