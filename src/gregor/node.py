"""One node: where messages come in, are stored, and go out to devices.

    inject ──▶ state machine of record (durable) ──▶ consumers ──▶ the result for the sender
                                                      ├─ Publisher ──▶ other nodes' relay
                                                      └─ Broadcaster ──▶ devices connected here

Pub/sub carries speed, the store carries truth. What a node has missed it finds in the store: at
once where a message shows a gap, within a sweep where nothing does.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Self

import structlog

from gregor.consumers.broadcaster import Broadcaster, Listener
from gregor.consumers.publisher import Publisher
from gregor.consumers.relay import LINGER_SECONDS, Relay
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage, Message
from gregor.core.state import Changes
from gregor.errors import Malformed, Unavailable
from gregor.interfaces import (
    BatchConsumer,
    MessageConsumer,
    Outcome,
    Passed,
    StateMachineOfRecord,
    Stored,
)
from gregor.protocol.server import Publication, ServerSession
from gregor.pubsub.interface import PubSub

log = structlog.get_logger("gregor.node")

SWEEP_SECONDS = 5.0
RETRY_SECONDS = 1.0
HEALERS = 8

GRACE_SECONDS = 0.25
"""How long a message may take from its commit to its feed before the sweep takes it for lost. On
the way are the commit's answer and the pub/sub: milliseconds, and under load tens of them."""


class Observer:
    """What a node tells about itself while it works; this one does not listen."""

    def injected(self, outcome: Outcome) -> None:
        """A message was taken, or rejected."""

    def healed(self, messages: int) -> None:
        """Messages that were missed have been read from the store."""

    def strange(self, error: Malformed) -> None:
        """Something came over the pub/sub that no node has sent."""

    def interrupted(self) -> None:
        """The pub/sub was down, and is back."""

    def unheard(self, error: Exception) -> None:
        """A consumer has failed to pass on what is stored."""


