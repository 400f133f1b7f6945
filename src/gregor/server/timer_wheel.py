"""One timer for all members that have to be called once in a period."""

import asyncio
from typing import Protocol, TypeAlias

SLOTS = 64


class Ticking(Protocol):
    """A member of a wheel."""

    def tick(self) -> None:
        """Is called once in each period. Must not raise."""
        ...


Slot: TypeAlias = set[Ticking]
"""The members that are called together. One leaves by removing itself."""


class TimerWheel:
    """Calls each of its members once in each period, the first time at the end of a period. Members
    are distributed over the period as they have joined. A timer and a task for each would cost more
    than the calls do."""

    def __init__(self, seconds: float) -> None:
        self._pause = seconds / SLOTS
        self._slots: list[Slot] = [set() for _ in range(SLOTS)]
        self._now = 0
        self._timer: asyncio.TimerHandle | None = None

    def join(self, member: Ticking) -> Slot:
        """Add a member; the slot in which it is."""
        slot = self._slots[self._now]
        slot.add(member)
        if not self.turns:
            self._set_timer()
        return slot

    @property
    def turns(self) -> bool:
        """Whether a timer is set, as it is for as long as there are members."""
        return self._timer is not None

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._pause, self._turn)

    def _turn(self) -> None:
        """Call the members whose period has passed."""
        self._now = (self._now + 1) % SLOTS
        self._timer = None
        if any(self._slots):
            self._set_timer()
        for member in tuple(self._slots[self._now]):
            member.tick()
