"""A harness that connects both sessions: a node with its store, a device with its replica, and a
queue of frames in each direction. Each step, such as reading one frame, is a call. A device whose
user was erased has wiped its replica; it begins a new life with the next connection."""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, Message, OutOfBandMessage
from gregor.core.state import State
from gregor.core.sync import Changes, Sync
from gregor.interfaces import HOLDS_FOREVER, Outcome, Rejected, Relayed, Slot, Stored
from gregor.protocol import client_session
from gregor.protocol.client_session import ClientSession
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import encode
from gregor.protocol.publication import Publication
from gregor.protocol.server_session import Authenticate, CatchUp, ReadItems, ServerSession, Store
from gregor.stores.memory import MemoryStateMachine
from gregor.testing.clock import ManualClock

UID = "user"


class SessionPair:
    """One device, connected to a node; `connect` starts a new conversation."""

    def __init__(self, device_id: DeviceID = "d1") -> None:
        self.clock = ManualClock(100)
        self.store = MemoryStateMachine(self.clock)
        self.device_id = device_id
        self.replica = Facts()
        self.published: list[Publication] = []
        self.effects: list[client_session.Effect] = []
        self.closed: Close | None = None
        self.wiped = False
        self.device = ClientSession("token", device_id, 0)
        self.connect()

    def connect(self) -> None:
        """Open a new connection, on which the device continues from its cursor."""
        self.node = ServerSession()
        cursor, epoch = (0, None) if self.wiped else (self.device.cursor, self.device.epoch)
        self.device = ClientSession("token", self.device_id, cursor, epoch)
        self.wiped = False
        self.to_node: deque[str] = deque()
        self.to_device: deque[str] = deque()
        self.catch_up: CatchUp | None = None
        self.sync: Sync | None = None
        self.opening: Literal["no", "to read", "read"] = "no"
        self.read_items: ReadItems | None = None
        self.closed = None
        self._carry_out(self.device.opened())

    # The store, and publications from it

    async def store_messages(self, *messages: InBandMessage) -> list[Publication]:
        """Store messages, and return their publications, which the node does not receive."""
        outcomes = await self.store.consume_messages(messages)
        new = [Publication.of(o) for o in outcomes if isinstance(o, Stored)]
        self.published += new
        return new

    async def store_and_publish(self, *messages: InBandMessage) -> None:
        """Store messages, and publish them to the node."""
        for publication in await self.store_messages(*messages):
            self.node.publish(publication)

    async def erase(self) -> Time:
        """Erase the user, of which the node does not hear. Returns the epoch."""
        return (await self.store.erase(UID)).erasure.epoch

    async def erase_and_publish(self) -> None:
        """Erase the user, and say so to the node."""
        self.node.erased(await self.erase())

    async def behind_the_clock(self, message: InBandMessage) -> InBandMessage:
        """The message as a replay, just behind the user's clock."""
        return message.stamp(max(1, await self.store.ctime(UID) - 1), 0)

    def restore_backup(self) -> None:
        """Replace the store by an empty one, as after the restore of an old backup."""
        self.store = MemoryStateMachine(ManualClock(self.clock.now - 50))

    async def gap_repair(self) -> Publication:
        """The publication that a node reads from the store to repair a gap."""
        position = self.node.position
        sync = await self.store.sync(UID, None, position)
        if isinstance(sync.content, Changes):
            return Publication.span(position, sync.content.messages, sync.cursor)
        return Publication.span(sync.cursor, (), sync.cursor)

    # One step of a reader or writer

    async def read_on_node(self) -> bool:
        """The node reads one frame. Returns False if there is none."""
        if not self.to_node:
            return False
        match self.node.receive(self.to_node.popleft()):
            case Authenticate():
                self.node.reading()
                self.opening = "to read"
            case Store(n, entries):
                self.node.stored(n, [await self._stored(entry) for entry in entries])
        return True

    async def _stored(self, entry: Message | Rejected) -> Outcome:
        match entry:
            case Rejected():
                return entry
            case OutOfBandMessage():
                self.node.deliver_out_of_band(entry)
                return Relayed(entry)
            case InBandMessage():
                slot = Slot(entry, epoch=self.node.epoch)
                await self.store.store([slot])
                outcome = slot.outcome
                assert outcome is not None
                if isinstance(outcome, Stored):
                    self.published.append(Publication.of(outcome))
                    self.node.publish(self.published[-1])
                return outcome

    async def write_on_node(self) -> bool:
        """The node's writer carries out one effect, or one half of a CatchUp: the read from the
        store, or the call of `synced`; of the beginning, that of `opened`. It reads items later
        than it is asked for them. Returns False if there is nothing to do."""
        if self.opening == "to read":
            self.opening = "read"
            self.sync = await self.store.sync(UID, self.device_id, self.node.cursor)
            return True
        if self.sync is not None:
            if self.opening == "read":
                self.opening = "no"
                self.node.opened(UID, self.sync, self.clock.now, HOLDS_FOREVER)
            else:
                self.node.synced(self.sync)
            self.sync = None
            return True
        if self.catch_up is not None:
            self.sync = await self.store.sync(UID, self.device_id, self.catch_up.cursor)
            self.catch_up = None
            return True
        if self.read_items is not None:
            ctimes, self.read_items = self.read_items.ctimes, None
            self.node.items_read(await self.store.items(UID, ctimes))
            return True
        match self.node.next():
            case None:
                return False
            case Send() as send:
                self.to_device.append(encode(send.frame))
            case CatchUp() as catch_up:
                self.catch_up = catch_up
            case ReadItems() as read_items:
                self.read_items = read_items
            case Close() as close:
                self.closed = close
        return True

    async def read_on_device(self) -> bool:
        """The device reads one frame. Returns False if there is none."""
        if not self.to_device:
            return False
        self._carry_out(self.device.receive(self.to_device.popleft()))
        return True

    async def run_until_idle(self) -> None:
        """Read and write on both sides until there is nothing to do."""
        while (
            await self.read_on_node() or await self.write_on_node() or await self.read_on_device()
        ):
            pass

    async def reconnect_until_synced(self) -> None:
        """What a device does that the node has closed; one that was wiped is asked to."""
        await self.run_until_idle()
        while self.closed is not None or self.wiped:
            self.connect()
            await self.run_until_idle()

    def _carry_out(self, effects: Iterable[client_session.Effect]) -> None:
        for effect in effects:
            if self.wiped:
                return
            self.effects.append(effect)
            match effect:
                case Send() as send:
                    self.to_node.append(encode(send.frame))
                case client_session.Apply(messages, _):
                    self.replica = self.replica.replay_all(messages).pruned()
                case client_session.Replace(snapshot):
                    self.replica = snapshot.facts()
                case client_session.Wipe():
                    self.replica, self.wiped = Facts(), True
                case client_session.Compare(as_of, hash_):
                    equal = self.replica.hash(self.device_id, as_of) == hash_
                    self._carry_out(self.device.hash_compared(equal))

    # Calls and observations of a test

    def consume(self, messages: Sequence[Message]) -> None:
        self._carry_out(self.device.consume(messages))

    def verify(self, cursor: int | None = None) -> None:
        self._carry_out(self.device.verify(cursor))

    def effects_of(self, kind: type[client_session.Effect]) -> list[client_session.Effect]:
        """The effects of this type that the device's session has returned."""
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def visible(self) -> State:
        return self.replica.state(self.device_id, self.clock.now)

    async def stored_state(self) -> State:
        return await self.store.state(UID, self.device_id)
