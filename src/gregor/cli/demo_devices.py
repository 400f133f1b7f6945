"""Devices that disconnect and reconnect at random, write in between, and converge at the end.

Each device is a real Client. Either its network breaks, in the middle of receiving or sending,
while the app stays open and in use; or the app is closed, and later starts again from its store.
At the end, one device of each user snoozes an item for a few seconds. All devices of the user are
told, and lose their network; the item begins again on each of them all the same.

If somebody erases a user meanwhile, its devices begin a new life at once.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import NamedTuple

from gregor.cli.demo_servers import Servers
from gregor.client import (
    Client,
    Created,
    Disconnected,
    Event,
    MemoryStore,
    SQLiteStore,
    Synced,
    Transport,
    WriteRejected,
)
from gregor.client.events import Subscription
from gregor.client.websocket import WebSocketTransport, websocket
from gregor.core.instant import Time
from gregor.core.message import UID, MsgID
from gregor.core.state import Item, State
from gregor.errors import Erased, InvalidMessage, Unavailable
from gregor.protocol.answers import StateAnswer
from gregor.protocol.frames import SyncPage
from gregor.protocol.later_versions import decode_node_frame

MEAN_ONLINE_SECONDS = 4.0
MEAN_OFFLINE_SECONDS = 2.0
SNOOZE_SECONDS = 3.0
SNOOZE_SECONDS_PER_DEVICE = 0.005  # all devices have to be told before
REMINDER = "reminder"
ACTIONS = ("dismiss", "dismiss", "dismiss category", "create", "put", "snooze")
SETTLE_TIMEOUT_SECONDS = 30.0
MAX_CONCURRENT_QUERIES = 20


class ReceivedSnapshot(NamedTuple):
    """A device whose cursor was `known` received a snapshot of `items` items, up to `cursor`."""

    device: str
    uid: str
    known: Time
    cursor: Time
    items: int


class Written(NamedTuple):
    """A message that a device accepted when it knew this epoch of its user (None: not yet any)."""

    uid: UID
    msg_id: MsgID
    epoch: Time | None


class Difference(NamedTuple):
    """A device whose replica differs from the server's state at the end; `what` says how."""

    device: str
    uid: str
    what: str


@dataclass
class Score:
    """The results of all devices so far."""

    written: set[Written] = field(default_factory=set)
    rejected: int = 0
    unsent: int = 0
    dropped_off: int = 0
    began_offline: int = 0
    resynced: int = 0
    erased: int = 0
    mismatches: int = 0
    agreeing: int = 0
    received_snapshots: list[ReceivedSnapshot] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        return len(self.written) - self.rejected - self.unsent


