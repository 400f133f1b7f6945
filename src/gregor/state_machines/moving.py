"""Moving buckets between shards while everything runs.

    copy ──▶ close for half a second ──▶ copy what came meanwhile ──▶ release ──▶ tell the others

A user's log is all there is to move: replayed elsewhere, in whatever order and however often, it
makes the same state under the same ctimes. How far the copy has come is how far the user's clock
has come there, so nothing else is kept of a move, and one that was stopped is begun again.

The release is one transaction of the shard that holds the bucket. Until then it is there, and
opens again by itself if nobody comes back; from then on it is elsewhere, though everybody else,
the new holder included, may hear of it later.

Each step costs as much for several buckets as for one, so several that go the same way are closed
and released together. Where that takes too long, fewer are.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import dropwhile, groupby
from random import Random
from typing import NamedTuple, TypeVar

from gregor.clock import now
from gregor.core.buckets import BUCKETS, Move, bucket_of, levelled
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import Elsewhere, GregorError, SetupError, Unavailable
from gregor.interfaces import Rejected
from gregor.state_machines import shard_map
from gregor.state_machines.shard_map import PAGE, Digest, Extent, Load, NotClosed, Placement
from gregor.state_machines.sharded import merged, read_map
from gregor.state_machines.transactions import consume, held_elsewhere
from gregor.storage.database import Database

CLOSED_SECONDS = 0.45
SEVERAL = 32  # buckets that move at one switch, at the most
COMPARED = 100  # users, whose logs are read at once
LOOKED_AT = 128  # buckets, by one question for what they hold
TRIES = 50
PASSES = 5
LONGEST_REST = 2.0

T = TypeVar("T", InBandMessage, Digest)


class Moved(NamedTuple):
    """A bucket has moved: how many users with it, and for how long writers had to wait."""

    move: Move
    users: int
    pause: float  # seconds


class Group(NamedTuple):
    """Buckets that move from shard to shard at one switch."""

    source: str
    target: str
    buckets: Sequence[int]

    def first_half(self) -> "Group":
        """One of them at least."""
        return self._replace(buckets=self.buckets[: -(-len(self.buckets) // 2)])


class Holding(NamedTuple):
    """What a shard holds, and what it still has of buckets that it has given away."""

    buckets: int
    held: Load
    left_over: Load


class LeftOver(NamedTuple):
    """What a shard still has of a bucket that another one holds."""

    bucket: int
    shard: str
    holder: str


class Finding(NamedTuple):
    """Something that is not as it must be."""

    shard: str
    what: str


async def establish(databases: Mapping[str, Database]) -> dict[int, Placement]:
    """Make these databases, whose schema is up to date, the shards of one map. Twice-safe.

    Empty ones share the buckets evenly. If one holds users it holds all buckets, and those that
    join a map hold none, until some are moved. Raises SetupError if they do not fit together.
    """
    names = {name: await d.read(shard_map.name_here) for name, d in databases.items()}
    known = merged(
        [p for d in databases.values() for p in await d.read(shard_map.placements)],
    )
    new = [name for name, found in names.items() if found is None]
    inhabited = [name for name in new if await databases[name].read(shard_map.inhabited)]
    if inhabited and (known or len(inhabited) > 1):
        raise SetupError(
            f"the database of shard {inhabited[-1]!r} has users of its own already, and cannot "
            "join others; give an empty one"
        )
    if not known:
        holders = inhabited or list(databases)
        known = {
            bucket: Placement(bucket, holders[bucket * len(holders) // BUCKETS], 1)
            for bucket in range(BUCKETS)
        }
    for name in new:
        await databases[name].write(partial(shard_map.join, name=name, known=list(known.values())))
    return await read_map(databases)


class Mover:
    """Whoever moves buckets between shards, whose databases are open."""

    def __init__(
        self,
        databases: Mapping[str, Database],
        *,
        clock: Callable[[], Time] = now,
        mind: Random | None = None,
    ) -> None:
        self._databases = databases
        self._clock = clock
        self._mind = mind or Random()

    # What there is

    async def holdings(self) -> dict[str, Holding]:
        placed = await read_map(self._databases)
        holdings = {}
        for name, loads in (await self._loads()).items():
            held = {bucket for bucket, p in placed.items() if p.shard == name}
            holdings[name] = Holding(
                len(held),
                _sum(load for bucket, load in loads.items() if bucket in held),
                _sum(load for bucket, load in loads.items() if bucket not in held),
            )
        return holdings

    async def plan(self, added: Sequence[str] = ()) -> list[Move]:
        """What to move so that each shard carries about as much; those that are `added` carry
        nothing yet."""
        placed = await read_map(self._databases)
        loads = await self._loads()
        messages = {
            bucket: loads[p.shard][bucket].messages if bucket in loads[p.shard] else 0
            for bucket, p in placed.items()
        }
        if not any(messages.values()):
            messages = dict.fromkeys(messages, 1)  # what is empty yet will fill evenly
        weights: dict[str, dict[int, int]] = {name: {} for name in (*self._databases, *added)}
        for bucket, placement in placed.items():
            weights[placement.shard][bucket] = messages[bucket]
        return levelled(weights)

    async def _loads(self) -> dict[str, dict[int, Load]]:
        found = await asyncio.gather(*(_loads_of(d) for d in self._databases.values()))
        return dict(zip(self._databases, found, strict=True))

    # Moving

    async def move(
        self, moves: Iterable[Move], moved: Callable[[Moved], None] = lambda moved: None
    ) -> None:
        """Move buckets, and tell of each. Those that are there already are passed over. Stopped, or
        killed, at any moment, it can be begun again."""
        placed = await read_map(self._databases)
        await self._tell(self._databases, placed.values())
        holders = {bucket: placement.shard for bucket, placement in placed.items()}
        for target, run in groupby(moves, key=lambda move: move.target):
            leaving: defaultdict[str, list[int]] = defaultdict(list)
            for bucket in dict.fromkeys(move.bucket for move in run):
                leaving[holders[bucket]].append(bucket)
            leaving.pop(target, None)
            for source, buckets in leaving.items():
                async for each in self._move_all(Group(source, target, buckets)):
                    holders[each.move.bucket] = target
                    moved(each)

    async def _move_all(self, group: Group) -> AsyncIterator[Moved]:
        """Several at each switch: fewer where it takes long, then slowly more."""
        several, waiting = float(SEVERAL), group.buckets
        while waiting:
            done = await self._move(group._replace(buckets=waiting[: int(several)]))
            for each in done:
                yield each
            waiting = waiting[len(done) :]
            hasty = done[0].pause > CLOSED_SECONDS / 2
            several = max(1, len(done) / 2) if hasty else min(SEVERAL, 1.1 * several)

    async def _move(self, group: Group) -> list[Moved]:
        """Move a group at one switch, or as many of it as there is time for."""
        await self._expect_nothing_else(group)
        clock = asyncio.get_running_loop().time
        longest = 0.0
        for attempt in range(TRIES):
            await self._copy(group)
            began = clock()
            released = await self._switch(group)
            longest = max(longest, clock() - began)
            if released:
                break
            await self._expect_held(group)
            group = group.first_half()
            await asyncio.sleep(self._mind.uniform(0.1, min(LONGEST_REST, 0.2 * 2**attempt)))
        else:
            raise Unavailable(
                f"bucket {group.buckets[0]} could not be moved to {group.target!r}: its last "
                f"messages could not be copied in {CLOSED_SECONDS} s; it is where it was, so try "
                "again"
            )
        others = [name for name in self._databases if name not in (group.source, group.target)]
        await self._tell(others, released)
        users = Counter(bucket_of(uid) for uid in await self._extents(group.target, group.buckets))
        return [
            Moved(Move(bucket, group.source, group.target), users[bucket], longest)
            for bucket in group.buckets
        ]

    async def _switch(self, group: Group) -> list[Placement]:
        """Close the buckets, copy the rest, and release them; where they are then. None of them
        has moved if the time was too short."""
        source = self._databases[group.source]
        try:
            until, closed = await source.write(
                lambda c: shard_map.close(c, group.buckets, CLOSED_SECONDS)
            )
        except Unavailable:
            return []  # who writes takes long: they shall not wait for us
        try:
            async with asyncio.timeout(CLOSED_SECONDS):
                # First, so that nobody takes what is there for what was left behind (see `_prune`).
                await self._tell([group.target], closed)
                if not await self._copy(group):
                    raise NotClosed("not all has been copied in time")
            released = await source.write(
                lambda c: shard_map.release(c, group.buckets, group.target, until)
            )
        except (TimeoutError, Unavailable):
            # Also where the commit was not answered: what the source says is so.
            known = {p.bucket: p for p in await source.read(shard_map.placements)}
            released = [known[bucket] for bucket in group.buckets]
            if any(placement.shard != group.target for placement in released):
                await source.write(lambda c: shard_map.reopen(c, group.buckets, until))
                return []
        # From here on the new holder takes messages for them, even before others hear of it.
        await self._tell([group.target], released)
        return released

    async def _tell(self, names: Iterable[str], placements: Iterable[Placement]) -> None:
        """The maps of these shards, one after the other, are to be as new as ours."""
        known = list(placements)
        for name in names:
            await self._databases[name].write(lambda c: shard_map.adopt(c, known))

    async def _copy(self, group: Group) -> bool:
        """Replay at the target what the source has and the target has not; whether at the end it
        had it all."""
        for _ in range(PASSES):
            theirs, ours = await asyncio.gather(
                self._extents(group.source, group.buckets),
                self._extents(group.target, group.buckets),
            )
            apart = {uid: extent for uid, extent in theirs.items() if ours.get(uid) != extent}
            if not apart:
                return True
            cursors = {uid: _resume(ours.get(uid), extent) for uid, extent in apart.items()}
            async for page in self._pages(group.source, shard_map.page, cursors):
                await self._store(group, page)
        return False

    async def _store(self, group: Group, messages: Sequence[InBandMessage]) -> None:
        now = self._clock()
        target = self._databases[group.target]
        outcomes = await target.write(lambda c: consume(c, messages, now, moving=True))
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                raise _in_the_way(group, outcome.message.uid)

    async def _expect_nothing_else(self, group: Group) -> None:
        """What the target has of the buckets, from an earlier time, is to be part of what the
        source has: only then does the same clock and number mean the same messages."""
        for uid in await self._lacking(group.source, group.target, group.buckets):
            await self._expect_held(group)
            raise _in_the_way(group, uid)

    async def _expect_held(self, group: Group) -> None:
        """The source may have given a bucket to somebody else's target, since we read the map."""
        for gone in await self._gone(group.source, group.buckets):
            raise Unavailable(
                f"bucket {gone.bucket} has gone from {group.source!r} to {gone.shard!r}: somebody "
                "else moves buckets as well; begin again when they have finished"
            )

    async def _gone(self, name: str, buckets: Sequence[int]) -> list[Elsewhere]:
        """Which of the buckets this shard does not hold, or not any more."""
        return await self._databases[name].read(lambda c: held_elsewhere(c, buckets))

    async def _extents(self, name: str, buckets: Sequence[int]) -> dict[UID, Extent]:
        return await self._databases[name].read(lambda c: shard_map.extents(c, buckets))

    # Verifying

    async def verify(
        self, *, prune: bool = False, compared: Callable[[int, int], None] = lambda done, of: None
    ) -> tuple[list[Finding], int]:
        """Compare the map with what the shards have, and what they have left over with what its
        holder has. With `prune`, remove what is left over of buckets in which nothing is missing,
        which is safe while others move buckets. What was found, and in how many buckets something
        is left over or, with `prune`, was removed. Tells how many of them are `compared`."""
        placed = await read_map(self._databases)
        await self._tell(self._databases, placed.values())
        findings = [
            Finding(name, f"user {uid!r} is in a wrong bucket")
            for name, database in self._databases.items()
            for uid in await _strays_in(database)
        ]
        left_over = [
            LeftOver(bucket, name, placed[bucket].shard)
            for name, loads in (await self._loads()).items()
            for bucket in sorted(loads)
            if placed[bucket].shard != name
        ]
        counted = 0
        for done, each in enumerate(left_over, 1):
            wrong, counts = await self._compare(each, prune)
            findings += wrong
            counted += counts
            compared(done, len(left_over))
        return findings, counted

    async def _compare(self, left: LeftOver, prune: bool) -> tuple[list[Finding], bool]:
        """What is wrong with it, and whether it is left over or, with `prune`, was removed."""
        lacking = await self._lacking(left.holder, left.shard, [left.bucket])
        if not lacking:
            return [], not prune or await self._prune(left)
        if await self._gone(left.holder, [left.bucket]):
            return [], False  # it has moved on since we read the map
        lacks = f"has messages that shard {left.holder!r}, the holder, lacks"
        return [Finding(left.shard, f"user {uid!r} {lacks}") for uid in lacking], not prune

    async def _prune(self, left: LeftOver) -> bool:
        """Remove what a shard has left over, unless the bucket is on its way there, or has gone
        from where it was held. Whether it was removed."""
        holder, shard = self._databases[left.holder], self._databases[left.shard]
        placement = await holder.write(lambda c: shard_map.reaffirm(c, left.bucket))
        return placement is not None and await shard.write(lambda c: shard_map.prune(c, placement))

    async def _lacking(self, holder: str, name: str, buckets: Sequence[int]) -> list[UID]:
        """The users of these buckets of whom the holder lacks something that this shard has."""
        lacking: list[UID] = []
        users = list(await self._extents(name, buckets))
        for first in range(0, len(users), COMPARED):
            some = users[first : first + COMPARED]
            here, there = await asyncio.gather(self._log(name, some), self._log(holder, some))
            lacking += dict.fromkeys(digest.uid for digest in here - there)
        return lacking

    async def _log(self, name: str, uids: Iterable[UID]) -> set[Digest]:
        """The messages of some users, by ctime and a hash of what was sent."""
        log: set[Digest] = set()
        async for page in self._pages(name, shard_map.digests, dict.fromkeys(uids, 0)):
            log.update(page)
        return log

    async def _pages(
        self,
        name: str,
        page: Callable[..., list[T]],
        cursors: Mapping[UID, Time],
    ) -> AsyncIterator[list[T]]:
        """Whatever `page` tells of users' logs from behind these cursors, page by page."""
        while found := await self._databases[name].read(partial(page, cursors=cursors)):
            yield found
            if len(found) < PAGE:
                return
            cursors = _behind(found[-1], cursors)


