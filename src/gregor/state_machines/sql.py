"""The state machine of record on a database, SQLite or PostgreSQL.

Concurrent messages of many users are committed together (group commit): while one transaction is
under way the next batch gathers, and a message that is alone does not wait for company.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple, Self

import structlog

from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage
from gregor.core.state import State, Sync
from gregor.errors import ClockSkew, GregorError, StorageUnavailable, Unavailable
from gregor.interfaces import Duplicate, Outcome, StateMachineOfRecord, Stored
from gregor.state_machines.transactions import (
    consume,
    consume_new,
    read_clock,
    read_clocks,
    read_since,
    read_state,
    read_sync,
)
from gregor.storage.database import AlreadyThere, Database, OutcomeUnknown

log = structlog.get_logger("gregor.state_machine")

MOST_IN_A_COMMIT = 1_000
MOST_WAITING = 50_000

# How far this machine's clock may be from the database's: then it is told, then writes are refused.
SUSPECT_SKEW = SECOND // 2
MOST_SKEW = 5 * SECOND

# How often, and how long apart, a commit without an answer is looked for.
LOOKS = 10
LOOK_SECONDS = 0.5


class _Waiting(NamedTuple):
    messages: Sequence[InBandMessage]
    outcomes: "asyncio.Future[list[Outcome]]"


class SQLStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord on an open Database. To be opened itself, with `async with`: inside
    it, the task that commits is at work; should that task fail, the block is cancelled.

    `committed` hears of each commit: how many messages, how many seconds it took, and whether the
    database has taken it. Every `compare_seconds` the clock is compared with the database's, where
    that is another one; `skew` is by how many microseconds, at the least, the database's is ahead.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], Time],
        committed: Callable[[int, float, bool], None] = lambda messages, seconds, taken: None,
        *,
        compare_seconds: float | None = None,
    ) -> None:
        self.database = database
        self.skew: Time = 0
        self._compare_seconds = compare_seconds
        self._clock = clock
        self._committed = committed
        self._waiting: deque[_Waiting] = deque()
        self._waiting_messages = 0
        self._arrival = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._comparing: asyncio.Task[None] | None = None
        self._open = False

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._open = True
        self._tasks.create_task(self._commit_all(), name="commits")
        if self._compare_seconds is not None:
            await self._compare_clocks()
            self._comparing = self._tasks.create_task(self._keep_comparing(self._compare_seconds))
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """What was accepted is committed first."""
        self._open = False
        self._arrival.set()
        if self._comparing is not None:
            self._comparing.cancel()
        await self._tasks.__aexit__(None, None, None)  # what was in the block is not the group's

    # Consuming

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        if not self._open:
            raise Unavailable("the store is closed or closing")
        if abs(self.skew) > MOST_SKEW:
            raise ClockSkew(self._apart())
        if self._waiting_messages + len(messages) > MOST_WAITING:
            raise Unavailable("too many messages wait to be stored; send them again later")
        waiting = _Waiting(messages, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_messages += len(messages)
        self._arrival.set()
        return await waiting.outcomes

    async def _commit_all(self) -> None:
        try:
            while self._open or self._waiting:
                if self._waiting:
                    await self._commit(self._gather())
                else:
                    self._arrival.clear()
                    await self._arrival.wait()
        finally:
            # Nobody may be left waiting, however this ends.
            self._open = False
            _fail(self._waiting, Unavailable("the store has closed; send the message again"))

    def _gather(self) -> list[_Waiting]:
        """What goes into the next commit: all that waits, up to a size; at least one."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and (
            not batch or size + len(self._waiting[0].messages) <= MOST_IN_A_COMMIT
        ):
            batch.append(self._waiting.popleft())
            size += len(batch[-1].messages)
        self._waiting_messages -= size
        return batch

    async def _commit(self, batch: Sequence[_Waiting]) -> None:
        messages = [message for waiting in batch for message in waiting.messages]
        start = perf_counter()
        try:
            outcomes = await self._store(messages)
        except StorageUnavailable as error:
            self._committed(len(messages), perf_counter() - start, False)
            _fail(batch, error)
            return
        except BaseException as error:
            _fail(batch, Unavailable(f"the store has failed: {error}"))
            raise
        self._committed(len(messages), perf_counter() - start, True)
        for waiting in batch:
            share, outcomes = outcomes[: len(waiting.messages)], outcomes[len(waiting.messages) :]
            if not waiting.outcomes.done():  # a sender who gave up does not undo a commit
                waiting.outcomes.set_result(share)

    async def _store(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        # Most ids are new, so they are not looked up first, which would cost a fifth of it all.
        # The table takes no id twice, so that nothing can go wrong but that it is done again.
        now = self._clock()
        if not any(message.stamped for message in messages):
            try:
                return await self.database.write(lambda c: consume_new(c, messages, now))
            except AlreadyThere:
                pass
            except OutcomeUnknown as unknown:
                return await self._look(messages, now, unknown.result)
        try:
            return await self.database.write(lambda c: consume(c, messages, now))
        except OutcomeUnknown as unknown:
            return await self._look(messages, now, unknown.result)

    async def _look(
        self, messages: Sequence[InBandMessage], now: Time, told: list[Outcome]
    ) -> list[Outcome]:
        """Store messages of which the database was `told` before, and which it may have: the
        lock on their users shows whether. Those that it has are what they were said to be."""
        for looks_left in reversed(range(LOOKS)):
            try:
                found = await self.database.write(lambda c: consume(c, messages, now))
                return recognised(found, told)
            except OutcomeUnknown as unknown:
                told = recognised(unknown.result, told)
                if not looks_left:
                    raise
            except StorageUnavailable:
                if not looks_left:
                    raise
            await asyncio.sleep(LOOK_SECONDS)
        raise AssertionError("the last look returns or raises")

    # The clock

    async def _keep_comparing(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self._compare_clocks()

    async def _compare_clocks(self) -> None:
        before = self._clock()
        try:
            theirs = await self.database.read(read_clock)
        except StorageUnavailable:
            return  # who writes, and who asks for troubles, hears of that
        if theirs is None:
            return
        # They looked at theirs somewhere between: the rest of the difference is beyond doubt.
        self.skew = max(theirs - self._clock(), 0) or min(theirs - before, 0)
        if abs(self.skew) > SUSPECT_SKEW:
            log.warning("the clocks differ", says=self._apart())

    def _apart(self) -> str:
        side = "behind" if self.skew > 0 else "ahead of"
        apart = f"this machine's clock is {abs(self.skew) / SECOND:.1f} s {side} the database's"
        return f"{apart}; set both by NTP"

    # Asking

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        now = self._clock()
        when = None if at is None else at.after(now)
        return await self.database.read(lambda c: read_state(c, uid, device_id, now, when))

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> list[InBandMessage]:
        now = self._clock()
        start = since.after(now)
        return await self.database.read(lambda c: read_since(c, uid, device_id, start, now))

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        now = self._clock()
        return await self.database.read(lambda c: read_sync(c, uid, device_id, cursor, now))

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        return await self.database.read(lambda c: read_clocks(c, uids))

    async def troubles(self) -> list[str]:
        troubles = [self._apart()] if abs(self.skew) > MOST_SKEW else []
        try:
            await self.ctimes([])  # one that answers may still have lost its tables
        except GregorError as error:
            troubles.append(error.message)
        return troubles


def recognised(found: Sequence[Outcome], told: Sequence[Outcome]) -> list[Outcome]:
    """What is found to be known already, and was said to be stored now, was stored now."""
    return [
        then if isinstance(then, Stored) and now == Duplicate(then.message) else now
        for now, then in zip(found, told, strict=True)
    ]


def _fail(batch: Iterable[_Waiting], error: Unavailable) -> None:
    for waiting in batch:
        if not waiting.outcomes.done():
            waiting.outcomes.set_exception(error)