class Demo:
    """What all devices share: the servers, the event that ends the demo, and the score."""

    def __init__(self, servers: Servers, folder: Path, devices: int) -> None:
        self.servers = servers
        self.folder = folder
        self.score = Score()
        self.over = asyncio.Event()
        self.flushed = asyncio.Barrier(devices)
        self.snooze = timedelta(seconds=SNOOZE_SECONDS + SNOOZE_SECONDS_PER_DEVICE * devices)
        self.query_limit = asyncio.Semaphore(MAX_CONCURRENT_QUERIES)

    async def sleep(self, seconds: float) -> None:
        """Sleep, but only until the demo is over."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            pass


class RecordingTransport:
    """A Transport that calls `on_snapshot` with the cursor and the number of items of each
    snapshot, before `receive` returns its last page."""

    def __init__(self, transport: Transport, on_snapshot: Callable[[Time, int], None]) -> None:
        self._transport = transport
        self._on_snapshot = on_snapshot
        self._items = 0
        self.send = transport.send
        self.close = transport.close

    async def receive(self) -> str:
        text = await self._transport.receive()
        match decode_node_frame(text):
            case SyncPage(mode="snapshot") as page:
                self._items += len(page.items)
                if not page.more:
                    self._on_snapshot(page.cursor, self._items)
                    self._items = 0
        return text


class FlakyNetwork:
    """The network between one device and the servers. It can be cut and restored."""

    def __init__(
        self, urls: Sequence[str], rng: Random, on_snapshot: Callable[[Time, int], None]
    ) -> None:
        self._servers = [websocket(url) for url in urls]
        self._rng = rng
        self._on_snapshot = on_snapshot
        self._is_up = asyncio.Event()
        self._is_up.set()
        self._current: Transport | None = None

    async def connect(self) -> Transport:
        """Wait until the network is up, and connect."""
        await self._is_up.wait()
        transport = await self._connect_any()
        if not self._is_up.is_set():
            await transport.close()
            raise Disconnected(1006, "the network is down")
        self._current = transport
        return RecordingTransport(transport, self._on_snapshot)

    async def _connect_any(self) -> Transport:
        """Connect to a random server, and fail over to the others, like a load balancer."""
        *first, last = self._rng.sample(self._servers, len(self._servers))
        for connect in first:
            with suppress(Disconnected, OSError):  # a server that is down refuses connections
                return await connect()
        return await last()

    def cut(self) -> None:
        self._is_up.clear()
        if isinstance(self._current, WebSocketTransport):
            self._current.abort()

    def restore(self) -> None:
        self._is_up.set()


class DemoDevice:
    """One device of one user, which disconnects and writes at random, with its own `rng`."""

    def __init__(
        self, number: int, uid: str, rng: Random, demo: Demo, *, snoozes: bool = False
    ) -> None:
        self.name = f"device-{number:03}"
        self.uid = uid
        self._snoozes = snoozes  # the reminder of its user, at the end
        self.client: Client | None = None
        self._rng = rng
        self._demo = demo
        self._network = FlakyNetwork(demo.servers.urls, rng, self._on_snapshot_received)
        self._syncs = 0
        # Each SQLite file needs a thread, so only every tenth device has one.
        self._file = demo.folder / f"{self.name}.db" if number % 10 == 0 else None
        self._memory = MemoryStore()

    async def run(self) -> None:
        """Disconnect and reconnect until the demo is over; then flush the outbox and compare."""
        await self._demo.sleep(self._rng.uniform(0, MEAN_OFFLINE_SECONDS))
        while True:
            async with self._open_client() as client:
                await self._use_app(client)
                if self._demo.over.is_set():
                    await self._settle(client)
                    return
                self._count_drop_off()
            await self._demo.sleep(self._rng.expovariate(1 / MEAN_OFFLINE_SECONDS))

    @asynccontextmanager
    async def _open_client(self) -> AsyncIterator[Client]:
        """Open the app, with the state in its store."""
        async with asyncio.TaskGroup() as tasks:
            client = Client(
                self._demo.servers.urls[0],
                self.uid,
                device_id=self.name,
                uid=self.uid,
                store=self._memory if self._file is None else SQLiteStore(self._file),
                connect=self._network.connect,
                jitter=self._rng.random,
            )
            self.client = client
            async with client:
                tasks.create_task(self._read_events(client, client.events()))
                yield client
                self._demo.score.mismatches += client.mismatches
            self.client = None

    async def _read_events(self, client: Client, events: Subscription) -> None:
        async for event in events:
            self._count_event(client, event)

    def _count_event(self, client: Client, event: Event) -> None:
        match event:
            case Created(item) if item.starts_at is not None and not client.online:
                # It was told of this item before: what is written here is not a fact yet.
                self._demo.score.began_offline += item.msg_id in client.replica.facts.items
            case Synced():
                self._syncs += 1
                self._demo.score.resynced += self._syncs > 1
            case WriteRejected():
                self._demo.score.rejected += 1
            case Erased():
                self._demo.score.erased += 1
                client.reconnect()

    def _on_snapshot_received(self, cursor: Time, items: int) -> None:
        known = 0 if self.client is None else self.client.replica.cursor
        if known:
            self._demo.score.received_snapshots.append(
                ReceivedSnapshot(self.name, self.uid, known, cursor, items)
            )

    async def _use_app(self, client: Client) -> None:
        """Use the app, online and offline, until it is closed or the demo is over."""
        while True:
            await self._demo.sleep(self._rng.expovariate(1 / MEAN_ONLINE_SECONDS))
            if self._demo.over.is_set():
                return
            if self._rng.random() < 0.3:
                await self._write(client)
                return
            self._count_drop_off()
            self._network.cut()
            for _ in range(self._rng.choice((0, 0, 1, 2))):
                await self._write(client)
            await self._demo.sleep(self._rng.expovariate(1 / MEAN_OFFLINE_SECONDS))
            self._network.restore()

    def _count_drop_off(self) -> None:
        self._demo.score.dropped_off += not self._demo.over.is_set()

    async def _write(self, client: Client) -> None:
        # What was to be snoozed expires before that, or has gone; or the user has.
        with suppress(InvalidMessage, Erased):
            await self._record(client, self._send_random_message(client))

    async def _record(self, client: Client, write: Awaitable[MsgID]) -> MsgID:
        """Record what is written, when it is durable, and return its id."""
        epoch = client.replica.epoch  # before: an erase that comes meanwhile prevents the write
        msg_id = await write
        self._demo.score.written.add(Written(self.uid, msg_id, epoch))
        return msg_id

    async def _send_random_message(self, client: Client) -> MsgID:
        """Dismiss, create, put or snooze items, as a person would who uses the app."""
        items = client.state().items
        match self._rng.choice(ACTIONS):
            case "dismiss" if items:
                chosen = self._rng.sample(items, min(len(items), self._rng.randint(1, 3)))
                return await client.dismiss(*(item.msg_id for item in chosen))
            case "dismiss category" if items:
                return await client.dismiss_category(self._rng.choice(items).category)
            case "snooze" if items:
                until = timedelta(seconds=self._rng.uniform(0.5, SNOOZE_SECONDS))
                return await client.snooze(self._rng.choice(items).msg_id, until)
            case "put":
                return await client.put("settings.theme", self._rng.choice(("dark", "light")))
            case _:
                scoped = self._rng.random() < 0.2
                return await client.create("notes", f"written on {self.name}", this_device=scoped)

    # At the end

    async def _settle(self, client: Client) -> None:
        """Flush the outbox, compare the replica with the server, and record the result."""
        flushed = await self._flush(client)
        # What one device flushes changes the state of the user's other devices.
        await self._demo.flushed.wait()
        await self._be_reminded(client)
        what = await self._compare(client) if flushed else "its outbox was not flushed in time"
        if what is None:
            self._demo.score.agreeing += 1
        else:
            self._demo.score.differences.append(Difference(self.name, self.uid, what))
        self._demo.score.unsent += client.unsent_count

    async def _be_reminded(self, client: Client) -> None:
        """Lose the network as soon as this device knows when the reminder begins, until then."""
        with suppress(TimeoutError, Erased):
            if self._snoozes:
                put = client.put(REMINDER, "this begins without a network")
                msg_id = await self._record(client, put)
                await self._record(client, client.snooze(msg_id, self._demo.snooze))
            async with asyncio.timeout(SETTLE_TIMEOUT_SECONDS):
                await _until(lambda: _knows_start(client))
                self._network.cut()
                await _until(lambda: client.get(REMINDER) is not None)
        self._network.restore()
        client.reconnect()

    async def _flush(self, client: Client) -> bool:
        """Send the outbox and sync. Returns False after SETTLE_TIMEOUT_SECONDS."""
        try:
            async with asyncio.timeout(SETTLE_TIMEOUT_SECONDS):
                await client.flush()
                await client.wait_synced()
        except TimeoutError:
            return False
        except Erased:  # it has nothing left to send
            await _until(lambda: not isinstance(client.failure, Erased))
            return await self._flush(client)
        return True

    async def _compare(self, client: Client) -> str | None:
        """The difference between replica and server. Retries until there is none, or until
        SETTLE_TIMEOUT_SECONDS: messages may still be in flight to the device."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_TIMEOUT_SECONDS
        while True:
            what = await self._difference(client)
            if what is None or loop.time() > deadline:
                return what
            await asyncio.sleep(0.1)

    async def _difference(self, client: Client) -> str | None:
        try:
            async with self._demo.query_limit:
                answer = await self._demo.servers.state(self.uid, self.name)
        except Unavailable as error:
            return f"cannot be compared: {error.message}"
        replica = client.replica
        hash_ = replica.facts.hash(self.name, answer.as_of)
        return difference(replica.state(answer.as_of), hash_, answer)


