"""What all endpoints of one server share: the node, authentication, and the connected devices."""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple, Self
from weakref import WeakValueDictionary

from gregor.core.instant import Time
from gregor.core.message import UID, Message
from gregor.errors import (
    Forbidden,
    GregorError,
    NotYetValid,
    Unauthenticated,
    Unavailable,
)
from gregor.interfaces import Caller, EraseResult, Outcome, Rejected
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.log_event import LogEvent
from gregor.node.channel import Channel
from gregor.node.conversation import Admission, Conversation, DeliveryCounts, Resumption
from gregor.node.importing import import_export
from gregor.node.limiter import Limiter
from gregor.node.node import Node
from gregor.node.pruning import Forgotten
from gregor.protocol.answers import ImportAnswer
from gregor.server.auth import Authenticator, Identity, Role
from gregor.server.connections import Connections
from gregor.server.descriptors import Descriptors
from gregor.server.event_loop_lag import watch_event_loop
from gregor.server.metrics import Metrics, Reading, counter, gauge
from gregor.server.open_connections import (
    DEFAULT_CONNECTION_LIMITS,
    ConnectionLimits,
    OpenConnections,
)
from gregor.server.peer_errors import CLIENT_HOST, PeerError, PeerErrors
from gregor.server.readiness import Readiness
from gregor.server.socket import WebSockets
from gregor.server.worker_metrics import WorkerMetrics

log = logging.getLogger("gregor.server")

WRITE_TIMEOUT_SECONDS = 30.0


class Timeouts(NamedTuple):
    """How long a server waits, in seconds: for a device's hello after it has connected, for the
    authenticator, and for a device to accept data before it is disconnected."""

    hello: float = 5.0
    authentication: float = 5.0
    write: float = WRITE_TIMEOUT_SECONDS


DEFAULT_TIMEOUTS = Timeouts()


