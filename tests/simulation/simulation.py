"""A simulation of nodes, devices and a store on virtual time, with faults by a random seed.

Real Nodes, real server connections and real Clients run on a virtual-time event loop. The seed
decides the faults between them:

- connections break; frames are delayed, repeated and reordered;
- the store answers late, out of order or not at all, is unavailable to some nodes for a while, or
  commits and then fails to answer;
- the pub/sub drops, repeats and reorders payloads, is silently partitioned, and carries payloads of
  a foreign publisher;
- nodes crash between commit and acknowledgement;
- devices are killed and restart from their client store; their token functions fail, hang and
  return what is no token;
- in one simulation of three, nodes have low rates, and refuse what exceeds them;
- clocks differ and jump, those of devices by hours;
- another process replays messages behind the users' clocks;
- users are pruned, up to a moment ago, so that a device that was away is as one that comes back
  after a year; and users are erased, and begin new lives.

Items begin later, also while devices are offline, and are snoozed and put again under their keys.

One simulation in twenty uses real shards as its store. Shards go down one at a time, while movers,
which are killed at random moments, move the users' buckets between shards, and cleaners delete the
old copies.

Then the faults end, and all must agree. Each replica equals the store in hash and items. Each
acknowledged message is stored once, on one shard, or its id is kept, unless the user was erased
later. What a device has written is stored in the order in which it was written. Each message that a
device accepted is stored, or was reported as rejected; unless the user was erased after what the
device knew: then it was not stored after that. No dismissed item is shown again. If the clocks
agree, no hash mismatch had to repair a replica.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple, cast

from msgspec import structs

from gregor.client import Client, Created, Disconnected, Dismissed, MemoryStore
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.channels import Channels, UnsignedChannels
from gregor.consumers.publisher import Publisher, encode_envelope
from gregor.core.facts import Facts
from gregor.core.history import Cutoff
from gregor.core.instant import SECOND, Time
from gregor.core.message import (
    UID,
    DeviceID,
    InBandMessage,
    MsgID,
    create,
    dismiss,
    dismiss_category,
    dismiss_key,
    put,
)
from gregor.core.state import Item
from gregor.core.sync import Snapshot, Sync
from gregor.errors import Erased, InvalidMessage, Unavailable
from gregor.interfaces import Caller, Stored
from gregor.limits import NO_LIMITS
from gregor.node.limiter import Limiter
from gregor.node.node import Node
from gregor.protocol.frames import Result
from gregor.pubsub.interface import Event, Interrupted
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.server.auth import OpenAuthenticator
from gregor.server.metrics import Metrics
from gregor.server.service import Service
from gregor.server.websocket import WebSocketChannel
from gregor.testing import virtual_time
from tests.simulation.simulated_stores import ShardedStore, SharedStore, SimulatedStore, StoreLink

USERS = ("ann", "bob")
KEYS = ("theme", "draft")
CATEGORIES = ("mail", "mail.work", "chat", "theme")
FORGED = "forged"
STRICT_EVERY = 3  # simulations: their nodes have low rates
STRICT = structs.replace(
    NO_LIMITS, messages_per_second=1, syncs_per_second=1, frames_per_second=5, connections=50
)
SHARDED_EVERY = 20  # simulations: a sharded one takes about twenty times as long


class Disagreement(AssertionError):
    """A simulation ended in a wrong state. Its seed reproduces it."""


class LossyPubSub(MemoryPubSub):
    """A pub/sub that drops, repeats, delays and reorders, and is slow to subscribe. Sometimes it is
    silently partitioned: nothing is received or sent, and no error is raised. Afterwards it either
    reports Interrupted, as after a missed heartbeat, or continues without a report."""

    def __init__(self, exchange: Exchange, simulation: "Simulation") -> None:
        super().__init__(exchange)
        self._simulation = simulation
        self._partitioned = False

    async def publish(self, channel: str, payload: bytes) -> None:
        if not self._partitioned:
            await super().publish(channel, payload)

    async def subscribe(self, channel: str) -> None:
        await self._simulation.delay()
        await super().subscribe(channel)
        await self._simulation.delay()

    async def unsubscribe(self, channel: str) -> None:
        await self._simulation.delay()
        await super().unsubscribe(channel)
        await self._simulation.delay()

    def put(self, event: Event) -> None:
        if self._simulation.chance(0.2):
            return
        for _ in range(2 if self._simulation.chance(0.1) else 1):
            asyncio.get_running_loop().call_later(self._simulation.latency(), self._deliver, event)

    def _deliver(self, event: Event) -> None:
        if not self._partitioned:
            super().put(event)

    def start_partition(self) -> None:
        self._partitioned = True

    def end_partition(self) -> bool:
        """Returns whether the pub/sub reports the interruption."""
        self._partitioned = False
        is_reported = self._simulation.chance(0.5)
        if is_reported:
            super().put(Interrupted())
        return is_reported

    def close(self) -> None:
        for subscribers in self._exchange.channels.values():
            subscribers.pop(self, None)


class SimulatedConnection:
    """One connection: a Transport for the device, and an ASGI WebSocket for the node. Frames are
    delayed; unless the connection is `_ordered`, they are also repeated and reordered."""

    def __init__(self, simulation: "Simulation", name: str) -> None:
        self._simulation = simulation
        self._name = name
        self._ordered = simulation.chance(0.7)
        self._to_node: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_device: asyncio.Queue[str | Disconnected] = asyncio.Queue()
        self._last_arrival = {True: 0.0, False: 0.0}  # of a frame, by direction (to the node?)
        self._end: Disconnected | None = None

    # The device's side

    async def send(self, text: str) -> None:
        if self._end is not None:
            raise self._end
        event = {"type": "websocket.receive", "text": text}
        self._transmit(True, lambda: self._to_node.put_nowait(event))

    async def receive(self) -> str:
        frame = await self._to_device.get()
        if isinstance(frame, Disconnected):
            raise frame
        return frame

    async def close(self) -> None:
        self.cut("closed by the device")

    # The node's side

    async def asgi_receive(self) -> dict[str, Any]:
        return await self._to_node.get()

    async def asgi_send(self, event: Any) -> None:
        if self._end is not None:
            raise OSError("the device is disconnected")
        if event["type"] == "websocket.close":
            self.cut(event["reason"], event["code"])
        else:
            self._transmit(False, lambda: self._to_device.put_nowait(event["text"]))
        await asyncio.sleep(0)

    # The network

    def _transmit(self, to_node: bool, deliver: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._simulation.chance(0.01):
            self.cut("the connection breaks")
            return
        for _ in range(2 if not self._ordered and self._simulation.chance(0.1) else 1):
            at = loop.time() + self._simulation.latency()
            if self._ordered or self._simulation.faults_over:
                at = self._last_arrival[to_node] = max(at, self._last_arrival[to_node] + 0.000_001)
            loop.call_at(at, self._deliver, deliver)

    def _deliver(self, deliver: Callable[[], None]) -> None:
        if self._end is None:
            deliver()

    def cut(self, reason: str, code: int = 1006) -> None:
        if self._end is None:
            self._end = Disconnected(code, reason)
            self._simulation.record(self._name, reason)
            self._to_device.put_nowait(self._end)
            self._to_node.put_nowait({"type": "websocket.disconnect"})


class SimulatedNode:
    """A node that crashes and restarts. It has its own clock."""

    def __init__(self, simulation: "Simulation", name: str) -> None:
        self.name = name
        self._simulation = simulation
        self._skew = simulation.skew()
        self._start_count = 0
        self.link = StoreLink(simulation, name)
        self.service: Service | None = None
        self.pubsub: LossyPubSub | None = None
        self._connections: dict[SimulatedConnection, None] = {}
        self.task: asyncio.Task[None] | None = None

    def clock(self) -> Time:
        return virtual_time.clock() + self._skew

    def set_clock(self) -> None:
        """Set the clock to a random skew, also to an earlier time."""
        self._skew = self._simulation.skew()

    def start(self) -> None:
        self._start_count += 1
        self.task = self._simulation.tasks.create_task(
            self._run(f"{self.name}#{self._start_count}")
        )

    async def _run(self, name: str) -> None:
        simulation = self._simulation
        self.pubsub = pubsub = LossyPubSub(simulation.exchange, simulation)
        metrics, publisher = Metrics(), Publisher(pubsub, name)
        self.link = StoreLink(simulation, self.name)
        try:
            async with (
                simulation.store.serve(self.link, self.clock) as state_machine,
                Node(
                    state_machine,
                    Broadcaster(),
                    publisher,
                    clock=self.clock,
                    linger_seconds=simulation.rng.uniform(0.5, 5),
                    observer=metrics,
                    jitter=simulation.rng.random,
                ) as node,
            ):
                simulation.channels = publisher.channels
                self.service = Service(node, OpenAuthenticator(), metrics)
                self.service.limiter = Limiter(simulation.limits, burst_seconds=2)
                simulation.record(name, "starts")
                await asyncio.get_running_loop().create_future()
        finally:
            self.service = None
            pubsub.close()
            for connection in tuple(self._connections):
                connection.cut("the node crashed")

    async def crash(self) -> None:
        """Stop at once, in the middle of any work; then restart after up to 3 s."""
        if self.task is None or self.service is None:
            return
        self._simulation.record(self.name, "crashes")
        self.service = None
        self.link.cut = True  # without this, the shutdown would still store queued messages
        for connection in tuple(self._connections):
            connection.cut("the node crashed")
        self.task.cancel()
        await asyncio.wait([self.task])
        await asyncio.sleep(self._simulation.rng.random() * 3)
        self.start()

    def accept(self, connection: SimulatedConnection) -> None:
        self._simulation.tasks.create_task(self._serve(connection))

    async def _serve(self, connection: SimulatedConnection) -> None:
        service = self.service
        if service is None:
            connection.cut("the node is down")
            return
        self._connections[connection] = None
        try:
            await service.serve(WebSocketChannel(connection.asgi_receive, connection.asgi_send))
        finally:
            del self._connections[connection]
            connection.cut("the node closes the connection")


class AcceptedWrite(NamedTuple):
    """A message that a device accepted when it knew this epoch of its user (None: not yet any), in
    this tab, if it is a browser. What is written in two tabs at once has no order; in one, it has
    that of the calls, and not of their answers: several are saved at once."""

    msg_id: MsgID
    epoch: Time | None
    tab: str = ""
    call: int = 0


class SimulatedDevice:
    """A device and its user. It goes offline, is killed, and restarts with its client store."""

    def __init__(self, simulation: "Simulation", uid: UID, device_id: DeviceID) -> None:
        self.uid = uid
        self.device_id = device_id
        self.name = f"{uid}/{device_id}"
        self.accepted: list[AcceptedWrite] = []
        self.client: Client | None = None
        self.clients: list[Client] = []  # all so far, one per restart
        self._simulation = simulation
        self.store = MemoryStore()
        self._reachable = True
        self._skew = simulation.device_skew()
        self._connection: SimulatedConnection | None = None
        self._lifetime: asyncio.Timeout | None = None

    async def connect(self) -> SimulatedConnection:
        await self._simulation.delay()
        node = self._simulation.rng.choice(self._simulation.nodes)
        if not self._reachable or node.service is None:
            raise Disconnected(0, "the node cannot be reached")
        self._connection = SimulatedConnection(self._simulation, self.name)
        node.accept(self._connection)
        return self._connection

    def clock(self) -> Time:
        return virtual_time.clock() + self._skew

    async def token(self) -> str:
        if not self._simulation.chance(0.2):
            return self.uid
        self._simulation.record(self.name, "has a token function that fails")
        match self._simulation.choice(nothing=1, error=1, hang=1):
            case "error":
                raise KeyError("token")
            case "hang":
                await asyncio.sleep(3600)
        return cast("str", None)

    async def run(self) -> None:
        """Run a Client, and a new one after each kill, until the simulation ends."""
        while True:
            client = Client(
                "ws://simulated",
                self.token,
                device_id=self.device_id,
                store=self.store,
                connect=self.connect,
                clock=self.clock,
                jitter=self._simulation.rng.random,
            )
            try:
                async with asyncio.timeout(None) as self._lifetime, client:
                    self.client = client
                    self.clients.append(client)
                    self._simulation.record(self.name, "starts")
                    if isinstance(client.failure, Erased):
                        self._begin_new_life(client)
                    await self._watch(client)
            except TimeoutError:
                self._simulation.record(self.name, "was killed")

    async def _watch(self, client: Client) -> None:
        """Raises Disagreement if the client shows an item twice, or one that was never stored. In
        another life of the user, the same msg_id is another item."""
        shown: set[tuple[Time, MsgID]] = set()
        async with client.events() as events:
            async for event in events:
                if isinstance(event, Created | Dismissed):
                    change = "shows" if isinstance(event, Created) else f"hides ({event.why})"
                    self._simulation.record(self.name, f"{change} {event.item.msg_id}")
                    if _begins_offline(event, client):
                        self._simulation.record(self.name, "has shown an item that begins offline")
                if isinstance(event, Erased):
                    shown.clear()
                    self._begin_new_life(client)
                epoch = client.replica.epoch or 0
                if isinstance(event, Created):
                    if event.item.msg_id == FORGED:
                        raise Disagreement(f"{self.name} shows an item that was never stored")
                    if (epoch, event.item.msg_id) in shown:
                        raise Disagreement(f"{self.name} shows {event.item.msg_id} twice")
                    shown.add((epoch, event.item.msg_id))
                if isinstance(event, Dismissed) and _is_timed(event.item):
                    # A node whose clock is behind shows it for another moment, or not yet.
                    shown.discard((epoch, event.item.msg_id))

    def _begin_new_life(self, client: Client) -> None:
        self._simulation.record(self.name, "hears that its user was erased")
        delay = self._simulation.rng.random() * 5
        asyncio.get_running_loop().call_later(delay, client.reconnect)

    async def act(self) -> None:
        """Do one random action of a user, or one random fault of a device."""
        simulation, client = self._simulation, self.client
        if client is None:
            return None
        items = [item.msg_id for item in client.state().items]
        epoch = client.replica.epoch
        category = simulation.rng.choice(CATEGORIES)
        msg_id = simulation.new_msg_id()
        match simulation.choice(
            create=4,
            put=3,
            snooze=1,
            dismiss=4,
            category=1,
            key=1,
            hide=1,
            offline=2,
            kill=1,
            clock=1,
        ):
            case "create":
                starts, expires = simulation.lifetime()
                this_device = simulation.chance(0.3)
                write = client.create(
                    category,
                    None,
                    starts=starts,
                    expires=expires,
                    this_device=this_device,
                    msg_id=msg_id,
                )
            case "put":
                starts, expires = simulation.lifetime()
                write = client.put(
                    category,
                    simulation.rng.random(),
                    key=simulation.rng.choice(KEYS),
                    starts=starts,
                    expires=expires,
                    this_device=simulation.chance(0.3),
                    msg_id=msg_id,
                )
            case "snooze" if items:
                until = timedelta(seconds=simulation.rng.randrange(1, 20))
                write = client.snooze(simulation.rng.choice(items), until, new_msg_id=msg_id)
            case "dismiss" if items:
                write = client.dismiss(simulation.rng.choice(items), msg_id=msg_id)
            case "category":
                write = client.dismiss_category(
                    category,
                    prefix=simulation.chance(0.5),
                    scheduled=simulation.chance(0.3),
                    end_time="0s" if simulation.chance(0.3) else None,
                    msg_id=msg_id,
                )
            case "key":
                write = client.dismiss_key(simulation.rng.choice(KEYS), msg_id=msg_id)
            case "hide" if items:
                return await client.hide(simulation.rng.choice(items))
            case "offline":
                return await self._go_offline()
            case "kill":
                return self._kill()
            case "clock":
                self._skew = simulation.device_skew()
                return simulation.record(self.name, "sets its clock")
            case _:
                return None
        try:
            self._record_write(await write, epoch)
        except Unavailable:
            simulation.record(self.name, "cannot write, because it was killed")
        except Erased:
            simulation.record(self.name, "cannot write, because its user was erased")
        except InvalidMessage:
            simulation.record(self.name, "cannot snooze what has gone, or expires before that")

    def _kill(self) -> None:
        if self._lifetime is not None:
            self._lifetime.reschedule(asyncio.get_running_loop().time())

    def _record_write(self, msg_id: MsgID, epoch: Time | None) -> None:
        self.accepted.append(AcceptedWrite(msg_id, epoch))
        self._simulation.record(self.name, f"writes {msg_id}")

    async def _go_offline(self) -> None:
        self._reachable = False
        self.break_connection("goes offline")
        await asyncio.sleep(self._simulation.rng.random() * 10)
        self._reachable = True

    # The final check

    def unsettled(self) -> str | None:
        """Why it cannot agree yet; None if it can."""
        client = self.client
        if client is None or not client.online:
            return "is not online"
        if client.unsent_count:
            return f"still has {client.unsent_count} messages to send"
        return None

    def mismatches(self) -> int:
        """How often a replica was wrong after a sync."""
        return sum(client.mismatches for client in self.clients)

    def rejected(self) -> set[MsgID]:
        assert self.client is not None
        return {rejected_write.message.msg_id for rejected_write in self.client.rejected()}

    def difference(self, sync: Sync) -> str | None:
        """How what it holds differs from what the store has; None if it does not."""
        assert self.client is not None
        assert isinstance(sync.content, Snapshot)
        held, stored = self.client.replica.facts, sync.content.facts()
        states = [facts.state(self.device_id, sync.as_of) for facts in (held, stored)]
        if held.hash(self.device_id, sync.as_of) != sync.hash or states[0] != states[1]:
            return f"holds {names(held)}, and the store {names(stored)}"
        if not self.client.replica.hash_matches(sync.as_of, sync.hash):
            return "has a sum of hashes that differs from that of its items"
        return None

    def break_connection(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.cut(reason)


NewDevice = Callable[["Simulation", UID, DeviceID], SimulatedDevice]


class History(NamedTuple):
    """What the store knows of a user in the end: the epoch, and the ctimes of all ids."""

    epoch: Time
    ids: Mapping[MsgID, Time]


class Simulation:
    """One run of nodes, devices and a store, fully determined by its seed."""

    def __init__(
        self, seed: int, sharded: bool = False, new_device: NewDevice = SimulatedDevice
    ) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.limits = STRICT if seed % STRICT_EVERY == 0 else NO_LIMITS
        self.users: Sequence[UID] = USERS
        self.trace: list[str] = []
        self.faults_over = False
        self.clocks_agree = self.rng.random() < 0.5
        self.exchange = Exchange()
        self.channels: Channels = UnsignedChannels()  # until a node knows those of the store
        self.tasks = asyncio.TaskGroup()
        self.store: SimulatedStore = (
            ShardedStore(self) if sharded else SharedStore(self._store_clock)
        )
        self.nodes = [SimulatedNode(self, f"node{n}") for n in range(self.rng.randrange(1, 4))]
        self.devices = [
            new_device(self, uid, f"d{n}") for uid in USERS for n in range(self.rng.randrange(1, 4))
        ]
        self.acknowledged: dict[tuple[UID, MsgID], Time] = {}
        self._sent: list[InBandMessage] = []
        self._commit_answered: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    # Random decisions

    def chance(self, probability: float) -> bool:
        return not self.faults_over and self.rng.random() < probability

    def latency(self) -> float:
        """A random delay in seconds: usually short, sometimes long."""
        if self.faults_over:
            return 0.001
        return self.rng.expovariate(1 / self.rng.choice((0.005, 0.05, 0.5)))

    def skew(self) -> int:
        """A random error of a node's clock, in microseconds."""
        return 0 if self.clocks_agree else self.rng.randrange(-2 * SECOND, 2 * SECOND)

    def device_skew(self) -> int:
        """A random error of a device's clock, in microseconds: none, or up to a day."""
        return self.rng.choice((0, self.rng.randrange(-86_400 * SECOND, 86_400 * SECOND)))

    def lifetime(self) -> tuple[timedelta | None, timedelta | None]:
        """When a new item begins and expires, after now; the first is before the second."""
        starts = timedelta(seconds=self.rng.randrange(1, 20)) if self.chance(0.3) else None
        lasts = timedelta(seconds=self.rng.randrange(1, 60)) if self.chance(0.3) else None
        return starts, None if lasts is None else lasts + (starts or timedelta())

    async def delay(self) -> None:
        await asyncio.sleep(self.latency())

    def choice(self, **weights: int) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def record(self, actor: str, event: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():10.3f} {actor:10} {event}")

    def commit_answered(self, name: str) -> None:
        """The store has answered a commit for this user, or of this shard."""
        self._commit_answered.pop(name, asyncio.Event()).set()

    async def wait_for_later_commit(self, name: str) -> None:
        """Wait until a later commit for this user or shard is answered, for 2 s at most: it can
        then be published everywhere before the answer to this one arrives."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._commit_answered[name].wait()
                self.record("store", f"answers a later commit for {name} first")
        await self.delay()

    def _store_clock(self) -> Time:
        # The node that stores a message stamps it, and any node may be that one.
        return self.rng.choice(self.nodes).clock()

    # Faults

    async def run(self) -> None:
        """Run with faults, end the faults, and wait until all agree. Raises Disagreement if they do
        not agree within two minutes."""
        async with self.store, self.tasks:
            device_tasks = [self.tasks.create_task(device.run()) for device in self.devices]
            for node in self.nodes:
                node.start()
            await self.run_rounds()
            node_tasks = [node.task for node in self.nodes if node.task is not None]
            for task in (*device_tasks, *node_tasks):
                task.cancel()

    async def run_rounds(self) -> None:
        await self.run_round()

    async def run_round(self) -> None:
        """Random events and faults for a while, then none until all agree."""
        self.faults_over = False
        for _ in range(self.rng.randrange(30, 90)):
            await asyncio.sleep(self.rng.random() / 2)
            self.tasks.create_task(self._random_event())
        await asyncio.sleep(15)
        self.faults_over = True
        self.record("simulation", "ends the faults")
        await self.settle()

    async def _random_event(self) -> None:
        match self.choice(
            backend=8,
            device=12,
            crash=1,
            partition=1,
            outage=1,
            foreign_publisher=2,
            clock=1,
            disconnect=2,
            replay=1,
            prune=2,
            erase=1,
            **{name: fault.weight for name, fault in self.store.faults.items()},
        ):
            case "backend":
                await self._backend()
            case "device":
                await self.rng.choice(self.devices).act()
            case "crash":
                await self.rng.choice(self.nodes).crash()
            case "partition":
                await self._partition(self.rng.choice(self.nodes))
            case "outage":
                await self._store_outage(self.rng.choice(self.nodes))
            case "foreign_publisher":
                await self._publish_foreign()
            case "clock":
                self.rng.choice(self.nodes).set_clock()
            case "replay":
                await self._replay()
            case "prune":
                await self._prune()
            case "erase":
                await self._erase(self.rng.choice(USERS))
            case "disconnect":
                self.rng.choice(self.devices).break_connection("the network fails")
            case fault:
                await self.store.faults[fault].run()

    async def _partition(self, node: SimulatedNode) -> None:
        """Cut one node off from the pub/sub for a while, without an error."""
        pubsub = node.pubsub
        if pubsub is not None:
            pubsub.start_partition()
            self.record(node.name, "is partitioned from the pub/sub")
            await asyncio.sleep(self.rng.random() * 10)
            is_reported = pubsub.end_partition()
            suffix = "reported" if is_reported else "not reported"
            self.record(node.name, f"is connected to the pub/sub again, {suffix}")

    async def _store_outage(self, node: SimulatedNode) -> None:
        """Cut one node off from the store for a while."""
        link = node.link
        link.down = True
        self.record(node.name, "is cut off from the store")
        await asyncio.sleep(self.rng.random() * 10)
        link.down = False

    async def _replay(self) -> None:
        """Another process replays a message behind the clock of its user into the store."""
        uid = self.rng.choice(USERS)
        known = [message.ctime for message in await self.store.log(uid)]
        if not known:
            return
        ctime = self.rng.choice(known) - 1
        message = self._message(uid)
        if message.stamped or ctime in known or message in self._sent:
            return
        self._sent.append(message)
        link = StoreLink(self, "importer", severity=0.1)
        async with self.store.serve(link, virtual_time.clock) as machine:
            with suppress(Unavailable):
                (outcome,) = await machine.consume_messages([message.stamp(ctime, 0)])
                if isinstance(outcome, Stored):
                    self.record("importer", f"replays {message.msg_id} at {ctime}")

    async def _prune(self) -> None:
        """Another process prunes all users. The ids stay: some messages are still sent again."""
        link = StoreLink(self, "pruner", severity=0.1)
        cutoff = Cutoff(virtual_time.clock() - self.rng.randrange(20) * SECOND, 0)
        async with self.store.serve(link, virtual_time.clock) as machine:
            with suppress(Unavailable):
                after: str | None = ""
                while after is not None:
                    step = await machine.prune(cutoff, after)
                    self.record("pruner", f"prunes {step.contents} messages of {step.users} users")
                    after = step.last

    async def _erase(self, uid: UID) -> None:
        """Erase a user as a backend does: retry, at any node, until it is acknowledged."""
        while True:
            service = self.rng.choice(self.nodes).service
            with suppress(Unavailable):
                if service is not None:
                    result = await service.erase(Caller("backend"), uid)
                    return self.record("backend", f"erases {uid} at {result.erasure.epoch}")
            await asyncio.sleep(self.rng.random())

    async def _publish_foreign(self) -> None:
        """Publish something on a user's channel that is not from a node, or not of now: also with a
        valid signature, as if the key were known."""
        uid, other = self.rng.sample(USERS, 2)
        log = await self.store.log(uid)
        message: InBandMessage | None = None
        match self.choice(garbage=1, other=1, future=1, again=1):
            case "other":
                message = create(other, "chat", msg_id=FORGED).stamp(self._store_clock(), 0)
            case "future":
                known = log[-1].ctime if log else 0
                ctime = self._store_clock() + 3600 * SECOND
                message = create(uid, "chat", msg_id=FORGED).stamp(ctime, known)
            case "again" if log:
                message = self.rng.choice(log)
        payload = (
            b"garbage"
            if message is None
            else encode_envelope("foreign publisher", _as_stored(message, log))
        )
        if self.choice(signed=3, unsigned=1) == "signed":
            payload = self.channels.sign(self.channels.of(uid), payload, self._store_clock())
        await MemoryPubSub(self.exchange).publish(self.channels.of(uid), payload)
        content = "garbage" if message is None else message.msg_id
        self.record("foreign", f"publishes {content}")

    async def _backend(self) -> None:
        await self.send(
            [self._message(self.rng.choice(USERS)) for _ in range(self.rng.choice((1, 1, 1, 3)))]
        )

    async def send(self, messages: list[InBandMessage]) -> None:
        """Send messages as a backend does: retry, at any node, until they are acknowledged."""
        self._sent += messages
        while messages:
            service = self.rng.choice(self.nodes).service
            try:
                if service is not None:
                    outcomes = await service.inject(Caller("backend"), messages)
                    results = [Result.of(outcome) for outcome in outcomes]
                    unacknowledged = [
                        message
                        for message, result in zip(messages, results, strict=True)
                        if result.should_retry
                    ]
                    for result in results:
                        if not result.should_retry:
                            self._acknowledge(result)
                    messages = unacknowledged
            except Unavailable:
                pass
            except asyncio.CancelledError:
                # Either the node that processed it crashed, or the simulation ends.
                if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                    raise
            await asyncio.sleep(self.rng.random())

    def _acknowledge(self, result: Result) -> None:
        assert result.uid is not None
        assert result.msg_id is not None
        assert result.ctime is not None
        known = self.acknowledged.get((result.uid, result.msg_id), 0)
        self.acknowledged[result.uid, result.msg_id] = max(known, result.ctime)
        self.record("backend", f"{result.status} {result.msg_id} at {result.ctime}")

    def _message(self, uid: UID) -> InBandMessage:
        msg_id, category = self.new_msg_id(), self.rng.choice(CATEGORIES)
        known = self.sent_to(uid)
        starts, expires = self.lifetime()
        scope = f"d{self.rng.randrange(3)}" if self.chance(0.3) else None
        match self.choice(create=5, put=3, dismiss=3, category=1, key=1, again=1):
            case "put":
                return put(
                    uid,
                    category,
                    self.rng.random(),
                    key=self.rng.choice(KEYS),
                    starts=starts,
                    expires=expires,
                    device_id=scope,
                    msg_id=msg_id,
                )
            case "key":
                return dismiss_key(uid, self.rng.choice(KEYS), device_id=scope, msg_id=msg_id)
            case "dismiss" if known:
                return dismiss(uid, self.rng.choice(known), self.new_msg_id(), msg_id=msg_id)
            case "category":
                end = timedelta(seconds=self.rng.randrange(-20, 20))
                return dismiss_category(
                    uid,
                    category,
                    prefix=self.chance(0.5),
                    scheduled=self.chance(0.5),
                    end_time=end,
                    device_id=scope,
                    msg_id=msg_id,
                )
            case "again" if known:
                return next(message for message in self._sent if message.msg_id == known[0])
            case _:
                return create(
                    uid,
                    category,
                    self.rng.random(),
                    starts=starts,
                    expires=expires,
                    device_id=scope,
                    msg_id=msg_id,
                )

    def sent_to(self, uid: UID) -> list[MsgID]:
        return [message.msg_id for message in self._sent if message.uid == uid]

    def new_msg_id(self) -> MsgID:
        return f"{self.rng.getrandbits(64):016x}"

    # The final check

    async def settle(self) -> None:
        """Wait until all agree. Raises Disagreement after three minutes: a device may wait for one
        of them, and then for another one, if it asked what is not simulated."""
        problem: str | None = "the replicas were not compared"
        for _ in range(180):
            await asyncio.sleep(1)
            problem = await self._disagreement()
            if problem is None:
                self.record("simulation", "agrees")
                return
        raise Disagreement(problem)

    async def _disagreement(self) -> str | None:
        """What is wrong; None if all agree."""
        histories = {uid: await self._history(uid) for uid in USERS}
        for (uid, msg_id), ctime in self.acknowledged.items():
            if ctime > histories[uid].epoch and histories[uid].ids.get(msg_id) != ctime:
                return f"{msg_id} was acknowledged at {ctime} and is not known with that ctime"
        for device in self.devices:
            problem = await self._difference(device, histories[device.uid])
            if problem is not None:
                return f"{device.name}: {problem}"
        return await self.store.problem()

    async def _difference(self, device: SimulatedDevice, history: History) -> str | None:
        problem = device.unsettled()
        if problem is not None:
            return problem
        # With expiring items, the hash by one clock may differ from the hash by another clock.
        if self.clocks_agree and device.mismatches():
            return "was wrong until a snapshot replaced it"
        rejected = device.rejected()
        for msg_id, epoch, *_ in device.accepted:
            stored_at = history.ids.get(msg_id)
            if epoch is not None and epoch < history.epoch and stored_at is not None:
                return f"wrote {msg_id} before the user was erased, and it was stored after that"
            if epoch == history.epoch and stored_at is None and msg_id not in rejected:
                return f"wrote {msg_id}, which is neither stored nor rejected"
        for tab in {write.tab for write in device.accepted}:
            written = sorted(
                (write for write in device.accepted if write.tab == tab),
                key=lambda write: write.call,
            )
            ctimes = [history.ids[msg_id] for msg_id, *_ in written if msg_id in history.ids]
            if ctimes != sorted(ctimes):
                return f"wrote messages {tab} in another order than they are stored in"
        return device.difference(await self.store.sync(device.uid, device.device_id))

    async def _history(self, uid: UID) -> History:
        log = await self.store.log(uid)
        epoch = (await self.store.erasure(uid)).epoch
        ctimes = {message.msg_id: message.ctime for message in log}
        if len(ctimes) != len(log):
            raise Disagreement(f"the log of {uid} contains a message twice")
        # A replay behind the user's clock moves the clock, and the next message comes after that.
        before = [0, *(message.ctime for message in log)]
        links = zip(before, log, strict=False)
        if not all(ctime <= message.prev < message.ctime for ctime, message in links):
            raise Disagreement(f"the log of {uid} is not a chain of prev and ctime")
        pruned = await self.store.pruned(uid)
        if pruned.keys() & ctimes.keys():
            raise Disagreement(f"the log of {uid} contains a message that was pruned")
        ids = {**ctimes, **pruned}
        if any(ctime <= epoch for ctime in ids.values()):
            raise Disagreement(f"{uid} was erased at {epoch}, and not everything has gone")
        return History(epoch, ids)


def names(facts: Facts) -> list[str]:
    items = sorted(facts.items.values(), key=Item.order)
    return [f"{item.msg_id}@{item.ctime}" for item in items]


def _is_timed(item: Item) -> bool:
    return item.starts_at is not None or item.expires_at is not None


def _begins_offline(event: Created | Dismissed, client: Client) -> bool:
    is_told = event.item.msg_id in client.replica.facts.items
    begins = isinstance(event, Created) and event.item.starts_at is not None
    return begins and is_told and not client.online


def _as_stored(message: InBandMessage, log: Sequence[InBandMessage]) -> Stored:
    """The message as the store says it is, which has this log."""
    facts = Facts().replay_all(log)
    replaced = facts.predecessor(message)
    dead = message.msg_id in facts.dismissed
    return Stored(message, dead, replaced=None if replaced is None else replaced.msg_id)


def simulate(
    seed: int, sharded: bool | None = None, new_device: NewDevice = SimulatedDevice
) -> Simulation:
    """Run one simulation. Raises Disagreement, with the seed and the end of the trace in its text,
    if the result is wrong. If `sharded` is None, the seed decides whether the store is sharded."""
    is_sharded = seed % SHARDED_EVERY == 0 if sharded is None else sharded
    simulation = Simulation(seed, is_sharded, new_device)
    carry_out(simulation)
    return simulation


def carry_out(simulation: Simulation) -> None:
    """Run a simulation. Raises Disagreement like `simulate`."""
    try:
        with _silent_logs():
            virtual_time.run(simulation.run())
    except Exception as error:
        end = "\n".join(simulation.trace[-60:])
        raise Disagreement(f"seed {simulation.seed}: {_leaf(error)!r}\n{end}") from error


@contextmanager
def _silent_logs() -> Iterator[None]:
    """Silence the logs: the errors of a simulation are intended, and its trace shows them."""
    logger = logging.getLogger("gregor")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
