"""A pub/sub on one or several servers that many nodes share: Redis or NATS.

A connection can fail in two ways: it breaks, which raises an error, or it stays open but carries
nothing any more, which raises none. To detect the second, the pub/sub publishes a heartbeat to
itself through the server, and treats a missing heartbeat as a lost connection. After either
failure it is down: it reconnects, to the first server that answers, subscribes to all wanted
channels, and waits for its own heartbeat. Only then is it up again, and it reports Interrupted, so
that the node reads what it may have missed from the store.

The wanted channels and the channels that the server has confirmed are two sets. One task updates
the server until they are equal. So it does not matter how calls overlap, whether the server is
reachable, or how often a connection is lost during an update.
"""

import asyncio
import logging
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, Self
from uuid import uuid4

from gregor.backoff import Backoff, Outage
from gregor.errors import SetupError
from gregor.extras import required_extra
from gregor.log_event import LogEvent
from gregor.pubsub.first_open import first_open
from gregor.pubsub.incoming import IncomingQueue
from gregor.pubsub.interface import Event, Interrupted, Received
from gregor.pubsub.link import Candidates, Link, LinkLost, OutgoingPayload, Reason
from gregor.pubsub.server_url import URL_FORMS
from gregor.urls import redacted

log = logging.getLogger("gregor.pubsub")

HEARTBEAT_SECONDS = 2.0
OPERATION_TIMEOUT_SECONDS = 5.0  # for connecting, and for each batch of subscriptions
FLUSH_TIMEOUT_SECONDS = 1.0  # for sending the pending payloads on close
BACKOFF = Backoff(0.1, 1.0)  # short, because another server may have taken over
STABLE_SECONDS = 5.0  # a connection that held so long has ended the outage before it
MAX_QUEUED_PAYLOADS = 10_000
MAX_BATCH_SIZE = 500  # of payloads or channels, in one call to the server
HEARTBEAT_POLLS = 10  # the time-out of a heartbeat is divided into this many waits

# The kinds of servers, by the schemes of their URLs.
REDIS = ("redis", "rediss", "unix")
SENTINEL = ("redis+sentinel", "rediss+sentinel")
CLUSTER = ("redis+cluster", "rediss+cluster")
NATS = ("nats", "tls")


def pubsub_at(url: str, **options: Any) -> "RemotePubSub":
    """A pub/sub on the servers at the URL. Raises SetupError if the URL is invalid, or if the extra
    for this kind of server is not installed."""
    return RemotePubSub(redacted(url), _candidates(url), **options)


def _candidates(url: str) -> Candidates:
    scheme = url.partition("://")[0]
    if scheme in NATS:
        with required_extra("nats"):
            from gregor.pubsub.nats import nats_candidates
        return nats_candidates(url)
    if scheme not in REDIS + SENTINEL + CLUSTER:
        raise SetupError(
            f"{redacted(url)} is not the URL of a supported pub/sub: use --pubsub {URL_FORMS}"
        )
    with required_extra("redis"):
        from gregor.pubsub.redis import redis_candidates
        from gregor.pubsub.redis_cluster import cluster_candidates
        from gregor.pubsub.redis_sentinel import sentinel_candidates
    if scheme in SENTINEL:
        return sentinel_candidates(url)
    return cluster_candidates(url) if scheme in CLUSTER else redis_candidates(url)


class _SubscriptionBatch:
    """Channels whose subscription on the server may have to be changed. `done` is set when the
    server has confirmed the changes, or when the connection is lost."""

    def __init__(self, channels: Iterable[str] = ()) -> None:
        self.channels = dict.fromkeys(channels)
        self.done = asyncio.Event()


