"""The stores of a simulation: one shared state machine in memory, or real shards, between which a
real Rebalancer moves the users' buckets.

Each node has its own link to the store. On a link answers are delayed and reordered, and sometimes
lost: before the commit or, worse, after it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from functools import cache, partial
from random import Random
from sqlite3 import Connection
from typing import Any, NamedTuple, Protocol, Self, TypeVar, cast

from gregor.core.buckets import Move, bucket_of
from gregor.core.deployment import Deployment
from gregor.core.export import ExportPage, ExportPlace, ImportPart, Verdict
from gregor.core.history import Cutoff
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.item_history import ItemHistory
from gregor.core.message import UID, Category, DeviceID, InBandMessage, MsgID
from gregor.core.state import Counts, Item
from gregor.core.state_page import PageStart, StatePage, StateQuery
from gregor.core.sync import Page, PageLimits, Start, Sync
from gregor.errors import GregorError, StorageUnavailable, Unavailable
from gregor.interfaces import EraseResult, Erasure, PruneStep, Slot, StateMachineOfRecord
from gregor.shards import shard_map
from gregor.shards.rebalance import Moved, Rebalancer
from gregor.shards.shard_map import establish, newest_placements
from gregor.shards.state_machine import ShardedStateMachine
from gregor.stores.memory import MemoryStateMachine
from gregor.stores.sql import statements
from gregor.stores.sql.database import CommitUnknown, PoolUse, Work
from gregor.stores.sql.erase import read_erasure
from gregor.stores.sql.migrations import migrate
from gregor.stores.sql.reads import read_sync
from gregor.stores.sql.sqlite import SQLiteDatabase
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import Placement
from gregor.testing import virtual_time
from tests.stores.logs import stored_log

T = TypeVar("T")

SHARDS = ("a", "b", "c")


class Environment(Protocol):
    """What a store needs from its simulation: random decisions by the seed, and the trace."""

    rng: Random
    users: Sequence[UID]

    def chance(self, probability: float) -> bool:
        """True with this probability; always False after the faults have ended."""
        ...

    def record(self, actor: str, event: str) -> None:
        """Add a line to the trace."""
        ...

    def latency(self) -> float:
        """A random delay in seconds."""
        ...

    async def wait_for_later_commit(self, name: str) -> None:
        """Wait until another commit for this user or shard is answered, for 2 s at most."""
        ...

    def commit_answered(self, name: str) -> None:
        """A commit for this user or shard was answered."""
        ...


class StoreLink:
    """The connection of one node or process to the store. `down` is an outage, `cut` is permanent.
    `severity` scales its delays and its error rate; 1 is the highest."""

    def __init__(self, environment: Environment, name: str, severity: float = 1.0) -> None:
        self.environment = environment
        self.name = name
        self.down = False
        self.cut = False
        self._severity = severity

    async def delay(self) -> None:
        await asyncio.sleep(self._severity * self.environment.latency())

    async def transmit(self, step: str, is_down: Callable[[], bool] = lambda: False) -> None:
        """Wait for a random delay. Raises StorageUnavailable if the link or the store is down, or
        at random."""
        await self.delay()
        if self.down or self.cut or is_down() or self.environment.chance(0.05 * self._severity):
            self.environment.record(self.name, f"the store fails {step}")
            raise StorageUnavailable(f"the store fails {step}")


class StoreFault(NamedTuple):
    """A fault that a store can have; `weight` is its relative frequency."""

    weight: int
    run: Callable[[], Awaitable[None]]


class SimulatedStore(Protocol):
    """The nodes' store. The final check reads it through `sync`, `log` and `problem`, without
    delays or errors."""

    faults: Mapping[str, StoreFault]

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *exc_info: Any) -> None: ...

    def serve(
        self, link: StoreLink, clock: Callable[[], Time]
    ) -> AbstractAsyncContextManager[StateMachineOfRecord]:
        """Open the state machine for one run of a node."""
        ...

    async def sync(self, uid: UID, device_id: DeviceID) -> Sync:
        """The sync for a device with cursor 0."""
        ...

    async def log(self, uid: UID) -> Sequence[InBandMessage]:
        """All messages that were stored for the user, in order and complete."""
        ...

    async def pruned(self, uid: UID) -> Mapping[MsgID, Time]:
        """The ctimes of the messages whose contents are forgotten."""
        ...

    async def erasure(self, uid: UID) -> Erasure: ...

    async def problem(self) -> str | None:
        """What is wrong with the store after the faults; None if nothing is."""
        ...


# The shared store


class SharedStore:
    """A state machine in memory without faults of its own; only the links to it fail."""

    def __init__(self, clock: Callable[[], Time]) -> None:
        self.faults: Mapping[str, StoreFault] = {}
        self._machine = MemoryStateMachine(clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    @asynccontextmanager
    async def serve(
        self, link: StoreLink, clock: Callable[[], Time]
    ) -> AsyncIterator[StateMachineOfRecord]:
        yield DelayedStateMachine(self._machine, link)

    async def sync(self, uid: UID, device_id: DeviceID) -> Sync:
        return await self._machine.sync(uid, device_id, 0)

    async def log(self, uid: UID) -> Sequence[InBandMessage]:
        return self._machine.log(uid)

    async def pruned(self, uid: UID) -> Mapping[MsgID, Time]:
        return self._machine.pruned(uid)

    async def erasure(self, uid: UID) -> Erasure:
        return await self._machine.erasure(uid)

    async def problem(self) -> str | None:
        return None


class DelayedStateMachine(StateMachineOfRecord):
    """A state machine that is reached over a link."""

    def __init__(self, machine: StateMachineOfRecord, link: StoreLink) -> None:
        self._machine = machine
        self._link = link

    async def deployment(self) -> Deployment | None:
        return await self._machine.deployment()

    async def store(self, slots: Sequence[Slot]) -> None:
        environment = self._link.environment
        await self._link.transmit("before storing")
        await self._machine.store(slots)
        if environment.chance(0.2):
            await environment.wait_for_later_commit(slots[0].message.uid)
        await self._link.transmit("after storing")
        for slot in slots:
            environment.commit_answered(slot.message.uid)

    async def state_page(
        self,
        uid: UID,
        query: StateQuery,
        at: TimeOrOffset | None = None,
        start: PageStart | None = None,
    ) -> StatePage:
        return await self._machine.state_page(uid, query, at, start)

    async def erasure(self, uid: UID) -> Erasure:
        await self._link.transmit("before reading the last erase")
        erasure = await self._machine.erasure(uid)
        await self._link.delay()
        return erasure

    async def erase(self, uid: UID) -> EraseResult:
        await self._link.transmit("before erasing")
        result = await self._machine.erase(uid)
        await self._link.transmit("after erasing")
        return result

    async def item_history(self, uid: UID, msg_id: MsgID) -> ItemHistory:
        return await self._machine.item_history(uid, msg_id)

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        await self._link.transmit("before pruning")
        return await self._machine.prune(cutoff, after)

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        await self._link.transmit("before checking hashes")
        return await self._machine.check_hashes(uids)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        return await self._machine.in_band_messages_since(uid, device_id, since)

    async def messages_page(
        self, uid: UID, device_id: DeviceID | None, start: Start, limits: PageLimits
    ) -> Page:
        return await self._machine.messages_page(uid, device_id, start, limits)

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        await self._link.transmit("before reading")
        sync = await self._machine.sync(uid, device_id, cursor)
        await self._link.delay()
        return sync

    async def items(self, uid: UID, ctimes: Sequence[Time]) -> Sequence[Item]:
        await self._link.transmit("before reading items")
        items = await self._machine.items(uid, ctimes)
        await self._link.delay()
        return items

    async def count(
        self, uid: UID, device_id: DeviceID | None, prefixes: Sequence[Category]
    ) -> Counts:
        return await self._machine.count(uid, device_id, prefixes)

    async def count_by_segment(
        self, uid: UID, device_id: DeviceID | None, prefix: Category
    ) -> Counts:
        return await self._machine.count_by_segment(uid, device_id, prefix)

    async def users_after(self, uid: UID, limit: int) -> Sequence[UID]:
        return await self._machine.users_after(uid, limit)

    async def export_page(self, uid: UID, place: ExportPlace) -> ExportPage:
        return await self._machine.export_page(uid, place)

    async def import_parts(self, parts: Sequence[ImportPart]) -> Sequence[Sequence[Verdict]]:
        return await self._machine.import_parts(parts)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        await self._link.transmit("before reading clocks")
        ctimes = await self._machine.ctimes(uids)
        await self._link.delay()
        return ctimes

    async def problems(self) -> Sequence[str]:
        return await self._machine.problems()


# Shards


class InlineDatabase(SQLiteDatabase):
    """SQLite in memory, on virtual time. Work runs at once in the caller's task, so it is not
    interleaved with other tasks and needs no thread."""

    def __init__(self, content: bytes | None = None) -> None:
        super().__init__("", migrate.on_sqlite if content is None else None)
        self._content = content

    def _submit(self, call: Callable[[], object]) -> None:
        call()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return work()

    def _open(self) -> None:
        super()._open()
        if self._content is not None:
            self.driver.deserialize(self._content)
        self.driver.create_function("database_now", 0, virtual_time.clock)

    @property
    def driver(self) -> Connection:
        assert self._driver is not None
        return self._driver


@cache
def established_shards() -> Mapping[str, bytes]:
    """The serialised databases of the shards, without users. The last shard holds no buckets."""

    async def establish_all() -> dict[str, bytes]:
        async with AsyncExitStack() as stack:
            databases = {name: await stack.enter_async_context(InlineDatabase()) for name in SHARDS}
            await establish({name: databases[name] for name in SHARDS[:-1]})
            await establish(databases)
            return {name: d.driver.serialize() for name, d in databases.items()}

    return asyncio.run(establish_all())


class SimulatedShard:
    """A shard. While it is `down`, no link reaches it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name = name
        self.down = False
        self.database = InlineDatabase(content)


