"""What the nodes of a seeded world store in: a state machine in memory that all of them share, or
real shards, between which real movers move the users' buckets.

Everybody has a line of their own to it. On a line answers come late and in any order, and sometimes
not at all: before something was stored or, worse, after.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from random import Random
from sqlite3 import Connection
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

from sqlalchemy.engine import make_url

from gregor.core.buckets import Move, bucket_of
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage
from gregor.core.state import State, Sync
from gregor.errors import GregorError, StorageUnavailable, Unavailable
from gregor.interfaces import Outcome, StateMachineOfRecord
from gregor.state_machines import shard_map
from gregor.state_machines.memory import MemoryStateMachine
from gregor.state_machines.moving import Moved, Mover, establish
from gregor.state_machines.shard_map import Placement
from gregor.state_machines.sharded import ShardedStateMachine, merged
from gregor.state_machines.sql import SQLStateMachine
from gregor.state_machines.transactions import read_sync
from gregor.storage import statements, tables
from gregor.storage.database import OutcomeUnknown, Work
from gregor.storage.migrations import migrate
from gregor.storage.sqlite import SQLiteDatabase
from gregor.testing import virtual_time

T = TypeVar("T")

SHARDS = ("a", "b", "c")


class Nature(Protocol):
    """What a world decides by its seed, and what it remembers."""

    rng: Random
    users: Sequence[UID]

    def happens(self, probability: float) -> bool: ...

    def note(self, who: str, what: str) -> None: ...

    def lag(self) -> float: ...

    async def overtaken(self, whom: str) -> None: ...

    def answered(self, whom: str) -> None: ...


class Line:
    """What connects somebody with the store: `down` for a while, or `cut` for ever. There are
    lines that are less `bad` than others."""

    def __init__(self, nature: Nature, name: str, bad: float = 1.0) -> None:
        self.nature = nature
        self.name = name
        self.down = False
        self.cut = False
        self._bad = bad

    async def delay(self) -> None:
        await asyncio.sleep(self._bad * self.nature.lag())

    async def carry(self, when: str, broken: Callable[[], bool] = lambda: False) -> None:
        """Take a while, and perhaps fail."""
        await self.delay()
        if self.down or self.cut or broken() or self.nature.happens(0.05 * self._bad):
            self.nature.note(self.name, f"the store fails {when}")
            raise StorageUnavailable(f"the store fails {when}")


class Accident(NamedTuple):
    """Something that may happen, more often the more it weighs."""

    weight: int
    happen: Callable[[], Awaitable[None]]


class Store(Protocol):
    """The nodes' store, and what a judge may know of it, who is never kept waiting."""

    accidents: Mapping[str, Accident]

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: Any) -> None: ...

    def serve(
        self, line: Line, clock: Callable[[], Time]
    ) -> AbstractAsyncContextManager[StateMachineOfRecord]:
        """The state machine of one node's life."""
        ...

    async def sync(self, uid: UID, device_id: DeviceID) -> Sync:
        """What a device that knows nothing is told."""
        ...

    async def log(self, uid: UID) -> Sequence[InBandMessage]:
        """All that was ever stored for the user, in order and in full."""
        ...

    async def defect(self) -> str | None:
        """What is wrong with it when all is over."""
        ...


# One for all


