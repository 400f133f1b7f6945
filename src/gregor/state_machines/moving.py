"""Moving buckets between shards while everything runs.

    copy ──▶ close for half a second ──▶ copy what came meanwhile ──▶ release ──▶ tell the others

A user's log is all there is to move: replayed elsewhere, in whatever order and however often, it
makes the same state under the same ctimes. How far the copy has come is how far the user's clock
has come there, so nothing else is kept of a move, and one that was stopped is begun again.

The release is one transaction of the shard that holds the bucket. Until then it is there, and
opens again by itself if nobody comes back; from then on it is elsewhere, though everybody else,
the new holder included, may hear of it later.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from functools import partial
from random import Random
from time import time_ns
from typing import Any, NamedTuple

from gregor.core.buckets import BUCKETS, Move, levelled
from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import GregorError, SetupError, Unavailable
from gregor.interfaces import Rejected
from gregor.state_machines import shard_map
from gregor.state_machines.shard_map import Digest, Extent, Load, NotClosed, Placement
from gregor.state_machines.sharded import merged, read_map
from gregor.state_machines.transactions import consume
from gregor.storage.database import Database

CLOSED_SECONDS = 0.45
AT_ONCE = 1_000  # messages that one transaction stores
TRIES = 50
PASSES = 5
LONGEST_REST = 2.0


class Moved(NamedTuple):
    """A bucket has moved: how many users with it, and for how long writers had to wait."""

    move: Move
    users: int
    pause: float  # seconds


class Holding(NamedTuple):
    """What a shard holds, and what it still has of buckets that it has given away."""

    buckets: int
    held: Load
    left_over: Load


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


def _now() -> Time:
    """This machine's clock."""
    return time_ns() // 1000


