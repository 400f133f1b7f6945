"""A seeded world of nodes, devices and a store, on a virtual clock.

Real Nodes, real server connections and real Clients run on an event loop whose time is a number.
Everything between them misbehaves by the seed: connections break; frames are delayed, repeated
and overtake one another; the store answers late, in the wrong order, and not at all, some nodes
for a while, or stores and then fails to say so; the pub/sub drops, repeats and reorders, dies
without a word, and carries what strangers put there; nodes crash between store and
acknowledgement; devices are killed and come back with what their store had saved; clocks differ
and jump back. In one world of twenty the store is real shards, which go down one by one, while
movers that are killed at any moment move the users' buckets between them, and others remove what is
left.

Then the faults end, and all must agree: every replica with the store, hash and items; everything
acknowledged is stored once, on one shard; everything that a device accepted was stored, or rejected
in words; nothing that was dismissed is shown again; and where clocks agree, no hash had to find a
replica that was wrong.

    python -m gregor.testing.simulation --seeds 2000
    python -m gregor.testing.simulation --seed 17 --trace
    python -m gregor.testing.simulation --seeds 2000 --sharded
"""

import argparse
import asyncio
import gc
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any, cast

import structlog

from gregor.client import Client, Created, Disconnected, Dismissed, MemoryStore
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher, channel_of, seal
from gregor.core.instant import SECOND, Time
from gregor.core.message import (
    UID,
    DeviceID,
    InBandMessage,
    MsgID,
    create,
    dismiss,
    dismiss_category,
    replace,
)
from gregor.core.state import Snapshot, State
from gregor.errors import Unavailable
from gregor.node import Node
from gregor.protocol.frames import Result
from gregor.pubsub.interface import Event, Interrupted
from gregor.pubsub.memory import Exchange, MemoryPubSub
from gregor.server.auth import OpenAuthenticator
from gregor.server.delivery import Delivery
from gregor.server.metrics import Metrics
from gregor.server.readiness import Readiness
from gregor.server.service import Service
from gregor.server.websocket import Connection
from gregor.testing import virtual_time
from gregor.testing.simulated_stores import Line, ShardedStore, SharedStore, Store

USERS = ("ann", "bob")
CATEGORIES = ("mail", "mail.work", "chat", "theme")
FORGED = "forged"
SHARDED_EVERY = 20  # worlds: these take some twenty times as long as others


class Disagreement(AssertionError):
    """The world did not come out as it must. The seed replays it."""


class LossyPubSub(MemoryPubSub):
    """A pub/sub that loses, repeats, delays and reorders, and takes its time to subscribe. Now and
    then it dies silently: nothing comes in or goes out, and nobody is told. Afterwards it says so,
    as one that misses its heartbeat does, or goes on as if nothing had been."""

    def __init__(self, exchange: Exchange, world: "World") -> None:
        super().__init__(exchange)
        self._world = world
        self._dead = False

    async def publish(self, channel: str, payload: bytes) -> None:
        if not self._dead:
            await super().publish(channel, payload)

    async def subscribe(self, channel: str) -> None:
        await self._world.delay()
        await super().subscribe(channel)
        await self._world.delay()

    async def unsubscribe(self, channel: str) -> None:
        await self._world.delay()
        await super().unsubscribe(channel)
        await self._world.delay()

    def take(self, event: Event) -> None:
        if self._world.happens(0.2):
            return
        for _ in range(2 if self._world.happens(0.1) else 1):
            asyncio.get_running_loop().call_later(self._world.lag(), self._arrive, event)

    def _arrive(self, event: Event) -> None:
        if not self._dead:
            super().take(event)

    def die(self) -> None:
        self._dead = True

    def revive(self) -> bool:
        """Whether it says that it was interrupted."""
        self._dead = False
        says_so = self._world.happens(0.5)
        if says_so:
            super().take(Interrupted())
        return says_so

    def close(self) -> None:
        for subscribers in self._exchange.channels.values():
            subscribers.pop(self, None)


