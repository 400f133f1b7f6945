"""Hears from other nodes what they have stored, and has it passed on to the devices here.

A user's channel is subscribed to while a device of that user is here, and a little longer: one
that flaps comes back at once, and shall not make two subscriptions of it each time. What arrives
meanwhile is not even read.

Anything may arrive. What no node has sent is counted, spoken of now and then, and passed on to
nobody; whatever it was meant to hide stands in the store.
"""

import asyncio
from collections.abc import Callable, Iterator
from weakref import WeakValueDictionary

import structlog

from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import channel_of, open_envelope, user_of
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, InBandMessage
from gregor.errors import Malformed
from gregor.pubsub.interface import Interrupted, PubSub, Received

log = structlog.get_logger("gregor.relay")

LINGER_SECONDS = 10.0
LOG_SECONDS = 10.0

FURTHEST_AHEAD = 60 * SECOND
"""Nodes whose clock is 5 s wrong do not write. What lies this far ahead was replayed into the
store with a ctime of its own, or forged; and a feed that believed it would wait that long."""


class Relay:
    """A node's ear on the pub/sub. `strange` is told of what no node has sent, `interrupted` when
    anything may have been missed. `run` and `leave_the_gone` are for tasks of the node's."""

    def __init__(
        self,
        pubsub: PubSub,
        node: str,
        broadcaster: Broadcaster,
        clock: Callable[[], Time],
        *,
        strange: Callable[[Malformed], None],
        interrupted: Callable[[], None],
        linger_seconds: float = LINGER_SECONDS,
    ) -> None:
        self._pubsub = pubsub
        self._node = node
        self._broadcaster = broadcaster
        self._clock = clock
        self._strange = strange
        self._interrupted = interrupted
        self._linger_seconds = linger_seconds
        self._left: dict[UID, float] = {}  # whose last device has gone, and when, in that order
        self._turns: WeakValueDictionary[UID, asyncio.Lock] = WeakValueDictionary()
        self._told_of = Seldom(LOG_SECONDS)

    # Whom it listens for

    async def subscribe(self, uid: UID) -> None:
        """A device of the user has come. Returns when all that is published will be heard."""
        self._left.pop(uid, None)
        async with self._turn(uid):
            await self._pubsub.subscribe(channel_of(uid))

    def leave(self, uid: UID) -> None:
        """The last device of the user has gone, perhaps not for long."""
        self._left[uid] = _now()

    async def leave_the_gone(self) -> None:
        """Unsubscribe, over and over, from those who have been away for long enough."""
        while True:
            await asyncio.sleep(self._linger_seconds / 2)
            for uid in self._long_gone():
                async with self._turn(uid):
                    await self._pubsub.unsubscribe(channel_of(uid))

    def _long_gone(self) -> Iterator[UID]:
        while self._left:
            uid, since = next(iter(self._left.items()))
            if since > _now() - self._linger_seconds:
                return
            del self._left[uid]
            yield uid

    def _turn(self, uid: UID) -> asyncio.Lock:
        """Held while the pub/sub is told something about the user. Whoever comes back while the
        channel is being left has to wait for the end of it, or chance would decide which counts."""
        return self._turns.setdefault(uid, asyncio.Lock())

    # What it hears

    async def run(self) -> None:
        """Pass on what other nodes have stored. It never ends without an error."""
        async for event in self._pubsub.received():
            match event:
                case Received(channel) if user_of(channel) in self._broadcaster.feeds:
                    await self._hear(event)
                case Interrupted():
                    self._interrupted()
        raise RuntimeError("the pub/sub has ended, and with it all that other nodes have to tell")

    async def _hear(self, received: Received) -> None:
        try:
            messages = open_envelope(received, self._node)
        except Malformed as error:
            self._refuse(error)
            return
        for message in messages:
            if isinstance(message, InBandMessage) and self._too_far_ahead(message):
                self._refuse(Malformed(f"a publication from the future, at {message.ctime}"))
                self._broadcaster.gap(message.uid)  # the store knows whether it is true
                return
        await self._broadcaster.consume_batch(messages)

    def _too_far_ahead(self, message: InBandMessage) -> bool:
        return message.ctime > self._clock() + FURTHEST_AHEAD

    def _refuse(self, error: Malformed) -> None:
        self._strange(error)
        times = self._told_of.happened(_now())
        if times:
            log.warning("something came that no node has sent", times=times, last=error.message)


class Seldom:
    """For what may happen at any rate and be spoken of once in so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._next = float("-inf")
        self._unspoken = 0

    def happened(self, now: float) -> int:
        """How often it has happened since it was last spoken of; 0 if it is too early to speak."""
        self._unspoken += 1
        if now < self._next:
            return 0
        times, self._unspoken = self._unspoken, 0
        self._next = now + self._seconds
        return times


def _now() -> float:
    return asyncio.get_running_loop().time()