class _RolledBack(Exception):
    """Rolls back a transaction; carries the result of its work."""


class DelayedDatabase:
    """The Database of a shard that is reached over a link."""

    def __init__(self, shard: SimulatedShard, link: StoreLink) -> None:
        self._shard = shard
        self._link = link

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        pass

    @property
    def history(self) -> None:
        return None

    async def check_role(self) -> None:
        """A simulated server has no standby."""

    async def write(self, work: Work[T]) -> T:
        environment, name = self._link.environment, self._shard.name
        was_alive = not self._link.cut
        try:
            await self._transmit("before storing")
        except (asyncio.CancelledError, StorageUnavailable) as error:
            killed = was_alive and (self._link.cut or isinstance(error, asyncio.CancelledError))
            if killed and not self._shard.down and environment.chance(0.5):
                await self._store_without_caller(work)
            raise
        if environment.chance(0.05):
            await self._run_and_roll_back(work)  # the transaction is retried from the start
        if environment.chance(0.02):
            message = f"{name} loses the connection during a commit"
            environment.record(self._link.name, message)
            raise CommitUnknown(message, await self._run_and_roll_back(work))
        result = await self._shard.database.write(work)
        if environment.chance(0.1):
            await environment.wait_for_later_commit(name)
        try:
            await self._transmit("after storing")
        except StorageUnavailable as error:
            raise CommitUnknown(str(error), result) from error
        environment.commit_answered(name)
        return result

    async def scrub(self) -> None:
        await self._shard.database.scrub()

    def pools(self) -> Mapping[str, PoolUse]:
        return self._shard.database.pools()

    async def _store_without_caller(self, work: Work[T]) -> None:
        """Commit, although the caller was killed after it had sent the request."""
        self._link.environment.record(
            self._link.name, f"was killed while {self._shard.name} commits"
        )
        with suppress(GregorError):
            await self._shard.database.write(work)

    async def _run_and_roll_back(self, work: Work[T]) -> T:
        """Run the work, roll it back, and return its result."""

        def work_and_fail(connection: Any) -> None:
            raise _RolledBack(work(connection))

        try:
            await self._shard.database.write(work_and_fail)
        except _RolledBack as rolled_back:
            return cast("T", rolled_back.args[0])
        raise AssertionError("the transaction was not rolled back")

    async def read(self, work: Work[T]) -> T:
        await self._transmit("before reading")
        result = await self._shard.database.read(work)
        await self._link.delay()
        return result

    async def _transmit(self, step: str) -> None:
        await self._link.transmit(f"{step} in {self._shard.name}", lambda: self._shard.down)


