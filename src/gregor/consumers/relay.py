"""Receives messages that other nodes have stored, and delivers them to the devices connected here.

A node subscribes to a user's channel while a device of the user is connected, and for
LINGER_SECONDS longer: a flapping device must not cause an unsubscribe and a subscribe each time.
Payloads that arrive while no device is connected are not decoded.

Payloads are untrusted. An invalid payload is counted, logged at a limited rate, and not delivered.
It cannot hide an in-band message, because the store has all of them. An envelope of another version
is from a newer or older node: its channel names the user, whose messages are read from the store.
So does the notice of an erase: it ends no device by itself.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.peers import PROBE_CHANNEL, Peers
from gregor.consumers.publisher import (
    ErasureNotice,
    UnknownVersion,
    channel_of,
    decode_envelope,
    user_of,
)
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import Malformed
from gregor.log_event import LogEvent
from gregor.pubsub.interface import Interrupted, PubSub, Received

log = logging.getLogger("gregor.relay")

LINGER_SECONDS = 10.0
LOG_INTERVAL_SECONDS = 10.0

MAX_FUTURE = 60 * SECOND
"""How far ahead of this node's clock a ctime may be. Nodes whose clock is wrong by 5 s do not
write, so a later ctime comes from a replay into the store, or is forged. A feed that accepted a
forged ctime would drop all messages until that time."""


class Relay:
    """A node's subscriber on the pub/sub. It calls `on_invalid_publication` for each invalid
    payload, and `on_interrupted` when messages may have been missed. The node runs `run` and
    `unsubscribe_idle` in tasks of its own."""

    def __init__(
        self,
        pubsub: PubSub,
        node: str,
        broadcaster: Broadcaster,
        peers: Peers,
        clock: Callable[[], Time],
        *,
        on_invalid_publication: Callable[[Malformed], None],
        on_interrupted: Callable[[], None],
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._pubsub = pubsub
        self._node = node
        self._broadcaster = broadcaster
        self._peers = peers
        self._clock = clock
        self._on_invalid_publication = on_invalid_publication
        self._on_interrupted = on_interrupted
        self._linger_seconds = linger_seconds
        # By idle user: when the last device disconnected. In the order of these times.
        self._idle_since: dict[UID, float] = {}
        self._locks: WeakValueDictionary[UID, asyncio.Lock] = WeakValueDictionary()
        self._log_throttle = LogThrottle(LOG_INTERVAL_SECONDS)
        self._version_log_throttle = LogThrottle(LOG_INTERVAL_SECONDS)

    # Subscriptions

    async def subscribe(self, uid: UID) -> None:
        """Subscribe to the messages of a user who has a connected device. When it returns, the
        subscription is confirmed, or recorded if the pub/sub is down. Idempotent."""
        self._idle_since.pop(uid, None)
        async with self._lock(uid):
            await self._pubsub.subscribe(channel_of(uid))

    def mark_idle(self, uid: UID) -> None:
        """Record that the user's last device has disconnected. It may reconnect soon."""
        self._idle_since[uid] = _now()

    async def unsubscribe_idle(self) -> None:
        """Periodically unsubscribe from users who have been idle for `linger_seconds`."""
        while True:
            await asyncio.sleep(self._linger_seconds / 2)
            for uid in self._idle_users():
                async with self._lock(uid):
                    await self._pubsub.unsubscribe(channel_of(uid))

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
                case Received(channel, payload) if channel == PROBE_CHANNEL:
                    self._receive_probe(payload)
                case Received(channel) if self._broadcaster.has_devices(user_of(channel)):
                    await self._deliver_payload(event)
                case Interrupted():
                    self._peers.notice_interruption()
                    self._on_interrupted()
        raise RuntimeError("the pub/sub has ended: no messages of other nodes can be received")

    def _receive_probe(self, payload: bytes) -> None:
        try:
            self._peers.receive(payload)
        except Malformed as error:
            self._reject(error)

    async def _deliver_payload(self, received: Received) -> None:
        try:
            decoded = decode_envelope(received, self._node)
        except Malformed as error:
            self._reject(error)
            return
        except UnknownVersion as version:
            self._read_from_store(user_of(received.channel), version)
            return
        if isinstance(decoded, ErasureNotice):
            self._broadcaster.on_gap(user_of(received.channel))
            return
        for outcome in decoded:
            message = outcome.message
            if isinstance(message, InBandMessage) and self._is_too_far_ahead(message):
                self._reject(Malformed(f"the ctime {message.ctime} is too far in the future"))
                # If it was replayed and is not forged, the gap repair reads it from the store.
                self._broadcaster.on_gap(message.uid)
                return
        await self._broadcaster.consume_batch(decoded)

    def _read_from_store(self, uid: UID, version: UnknownVersion) -> None:
        """Let the gap repair read what the node that published this has stored before."""
        self._broadcaster.on_gap(uid)
        times = self._version_log_throttle.count(_now())
        if times:
            log.warning(
                LogEvent("messages are read from the store", times=times, reason=str(version))
            )

    def _is_too_far_ahead(self, message: InBandMessage) -> bool:
        return message.ctime > self._clock() + MAX_FUTURE

    def _reject(self, error: Malformed) -> None:
        self._on_invalid_publication(error)
        times = self._log_throttle.count(_now())
        if times:
            log.warning(
                LogEvent("invalid payload on the pub/sub", times=times, last_reason=error.message)
            )


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
