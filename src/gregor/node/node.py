"""One node: accepts messages, stores them, and delivers them to devices.

    inject ──▶ state machine of record (durable) ──▶ consumers ──▶ the outcome for the sender
                                                      ├─ Publisher ──▶ the relays of other nodes
                                                      └─ Broadcaster ──▶ devices connected here

The pub/sub makes delivery fast, the store makes it reliable. A node reads missed messages from
the store: at once if a later message shows the gap, otherwise in the next sweep.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self

from gregor.consumers.broadcaster import Broadcaster, Listener
from gregor.consumers.publisher import Publisher
from gregor.consumers.relay import LINGER_SECONDS, Relay
from gregor.core.instant import Time
from gregor.core.message import UID, Message
from gregor.core.sync import Changes
from gregor.errors import Malformed, Unavailable
from gregor.interfaces import (
    BatchConsumer,
    Caller,
    MessageConsumer,
    Outcome,
    Rejected,
    StateMachineOfRecord,
)
from gregor.log_event import LogEvent
from gregor.node.batch import Batch, accepted
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import ServerSession
from gregor.pubsub.interface import PubSub

log = logging.getLogger("gregor.node")

SWEEP_SECONDS = 5.0
RETRY_SECONDS = 1.0
GAP_REPAIR_WORKERS = 8

GRACE_SECONDS = 0.25
"""How long a message may take from its commit to its feed before the sweep treats it as lost. This
time includes the reply to the commit and the pub/sub: milliseconds, tens of them under load."""


class Observer:
    """Receives the events of a node, for metrics. This base class ignores them."""

    def injected(self, caller: Caller, outcome: Outcome) -> None:
        """A message of this caller was accepted or rejected."""

    def gap_repaired(self, messages: int) -> None:
        """A gap repair has read this number of missed messages from the store."""

    def invalid_publication(self, error: Malformed) -> None:
        """The pub/sub delivered a payload that no node can have published."""

    def interrupted(self) -> None:
        """The pub/sub was down and is up again."""

    def consumer_failed(self, error: Exception) -> None:
        """A consumer raised this error for a message that is already stored."""


class Node:
    """Stores messages in a state machine of record and passes them to consumers, exactly one of
    which is a Broadcaster. Open it with `async with`: its background tasks run inside the block,
    and if one of them fails, the block is cancelled.

    With a `pubsub`, the node also relays messages that other nodes publish. To publish its own,
    it needs a Publisher among the consumers, with the node's `name`: a node recognises its own
    messages on the pub/sub by that name.
    """

    def __init__(
        self,
        state_machine: StateMachineOfRecord,
        consumers: Sequence[MessageConsumer],
        *,
        clock: Callable[[], Time],
        pubsub: PubSub | None = None,
        name: str = "node",
        sweep_seconds: float = SWEEP_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
        observer: Observer | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state_machine = state_machine
        self.clock = clock
        self.name = name
        self._consumers = consumers
        (self._broadcaster,) = (c for c in consumers if isinstance(c, Broadcaster))
        self._broadcaster.on_gap = self._notice_gap
        if any(isinstance(c, Publisher) and c.node != name for c in consumers):
            raise ValueError(f"a Publisher must have the node's own name: pass it {name!r}")
        self._observer = observer or Observer()
        self._relay: Relay | None = None
        if pubsub is not None:
            self._relay = Relay(
                pubsub,
                name,
                self._broadcaster,
                clock,
                on_invalid_publication=self._observer.invalid_publication,
                on_interrupted=self._on_interrupted,
                linger_seconds=linger_seconds,
            )
        self._sweep_seconds = sweep_seconds
        self._jitter = jitter
        self._repair_queue: asyncio.Queue[UID] = asyncio.Queue()
        self._queued_repairs: set[UID] = set()  # contents of the queue, to avoid duplicates
        self._unrepaired: dict[UID, None] = {}  # users whose gap repair failed
        self._store_unreachable = False  # whether the last sweep failed
        self._sweep_due = asyncio.Event()
        self._interrupted = False  # whether the pub/sub was interrupted since the last sweep
        self._tasks = asyncio.TaskGroup()
        self._background: list[asyncio.Task[None]] = []
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        loops = [self._sweep(), *(self._repair_gaps() for _ in range(GAP_REPAIR_WORKERS))]
        if self._relay is not None:
            loops += [self._relay.run(), self._relay.unsubscribe_idle()]
        self._background = [self._tasks.create_task(loop) for loop in loops]
        self._is_open = True
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Finishes the injects in flight first."""
        self._is_open = False
        for task in self._background:
            task.cancel()
        # The task group does not get the exception of the block: it would cancel the injects in
        # flight, and wrap the exception in an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    # Accepting messages

    async def inject(self, caller: Caller, entries: Sequence[Message | Rejected]) -> list[Outcome]:
        """Store new messages, in order, and return the outcome of each entry.

        A Stored message is durable and is being delivered to the devices. Raises Unavailable if
        the store does not answer. If the task that calls is cancelled, the messages are stored and
        delivered all the same.
        """
        if not self._is_open:
            raise Unavailable("this node is not open; send the messages again to another node")
        task = self._tasks.create_task(self._inject(caller, Batch(entries)))
        try:
            outcomes = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Unavailable(
                "this node has failed; send the messages again to another node"
            ) from None
        if isinstance(outcomes, Unavailable):
            raise outcomes
        return outcomes

    async def _inject(self, caller: Caller, batch: Batch) -> list[Outcome] | Unavailable:
        # Store first: a stored message that was not delivered can still be read from the store;
        # a message that was delivered but not stored would be lost afterwards.
        if batch.slots:
            try:
                await self.state_machine.store(batch.slots)
            except Unavailable as error:
                return error
        outcomes = batch.outcomes()
        for outcome in outcomes:
            self._observer.injected(caller, outcome)
        await self._pass_to_consumers(accepted(outcomes))
        return outcomes

    async def _pass_to_consumers(self, messages: Sequence[Message]) -> None:
        for consumer in self._consumers:
            match consumer:
                case BatchConsumer():
                    with self._reporting_errors():
                        await consumer.consume_batch(messages)
                case _:
                    for message in messages:
                        with self._reporting_errors():
                            await consumer.consume_message(message)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Report the error of a consumer instead of raising it. The inject has succeeded: the
        message is stored, and devices that missed it read it from the store."""
        try:
            yield
        except Exception as error:
            log.error(LogEvent("a consumer failed"), exc_info=error)
            self._observer.consumer_failed(error)

    # Delivering messages

    @asynccontextmanager
    async def attach(self, uid: UID, listener: Listener) -> AsyncIterator[None]:
        """While the block runs, the listener receives the user's messages. Read the store inside
        the block: messages stored between an earlier read and the start of the block are missed."""
        self._broadcaster.add(uid, listener)
        try:
            # Every device subscribes, not only the first, because the subscription of the first
            # may not be confirmed yet.
            if self._relay is not None:
                await self._relay.subscribe(uid)
            yield
        finally:
            if self._broadcaster.remove(uid, listener) and self._relay is not None:
                self._relay.mark_idle(uid)

    def connected(self, uid: UID) -> int:
        """The number of the user's attached devices."""
        feed = self._broadcaster.feeds.get(uid)
        return 0 if feed is None else len(feed.listeners)

    async def catch_up(self, session: ServerSession, cursor: Time) -> None:
        """Read everything after the cursor from the store and pass it to the session."""
        sync = await self.state_machine.sync(session.uid, session.device_id, cursor)
        session.synced(sync)
        if not session.lagging:
            self._broadcaster.lower_position(session.uid, session.position)

    # Repairing gaps

    @property
    def waiting_for_store(self) -> bool:
        """Whether devices wait for the store, because it did not answer the last query."""
        return self._store_unreachable or bool(self._unrepaired)

    def _notice_gap(self, uid: UID) -> None:
        if uid not in self._queued_repairs:
            self._queued_repairs.add(uid)
            self._repair_queue.put_nowait(uid)

    async def _repair_gaps(self) -> None:
        """Repair gaps, one at a time. Several of these run concurrently, so that a slow part of
        the store delays few users of other parts."""
        while True:
            uid = await self._repair_queue.get()
            self._queued_repairs.remove(uid)
            try:
                await self._repair_gap(uid)
                self._unrepaired.pop(uid, None)
            except Unavailable as error:
                self._defer_to_sweep(uid, error)

    def _defer_to_sweep(self, uid: UID, error: Unavailable) -> None:
        """Leave the repair to the sweep, which finds the gap again when the store is back. So
        all pending users cost the store one query per sweep, and the worker continues with the
        next user."""
        if not self.waiting_for_store:
            log.warning(LogEvent("devices wait for the store", uid=uid, reason=error.message))
            self._sweep_due.set()
        self._unrepaired[uid] = None

    async def _repair_gap(self, uid: UID) -> None:
        position = self._broadcaster.position(uid)
        if position is None:
            return
        sync = await self.state_machine.sync(uid, None, position)
        if isinstance(sync.content, Changes):
            messages = sync.content.messages
            publication = Publication.span(position, messages, sync.cursor)
            self._observer.gap_repaired(len(messages))
        else:
            # The gap is too large to send to every device. A publication that does not continue
            # their positions makes the devices' sessions read the store themselves.
            publication = Publication.span(sync.cursor, (), sync.cursor)
        self._broadcaster.publish(uid, publication)

    def _on_interrupted(self) -> None:
        self._observer.interrupted()
        self._interrupted = True
        self._sweep_due.set()

    async def _sweep(self) -> None:
        """Periodically find missed messages that no later message reveals."""
        # A message lost right after a sweep's query is found by the next sweep. The delay and the
        # grace periods of both sweeps add up to at most `sweep_seconds`.
        grace = min(GRACE_SECONDS, self._sweep_seconds / 10)
        while True:
            delay = RETRY_SECONDS if self.waiting_for_store else self._sweep_seconds - 2 * grace
            with suppress(TimeoutError):
                async with asyncio.timeout(delay * (0.5 + self._jitter() / 2)):
                    await self._sweep_due.wait()
            self._sweep_due.clear()
            await self._sweep_once(grace)

    async def _sweep_once(self, grace: float) -> None:
        """Compare the positions of all feeds with the users' clocks, in one query to the store."""
        interrupted, self._interrupted = self._interrupted, False
        positions = self._broadcaster.positions()
        if not positions and not self.waiting_for_store:
            return
        try:
            clocks = await self.state_machine.ctimes(list(positions))
        except Unavailable as error:
            if not self.waiting_for_store:
                log.warning(LogEvent("the sweep waits for the store", reason=error.message))
            self._store_unreachable = True
            return
        self._store_unreachable = False
        in_sync = {uid for uid, clock in clocks.items() if clock == positions[uid]}
        out_of_sync = positions.keys() - in_sync
        self._unrepaired = {uid: None for uid in self._unrepaired if uid in out_of_sync}
        # Usually the missing messages are in flight: give them time to arrive. After an
        # interruption they probably are not, so repair at once.
        if out_of_sync and not interrupted:
            await asyncio.sleep(grace)
        for uid, clock in clocks.items():
            position = self._broadcaster.position(uid)
            if position is not None and position < clock:
                self._notice_gap(uid)