class Mover:
    """Whoever moves buckets between shards, whose databases are open."""

    def __init__(
        self,
        databases: Mapping[str, Database],
        *,
        clock: Callable[[], Time] = _now,
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
        found = await asyncio.gather(*(d.read(shard_map.loads) for d in self._databases.values()))
        return dict(zip(self._databases, found, strict=True))

    # Moving

    async def move(
        self, moves: Iterable[Move], moved: Callable[[Moved], None] = lambda moved: None
    ) -> None:
        """Move buckets, one after the other, and tell of each. Those that are there already are
        passed over. Stopped, or killed, at any moment, it can be begun again."""
        placed = await read_map(self._databases)
        await self._tell(placed.values())
        for move in moves:
            at = placed[move.bucket]
            if at.shard != move.target:
                moved(await self._move(move._replace(source=at.shard)))
                placed[move.bucket] = at._replace(shard=move.target, version=at.version + 1)

    async def _move(self, move: Move) -> Moved:
        await self._expect_nothing_else(move)
        await self._copy(move)
        clock = asyncio.get_running_loop().time
        longest = 0.0
        for attempt in range(TRIES):
            began = clock()
            placement = await self._switch(move)
            longest = max(longest, clock() - began)
            if placement is not None:
                users = len(await self._extents(move.target, move.bucket))
                return Moved(move, users, longest)
            await asyncio.sleep(self._mind.uniform(0.1, min(LONGEST_REST, 0.2 * 2**attempt)))
            await self._copy(move)
        raise Unavailable(
            f"bucket {move.bucket} could not be moved to {move.target!r}: its last messages could "
            f"not be copied in {CLOSED_SECONDS} s; it is where it was, so try again"
        )

    async def _switch(self, move: Move) -> Placement | None:
        """Close the bucket, copy the rest, and release it; None if the time was too short."""
        source = self._databases[move.source]
        try:
            until = await source.write(lambda c: shard_map.close(c, move.bucket, CLOSED_SECONDS))
        except Unavailable:
            return None  # who writes takes long: they shall not wait for us
        try:
            async with asyncio.timeout(CLOSED_SECONDS):
                if not await self._copy(move):
                    raise NotClosed(f"bucket {move.bucket} has not been copied in time")
            placement = await source.write(
                lambda c: shard_map.release(c, move.bucket, move.target, until)
            )
        except (TimeoutError, Unavailable):
            # Also where the commit was not answered: what the source says is so.
            found = await source.read(lambda c: shard_map.placement(c, move.bucket))
            if found is None or found.shard != move.target:
                await source.write(lambda c: shard_map.reopen(c, move.bucket, until))
                return None
            placement = found
        await self._tell([placement])
        return placement

    async def _tell(self, placements: Iterable[Placement]) -> None:
        """Everybody's map is to be as new as ours. The one who was given a bucket takes messages
        for it from here on."""
        known = list(placements)
        first = {placement.shard for placement in known} if len(known) == 1 else set()
        for name in sorted(self._databases, key=lambda name: name not in first):
            await self._databases[name].write(lambda c: shard_map.adopt(c, known))

    async def _copy(self, move: Move) -> bool:
        """Replay at the target what the source has and the target has not; whether at the end it
        had it all."""
        for _ in range(PASSES):
            theirs = await self._extents(move.source, move.bucket)
            ours = await self._extents(move.target, move.bucket)
            apart = {uid: extent for uid, extent in theirs.items() if ours.get(uid) != extent}
            if not apart:
                return True
            await self._replay(move, {uid: _resume(ours.get(uid), e) for uid, e in apart.items()})
        return False

    async def _replay(self, move: Move, cursors: Mapping[UID, int]) -> None:
        batch: list[InBandMessage] = []
        for uid, after in cursors.items():
            async for page in self._pages(move.source, partial(shard_map.page, uid=uid), after):
                batch += page
                if len(batch) >= AT_ONCE:
                    await self._store(move, batch)
                    batch = []
        await self._store(move, batch)

    async def _store(self, move: Move, messages: Sequence[InBandMessage]) -> None:
        now = self._clock()
        target = self._databases[move.target]
        outcomes = await target.write(lambda c: consume(c, messages, now, moving=True))
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                raise _in_the_way(move, outcome.message.uid)

    async def _pages(
        self, name: str, page: Callable[..., list[Any]], after: Time
    ) -> AsyncIterator[list[Any]]:
        """Whatever `page` tells of a user's log after a ctime, page by page."""
        while True:
            found = await self._databases[name].read(partial(page, after=after))
            if found:
                yield found
            if len(found) < shard_map.PAGE:
                return
            after = found[-1].ctime

    async def _expect_nothing_else(self, move: Move) -> None:
        """What the target has of the bucket, from an earlier time, is to be part of what the
        source has: only then does the same clock and number mean the same messages."""
        for uid in await self._extents(move.target, move.bucket):
            if not await self._logs(move.target, uid) <= await self._logs(move.source, uid):
                raise _in_the_way(move, uid)

    async def _extents(self, name: str, bucket: int) -> dict[UID, Extent]:
        return await self._databases[name].read(lambda c: shard_map.extents(c, bucket))

    # Verifying

    async def verify(self, *, prune: bool = False) -> tuple[list[Finding], int]:
        """Compare the map with what the shards have, and what they have left over with what its
        holder has. With `prune`, remove what is left over of buckets in which nothing is missing.
        What was found, and in how many buckets something was, or is, left over."""
        placed = await read_map(self._databases)
        await self._tell(placed.values())
        findings: list[Finding] = []
        left_over = 0
        for name, database in self._databases.items():
            strays = await database.read(shard_map.strays)
            findings += (Finding(name, f"user {uid!r} is in a wrong bucket") for uid in strays)
            for bucket in sorted(await database.read(shard_map.loads)):
                if placed[bucket].shard == name:
                    continue
                missing = await self._missing(bucket, name, placed[bucket].shard)
                findings += missing
                left_over += 1
                if prune and not missing:
                    await database.write(partial(shard_map.prune, bucket=bucket))
        return findings, left_over

    async def _missing(self, bucket: int, name: str, holder: str) -> list[Finding]:
        """The users of a left-over bucket of whom its holder lacks something."""
        return [
            Finding(name, f"user {uid!r} has messages that shard {holder!r}, the holder, lacks")
            for uid in await self._extents(name, bucket)
            if not await self._logs(name, uid) <= await self._logs(holder, uid)
        ]

    async def _logs(self, name: str, uid: UID) -> set[Digest]:
        """The messages of a user, by ctime and a hash of what was sent."""
        log: set[Digest] = set()
        async for page in self._pages(name, partial(shard_map.digests, uid=uid), 0):
            log.update(page)
        return log


def _in_the_way(move: Move, uid: UID) -> GregorError:
    return GregorError(
        f"bucket {move.bucket} cannot be moved: shard {move.target!r} has messages of {uid!r} that "
        f"shard {move.source!r}, the holder, lacks; see `gregor shards verify`"
    )


def _resume(ours: Extent | None, theirs: Extent) -> int:
    """After which ctime to go on. Where the clocks agree and the numbers do not, something was
    stored behind the clock, and all is compared."""
    return 0 if ours is None or ours.ctime >= theirs.ctime else ours.ctime


def _sum(loads: Iterable[Load]) -> Load:
    several = list(loads)
    return (
        Load(*(sum(column) for column in zip(*several, strict=True))) if several else Load(0, 0, 0)
    )
