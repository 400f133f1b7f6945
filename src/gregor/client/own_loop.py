"""Objects that belong to one event loop, and say so when they are used from another.

In another loop, a call would wait for an event that never comes, and nobody would learn why.
"""

import asyncio
from contextlib import suppress

from gregor.errors import WrongEventLoop


class OwnLoop:
    """The event loop in which this is created; none if none runs."""

    def __init__(self) -> None:
        self._loop = _running_loop()

    @property
    def is_running_here(self) -> bool:
        """Whether the caller runs in this loop."""
        return self._loop is not None and _running_loop() is self._loop

    def require(self) -> None:
        """Raises WrongEventLoop if the caller runs in another event loop, or in none."""
        if self._loop is not None and not self.is_running_here:
            raise WrongEventLoop(
                "this client belongs to the event loop in which it was opened; from another thread,"
                " use asyncio.run_coroutine_threadsafe(…, loop)"
            )


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