class Link:
    """One connection: a Transport for the device, and an ASGI WebSocket for the node. Frames are
    late; unless the link is an orderly one, they are repeated and overtake one another as well."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self._name = name
        self._orderly = world.happens(0.7)
        self._to_node: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._to_device: asyncio.Queue[str | Disconnected] = asyncio.Queue()
        self._last = {True: 0.0, False: 0.0}  # when the latest frame arrives, in each direction
        self._end: Disconnected | None = None

    # The device's end

    async def send(self, text: str) -> None:
        if self._end is not None:
            raise self._end
        event = {"type": "websocket.receive", "text": text}
        self._carry(True, lambda: self._to_node.put_nowait(event))

    async def receive(self) -> str:
        frame = await self._to_device.get()
        if isinstance(frame, Disconnected):
            raise frame
        return frame

    async def close(self) -> None:
        self.break_("closed by the device")

    # The node's end

    async def asgi_receive(self) -> dict[str, Any]:
        return await self._to_node.get()

    async def asgi_send(self, event: Any) -> None:
        if self._end is not None:
            raise OSError("the device has gone")
        if event["type"] == "websocket.close":
            self.break_(event["reason"], event["code"])
        else:
            self._carry(False, lambda: self._to_device.put_nowait(event["text"]))
        await asyncio.sleep(0)

    # Between them

    def _carry(self, to_node: bool, arrive: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        if self._world.happens(0.01):
            self.break_("the line breaks")
            return
        for _ in range(2 if not self._orderly and self._world.happens(0.1) else 1):
            at = loop.time() + self._world.lag()
            if self._orderly or self._world.calm:
                at = self._last[to_node] = max(at, self._last[to_node] + 0.000_001)
            loop.call_at(at, self._arrive, arrive)

    def _arrive(self, arrive: Callable[[], None]) -> None:
        if self._end is None:
            arrive()

    def break_(self, reason: str, code: int = 1006) -> None:
        if self._end is None:
            self._end = Disconnected(code, reason)
            self._world.note(self._name, reason)
            self._to_device.put_nowait(self._end)
            self._to_node.put_nowait({"type": "websocket.disconnect"})


class SimulatedNode:
    """One node, which crashes and starts again; its clock is its own."""

    def __init__(self, world: "World", name: str) -> None:
        self.name = name
        self._world = world
        self._skew = world.skew()
        self._starts = 0
        self.line = Line(world, name)
        self.service: Service | None = None
        self.pubsub: LossyPubSub | None = None
        self._links: dict[Link, None] = {}
        self.life: asyncio.Task[None] | None = None

    def clock(self) -> Time:
        return virtual_time.clock() + self._skew

    def jump(self) -> None:
        """Somebody sets the clock, backwards too."""
        self._skew = self._world.skew()

    def start(self) -> None:
        self._starts += 1
        self.life = self._world.tasks.create_task(self._live(f"{self.name}#{self._starts}"))

    async def _live(self, name: str) -> None:
        world = self._world
        self.pubsub = pubsub = LossyPubSub(world.exchange, world)
        deliveries: dict[Delivery, None] = {}
        metrics = Metrics(deliveries)
        self.line = Line(world, self.name)
        try:
            async with (
                world.store.serve(self.line, self.clock) as state_machine,
                Node(
                    state_machine,
                    [Publisher(pubsub, name), Broadcaster()],
                    clock=self.clock,
                    pubsub=pubsub,
                    name=name,
                    linger_seconds=world.rng.uniform(0.5, 5),
                    observer=metrics,
                    jitter=world.rng.random,
                ) as node,
            ):
                readiness = Readiness(node, pubsub)
                self.service = Service(node, OpenAuthenticator(), metrics, readiness, deliveries)
                world.note(name, "starts")
                await asyncio.get_running_loop().create_future()
        finally:
            self.service = None
            pubsub.close()
            for link in tuple(self._links):
                link.break_("the node has crashed")

    async def crash(self) -> None:
        """Stop dead, in the middle of whatever was going on; then start again."""
        if self.life is None or self.service is None:
            return
        self._world.note(self.name, "crashes")
        self.service = None
        self.line.cut = True  # or it would store, on its way out, what had been waiting
        for link in tuple(self._links):
            link.break_("the node has crashed")
        self.life.cancel()
        await asyncio.wait([self.life])
        await asyncio.sleep(self._world.rng.random() * 3)
        self.start()

    def accept(self, link: Link) -> None:
        self._world.tasks.create_task(self._serve(link))

    async def _serve(self, link: Link) -> None:
        service = self.service
        if service is None:
            link.break_("nobody is there")
            return
        self._links[link] = None
        try:
            connection = Connection(service, link.asgi_receive, link.asgi_send)
            with service.serving(connection):
                await connection.run()
        finally:
            del self._links[link]
            link.break_("the node hangs up")


class SimulatedDevice:
    """One device with its person: goes offline, is killed, and comes back with its store."""

    def __init__(self, world: "World", uid: UID, device_id: DeviceID) -> None:
        self.uid = uid
        self.device_id = device_id
        self.name = f"{uid}/{device_id}"
        self.written: list[MsgID] = []
        self.client: Client | None = None
        self.lives: list[Client] = []  # all of its clients, one after the other
        self._world = world
        self._store = MemoryStore()
        self._reachable = True
        self._link: Link | None = None
        self._life: asyncio.Timeout | None = None

    async def connect(self) -> Link:
        await self._world.delay()
        node = self._world.rng.choice(self._world.nodes)
        if not self._reachable or node.service is None:
            raise Disconnected(0, "no way to the node")
        self._link = Link(self._world, self.name)
        node.accept(self._link)
        return self._link

    async def live(self) -> None:
        """One life after another, until the world ends."""
        while True:
            client = Client(
                "ws://simulated",
                self.uid,
                device_id=self.device_id,
                store=self._store,
                connect=self.connect,
                clock=virtual_time.clock,
                jitter=self._world.rng.random,
            )
            try:
                async with asyncio.timeout(None) as self._life, client:
                    self.client = client
                    self.lives.append(client)
                    self._world.note(self.name, "starts")
                    await self._watch(client)
            except TimeoutError:
                self._world.note(self.name, "was killed")

    async def _watch(self, client: Client) -> None:
        """What was dismissed is not shown again."""
        shown: set[MsgID] = set()
        async with client.events() as events:
            async for event in events:
                if isinstance(event, Created | Dismissed):
                    what = "shows" if isinstance(event, Created) else f"no more ({event.why})"
                    self._world.note(self.name, f"{what} {event.item.msg_id}")
                if isinstance(event, Created):
                    if event.item.msg_id == FORGED:
                        raise Disagreement(f"{self.name} showed what was never stored")
                    if event.item.msg_id in shown:
                        raise Disagreement(f"{self.name} showed {event.item.msg_id} twice")
                    shown.add(event.item.msg_id)

    async def act(self) -> None:
        """Do one thing that a person or an accident does to a device."""
        world, client = self._world, self.client
        if client is None:
            return None
        items = [item.msg_id for item in client.state().items]
        category = world.rng.choice(CATEGORIES)
        msg_id = world.new_msg_id()
        match world.choice(create=4, replace=2, dismiss=4, category=1, hide=1, offline=2, kill=1):
            case "create":
                dtime = timedelta(seconds=world.rng.randrange(60)) if world.happens(0.3) else None
                mine = world.happens(0.3)
                writing = client.create(
                    category, None, dtime=dtime, this_device=mine, msg_id=msg_id
                )
            case "replace":
                writing = client.replace(category, world.rng.random(), msg_id=msg_id)
            case "dismiss" if items:
                writing = client.dismiss(world.rng.choice(items), msg_id=msg_id)
            case "category":
                below = world.happens(0.5)
                writing = client.dismiss_category(category, prefix=below, msg_id=msg_id)
            case "hide" if items:
                return await client.hide(world.rng.choice(items))
            case "offline":
                return await self._go_offline()
            case "kill":
                return self._kill()
            case _:
                return None
        try:
            self._wrote(await writing)
        except Unavailable:
            world.note(self.name, "could not write, being killed")

    def _kill(self) -> None:
        if self._life is not None:
            self._life.reschedule(asyncio.get_running_loop().time())

    def _wrote(self, msg_id: MsgID) -> None:
        self.written.append(msg_id)
        self._world.note(self.name, f"writes {msg_id}")

    async def _go_offline(self) -> None:
        self._reachable = False
        self.lose_connection("goes offline")
        await asyncio.sleep(self._world.rng.random() * 10)
        self._reachable = True

    def lose_connection(self, why: str) -> None:
        if self._link is not None:
            self._link.break_(why)


class World:
    """All of it, by one seed."""

    def __init__(self, seed: int, sharded: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.users: Sequence[UID] = USERS
        self.trace: list[str] = []
        self.calm = False
        self.clocks_agree = self.rng.random() < 0.5
        self.exchange = Exchange()
        self.tasks = asyncio.TaskGroup()
        self.store: Store = ShardedStore(self) if sharded else SharedStore(self._store_clock)
        self.nodes = [SimulatedNode(self, f"node{n}") for n in range(self.rng.randrange(1, 4))]
        self.devices = [
            SimulatedDevice(self, uid, f"d{n}")
            for uid in USERS
            for n in range(self.rng.randrange(1, 4))
        ]
        self.acknowledged: dict[tuple[UID, MsgID], Time] = {}
        self._sent: list[InBandMessage] = []
        self._answered: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)

    # What the seed decides

    def happens(self, probability: float) -> bool:
        return not self.calm and self.rng.random() < probability

    def lag(self) -> float:
        """Seconds on the way: mostly short, now and then long."""
        return 0.001 if self.calm else self.rng.expovariate(1 / self.rng.choice((0.005, 0.05, 0.5)))

    def skew(self) -> int:
        """How far a node's clock is off, in microseconds."""
        return 0 if self.clocks_agree else self.rng.randrange(-2 * SECOND, 2 * SECOND)

    async def delay(self) -> None:
        await asyncio.sleep(self.lag())

    def choice(self, **weights: int) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def note(self, who: str, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():10.3f} {who:10} {what}")

    def answered(self, whom: str) -> None:
        """The store has answered a commit for this user, or of this shard."""
        self._answered.pop(whom, asyncio.Event()).set()

    async def overtaken(self, whom: str) -> None:
        """Wait, a while at most, until another commit there has its answer, so that it can be told
        everywhere before this one's is known."""
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await self._answered[whom].wait()
                self.note("store", f"lets a later commit for {whom} overtake")
        await self.delay()

    def _store_clock(self) -> Time:
        # The node that stores stamps; whose clock that is, chance decides.
        return self.rng.choice(self.nodes).clock()

    # What happens

    async def run(self) -> None:
        """Live through the faults, end them, and see that all agree."""
        async with self.store, self.tasks:
            lives = [self.tasks.create_task(device.live()) for device in self.devices]
            for node in self.nodes:
                node.start()
            for _ in range(self.rng.randrange(30, 90)):
                await asyncio.sleep(self.rng.random() / 2)
                self.tasks.create_task(self._something())
            await asyncio.sleep(15)
            self.calm = True
            self.note("world", "is calm")
            await self._settle()
            for task in (*lives, *(node.life for node in self.nodes if node.life is not None)):
                task.cancel()

    async def _something(self) -> None:
        match self.choice(
            backend=8,
            device=12,
            crash=1,
            silence=1,
            outage=1,
            stranger=2,
            clock=1,
            break_=2,
            **{name: accident.weight for name, accident in self.store.accidents.items()},
        ):
            case "backend":
                await self._backend()
            case "device":
                await self.rng.choice(self.devices).act()
            case "crash":
                await self.rng.choice(self.nodes).crash()
            case "silence":
                await self._silence(self.rng.choice(self.nodes))
            case "outage":
                await self._cut_off(self.rng.choice(self.nodes))
            case "stranger":
                await self._stranger()
            case "clock":
                self.rng.choice(self.nodes).jump()
            case "break_":
                self.rng.choice(self.devices).lose_connection("the network fails")
            case accident:
                await self.store.accidents[accident].happen()

    async def _silence(self, node: SimulatedNode) -> None:
        """The pub/sub dies for one node, and nobody is told."""
        pubsub = node.pubsub
        if pubsub is not None:
            pubsub.die()
            self.note(node.name, "hears nothing any more")
            await asyncio.sleep(self.rng.random() * 10)
            says_so = pubsub.revive()
            self.note(node.name, "hears again" + (", and knows" if says_so else ", unknowing"))

    async def _cut_off(self, node: SimulatedNode) -> None:
        """The store cannot be had, by one node only."""
        line = node.line
        line.down = True
        self.note(node.name, "is cut off from the store")
        await asyncio.sleep(self.rng.random() * 10)
        line.down = False

    async def _stranger(self) -> None:
        """Somebody else publishes on a user's channel."""
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
        payload = b"garbage" if message is None else seal("a stranger", message)
        await MemoryPubSub(self.exchange).publish(channel_of(uid), payload)
        self.note("stranger", f"publishes {'garbage' if message is None else message.msg_id}")

    async def _backend(self) -> None:
        """A backend sends messages again and again until they are acknowledged, by any node."""
        messages = [
            self._message(self.rng.choice(USERS)) for _ in range(self.rng.choice((1, 1, 1, 3)))
        ]
        self._sent += messages
        while messages:
            service = self.rng.choice(self.nodes).service
            try:
                if service is not None:
                    results = await service.inject(messages)
                    refused = [m for m, r in zip(messages, results, strict=True) if r.to_repeat]
                    for result in results:
                        if not result.to_repeat:
                            self._acknowledge(result)
                    messages = refused
            except Unavailable:
                pass
            except asyncio.CancelledError:
                # The node that had it in its hands has crashed, or else the world ends.
                if cast("asyncio.Task[None]", asyncio.current_task()).cancelling():
                    raise
            await asyncio.sleep(self.rng.random())

    def _acknowledge(self, result: Result) -> None:
        assert result.uid is not None
        assert result.msg_id is not None
        assert result.ctime is not None
        self.acknowledged[result.uid, result.msg_id] = result.ctime
        self.note("backend", f"{result.status} {result.msg_id} at {result.ctime}")

    def _message(self, uid: UID) -> InBandMessage:
        msg_id, category = self.new_msg_id(), self.rng.choice(CATEGORIES)
        known = [message.msg_id for message in self._sent if message.uid == uid]
        match self.choice(create=5, replace=2, dismiss=3, category=1, again=1):
            case "replace":
                return replace(uid, category, self.rng.random(), msg_id=msg_id)
            case "dismiss" if known:
                return dismiss(uid, self.rng.choice(known), self.new_msg_id(), msg_id=msg_id)
            case "category":
                end = timedelta(seconds=self.rng.randrange(-20, 20))
                return dismiss_category(
                    uid, category, prefix=self.happens(0.5), end_time=end, msg_id=msg_id
                )
            case "again" if known:
                return next(message for message in self._sent if message.msg_id == known[0])
            case _:
                dtime = timedelta(seconds=self.rng.randrange(60)) if self.happens(0.3) else None
                scope = f"d{self.rng.randrange(3)}" if self.happens(0.3) else None
                return create(
                    uid, category, self.rng.random(), dtime=dtime, device_id=scope, msg_id=msg_id
                )

    def new_msg_id(self) -> MsgID:
        return f"{self.rng.getrandbits(64):016x}"

    # What must hold

    async def _settle(self) -> None:
        """Nothing goes wrong any more; within two minutes all must agree."""
        trouble: str | None = "nothing was compared"
        for _ in range(120):
            await asyncio.sleep(1)
            trouble = await self._disagreement()
            if trouble is None:
                self.note("world", "agrees")
                return
        raise Disagreement(trouble)

    async def _disagreement(self) -> str | None:
        """What is not as it must be; None if all is."""
        logs = {uid: await self._log(uid) for uid in USERS}
        for uid, msg_id in self.acknowledged:
            ctime = self.acknowledged[uid, msg_id]
            if logs[uid].get(msg_id) != ctime:
                return f"{msg_id} was acknowledged at {ctime} and is not in the log there"
        for device in self.devices:
            trouble = await self._differs(device, logs[device.uid])
            if trouble is not None:
                return f"{device.name}: {trouble}"
        return await self.store.defect()

    async def _differs(self, device: SimulatedDevice, log: Mapping[MsgID, Time]) -> str | None:
        client = device.client
        if client is None or not client.online:
            return "is not online"
        if client.outbox:
            return f"still has {client.outbox} messages to send"
        # Of what expires, a hash by one clock does not hold for a sync by another.
        if self.clocks_agree and any(life.mismatches for life in device.lives):
            return "was wrong, and only a snapshot has mended it"
        refused = {refused.message.msg_id for refused in client.rejected()}
        for msg_id in device.written:
            if msg_id not in refused and msg_id not in log:
                return f"wrote {msg_id}, which is neither stored nor rejected"
        sync = await self.store.sync(device.uid, device.device_id)
        assert isinstance(sync.content, Snapshot)
        ours = client.replica.facts.state(device.device_id, sync.as_of)
        if ours.hash() != sync.hash or ours.items != sync.content.items:
            theirs = State(sync.content.items, sync.as_of)
            return f"holds {_names(ours)}, and the store {_names(theirs)}"
        return None

    async def _log(self, uid: UID) -> dict[MsgID, Time]:
        log = await self.store.log(uid)
        ctimes = {message.msg_id: message.ctime for message in log}
        if len(ctimes) != len(log):
            raise Disagreement(f"the log of {uid} holds a message twice")
        if [message.prev for message in log] != [0, *(message.ctime for message in log)][
            : len(log)
        ]:
            raise Disagreement(f"the log of {uid} is not one chain")
        return ctimes


