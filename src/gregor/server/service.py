"""What all ways in and out of one server share: the node, who may use it, and who is connected."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from gregor.core.message import Message
from gregor.errors import TooSlow, Unavailable
from gregor.node import Node
from gregor.protocol.frames import Result
from gregor.server.auth import Authenticator
from gregor.server.delivery import Delivery
from gregor.server.metrics import Metrics
from gregor.server.readiness import Readiness
from gregor.server.siblings import Siblings

HELLO_SECONDS = 5.0
SLOWEST_SECONDS = 30.0
STEP_SECONDS = 0.1
GOING_AWAY = 1012


class Service:
    """One node, put to the service of devices and backends.

    A device has `hello_seconds` to say who it is. While `async with` holds the service, one that
    accepts nothing for `slowest_seconds` is disconnected.
    """

    def __init__(
        self,
        node: Node,
        authenticator: Authenticator,
        metrics: Metrics,
        readiness: Readiness,
        deliveries: dict[Delivery, None],
        *,
        siblings: Siblings | None = None,
        hello_seconds: float = HELLO_SECONDS,
        slowest_seconds: float = SLOWEST_SECONDS,
    ) -> None:
        self.node = node
        self.authenticator = authenticator
        self.metrics = metrics
        self.readiness = readiness
        self.hello_seconds = hello_seconds
        self.slowest_seconds = slowest_seconds
        self._deliveries = deliveries
        self._siblings = siblings
        self._injecting = 0
        self._settled = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        background = (self._watch(), self.readiness.keep_looking())
        self._background = [self._tasks.create_task(loop) for loop in background]
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._background:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def inject(self, entries: Sequence[Message | Result]) -> list[Result]:
        """Inject messages, in order; an entry that is a result already stays what it is.
        Raises Unavailable if the store does not answer, or if this server is leaving."""
        if self.draining:
            raise Unavailable("this server is stopping; send it again to another")
        messages = [entry for entry in entries if not isinstance(entry, Result)]
        self.metrics.refused(len(entries) - len(messages))
        self._injecting += 1
        try:
            outcomes = iter(await self.node.inject(messages) if messages else ())
        finally:
            self._injecting -= 1
            self._settled.set()
        return [e if isinstance(e, Result) else Result.of(next(outcomes)) for e in entries]

    @property
    def draining(self) -> bool:
        """Whether this server is stopping, and takes nothing new."""
        return self.readiness.stopping

    @property
    def busy(self) -> bool:
        """Whether something is being injected."""
        return self._injecting > 0

    @contextmanager
    def serving(self, delivery: Delivery) -> Iterator[None]:
        """While the block runs, the delivery counts as connected and is watched over."""
        self._deliveries[delivery] = None
        try:
            yield
        finally:
            del self._deliveries[delivery]

    async def page(self) -> bytes:
        """The metrics of this server, all of its workers included."""
        return self.metrics.page() if self._siblings is None else await self._siblings.page()

    async def _watch(self) -> None:
        """End deliveries whose device accepts nothing."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(1.0, self.slowest_seconds / 4))
            for delivery in tuple(self._deliveries):
                since = delivery.writing_since
                if since is not None and now() - since > self.slowest_seconds:
                    delivery.end(TooSlow(f"nothing was accepted for {now() - since:.0f} s"))

    async def drain(self, seconds: float) -> None:
        """Refuse new work, finish what is under way, and send the devices away, evenly over the
        time given."""
        self.readiness.stopping = True
        await self._finish(seconds)
        leaving = list(self._deliveries)
        if not leaving:
            return
        within_ms = max(1000, round(seconds * 1000))
        batches = _spread(leaving, seconds)
        for batch in batches:
            for delivery in batch:
                delivery.session.go_away(within_ms)
                delivery.session.leave(GOING_AWAY, "going away")
                delivery.wake()
            if batch is not batches[-1]:
                await asyncio.sleep(seconds / len(batches))
        # The last words take a moment to be written.
        await asyncio.wait([delivery.task for delivery in leaving], timeout=1.0)

    async def _finish(self, seconds: float) -> None:
        """Wait until what is being injected has its answer, so that a device leaves with it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, seconds)):
                while self.busy:
                    self._settled.clear()
                    await self._settled.wait()


def _spread(leaving: Sequence[Delivery], seconds: float) -> list[Sequence[Delivery]]:
    """Batches of which one goes every STEP_SECONDS, or less often if they are few."""
    size = math.ceil(len(leaving) / max(1, round(seconds / STEP_SECONDS)))
    return [leaving[start : start + size] for start in range(0, len(leaving), size)]
