"""Whether a server can do its work; if not, why."""

import asyncio
from collections.abc import Collection, Sequence

import structlog

from gregor.errors import GregorError
from gregor.node import Node
from gregor.pubsub.interface import PubSub
from gregor.state_machines.sharded import ShardedStateMachine

log = structlog.get_logger("gregor.server")

STORE, PUBSUB = PARTS = ("store", "pubsub")  # what a server needs, and may be told to do without
LOOK_SECONDS = 5.0
STORE_SECONDS = 2.0


class Readiness:
    """What the last look at a server's parts has found. `stopping` is said, and not found."""

    def __init__(self, node: Node, pubsub: PubSub | None) -> None:
        self.stopping = False
        self._node = node
        self._pubsub = pubsub
        self._found: dict[str, Sequence[str]] = {}

    @property
    def ready(self) -> bool:
        return not self.troubles()

    def troubles(self, excluded: Collection[str] = ()) -> list[str]:
        """What keeps the server from its work, apart from the excluded parts."""
        parts = (troubles for part, troubles in self._found.items() if part not in excluded)
        return [
            *(["it is stopping"] if self.stopping else ()),
            *(t for part in parts for t in part),
        ]

    def noted(self) -> list[str]:
        """All that is wrong, also with single shards: their users suffer from it, and others are
        served, so that no balancer should send them away."""
        store = self._node.state_machine
        shards = store.shard_troubles() if isinstance(store, ShardedStateMachine) else []
        return [*self.troubles(), *(t for t in shards if t not in self.troubles())]

    async def keep_looking(self) -> None:
        """Look every few seconds, so that it is known also where nobody asks."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look at all parts. No wait is longer than STORE_SECONDS."""
        before = self.ready
        self._found = {STORE: await self._look_at_store(), PUBSUB: self._look_at_pubsub()}
        if before and not self.ready:
            log.warning("not ready", troubles=self.troubles())
        elif self.ready and not before:
            log.info("ready again")

    async def _look_at_store(self) -> list[str]:
        waiting = ["devices wait for the store"] if self._node.behind else []
        return waiting + await self._ask_store()

    async def _ask_store(self) -> list[str]:
        store = self._node.state_machine
        try:
            async with asyncio.timeout(STORE_SECONDS):
                troubles = list(await store.troubles())
        except TimeoutError:
            return [f"the store has not answered for {STORE_SECONDS:.0f} s"]
        except GregorError as error:
            return [error.message]
        return troubles

    def _look_at_pubsub(self) -> list[str]:
        if self._pubsub is None or self._pubsub.up:
            return []
        return ["the pub/sub is down: devices hear late what other servers have stored"]
