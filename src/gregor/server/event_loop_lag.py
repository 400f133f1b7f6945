"""How late the event loop is. What stops it stops everybody, whatever each may do by itself."""

import asyncio
from collections.abc import Callable

SAMPLE_SECONDS = 0.25


async def watch_event_loop(
    observe: Callable[[float], None], seconds: float = SAMPLE_SECONDS
) -> None:
    """Every so many seconds, tell how late the event loop was to do what was due then, in seconds.
    It does not return."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + seconds
        await asyncio.sleep(seconds)
        observe(max(0.0, loop.time() - due))
