"""Passes messages on to the devices of a user that are connected to this node.

For each connected user it keeps a feed: how far that user's clock has been passed on. A message
that continues the feed goes out; one that lies behind it is a duplicate; anything else shows a
gap, and is left to whoever can read the store.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage, Message, OutOfBandMessage
from gregor.interfaces import BatchConsumer
from gregor.protocol.server import Publication

RUN_MESSAGES = 100


class Listener(Protocol):
    """A connected device, as the Broadcaster sees it. None of this may wait."""

    def publish(self, publication: Publication) -> None: ...
    def pass_by(self, message: OutOfBandMessage) -> None: ...


class Feed:
    """One user's connected devices, and the place on the user's clock up to which all of them were
    told. It is None until the first of them has been told anything."""

    __slots__ = ("listeners", "position")

    def __init__(self) -> None:
        self.position: Time | None = None
        self.listeners: dict[Listener, None] = {}


class Broadcaster(BatchConsumer):
    """A MessageConsumer that passes messages on to Listeners. `gap` is called with the uid when
    a message shows that others are missing; the answer comes back through `publish`."""

    def __init__(self, gap: Callable[[UID], None] = lambda uid: None) -> None:
        self.feeds: dict[UID, Feed] = {}
        self.gap = gap

    async def consume_batch(self, messages: Sequence[Message]) -> None:
        """Those that follow one another on a user's clock go in one piece, so that a device is
        told of them in one frame."""
        for piece in _pieces(messages):
            match piece:
                case OutOfBandMessage() as message:
                    for listener in self._listeners(message.uid):
                        listener.pass_by(message)
                case run:
                    self._continue(run)

    def _continue(self, run: Sequence[InBandMessage]) -> None:
        uid = run[0].uid
        feed = self.feeds.get(uid)
        if feed is None:
            return  # no device of this user is here
        position = feed.position
        new = [m for m in run if position is None or m.ctime > position]
        if new and position is not None and new[0].prev != position:
            self.gap(uid)
        elif new:
            self.publish(uid, Publication.of(*new))

    def _listeners(self, uid: UID) -> tuple[Listener, ...]:
        feed = self.feeds.get(uid)
        return () if feed is None else tuple(feed.listeners)

    def publish(self, uid: UID, publication: Publication) -> None:
        """Pass on a stretch of the user's clock, unless it lies behind."""
        feed = self.feeds.get(uid)
        if feed is None or (feed.position is not None and publication.cursor <= feed.position):
            return
        feed.position = publication.cursor
        for listener in tuple(feed.listeners):
            listener.publish(publication)

    def add(self, uid: UID, listener: Listener) -> None:
        """A device has connected."""
        self.feeds.setdefault(uid, Feed()).listeners[listener] = None

    def remove(self, uid: UID, listener: Listener) -> bool:
        """A device has gone. True if it was the last of its user."""
        feed = self.feeds[uid]
        del feed.listeners[listener]
        if feed.listeners:
            return False
        del self.feeds[uid]
        return True

    def told(self, uid: UID, position: Time) -> None:
        """A device of the user has been told, from the store, what there is up to this place.
        The feed is only as far as the least of its devices: one may have read before another did,
        and a message which lies between the two has yet to be passed on."""
        feed = self.feeds.get(uid)
        if feed is not None and (feed.position is None or position < feed.position):
            feed.position = position

    def position(self, uid: UID) -> Time | None:
        """How far the user's devices here have been told; None if there are none, or none yet."""
        feed = self.feeds.get(uid)
        return None if feed is None else feed.position

    def positions(self) -> dict[UID, Time]:
        return {uid: feed.position for uid, feed in self.feeds.items() if feed.position is not None}


def _pieces(messages: Sequence[Message]) -> Iterator[OutOfBandMessage | list[InBandMessage]]:
    run: list[InBandMessage] = []
    for message in messages:
        if run and not (_follows(message, run[-1]) and len(run) < RUN_MESSAGES):
            yield run
            run = []
        match message:
            case OutOfBandMessage():
                yield message
            case InBandMessage():
                run.append(message)
    if run:
        yield run


def _follows(message: Message, last: InBandMessage) -> bool:
    return isinstance(message, InBandMessage) and (message.uid, message.prev) == (
        last.uid,
        last.ctime,
    )
