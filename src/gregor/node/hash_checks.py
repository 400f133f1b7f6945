"""Compares the hashes that the store keeps with what they are of: for a few users at a time.

A kept hash is right unless there is a defect, or somebody has changed the database. Then every sync
of the user would end in a snapshot, until this finds it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from gregor.consumers.broadcaster import Broadcaster
from gregor.core.message import UID
from gregor.errors import Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.log_event import LogEvent
from gregor.node.observer import Observer

log = logging.getLogger("gregor.node")

USERS_PER_SWEEP = 4
"""The store reads which items of a user are live: all of them."""


class HashChecks:
    """Checks the users who are connected to this node, one after the other, and begins again. A
    task of its own does so: it may have to wait for senders, and the sweep must not."""

    def __init__(
        self, state_machine: StateMachineOfRecord, broadcaster: Broadcaster, observer: Observer
    ) -> None:
        self._state_machine = state_machine
        self._broadcaster = broadcaster
        self._observer = observer
        self._swept = asyncio.Event()
        self._due: deque[UID] = deque()  # users who are not yet checked in this round

    def notice_sweep(self) -> None:
        """A sweep has ended, and the store answers: check the next few users, once."""
        self._swept.set()

    async def run(self) -> None:
        """Check a few users after each sweep, until this is cancelled or fails."""
        while True:
            await self._swept.wait()
            self._swept.clear()
            # If the store does not answer any more, the users are checked in the next round.
            with suppress(Unavailable):
                await self._check(self._next())

    async def _check(self, uids: Sequence[UID]) -> None:
        """One user at a time: others get their turn in between, and what was repaired is
        reported even if the store does not answer for the next one."""
        for uid in uids:
            for repaired in await self._state_machine.check_hashes([uid]):
                log.error(LogEvent("a kept hash was wrong, and is repaired", uid=repaired))
                self._observer.hash_repaired()

    def _next(self) -> list[UID]:
        if not self._due:
            self._due.extend(self._broadcaster.uids())
        uids = [self._due.popleft() for _ in range(min(USERS_PER_SWEEP, len(self._due)))]
        return [uid for uid in uids if self._broadcaster.has_devices(uid)]
