"""Both sessions wired back to back: a node with its store on one side, a device with its replica
on the other, and between them two wires on which frames lie until somebody delivers them."""

from collections import deque
from collections.abc import Iterable, Sequence

from gregor.core.message import DeviceID, InBandMessage, Message, OutOfBandMessage
from gregor.core.state import Changes, Facts, State, Sync
from gregor.interfaces import Passed, Stored
from gregor.protocol import client, server
from gregor.protocol.client import ClientSession
from gregor.protocol.frames import Result, encode
from gregor.protocol.server import (
    Authenticate,
    CatchUp,
    Close,
    Publication,
    Send,
    ServerSession,
    Store,
)
from gregor.state_machines.memory import MemoryStateMachine
from gregor.testing.clock import ManualClock

UID = "user"


class Pair:
    """One device, connected to a node; `connect` begins a new conversation."""

    def __init__(self, device_id: DeviceID = "d1") -> None:
        self.clock = ManualClock(100)
        self.store = MemoryStateMachine(self.clock)
        self.device_id = device_id
        self.replica = Facts()
        self.published: list[Publication] = []
        self.told: list[client.Effect] = []
        self.closed: Close | None = None
        self.device = ClientSession("token", device_id, 0)
        self.connect()

    def connect(self) -> None:
        """A new connection, on which the device goes on from what it knows."""
        self.node = ServerSession()
        self.device = ClientSession("token", self.device_id, self.device.cursor)
        self.to_node: deque[str] = deque()
        self.to_device: deque[str] = deque()
        self.question: CatchUp | None = None
        self.answer: Sync | None = None
        self.closed = None
        self._carry_out(self.device.opened())

    # The world around

    async def write(self, *messages: InBandMessage) -> list[Publication]:
        """Somebody stores messages. Returns their publications, which nobody hears yet."""
        outcomes = await self.store.consume_messages(messages)
        new = [Publication.of(o.message) for o in outcomes if isinstance(o, Stored)]
        self.published += new
        return new

    async def tell(self, *messages: InBandMessage) -> None:
        """Somebody stores messages, and the node hears of them."""
        for publication in await self.write(*messages):
            self.node.publish(publication)

    def restore_backup(self) -> None:
        """The store has forgotten everything: the backup was an empty one."""
        self.store = MemoryStateMachine(ManualClock(self.clock.now - 50))

    async def stretch(self) -> Publication:
        """What a node reads from the store to close a gap."""
        position = self.node.position
        sync = await self.store.sync(UID, None, position)
        if isinstance(sync.content, Changes):
            return Publication.stretch(position, sync.content.messages, sync.cursor)
        return Publication.stretch(sync.cursor, (), sync.cursor)

    # One step of each hand

    async def read_on_node(self) -> bool:
        """The node takes one frame off the wire."""
        if not self.to_node:
            return False
        match self.node.receive(self.to_node.popleft()):
            case Authenticate():
                self.node.authenticated(UID, self.clock.now)
            case Store(n, messages):
                self.node.stored(n, [await self._stored(message) for message in messages])
        return True

    async def _stored(self, message: Message | Result) -> Result:
        match message:
            case Result():
                return message
            case OutOfBandMessage():
                self.node.pass_by(message)
                return Result.of(Passed(message))
            case InBandMessage():
                (outcome,) = await self.store.consume_messages([message])
                if isinstance(outcome, Stored):
                    self.published.append(Publication.of(outcome.message))
                    self.node.publish(self.published[-1])
                return Result.of(outcome)

    async def write_on_node(self) -> bool:
        """The socket takes one more frame; or the store is asked, or its answer is brought."""
        if self.answer is not None:
            self.node.synced(self.answer)
            self.answer = None
            return True
        if self.question is not None:
            self.answer = await self.store.sync(UID, self.device_id, self.question.cursor)
            self.question = None
            return True
        match self.node.next():
            case None:
                return False
            case Send() as send:
                self.to_device.append(encode(send.frame))
            case CatchUp() as question:
                self.question = question
            case Close() as close:
                self.closed = close
        return True

    async def read_on_device(self) -> bool:
        """The device takes one frame off the wire."""
        if not self.to_device:
            return False
        self._carry_out(self.device.receive(self.to_device.popleft()))
        return True

    async def settle(self) -> None:
        """Until there is nothing left to do."""
        while (
            await self.read_on_node() or await self.write_on_node() or await self.read_on_device()
        ):
            pass

    def _carry_out(self, effects: Iterable[client.Effect]) -> None:
        for effect in effects:
            self.told.append(effect)
            match effect:
                case server.Send() as send:
                    self.to_node.append(encode(send.frame))
                case client.Apply(messages, cursor):
                    self.replica = self.replica.replay_all(messages).forget(cursor)
                case client.Replace(snapshot, _):
                    self.replica = snapshot.facts()
                case client.Compare(as_of, hash_):
                    shown = self.replica.state(self.device_id, as_of)
                    self._carry_out(self.device.compared(shown.hash() == hash_))

    # What a test looks at

    def consume(self, messages: Sequence[Message]) -> None:
        self._carry_out(self.device.consume(messages))

    def verify(self, cursor: int | None = None) -> None:
        self._carry_out(self.device.verify(cursor))

    def said(self, kind: type[client.Effect]) -> list[client.Effect]:
        """What the device was told of this kind."""
        return [effect for effect in self.told if isinstance(effect, kind)]

    def shown(self) -> State:
        return self.replica.state(self.device_id, self.clock.now)

    async def stored_state(self) -> State:
        return await self.store.state(UID, self.device_id)
