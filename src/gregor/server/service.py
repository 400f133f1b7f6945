"""What all endpoints of one server share: the node, authentication, and the connected devices."""

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Self

from gregor.core.message import Message
from gregor.errors import Forbidden, TooSlow, Unavailable
from gregor.interfaces import Caller, Outcome, Rejected
from gregor.node.conversation import Admission, Channel, Conversation, Resumption
from gregor.node.node import Node
from gregor.server.auth import Authenticator, Role
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
        conversations: dict[Conversation, None],
        *,
        worker_metrics: WorkerMetrics | None = None,
        hello_seconds: float = HELLO_SECONDS,
        write_timeout_seconds: float = WRITE_TIMEOUT_SECONDS,
    ) -> None:
        self.node = node
        self.authenticator = authenticator
        self.metrics = metrics
        self.counts = metrics
        self.readiness = readiness
        self.hello_seconds = hello_seconds
        self.write_timeout_seconds = write_timeout_seconds
        self._conversations = conversations
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

    async def serve(self, channel: Channel, resumption: Resumption | None = None) -> None:
        """Run a conversation over the channel until it ends. It counts as connected, and ends if
        its device is too slow."""
        conversation = Conversation(self, channel)
        self._conversations[conversation] = None
        try:
            await conversation.run(resumption)
        finally:
            del self._conversations[conversation]
            self.metrics.slow_consumer_resets += conversation.session.slow_consumer_resets

    async def admit(self, token: str, seconds: float) -> Admission:
        """The user whose device has this token. Raises Unauthenticated, and Forbidden if the token
        is not a device's."""
        identity = self.authenticator.identify(token)
        if identity.role is not Role.DEVICE:
            raise Forbidden("a service token cannot connect a device; use the role `device`")
        return Admission(identity.uid, identity.expires_at)

    async def metrics_page(self) -> bytes:
        """The metrics of this server, including those of all its workers."""
        if self._worker_metrics is None:
            return self.metrics.page()
        return await self._worker_metrics.page()

    async def _end_slow_consumers(self) -> None:
        """End conversations whose device accepts no data."""
        now = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(min(1.0, self.write_timeout_seconds / 4))
            for conversation in tuple(self._conversations):
                since = conversation.writing_since
                if since is not None and now() - since > self.write_timeout_seconds:
                    conversation.end(TooSlow(f"the device read nothing for {now() - since:.0f} s"))

    async def drain(self, seconds: float) -> None:
        """Refuse new work, finish the injects in flight, and send the devices away, evenly
        distributed over this time."""
        self.readiness.stopping = True
        await self._wait_for_injects(seconds)
        conversations = list(self._conversations)
        if not conversations:
            return
        within_ms = max(1000, round(seconds * 1000))
        batches = _batches_over(conversations, seconds)
        for batch in batches:
            for conversation in batch:
                conversation.go_away(within_ms)
                conversation.close(SERVICE_RESTART, "going away")
            if batch is not batches[-1]:
                await asyncio.sleep(seconds / len(batches))
        # Give the writers time to send the last frames.
        await asyncio.wait([conversation.task for conversation in conversations], timeout=1.0)

    async def _wait_for_injects(self, seconds: float) -> None:
        """Wait until no inject is in flight, so that devices get their acks before the goaway."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, seconds)):
                while self.busy:
                    self._inject_finished.clear()
                    await self._inject_finished.wait()


def _batches_over(all_: Sequence[Conversation], seconds: float) -> list[Sequence[Conversation]]:
    """Batches to send away one every DRAIN_STEP_SECONDS, or less often if there are few devices."""
    size = math.ceil(len(all_) / max(1, round(seconds / DRAIN_STEP_SECONDS)))
    return [all_[start : start + size] for start in range(0, len(all_), size)]
