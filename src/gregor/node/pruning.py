"""Forgets the history of all users: small steps, with pauses, from time to time.

Each part of the store (a database, or each of the shards) is walked by itself, so that one that is
down keeps no other from being pruned. A failure is logged and counted, and the walk begins again
later: steps are idempotent.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple, Protocol

from gregor.core.history import Cutoff, Retention
from gregor.core.instant import Time
from gregor.errors import InvalidMessage, Unavailable
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

PAUSES = 15
"""A pause is so many times as long as the step before it: pruning takes 1/16 of the store's time,
whatever its speed."""


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
    """The walks over one part: what they have forgotten, how many failed, and when the last one was
    whole, by the clock of the event loop."""

    def __init__(self, name: str, part: Prunable) -> None:
        self.name = name
        self.part = part
        self.forgotten = Forgotten()
        self.failures = 0
        self.whole_at: float | None = None
        self.lock = asyncio.Lock()

    async def walk(self, cutoff: Cutoff) -> Forgotten:
        """Go over all users once. Returns what this walk has forgotten."""
        clock = asyncio.get_running_loop().time
        async with self.lock:
            forgotten, place = Forgotten(), ""
            while True:
                begun = clock()
                step = await self.part.prune(cutoff, place)
                self.forgotten = self.forgotten.and_in(step)
                forgotten = forgotten.and_in(step)
                if step.last is None:
                    self.whole_at = clock()
                    return forgotten
                place = step.last
                await asyncio.sleep(PAUSES * (clock() - begun))
