"""Rebalance: move buckets between shards while servers run.

    claim ──▶ copy ──▶ close for half a second ──▶ copy the rest ──▶ release ──▶ publish

The log of a user is moved: replayed on another shard, in any order and any number of times, it
gives the same state with the same ctimes. What the log does not tell any more, because it is
forgotten, is moved beside it. The progress of a copy is the user's row on the target, so no other
record of a move is stored, and an interrupted move is restarted.

To claim a bucket gives its placement a higher version. It keeps other rebalancers, who claim it as
well, from changing a copy at the same time.

The release is one transaction of the shard that holds the bucket. Before it, the bucket is on the
source, and opens again by itself if the rebalancer does not return. After it, the bucket is on the
target, although all other shards, the new holder included, may learn that later.

Each step costs the same for several buckets as for one, so buckets with the same source and
target are closed and released together; fewer at a time if their writers would wait too long.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import suppress
from functools import partial
from itertools import dropwhile, groupby
from random import Random
from typing import NamedTuple, TypeVar

from gregor.backoff import Backoff
from gregor.clock import now
from gregor.core.buckets import BUCKETS, Move, bucket_of, plan_rebalance
from gregor.core.history import Retention
from gregor.core.instant import Time
from gregor.core.message import UID
from gregor.errors import GregorError, NotMigrated, Unavailable, WrongShard
from gregor.interfaces import Rejected
from gregor.shards import bucket_contents, bucket_copy, shard_map
from gregor.shards.bucket_contents import C, Extent, Kind, Load, R
from gregor.shards.bucket_copy import Claim
from gregor.shards.shard_map import NotClosed, Outdated, read_map
from gregor.stores.sql.database import Database, DatabaseConnection
from gregor.stores.sql.schema import existing_schema
from gregor.stores.sql.statements import CopiedMessage, Placement, PrunedMessage
from gregor.stores.sql.tables import NEWEST_REVISION
from gregor.stores.sql.transactions import wrong_shards

CLOSED_SECONDS = 0.45
MAX_BUCKETS_PER_SWITCH = 32  # that are closed and released together
VERIFY_BATCH_USERS = 100  # whose logs are read together
LOAD_BATCH_BUCKETS = 128  # whose loads one query reads
MAX_ATTEMPTS = 50  # to move a group of buckets
MAX_COPY_PASSES = 5
MIN_PAUSE_SECONDS = 0.1  # in which the writers of a group can write, before it closes again
BACKOFF = Backoff(0.1, 1.9)  # in addition

DEFAULT_RETENTION = Retention()

T = TypeVar("T")


class Moved(NamedTuple):
    """A bucket has moved: the number of its users, and for how long writers had to wait at most."""

    move: Move
    users: int
    pause: float  # seconds


class Group(NamedTuple):
    """Buckets that are moved together from one shard to another. Once they are claimed for that,
    with their placements."""

    source: str
    target: str
    buckets: Sequence[int]
    claim: Claim = ()

    def first_half(self) -> "Group":
        """The first half of the buckets, at least one."""
        return self._replace(buckets=self.buckets[: -(-len(self.buckets) // 2)])


class Holding(NamedTuple):
    """The load of a shard: of the buckets that it holds, and of old copies of released buckets."""

    buckets: int
    held: Load
    left_over: Load


class LeftOver(NamedTuple):
    """An old copy of a bucket on a shard that does not hold it any more."""

    bucket: int
    shard: str
    holder: str


class Finding(NamedTuple):
    """A problem on a shard that `verify` has found."""

    shard: str
    what: str


class Rebalancer:
    """Moves buckets between shards, and verifies them. The databases must be open. The servers keep
    history for the time of `retention`.

    Several rebalancers may run at the same time: one that finds that another has moved a bucket
    raises Unavailable.
    """

    def __init__(
        self,
        databases: Mapping[str, Database],
        *,
        clock: Callable[[], Time] = now,
        rng: Random | None = None,
        retention: Retention = DEFAULT_RETENTION,
    ) -> None:
        self._databases = databases
        self._clock = clock
        self._retention = retention
        self._rng = rng or Random()

    # Loads

    async def holdings(self) -> dict[str, Holding]:
        """The load of each shard, by name. Reads all messages."""
        placed = await read_map(self._databases)
        holdings = {}
        for name, loads in (await self._loads()).items():
            held = {bucket for bucket, p in placed.items() if p.shard == name}
            holdings[name] = Holding(
                len(held),
                _total(load for bucket, load in loads.items() if bucket in held),
                _total(load for bucket, load in loads.items() if bucket not in held),
            )
        return holdings

    async def plan(self, added: Sequence[str] = ()) -> list[Move]:
        """The moves that give all shards about the same number of messages (of buckets, while all
        are empty). Shards that are `added` are planned as empty ones."""
        placed = await read_map(self._databases)
        loads = await self._loads()
        messages = {
            bucket: loads[p.shard][bucket].messages if bucket in loads[p.shard] else 0
            for bucket, p in placed.items()
        }
        if not any(messages.values()):
            messages = dict.fromkeys(messages, 1)
        weights: dict[str, dict[int, int]] = {name: {} for name in (*self._databases, *added)}
        for bucket, placement in placed.items():
            weights[placement.shard][bucket] = messages[bucket]
        return plan_rebalance(weights)

    async def _loads(self) -> dict[str, dict[int, Load]]:
        loads = await asyncio.gather(*(_read_loads(d) for d in self._databases.values()))
        return dict(zip(self._databases, loads, strict=True))

    # Moving

    async def move(
        self, moves: Iterable[Move], moved: Callable[[Moved], None] = lambda moved: None
    ) -> None:
        """Move buckets, and call `moved` after each. Buckets that are on their target already are
        skipped. Idempotent: cancelled or killed at any moment, it can be called again. Raises
        Unavailable if another rebalancer moves the same buckets, or if the last messages of a
        bucket could not be copied in time."""
        await self._require_migrated()
        placed = await read_map(self._databases)
        await self._publish_placements(self._databases, placed.values())
        holders = {bucket: placement.shard for bucket, placement in placed.items()}
        for target, same_target in groupby(moves, key=lambda move: move.target):
            by_source: defaultdict[str, list[int]] = defaultdict(list)
            for bucket in dict.fromkeys(move.bucket for move in same_target):
                by_source[holders[bucket]].append(bucket)
            by_source.pop(target, None)
            for source, buckets in by_source.items():
                async for moved_bucket in self._move_all(Group(source, target, buckets)):
                    holders[moved_bucket.move.bucket] = target
                    moved(moved_bucket)

    async def _move_all(self, group: Group) -> AsyncIterator[Moved]:
        """Move the buckets in batches: half as large after a long pause, then slowly larger."""
        batch_size, pending = float(MAX_BUCKETS_PER_SWITCH), group.buckets
        while pending:
            batch = await self._move(group._replace(buckets=pending[: int(batch_size)]))
            for moved_bucket in batch:
                yield moved_bucket
            pending = pending[len(batch) :]
            if batch[0].pause > CLOSED_SECONDS / 2:
                batch_size = max(1, len(batch) / 2)
            else:
                batch_size = min(MAX_BUCKETS_PER_SWITCH, 1.1 * batch_size)

    async def _move(self, group: Group) -> list[Moved]:
        """Move a group together, or its first part if there is no time for all of it."""
        await self._require_no_conflicts(group)
        clock = asyncio.get_running_loop().time
        longest_pause = 0.0
        for attempt in range(MAX_ATTEMPTS):
            group = await self._claim(group)
            await self._copy(group)
            started_at = clock()
            released = await self._switch(group)
            longest_pause = max(longest_pause, clock() - started_at)
            if released:
                break
            group = group.first_half()
            await asyncio.sleep(MIN_PAUSE_SECONDS + BACKOFF.delay(attempt, self._rng.random()))
        else:
            raise Unavailable(
                f"bucket {group.buckets[0]} could not be moved to {group.target!r}: its last "
                f"messages could not be copied in {CLOSED_SECONDS} s; it has not moved, try again"
            )
        others = [name for name in self._databases if name not in (group.source, group.target)]
        await self._publish_placements(others, released)
        users = Counter(bucket_of(uid) for uid in await self._extents(group.target, group.buckets))
        return [
            Moved(Move(bucket, group.source, group.target), users[bucket], longest_pause)
            for bucket in group.buckets
        ]

    async def _switch(self, group: Group) -> list[Placement]:
        """Close the buckets, copy the rest, and release them. Returns the new placements, or none
        if the time was too short; then none of the buckets has moved."""
        source = self._databases[group.source]
        try:
            until = await source.write(partial(_close, group=group))
        except Unavailable:
            return []  # one writer takes too long: the other writers must not wait for this lock
        try:
            async with asyncio.timeout(CLOSED_SECONDS):
                if not await self._copy(group):
                    raise NotClosed("the last messages were not copied in time")
            released = await source.write(
                lambda c: shard_map.release(c, group.buckets, group.target, until)
            )
        except (TimeoutError, Unavailable):
            # Also if the commit is unknown: the placements in the source are authoritative.
            known = {p.bucket: p for p in await source.read(shard_map.placements)}
            released = [known[bucket] for bucket in group.buckets]
            if any(placement.shard != group.target for placement in released):
                await source.write(lambda c: shard_map.reopen(c, group.buckets, until))
                return []
        # From here on, the new holder accepts messages for these buckets, even if other shards do
        # not know it yet.
        await self._publish_placements([group.target], released)
        return released

    async def _publish_placements(
        self, names: Iterable[str], placements: Iterable[Placement]
    ) -> None:
        """Merge these placements into the maps of these shards, one after the other."""
        known = list(placements)
        for name in names:
            await self._databases[name].write(lambda c: shard_map.merge_placements(c, known))

    async def _claim(self, group: Group) -> Group:
        """Claim the buckets on both shards. Raises Unavailable if the source does not hold them."""
        claim = await self._databases[group.source].write(
            lambda c: shard_map.claim(c, group.buckets)
        )
        if len(claim) < len(group.buckets):
            await self._require_held(group)
        await self._publish_placements([group.target], claim)
        return group._replace(claim=claim)

    async def _copy(self, group: Group) -> bool:
        """Copy to the target what it lacks. Returns whether it had everything at the end."""
        for _ in range(MAX_COPY_PASSES):
            with suppress(Outdated):
                if await self._copy_once(group):
                    return True
        return False

    async def _copy_once(self, group: Group) -> bool:
        """Copy what the target lacks of the users of these buckets; return whether that was
        nothing. What a log does not tell is copied with the whole of it, and before the floor."""
        copied = await self._extents(group.target, group.buckets)
        held = await self._extents(group.source, group.buckets)
        lacking = {uid: e for uid, e in held.items() if not e.is_complete_in(copied.get(uid))}
        if not lacking:
            return True
        new = {uid: e for uid, e in lacking.items() if not e.is_continued_by(copied.get(uid))}
        await self._write(group, partial(bucket_copy.begin, extents=new))
        cursors = {uid: 0 if uid in new else copied[uid].ctime for uid in lacking}
        async for messages in self._pages(group.source, bucket_contents.MESSAGES, cursors):
            await self._store(group, messages)
        forgetful = {uid: "" for uid, extent in new.items() if extent.has_forgotten}
        async for pruned in self._pages(group.source, bucket_contents.PRUNED, forgetful):
            await self._write(group, partial(bucket_copy.store_pruned, rows=pruned))
        async for tombstones in self._pages(group.source, bucket_contents.TOMBSTONES, forgetful):
            await self._write(group, partial(bucket_copy.store_tombstones, rows=tombstones))
        await self._write(group, partial(bucket_copy.finish, extents=lacking))
        return False

    async def _store(self, group: Group, messages: Sequence[CopiedMessage]) -> None:
        now = self._clock()
        outcomes = await self._write(
            group, partial(bucket_copy.store_messages, rows=messages, now=now)
        )
        for message, outcome in zip(messages, outcomes, strict=True):
            if isinstance(outcome, Rejected):
                raise _conflict_error(group, message.uid)

    async def _write(self, group: Group, step: Callable[[DatabaseConnection, Claim], T]) -> T:
        """Run a step of the copy on the target."""
        return await self._databases[group.target].write(lambda c: step(c, group.claim))

    async def _require_no_conflicts(self, group: Group) -> None:
        """Raises GregorError if the target has old messages of these buckets that the source lacks.
        If the target has none of these, equal extents mean equal messages."""
        for uid in await self._users_with_missing_messages(
            group.source, group.target, group.buckets
        ):
            await self._require_held(group)
            raise _conflict_error(group, uid)

    async def _require_held(self, group: Group) -> None:
        """Raises Unavailable if another rebalancer has moved a bucket from the source since the map
        was read."""
        for wrong_shard in await self._wrong_shards(group.source, group.buckets):
            raise Unavailable(
                f"bucket {wrong_shard.bucket} has moved from {group.source!r} to "
                f"{wrong_shard.shard!r}: another rebalancer is running; retry when it has finished"
            )

    async def _wrong_shards(self, name: str, buckets: Sequence[int]) -> list[WrongShard]:
        """A WrongShard error for each of these buckets that this shard does not hold now."""
        return await self._databases[name].read(lambda c: wrong_shards(c, buckets))

    async def _require_migrated(self) -> None:
        """Raises NotMigrated unless all shards have the newest schema: older ones lack what is
        copied and compared."""
        for name, database in self._databases.items():
            schema = await database.read(existing_schema)
            if not schema.has(NEWEST_REVISION):
                raise NotMigrated(
                    f"shard {name!r} has the older schema {schema.revision}: run `gregor migrate`"
                )

    async def _extents(self, name: str, buckets: Sequence[int]) -> dict[UID, Extent]:
        return await self._databases[name].read(lambda c: bucket_contents.extents(c, buckets))

    # Verifying

    async def verify(
        self,
        *,
        prune: bool = False,
        compared: Callable[[int, int], None] = lambda done, total: None,
    ) -> tuple[list[Finding], int]:
        """Compare the map with the contents of the shards, and each old copy of a released bucket
        with the bucket on its holder. With `prune`, delete an old copy if the holder has all its
        messages; that is safe while other rebalancers move buckets. Returns the problems, and the
        number of old copies that are left over or, with `prune`, were deleted. `compared` is called
        with the progress: how many old copies are done, of how many."""
        await self._require_migrated()
        placed = await read_map(self._databases)
        await self._publish_placements(self._databases, placed.values())
        findings = [
            Finding(name, f"user {uid!r} is in a wrong bucket")
            for name, database in self._databases.items()
            for uid in await _read_misplaced_users(database)
        ]
        left_over = [
            LeftOver(bucket, name, placed[bucket].shard)
            for name, loads in (await self._loads()).items()
            for bucket in sorted(loads)
            if placed[bucket].shard != name
        ]
        counted = 0
        for done, copy in enumerate(left_over, 1):
            copy_findings, is_counted = await self._verify_copy(copy, prune)
            findings += copy_findings
            counted += is_counted
            compared(done, len(left_over))
        return findings, counted

    async def _verify_copy(self, copy: LeftOver, prune: bool) -> tuple[list[Finding], bool]:
        """The problems of an old copy; and whether it is left over or, with `prune`, deleted."""
        uids = await self._users_with_missing_messages(copy.holder, copy.shard, [copy.bucket])
        if not uids:
            return [], not prune or await self._prune(copy)
        if await self._wrong_shards(copy.holder, [copy.bucket]):
            return [], False  # the bucket has moved since the map was read
        problem = f"has messages, or a clock, that shard {copy.holder!r}, the holder, lacks"
        return [Finding(copy.shard, f"user {uid!r} {problem}") for uid in uids], not prune

    async def _prune(self, copy: LeftOver) -> bool:
        """Delete an old copy, unless the bucket is being moved to its shard, or has moved from its
        holder. Returns whether it was deleted."""
        holder, shard = self._databases[copy.holder], self._databases[copy.shard]
        claim = await holder.write(lambda c: shard_map.claim(c, [copy.bucket]))
        return bool(claim) and await shard.write(lambda c: shard_map.prune(c, claim[0]))

    async def _users_with_missing_messages(
        self, holder: str, name: str, buckets: Sequence[int]
    ) -> list[UID]:
        """The users of these buckets of whom the holder lacks messages that this shard has, or a
        clock, mark, floor or epoch as late as here.

        The holder is read last. So what has happened meanwhile is not missing there, and if it has
        forgotten a message, it says so."""
        copies = await self._extents(name, buckets)
        missing: list[PrunedMessage] = []
        for uids in _batches([*copies], VERIFY_BATCH_USERS):
            copied = await self._contents(name, uids)
            missing += copied - await self._contents(holder, uids)
        held = await self._extents(holder, buckets)
        behind = [uid for uid, copy in copies.items() if copy.is_ahead_of(held.get(uid))]
        return [*dict.fromkeys(behind + [m.uid for m in missing if self._is_lost(m, held)])]

    def _is_lost(self, message: PrunedMessage, held: Mapping[UID, Extent]) -> bool:
        """Whether the holder, which lacks a message, cannot have forgotten its id."""
        if message.uid not in held:
            return True
        holder, cutoff = held[message.uid], self._retention.cutoff(self._clock())
        forgotten_ids = 0 if cutoff is None else min(holder.floor, cutoff.ids)
        return message.ctime > max(holder.epoch, forgotten_ids)

    async def _contents(self, name: str, uids: Collection[UID]) -> set[PrunedMessage]:
        """All messages of these users, in the form that is left of them when they are forgotten:
        so it makes no difference which of them are."""
        contents: set[PrunedMessage] = set()
        async for digests in self._pages(name, bucket_contents.DIGESTS, dict.fromkeys(uids, 0)):
            contents.update(digests)
        # After the messages: what is pruned meanwhile is read twice rather than not at all.
        async for pruned in self._pages(name, bucket_contents.PRUNED, dict.fromkeys(uids, "")):
            contents.update(PrunedMessage(r.uid, r.msg_id, r.ctime, r.digest) for r in pruned)
        return contents

    async def _pages(
        self, name: str, kind: Kind[R, C], cursors: Mapping[UID, C]
    ) -> AsyncIterator[list[R]]:
        """The rows of these users after these cursors, page by page."""
        while page := await self._page(name, kind, cursors):
            yield page
            if len(page) < bucket_contents.MAX_PAGE_ROWS:
                return
            uid, cursor = kind.place_of(page[-1])
            left = dropwhile(lambda user: user[0] != uid, cursors.items())  # noqa: B023
            cursors = dict(left) | {uid: cursor}

    async def _page(self, name: str, kind: Kind[R, C], cursors: Mapping[UID, C]) -> list[R]:
        return await self._databases[name].read(lambda c: kind.page(c, cursors))


def _batches(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(values), size):
        yield values[first : first + size]


def _close(connection: DatabaseConnection, group: Group) -> Time:
    """Close the buckets until the returned time, unless another rebalancer has claimed them since:
    it may delete what was copied."""
    until, _ = shard_map.close(connection, group.buckets, CLOSED_SECONDS)
    shard_map.require_newest(connection, group.claim)
    return until


def _conflict_error(group: Group, uid: UID) -> GregorError:
    return GregorError(
        f"bucket {bucket_of(uid)} cannot be moved: shard {group.target!r} has messages of {uid!r}, "
        f"or a clock, that shard {group.source!r}, the holder, lacks; see `gregor shards verify`"
    )


async def _read_loads(database: Database) -> dict[int, Load]:
    """The loads of all buckets, in batches: no query may take long, however much is stored."""
    loads: dict[int, Load] = {}
    for first in range(0, BUCKETS, LOAD_BATCH_BUCKETS):
        batch = range(first, first + LOAD_BATCH_BUCKETS)
        loads |= await database.read(partial(bucket_contents.loads, buckets=batch))
    return loads


async def _read_misplaced_users(database: Database) -> list[UID]:
    """The users whose stored bucket is not the bucket of their uid."""
    misplaced_users: list[UID] = []
    last: UID | None = ""
    while last is not None:
        last, page = await database.read(partial(bucket_contents.misplaced_users, after=last))
        misplaced_users += page
    return misplaced_users


def _total(loads: Iterable[Load]) -> Load:
    columns = list(zip(*loads, strict=True))
    return Load(*(sum(column) for column in columns)) if columns else Load()