def _knows_start(client: Client) -> bool:
    """Whether the device was told of the snoozed reminder."""
    reminders = client.replica.facts.items.of_key(REMINDER)
    return any(item.starts_at is not None for item in reminders)


async def _until(condition: Callable[[], bool]) -> None:
    while True:
        if condition():
            return
        await asyncio.sleep(0.05)


def difference(replica: State, hash_: str, server: StateAnswer) -> str | None:
    """The difference between a replica, which has this hash, and the server, in items or hash; None
    if they agree."""
    local = {item.msg_id: item for item in replica.items}
    remote = {item.msg_id: item for item in server.items}
    parts = [
        _describe("lacks", [remote[id_] for id_ in remote if id_ not in local]),
        _describe("still shows", [local[id_] for id_ in local if id_ not in remote]),
        _describe(
            "differs in", [local[id_] for id_ in local if local[id_] != remote.get(id_, local[id_])]
        ),
    ]
    if not any(parts) and replica.items != server.items:
        parts.append("has the items in a different order")
    if not any(parts) and hash_ != server.hash:
        parts.append(f"has the hash {hash_}, the server {server.hash}")
    return "; ".join(part for part in parts if part) or None


def _describe(verb: str, items: list[Item]) -> str:
    if not items:
        return ""
    names = ", ".join(f"{item.msg_id} in {item.category}" for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{verb} {names}{more}"
