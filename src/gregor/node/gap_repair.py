"""Reads from the store what the connected devices have missed, and delivers it.

The pub/sub makes delivery fast, the store makes it reliable. A gap that a later message reveals is
noticed, and repaired at once. What no later message reveals is found by the sweep, which compares
the positions of all feeds with the users' clocks. After each sweep a few of the hashes that the
store keeps are checked.

A replay behind the clock of its user is a message that no feed can hear of: all are past it. But it
moves the clock, so the sweep finds that they are behind; and no cursor from before can be
continued, so each device gets a snapshot.

An erase moves the user's clock too. The read that finds it tells the devices: at once after a
notice of another node, otherwise after the next sweep.

A failover may lose messages that devices have received. Then the store has another history, or a
user's clock is behind a feed, and the sweep lets the devices sync again (decision 26).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress

from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.peers import Peers
from gregor.core.instant import Time
from gregor.core.message import UID
from gregor.core.sync import Changes
from gregor.errors import Erased, HistoryForgotten, Unavailable
from gregor.interfaces import StateMachineOfRecord
from gregor.log_event import LogEvent
from gregor.node.hash_checks import HashChecks
from gregor.node.observer import Observer
from gregor.protocol.publication import Publication

log = logging.getLogger("gregor.node")

SWEEP_SECONDS = 5.0
SUSPICION_SWEEP_SECONDS = 1.0  # while messages of other nodes may not arrive
RETRY_SECONDS = 1.0
GAP_REPAIR_WORKERS = 8

GRACE_SECONDS = 0.25
"""How long a message may take from its commit to its feed before the sweep treats it as lost. This
time includes the reply to the commit and the pub/sub: milliseconds, tens of them under load."""


class GapRepair:
    """Repairs the gaps of a Broadcaster's feeds from the state machine, while `run` runs."""

    def __init__(
        self,
        state_machine: StateMachineOfRecord,
        broadcaster: Broadcaster,
        observer: Observer,
        *,
        peers: Peers | None = None,
        sweep_seconds: float = SWEEP_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._state_machine = state_machine
        self._broadcaster = broadcaster
        self._observer = observer
        self._peers = peers
        self._hash_checks = HashChecks(state_machine, broadcaster, observer)
        self._sweep_seconds = sweep_seconds
        self._jitter = jitter
        self._queue: asyncio.Queue[UID] = asyncio.Queue()
        self._queued: set[UID] = set()  # contents of the queue, to avoid duplicates
        self._unrepaired: dict[UID, None] = {}  # users whose repair failed
        self._store_unreachable = False  # whether the last sweep failed
        self._sweep_due = asyncio.Event()
        self._interrupted = False  # whether the pub/sub was interrupted since the last sweep
        self._history = state_machine.history

    @property
    def waiting_for_store(self) -> bool:
        """Whether devices wait for the store, because it did not answer the last query."""
        return self._store_unreachable or bool(self._unrepaired)

    def begin(self) -> None:
        """The state machine is open, and what is read from it is of its present history."""
        self._history = self._state_machine.history

    async def run(self) -> None:
        """Repair gaps, and sweep periodically, until this is cancelled or fails."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._sweep())
            tasks.create_task(self._hash_checks.run())
            for _ in range(GAP_REPAIR_WORKERS):
                tasks.create_task(self._repair_queued())

    def notice(self, uid: UID) -> None:
        """The user's feed misses messages: read them from the store soon. Idempotent."""
        if uid not in self._queued:
            self._queued.add(uid)
            self._queue.put_nowait(uid)

    def notice_interruption(self) -> None:
        """The pub/sub was interrupted, so any feed may miss messages: sweep at once."""
        self._observer.interrupted()
        self._interrupted = True
        self._sweep_due.set()

    def notice_suspicion(self) -> None:
        """Messages of other nodes may not arrive: sweep at once, and often."""
        self._sweep_due.set()

    # Repairing

    async def _repair_queued(self) -> None:
        """Repair gaps, one at a time. Several of these run concurrently, so that a slow part of
        the store delays few users of other parts."""
        while True:
            uid = await self._queue.get()
            self._queued.remove(uid)
            try:
                await self._repair(uid)
                self._unrepaired.pop(uid, None)
            except Unavailable as error:
                self._defer_to_sweep(uid, error)
            except (HistoryForgotten, Erased):
                self._broadcaster.sync_again(uid)  # each device from its own cursor

    def _defer_to_sweep(self, uid: UID, error: Unavailable) -> None:
        """Leave the repair to the sweep, which finds the gap again when the store is back. So
        all pending users cost the store one query per sweep, and the worker continues with the
        next user."""
        if not self.waiting_for_store:
            log.warning(LogEvent("devices wait for the store", uid=uid, reason=str(error)))
            self._sweep_due.set()
        self._unrepaired[uid] = None

    async def _repair(self, uid: UID) -> None:
        position = self._broadcaster.position(uid)
        if position is None:
            return
        sync = await self._state_machine.sync(uid, None, position)
        if sync.epoch > position:
            self._broadcaster.erase(uid, sync.epoch)
        if isinstance(sync.content, Changes):
            messages = sync.content.messages
            publication = Publication.span(position, messages, sync.cursor)
            self._observer.gap_repaired(len(messages))
        else:
            # The gap is too large to send to every device. A publication that does not continue
            # their positions makes the devices' sessions read the store themselves.
            publication = Publication.span(sync.cursor, (), sync.cursor)
        self._broadcaster.publish(uid, publication)

    # Sweeping

    async def _sweep(self) -> None:
        """Periodically find missed messages that no later message reveals."""
        # A message lost right after a sweep's query is found by the next sweep. The delay and the
        # grace periods of both sweeps add up to at most `sweep_seconds`.
        grace = min(GRACE_SECONDS, self._sweep_seconds / 10)
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._delay(grace) * (0.5 + self._jitter() / 2)):
                    await self._sweep_due.wait()
            self._sweep_due.clear()
            await self._sweep_once(grace)
            if not self.waiting_for_store:
                self._hash_checks.notice_sweep()

    def _delay(self, grace: float) -> float:
        if self.waiting_for_store:
            return RETRY_SECONDS
        seconds = self._sweep_seconds
        if self._peers is not None and self._peers.suspected:
            seconds = min(seconds, SUSPICION_SWEEP_SECONDS)
        return seconds - 2 * grace

    async def _sweep_once(self, grace: float) -> None:
        """Compare the positions of all feeds with the users' clocks, in one query to the store."""
        interrupted, self._interrupted = self._interrupted, False
        positions = self._broadcaster.positions()
        if not positions and not self.waiting_for_store:
            return
        try:
            clocks = await self._state_machine.ctimes(list(positions))
        except Unavailable as error:
            if not self.waiting_for_store:
                log.warning(LogEvent("the sweep waits for the store", reason=str(error)))
            self._store_unreachable = True
            return
        self._store_unreachable = False
        self._sync_what_is_lost(positions, clocks)
        in_sync = {uid for uid, clock in clocks.items() if clock == positions[uid]}
        out_of_sync = positions.keys() - in_sync
        self._unrepaired = {uid: None for uid in self._unrepaired if uid in out_of_sync}
        # Usually the missing messages are in flight: give them time to arrive. After an
        # interruption they probably are not, so repair at once.
        if out_of_sync and not interrupted:
            await asyncio.sleep(grace)
        missed = [uid for uid, clock in clocks.items() if self._is_behind(uid, clock)]
        for uid in missed:
            self.notice(uid)
        if missed and not interrupted and self._peers is not None:
            self._peers.notice_loss()

    def _is_behind(self, uid: UID, clock: Time) -> bool:
        position = self._broadcaster.position(uid)
        return position is not None and position < clock

    def _sync_what_is_lost(self, positions: Mapping[UID, Time], clocks: Mapping[UID, Time]) -> None:
        """Let devices sync again that may have received messages which the store has lost. The
        positions are older than the clocks: one that is ahead of its user's clock is of a lost
        message."""
        history = self._state_machine.history
        if history != self._history:
            self._history = history
            diverged = self._broadcaster.uids()
            log.warning(LogEvent("devices sync again after a failover", users=len(diverged)))
        else:
            diverged = [uid for uid, clock in clocks.items() if positions[uid] > clock]
        for uid in diverged:
            self._broadcaster.sync_again(uid)
