"""Devices that drop off at random and come back, write meanwhile, and agree in the end.

Each is a real Client. Either its network breaks, in the middle of whatever it was receiving or
sending, while the app stays open and is used; or the app is closed, and started again later from
what its store has kept.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import NamedTuple

from gregor.cli.servers import Servers
from gregor.client import (
    Client,
    Disconnected,
    Event,
    MemoryStore,
    Rejected,
    SQLiteStore,
    Synced,
    Transport,
)
from gregor.client.connection import WebSocket, websocket
from gregor.client.events import Subscription
from gregor.core.instant import Time
from gregor.core.message import MsgID
from gregor.core.state import Item, State
from gregor.errors import Unavailable
from gregor.protocol.answers import StateAnswer
from gregor.protocol.frames import SyncPage, decode_node_frame

ONLINE_SECONDS = 4.0  # on average
OFFLINE_SECONDS = 2.0
PATIENCE_SECONDS = 30.0
ASKING_AT_ONCE = 20


class Retold(NamedTuple):
    """A device that knew all up to `known` was sent a snapshot of so many items, up to `cursor`."""

    device: str
    uid: str
    known: Time
    cursor: Time
    items: int


class Difference(NamedTuple):
    """A device that does not agree with the server in the end, and in what."""

    device: str
    uid: str
    what: str


@dataclass
class Score:
    """What has happened to the devices so far."""

    written: set[MsgID] = field(default_factory=set)
    rejected: int = 0
    unsent: int = 0
    dropped_off: int = 0
    resynced: int = 0
    mismatches: int = 0
    agreeing: int = 0
    retold: list[Retold] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)

    @property
    def acknowledged(self) -> int:
        return len(self.written) - self.rejected - self.unsent


class Stage:
    """What all devices share: their servers, the moment at which it is over, and the score."""

    def __init__(self, servers: Servers, folder: Path, devices: int) -> None:
        self.servers = servers
        self.folder = folder
        self.score = Score()
        self.over = asyncio.Event()
        self.delivered = asyncio.Barrier(devices)
        self.asking = asyncio.Semaphore(ASKING_AT_ONCE)

    async def pause(self, seconds: float) -> None:
        """Wait, but no longer than until it is over."""
        try:
            async with asyncio.timeout(seconds):
                await self.over.wait()
        except TimeoutError:
            pass


class Overheard:
    """A Transport of which somebody is told the cursor, and the number of items, of each snapshot
    that comes over it, before it arrives."""

    def __init__(self, transport: Transport, tell: Callable[[Time, int], None]) -> None:
        self._transport = transport
        self._tell = tell
        self._items = 0
        self.send = transport.send
        self.close = transport.close

    async def receive(self) -> str:
        text = await self._transport.receive()
        match decode_node_frame(text):
            case SyncPage(mode="snapshot") as page:
                self._items += len(page.items)
                if not page.more:
                    self._tell(page.cursor, self._items)
                    self._items = 0
        return text


class Cable:
    """The network between one device and the servers, one of which answers. It can be cut."""

    def __init__(
        self, urls: Sequence[str], mind: Random, tell: Callable[[Time, int], None]
    ) -> None:
        self._servers = [websocket(url) for url in urls]
        self._mind = mind
        self._tell = tell
        self._whole = asyncio.Event()
        self._whole.set()
        self._carrying: Transport | None = None

    async def connect(self) -> Transport:
        """A connection, as soon as there is a network."""
        await self._whole.wait()
        transport = await self._dial()
        if not self._whole.is_set():
            await transport.close()
            raise Disconnected(1006, "the network is gone")
        self._carrying = transport
        return Overheard(transport, self._tell)

    async def _dial(self) -> Transport:
        """One of the servers, as a balancer would choose: if it does not answer, another."""
        *others, last = self._mind.sample(self._servers, len(self._servers))
        for connect in others:
            with suppress(Disconnected, OSError):  # one that is down refuses
                return await connect()
        return await last()

    def cut(self) -> None:
        self._whole.clear()
        if isinstance(self._carrying, WebSocket):
            self._carrying.abort()

    def mend(self) -> None:
        self._whole.set()


class Device:
    """One device of one user, and the person who uses it, who has a `mind` of their own."""

    def __init__(self, number: int, uid: str, mind: Random, stage: Stage) -> None:
        self.name = f"device-{number:03}"
        self.uid = uid
        self.client: Client | None = None
        self._mind = mind
        self._stage = stage
        self._cable = Cable(stage.servers.urls, mind, self._replaced)
        self._syncs = 0
        # Each file has a thread of its own, so only some devices have one.
        self._file = stage.folder / f"{self.name}.db" if number % 10 == 0 else None
        self._memory = MemoryStore()

    async def run(self) -> None:
        """Drop off and come back until it is over; then deliver what waits, and compare."""
        await self._stage.pause(self._mind.uniform(0, OFFLINE_SECONDS))
        while True:
            async with self._opened() as client:
                await self._use(client)
                if self._stage.over.is_set():
                    await self._settle(client)
                    return
                self._drop_off()
            await self._stage.pause(self._mind.expovariate(1 / OFFLINE_SECONDS))

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Client]:
        """The app, open, with whatever its store has kept."""
        async with asyncio.TaskGroup() as tasks:
            client = Client(
                self._stage.servers.urls[0],
                self.uid,
                device_id=self.name,
                uid=self.uid,
                store=self._memory if self._file is None else SQLiteStore(self._file),
                connect=self._cable.connect,
                jitter=self._mind.random,
            )
            self.client = client
            async with client:
                tasks.create_task(self._hear(client.events()))
                yield client
                self._stage.score.mismatches += client.mismatches
            self.client = None

    async def _hear(self, events: Subscription) -> None:
        async for event in events:
            self._heard(event)

    def _heard(self, event: Event) -> None:
        match event:
            case Synced():
                self._syncs += 1
                self._stage.score.resynced += self._syncs > 1
            case Rejected():
                self._stage.score.rejected += 1

    def _replaced(self, cursor: Time, items: int) -> None:
        known = 0 if self.client is None else self.client.replica.cursor
        if known:
            self._stage.score.retold.append(Retold(self.name, self.uid, known, cursor, items))

    async def _use(self, client: Client) -> None:
        """Use the app, with and without a network, until it is closed, or all is over."""
        while True:
            await self._stage.pause(self._mind.expovariate(1 / ONLINE_SECONDS))
            if self._stage.over.is_set():
                return
            if self._mind.random() < 0.3:
                await self._write(client)
                return
            self._drop_off()
            self._cable.cut()
            for _ in range(self._mind.choice((0, 0, 1, 2))):
                await self._write(client)
            await self._stage.pause(self._mind.expovariate(1 / OFFLINE_SECONDS))
            self._cable.mend()

    def _drop_off(self) -> None:
        self._stage.score.dropped_off += not self._stage.over.is_set()

    async def _write(self, client: Client) -> None:
        """What a person does who looks at the app."""
        self._stage.score.written.add(await self._say(client))

    async def _say(self, client: Client) -> MsgID:
        items = client.state().items
        match self._mind.choice(("dismiss", "dismiss", "dismiss category", "create", "replace")):
            case "dismiss" if items:
                chosen = self._mind.sample(items, min(len(items), self._mind.randint(1, 3)))
                return await client.dismiss(*(item.msg_id for item in chosen))
            case "dismiss category" if items:
                return await client.dismiss_category(self._mind.choice(items).category)
            case "replace":
                return await client.replace("settings.theme", self._mind.choice(("dark", "light")))
            case _:
                here = self._mind.random() < 0.2
                return await client.create("notes", f"written on {self.name}", this_device=here)

    # In the end

    async def _settle(self, client: Client) -> None:
        delivered = await self._deliver(client)
        # What one device delivers changes what the others have to show.
        await self._stage.delivered.wait()
        what = await self._compare(client) if delivered else "its outbox was not taken in time"
        if what is None:
            self._stage.score.agreeing += 1
        else:
            self._stage.score.differences.append(Difference(self.name, self.uid, what))
        self._stage.score.unsent += client.outbox

    async def _deliver(self, client: Client) -> bool:
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await client.flush()
                await client.wait_synced()
        except TimeoutError:
            return False
        return True

    async def _compare(self, client: Client) -> str | None:
        """What the replica and the server do not agree in. What is still on its way to the
        device may arrive first."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE_SECONDS
        while True:
            what = await self._difference(client)
            if what is None or loop.time() > deadline:
                return what
            await asyncio.sleep(0.1)

    async def _difference(self, client: Client) -> str | None:
        try:
            async with self._stage.asking:
                theirs = await self._stage.servers.state(self.uid, self.name)
        except Unavailable as error:
            return f"cannot be compared: {error.message}"
        return difference(client.replica.state(theirs.as_of), theirs)


def difference(mine: State, theirs: StateAnswer) -> str | None:
    """What a replica and the server do not agree in, hash and items; None if they agree."""
    here = {item.msg_id: item for item in mine.items}
    there = {item.msg_id: item for item in theirs.items}
    parts = [
        _named("lacks", [there[id_] for id_ in there if id_ not in here]),
        _named("still shows", [here[id_] for id_ in here if id_ not in there]),
        _named("differs in", [here[id_] for id_ in here if here[id_] != there.get(id_, here[id_])]),
    ]
    if not any(parts) and mine.items != theirs.items:
        parts.append("has another order")
    if not any(parts) and mine.hash() != theirs.hash:
        parts.append(f"has the hash {mine.hash()}, the server {theirs.hash}")
    return "; ".join(part for part in parts if part) or None


def _named(verb: str, items: list[Item]) -> str:
    if not items:
        return ""
    names = ", ".join(f"{item.msg_id} in {item.category}" for item in items[:3])
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return f"{verb} {names}{more}"