class _ReadTurn:
    """Of the reads of one user: who reads, and how many of them the store has not answered."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.failures = 0


class Service:
    """One node, with everything that serves devices and backends. Open it with `async with`,
    inside the block of the node."""

    def __init__(
        self,
        node: Node,
        authenticator: Authenticator,
        metrics: Metrics,
        *,
        worker_metrics: WorkerMetrics | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        descriptors: Descriptors | None = None,
        limits: Limits = DEFAULT_LIMITS,
        connection_limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS,
    ) -> None:
        self.node = node
        self.limiter = Limiter(
            limits, ids_days=node.pruner.retention.ids_days, on_limited=metrics.limited
        )
        self.metrics = metrics
        self.timeouts = timeouts
        self.readiness = Readiness(node)
        self.connections = Connections()
        self.descriptors = descriptors or Descriptors()
        self.open_connections = OpenConnections(connection_limits, self.descriptors)
        self.peer_errors = PeerErrors(connection_limits.trusted)
        self.websockets = WebSockets()
        metrics.readings += [
            *self._readings(),
            *self.connections.readings(),
            *self.descriptors.readings(),
            *self.open_connections.readings(),
            *self.peer_errors.readings(),
            *self.websockets.readings(),
        ]
        self._authenticator = authenticator
        self._worker_metrics = worker_metrics
        self.draining = False  # whether this server accepts no new messages and devices
        self._writes_in_flight = 0
        self._write_finished = asyncio.Event()
        self._pruning: set[asyncio.Task[Any]] = set()
        self._readers: WeakValueDictionary[UID, _ReadTurn] = WeakValueDictionary()
        self._tasks = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        background = (
            self.connections.end_slow_consumers(self.timeouts.write),
            self.readiness.check_periodically(),
            watch_event_loop(self.metrics.event_loop_late),
        )
        self._background = [self._tasks.create_task(loop) for loop in background]
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.readiness.stopping = True
        for task in self._background:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def identify(self, token: str | None, seconds: float | None = None) -> Identity:
        """The identity of the token's owner, from the authenticator; it may take this time, and
        `timeouts.authentication` at most. Raises the authenticator's GregorError, Unavailable if it
        does not answer in time, and a plain GregorError, "internal", if it fails otherwise."""
        limit = self.timeouts.authentication
        try:
            async with asyncio.timeout(limit if seconds is None else min(limit, seconds)):
                return (await self._authenticator.identify(token)).validated()
        except NotYetValid:
            raise
        except Unauthenticated:
            self.peer_errors.count(PeerError.AUTHENTICATION, CLIENT_HOST.get())
            raise
        except GregorError:
            raise
        except TimeoutError:
            raise Unavailable("the authenticator does not answer; retry later") from None
        except Exception as error:
            failure = AuthenticatorFailed(type(error).__name__).with_traceback(error.__traceback__)
            log.error(LogEvent("the authenticator failed"), exc_info=failure)
            raise GregorError("internal error; the server's log has the traceback") from None

    async def current_epoch(self, identity: Identity, known: Time | None) -> Time | None:
        """The epoch with which a caller may write, who knows this one; None: it is not checked.
        That of a device is its user's: if it is erased now, its token does not hold any more.
        Raises Erased if it knows an earlier one, and Unauthenticated if its token does not hold."""
        if identity.role is Role.SERVICE:
            return known
        erasure = await self.node.state_machine.erasure(identity.uid)
        erasure.require_current(known, identity.issued_at)
        return erasure.epoch if known is None else known

    def require_room_for_device(self) -> None:
        """Raise Unavailable if no device may connect now, but may to another server."""
        if self.draining:
            raise Unavailable("this server is stopping; retry with another server")
        self.open_connections.require_room_for_device()

    async def serve(self, channel: Channel, resumption: Resumption | None = None) -> None:
        """Run a conversation over the channel until it ends."""
        conversation = Conversation(self, channel)
        self.connections.add(conversation)
        try:
            await conversation.run(resumption)
        finally:
            self.connections.remove(conversation)

    # What a conversation needs of its server

    @property
    def counts(self) -> DeliveryCounts:
        return self.connections.counts

    @property
    def hello_seconds(self) -> float:
        return self.timeouts.hello

    async def admit(self, token: str, seconds: float) -> Admission:
        """The user whose device has this token. Raises as `identify` does, and Forbidden if the
        token is not a device's."""
        identity = await self.identify(token, seconds)
        if identity.role is not Role.DEVICE:
            raise Forbidden("a service token cannot connect a device; use the role `device`")
        return Admission(identity.uid, identity.accepted_until, identity.issued_at)

    async def inject(
        self, caller: Caller, entries: Sequence[Message | Rejected], epoch: Time | None = None
    ) -> list[Outcome]:
        """Inject messages of a sender who knows this epoch, in order, and return the outcome of
        each entry. Raises Unavailable if the store does not answer, or if this server is
        stopping."""
        with self._writing():
            return await self.node.inject(caller, entries, epoch)

    async def erase(self, caller: Caller, uid: UID) -> EraseResult:
        """Erase a user. Raises Unavailable as `inject` does."""
        with self._writing():
            return await self.node.erase(caller, uid)

    async def import_export(self, chunks: AsyncIterable[bytes]) -> ImportAnswer:
        """Import an export. Raises Malformed if it is none, and Unavailable as `inject` does."""
        with self._writing():
            return await import_export(self.node.state_machine, chunks)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """While the block runs, a write is in flight. Raises Unavailable if the server is
        stopping."""
        if self.draining:
            raise Unavailable("this server is stopping; retry with another server")
        self._writes_in_flight += 1
        try:
            yield
        finally:
            self._writes_in_flight -= 1
            self._write_finished.set()

    @asynccontextmanager
    async def turn_to_read(self, uid: UID) -> AsyncIterator[None]:
        """While the block runs, no other one reads much of this user: who asks for that many times
        at once gets one after the other, and others get theirs in between. Raises Unavailable if
        the store did not answer one that was before this one, instead of waiting for it again."""
        turn = self._readers.setdefault(uid, _ReadTurn())
        failures = turn.failures
        async with turn.lock:
            if turn.failures > failures:
                raise Unavailable("the store did not answer the read before this one; retry later")
            try:
                yield
            except Unavailable:
                turn.failures += 1
                raise

    async def prune(self, older_than: Time | None = None) -> Forgotten:
        """Forget now what is past, as Pruner.prune does. Raises Unavailable if this server stops
        before that is done."""
        if self.draining:
            raise Unavailable("this server is stopping; retry with another server")
        task = asyncio.current_task()
        assert task is not None
        self._pruning.add(task)
        try:
            return await self.node.pruner.prune(older_than)
        except asyncio.CancelledError:
            if not self.draining or task.uncancel() > 0:
                raise
            raise Unavailable("this server is stopping; retry with another server") from None
        finally:
            self._pruning.discard(task)

    @property
    def busy(self) -> bool:
        """Whether a write is in flight."""
        return self._writes_in_flight > 0

    async def metrics_page(self) -> bytes:
        """The metrics of this server, including those of all its workers."""
        if self._worker_metrics is None:
            return self.metrics.page()
        return await self._worker_metrics.page()

    def _readings(self) -> Iterator[Reading]:
        """The metrics whose values the node's pub/sub and the readiness keep."""
        yield gauge("ready", "1 if /readyz answers 200", lambda: self.readiness.ready)
        if (pubsub := self.node.pubsub) is not None:
            yield gauge(
                "pubsub_up", "1 while this server can publish and receive", lambda: pubsub.up
            )
            yield counter(
                "pubsub_dropped",
                "Payloads that were, or may have been, lost; the sweep finds in-band messages",
                lambda: pubsub.dropped,
            )
        if (peers := self.node.peers) is not None:
            yield gauge(
                "pubsub_peers",
                "Other servers that this one hears over the pub/sub",
                lambda: peers.heard,
            )
            yield gauge(
                "pubsub_split",
                "1 while the pub/sub is up and messages of other servers do not arrive",
                lambda: peers.split,
            )

    async def be_lame_duck(self, seconds: float) -> None:
        """Become unready, and serve as before for this time, in which load balancers notice."""
        self.readiness.stopping = True
        await asyncio.sleep(seconds)

    async def drain(self, seconds: float) -> None:
        """Refuse new work, finish the writes in flight, and send the devices away, evenly
        distributed over this time."""
        self.readiness.stopping = self.draining = True
        for task in self._pruning:  # what is done is done
            task.cancel()
        await self._wait_for_writes(seconds)
        await self.connections.send_away(seconds)

    async def _wait_for_writes(self, seconds: float) -> None:
        """Wait until no write is in flight, so that devices get their acks before the goaway."""
        with suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, seconds)):
                while self.busy:
                    self._write_finished.clear()
                    await self._write_finished.wait()


class AuthenticatorFailed(Exception):
    """The authenticator raised an exception of this name. It stands in the log in place of that
    exception, whose message may contain the token."""
