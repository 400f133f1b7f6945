"""The state machine of record over several shards: each user is in one of them.

It routes by its copy of the shard map, which may be out of date: a shard rejects a bucket that it
does not hold and names the holder, and the copy is corrected from that error.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from operator import methodcaller
from typing import Any, Self, TypeVar

from gregor.core.buckets import bucket_of
from gregor.core.deployment import Deployment
from gregor.core.export import ExportPage, ExportPlace, ImportPart, Verdict
from gregor.core.history import Cutoff
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.item_history import ItemHistory
from gregor.core.message import UID, Category, DeviceID, InBandMessage, MsgID
from gregor.core.state import Counts, Item
from gregor.core.state_page import PageStart, StatePage, StateQuery
from gregor.core.sync import Page, PageLimits, Start, Sync
from gregor.errors import NodeTooOld, SetupError, Unavailable, WrongShard
from gregor.interfaces import EraseResult, Erasure, PruneStep, Rejected, Slot, StateMachineOfRecord
from gregor.log_event import LogEvent
from gregor.shards import shard_map
from gregor.shards.erasures import remove_copies
from gregor.stores.sql.database import Database
from gregor.stores.sql.deployment import read_deployment
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.statements import Placement
from gregor.stores.sql.transactions import wrong_shards

log = logging.getLogger("gregor.shards")

T = TypeVar("T")
E = TypeVar("E", bound=Unavailable)

PROBE_INTERVAL_SECONDS = 1.0
SHARD_TIMEOUT_SECONDS = 2.0

# A bucket is closed for half a second at most, but again with each attempt to move it.
WRONG_SHARD_TIMEOUT_SECONDS = 5.0
WRONG_SHARD_RETRY_SECONDS = 0.02


class Shard:
    """One of the shards. While it is known to be down, calls fail at once. It has a queue and
    connections of its own, so a slow shard does not delay calls to the others. A shard that
    answers after it was down, or for the first time, may be another database, or one restored from
    a backup: it is not up until it is `admitted`. One that accepts no messages from code as old as
    this node's has a `write_problem`, and is read all the same.
    """

    def __init__(
        self,
        name: str,
        machine: SQLStateMachine,
        shards: Collection[str],
        admit: Callable[["Shard"], Awaitable[None]],
    ) -> None:
        self.name = name
        self.machine = machine
        self.problem: str | None = None
        self.write_problem: str | None = None
        self.admitted = False
        self.deployment: Deployment | None = None
        self._shards = shards
        self._admit = admit
        self._answered_at = 0.0

    async def call(self, method: Callable[[SQLStateMachine], Awaitable[T]]) -> T:
        """The result of a call to the shard. Raises Unavailable with the name of the shard, and
        WrongShard as it is."""
        if self.problem is not None:
            raise Unavailable(
                f"shard {self.name!r} does not answer; retry later",
                detail=f"shard {self.name!r}: {self.problem}",
            )
        try:
            result = await method(self.machine)
        except WrongShard:
            raise
        except Unavailable as error:
            name = f"shard {self.name!r}"
            raise Unavailable(f"{name}: {error.message}", detail=f"{name}: {error}") from error
        self._answered_at = asyncio.get_running_loop().time()
        return result

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        """A step of pruning this shard alone."""
        return await self.call(lambda machine: machine.prune(cutoff, after))

    def problems(self) -> list[str]:
        """Why the shard does not answer, or takes no writes; empty if it does."""
        problem = self.problem or self.write_problem
        problems = self.machine.writes.problems() if problem is None else [problem]
        return [f"shard {self.name!r}: {problem}" for problem in problems]

    async def probe_periodically(self) -> None:
        """Check periodically whether the shard answers."""
        while True:
            await self.probe()
            await asyncio.sleep(PROBE_INTERVAL_SECONDS)

    async def verify_identity(self) -> None:
        """Raises SetupError if the database is not this shard, Unavailable if it is down. Reads
        its `deployment`."""
        name = await self.machine.database.read(shard_map.name_here)
        shard_map.require_name(self.name, name, self._shards)
        self.deployment = await self.machine.database.read(read_deployment)

    async def exchange(self, placements: Iterable[Placement]) -> list[Placement]:
        """Merge these placements into the shard's map, and return those that are newer there.
        Idempotent."""
        known = list(placements)
        return await self.machine.database.write(lambda c: shard_map.exchange(c, known))

    async def probe(self) -> None:
        """Check whether the shard answers, set `problem`, and log if that has changed."""
        before, probing = self.problem, asyncio.create_task(self._probe())
        try:
            while not (await asyncio.wait({probing}, timeout=SHARD_TIMEOUT_SECONDS))[0]:
                # A busy shard delays the probe, but answers other calls meanwhile.
                if asyncio.get_running_loop().time() - self._answered_at > SHARD_TIMEOUT_SECONDS:
                    self.problem = f"it has not answered for {SHARD_TIMEOUT_SECONDS:.0f} s"
            self.problem = probing.result()
        finally:
            probing.cancel()
        if self.problem is not None and before is None:
            log.warning(LogEvent("shard down", shard=self.name, reason=self.problem))
        elif self.problem is None and before is not None:
            log.info(LogEvent("shard up again", shard=self.name))

    async def _probe(self) -> str | None:
        try:
            if not self.admitted:
                await self.verify_identity()
                await self._admit(self)
            await self.machine.database.check_role()
            await self.machine.ctimes([])
            self.write_problem = await self._reason_for_refused_writes()
        except (Unavailable, SetupError) as error:
            self.admitted = False
            return str(error)
        self._answered_at = asyncio.get_running_loop().time()
        return None

    async def _reason_for_refused_writes(self) -> str | None:
        try:
            await self.machine.read_schema()
        except NodeTooOld as error:
            return str(error)
        return None


class ShardedStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord over one state machine for each shard, by name, on open databases.
    Open it with `async with`; that raises SetupError if the shard map in the databases does not
    fit these shards.

    A shard that is down affects its own users only: their messages are Rejected with Unavailable,
    and may be retried.
    """

    def __init__(self, machines: Mapping[str, SQLStateMachine]) -> None:
        self.shards = {
            name: Shard(name, machine, machines, self._admit) for name, machine in machines.items()
        }
        self._map: dict[int, Placement] = {}
        self._tasks = asyncio.TaskGroup()
        self._probes: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for shard in self.shards.values():
                await stack.enter_async_context(shard.machine)
            await self._read_map()
            await self._tasks.__aenter__()
            self._probes = [
                self._tasks.create_task(shard.probe_periodically())
                for shard in self.shards.values()
            ]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._probes:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._stack.__aexit__(None, None, None)

    @property
    def databases(self) -> dict[str, Database]:
        return {name: shard.machine.database for name, shard in self.shards.items()}

    @property
    def skew(self) -> Time:
        """The largest clock skew of all shards, in microseconds, with its sign."""
        return max((shard.machine.skew for shard in self.shards.values()), key=abs)

    async def deployment(self) -> Deployment | None:
        """That of all shards that answer. Raises Unavailable if none does. None until all of these
        are of one."""
        answers: list[Deployment | None] = []
        for shard in self.shards.values():
            with suppress(Unavailable):
                answers.append(await shard.call(methodcaller("deployment")))
        if not answers:
            raise Unavailable(f"no shard answers: {'; '.join(self.partial_problems())}")
        return answers[0] if all(answer == answers[0] for answer in answers) else None

    # Consuming

    async def store(self, slots: Sequence[Slot]) -> None:
        await self._store_once(slots)
        clock = asyncio.get_running_loop().time
        deadline = clock() + WRONG_SHARD_TIMEOUT_SECONDS
        while (misplaced := _misplaced(slots)) and clock() <= deadline:
            await self._learn_placements(misplaced.values())
            await self._store_once(list(misplaced))
        errors = [error for slot in slots if (error := _error(slot, Unavailable)) is not None]
        if errors and len(errors) == len(slots):
            raise errors[0]  # no shard accepted anything: as a single state machine does

    async def _store_once(self, slots: Sequence[Slot]) -> None:
        """Give each message to the shard of its user."""
        by_shard: defaultdict[str, list[Slot]] = defaultdict(list)
        for slot in slots:
            by_shard[self._map[bucket_of(slot.message.uid)].shard].append(slot)
        if len(by_shard) == 1:  # without a task, the call starts at once
            await self._store_in_shard(*by_shard.popitem())
        else:
            await asyncio.gather(*(self._store_in_shard(*item) for item in by_shard.items()))

    async def _store_in_shard(self, name: str, slots: Sequence[Slot]) -> None:
        """If the shard is unavailable, each message is Rejected with that error."""
        try:
            await self._shard(name).call(lambda machine: machine.store(slots))
        except Unavailable as error:
            for slot in slots:
                slot.outcome = Rejected(slot.message, error.as_value())

    async def _learn_placements(self, errors: Iterable[WrongShard]) -> None:
        """Learn placements from these errors: one for each bucket."""
        by_bucket = {error.bucket: error for error in errors}
        for error in by_bucket.values():
            try:
                await self._learn_placement(error)
            except Unavailable:
                await asyncio.sleep(WRONG_SHARD_RETRY_SECONDS)

    # Erasing

    async def erasure(self, uid: UID) -> Erasure:
        return await self._call_holder(uid, lambda machine: machine.erasure(uid))

    async def erase(self, uid: UID) -> EraseResult:
        names = self._shard_names()

        async def erase_on(machine: SQLStateMachine) -> tuple[SQLStateMachine, Erasure]:
            return machine, (await machine.erase(uid, names)).erasure

        holder, erasure = await self._call_holder(uid, erase_on)
        others = sorted(name for name in names if not self._is(name, holder))
        done = await asyncio.gather(*(self._remove_copies(holder, name) for name in others))
        pending = (name for name, is_done in zip(others, done, strict=True) if not is_done)
        return EraseResult(erasure, tuple(pending))

    def _shard_names(self) -> set[str]:
        """All shards that are known, also those which this node cannot reach."""
        return {*self.shards, *(placement.shard for placement in self._map.values())}

    def _is(self, name: str, machine: SQLStateMachine) -> bool:
        return name in self.shards and self.shards[name].machine is machine

    async def _remove_copies(self, recorder: SQLStateMachine, name: str) -> bool:
        """Remove from a shard what the recorder has recorded for it; return whether that is done.
        If the shard does not answer, it is done before it is admitted again."""
        shard = self.shards.get(name)
        if shard is None:
            return False  # this node does not know it
        try:
            return await shard.call(lambda machine: remove_copies(recorder, name, machine))
        except Unavailable:
            shard.admitted = False
            return False

    # Reading

    @property
    def history(self) -> Hashable:
        """That of all shards: users of the others read once more than they need."""
        return tuple(shard.machine.history for shard in self.shards.values())

    async def state_page(
        self,
        uid: UID,
        query: StateQuery,
        at: TimeOrOffset | None = None,
        start: PageStart | None = None,
    ) -> StatePage:
        return await self._call_holder(
            uid, lambda machine: machine.state_page(uid, query, at, start)
        )

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> Sequence[InBandMessage]:
        return await self._call_holder(
            uid, lambda machine: machine.in_band_messages_since(uid, device_id, since)
        )

    async def messages_page(
        self, uid: UID, device_id: DeviceID | None, start: Start, limits: PageLimits
    ) -> Page:
        return await self._call_holder(
            uid, lambda machine: machine.messages_page(uid, device_id, start, limits)
        )

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        return await self._call_holder(uid, lambda machine: machine.sync(uid, device_id, cursor))

    async def items(self, uid: UID, ctimes: Sequence[Time]) -> Sequence[Item]:
        return await self._call_holder(uid, lambda machine: machine.items(uid, ctimes))

    async def count(
        self, uid: UID, device_id: DeviceID | None, prefixes: Sequence[Category]
    ) -> Counts:
        return await self._call_holder(uid, lambda machine: machine.count(uid, device_id, prefixes))

    async def count_by_segment(
        self, uid: UID, device_id: DeviceID | None, prefix: Category
    ) -> Counts:
        return await self._call_holder(
            uid, lambda machine: machine.count_by_segment(uid, device_id, prefix)
        )

    async def item_history(self, uid: UID, msg_id: MsgID) -> ItemHistory:
        return await self._call_holder(uid, lambda machine: machine.item_history(uid, msg_id))

    async def _call_holder(self, uid: UID, method: Callable[[SQLStateMachine], Awaitable[T]]) -> T:
        """Call the shard that holds the user; retry while the user's bucket moves."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + WRONG_SHARD_TIMEOUT_SECONDS
        while True:
            shard = self._shard(self._map[bucket_of(uid)].shard)
            try:
                return await shard.call(method)
            except WrongShard as error:
                if clock() > deadline:
                    raise
                await self._learn_placement(error)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        """Users of shards that do not answer are left out. Raises Unavailable if none answers."""
        placements = {uid: self._map[bucket_of(uid)] for uid in uids}
        clocks = await self._ctimes_once(uids)
        # Users of moved buckets may be left out too; the new placements are known by now.
        moved = [
            uid
            for uid, placement in placements.items()
            if uid not in clocks and self._map[bucket_of(uid)] != placement
        ]
        return {**clocks, **await self._ctimes_once(moved)} if moved else clocks

    async def _ctimes_once(self, uids: Sequence[UID]) -> dict[UID, Time]:
        results = await asyncio.gather(
            *(self._ctimes_in_shard(*item) for item in self._by_shard(uids).items()),
            return_exceptions=True,
        )
        clocks: dict[UID, Time] = {}
        failures: list[Unavailable] = []
        for result in results:
            match result:
                case Unavailable():
                    failures.append(result)
                case BaseException():
                    raise result
                case _:
                    clocks |= result
        if failures and len(failures) == len(results):
            raise failures[0]
        return clocks

    async def _ctimes_in_shard(self, name: str, uids: Sequence[UID]) -> Mapping[UID, Time]:
        """The clocks of users of one shard. Learns the placements of users that it left out."""
        shard = self._shard(name)
        try:
            async with asyncio.timeout(SHARD_TIMEOUT_SECONDS):
                clocks = await shard.call(lambda machine: machine.ctimes(uids))
                missing = {bucket_of(uid) for uid in uids if uid not in clocks}
                if missing:
                    for error in await shard.machine.database.read(
                        lambda c: wrong_shards(c, missing)
                    ):
                        await self._learn_placement(error)
        except TimeoutError:
            raise Unavailable(f"shard {name!r} has not answered in time") from None
        return clocks

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        """One shard after the other. The text of a place begins with the name of its shard."""
        names = [*self.shards]
        name, _, place = after.partition("\0") if after else (names[0], "", "")
        step = await self._shard(name).prune(cutoff, place)
        if step.last is not None:
            return step._replace(last=f"{name}\0{step.last}")
        following = [f"{other}\0" for other in names[names.index(name) + 1 :]]
        return step._replace(last=following[0] if following else None)

    # Exporting and importing

    async def users_after(self, uid: UID, limit: int) -> Sequence[UID]:
        """Each shard is asked, also for old copies, and then each once more: a user may have moved
        from a shard that was asked late to one that was asked early."""
        found: set[UID] = set()
        for _ in range(2):
            calls = (
                shard.call(methodcaller("users_after", uid, limit))
                for shard in self.shards.values()
            )
            found.update(*await asyncio.gather(*calls))
        return sorted(found, key=str.encode)[:limit]

    async def export_page(self, uid: UID, place: ExportPlace) -> ExportPage:
        return await self._call_holder(uid, lambda machine: machine.export_page(uid, place))

    async def import_parts(self, parts: Sequence[ImportPart]) -> Sequence[Sequence[Verdict]]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + WRONG_SHARD_TIMEOUT_SECONDS
        while True:
            try:
                return await self._import_once(parts)
            except WrongShard as error:
                if clock() > deadline:
                    raise
                await self._learn_placement(error)

    async def _import_once(self, parts: Sequence[ImportPart]) -> Sequence[Sequence[Verdict]]:
        """Give each part to the shard of its user."""
        by_shard: defaultdict[str, list[int]] = defaultdict(list)
        for number, part in enumerate(parts):
            by_shard[self._map[bucket_of(part.user.uid)].shard].append(number)
        verdicts: dict[int, Sequence[Verdict]] = {}
        for name, numbers in by_shard.items():
            theirs = [parts[number] for number in numbers]
            verdicts |= zip(numbers, await self._import_in_shard(name, theirs), strict=True)
        return [verdicts[number] for number in range(len(parts))]

    async def _import_in_shard(
        self, name: str, parts: Sequence[ImportPart]
    ) -> Sequence[Sequence[Verdict]]:
        """Where lines erase users, their old copies on the other shards go too."""
        shard, names = self._shard(name), self._shard_names()
        verdicts = await shard.call(lambda machine: machine.import_parts(parts, names))
        if any(part.user.epoch for part in parts):
            others = sorted(names - {name})
            await asyncio.gather(*(self._remove_copies(shard.machine, o) for o in others))
        return verdicts

    async def check_hashes(self, uids: Sequence[UID]) -> Sequence[UID]:
        """Users of shards that do not answer, and of buckets that move now, are left out."""
        differing: list[UID] = []
        for name, of_shard in self._by_shard(uids).items():
            check = methodcaller("check_hashes", of_shard)
            with suppress(Unavailable):
                differing += await self._shard(name).call(check)
        return differing

    def _by_shard(self, uids: Iterable[UID]) -> dict[str, list[UID]]:
        uids_by_shard: defaultdict[str, list[UID]] = defaultdict(list)
        for uid in uids:
            uids_by_shard[self._map[bucket_of(uid)].shard].append(uid)
        return uids_by_shard

    async def problems(self) -> Sequence[str]:
        return self.known_problems()

    def known_problems(self) -> Sequence[str]:
        """The problems of the shards if none of them works; none while at least one works."""
        works = any(not shard.problems() for shard in self.shards.values())
        return [] if works else self.partial_problems()

    def partial_problems(self) -> list[str]:
        """The problems of single shards."""
        return [problem for shard in self.shards.values() for problem in shard.problems()]

    # The map

    async def _read_map(self) -> None:
        """Read the map from the shards that answer. They are enough: each has placements of all
        buckets, and rejects the buckets that it released, even if the map read here is out of
        date."""
        await self._call_each(self.shards.values(), Shard.verify_identity)
        if all(shard.problem is not None for shard in self.shards.values()):
            raise SetupError(f"no shard answers: {'; '.join(self.partial_problems())}")
        available = {name: shard for name, shard in self.shards.items() if shard.problem is None}
        databases = {name: shard.machine.database for name, shard in available.items()}
        self._map = await shard_map.read_newest(databases, self.shards.keys() - available.keys())
        await self._call_each(available.values(), self._admit)

    async def _call_each(
        self, shards: Collection[Shard], call: Callable[[Shard], Awaitable[None]]
    ) -> None:
        """Call each shard; one that does not answer counts as down until a probe succeeds."""
        results = await asyncio.gather(*map(call, shards), return_exceptions=True)
        for shard, error in zip(shards, results, strict=True):
            match error:
                case Unavailable():
                    shard.problem, shard.admitted = str(error), False
                case BaseException():
                    raise error

    async def _admit(self, shard: Shard) -> None:
        """Exchange with the shard what has happened while it was away: placements, and erasures.
        One that was restored from a backup does not know which buckets it has released since, and
        would accept messages for them. Raises SetupError if it is of another deployment."""
        admitted = [other for other in self.shards.values() if other.admitted]
        shard_map.require_one_deployment({s.name: s.deployment for s in (*admitted, shard)})
        shard.admitted = True  # before the exchange: newer placements may come in meanwhile
        others = [other for other in self.shards.values() if other is not shard]
        newer = await shard.exchange(self._map.values())
        if newer:
            self._map = shard_map.newest_placements([*self._map.values(), *newer])
            for other in others:
                other.admitted = False  # its next probe sends it the newer placements
        with suppress(NodeTooOld):
            await shard.machine.read_schema()
        for other in others:
            if other.problem is None:
                await self._remove_missed_copies(shard, other)

    async def _remove_missed_copies(self, shard: Shard, other: Shard) -> None:
        """Remove from the shard what the other has recorded for it while it was away; and from the
        other what the shard has recorded: so it makes no difference which of them was away."""
        if not await remove_copies(other.machine, shard.name, shard.machine):
            other.admitted = False
        await self._remove_copies(shard.machine, other.name)

    def _shard(self, name: str) -> Shard:
        try:
            return self.shards[name]
        except KeyError:
            raise Unavailable(
                f"this node does not know shard {name!r}, which holds the user; "
                f"restart it with --store {name}=URL in addition to the others"
            ) from None

    async def _learn_placement(self, error: WrongShard) -> None:
        """Learn the placement of a bucket from the shard that rejected it."""
        known = self._map[error.bucket]
        if error.version > known.version:
            self._map[error.bucket] = Placement(error.bucket, error.shard, error.version)
            self._shard(error.shard)
        elif error.version < known.version:
            # The new holder has not received its placement yet; the map here has it already.
            holder = self._shard(known.shard)
            await holder.call(
                lambda m: m.database.write(lambda c: shard_map.merge_placements(c, [known]))
            )
        else:
            await asyncio.sleep(WRONG_SHARD_RETRY_SECONDS)  # closed, because it is being moved


def _misplaced(slots: Sequence[Slot]) -> dict[Slot, WrongShard]:
    """The messages that went to a shard that does not hold their user, with its error."""
    errors = ((slot, _error(slot, WrongShard)) for slot in slots)
    return {slot: error for slot, error in errors if error is not None}


def _error(slot: Slot, kind: type[E]) -> E | None:
    """The error of a rejected message, if it is of this kind."""
    outcome = slot.outcome
    if isinstance(outcome, Rejected) and isinstance(outcome.error, kind):
        return outcome.error
    return None
