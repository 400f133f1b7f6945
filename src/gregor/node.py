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
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import structlog

from gregor.consumers.broadcaster import Broadcaster, Listener
from gregor.consumers.publisher import Publisher, channel_of, open_envelope
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage, Message
from gregor.core.state import Changes
from gregor.errors import Malformed, Unavailable
from gregor.interfaces import MessageConsumer, Outcome, Passed, StateMachineOfRecord, Stored
from gregor.protocol.server import Publication, ServerSession
from gregor.pubsub.interface import Interrupted, PubSub, Received

log = structlog.get_logger("gregor.node")

SWEEP_SECONDS = 5.0
RETRY_SECONDS = 0.5


class Observer:
    """What a node tells about itself while it works; this one does not listen."""

    def injected(self, outcome: Outcome) -> None:
        """A message was taken, or rejected."""

    def healed(self, messages: int) -> None:
        """Messages that were missed have been read from the store."""

    def strange(self, error: Malformed) -> None:
        """Something came over the pub/sub that no node has sent."""

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
        observer: Observer | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state_machine = state_machine
        self.clock = clock
        self.name = name
        self.behind = False  # whether the last read of the store for devices has failed
        self._consumers = consumers
        (self._broadcaster,) = (c for c in consumers if isinstance(c, Broadcaster))
        self._broadcaster.gap = self._notice_gap
        if any(isinstance(c, Publisher) and c.node != name for c in consumers):
            raise ValueError("a node's Publisher speaks in the node's own name")
        self._pubsub = pubsub
        self._sweep_seconds = sweep_seconds
        self._observer = observer or Observer()
        self._jitter = jitter
        self._gaps: dict[UID, None] = {}
        self._gap_noticed = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._background: list[asyncio.Task[None]] = []
        self._open = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        loops = [self._heal_gaps(), self._sweep()]
        if self._pubsub is not None:
            loops.append(self._relay(self._pubsub))
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
            if isinstance(consumer, Broadcaster):
                with self._sender_unharmed():
                    consumer.pass_on(messages)
            else:
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

    async def _relay(self, pubsub: PubSub) -> None:
        """Pass on what other nodes have stored."""
        async for event in pubsub.received():
            match event:
                case Received():
                    await self._relay_one(event)
                case Interrupted():
                    await self._sweep_once()

    async def _relay_one(self, received: Received) -> None:
        try:
            node, message = open_envelope(received)
        except Malformed as error:
            self._observer.strange(error)
            return
        if node != self.name:
            await self._broadcaster.consume_message(message)

    # Out

    @asynccontextmanager
    async def attach(self, uid: UID, listener: Listener) -> AsyncIterator[None]:
        """While the block runs, the listener hears what is published for the user. Only what is
        read from the store inside the block can be continued without a gap."""
        self._broadcaster.add(uid, listener)
        try:
            # Each device asks, not only the first: the first may still be waiting for the answer.
            if self._pubsub is not None:
                await self._pubsub.subscribe(channel_of(uid))
            yield
        finally:
            if self._broadcaster.remove(uid, listener) and self._pubsub is not None:
                await self._pubsub.unsubscribe(channel_of(uid))

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

    def _notice_gap(self, uid: UID) -> None:
        self._gaps[uid] = None
        self._gap_noticed.set()

    async def _heal_gaps(self) -> None:
        while True:
            await self._gap_noticed.wait()
            self._gap_noticed.clear()
            gaps, self._gaps = self._gaps, {}
            for uid in gaps:
                try:
                    await self._heal(uid)
                    self.behind = False
                except Unavailable as error:
                    self.behind = True
                    log.warning("devices wait for the store", uid=uid, error=error.message)
                    self._notice_gap(uid)
                    await asyncio.sleep(RETRY_SECONDS * (0.5 + self._jitter()))

    async def _heal(self, uid: UID) -> None:
        position = self._broadcaster.positions().get(uid)
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

    async def _sweep(self) -> None:
        """Find what was missed without a successor that would show it."""
        while True:
            await asyncio.sleep(self._sweep_seconds * (0.5 + self._jitter()))
            await self._sweep_once()

    async def _sweep_once(self) -> None:
        positions = self._broadcaster.positions()
        if not positions and not self.behind:
            return
        try:
            ctimes = await self.state_machine.ctimes(list(positions))
            self.behind = False
        except Unavailable as error:
            self.behind = True
            log.warning("the sweep waits for the store", error=error.message)
            return
        for uid, position in positions.items():
            if ctimes[uid] > position:
                self._notice_gap(uid)
