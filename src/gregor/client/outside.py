"""Calls of what is somebody else's: a function of the host, a transport, a store.

Whatever it does, the caller gets a result or one of two errors, and after a bounded time.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

from gregor.errors import GregorError, Unavailable

T = TypeVar("T")


class Disconnected(Exception):
    """The transport is closed, or could not be opened. Connect again; `retry_after` is the delay
    in seconds that the server has asked for, if it has."""

    def __init__(self, code: int, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason or f"closed with code {code}")
        self.code = code
        self.reason = reason or f"closed with code {code}"
        self.retry_after = retry_after


async def call_outside(
    what: str, function: Callable[[], Awaitable[T]], seconds: float | None = None
) -> T:
    """The result of a function that may fail in any way, or never end. Raises its Disconnected and
    its GregorError, and Unavailable for everything else, also if it takes longer than this."""
    try:
        async with asyncio.timeout(seconds):
            return await function()
    except (Disconnected, GregorError):
        raise
    except TimeoutError as error:
        raise Unavailable(f"{what} did not answer in time") from error
    except asyncio.CancelledError as error:
        if _is_being_cancelled():
            raise
        raise Unavailable(f"{what} awaited something that was cancelled") from error
    except Exception as error:
        raise Unavailable(f"{what} failed: {described(error)}") from error


def described(error: BaseException) -> str:
    """The error, or the first one of a group, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def random_numbers(jitter: Callable[[], float]) -> Callable[[], float]:
    """The numbers of the host's function, as far as they are from 0 to 1."""

    def number() -> float:
        with suppress(Exception):
            drawn = float(jitter())
            if 0.0 <= drawn <= 1.0:
                return drawn
        return random.random()

    return number


def _is_being_cancelled() -> bool:
    """Whether somebody has cancelled this task, which must then end."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
