"""The devices that are connected to one server."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from gregor.errors import TooSlow
from gregor.server.delivery import Delivery
from gregor.server.metrics import Reading, counter, gauge

DRAIN_STEP_SECONDS = 0.1
SERVICE_RESTART = 1012  # the close code "service restart"


class Connections:
    """The deliveries to the devices that are connected now."""

    def __init__(self) -> None:
        self._deliveries: dict[Delivery, None] = {}
        self._ended_resets = 0  # slow consumer resets of deliveries that have ended

    def __len__(self) -> int:
        return len(self._deliveries)

    @contextmanager
    def serving(self, delivery: Delivery) -> Iterator[None]:
        """While the block runs, the delivery counts as connected, and ends if it is too slow."""
        self._deliveries[delivery] = None
        try:
            yield
        finally:
            del self._deliveries[delivery]
            self._ended_resets += delivery.session.slow_consumer_resets

    async def end_slow_consumers(self, seconds: float) -> None:
        """Periodically end deliveries whose device has accepted no data for this time."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for delivery in tuple(self._deliveries):
                since = delivery.writing_since
                if since is not None and now() - since > seconds:
                    delivery.end(TooSlow(f"the device read nothing for {now() - since:.0f} s"))

    async def send_away(self, seconds: float) -> None:
        """Ask the devices to reconnect, and close their conversations, evenly distributed over
        this time."""
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

    # For the metrics

    def readings(self) -> Iterator[Reading]:
        yield gauge("connections", "Devices connected now", lambda: len(self))
        yield gauge("users", "Users who have a device connected now", self._users)
        yield gauge(
            "lagging_sessions", "Devices that wait for a sync from the store", self._lagging
        )
        yield counter(
            "slow_consumer_resets",
            "How often the queue of a slow consumer was dropped",
            self._slow_consumer_resets,
        )

    def _users(self) -> int:
        return len({d.session.uid for d in self._deliveries if d.session.uid})

    def _lagging(self) -> int:
        return sum(delivery.session.lagging for delivery in self._deliveries)

    def _slow_consumer_resets(self) -> int:
        return self._ended_resets + sum(d.session.slow_consumer_resets for d in self._deliveries)


def _batches_over(deliveries: Sequence[Delivery], seconds: float) -> list[Sequence[Delivery]]:
    """Batches to send away one every DRAIN_STEP_SECONDS, or less often if there are few devices."""
    size = math.ceil(len(deliveries) / max(1, round(seconds / DRAIN_STEP_SECONDS)))
    return [deliveries[start : start + size] for start in range(0, len(deliveries), size)]
