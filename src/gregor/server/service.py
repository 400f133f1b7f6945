"""What all endpoints of one server share: the node, authentication, and the connected devices."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from gregor.core.message import Message
from gregor.errors import TooSlow, Unavailable
from gregor.interfaces import Caller, Outcome, Rejected
from gregor.node.node import Node
from gregor.server.auth import Authenticator
from gregor.server.delivery import Delivery
from gregor.server.metrics import Metrics
from gregor.server.readiness import Readiness
from gregor.server.worker_metrics import WorkerMetrics

HELLO_SECONDS = 5.0
WRITE_TIMEOUT_SECONDS = 30.0
DRAIN_STEP_SECONDS = 0.1
SERVICE_RESTART = 1012  # the close code "service restart"


class Service:
    """One node, with everything that serves devices and backends. Open it with `async with`.

    A device must send its hello within `hello_seconds`. A device that accepts no data for
    `write_timeout_seconds` is disconnected.
    """

    def __init__(
        self,
        node: Node,
        authenticator: Authenticator,
        metrics: Metrics,
        readiness: Readiness,
        deliveries: dict[Delivery, None],
        *,
        worker_metrics: WorkerMetrics | None = None,
        hello_seconds: float = HELLO_SECONDS,
        write_timeout_seconds: float = WRITE_TIMEOUT_SECONDS,
    ) -> None:
        self.node = node
        self.authenticator = authenticator
        self.metrics = metrics
        self.readiness = readiness
        self.hello_seconds = hello_seconds
        self.write_timeout_seconds = write_timeout_seconds
        self._deliveries = deliveries
        self._worker_metrics = worker_metrics
        self._injects_in_flight = 0
        self._inject_finished = asyncio.Event()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        background = (self._end_slow_consumers(), self.readiness.check_periodically())
        self._background = [self._tasks.create_task(loop) for loop in background]
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._background:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def inject(self, caller: Caller, entries: Sequence[Message | Rejected]) -> list[Outcome]:
        """Inject messages, in order, and return the outcome of each entry. Raises Unavailable if
        the store does not answer, or if this server is stopping."""
        if self.draining:
            raise Unavailable("this server is stopping; retry with another server")
        self._injects_in_flight += 1
        try:
            return await self.node.inject(caller, entries)
        finally:
            self._injects_in_flight -= 1
            self._inject_finished.set()

    @property
    def draining(self) -> bool:
        """Whether this server is stopping, and accepts no new messages."""
        return self.readiness.stopping

    @property
    def busy(self) -> bool:
        """Whether an inject is in flight."""
        return self._injects_in_flight > 0

    @contextmanager
    def serving(self, delivery: Delivery) -> Iterator[None]:
        """While the block runs, the delivery counts as connected, and ends if it is too slow."""
        self._deliveries[delivery] = None
        try:
            yield
        finally:
            del self._deliveries[delivery]

    async def metrics_page(self) -> bytes:
        """The metrics of this server, including those of all its workers."""
        if self._worker_metrics is None:
            return self.metrics.page()
        return await self._worker_metrics.page()

    async def _end_slow_consumers(self) -> None:
        """End deliveries whose device accepts no data."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(1.0, self.write_timeout_seconds / 4))
            for delivery in tuple(self._deliveries):
                since = delivery.writing_since
                if since is not None and now() - since > self.write_timeout_seconds:
                    delivery.end(TooSlow(f"the device read nothing for {now() - since:.0f} s"))

    async def drain(self, seconds: float) -> None:
        """Refuse new work, finish the injects in flight, and send the devices away, evenly
        distributed over this time."""
        self.readiness.stopping = True
        await self._wait_for_injects(seconds)
        deliveries = list(self._deliveries)
        if not deliveries:
            return
        within_ms = max(1000, round(seconds * 1000))
        batches = _batches_over(deliveries, seconds)
        for batch in batches:
            for delivery in batch:
                delivery.session.go_away(within_ms)
                delivery.session.close(SERVICE_RESTART, "going away")
                delivery.wake()
            if batch is not batches[-1]:
                await asyncio.sleep(seconds / len(batches))
        # Give the writers time to send the last frames.
        await asyncio.wait([delivery.task for delivery in deliveries], timeout=1.0)

    async def _wait_for_injects(self, seconds: float) -> None:
        """Wait until no inject is in flight, so that devices get their acks before the goaway."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, seconds)):
                while self.busy:
                    self._inject_finished.clear()
                    await self._inject_finished.wait()


def _batches_over(deliveries: Sequence[Delivery], seconds: float) -> list[Sequence[Delivery]]:
    """Batches to send away one every DRAIN_STEP_SECONDS, or less often if there are few devices."""
    size = math.ceil(len(deliveries) / max(1, round(seconds / DRAIN_STEP_SECONDS)))
    return [deliveries[start : start + size] for start in range(0, len(deliveries), size)]
