"""Fake devices and failing components for tests of a node."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from gregor.core.deployment import Deployment
from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, Message, OutOfBandMessage
from gregor.core.sync import Sync
from gregor.errors import Malformed, StorageUnavailable
from gregor.interfaces import HOLDS_FOREVER, Caller, EraseResult, Outcome, Slot
from gregor.node.node import Node
from gregor.node.observer import Observer
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import ServerSession
from gregor.pubsub.interface import Event
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.stores.memory import MemoryStateMachine


class FakeListener:
    """A Listener that records what it receives."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self.out_of_band: list[OutOfBandMessage] = []
        self.syncs = 0  # how often it was told to sync again
        self.epochs: list[Time] = []  # at which its user was erased

    def publish(self, publication: Publication) -> None:
        self.publications.append(publication)

    def sync_again(self) -> None:
        self.syncs += 1

    def erased(self, epoch: Time) -> None:
        self.epochs.append(epoch)

    def deliver_out_of_band(self, message: OutOfBandMessage) -> None:
        self.out_of_band.append(message)

    @property
    def ids(self) -> list[str]:
        return [message.msg_id for p in self.publications for message in p.messages]


@asynccontextmanager
async def attached(node: Node, uid: UID, listener: FakeListener) -> AsyncIterator[None]:
    """While the block runs, the listener receives the user's messages."""
    await node.attach(uid, listener)
    try:
        yield
    finally:
        node.detach(uid, listener)


async def sync_device(node: Node, uid: UID = "u") -> None:
    """A device of the user syncs from the store, which gives the user's feed a position."""
    session = ServerSession()
    session.resume("d", 0, None)
    await node.open(session, uid, HOLDS_FOREVER)


class FailingConsumer:
    """A MessageConsumer that always raises."""

    async def consume_message(self, message: Message) -> Message:
        raise ConnectionError("connection refused")


class FailingPubSub(MemoryPubSub):
    """A pub/sub whose server refuses every payload but the probes."""

    def __init__(self) -> None:
        super().__init__(Exchange())

    async def publish(self, channel: str, payload: bytes) -> None:
        if not channel.endswith(":nodes"):
            raise ConnectionError("connection refused")


class RecordingConsumer:
    """A MessageConsumer that records what it consumes."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def consume_message(self, message: Message) -> Message:
        self.messages.append(message)
        return message


class RecordingObserver(Observer):
    """An Observer that records all events."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.repaired_counts: list[int] = []  # messages, for each gap repair
        self.invalid_publications: list[Malformed] = []
        self.consumer_errors: list[Exception] = []
        self.erasures: list[tuple[UID, EraseResult]] = []
        self.hashes_repaired = self.interruptions = 0

    def injected(self, caller: Caller, outcomes: Sequence[Outcome]) -> None:
        self.outcomes += outcomes

    def erased(self, caller: Caller, uid: UID, result: EraseResult) -> None:
        self.erasures.append((uid, result))

    def gap_repaired(self, messages: int) -> None:
        self.repaired_counts.append(messages)

    def hash_repaired(self) -> None:
        self.hashes_repaired += 1

    def invalid_publication(self, error: Malformed) -> None:
        self.invalid_publications.append(error)

    def interrupted(self) -> None:
        self.interruptions += 1

    def consumer_failed(self, error: Exception) -> None:
        self.consumer_errors.append(error)


BACKEND = Caller("backend")
DEPLOYMENT = Deployment("0d", b"the key of the nodes")


class SteppingClock:
    """A clock that advances by one microsecond each time it is read."""

    def __init__(self, now: Time = 1000) -> None:
        self.now = now

    def __call__(self) -> Time:
        self.now += 1
        return self.now


class FailingStore(MemoryStateMachine):
    """A store that raises StorageUnavailable while it is `down`. A commit waits until
    `commits_allowed` is set. It keeps a wrong hash for the users in `wrong_hashes`, and checks none
    of `fails_to_check`. It is `its_deployment`; None: as a store is before schema 0009."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        super().__init__(clock)
        self.down = False
        self.its_deployment: Deployment | None = DEPLOYMENT
        self.commits_allowed = asyncio.Event()
        self.commits_allowed.set()
        self.ctimes_queries: list[Sequence[UID]] = []
        self.wrong_hashes: set[UID] = set()
        self.fails_to_check: set[UID] = set()
        self.hash_checks: list[Sequence[UID]] = []

    async def deployment(self) -> Deployment | None:
        self._check()
        return self.its_deployment

    async def store(self, slots: Sequence[Slot]) -> None:
        await self.commits_allowed.wait()
        self._check()
        await super().store(slots)

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        self._check()
        return await super().sync(uid, device_id, cursor)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        self._check()
        self.ctimes_queries.append(uids)
        return await super().ctimes(uids)

    async def erase(self, uid: UID) -> EraseResult:
        await self.commits_allowed.wait()
        self._check()
        return await super().erase(uid)

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        self.hash_checks.append(uids)
        self._check()
        if not self.fails_to_check.isdisjoint(uids):
            raise StorageUnavailable("the store does not answer for this user")
        repaired = [uid for uid in uids if uid in self.wrong_hashes]
        self.wrong_hashes.difference_update(repaired)
        return repaired

    def _check(self) -> None:
        if self.down:
            raise StorageUnavailable("the store is down")


class EndingPubSub(MemoryPubSub):
    """A pub/sub whose `received()` yields `events`, waits until `may_end` is set, which it is at
    first, and then ends: with the `error`, or without one."""

    def __init__(self, *events: Event, error: Exception | None = None) -> None:
        super().__init__(Exchange())
        self.may_end = asyncio.Event()
        self.may_end.set()
        self._events = events
        self._error = error

    async def received(self) -> AsyncIterator[Event]:
        for event in self._events:
            yield event
        await self.may_end.wait()
        if self._error is not None:
            raise self._error