class SharedStore:
    """A state machine in memory, to which nothing happens but what happens to the lines."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        self.accidents: Mapping[str, Accident] = {}
        self._machine = MemoryStateMachine(clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    @asynccontextmanager
    async def serve(
        self, line: Line, clock: Callable[[], Time]
    ) -> AsyncIterator[StateMachineOfRecord]:
        yield LateMachine(self._machine, line)

    async def sync(self, uid: UID, device_id: DeviceID) -> Sync:
        return await self._machine.sync(uid, device_id, 0)

    async def log(self, uid: UID) -> Sequence[InBandMessage]:
        return self._machine.log(uid)

    async def defect(self) -> str | None:
        return None


class LateMachine(StateMachineOfRecord):
    """A state machine at the other end of a line."""

    def __init__(self, machine: StateMachineOfRecord, line: Line) -> None:
        self._machine = machine
        self._line = line

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> Sequence[Outcome]:
        nature = self._line.nature
        await self._line.carry("before storing")
        outcomes = await self._machine.consume_messages(messages)
        if nature.happens(0.2):
            await nature.overtaken(messages[0].uid)
        await self._line.carry("after storing")
        for message in messages:
            nature.answered(message.uid)
        return outcomes

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        return await self._machine.state(uid, device_id, at)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        return await self._machine.in_band_messages_since(uid, device_id, since)

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        await self._line.carry("before reading")
        sync = await self._machine.sync(uid, device_id, cursor)
        await self._line.delay()
        return sync

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        await self._line.carry("before reading clocks")
        ctimes = await self._machine.ctimes(uids)
        await self._line.delay()
        return ctimes

    async def troubles(self) -> Sequence[str]:
        return await self._machine.troubles()


# Shards


class InlineDatabase(SQLiteDatabase):
    """In memory, at virtual times. Whoever asks does the work, at once, so that nobody comes
    between and no thread is needed."""

    def __init__(self, content: bytes | None = None) -> None:
        super().__init__(make_url("sqlite://"), migrate if content is None else lambda c: None)
        self._content = content

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return work()

    def _open(self) -> None:
        super()._open()
        if self._content is not None:
            self.connection.deserialize(self._content)
        self.connection.create_function("now_there", 0, virtual_time.clock)

    @property
    def connection(self) -> Connection:
        assert self._engine is not None
        connection = self._engine.raw_connection().driver_connection
        assert isinstance(connection, Connection)
        return connection


@cache
def established() -> Mapping[str, bytes]:
    """Databases of shards, without users; the last of them holds no buckets yet."""

    async def establish_all() -> dict[str, bytes]:
        async with AsyncExitStack() as stack:
            databases = {name: await stack.enter_async_context(InlineDatabase()) for name in SHARDS}
            await establish({name: databases[name] for name in SHARDS[:-1]})
            await establish(databases)
            return {name: d.connection.serialize() for name, d in databases.items()}

    return asyncio.run(establish_all())


class SimulatedShard:
    """A shard, which may be `down` for everybody."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.down = False
        self.database = InlineDatabase(content)


class _Undone(Exception):
    """The transaction ends here."""


class LateDatabase:
    """A Database of a shard at the other end of a line."""

    def __init__(self, shard: SimulatedShard, line: Line) -> None:
        self._shard = shard
        self._line = line

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    async def write(self, work: Work[T]) -> T:
        nature, name = self._line.nature, self._shard.name
        alive = not self._line.cut
        try:
            await self._carry("before storing")
        except (asyncio.CancelledError, StorageUnavailable) as error:
            killed = alive and (self._line.cut or isinstance(error, asyncio.CancelledError))
            if killed and not self._shard.down and nature.happens(0.5):
                await self._store_unheard(work)
            raise
        if nature.happens(0.05):
            await self._undo(work)  # and it is done again from its beginning
        if nature.happens(0.02):
            message = f"{name} breaks off while it commits"
            nature.note(self._line.name, message)
            raise OutcomeUnknown(message, await self._undo(work))
        result = await self._shard.database.write(work)
        if nature.happens(0.1):
            await nature.overtaken(name)
        try:
            await self._carry("after storing")
        except StorageUnavailable as error:
            raise OutcomeUnknown(error.message, result) from error
        nature.answered(name)
        return result

    async def _store_unheard(self, work: Work[T]) -> None:
        """Whoever was killed had asked already, and is not there for the answer."""
        self._line.nature.note(self._line.name, f"was killed while {self._shard.name} stores")
        with suppress(GregorError):
            await self._shard.database.write(work)

    async def _undo(self, work: Work[T]) -> T:
        """What the work returns, which is undone."""

        def work_and_fail(connection: Any) -> None:
            raise _Undone(work(connection))

        try:
            await self._shard.database.write(work_and_fail)
        except _Undone as undone:
            return cast("T", undone.args[0])
        raise AssertionError("work that fails is undone")

    async def read(self, work: Work[T]) -> T:
        await self._carry("before reading")
        result = await self._shard.database.read(work)
        await self._line.delay()
        return result

    async def _carry(self, when: str) -> None:
        await self._line.carry(f"{when} in {self._shard.name}", lambda: self._shard.down)


