"""Receives messages that other nodes have stored, and delivers them to the devices connected here.

A node subscribes to a user's channel while a device of the user is connected, and for
LINGER_SECONDS longer: a flapping device must not cause an unsubscribe and a subscribe each time.
Payloads that arrive while no device is connected are not decoded.

A payload that is not signed by a node of this deployment is not read. It is counted, and logged at
a limited rate without anything that it contains; so is one that is invalid. It cannot hide an
in-band message, because the store has all of them. What is signed is not believed in everything,
either. An envelope of another version is from a newer or older node: its channel names the user,
whose messages are read from the store. So they are for the notice of an erase, which ends no device
by itself, and for a message that is ahead of this node's clock.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from weakref import WeakValueDictionary

from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.channels import Channels, Verified
from gregor.consumers.peers import Peers
from gregor.consumers.publisher import ErasureNotice, Publisher, UnknownVersion, decode_envelope
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID
from gregor.errors import Malformed
from gregor.interfaces import Accepted, Relayed, Stored
from gregor.log_event import LogEvent
from gregor.pubsub.interface import Interrupted, Received

log = logging.getLogger("gregor.relay")

LINGER_SECONDS = 10.0
LOG_INTERVAL_SECONDS = 10.0

MAX_FUTURE = 5 * SECOND
"""How far ahead of this node's clock a ctime may be that is believed without asking the store. A
node whose clock is wrong by more does not write. What is further ahead was replayed into the store,
or comes from a wrong clock. A feed that goes that far drops all messages until that time."""

CHANGED_AT_ONCE = 1_000  # subscriptions


class Relay:
    """A node's subscriber on the pub/sub. It calls `on_invalid_publication` for each invalid
    payload, and `on_interrupted` when messages may have been missed. The node runs `run` and
    `unsubscribe_idle` in tasks of its own."""

    def __init__(
        self,
        publisher: Publisher,
        broadcaster: Broadcaster,
        peers: Peers,
        clock: Callable[[], Time],
        *,
        on_invalid_publication: Callable[[Malformed], None],
        on_interrupted: Callable[[], None],
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._pubsub = publisher.pubsub
        self._node = publisher.node
        self._broadcaster = broadcaster
        self._peers = peers
        self._clock = clock
        self._on_invalid_publication = on_invalid_publication
        self._on_interrupted = on_interrupted
        self._linger_seconds = linger_seconds
        self._heard: tuple[Channels, ...] = ()
        # By idle user: when the last device disconnected. In the order of these times.
        self._idle_since: dict[UID, float] = {}
        self._locks: WeakValueDictionary[UID, asyncio.Lock] = WeakValueDictionary()
        self._log_throttle = LogThrottle(LOG_INTERVAL_SECONDS)
        self._reading_log_throttle = LogThrottle(LOG_INTERVAL_SECONDS)

    # Channels

    def begin(self, channels: Channels) -> None:
        """Hear these channels only. Nobody is subscribed yet."""
        self._heard = (channels,)

    async def hear(self, channels: Channels) -> None:
        """Hear these channels too. When this returns, all subscriptions are confirmed."""
        self._heard += (channels,)

        async def subscribe(uid: UID) -> None:
            async with self._lock(uid):
                if self._broadcaster.has_devices(uid) or uid in self._idle_since:
                    await self._pubsub.subscribe(channels.of(uid))

        users = self._subscribed_users()
        await self._pubsub.subscribe(channels.nodes)
        await _for_each(users, subscribe)

    async def stop_hearing(self, channels: Channels) -> None:
        """Hear these channels no more."""
        self._heard = tuple(heard for heard in self._heard if heard is not channels)

        async def unsubscribe(uid: UID) -> None:
            async with self._lock(uid):
                await self._pubsub.unsubscribe(channels.of(uid))

        users = self._subscribed_users()
        await self._pubsub.unsubscribe(channels.nodes)
        await _for_each(users, unsubscribe)

    def _subscribed_users(self) -> Sequence[UID]:
        return [*{*self._broadcaster.uids(), *self._idle_since}]

    # Subscriptions

    async def subscribe(self, uid: UID) -> None:
        """Subscribe to the messages of a user who has a connected device. When it returns, the
        subscription is confirmed, or recorded if the pub/sub is down. Idempotent."""
        self._idle_since.pop(uid, None)
        async with self._lock(uid):
            for channels in self._heard:
                await self._pubsub.subscribe(channels.of(uid))

    def mark_idle(self, uid: UID) -> None:
        """Record that the user's last device has disconnected. It may reconnect soon."""
        self._idle_since[uid] = _now()

    async def unsubscribe_idle(self) -> None:
        """Periodically unsubscribe from users who have been idle for `linger_seconds`."""
        while True:
            await asyncio.sleep(self._linger_seconds / 2)
            for uid in self._idle_users():
                heard = self._heard  # from now on, nobody else unsubscribes this user
                async with self._lock(uid):
                    for channels in heard:
                        await self._pubsub.unsubscribe(channels.of(uid))

    def _idle_users(self) -> Iterator[UID]:
        while self._idle_since:
            uid, since = next(iter(self._idle_since.items()))
            if since > _now() - self._linger_seconds:
                return
            del self._idle_since[uid]
            yield uid

    def _lock(self, uid: UID) -> asyncio.Lock:
        """Serialises the subscribe and unsubscribe calls of one user. A device that reconnects
        during an unsubscribe waits for its end; otherwise the order of the two calls, and so the
        result, would be random."""
        return self._locks.setdefault(uid, asyncio.Lock())

    # Receiving

    async def run(self) -> None:
        """Deliver what other nodes publish. Runs until it is cancelled or fails; if the pub/sub
        ends without an error, raises RuntimeError."""
        async for event in self._pubsub.received():
            match event:
                case Received():
                    await self._receive(event)
                case Interrupted():
                    self._peers.notice_interruption()
                    self._on_interrupted()
        raise RuntimeError("the pub/sub has ended: no messages of other nodes can be received")

    async def _receive(self, received: Received) -> None:
        """Take a payload that somebody here needs."""
        for channels in self._heard:
            uid = channels.user_of(received.channel)
            if received.channel == channels.nodes or self._has_devices(uid):
                try:
                    verified = channels.verify(received.channel, received.payload, self._clock())
                    await self._take(uid, verified)
                except Malformed as error:
                    self._reject(error)

    def _has_devices(self, uid: UID | None) -> bool:
        return uid is not None and self._broadcaster.has_devices(uid)

    async def _take(self, uid: UID | None, verified: Verified) -> None:
        """Take what was published for the user; None: for the nodes. Raises Malformed if it is
        invalid."""
        if uid is None:
            self._peers.receive(verified)
            return
        try:
            decoded = decode_envelope(uid, verified.json, self._node)
        except UnknownVersion as version:
            self._read_from_store(uid, str(version))
            return
        match decoded:
            case ErasureNotice():
                self._broadcaster.on_gap(uid)
            case _:
                await self._deliver(uid, decoded, verified.fresh)

    async def _deliver(self, uid: UID, outcomes: Sequence[Accepted], fresh: bool) -> None:
        latest = self._clock() + MAX_FUTURE
        believed = [o for o in outcomes if _is_believed(o, latest, fresh)]
        await self._broadcaster.consume_batch(believed)
        if len(believed) < len(outcomes):
            doubted = [o for o in outcomes if not _is_believed(o, latest, fresh)]
            if any(isinstance(outcome, Stored) for outcome in doubted):
                self._read_from_store(uid, "a ctime is ahead of this node's clock")
            if any(isinstance(outcome, Relayed) for outcome in doubted):
                raise Malformed(
                    "an out-of-band message was sent long ago, or by a node whose clock is wrong"
                )

    def _read_from_store(self, uid: UID, reason: str) -> None:
        """Let the gap repair read what the node that published this has stored before."""
        self._broadcaster.on_gap(uid)
        times = self._reading_log_throttle.count(_now())
        if times:
            log.warning(LogEvent("messages are read from the store", times=times, reason=reason))

    def _reject(self, error: Malformed) -> None:
        self._on_invalid_publication(error)
        times = self._log_throttle.count(_now())
        if times:
            log.warning(
                LogEvent("invalid payload on the pub/sub", times=times, last_reason=error.message)
            )


def _is_believed(outcome: Accepted, latest: Time, fresh: bool) -> bool:
    """Whether a message is delivered as it was published. What is out-of-band is in no store: only
    the time of the payload tells whether it was delivered before."""
    match outcome:
        case Stored(message):
            return message.ctime <= latest
        case Relayed():
            return fresh


async def _for_each(users: Sequence[UID], change: Callable[[UID], Awaitable[None]]) -> None:
    """Call this for each user, for many at a time."""
    for first in range(0, len(users), CHANGED_AT_ONCE):
        await asyncio.gather(*map(change, users[first : first + CHANGED_AT_ONCE]))


class LogThrottle:
    """Limits how often a frequent event is logged: at most once in this number of seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next_log_at = float("-inf")
        self._suppressed = 0

    def count(self, now: float) -> int:
        """Count an event. Returns the number of events since the last log entry, this one
        included, or 0 if it is too early for another log entry."""
        self._suppressed += 1
        if now < self._next_log_at:
            return 0
        times, self._suppressed = self._suppressed, 0
        self._next_log_at = now + self._seconds
        return times


def _now() -> float:
    return asyncio.get_running_loop().time()
