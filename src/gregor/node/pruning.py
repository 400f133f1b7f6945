"""Forgets the history of all users: small steps, with pauses, from time to time.

Each part of the store (a database, or each of the shards) is walked by itself, so that one that is
down keeps no other from being pruned. A failure is logged and counted, and the walk begins again
later: steps are idempotent.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from time import monotonic
from typing import NamedTuple, Protocol

from gregor.core.admission import EARLIEST_TIME
from gregor.core.history import Cutoff, Retention
from gregor.core.instant import Time
from gregor.errors import GregorError, InvalidMessage, LeaseHeld
from gregor.interfaces import PruneStep
from gregor.log_event import LogEvent

log = logging.getLogger("gregor.node")

WALK_SECONDS = 6 * 3600.0
"""From the end of a walk to the next."""

RETRY_SECONDS = 60.0
"""After one that has failed, or that found that another node walks."""

FIRST_SECONDS = 60.0
"""From the start of a node to its first walk, at most: nodes that start together begin at different
times."""

PAUSES = 15.0
"""A pause is so many times as long as the step before it: pruning takes 1/16 of the store's time,
whatever its speed."""

LONGEST_PAUSE_SECONDS = 5.0
"""A step that took longer has waited for others. The lease is longer."""

# Together longer than a lease.
LEASE_ATTEMPTS = 20
LEASE_RETRY_SECONDS = 1.0


class Prunable(Protocol):
    """A part of a store that is pruned by itself."""

    async def prune(self, cutoff: Cutoff, after: str = "") -> PruneStep:
        """As StateMachineOfRecord."""
        ...


class Forgotten(NamedTuple):
    """Of how many users how many messages have lost their contents, and how many ids are gone."""

    users: int = 0
    contents: int = 0
    ids: int = 0

    def and_in(self, step: PruneStep) -> "Forgotten":
        return Forgotten(
            self.users + step.users, self.contents + step.contents, self.ids + step.ids
        )


class Walks:
    """The walks over one part: what they have forgotten, and how many of the background ones have
    failed. `age` is for how long there was no whole one."""

    def __init__(
        self, name: str, part: Prunable, seconds: Callable[[], float], pauses: float
    ) -> None:
        self.name = name
        self.forgotten = Forgotten()
        self.failures = 0
        self._part = part
        self._seconds = seconds
        self._pauses = pauses
        self._whole_at = seconds()
        self._walking = asyncio.Lock()

    @property
    def age(self) -> float:
        """In seconds."""
        return self._seconds() - self._whole_at

    async def walk(self, cutoff: Cutoff) -> Forgotten:
        """Go over all users and ids once. Returns what this walk has forgotten."""
        async with self._walking:
            forgotten, place = Forgotten(), ""
            while True:
                begun = self._seconds()
                step = await self._part.prune(cutoff, place)
                self.forgotten = self.forgotten.and_in(step)
                forgotten = forgotten.and_in(step)
                if step.last is None:
                    self._whole_at = self._seconds()
                    return forgotten
                place = step.last
                pause = self._pauses * (self._seconds() - begun)
                await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))

    async def walk_when_free(self, cutoff: Cutoff) -> Forgotten:
        """The same; first wait until the lease of a node that was killed has run out. Raises
        LeaseHeld if another node goes on."""
        for _ in range(LEASE_ATTEMPTS):
            with suppress(LeaseHeld):
                return await self.walk(cutoff)
            await asyncio.sleep(LEASE_RETRY_SECONDS)
        return await self.walk(cutoff)


class Pruner:
    """Prunes the parts of a store, by their names, as the retention says. `run` does so in the
    background, and `prune` at once."""

    def __init__(
        self,
        parts: Mapping[str, Prunable],
        retention: Retention,
        clock: Callable[[], Time],
        *,
        pauses: float = PAUSES,
        seconds: Callable[[], float] = monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.retention = retention
        self.walks = [Walks(name, part, seconds, pauses) for name, part in parts.items()]
        self._clock = clock
        self._jitter = jitter

    async def run(self) -> None:
        """Prune from time to time, until this is cancelled or fails. Returns at once if history is
        kept for ever."""
        if not self.retention.contents:
            return
        async with asyncio.TaskGroup() as tasks:
            for walks in self.walks:
                tasks.create_task(self._repeat(walks))

    async def _repeat(self, walks: Walks) -> None:
        pause = FIRST_SECONDS * self._jitter()
        while True:
            await asyncio.sleep(pause)
            pause = await self._walk_once(walks)

    async def _walk_once(self, walks: Walks) -> float:
        """Returns the time until the next walk."""
        try:
            await walks.walk(self._cutoff())
        except LeaseHeld:  # another node prunes
            return RETRY_SECONDS
        except GregorError as error:
            walks.failures += 1
            log.warning(LogEvent("history not pruned", shard=walks.name, reason=str(error)))
            return RETRY_SECONDS
        return WALK_SECONDS

    async def prune(self, older_than: Time | None = None) -> Forgotten:
        """Prune all parts now: what is past for as long as the retention says, or for
        `older_than` microseconds. Raises InvalidMessage if that is no such time. If a part cannot
        be pruned, the others are; then raises its error."""
        cutoff = self._cutoff(older_than)
        walks = (walks.walk_when_free(cutoff) for walks in self.walks)
        results = await asyncio.gather(*walks, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        done = [result for result in results if isinstance(result, Forgotten)]
        return Forgotten(*map(sum, zip(*done, strict=True)))

    def _cutoff(self, older_than: Time | None = None) -> Cutoff:
        now = self._clock()
        retention = self.retention
        if older_than is not None:
            retention = retention._replace(contents=_checked(older_than, now))
        cutoff = retention.cutoff(now)
        if cutoff is None:
            raise InvalidMessage(
                "history is kept for ever here (`--history 0`): say how much of it to forget, such"
                " as 30d",
                field="older_than",
            )
        return cutoff


def _checked(older_than: Time, now: Time) -> Time:
    """Raises InvalidMessage unless this is a time that has passed, since there were computers."""
    if older_than <= 0:
        raise InvalidMessage(
            "`older_than` must be more than 0: what is past for so long is forgotten, such as 30d",
            field="older_than",
        )
    if now - older_than < EARLIEST_TIME:
        raise InvalidMessage(
            "`older_than` reaches back to before 2001: give a duration such as 30d",
            field="older_than",
        )
    return older_than