def _names(state: State) -> list[str]:
    return [f"{item.msg_id}@{item.ctime}" for item in state.items]


def live(seed: int, sharded: bool | None = None) -> World:
    """Live through one world. Raises Disagreement, with the seed in it, if it comes out wrong.
    Unless it is said, the seed decides whether there are shards."""
    world = World(seed, seed % SHARDED_EVERY == 0 if sharded is None else sharded)
    try:
        # What goes wrong in here is wanted, and stands in the trace.
        with structlog.testing.capture_logs():
            virtual_time.run(world.run())
    except Exception as error:
        last = "\n".join(world.trace[-60:])
        raise Disagreement(f"seed {seed}: {_leaf(error)!r}\n{last}") from error
    return world


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def main() -> None:
    """Live through many worlds, on all processors, or through one again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2000, help="how many worlds, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="this one world only")
    parser.add_argument("--sharded", action="store_true", help="shards in every world")
    parser.add_argument("--trace", action="store_true", help="print what happened in it")
    asked = parser.parse_args()
    sharded = True if asked.sharded else None
    if asked.seed is not None:
        world = live(asked.seed, sharded)
        print("\n".join(world.trace) if asked.trace else f"seed {asked.seed}: all agree")
        return
    failed = 0
    seeds = range(asked.first, asked.first + asked.seeds)
    # As a server has it: a third of the time of worlds with shards would go into collecting.
    seldom = partial(gc.set_threshold, 50_000, 20, 100)
    with ProcessPoolExecutor(initializer=seldom) as processes:
        for seed, trouble in zip(
            seeds,
            processes.map(partial(trouble_with, sharded=sharded), seeds, chunksize=20),
            strict=True,
        ):
            if trouble is not None:
                failed += 1
                again = f"--seed {seed} --trace" + (" --sharded" if sharded else "")
                print(f"seed {seed} failed; again with {again}\n{trouble}", flush=True)
    print(f"{asked.seeds} worlds, {failed} failed")
    sys.exit(1 if failed else 0)


def trouble_with(seed: int, sharded: bool | None) -> str | None:
    """What is wrong with the world of this seed; None if nothing is."""
    try:
        live(seed, sharded)
    except Disagreement as error:
        return str(error)
    return None


if __name__ == "__main__":
    main()
