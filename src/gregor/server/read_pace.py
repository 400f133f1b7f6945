"""How often a connection is read on which little comes at a time.

A read costs the event loop about as much for one byte as for thousands. A peer that sends a head, a
body or a frame in tiny pieces, on a hundred connections, would have a read for each of them. So
after a few small reads, with which most of what is honest has come, a connection rests between
them, and the next read brings what has come meanwhile.
"""

from asyncio import AbstractEventLoop, TimerHandle, Transport
from collections.abc import Callable
from random import uniform

from uvicorn.protocols.http.flow_control import FlowControl

SMALL_BYTES = 4 * 1024
FREE_READS = 5
REST_SECONDS = 0.1  # for each small read after them; in this time one becomes free again
DROP_PAUSE_SECONDS = 0.005  # between two reads of what is dropped, however much it is


def a_rest() -> float:
    """For how many seconds to rest."""
    return _about(REST_SECONDS)


def _about(seconds: float) -> float:
    """So long, more or less by chance: or connections that began together would be read in one turn
    of the event loop."""
    return uniform(seconds / 2, seconds * 3 / 2)


class ReadPace:
    """The small reads of one connection, with which nothing that its peer sends was complete."""

    __slots__ = ("_free_at",)

    def __init__(self) -> None:
        self._free_at = 0.0  # when as many are free as at first, by the time of the event loop

    def rest(self, size: int, now: float) -> float:
        """For how many seconds not to read after one of this size: 0 if it is not small, or there
        were few."""
        if size >= SMALL_BYTES:
            return 0.0
        self._free_at = max(self._free_at, now) + REST_SECONDS
        over = self._free_at - now - FREE_READS * REST_SECONDS
        return _about(over) if over > 0 else 0.0

    def complete(self) -> None:
        """What the peer sends is complete: a request, or a message, which are limited elsewhere."""
        self._free_at = 0.0


def _nothing() -> None:
    pass


class RestingFlow(FlowControl):
    """uvicorn's control of reading, which can also rest for a while, whatever the app wants."""

    def __init__(self, transport: Transport, loop: AbstractEventLoop) -> None:
        super().__init__(transport)
        self.is_wanted = True  # whether the app takes more
        self._loop = loop
        self._resting: TimerHandle | None = None

    def pause_reading(self) -> None:
        self.is_wanted = False
        super().pause_reading()

    def resume_reading(self) -> None:
        self.is_wanted = True
        if self._resting is None:
            super().resume_reading()

    def rest(self, seconds: float, then: Callable[[], None] = _nothing) -> None:
        """Do not read for so long, and then do this first. If it rests already, it goes on, and
        does nothing else then."""
        if self._resting is None:
            super().pause_reading()
            self._resting = self._loop.call_later(seconds, self._rested, then)

    def _rested(self, then: Callable[[], None]) -> None:
        self._resting = None
        then()
        if self.is_wanted and self._resting is None:
            super().resume_reading()

    def end(self) -> None:
        """The connection has ended."""
        if self._resting is not None:
            self._resting.cancel()
