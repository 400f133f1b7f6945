"""Readiness: whether a server can do its work, and the problems if it cannot."""

import asyncio
import logging
import math
from collections.abc import Collection, Sequence

from gregor.errors import GregorError
from gregor.log_event import LogEvent
from gregor.node.node import Node

log = logging.getLogger("gregor.server")

STORE, PUBSUB = PARTS = ("store", "pubsub")  # what a server needs; a request can exclude parts
CHECK_INTERVAL_SECONDS = 5.0
STORE_TIMEOUT_SECONDS = 2.0
FRESH_SECONDS = 0.05


class Readiness:
    """The problems that the last check of a server's parts found. The service sets `stopping`."""

    def __init__(self, node: Node) -> None:
        self.stopping = False
        self._node = node
        self._was_ready = True  # when it was checked last
        self._problems: dict[str, Sequence[str]] = {}
        self._checked_at = -math.inf  # by the clock of the event loop
        self._checking = asyncio.Lock()

    @property
    def ready(self) -> bool:
        return not self.problems()

    def problems(self, excluded: Collection[str] = ()) -> list[str]:
        """The problems because of which the server is not ready, without those of excluded
        parts."""
        known = self._node.state_machine.known_problems()
        problems = ["it is stopping"] if self.stopping else []
        for part, of_part in (*self._problems.items(), (STORE, known)):
            if part not in excluded:
                problems += [problem for problem in of_part if problem not in problems]
        return problems

    def all_problems(self) -> list[str]:
        """All problems, including those of single shards. A shard that is down affects its own
        users only, so the server stays ready and a load balancer keeps using it."""
        problems = self.problems()
        partial = self._node.state_machine.partial_problems()
        return [*problems, *(problem for problem in partial if problem not in problems)]

    async def check_periodically(self) -> None:
        """Check every few seconds, for the log and the metrics, also without requests."""
        while True:
            await self.check()
            await asyncio.sleep(CHECK_INTERVAL_SECONDS)

    async def check_unless_fresh(self) -> None:
        """Check all parts, unless that was done just now: everybody may ask for it, and the store
        is asked for all of them at once."""
        async with self._checking:
            if asyncio.get_running_loop().time() - self._checked_at >= FRESH_SECONDS:
                await self.check()

    async def check(self) -> None:
        """Check all parts. Takes STORE_TIMEOUT_SECONDS at most."""
        self._problems = {STORE: await self._check_store(), PUBSUB: self._check_pubsub()}
        self._checked_at = asyncio.get_running_loop().time()
        was_ready, self._was_ready = self._was_ready, self.ready
        if was_ready and not self._was_ready:
            log.warning(LogEvent("not ready", problems=self.problems()))
        elif self._was_ready and not was_ready:
            log.info(LogEvent("ready again"))

    async def _check_store(self) -> list[str]:
        node = ["devices wait for the store"] if self._node.waiting_for_store else []
        return node + await self._store_problems()

    async def _store_problems(self) -> list[str]:
        try:
            async with asyncio.timeout(STORE_TIMEOUT_SECONDS):
                return list(await self._node.state_machine.problems())
        except TimeoutError:
            return [f"the store has not answered for {STORE_TIMEOUT_SECONDS:.0f} s"]
        except GregorError as error:
            return [str(error)]

    def _check_pubsub(self) -> list[str]:
        if self._node.pubsub is None or self._node.pubsub.up:
            return []
        return ["the pub/sub is down: devices receive messages from other servers late"]