def _in_the_way(group: Group, uid: UID) -> GregorError:
    return GregorError(
        f"bucket {bucket_of(uid)} cannot be moved: shard {group.target!r} has messages of {uid!r} "
        f"that shard {group.source!r}, the holder, lacks; see `gregor shards verify`"
    )


def _behind(last: InBandMessage | Digest, cursors: Mapping[UID, Time]) -> dict[UID, Time]:
    """The cursors that are left when all has been told up to `last`."""
    left = dropwhile(lambda cursor: cursor[0] != last.uid, cursors.items())
    return dict(left) | {last.uid: last.ctime}


def _resume(ours: Extent | None, theirs: Extent) -> int:
    """After which ctime to go on. Where the clocks agree and the numbers do not, something was
    stored behind the clock, and all is compared."""
    return 0 if ours is None or ours.ctime >= theirs.ctime else ours.ctime


async def _loads_of(database: Database) -> dict[int, Load]:
    """What each bucket holds there. A few at a time: no question may take long, however much there
    is."""
    loads: dict[int, Load] = {}
    for first in range(0, BUCKETS, LOOKED_AT):
        some = range(first, first + LOOKED_AT)
        loads |= await database.read(partial(shard_map.loads, buckets=some))
    return loads


async def _strays_in(database: Database) -> list[UID]:
    """The users there for whom nobody would look there."""
    strays: list[UID] = []
    last: UID | None = ""
    while last is not None:
        last, found = await database.read(partial(shard_map.strays, after=last))
        strays += found
    return strays


def _sum(loads: Iterable[Load]) -> Load:
    several = list(loads)
    return (
        Load(*(sum(column) for column in zip(*several, strict=True))) if several else Load(0, 0, 0)
    )
