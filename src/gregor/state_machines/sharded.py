"""The state machine of record over several shards: each user is in one of them.

It knows from the map which that is, and need not be right: a shard refuses what it does not hold,
and says who does. So the map here is learned anew by whoever trips over it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar

import structlog

from gregor.core.buckets import BUCKETS, bucket_of
from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import UID, DeviceID, InBandMessage
from gregor.core.state import State, Sync
from gregor.errors import Elsewhere, SetupError, Unavailable
from gregor.interfaces import Outcome, Rejected, StateMachineOfRecord
from gregor.state_machines import shard_map
from gregor.state_machines.shard_map import Placement
from gregor.state_machines.sql import SQLStateMachine
from gregor.state_machines.transactions import held_elsewhere
from gregor.storage.database import Database

log = structlog.get_logger("gregor.shards")

T = TypeVar("T")

LOOK_SECONDS = 1.0
SILENT_SECONDS = 2.0

# A bucket is closed for half a second at the most; one that cannot be moved is closed repeatedly.
PATIENCE_SECONDS = 5.0
PAUSE_SECONDS = 0.02


class Shard:
    """One of the shards. While it is known to be down, it fails at once; what waits for it waits
    in a queue, and for connections, of its own. Whatever answers when it was down, or was never
    there, may be another database, or an older one: it is `taken_in` before it is asked anything.
    """

    def __init__(
        self,
        name: str,
        machine: SQLStateMachine,
        shards: Collection[str],
        take_in: Callable[["Shard"], Awaitable[None]],
    ) -> None:
        self.name = name
        self.machine = machine
        self.trouble: str | None = None
        self.taken_in = False
        self._shards = shards
        self._take_in = take_in
        self._heard = 0.0

    async def ask(self, call: Callable[[SQLStateMachine], Awaitable[T]]) -> T:
        """What the shard answers. Raises Unavailable, in words that name the shard."""
        if self.trouble is not None:
            raise Unavailable(f"shard {self.name!r}: {self.trouble}")
        try:
            answer = await call(self.machine)
        except Elsewhere:
            raise
        except Unavailable as error:
            raise Unavailable(f"shard {self.name!r}: {error.message}") from error
        self._heard = asyncio.get_running_loop().time()
        return answer

    async def keep_looking(self) -> None:
        """Find out, time and again, whether it answers."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def recognise(self) -> None:
        """Raises SetupError if the database is not this shard, Unavailable if it is away."""
        _expect(self.name, await self.machine.database.read(shard_map.name_here), self._shards)

    async def exchange(self, placements: Iterable[Placement]) -> list[Placement]:
        """Have it know as much of the map as we do; what it knows better."""
        known = list(placements)
        return await self.machine.database.write(lambda c: shard_map.exchange(c, known))

    async def look(self) -> None:
        before, asked = self.trouble, asyncio.create_task(self._probe())
        try:
            while not (await asyncio.wait({asked}, timeout=SILENT_SECONDS))[0]:
                # A busy shard lets a question wait, but answers others meanwhile.
                if asyncio.get_running_loop().time() - self._heard > SILENT_SECONDS:
                    self.trouble = f"it has not answered for {SILENT_SECONDS:.0f} s"
            self.trouble = asked.result()
        finally:
            asked.cancel()
        if self.trouble is not None and before is None:
            log.warning("a shard is down", shard=self.name, trouble=self.trouble)
        elif self.trouble is None and before is not None:
            log.info("a shard is up again", shard=self.name)

    async def _probe(self) -> str | None:
        try:
            if not self.taken_in:
                await self.recognise()
                await self._take_in(self)
            await self.machine.ctimes([])
        except (Unavailable, SetupError) as error:
            self.taken_in = False
            return error.message
        self._heard = asyncio.get_running_loop().time()
        return None


