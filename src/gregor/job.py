"""Work that a thread does for a coroutine that waits for its result."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from gregor.prompt_future import PromptFuture

T = TypeVar("T")
V = TypeVar("V")


class Job(Generic[T]):
    """Some work, whose result is awaited as `done` in the event loop in which it was made."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = work
        self.done: PromptFuture[T] = PromptFuture(loop=self._loop)

    def run(self) -> None:
        """Do the work in this thread, unless nobody waits for it any more. Does not raise."""
        if self.done.cancelled():
            return
        try:
            result = self._work()
        except BaseException as error:  # noqa: BLE001 (raised again, where it is awaited)
            self._hand_over(self.done.set_exception, error)
            del self  # or the error refers to this frame, and by it to itself
        else:
            self._hand_over(self.done.set_result, result)

    def _hand_over(self, finish: Callable[[V], None], outcome: V) -> None:
        with suppress(RuntimeError):  # the event loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(_finish, self.done, finish, outcome)


def _finish(done: asyncio.Future[T], finish: Callable[[V], None], outcome: V) -> None:
    if not done.cancelled():  # while the thread did the work
        finish(outcome)
