"""Delivers messages to the devices of a user that are connected to this node.

Each connected user has a feed with a position: the ctime up to which all messages were delivered.
A message whose `prev` is the position continues the feed and is delivered; a message at or before
the position is a duplicate and is dropped; any other message reveals a gap, which is reported to
the node, because only the node can read the store.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from gregor.core.instant import Time
from gregor.core.message import UID, OutOfBandMessage
from gregor.interfaces import Accepted, BatchConsumer, Relayed, Stored
from gregor.protocol.publication import Publication

MAX_PUBLICATION_MESSAGES = 100


class Listener(Protocol):
    """A connected device, as the Broadcaster sees it. Its methods must not block."""

    def publish(self, publication: Publication) -> None: ...
    def sync_again(self) -> None: ...
    def erased(self, epoch: Time) -> None: ...
    def deliver_out_of_band(self, message: OutOfBandMessage) -> None: ...


class Feed:
    """One user's connected devices, and the ctime up to which all of them have received every
    message. The position is None until the first device has received something."""

    __slots__ = ("listeners", "position")

    def __init__(self) -> None:
        self.position: Time | None = None
        self.listeners: dict[Listener, None] = {}


class Broadcaster(BatchConsumer):
    """A MessageConsumer that delivers messages to Listeners. It calls `on_gap` with the uid when a
    message reveals that earlier ones are missing. The gap repair passes them to `publish`."""

    def __init__(self, on_gap: Callable[[UID], None] = lambda uid: None) -> None:
        self._feeds: dict[UID, Feed] = {}
        self.on_gap = on_gap

    async def consume_batch(self, accepted: Sequence[Accepted]) -> None:
        """Deliver messages. Consecutive messages of a user share one publication, so that a
        device receives them in one frame."""
        for relayed_or_run in _group_consecutive(accepted):
            match relayed_or_run:
                case Relayed(message):
                    for listener in self._listeners(message.uid):
                        listener.deliver_out_of_band(message)
                case run:
                    self._deliver_run(run)

    def _deliver_run(self, run: Sequence[Stored]) -> None:
        uid = run[0].message.uid
        feed = self._feeds.get(uid)
        if feed is None:
            return  # no device of this user is connected here
        position = feed.position
        new = [s for s in run if position is None or s.message.ctime > position]
        if new and position is not None and new[0].message.prev != position:
            self.on_gap(uid)
        elif new:
            self.publish(uid, Publication.of(*new))

    def _listeners(self, uid: UID) -> tuple[Listener, ...]:
        feed = self._feeds.get(uid)
        return () if feed is None else tuple(feed.listeners)

    def publish(self, uid: UID, publication: Publication) -> None:
        """Send a publication to all devices of the user. One that ends at or before the feed's
        position is dropped."""
        feed = self._feeds.get(uid)
        if feed is None or (feed.position is not None and publication.cursor <= feed.position):
            return
        feed.position = publication.cursor
        for listener in tuple(feed.listeners):
            listener.publish(publication)

    def sync_again(self, uid: UID) -> None:
        """Let all devices of the user read the store again, because it may have lost what they
        received. The feed has no position until one of them has."""
        feed = self._feeds.get(uid)
        if feed is not None:
            feed.position = None
            for listener in tuple(feed.listeners):
                listener.sync_again()

    def erase(self, uid: UID, epoch: Time) -> None:
        """Say to all devices of the user that it was erased at this ctime. Those that know it stay
        connected, and have nothing from before it."""
        feed = self._feeds.get(uid)
        if feed is not None:
            if feed.position is not None:
                feed.position = max(feed.position, epoch)
            for listener in tuple(feed.listeners):
                listener.erased(epoch)

    def uids(self) -> list[UID]:
        """The users who have a device connected here."""
        return list(self._feeds)

    def add(self, uid: UID, listener: Listener) -> None:
        """Add a connected device."""
        self._feeds.setdefault(uid, Feed()).listeners[listener] = None

    def remove(self, uid: UID, listener: Listener) -> bool:
        """Remove a disconnected device. Returns whether it was the user's last one."""
        feed = self._feeds[uid]
        del feed.listeners[listener]
        if feed.listeners:
            return False
        del self._feeds[uid]
        return True

    def has_devices(self, uid: UID) -> bool:
        """Whether a device of the user is connected here."""
        return uid in self._feeds

    def device_count(self, uid: UID) -> int:
        """The number of the user's devices that are connected here."""
        return len(self._listeners(uid))

    def lower_position(self, uid: UID, position: Time) -> None:
        """Record that a device of the user has read the store up to this position.

        The position of the feed is the lowest one of its devices. If two devices read the store
        at different times, the first still needs the messages that were stored in between."""
        feed = self._feeds.get(uid)
        if feed is not None and (feed.position is None or position < feed.position):
            feed.position = position

    def position(self, uid: UID) -> Time | None:
        """The position of the user's feed. None if the user has no device here, or if no device
        has received anything yet."""
        feed = self._feeds.get(uid)
        return None if feed is None else feed.position

    def positions(self) -> dict[UID, Time]:
        """The positions of all feeds that have one."""
        return {
            uid: feed.position for uid, feed in self._feeds.items() if feed.position is not None
        }


def _group_consecutive(accepted: Sequence[Accepted]) -> Iterator[Relayed | list[Stored]]:
    """Group consecutive messages of a user into runs of limited length; keep the order."""
    run: list[Stored] = []
    for outcome in accepted:
        if run and not (_is_successor(outcome, run[-1]) and len(run) < MAX_PUBLICATION_MESSAGES):
            yield run
            run = []
        match outcome:
            case Relayed():
                yield outcome
            case Stored():
                run.append(outcome)
    if run:
        yield run


def _is_successor(outcome: Accepted, previous: Stored) -> bool:
    return isinstance(outcome, Stored) and (outcome.message.uid, outcome.message.prev) == (
        previous.message.uid,
        previous.message.ctime,
    )
