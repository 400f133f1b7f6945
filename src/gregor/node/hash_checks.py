"""Compares the hashes that the store keeps with what they are of: for a few users at a time.

A kept hash is right unless there is a defect, or somebody has changed the database. Then every sync
of the user would end in a snapshot, until this finds it.
"""

import logging
from collections import deque

from gregor.consumers.broadcaster import Broadcaster
from gregor.core.message import UID
from gregor.errors import Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.log_event import LogEvent
from gregor.node.observer import Observer

log = logging.getLogger("gregor.node")

USERS_AT_ONCE = 4
"""The store reads which items of a user are live: all of them."""


class HashChecks:
    """Checks the users who are connected to this node, one after the other, and begins again."""

    def __init__(
        self, state_machine: StateMachineOfRecord, broadcaster: Broadcaster, observer: Observer
    ) -> None:
        self._state_machine = state_machine
        self._broadcaster = broadcaster
        self._observer = observer
        self._due: deque[UID] = deque()  # users who are not yet checked in this round

    async def check_some(self) -> None:
        """Check the next few users. The store repairs what differs. If it does not answer, they
        are checked in the next round."""
        uids = self._next()
        if not uids:
            return
        try:
            repaired = await self._state_machine.check_hashes(uids)
        except Unavailable:
            return
        for uid in repaired:
            log.error(LogEvent("a kept hash was wrong, and is repaired", uid=uid))
            self._observer.hash_repaired()

    def _next(self) -> list[UID]:
        if not self._due:
            self._due.extend(self._broadcaster.uids())
        uids = [self._due.popleft() for _ in range(min(USERS_AT_ONCE, len(self._due)))]
        return [uid for uid in uids if self._broadcaster.has_devices(uid)]
