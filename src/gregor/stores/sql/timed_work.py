"""Transactions that take long, in the log: whether it was the work, the disk, or something else.

As transactions of one thread, those that take a second are no more than one line a second.
"""

import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter, thread_time
from typing import Generic, TypeVar

from gregor.log_event import LogEvent
from gregor.stores.sql.database import DatabaseConnection, Work

log = logging.getLogger("gregor.store")

T = TypeVar("T")

LONG_SECONDS = 1.0


class TimedWork(Generic[T]):
    """The work of a transaction in this thread. It is made when it is the transaction's turn; call
    `ended` when that is over."""

    def __init__(self, work: Work[T]) -> None:
        self._work = work
        self._start = self._begin = self._end = perf_counter()
        self._processor = thread_time()

    def __call__(self, connection: DatabaseConnection) -> T:
        self._begin = perf_counter()
        try:
            return self._work(connection)
        finally:
            self._end = perf_counter()

    def ended(self) -> None:
        """The transaction has ended. If it has taken long, it is logged: how long it waited for the
        file, worked, and then committed."""
        now = perf_counter()
        if now - self._start >= LONG_SECONDS:
            log.warning(
                LogEvent(
                    "a transaction took long",
                    work=_name(self._work),
                    waited_ms=_ms(self._begin - self._start),
                    worked_ms=_ms(self._end - self._begin),
                    committed_ms=_ms(now - self._end),
                    processor_ms=_ms(thread_time() - self._processor),
                )
            )


def _ms(seconds: float) -> int:
    return round(seconds * 1e3)


def _name(work: Callable[..., object]) -> str:
    """The function whose work it is; the work itself is mostly one within it, without a name. Work
    that is no function, such as a `methodcaller`, has the name of its type."""
    while isinstance(work, partial):
        work = work.func
    name: str = getattr(work, "__qualname__", type(work).__qualname__)
    return name.partition(".<locals>")[0]
