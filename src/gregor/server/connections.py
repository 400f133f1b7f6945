"""The devices that are connected to one server."""

import asyncio
import math
from collections.abc import Iterator, Sequence

from gregor.errors import TooSlow
from gregor.node.conversation import Conversation, DeliveryCounts
from gregor.server.metrics import Reading, counter, gauge

DRAIN_STEP_SECONDS = 0.1
# Devices are sent away one after the other, so that each can come back soon.
RECONNECT_AFTER_MS = 500
SERVICE_RESTART = 1012  # the close code "service restart"


class Connections:
    """The conversations with the devices that are connected now."""

    def __init__(self) -> None:
        self.counts = DeliveryCounts()
        self._conversations: dict[Conversation, None] = {}
        self._ended_resets = 0  # slow consumer resets of conversations that have ended

    def __len__(self) -> int:
        return len(self._conversations)

    def add(self, conversation: Conversation) -> None:
        """The device counts as connected; if it is too slow, the conversation ends."""
        self._conversations[conversation] = None

    def remove(self, conversation: Conversation) -> None:
        """The conversation has ended."""
        del self._conversations[conversation]
        self._ended_resets += conversation.session.slow_consumer_resets

    async def end_slow_consumers(self, seconds: float) -> None:
        """Periodically end conversations whose device has accepted no data for this time."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(1.0, seconds / 4))
            for conversation in tuple(self._conversations):
                since = conversation.writing_since
                if since is not None and now() - since > seconds:
                    conversation.end(TooSlow(f"the device read nothing for {now() - since:.0f} s"))

    async def send_away(self, seconds: float) -> None:
        """Ask the devices to reconnect, and close their conversations, evenly distributed over
        this time."""
        conversations = list(self._conversations)
        if not conversations:
            return
        batches = _batches_over(conversations, seconds)
        for batch in batches:
            for conversation in batch:
                conversation.go_away(RECONNECT_AFTER_MS)
                conversation.close(SERVICE_RESTART, "going away")
            if batch is not batches[-1]:
                await asyncio.sleep(seconds / len(batches))
        # Give the writers time to send the last frames, but not to a device that reads nothing.
        tasks = {conversation.task: conversation for conversation in conversations}
        _, pending = await asyncio.wait(tasks, timeout=1.0)
        for task in pending:
            tasks[task].end(TooSlow("the device did not read its goaway"))

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
        yield counter("deliveries", "Messages written to devices", lambda: self.counts.delivered)
        yield counter(
            "hash_mismatches",
            "Snapshots that devices requested because their state hash differed",
            lambda: self.counts.mismatches,
        )

    def _users(self) -> int:
        return len({c.session.uid for c in self._conversations if c.session.uid})

    def _lagging(self) -> int:
        return sum(conversation.session.lagging for conversation in self._conversations)

    def _slow_consumer_resets(self) -> int:
        return self._ended_resets + sum(c.session.slow_consumer_resets for c in self._conversations)


def _batches_over(all_: Sequence[Conversation], seconds: float) -> list[Sequence[Conversation]]:
    """Batches to send away one every DRAIN_STEP_SECONDS, or less often if there are few devices."""
    size = math.ceil(len(all_) / max(1, round(seconds / DRAIN_STEP_SECONDS)))
    return [all_[start : start + size] for start in range(0, len(all_), size)]