class ShardedStateMachine(StateMachineOfRecord):
    """A StateMachineOfRecord over one for each shard, by name, on databases that are open. To be
    opened itself, with `async with`; raises SetupError if the map that the databases hold is not
    about these shards.

    A shard that is down fails its own users: their messages are Rejected with Unavailable, and may
    be sent again. Others notice nothing.
    """

    def __init__(self, machines: Mapping[str, SQLStateMachine]) -> None:
        self.shards = {
            name: Shard(name, machine, machines, self._take_in)
            for name, machine in machines.items()
        }
        self._map: dict[int, Placement] = {}
        self._tasks = asyncio.TaskGroup()
        self._looking: list[asyncio.Task[None]] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for shard in self.shards.values():
                await stack.enter_async_context(shard.machine)
            await self._read_map()
            await self._tasks.__aenter__()
            self._looking = [
                self._tasks.create_task(shard.keep_looking()) for shard in self.shards.values()
            ]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._looking:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)
        await self._stack.__aexit__(None, None, None)

    @property
    def databases(self) -> dict[str, Database]:
        return {name: shard.machine.database for name, shard in self.shards.items()}

    @property
    def skew(self) -> Time:
        """That of the shard whose clock is farthest from this machine's."""
        return max((shard.machine.skew for shard in self.shards.values()), key=abs)

    # Consuming

    async def consume_messages(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        outcomes = await self._consume_once(messages)
        clock = asyncio.get_running_loop().time
        give_up = clock() + PATIENCE_SECONDS
        while refusals := _refusals(outcomes):
            if clock() > give_up:
                break
            await self._learn_all(messages, refusals)
            again = await self._consume_once([messages[place] for place in refusals])
            for place, outcome in zip(refusals, again, strict=True):
                outcomes[place] = outcome
        # Nobody took anything: say so, as one that is alone would.
        if outcomes and all(_unavailable(outcome) for outcome in outcomes):
            assert isinstance(outcomes[0], Rejected)
            raise outcomes[0].error
        return outcomes

    async def _consume_once(self, messages: Sequence[InBandMessage]) -> list[Outcome]:
        """What becomes of the messages, each taken to the shard of its user."""
        shares: dict[str, list[int]] = {}
        for place, message in enumerate(messages):
            name = self._map[bucket_of(message.uid)].shard
            shares.setdefault(name, []).append(place)
        if len(shares) == 1:  # with no need of a task it begins at once
            return list(await self._consume_share(name, messages))
        taken = await asyncio.gather(
            *(
                self._consume_share(name, [messages[place] for place in share])
                for name, share in shares.items()
            )
        )
        placed = {
            place: outcome
            for share, outcomes in zip(shares.values(), taken, strict=True)
            for place, outcome in zip(share, outcomes, strict=True)
        }
        return [placed[place] for place in range(len(messages))]

    async def _consume_share(
        self, name: str, messages: Sequence[InBandMessage]
    ) -> Sequence[Outcome]:
        """What becomes of each; what the shard cannot take now is Rejected for that."""
        try:
            return await self._shard(name).ask(lambda machine: machine.consume_messages(messages))
        except Unavailable as error:
            return [Rejected(message, error) for message in messages]

    async def _learn_all(
        self, messages: Sequence[InBandMessage], refusals: Mapping[int, Elsewhere]
    ) -> None:
        buckets = {bucket_of(messages[place].uid): error for place, error in refusals.items()}
        for error in buckets.values():
            try:
                await self._learn(error)
            except Unavailable:
                await asyncio.sleep(PAUSE_SECONDS)

    # Asking

    async def state(
        self, uid: UID, device_id: DeviceID | None = None, at: TimeOrOffset | None = None
    ) -> State:
        return await self._ask(uid, lambda machine: machine.state(uid, device_id, at))

    async def in_band_messages_since(
        self, uid: UID, device_id: DeviceID | None, since: TimeOrOffset
    ) -> list[InBandMessage]:
        return await self._ask(
            uid, lambda machine: machine.in_band_messages_since(uid, device_id, since)
        )

    async def sync(self, uid: UID, device_id: DeviceID | None, cursor: Time) -> Sync:
        return await self._ask(uid, lambda machine: machine.sync(uid, device_id, cursor))

    async def _ask(self, uid: UID, call: Callable[[SQLStateMachine], Awaitable[T]]) -> T:
        clock = asyncio.get_running_loop().time
        give_up = clock() + PATIENCE_SECONDS
        while True:
            shard = self._shard(self._map[bucket_of(uid)].shard)
            try:
                return await shard.ask(call)
            except Elsewhere as error:
                if clock() > give_up:
                    raise
                await self._learn(error)

    async def ctimes(self, uids: Sequence[UID]) -> Mapping[UID, Time]:
        """Users of shards that do not answer are left out; if none does, Unavailable is raised."""
        shares: defaultdict[str, list[UID]] = defaultdict(list)
        for uid in uids:
            shares[self._map[bucket_of(uid)].shard].append(uid)
        answers = await asyncio.gather(
            *(self._clocks(name, share) for name, share in shares.items()), return_exceptions=True
        )
        clocks: dict[UID, Time] = {}
        failures: list[Unavailable] = []
        for answer in answers:
            match answer:
                case Unavailable():
                    failures.append(answer)
                case BaseException():
                    raise answer
                case _:
                    clocks |= answer
        if failures and len(failures) == len(answers):
            raise failures[0]
        return clocks

    async def _clocks(self, name: str, uids: Sequence[UID]) -> Mapping[UID, Time]:
        shard = self._shard(name)
        try:
            async with asyncio.timeout(SILENT_SECONDS):
                clocks = await shard.ask(lambda machine: machine.ctimes(uids))
                gone = {bucket_of(uid) for uid in uids if uid not in clocks}
                if gone:  # they are asked for where they are now by the next sweep
                    for error in await shard.machine.database.read(
                        lambda c: held_elsewhere(c, gone)
                    ):
                        await self._learn(error)
        except TimeoutError:
            raise Unavailable(f"shard {name!r} has not answered in time") from None
        return clocks

    async def troubles(self) -> Sequence[str]:
        """What all shards suffer from: while one works, so does this."""
        troubles = self.shard_troubles()
        return [] if len(troubles) < len(self.shards) else troubles

    def shard_troubles(self) -> list[str]:
        """What is wrong with single shards."""
        return [f"shard {s.name!r}: {s.trouble}" for s in self.shards.values() if s.trouble]

    # The map

    async def _read_map(self) -> None:
        """From those shards that are there: each knows of all buckets, and refuses what it has
        given away, whatever we may have heard of it."""
        await self._ask_each(self.shards.values(), Shard.recognise)
        if await self.troubles():
            raise SetupError(f"no shard answers: {'; '.join(self.shard_troubles())}")
        there = {name: shard for name, shard in self.shards.items() if shard.trouble is None}
        databases = {name: shard.machine.database for name, shard in there.items()}
        self._map = await _newest(databases, self.shards.keys() - there.keys())
        await self._ask_each(there.values(), self._take_in)

    async def _ask_each(
        self, shards: Collection[Shard], question: Callable[[Shard], Awaitable[None]]
    ) -> None:
        """A shard that does not answer is in trouble, until a look finds it otherwise."""
        found = await asyncio.gather(*map(question, shards), return_exceptions=True)
        for shard, error in zip(shards, found, strict=True):
            match error:
                case Unavailable():
                    shard.trouble, shard.taken_in = error.message, False
                case BaseException():
                    raise error

    async def _take_in(self, shard: Shard) -> None:
        """Know what the shard knows, and have it know the same. One that was restored from a backup
        has forgotten what it gave away since, and would take messages for it."""
        shard.taken_in = True  # unless there is news meanwhile
        news = await shard.exchange(self._map.values())
        if news:
            self._map = merged([*self._map.values(), *news])
            for other in self.shards.values():
                if other is not shard:
                    other.taken_in = False  # it is told at its next look

    def _shard(self, name: str) -> Shard:
        try:
            return self.shards[name]
        except KeyError:
            raise Unavailable(
                f"this node does not know shard {name!r}, where the user is now; "
                f"start it again with --store {name}=URL besides the others"
            ) from None

    async def _learn(self, told: Elsewhere) -> None:
        """Take in what a shard said who refused a bucket."""
        known = self._map[told.bucket]
        if told.version > known.version:
            self._map[told.bucket] = Placement(told.bucket, told.shard, told.version)
            self._shard(told.shard)
        elif told.version < known.version:
            # It does not know yet that it was given the bucket. Who gave it does, and told us.
            owner = self._shard(known.shard)
            await owner.ask(lambda m: m.database.write(lambda c: shard_map.adopt(c, [known])))
        else:
            await asyncio.sleep(PAUSE_SECONDS)  # it is on its way


def _refusals(outcomes: Sequence[Outcome]) -> dict[int, Elsewhere]:
    """By their places, those that were taken to a shard which does not hold the user."""
    return {
        place: outcome.error
        for place, outcome in enumerate(outcomes)
        if isinstance(outcome, Rejected) and isinstance(outcome.error, Elsewhere)
    }


def _unavailable(outcome: Outcome) -> bool:
    return isinstance(outcome, Rejected) and isinstance(outcome.error, Unavailable)


# The map as the shards have it


async def read_map(databases: Mapping[str, Database]) -> dict[int, Placement]:
    """Where each bucket is. Raises SetupError if these are not the shards that the map is about,
    and says how to mend that."""
    names = await asyncio.gather(*(d.read(shard_map.name_here) for d in databases.values()))
    for configured, found in zip(databases, names, strict=True):
        _expect(configured, found, databases)
    return await _newest(databases)


async def _newest(
    databases: Mapping[str, Database], away: Collection[str] = ()
) -> dict[int, Placement]:
    """The same by shards that are known to be what they are called; `away` are not asked."""
    known = await asyncio.gather(*(d.read(shard_map.placements) for d in databases.values()))
    newest = merged(placement for placements in known for placement in placements)
    missing = {p.shard for p in newest.values()} - {*databases, *away}
    if missing:
        raise SetupError(
            f"the map has buckets with shard {min(missing)!r}, which is not configured; "
            f"add --store {min(missing)}=URL"
        )
    if len(newest) < BUCKETS:
        raise SetupError(
            f"the map knows {len(newest)} of {BUCKETS} buckets; a shard is missing, or its "
            "database was made anew: configure all of them, or restore it from a backup"
        )
    return newest


def _expect(configured: str, found: str | None, shards: Iterable[str]) -> None:
    """Raises SetupError unless the shard that was found is the one which is configured."""
    if found is None:
        stores = " ".join(f"--store {name}=URL" for name in shards)
        raise SetupError(
            f"the database configured as shard {configured!r} is none yet; take it in with "
            f"`gregor migrate {stores}`"
        )
    if found != configured:
        raise SetupError(
            f"the database configured as shard {configured!r} is shard {found!r}; "
            f"write --store {found}=… before its URL"
        )


def merged(placements: Iterable[Placement]) -> dict[int, Placement]:
    """By bucket, what was placed last."""
    newest: dict[int, Placement] = {}
    for placement in placements:
        known = newest.get(placement.bucket)
        if known is None or known.version < placement.version:
            newest[placement.bucket] = placement
    return newest
