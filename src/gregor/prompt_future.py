"""A future that continues who awaits it at once, and not in the next turn of the event loop.

On a busy event loop, a turn is much of what a sender waits for.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from functools import partial
from threading import local
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

_Callback: TypeAlias = Callable[[Any], object]


class _Turn(local):
    """The callbacks that are due in this turn of the event loop of this thread; None: while no
    PromptFuture calls any."""

    due: deque[Callable[[], object]] | None = None


_turn = _Turn()


class PromptFuture(asyncio.Future[T]):
    """A future that calls its callbacks, by which tasks continue, as soon as it is done. One task
    cannot continue another: if a task that was continued in this way sets the result, they are
    called as soon as it waits; if any other task does, in the next turn of the event loop, as those
    of every other future are.

    A callback of the event loop that sets the result does so last: before that returns, who awaits
    it has gone on."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._waiting: list[tuple[_Callback, Context]] = []

    def set_result(self, result: T, /) -> None:
        super().set_result(result)
        self._call_back()

    def set_exception(self, exception: type | BaseException, /) -> None:
        super().set_exception(exception)
        self._call_back()

    def cancel(self, msg: Any | None = None) -> bool:
        """The callbacks are called in the next turn: who cancels a task, such as a time-out, relies
        on that it does not go on before."""
        was_cancelled = super().cancel(msg)
        _call_in_next_turn(self.get_loop(), self._take_calls())
        return was_cancelled

    def _call_back(self) -> None:
        calls = self._take_calls()
        if _turn.due is not None:
            _turn.due.extend(calls)
        elif asyncio.current_task(self.get_loop()) is None:
            _call_in_turn(deque(calls))
        else:
            _call_in_next_turn(self.get_loop(), calls)

    def _take_calls(self) -> list[Callable[[], object]]:
        waiting, self._waiting = self._waiting, []
        return [partial(context.run, callback, self) for callback, context in waiting]

    def add_done_callback(self, callback: _Callback, /, *, context: Context | None = None) -> None:
        if self.done():
            super().add_done_callback(callback, context=context)
        else:
            self._waiting.append((callback, context or copy_context()))

    def remove_done_callback(self, callback: _Callback, /) -> int:
        others = [waiting for waiting in self._waiting if waiting[0] != callback]
        removed = len(self._waiting) - len(others)
        self._waiting = others
        return removed + super().remove_done_callback(callback)


def _call_in_turn(due: deque[Callable[[], object]]) -> None:
    """Call these, and what falls due meanwhile."""
    _turn.due = due
    try:
        while due:
            due.popleft()()
    finally:
        _turn.due = None
        if due:  # one of them has raised
            _call_in_next_turn(asyncio.get_running_loop(), due)


def _call_in_next_turn(
    loop: asyncio.AbstractEventLoop, calls: Iterable[Callable[[], object]]
) -> None:
    for call in calls:
        loop.call_soon(call)