class Node:
    """A node over a state machine of record and those who pass its messages on, a Broadcaster
    among them. To be opened with `async with`: inside, its background tasks are at work, and
    should one of them fail, the block is cancelled.

    With a `pubsub` it also relays what other nodes publish; a Publisher among the consumers is
    what they hear of this one, and has its `name`, by which a node knows its own echo.
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
        self._broadcaster.gap = self._notice_gap
        if any(isinstance(c, Publisher) and c.node != name for c in consumers):
            raise ValueError("a node's Publisher speaks in the node's own name")
        self._observer = observer or Observer()
        self._relay: Relay | None = None
        if pubsub is not None:
            self._relay = Relay(
                pubsub,
                name,
                self._broadcaster,
                clock,
                strange=self._observer.strange,
                interrupted=self._notice_interruption,
                linger_seconds=linger_seconds,
            )
        self._sweep_seconds = sweep_seconds
        self._jitter = jitter
        self._gaps: set[UID] = set()  # what waits in the queue, so that nobody waits there twice
        self._to_heal: asyncio.Queue[UID] = asyncio.Queue()
        self._unhealed: dict[UID, None] = {}  # for whom the store did not answer
        self._blind = False  # whether it did not answer the sweep
        self._sweep_due = asyncio.Event()
        self._interrupted = False  # whether the pub/sub was, since the last sweep
        self._tasks = asyncio.TaskGroup()
        self._background: list[asyncio.Task[None]] = []
        self._open = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        loops = [self._sweep(), *(self._heal_gaps() for _ in range(HEALERS))]
        if self._relay is not None:
            loops += [self._relay.run(), self._relay.leave_the_gone()]
        self._background = [self._tasks.create_task(loop) for loop in loops]
        self._open = True
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """What is being injected is finished first."""
        self._open = False
        for task in self._background:
            task.cancel()
        # What has happened in the block is not the group's: it neither cuts short what is under
        # way, nor comes out of here wrapped in a group.
        await self._tasks.__aexit__(None, None, None)

    # In

    async def inject(self, messages: Sequence[Message]) -> list[Outcome]:
        """Accept new messages, in order, and say of each what became of it.

        What is Stored is durable, and on its way to every device. Raises Unavailable if the store
        does not answer. Cancelling the caller undoes nothing: what has begun is finished.
        """
        if not self._open:
            raise Unavailable("this node is not open; send it again to another")
        task = self._tasks.create_task(self._inject(messages))
        try:
            outcomes = await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Unavailable("this node has failed; send it again to another") from None
        if isinstance(outcomes, Unavailable):
            raise outcomes
        return outcomes

    async def _inject(self, messages: Sequence[Message]) -> list[Outcome] | Unavailable:
        # Storage comes first: a message which nobody hears can still be asked for, while one
        # which was heard but not stored would be a rumour.
        in_band = [message for message in messages if isinstance(message, InBandMessage)]
        try:
            stored = iter(await self.state_machine.consume_messages(in_band) if in_band else ())
        except Unavailable as error:
            return error
        outcomes = [next(stored) if isinstance(m, InBandMessage) else Passed(m) for m in messages]
        for outcome in outcomes:
            self._observer.injected(outcome)
        await self._pass_on([o.message for o in outcomes if isinstance(o, Stored | Passed)])
        return outcomes

    async def _pass_on(self, messages: Sequence[Message]) -> None:
        for consumer in self._consumers:
            match consumer:
                case BatchConsumer():
                    with self._sender_unharmed():
                        await consumer.consume_batch(messages)
                case _:
                    for message in messages:
                        with self._sender_unharmed():
                            await consumer.consume_message(message)

    @contextmanager
    def _sender_unharmed(self) -> Iterator[None]:
        """A consumer that fails is no business of the sender's: the message is stored, and
        whoever has missed it finds it there."""
        try:
            yield
        except Exception as error:
            log.error("a consumer failed", exc_info=error)
            self._observer.unheard(error)

    # Out

    @asynccontextmanager
    async def attach(self, uid: UID, listener: Listener) -> AsyncIterator[None]:
        """While the block runs, the listener hears what is published for the user. Only what is
        read from the store inside the block can be continued without a gap."""
        self._broadcaster.add(uid, listener)
        try:
            # Each device asks, not only the first: the first may still be waiting for the answer.
            if self._relay is not None:
                await self._relay.subscribe(uid)
            yield
        finally:
            if self._broadcaster.remove(uid, listener) and self._relay is not None:
                self._relay.leave(uid)

    def connected(self, uid: UID) -> int:
        """How many devices of the user are attached."""
        feed = self._broadcaster.feeds.get(uid)
        return 0 if feed is None else len(feed.listeners)

    async def catch_up(self, session: ServerSession, cursor: Time) -> None:
        """Bring a session from its cursor to the present."""
        sync = await self.state_machine.sync(session.uid, session.device_id, cursor)
        session.synced(sync)
        if not session.lagging:
            self._broadcaster.told(session.uid, session.position)

    # What was missed

    @property
    def behind(self) -> bool:
        """Whether devices wait for the store, which has not answered when it was last asked."""
        return self._blind or bool(self._unhealed)

    def _notice_gap(self, uid: UID) -> None:
        if uid not in self._gaps:
            self._gaps.add(uid)
            self._to_heal.put_nowait(uid)

    async def _heal_gaps(self) -> None:
        """One of several healers, so that a part of the store that is slow holds up few others."""
        while True:
            uid = await self._to_heal.get()
            self._gaps.remove(uid)
            try:
                await self._heal(uid)
                self._unhealed.pop(uid, None)
            except Unavailable as error:
                self._leave_to_sweep(uid, error)

    def _leave_to_sweep(self, uid: UID, error: Unavailable) -> None:
        """The sweep finds the gap again once the store is back. So all who wait cost the store
        one question now and then, and a healer that has failed goes on with the next."""
        if not self.behind:
            log.warning("devices wait for the store", uid=uid, error=error.message)
            self._sweep_due.set()
        self._unhealed[uid] = None

    async def _heal(self, uid: UID) -> None:
        position = self._broadcaster.position(uid)
        if position is None:
            return
        sync = await self.state_machine.sync(uid, None, position)
        if isinstance(sync.content, Changes):
            messages = sync.content.messages
            publication = Publication.stretch(position, messages, sync.cursor)
            self._observer.healed(len(messages))
        else:
            # Too much to pass on: with nothing that continues what they know, the devices read
            # the store themselves.
            publication = Publication.stretch(sync.cursor, (), sync.cursor)
        self._broadcaster.publish(uid, publication)

    def _notice_interruption(self) -> None:
        self._observer.interrupted()
        self._interrupted = True
        self._sweep_due.set()

    async def _sweep(self) -> None:
        """Find, time and again, what was missed without a successor that would show it."""
        # What is lost right after a sweep has asked is found by the next; in all, with the grace
        # of both, that is no longer than one `sweep_seconds`.
        grace = min(GRACE_SECONDS, self._sweep_seconds / 10)
        while True:
            pause = RETRY_SECONDS if self.behind else self._sweep_seconds - 2 * grace
            with suppress(TimeoutError):
                async with asyncio.timeout(pause * (0.5 + self._jitter() / 2)):
                    await self._sweep_due.wait()
            self._sweep_due.clear()
            await self._sweep_once(grace)

    async def _sweep_once(self, grace: float) -> None:
        """Compare the feeds with the users' clocks, by one question to the store."""
        interrupted, self._interrupted = self._interrupted, False
        positions = self._broadcaster.positions()
        if not positions and not self.behind:
            return
        try:
            clocks = await self.state_machine.ctimes(list(positions))
        except Unavailable as error:
            if not self.behind:
                log.warning("the sweep waits for the store", error=error.message)
            self._blind = True
            return
        self._blind = False
        agreeing = {uid for uid, clock in clocks.items() if clock == positions[uid]}
        waiting = positions.keys() - agreeing
        self._unhealed = {uid: None for uid in self._unhealed if uid in waiting}
        # Most of those who are behind have it on its way to them. Only after an interruption that
        # is unlikely, and need not be waited for.
        if waiting and not interrupted:
            await asyncio.sleep(grace)
        for uid, clock in clocks.items():
            position = self._broadcaster.position(uid)
            if position is not None and position < clock:
                self._notice_gap(uid)
