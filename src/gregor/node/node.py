"""One node: accepts messages, stores them, and delivers them to devices.

    inject ──▶ state machine of record (durable) ──▶ consumers ──▶ the outcome for the sender
                                                      ├─ Publisher ──▶ the relays of other nodes
                                                      └─ Broadcaster ──▶ devices connected here

What a device misses is read from the store: see gap_repair.py.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeVar

from gregor.consumers.broadcaster import Broadcaster, Listener
from gregor.consumers.channels import channels_of
from gregor.consumers.peers import Peers
from gregor.consumers.publisher import Publisher
from gregor.consumers.relay import LINGER_SECONDS, Relay
from gregor.core.deployment import Deployment
from gregor.core.history import FOR_EVER
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, Message
from gregor.core.sync import Sync
from gregor.errors import Unavailable
from gregor.interfaces import (
    Accepted,
    BatchConsumer,
    Caller,
    EraseResult,
    MessageConsumer,
    Outcome,
    Rejected,
    StateMachineOfRecord,
)
from gregor.log_event import LogEvent
from gregor.node.adoption import Adoption
from gregor.node.batch import Batch, accepted
from gregor.node.gap_repair import RETRY_SECONDS, SWEEP_SECONDS, GapRepair
from gregor.node.observer import Observer
from gregor.node.pruning import Pruner
from gregor.prompt_future import PromptFuture
from gregor.protocol.handshake import Phase
from gregor.protocol.server_session import ServerSession
from gregor.pubsub.interface import PubSub

log = logging.getLogger("gregor.node")

T = TypeVar("T")

AT_A_TIME = 500
"""How many messages one call stores before others get their turn; a consume has no more."""


class Node:
    """Stores messages in a state machine of record, and passes them to its consumers: a Publisher,
    if there are other nodes, then the Broadcaster, then any others. Open it with `async with`: its
    background tasks run inside the block, and if one of them fails, the block is cancelled.

    Without a Pruner, history is kept for ever, but for what `pruner.prune` is told to forget.

    With a Publisher, the node also relays what other nodes of the same store publish on the same
    pub/sub: it asks the state machine for its deployment, when it is opened. The node opens none of
    its parts: they must be open while it is.
    """

    def __init__(
        self,
        state_machine: StateMachineOfRecord,
        broadcaster: Broadcaster,
        publisher: Publisher | None = None,
        *,
        consumers: Sequence[MessageConsumer] = (),
        clock: Callable[[], Time],
        observer: Observer | None = None,
        sweep_seconds: float = SWEEP_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
        pruner: Pruner | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state_machine = state_machine
        self.clock = clock
        self._broadcaster = broadcaster
        self._publisher = publisher
        self.pruner = pruner or Pruner({"": state_machine}, FOR_EVER, clock, jitter=jitter)
        self._observer = observer or Observer()
        self.peers = None if publisher is None else Peers(publisher)
        self._gap_repair = GapRepair(
            state_machine,
            broadcaster,
            self._observer,
            peers=self.peers,
            sweep_seconds=sweep_seconds,
            jitter=jitter,
        )
        broadcaster.on_gap = self._gap_repair.notice
        self._consumers: list[MessageConsumer] = [broadcaster, *consumers]
        self.pubsub: PubSub | None = None
        self._relay: Relay | None = None
        self._adoption: Adoption | None = None
        if publisher is not None and self.peers is not None:
            self.peers.on_suspicion = self._gap_repair.notice_suspicion
            self._consumers.insert(0, publisher)
            self.pubsub = publisher.pubsub
            publisher.clock = clock
            self._relay = Relay(
                publisher,
                broadcaster,
                self.peers,
                clock,
                on_invalid_publication=self._observer.invalid_publication,
                on_interrupted=self._gap_repair.notice_interruption,
                linger_seconds=linger_seconds,
            )
            self._adoption = Adoption(state_machine, publisher, self._relay)
        self._tasks = asyncio.TaskGroup()
        self._background: list[asyncio.Task[None]] = []
        self._is_open = False

    async def __aenter__(self) -> Self:
        """Waits until the store has said which deployment it is."""
        await self._begin_channels()
        await self._tasks.__aenter__()
        self._gap_repair.begin()
        loops = [self._gap_repair.run(), self.pruner.run()]
        if self._relay is not None and self.peers is not None and self._adoption is not None:
            loops += [self._relay.run(), self._relay.unsubscribe_idle(), self.peers.run()]
            loops.append(self._adoption.run())
        self._background = [self._tasks.create_task(loop) for loop in loops]
        self._is_open = True
        return self

    async def _begin_channels(self) -> None:
        if self._publisher is not None and self._relay is not None:
            channels = channels_of(await self._deployment())
            self._publisher.channels = channels
            self._relay.begin(channels)

    async def _deployment(self) -> Deployment | None:
        while True:
            try:
                return await self.state_machine.deployment()
            except Unavailable as error:
                log.warning(LogEvent("the node waits for the store", reason=error.message))
                await asyncio.sleep(RETRY_SECONDS)

    async def __aexit__(self, *exc_info: Any) -> None:
        """Finishes the injects in flight first."""
        self._is_open = False
        for task in self._background:
            task.cancel()
        # The task group does not get the exception of the block: it would cancel the injects in
        # flight, and wrap the exception in an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    @property
    def waiting_for_store(self) -> bool:
        """Whether devices wait for the store, because it did not answer the last query."""
        return self._gap_repair.waiting_for_store

    # Accepting messages

    async def inject(
        self, caller: Caller, entries: Sequence[Message | Rejected], epoch: Time | None = None
    ) -> list[Outcome]:
        """Store new messages, in order, and return the outcome of each entry.

        A Stored message is durable and is being delivered to the devices. A message of a sender who
        knows an epoch is Rejected if it is not the one of its user. Raises Unavailable if the store
        does not answer. If the task that calls is cancelled, the messages are stored and delivered
        all the same.
        """
        return await self._finish(self._inject_all(caller, entries, epoch))

    async def erase(self, caller: Caller, uid: UID) -> EraseResult:
        """Delete everything of the user, and disconnect the user's devices from all nodes, each
        with the new epoch. Raises Unavailable if the store does not answer; the user may have been
        erased. If the task that calls is cancelled, the user is erased all the same."""
        return await self._finish(self._erase(caller, uid))

    async def _finish(self, work: Coroutine[Any, Any, T | Unavailable]) -> T:
        """The result of this work, which is finished also if the task that calls is cancelled."""
        if not self._is_open:
            work.close()
            raise Unavailable("this node is not open; send the messages again to another node")
        # Not `asyncio.shield`, of which the result is a turn of the event loop late.
        finished: PromptFuture[T | Unavailable] = PromptFuture(loop=asyncio.get_running_loop())
        task = self._tasks.create_task(_set_result(finished, work))
        task.add_done_callback(partial(_set_failure, finished, work))
        try:
            result = await finished
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Unavailable(
                "this node has failed; send the messages again to another node"
            ) from None
        if isinstance(result, Unavailable):
            raise result
        return result

    async def _erase(self, caller: Caller, uid: UID) -> EraseResult | Unavailable:
        try:
            result = await self.state_machine.erase(uid)
        except Unavailable as error:
            return error
        erased = LogEvent("a user was erased", uid=uid, by=caller.subject, pending=result.pending)
        log.info(erased)
        self._observer.erased(caller, uid, result)
        self._broadcaster.erase(uid, result.erasure.epoch)
        if self._publisher is not None:
            with self._reporting_errors():
                await self._publisher.publish_erasure(uid)
        return result

    async def _inject_all(
        self, caller: Caller, entries: Sequence[Message | Rejected], epoch: Time | None
    ) -> list[Outcome] | Unavailable:
        outcomes: list[Outcome] = []
        for start in range(0, len(entries), AT_A_TIME):
            if start:
                await asyncio.sleep(0)  # to many users: others get their turn
            batch = Batch(caller, entries[start : start + AT_A_TIME], epoch)
            stored = await self._inject(caller, batch)
            if isinstance(stored, Unavailable):
                return stored
            outcomes += stored
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
        self._observer.injected(caller, outcomes)
        await self._pass_to_consumers(accepted(outcomes))
        return outcomes

    async def _pass_to_consumers(self, accepted: Sequence[Accepted]) -> None:
        for consumer in self._consumers:
            match consumer:
                case BatchConsumer():
                    with self._reporting_errors():
                        await consumer.consume_batch(accepted)
                case _:
                    for outcome in accepted:
                        with self._reporting_errors():
                            await consumer.consume_message(outcome.message)

    @contextmanager
    def _reporting_errors(self) -> Iterator[None]:
        """Report the error of a consumer instead of raising it. The inject or erase has succeeded:
        devices that missed it read it from the store."""
        try:
            yield
        except Exception as error:
            log.error(LogEvent("a consumer failed"), exc_info=error)
            self._observer.consumer_failed(error)

    # Delivering messages

    async def attach(self, uid: UID, listener: Listener) -> None:
        """From here until `detach`, the listener receives the user's messages. Read the store after
        that: messages stored between an earlier read and this are missed."""
        self._broadcaster.add(uid, listener)
        try:
            # Every device subscribes, not only the first, because the subscription of the first
            # may not be confirmed yet.
            if self._relay is not None:
                await self._relay.subscribe(uid)
        except BaseException:
            self.detach(uid, listener)
            raise

    def detach(self, uid: UID, listener: Listener) -> None:
        """The listener, which is attached, receives no more."""
        if self._broadcaster.remove(uid, listener) and self._relay is not None:
            self._relay.mark_idle(uid)

    def device_count(self, uid: UID) -> int:
        """The number of the user's attached devices."""
        return self._broadcaster.device_count(uid)

    async def open(self, session: ServerSession, uid: UID, issued_at: Time | None) -> None:
        """Read what an attached session, whose token was issued then, needs to open, and pass it to
        the session: everything after its cursor, and the user's last erase."""
        session.reading()
        sync = await self._sync(uid, session.device_id, session.cursor)
        session.opened(uid, sync, self.clock(), issued_at)
        self._caught_up(session)

    async def catch_up(self, session: ServerSession, cursor: Time) -> None:
        """Read everything after the cursor from the store and pass it to the session."""
        session.synced(await self._sync(session.uid, session.device_id, cursor))
        self._caught_up(session)

    async def _sync(self, uid: UID, device_id: DeviceID, cursor: Time) -> Sync:
        history = self.state_machine.history
        sync = await self.state_machine.sync(uid, device_id, cursor)
        while self.state_machine.history != history:  # it may have read what is lost
            history = self.state_machine.history
            sync = await self.state_machine.sync(uid, device_id, cursor)
        return sync

    def _caught_up(self, session: ServerSession) -> None:
        if not session.lagging and session.phase is Phase.OPEN:
            self._broadcaster.lower_position(session.uid, session.position)

    async def read_items(self, session: ServerSession, ctimes: Sequence[Time]) -> None:
        """Read these items of a snapshot from the store and pass them to the session."""
        session.items_read(await self.state_machine.items(session.uid, ctimes))


async def _set_result(result: asyncio.Future[T], work: Coroutine[Any, Any, T]) -> None:
    value = await work
    if not result.done():  # it is, if who waits for it was cancelled
        result.set_result(value)


def _set_failure(
    result: asyncio.Future[T], work: Coroutine[Any, Any, T], task: asyncio.Task[None]
) -> None:
    """Set the result if the task of this work has not, because it failed or was cancelled."""
    work.close()  # it has not begun, if the task was cancelled before
    if result.done():
        return
    if task.cancelled():
        result.cancel()
    elif (failure := task.exception()) is not None:
        result.set_exception(failure)
