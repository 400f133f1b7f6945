"""The state machine of record on a database, SQLite or PostgreSQL.

Concurrent messages of many users are committed together (group commit): while one transaction
runs, the messages that arrive are queued for the next one, in which each sender has a share
(`commit_queue.py`). A single message is committed at once.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from time import monotonic, perf_counter
from typing import IO, Any, NamedTuple, Self, TypeAlias, TypeVar

from msgspec import structs

from gregor.core.deployment import Deployment
from gregor.core.export import ExportPage, ExportPlace, ImportPart, Verdict
from gregor.core.history import Cutoff
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.item_history import ItemHistory
from gregor.core.message import UID, Category, DeviceID, InBandMessage, MsgID
from gregor.core.state import Counts, Item
from gregor.core.state_page import PageStart, StatePage, StateQuery
from gregor.core.sync import Page, PageLimits, Since, Start, Sync
from gregor.errors import (
    Action,
    ClockSkew,
    GregorError,
    HistoryForgotten,
    NotMigrated,
    StorageUnavailable,
    Unavailable,
)
from gregor.interfaces import (
    Duplicate,
    EraseResult,
    Erasure,
    PruneStep,
    Rejected,
    Slot,
    StateMachineOfRecord,
    Stored,
    StoreOutcome,
)
from gregor.limits import NO_LIMITS, Limits
from gregor.log_event import LogEvent
from gregor.prompt_future import PromptFuture
from gregor.stores.sql import statements
from gregor.stores.sql.allowance import Allowance, CountedUsers, maxima_of
from gregor.stores.sql.commit_queue import CommitQueue, Piece
from gregor.stores.sql.database import (
    CommitUnknown,
    Database,
    DatabaseConnection,
    TransactionTooLong,
    UniqueViolation,
    Work,
)
from gregor.stores.sql.deployment import read_common_deployment
from gregor.stores.sql.erase import erase, read_erasure
from gregor.stores.sql.exports import read_export_page, users_after
from gregor.stores.sql.failure_reason import FailureReason, failure_reason
from gregor.stores.sql.imports import import_parts
from gregor.stores.sql.item_history import read_item_history
from gregor.stores.sql.leases import Lease
from gregor.stores.sql.prune import prune
from gregor.stores.sql.reads import (
    read_counts,
    read_items,
    read_next_state_page,
    read_page,
    read_segments,
    read_since,
    read_state_page,
    read_sync,
)
from gregor.stores.sql.registration import Registration
from gregor.stores.sql.rows import json_of
from gregor.stores.sql.schema import Schema, read_schema, require_not_too_old
from gregor.stores.sql.sqlite import SQLiteDatabase
from gregor.stores.sql.transactions import (
    check_hashes,
    consume,
    consume_new,
    raise_if_wrong_shard,
    read_database_clock,
    read_user_clocks,
)
from gregor.stores.sql.write_health import WriteHealth

log = logging.getLogger("gregor.state_machine")

T = TypeVar("T")
Consume = Callable[..., list[StoreOutcome]]

# The clock skew, in microseconds, from which it is logged, and from which writes are refused.
WARN_SKEW = SECOND // 2
MAX_SKEW = 5 * SECOND

# How often, and at what interval, the outcome of an unknown commit is looked up.
MAX_RESOLVE_ATTEMPTS = 10
RESOLVE_INTERVAL_SECONDS = 0.5

WRITE_PROBE_SECONDS = 1.0
PROBE_BYTES = 32 * 1024  # about what the rows and indexes of a message take besides it

STATE_ITEMS_READ = 1_000  # in one transaction
RETRY_SECONDS = 1.0  # of a registration that failed

# The processor time that a transaction may take on SQLite; and how many users, whose messages take
# too long, show that it is not the messages.
TRANSACTION_SECONDS = 2.0
MAX_TOO_LONG = 3


class _PendingBatch(NamedTuple):
    """The slots of one call, which awaits that they are filled; and the users of whom a message is
    to be sent again, with why: nothing that follows it in the call is stored before it."""

    slots: Sequence[Slot]
    filled: PromptFuture[None]
    again: dict[UID, GregorError]

    def finish(self) -> None:
        if not self.filled.done():  # a sender that was cancelled does not undo a commit
            self.filled.set_result(None)

    def fail(self, error: Unavailable) -> None:
        if not self.filled.done():
            self.filled.set_exception(error)


_Piece: TypeAlias = Piece[_PendingBatch]


class SQLStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord on an open Database. Open it with `async with`: the task that commits
    runs inside the block, and if that task fails, the block is cancelled.

    `committed` is called after each commit with the number of messages, the seconds that it took,
    and why it failed, if it did. If other nodes use the database too, every `clock_check_seconds`
    this node is registered as one of them, and the clock is compared with the database's; `skew` is
    by how many microseconds, at least, the database's clock is ahead.

    `schema` is the database's as it was last read: the schema may change while nodes run.

    New messages that would give a user more than the `limits` allow are rejected.

    A database that is one of several shards, or `may_become_shard` while it is open, is asked in
    every transaction whether it holds the users. A file cannot: this process alone can open it.

    On SQLite, a commit may take `transaction_seconds` of processor time.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], Time],
        committed: Callable[[int, float, FailureReason | None], None] = lambda *_: None,
        *,
        clock_check_seconds: float | None = None,
        may_become_shard: bool = True,
        limits: Limits = NO_LIMITS,
        transaction_seconds: float = TRANSACTION_SECONDS,
    ) -> None:
        self.database = database
        self.skew: Time = 0
        self.schema: Schema | None = None
        self._lease = Lease.of_this_process("prune")
        self._registration = None if clock_check_seconds is None else Registration(database)
        self._clock_check_seconds = clock_check_seconds
        self._any_bucket = not may_become_shard
        self._limits = limits
        self._maxima = maxima_of(limits)
        self._counted = CountedUsers()
        self._transaction_seconds = transaction_seconds
        self._clock = clock
        self._committed = committed
        self._queue: CommitQueue[_PendingBatch] = CommitQueue(self._counted.items)
        self._arrival = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._checks: list[asyncio.Task[None]] = []
        self.writes = WriteHealth(monotonic)
        self._refused: InBandMessage | None = None  # the last message whose commit failed
        self._open = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._open = True
        self._tasks.create_task(self._commit_all(), name="commits")
        self._checks = [self._tasks.create_task(self._probe_failing_writes())]
        with suppress(Unavailable):  # `store` and `problems` report it
            await self.read_schema()
        if self._clock_check_seconds is not None:
            await self._check_clock()
            self._checks.append(
                self._tasks.create_task(self._check_clock_periodically(self._clock_check_seconds))
            )
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Commit the queued messages first."""
        self._open = False
        self._arrival.set()
        for check in self._checks:
            check.cancel()
        # The task group must not get the block's error: it would cancel the task that commits.
        await self._tasks.__aexit__(None, None, None)
        if self._registration is not None:
            await self._registration.end()

    # The schema

    async def read_schema(self) -> None:
        """Read again which schema the database has. Raises NodeTooOld if this code may not write
        to it, and StorageUnavailable."""
        self.schema = await self.database.read(read_schema)
        if self.schema is not None:
            require_not_too_old(self.schema.oldest_writer)

    async def has_schema(self, revision: str) -> bool:
        """Whether the database has what this revision has added. Raises StorageUnavailable."""
        if self.schema is None or not self.schema.has(revision):
            await self.read_schema()
        return self.schema is not None and self.schema.has(revision)

    async def require_schema(self, revision: str) -> None:
        """Raises NotMigrated unless the database has what this revision has added."""
        if not await self.has_schema(revision):
            raise NotMigrated(
                f"the database does not have schema {revision} yet: run `gregor migrate`; retry"
            )

    async def deployment(self) -> Deployment | None:
        """None until the database has schema 0009, and while a node runs whose code is older."""
        return await self.database.read(read_common_deployment)

    # Consuming

    def _require_writable(self) -> None:
        if not self._open:
            raise Unavailable("the store is closed or closing")
        self._require_right_clock()

    async def store(self, slots: Sequence[Slot]) -> None:
        self._require_writable()
        if not slots:
            return
        filled: PromptFuture[None] = PromptFuture(loop=asyncio.get_running_loop())
        pending = _PendingBatch(slots, filled, {})
        if not self._queue.add(pending):
            raise Unavailable("too many messages are queued; send them again later")
        self._arrival.set()
        await filled

    async def _commit_all(self) -> None:
        try:
            while self._open or self._queue:
                if self._queue:
                    await self._commit(self._queue.take())
                else:
                    self._arrival.clear()
                    await self._arrival.wait()
        finally:
            # Every pending caller gets an answer, however this task ends.
            self._open = False
            for pending in self._queue.take_all():
                pending.fail(Unavailable("the store has closed; send the message again"))

    async def _commit(self, pieces: Sequence[_Piece]) -> None:
        slots = [slot for piece in pieces for slot in _without_refused(piece)]
        start = perf_counter()
        try:
            outcomes = await self._store_within_limit(slots) if slots else []
        except StorageUnavailable as error:
            self._committed(len(slots), perf_counter() - start, failure_reason(error))
            self._refused = slots[0].message
            self.writes.failed(str(error))
            self._fail(pieces, error)
            return
        except BaseException as error:
            self._fail(
                pieces, Unavailable("the store has failed", detail=f"the store has failed: {error}")
            )
            raise
        if slots:
            self._committed(len(slots), perf_counter() - start, None)
        if any(isinstance(outcome, Stored) for outcome in outcomes):  # others may write nothing
            self.writes.succeeded()
        # Only now: a transaction may run more than once, and decides with its commit.
        for slot, outcome in zip(slots, outcomes, strict=True):
            slot.outcome = outcome
        for piece in pieces:
            if piece.is_last:
                piece.batch.finish()
            else:
                _refuse_what_follows(piece)

    def _fail(self, pieces: Iterable[_Piece], error: Unavailable) -> None:
        for piece in pieces:
            piece.batch.fail(error)
            self._queue.drop(piece.batch)

    async def _store_within_limit(self, slots: Sequence[Slot]) -> Sequence[StoreOutcome]:
        """Store messages. If they take too long together, each user's are stored by themselves, and
        those that take too long alone are Rejected with that error."""
        try:
            return await self._store_slots(slots)
        except TransactionTooLong as error:
            by_user: defaultdict[UID, list[int]] = defaultdict(list)
            for place, slot in enumerate(slots):
                by_user[slot.message.uid].append(place)
            if len(by_user) == 1:
                return _rejected(slots, error)
        outcomes: dict[int, StoreOutcome] = {}
        stored = rejected = 0
        for places in by_user.values():
            own = [slots[place] for place in places]
            try:
                outcomes.update(zip(places, await self._store_slots(own), strict=True))
                stored += 1
            except TransactionTooLong as error:
                rejected += 1
                if rejected == MAX_TOO_LONG and not stored:
                    raise  # it is not their messages: the store is slow
                outcomes.update(zip(places, _rejected(own, error), strict=True))
        return [outcomes[place] for place in range(len(slots))]

    async def _store_slots(self, slots: Sequence[Slot]) -> list[StoreOutcome]:
        # Most ids are new, so they are not looked up first, which would add a fifth to the cost.
        # The table has a unique constraint on ids: at worst, the transaction is done again with
        # the look-up.
        now = self._clock()
        if not any(slot.message.stamped for slot in slots):
            try:
                return await self._consume(consume_new, slots, now)
            except UniqueViolation:
                pass
            except CommitUnknown as unknown:
                return await self._resolve_unknown_commit(slots, now, unknown.result)
        try:
            return await self._store_or_find(slots, now)
        except CommitUnknown as unknown:
            return await self._resolve_unknown_commit(slots, now, unknown.result)

    async def _store_or_find(self, slots: Sequence[Slot], now: Time) -> list[StoreOutcome]:
        """Store messages, of which some may be stored already."""
        return await self._consume(consume, slots, now)

    async def _consume(
        self, consume: Consume, slots: Sequence[Slot], now: Time
    ) -> list[StoreOutcome]:
        allowance = self._new_allowance(now)

        def store_within_limit(connection: DatabaseConnection) -> list[StoreOutcome]:
            connection.give_up_after(self._transaction_seconds)
            return consume(connection, slots, now, any_bucket=self._any_bucket, allowance=allowance)

        outcomes = await self.database.write(store_within_limit)
        if allowance is not None:
            allowance.committed()
        return outcomes

    def _new_allowance(self, now: Time) -> Allowance | None:
        """What users may still have; None if that is not limited."""
        if self._maxima is None:
            return None
        return Allowance(self._limits, self._maxima, self._counted, now)

    async def _resolve_unknown_commit(
        self, slots: Sequence[Slot], now: Time, expected: list[StoreOutcome]
    ) -> list[StoreOutcome]:
        """Store messages again whose commit is unknown, and reconcile the outcomes with the
        `expected` ones: under the locks on their users, it is certain which are stored. Messages
        that are stored keep their expected outcome."""
        for attempts_left in reversed(range(MAX_RESOLVE_ATTEMPTS)):
            try:
                return reconcile(await self._store_or_find(slots, now), expected)
            except CommitUnknown as unknown:
                expected = reconcile(unknown.result, expected)
                if not attempts_left:
                    raise
            except StorageUnavailable:
                if not attempts_left:
                    raise
            await asyncio.sleep(RESOLVE_INTERVAL_SECONDS)
        raise AssertionError("the last attempt returns or raises")

    # Erasing

    async def erasure(self, uid: UID) -> Erasure:
        return await self._read_user(uid, lambda c: read_erasure(c, uid))

    async def erase(self, uid: UID, others: Collection[str] = ()) -> EraseResult:
        """Erase the user in this database, and record there that the `others`, which are shards,
        may have old copies. On SQLite no body is left in the file afterwards."""
        self._require_writable()
        now = self._clock()
        erasure = await self.database.write(
            lambda c: erase(c, uid, now, others, any_bucket=self._any_bucket)
        )
        await self.database.scrub()
        return EraseResult(erasure)

    # Exporting and importing

    async def users_after(self, uid: UID, limit: int) -> Sequence[UID]:
        return await self.database.read(lambda c: users_after(c, uid, limit))

    async def export_page(self, uid: UID, place: ExportPlace) -> ExportPage:
        return await self._read_user(uid, lambda c: read_export_page(c, uid, place))

    async def import_parts(
        self, parts: Sequence[ImportPart], others: Collection[str] = ()
    ) -> Sequence[Sequence[Verdict]]:
        """What is erased by them is recorded for the `others`, which are shards."""
        self._require_writable()
        now = self._clock()
        imported = await self.database.write(
            lambda c: import_parts(c, parts, now, others, any_bucket=self._any_bucket)
        )
        if imported.erases:
            await self.database.scrub()
        return imported.verdicts

    async def backup(self) -> IO[bytes]:
        if not isinstance(self.database, SQLiteDatabase):
            return await super().backup()
        return await self.database.backup()

    # Whether writes fail

    async def _probe_failing_writes(self) -> None:
        """While writes fail, try whether they would succeed, because no more may come."""
        while True:
            await self.writes.failing.wait()
            await asyncio.sleep(WRITE_PROBE_SECONDS)
            if self.writes.failing.is_set():
                await self._probe_write()

    async def _probe_write(self) -> None:
        """Commit a transaction that has stored a message, which failed, and undone it: that needs
        the same privileges. What is undone needs no space, so it also writes as much as that, which
        is deleted afterwards."""
        message = self._refused
        assert message is not None
        now = self._clock()
        filling = token_hex((len(json_of(message)) + PROBE_BYTES) // 2)
        lease = {"name": "write probe", "holder": filling}

        def rehearse(connection: DatabaseConnection) -> None:
            connection.execute_sql("SAVEPOINT rehearsal")
            consume(connection, [Slot(message)], now, any_bucket=self._any_bucket)
            connection.execute_sql("ROLLBACK TO SAVEPOINT rehearsal")
            connection.execute(statements.TAKE_LEASE, **lease, duration=0)

        try:
            await self.database.write(rehearse)
            await self.database.write(lambda c: c.execute(statements.DELETE_LEASE, **lease))
        except (StorageUnavailable, UniqueViolation) as error:
            self.writes.failed(str(error))
        else:
            self.writes.succeeded()

    # The clock

    async def _check_clock_periodically(self, seconds: float) -> None:
        while True:
            # Until it is registered again, the node is not ready.
            failed = self._registration is not None and self._registration.problem is not None
            await asyncio.sleep(min(seconds, RETRY_SECONDS) if failed else seconds)
            await self._check_clock()

    async def _check_clock(self) -> None:
        if self._registration is not None:
            await self._registration.renew()
        before = self._clock()
        try:
            database_time = await self.database.read(read_database_clock)
        except StorageUnavailable:
            return  # `store` and `problems` report it
        if database_time is None:
            return
        # The database read its clock at some moment in between, so only the rest of the difference
        # is certain.
        self.skew = max(database_time - self._clock(), 0) or min(database_time - before, 0)
        if abs(self.skew) > WARN_SKEW:
            log.warning(LogEvent("clock skew", reason=self._describe_skew()))

    def _require_right_clock(self) -> None:
        if abs(self.skew) > MAX_SKEW:
            raise ClockSkew(self._describe_skew())

    def _describe_skew(self) -> str:
        side = "behind" if self.skew > 0 else "ahead of"
        skew = f"this machine's clock is {abs(self.skew) / SECOND:.1f} s {side} the database's"
        return f"{skew}; synchronise both with NTP"

    # Pruning

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        """Raises LeaseHeld if another node prunes this database, and ClockSkew: a clock that is
        ahead would forget too much. After the last step of a walk on SQLite, the file has given
        back its space, and nothing of what was pruned can be read in it."""
        self._require_right_clock()
        now = self._clock()
        step = await self.database.write(
            lambda c: prune(c, self._lease, cutoff, after, now, any_bucket=self._any_bucket)
        )
        if step.last is None:
            await self.database.scrub()
        return step

    # Reading

    @property
    def history(self) -> Hashable:
        return self.database.history

    async def state_page(
        self,
        uid: UID,
        query: StateQuery,
        at: TimeOrOffset | None = None,
        start: PageStart | None = None,
    ) -> StatePage:
        if query.limit is None and query.max_bytes is None:
            with suppress(HistoryForgotten):  # meanwhile, or before: then it is read at once
                return await self._whole_state(uid, query, at, start)
        now = self._clock()
        at_time = None if at is None else at.after(now)
        if start is not None:
            return await self._read_user(uid, lambda c: read_next_state_page(c, uid, query, start))
        return await self._read_user(uid, lambda c: read_state_page(c, uid, query, now, at_time))

    async def _whole_state(
        self, uid: UID, query: StateQuery, at: TimeOrOffset | None, start: PageStart | None
    ) -> StatePage:
        """All that is asked for, read in pages, which are of one instant: others get their turn
        between two of them."""
        paged = structs.replace(query, limit=STATE_ITEMS_READ)
        first = page = await self.state_page(uid, paged, at, start)
        items = list(first.items)
        while page.next is not None:
            page = await self.state_page(uid, paged, start=page.next)
            items += page.items
        return structs.replace(first, items=tuple(items), next=None)

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        now = self._clock()
        start = Since(since.after(now))
        return await self._read_user(uid, lambda c: read_since(c, uid, device_id, start, now))

    async def messages_page(
        self, uid: UID, device_id: DeviceID | None, start: Start, limits: PageLimits
    ) -> Page:
        now = self._clock()
        return await self._read_user(
            uid, lambda c: read_page(c, uid, device_id, start, now, limits)
        )

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        now = self._clock()
        return await self._read_user(uid, lambda c: read_sync(c, uid, device_id, cursor, now))

    async def items(self, uid: UID, ctimes: Sequence[Time]) -> Sequence[Item]:
        return await self._read_user(uid, lambda c: read_items(c, uid, ctimes))

    async def count(
        self, uid: UID, device_id: DeviceID | None, prefixes: Sequence[Category]
    ) -> Counts:
        now = self._clock()
        return await self._read_user(uid, lambda c: read_counts(c, uid, device_id, prefixes, now))

    async def count_by_segment(
        self, uid: UID, device_id: DeviceID | None, prefix: Category
    ) -> Counts:
        now = self._clock()
        return await self._read_user(uid, lambda c: read_segments(c, uid, device_id, prefix, now))

    async def item_history(self, uid: UID, msg_id: MsgID) -> ItemHistory:
        now = self._clock()
        return await self._read_user(uid, lambda c: read_item_history(c, uid, msg_id, now))

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        return await self.database.read(
            lambda c: read_user_clocks(c, uids, any_bucket=self._any_bucket)
        )

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        now = self._clock()
        return await self.database.write(
            lambda c: check_hashes(c, uids, now, any_bucket=self._any_bucket)
        )

    async def _read_user(self, uid: UID, work: Work[T]) -> T:
        """Run work that reads one user. Raises WrongShard if another shard holds the user."""
        if self._any_bucket:
            return await self.database.read(work)

        def read_if_held(connection: DatabaseConnection) -> T:
            raise_if_wrong_shard(connection, uid)
            return work(connection)

        return await self.database.read(read_if_held)

    def known_problems(self) -> list[str]:
        return self.writes.problems()

    async def problems(self) -> list[str]:
        problems = [self._describe_skew()] if abs(self.skew) > MAX_SKEW else []
        try:
            await self.database.check_role()
            await self.ctimes([])  # reads a table: the server may be up, and its tables lost
            await self.read_schema()
        except GregorError as error:
            problems.append(str(error))
        else:
            if self._registration is not None and self._registration.problem is not None:
                problems.append(self._registration.problem)
        if self.writes.reason not in problems:  # such a reason is a problem of its own
            problems += self.writes.problems()
        return problems


def _rejected(slots: Sequence[Slot], error: TransactionTooLong) -> list[StoreOutcome]:
    """The outcomes of messages of one user that take too long to store."""
    log.warning(LogEvent("messages took too long to store", uid=slots[0].message.uid))
    return [Rejected(slot.message, error) for slot in slots]


def _refuse_what_follows(piece: _Piece) -> None:
    """After messages that are to be sent again, refuse later ones of their users in the same
    batch."""
    for slot in piece.slots:
        if isinstance(slot.outcome, Rejected) and slot.outcome.error.action is Action.RETRY:
            piece.batch.again.setdefault(slot.message.uid, slot.outcome.error)


def _without_refused(piece: _Piece) -> Sequence[Slot]:
    """The slots that are to be stored. The others are filled."""
    again = piece.batch.again
    if not again:
        return piece.slots
    for slot in piece.slots:
        if (error := again.get(slot.message.uid)) is not None:
            slot.outcome = Rejected(slot.message, error)
    return [slot for slot in piece.slots if slot.message.uid not in again]


def reconcile(
    actual: Sequence[StoreOutcome], expected: Sequence[StoreOutcome]
) -> list[StoreOutcome]:
    """The outcomes for the senders. If a message that was expected to be Stored is now a Duplicate,
    the unknown commit has stored it, so it is Stored."""
    return [
        wanted if _has_stored(wanted, found) else found
        for found, wanted in zip(actual, expected, strict=True)
    ]


def _has_stored(expected: StoreOutcome, found: StoreOutcome) -> bool:
    match expected, found:
        case Stored(wanted), Duplicate(stored):
            return wanted == stored
        case _:
            return False
