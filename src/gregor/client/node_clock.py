"""What time it is by the node's clock, as a device estimates it.

Theory
======

A person may set a device's wall clock to anything at any time; its monotonic clock runs evenly, but
stands still while the machine is suspended. Neither alone tells when an item expires. So a device
takes the time from its node and counts on by the monotonic clock. The wall clock serves two ends:
its offset from the node's clock is kept with the replica, for a device that starts without a
network; and a difference between the two clocks of the device shows that something has happened.

If the wall clock went back, it was set: the monotonic clock is right. If it went forward, it was
set, or the device was suspended. The next node that answers decides. If none does, the device takes
it for a suspend, which is frequent, while a clock that is wrong by seconds is rarely touched.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple, Self

from msgspec import Struct
from msgspec.structs import replace

from gregor import clock
from gregor.core.instant import MAX_TIME, SECOND, Time

JUMP = 2 * SECOND  # what the two clocks of a device differ by only if one of them has jumped


class ClockReading(NamedTuple):
    """What the two clocks of a device show at one moment, in microseconds."""

    wall: Time
    monotonic: int


class NodeClock(Struct, frozen=True):
    """A pure estimate: the node's clock showed `time` when the device's clocks showed `reading`.
    `unexplained` is by how much the wall clock has jumped forward since a node told its time."""

    time: Time
    reading: ClockReading
    unexplained: int = 0

    @classmethod
    def at_start(cls, offset: int, reading: ClockReading) -> Self:
        """The estimate of a device that starts, from the offset that it has kept."""
        return cls(_valid(reading.wall + offset), reading)

    def now(self, reading: ClockReading) -> Time:
        """The node's time at this reading."""
        return _valid(self.time + reading.monotonic - self.reading.monotonic)

    def offset(self) -> int:
        """By how much the node's clock is ahead of the device's wall clock."""
        return self.time - self.reading.wall

    def told(self, time: Time, reading: ClockReading, waited: int | None) -> Self:
        """The estimate after a node has told its time. It is from the last `waited` microseconds;
        None: from any time in the past. The estimate changes only as far as it must, so that a slow
        network does not make it go back and forth."""
        before = self.checked(reading)
        latest = MAX_TIME if waited is None else time + waited
        now = min(max(before.now(reading), time), latest)
        explained = now - before.now(reading) if waited is None else before.unexplained
        return type(self)(now, reading, max(0, before.unexplained - explained))

    def checked(self, reading: ClockReading) -> Self:
        """The estimate after the two clocks of the device have been compared."""
        jump = (reading.wall - self.reading.wall) - (reading.monotonic - self.reading.monotonic)
        if abs(jump) < JUMP:
            return self
        return type(self)(self.now(reading), reading, self.unexplained + max(0, jump))

    def after_suspend(self) -> Self:
        """The estimate if what is unexplained was a suspend."""
        return replace(self, time=_valid(self.time + self.unexplained), unexplained=0)


class DeviceClock:
    """The two clocks of a device, and the node's clock as far as they and the nodes tell it. `wall`
    is the host's: where it fails, or shows no time, the monotonic clock counts on."""

    def __init__(
        self, wall: Callable[[], Time], monotonic: Callable[[], float], offset: int = 0
    ) -> None:
        self._wall = wall
        self._monotonic = monotonic
        first = ClockReading(clock.now(), self.monotonic())
        self._node = NodeClock.at_start(0, first)
        self._node = NodeClock.at_start(offset, self._read())

    def now(self) -> Time:
        """The node's time."""
        return self._node.now(self._read())

    def wall(self) -> Time:
        """What the device's wall clock shows."""
        return self._read().wall

    def monotonic(self) -> int:
        """The monotonic clock, in microseconds."""
        return round(self._monotonic() * SECOND)

    @property
    def offset(self) -> int:
        """What to keep for the next start."""
        return self._node.offset()

    def told(self, time: Time, asked: int | None = None) -> None:
        """A node has told its time, after it was asked at this time of the monotonic clock."""
        reading = self._read()
        waited = None if asked is None else reading.monotonic - asked
        self._node = self._node.told(time, reading, waited)

    def was_suspended(self, online: bool) -> bool:
        """Compare the clocks, and return whether the device may have been suspended, so that its
        connection should be made again. A device that is not online takes it for granted."""
        self._node = self._node.checked(self._read())
        suspended = self._node.unexplained >= JUMP
        if not online:
            self._node = self._node.after_suspend()
        return suspended

    def _read(self) -> ClockReading:
        monotonic, last = self.monotonic(), self._node.reading
        shown = _shown(self._wall)
        wall = last.wall + monotonic - last.monotonic if shown is None else shown
        return ClockReading(wall, monotonic)


def _shown(wall: Callable[[], Time]) -> Time | None:
    """What the host's clock shows; None if it fails, or if that is no time."""
    with suppress(Exception):
        shown = round(wall())
        if 0 <= shown <= MAX_TIME:
            return shown
    return None


def _valid(time: int) -> Time:
    return min(max(time, 0), MAX_TIME)