class ShardedStore:
    """Real shards on databases in memory, with a Rebalancer that is killed at random moments."""

    def __init__(self, environment: Environment) -> None:
        self.faults: Mapping[str, StoreFault] = {
            "move": StoreFault(5, partial(self._rebalance, "mover", self._move)),
            "leftovers": StoreFault(1, partial(self._rebalance, "cleaner", self._delete_leftovers)),
            "shard": StoreFault(1, self._stop_shard),
        }
        self._environment = environment
        self._shards = {
            name: SimulatedShard(name, content) for name, content in established_shards().items()
        }
        self._databases = {name: shard.database for name, shard in self._shards.items()}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for database in self._databases.values():
            await self._stack.enter_async_context(database)
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._stack.__aexit__(*exc_info)

    # Used by nodes

    @asynccontextmanager
    async def serve(
        self, link: StoreLink, clock: Callable[[], Time]
    ) -> AsyncIterator[StateMachineOfRecord]:
        async with AsyncExitStack() as stack:
            yield await self._start(stack, link, clock)

    async def _start(
        self, stack: AsyncExitStack, link: StoreLink, clock: Callable[[], Time]
    ) -> ShardedStateMachine:
        """Retry until the state machine starts, as a process supervisor does."""
        while True:
            machines = {
                name: SQLStateMachine(d, clock) for name, d in self._reached_over(link).items()
            }
            try:
                return await stack.enter_async_context(ShardedStateMachine(machines))
            except GregorError as error:
                self._environment.record(link.name, f"cannot start: {error.message}")
                await asyncio.sleep(self._environment.rng.random())

    def _reached_over(self, link: StoreLink) -> dict[str, DelayedDatabase]:
        return {name: DelayedDatabase(shard, link) for name, shard in self._shards.items()}

    # Faults

    async def _rebalance(self, actor: str, work: Callable[[Rebalancer], Awaitable[None]]) -> None:
        """Run the work of a mover or cleaner process, which may be killed at any moment."""
        environment = self._environment
        rebalancer = Rebalancer(
            self._reached_over(
                StoreLink(environment, actor, severity=environment.rng.choice((0.01, 0.1, 0.5)))
            ),
            clock=virtual_time.clock,
            rng=Random(environment.rng.random()),
        )
        killed_after = environment.rng.random() * 5 if environment.chance(0.5) else None
        try:
            async with asyncio.timeout(killed_after):
                await work(rebalancer)
        except TimeoutError:
            environment.record(actor, "is killed")
        except Unavailable as error:
            environment.record(actor, f"gives up: {error.message}")

    async def _move(self, rebalancer: Rebalancer) -> None:
        """Move some buckets to a random shard: those of users, and empty ones."""
        rng = self._environment.rng
        buckets = rng.sample([*map(bucket_of, self._environment.users), 0, 1], rng.randrange(1, 4))
        target = rng.choice(SHARDS)
        await rebalancer.move([Move(bucket, "", target) for bucket in buckets], self._moved)

    def _moved(self, moved: Moved) -> None:
        move = moved.move
        self._environment.record(
            "mover", f"moved {move.bucket} from {move.source} to {move.target}"
        )

    async def _delete_leftovers(self, rebalancer: Rebalancer) -> None:
        findings, removed = await rebalancer.verify(prune=True)
        assert not findings, findings
        self._environment.record("cleaner", f"removed the leftovers of {removed} buckets")

    async def _stop_shard(self) -> None:
        shard = self._environment.rng.choice(list(self._shards.values()))
        shard.down = True
        self._environment.record(f"shard {shard.name}", "goes down")
        await asyncio.sleep(self._environment.rng.random() * 10)
        shard.down = False

    # Used by the final check

    async def sync(self, uid: UID, device_id: DeviceID) -> Sync:
        holder, now = await self._holder(uid), virtual_time.clock()
        return await holder.read(lambda c: read_sync(c, uid, device_id, 0, now))

    async def log(self, uid: UID) -> Sequence[InBandMessage]:
        holder = await self._holder(uid)
        return await holder.read(lambda c: stored_log(c, uid))

    async def pruned(self, uid: UID) -> Mapping[MsgID, Time]:
        holder = await self._holder(uid)
        query = f"SELECT msg_id, ctime FROM pruned WHERE uid = '{uid}'"
        return dict(await holder.read(lambda c: c.execute_sql(query)))

    async def erasure(self, uid: UID) -> Erasure:
        holder = await self._holder(uid)
        return await holder.read(lambda c: read_erasure(c, uid))

    async def _holder(self, uid: UID) -> InlineDatabase:
        """The holder of the user by the newest placement; it is updated with that placement."""
        bucket = bucket_of(uid)
        placed = [
            Placement._make(row)
            for database in self._databases.values()
            for row in await database.read(lambda c: c.execute(statements.PLACEMENT, bucket=bucket))
        ]
        newest = newest_placements(placed)[bucket]
        holder = self._databases[newest.shard]
        await holder.write(lambda c: shard_map.merge_placements(c, [newest]))
        return holder

    async def problem(self) -> str | None:
        findings, _ = await Rebalancer(self._databases).verify()
        return "; ".join(finding.what for finding in findings) or None
