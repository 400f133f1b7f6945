"""Drains a server that is mounted in another app when its process is told to stop.

An ASGI server ends the lifespan of its app only after all connections have ended. Event streams
never end by themselves, and WebSockets would be closed without a goaway. So a mounted server has to
notice the signal itself, before the ASGI server acts on it.
"""

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@asynccontextmanager
async def draining_on_stop(drain: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """While the block runs, the first SIGTERM or SIGINT drains before it does what it would have
    done; a second one does that at once, and the end of the block then ends the drain. Nothing is
    intercepted outside the main thread, which alone gets signals.

    So uvicorn waits for the drain. Servers that take signals from their event loop, as Hypercorn
    and Granian do, begin to stop at the same time, and wait for open connections meanwhile.
    """
    with StopSignals() as signals:
        async with asyncio.TaskGroup() as tasks:
            drained = tasks.create_task(_drain_first(drain, signals))
            yield
            if len(signals.received) != 1:  # none, or a second one, which does not wait
                drained.cancel()


async def _drain_first(drain: Callable[[], Awaitable[None]], signals: "StopSignals") -> None:
    number = await signals.first()
    await drain()
    signals.pass_on(number)


class StopSignals:
    """Intercepts the signals that stop a process, inside its block."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                # None: a handler that was not set in Python, and could not be restored.
                if signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exc_info: Any) -> None:
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, previous)

    async def first(self) -> int:
        """Wait for the first signal."""
        await self._arrived.wait()
        return self.received[0]

    def pass_on(self, number: int) -> None:
        """Do what the signal would have done without this block."""
        previous = self._previous[number]
        if callable(previous):
            previous(number, None)
        else:
            signal.signal(number, previous)
            signal.raise_signal(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if len(self.received) > 1:
            self.pass_on(number)
        else:
            self._loop.call_soon_threadsafe(self._arrived.set)