class ShardedStore:
    """Real shards, on databases in memory."""

    def __init__(self, nature: Nature) -> None:
        self.accidents: Mapping[str, Accident] = {
            "move": Accident(5, partial(self._change, "mover", self._move)),
            "prune": Accident(1, partial(self._change, "pruner", self._prune)),
            "shard": Accident(1, self._go_down),
        }
        self._nature = nature
        self._shards = {
            name: SimulatedShard(name, content) for name, content in established().items()
        }
        self._databases = {name: shard.database for name, shard in self._shards.items()}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for database in self._databases.values():
            await self._stack.enter_async_context(database)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    # For nodes

    @asynccontextmanager
    async def serve(
        self, line: Line, clock: Callable[[], Time]
    ) -> AsyncIterator[StateMachineOfRecord]:
        async with AsyncExitStack() as stack:
            yield await self._started(stack, line, clock)

    async def _started(
        self, stack: AsyncExitStack, line: Line, clock: Callable[[], Time]
    ) -> ShardedStateMachine:
        """As whoever keeps servers running would: try again."""
        while True:
            machines = {name: SQLStateMachine(d, clock) for name, d in self._seen_by(line).items()}
            try:
                return await stack.enter_async_context(ShardedStateMachine(machines))
            except GregorError as error:
                self._nature.note(line.name, f"cannot start: {error.message}")
                await asyncio.sleep(self._nature.rng.random())

    def _seen_by(self, line: Line) -> dict[str, LateDatabase]:
        return {name: LateDatabase(shard, line) for name, shard in self._shards.items()}

    # What happens to it

    async def _change(self, who: str, change: Callable[[Mover], Awaitable[None]]) -> None:
        """Somebody sets out to change something, and may be killed at any moment of it."""
        nature = self._nature
        mover = Mover(
            self._seen_by(Line(nature, who, bad=nature.rng.choice((0.01, 0.1, 0.5)))),
            clock=virtual_time.clock,
            mind=Random(nature.rng.random()),
        )
        life = nature.rng.random() * 5 if nature.happens(0.5) else None
        try:
            async with asyncio.timeout(life):
                await change(mover)
        except TimeoutError:
            nature.note(who, "is killed")
        except Unavailable as error:
            nature.note(who, f"gives up: {error.message}")

    async def _move(self, mover: Mover) -> None:
        """Buckets, of users or of nobody."""
        rng = self._nature.rng
        buckets = rng.sample([*map(bucket_of, self._nature.users), 0, 1], rng.randrange(1, 4))
        target = rng.choice(SHARDS)
        await mover.move([Move(bucket, "", target) for bucket in buckets], self._moved)

    def _moved(self, moved: Moved) -> None:
        move = moved.move
        self._nature.note("mover", f"moved {move.bucket} from {move.source} to {move.target}")

    async def _prune(self, mover: Mover) -> None:
        findings, removed = await mover.verify(prune=True)
        assert not findings, findings
        self._nature.note("pruner", f"removed what was left of {removed} buckets")

    async def _go_down(self) -> None:
        shard = self._nature.rng.choice(list(self._shards.values()))
        shard.down = True
        self._nature.note(f"shard {shard.name}", "goes down")
        await asyncio.sleep(self._nature.rng.random() * 10)
        shard.down = False

    # For the judge

    async def sync(self, uid: UID, device_id: DeviceID) -> Sync:
        holder, now = await self._holder(uid), virtual_time.clock()
        return await holder.read(lambda c: read_sync(c, uid, device_id, 0, now))

    async def log(self, uid: UID) -> Sequence[InBandMessage]:
        holder = await self._holder(uid)
        return await holder.read(lambda c: shard_map.page(c, {uid: 0}))

    async def _holder(self, uid: UID) -> InlineDatabase:
        """Who has the user, by what was placed last, and knows of it by now."""
        known = statements.placements.where(tables.buckets.c.bucket == bucket_of(uid))
        placed = [
            Placement(*row)
            for database in self._databases.values()
            for row in await database.read(lambda c: c.execute(known).all())
        ]
        newest = merged(placed)[bucket_of(uid)]
        holder = self._databases[newest.shard]
        await holder.write(lambda c: shard_map.adopt(c, [newest]))
        return holder

    async def defect(self) -> str | None:
        findings, _ = await Mover(self._databases).verify()
        return "; ".join(finding.what for finding in findings) or None