class RemotePubSub:
    """A PubSub over a Link, which it reconnects: to the first of the `candidates` that answers.
    Open it with `async with`: that connects, or raises SetupError. If its background task fails,
    the block is cancelled.

    `reconnects` counts the connections that were lost, and the failed attempts to reconnect, by
    Reason.

    `dropped` counts the payloads that were published while it was down, that overflowed the queue,
    that were too large for the server, or that were unconfirmed when a connection broke.
    """

    def __init__(
        self,
        name: str,
        candidates: Candidates,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        operation_timeout_seconds: float = OPERATION_TIMEOUT_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.up = False
        self.dropped = 0
        self.reconnects: Counter[str] = Counter()
        self._logged_reasons: set[str] = set()  # of this outage
        self._candidates = candidates
        self._heartbeat_seconds = heartbeat_seconds
        self._operation_timeout_seconds = operation_timeout_seconds
        self._jitter = jitter
        self._incoming = IncomingQueue()
        self._outgoing: deque[OutgoingPayload] = deque()
        self._send_requested = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._heartbeat_name = f"gregor:heart:{uuid4().hex}"
        self._heartbeat_channels: Sequence[str] = ()  # of this connection
        self._heartbeat_due = False
        self._missing_heartbeats: set[str] = set()
        self._heartbeat_received = asyncio.Event()
        self._wanted_channels: dict[str, None] = {}
        self._confirmed_channels: set[str] = set()
        # Collects channels for the next update; None without a connection.
        self._next_batch: _SubscriptionBatch | None = None
        self._batch_in_flight: _SubscriptionBatch | None = None
        self._batch_requested = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._supervisor: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        connected = asyncio.get_running_loop().create_future()
        self._supervisor = self._tasks.create_task(self._supervise(connected))
        try:
            await connected
        except LinkLost as error:
            await self._stop()
            raise SetupError(
                f"the pub/sub at {self.name} cannot be used: {error}. "
                f"Start it, or correct the address or the password in --pubsub {URL_FORMS}"
            ) from None
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """Sends the pending payloads first, for at most FLUSH_TIMEOUT_SECONDS."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLUSH_TIMEOUT_SECONDS):
                    await self._all_sent.wait()
        finally:
            await self._stop()

    async def _stop(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
        # Without the exception of the block, which the group would wrap in an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    # The PubSub interface

    async def publish(self, channel: str, payload: bytes) -> None:
        if not self.up or len(self._outgoing) >= MAX_QUEUED_PAYLOADS:
            self.dropped += 1
            return
        self._outgoing.append(OutgoingPayload(channel, payload))
        self._all_sent.clear()
        self._send_requested.set()

    async def subscribe(self, channel: str) -> None:
        self._wanted_channels[channel] = None
        if self._next_batch is not None and channel not in self._confirmed_channels:
            batch = self._request(channel, self._next_batch)
            if self.up:
                await batch.done.wait()

    async def unsubscribe(self, channel: str) -> None:
        # No need to wait: payloads that still arrive are dropped.
        self._wanted_channels.pop(channel, None)
        if self._next_batch is not None:
            self._request(channel, self._next_batch)

    def received(self) -> AsyncIterator[Event]:
        return self._incoming.received()

    # Connecting and reconnecting

    async def _supervise(self, connected: asyncio.Future[None]) -> None:
        """Run one connection after another, forever. If the first one fails, set the error on
        `connected` and stop."""
        clock = asyncio.get_running_loop().time
        outage = Outage(BACKOFF)
        while True:
            started = clock()
            try:
                await self._run_connection(connected)
            except LinkLost as error:
                if not connected.done():
                    connected.set_exception(error)
                    return
            # Only a connection that was stable ends the outage.
            if clock() - started > STABLE_SECONDS:
                outage.end()
            await asyncio.sleep(outage.delay(clock(), self._jitter()))

    async def _run_connection(self, connected: asyncio.Future[None]) -> None:
        """Open a connection and use it until it fails. Never returns; raises LinkLost."""
        link: Link | None = None
        try:
            async with _time_limit(self._operation_timeout_seconds, "connecting"):
                link = await first_open(self._candidates())
            await self._run_link(link, connected)
        except LinkLost as error:
            if connected.done():
                self._report(error)
            raise
        finally:
            self._mark_down()
            if link is not None:
                await link.close()

    def _report(self, error: LinkLost) -> None:
        """Count a lost connection, or a failed attempt to reconnect. Log the first one of an
        outage, and each that has another reason than those before: it may need another remedy."""
        self.reconnects[error.reason] += 1
        reason = str(error) if error.reason is Reason.OTHER else error.reason
        if reason not in self._logged_reasons:
            self._logged_reasons.add(reason)
            event = "the pub/sub is down" if self.up else "the pub/sub is still down"
            log.warning(LogEvent(event, url=self.name, reason=str(error)))

    async def _run_link(self, link: Link, connected: asyncio.Future[None]) -> None:
        """Use an open link until one of the tasks raises LinkLost."""
        errors: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.listen(self._on_message))
                tasks.create_task(self._send(link))
                self._use_heartbeat_channels(link.heartbeat_channels(self._heartbeat_name))
                self._next_batch = _SubscriptionBatch(self._wanted_channels)
                while self._next_batch.channels:
                    await self._update_subscriptions(link, self._next_batch)
                await self._check_heartbeat(self._operation_timeout_seconds)
                self._mark_up(connected)
                tasks.create_task(self._process_batches(link))
                await self._check_heartbeat_periodically()
        except* LinkLost as group:
            errors.extend(group.exceptions)
        raise errors[0]

    def _use_heartbeat_channels(self, channels: Sequence[str]) -> None:
        for channel in self._heartbeat_channels:
            self._wanted_channels.pop(channel, None)
        self._heartbeat_channels = channels
        self._wanted_channels |= dict.fromkeys(channels)

    def _mark_up(self, connected: asyncio.Future[None]) -> None:
        self.up = True
        self._logged_reasons.clear()
        if connected.done():
            log.warning(LogEvent("the pub/sub is up again", url=self.name))
            self._incoming.put(Interrupted())
        else:
            connected.set_result(None)

    def _mark_down(self) -> None:
        """Drop everything that depends on the lost connection, and release the waiting callers."""
        self.up = False
        self.dropped += len(self._outgoing)
        self._outgoing.clear()
        self._all_sent.set()
        self._confirmed_channels.clear()
        for batch in (self._batch_in_flight, self._next_batch):
            if batch is not None:
                batch.done.set()
        self._batch_in_flight = self._next_batch = None

    # The concurrent tasks of one connection

    def _on_message(self, channel: str, payload: bytes) -> None:
        if channel in self._heartbeat_channels:
            self._missing_heartbeats.discard(channel)
            if not self._missing_heartbeats:
                self._heartbeat_received.set()
        elif channel in self._wanted_channels:
            self._incoming.put(Received(channel, payload))

    async def _send(self, link: Link) -> None:
        while True:
            await self._send_requested.wait()
            self._send_requested.clear()
            # The heartbeat bypasses the queue; otherwise a long queue would delay it, and the
            # server would seem to be silent.
            heartbeats: list[OutgoingPayload] = []
            if self._heartbeat_due:
                heartbeats = [OutgoingPayload(c, b"") for c in self._heartbeat_channels]
            self._heartbeat_due = False
            batch = list(islice(self._outgoing, MAX_BATCH_SIZE))
            self.dropped += await link.publish(heartbeats + batch)
            for _ in batch:
                self._outgoing.popleft()
            if self._outgoing:
                self._send_requested.set()
            else:
                self._all_sent.set()

    async def _check_heartbeat_periodically(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._check_heartbeat(2 * self._heartbeat_seconds)

    async def _check_heartbeat(self, timeout_seconds: float) -> None:
        """Publish a heartbeat through each server, and wait for all of them. Raises LinkLost if
        one does not come back in time."""
        self._missing_heartbeats = set(self._heartbeat_channels)
        self._heartbeat_received.clear()
        self._heartbeat_due = True
        self._send_requested.set()
        # Wait in several short steps: if this process itself was stalled, only one step times
        # out, and what has arrived in the meantime is read before the next step.
        for _ in range(HEARTBEAT_POLLS):
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_seconds / HEARTBEAT_POLLS):
                    await self._heartbeat_received.wait()
                    return
        raise LinkLost(f"no heartbeat has come back within {timeout_seconds:g} s", Reason.SILENT)

    def _request(self, channel: str, batch: _SubscriptionBatch) -> _SubscriptionBatch:
        batch.channels[channel] = None
        self._batch_requested.set()
        return batch

    async def _process_batches(self, link: Link) -> None:
        while True:
            await self._batch_requested.wait()
            self._batch_requested.clear()
            if self._next_batch is not None:
                await self._update_subscriptions(link, self._next_batch)

    async def _update_subscriptions(self, link: Link, batch: _SubscriptionBatch) -> None:
        """Subscribe or unsubscribe the channels of the batch, as wanted now. Later requests go
        into the next batch."""
        self._batch_in_flight, self._next_batch = batch, _SubscriptionBatch()
        channels = list(batch.channels)
        for start in range(0, len(channels), MAX_BATCH_SIZE):
            await self._update_channels(link, channels[start : start + MAX_BATCH_SIZE])
        batch.done.set()

    async def _update_channels(self, link: Link, channels: list[str]) -> None:
        new = [
            c for c in channels if c in self._wanted_channels and c not in self._confirmed_channels
        ]
        old = [
            c for c in channels if c not in self._wanted_channels and c in self._confirmed_channels
        ]
        # A caller that subscribes to one of these during the update must wait for the next batch.
        self._confirmed_channels.difference_update(old)
        async with _time_limit(self._operation_timeout_seconds, "subscribing"):
            if new:
                await link.subscribe(new)
            if old:
                await link.unsubscribe(old)
        self._confirmed_channels.update(new)


@asynccontextmanager
async def _time_limit(seconds: float, operation: str) -> AsyncIterator[None]:
    """Raise LinkLost if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise LinkLost(f"{operation} has taken more than {seconds:g} s", Reason.TIMEOUT) from None
