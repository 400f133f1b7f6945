"""Runs a synchronous function that waits for coroutines, on the event loop of its caller.

So one transaction function works with a synchronous driver and with an asynchronous one. It runs in
a greenlet: `wait_for` switches to the coroutine that called `run_sync`, which awaits in its place.
"""

import contextvars
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from greenlet import getcurrent, greenlet

T = TypeVar("T")


async def run_sync(function: Callable[[], T]) -> T:
    """Run the function, and return its result. What it waits for may be cancelled: then `wait_for`
    raises CancelledError in the function, as `await` does."""
    runner = greenlet(function)
    runner.gr_context = contextvars.copy_context()
    step: Any = runner.switch()
    while not runner.dead:
        try:
            result = await step
        except BaseException:  # noqa: BLE001 (raised again, inside the function)
            step = runner.throw(*sys.exc_info())
        else:
            step = runner.switch(result)
    finished: T = step
    return finished


def wait_for(awaitable: Awaitable[T]) -> T:
    """Wait for a result, inside a function that `run_sync` runs."""
    parent = getcurrent().parent
    if parent is None:
        raise RuntimeError("wait_for works only inside run_sync")
    result: T = parent.switch(awaitable)
    return result
