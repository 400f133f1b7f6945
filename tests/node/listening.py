"""What stands in for devices, and for what fails, around a node."""

import asyncio
from collections.abc import Callable, Mapping, Sequence

from gregor.core.instant import Time
from gregor.core.message import UID, DeviceID, InBandMessage, Message, OutOfBandMessage
from gregor.core.state import Sync
from gregor.errors import Malformed, StorageUnavailable
from gregor.interfaces import Outcome
from gregor.node import Node, Observer
from gregor.protocol.server import Publication, ServerSession
from gregor.state_machines.memory import MemoryStateMachine


class Ear:
    """A Listener that remembers what it heard."""

    def __init__(self) -> None:
        self.publications: list[Publication] = []
        self.passed: list[OutOfBandMessage] = []

    def publish(self, publication: Publication) -> None:
        self.publications.append(publication)

    def pass_by(self, message: OutOfBandMessage) -> None:
        self.passed.append(message)

    @property
    def ids(self) -> list[str]:
        return [message.msg_id for p in self.publications for message in p.messages]


async def tell(node: Node, uid: UID = "u") -> None:
    """A device of the user reads the store, so that the node knows how far its devices are."""
    session = ServerSession()
    session.resume(uid, "d", 0)
    session.next()
    await node.catch_up(session, 0)


class Failing:
    """A MessageConsumer that never does its work."""

    async def consume_message(self, message: Message) -> Message:
        raise ConnectionError("nobody there")


class Notes(Observer):
    """An Observer that remembers."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.healed_messages: list[int] = []
        self.strange_ones: list[Malformed] = []
        self.failures: list[Exception] = []
        self.interruptions = 0

    def injected(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def healed(self, messages: int) -> None:
        self.healed_messages.append(messages)

    def strange(self, error: Malformed) -> None:
        self.strange_ones.append(error)

    def interrupted(self) -> None:
        self.interruptions += 1

    def unheard(self, error: Exception) -> None:
        self.failures.append(error)


class Steps:
    """A clock on which every look is a microsecond later."""

    def __init__(self, now: Time = 1000) -> None:
        self.now = now

    def __call__(self) -> Time:
        self.now += 1
        return self.now


class Flaky(MemoryStateMachine):
    """A store that can be `down`. A commit waits while `commits` is not set."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        super().__init__(clock)
        self.down = False
        self.commits = asyncio.Event()
        self.commits.set()
        self.asked: list[Sequence[UID]] = []  # whose clocks

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        await self.commits.wait()
        self._check()
        return await super().consume_messages(messages)

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        self._check()
        return await super().sync(uid, device_id, cursor)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        self._check()
        self.asked.append(uids)
        return await super().ctimes(uids)

    def _check(self) -> None:
        if self.down:
            raise StorageUnavailable("the store is down")
