"""A pub/sub on a server that many nodes share: Redis or NATS.

A connection can end in two ways. It breaks, and everybody knows; or it stands, and nothing comes
through any more, which nobody tells. So this one publishes a heartbeat to itself, all the way
through the server and back, and takes its absence for an end. Either way it says so, connects
again, subscribes to all that is wanted, hears its own heart, and only then is up again and says
Interrupted, upon which the node reads what it may have missed.

What is wanted and what the server has confirmed are two sets, and one task carries the one over
to the other. So it does not matter how calls overlap, whether the server is there, or how often a
connection is lost half way.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Any, Self
from urllib.parse import urlsplit
from uuid import uuid4

import structlog

from gregor.errors import SetupError
from gregor.pubsub.arrivals import Arrivals
from gregor.pubsub.interface import Event, Interrupted, Received
from gregor.pubsub.link import Link, LinkLost, Publication
from gregor.pubsub.nats import NATSLink
from gregor.pubsub.redis import RedisLink

log = structlog.get_logger("gregor.pubsub")

HEARTBEAT_SECONDS = 2.0
PATIENCE_SECONDS = 5.0  # for connecting, and for a batch of subscriptions
FAREWELL_SECONDS = 1.0  # for what waits to be published when this end closes
FIRST_BACKOFF_SECONDS = 0.1
LAST_BACKOFF_SECONDS = 5.0
QUEUE = 10_000  # publications that wait
BATCH = 500
BITS = 10  # of the patience with a heartbeat

LINKS: dict[str, Callable[[str], Link]] = {
    "redis": RedisLink,
    "rediss": RedisLink,
    "unix": RedisLink,
    "nats": NATSLink,
    "tls": NATSLink,
}

UNREADABLE = "://…"
FORMS = "redis://HOST:PORT/DB or nats://HOST:PORT"


def pubsub_at(url: str, **options: Any) -> "RemotePubSub":
    """The pub/sub at a URL. Raises SetupError if there cannot be one."""
    scheme, shown = url.partition(":")[0], without_secrets(url)
    if scheme not in LINKS:
        raise SetupError(f"there is no pub/sub for {shown}: --pubsub is {FORMS}")
    if shown.endswith(UNREADABLE):
        raise SetupError(
            f"{shown} is not a URL that can be read: --pubsub is {FORMS}, and in a password "
            "each of / ? # @ : is written with its number, as in %2F"
        )
    return RemotePubSub(url, LINKS[scheme], **options)


def without_secrets(url: str) -> str:
    """The URL, fit to be shown. A name alone may be a token, options may hold a password, and a
    password that is not quoted may look like any other part."""
    if "@" not in url and "?" not in url:
        return url
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return url.partition(":")[0] + UNREADABLE
    if "@" in parts.path + parts.query + parts.fragment:
        return parts.scheme + UNREADABLE
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


class _Round:
    """Channels whose wish may differ from what the server knows, until that is settled."""

    def __init__(self, channels: Iterable[str] = ()) -> None:
        self.channels = dict.fromkeys(channels)
        self.over = asyncio.Event()


class RemotePubSub:
    """A PubSub over a Link, which it keeps up. Opened with `async with`: that connects, or raises
    SetupError. Should its background task fail, the block is cancelled.

    `dropped` counts what was published while it was down, what was more than it could send, what
    the server does not carry, and what it had handed to a connection that broke unconfirmed.
    """

    def __init__(
        self,
        url: str,
        link: Callable[[str], Link],
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        patience_seconds: float = PATIENCE_SECONDS,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = without_secrets(url)
        self.up = False
        self.dropped = 0
        self._url = url
        self._link = link
        self._heartbeat_seconds = heartbeat_seconds
        self._patience_seconds = patience_seconds
        self._jitter = jitter
        self._arrivals = Arrivals()
        self._outgoing: deque[Publication] = deque()
        self._to_send = asyncio.Event()
        self._all_sent = asyncio.Event()
        self._all_sent.set()
        self._heart = f"gregor:heart:{uuid4().hex}"
        self._heart_due = False
        self._heard = asyncio.Event()
        self._wanted = {self._heart: None}
        self._confirmed: set[str] = set()
        self._round: _Round | None = None  # the next one, while there is a connection
        self._under_way: _Round | None = None
        self._to_settle = asyncio.Event()
        self._tasks = asyncio.TaskGroup()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        stands = asyncio.get_running_loop().create_future()
        self._keeper = self._tasks.create_task(self._keep(stands))
        try:
            await stands
        except LinkLost as error:
            await self._end()
            raise SetupError(
                f"the pub/sub at {self.name} cannot be used: {error}. "
                f"Start it, or mend the address or the password in --pubsub {FORMS}"
            ) from None
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        """What was published is sent first, if the server takes it soon."""
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await self._all_sent.wait()
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
        await self._tasks.__aexit__(None, None, None)  # what was in the block is not the group's

    # The four verbs

    async def publish(self, channel: str, payload: bytes) -> None:
        if not self.up or len(self._outgoing) >= QUEUE:
            self.dropped += 1
            return
        self._outgoing.append(Publication(channel, payload))
        self._all_sent.clear()
        self._to_send.set()

    async def subscribe(self, channel: str) -> None:
        self._wanted[channel] = None
        if self._round is not None and channel not in self._confirmed:
            noted = self._note(channel, self._round)
            if self.up:
                await noted.over.wait()

    async def unsubscribe(self, channel: str) -> None:
        # What still arrives is not passed on, so there is nothing to wait for.
        self._wanted.pop(channel, None)
        if self._round is not None:
            self._note(channel, self._round)

    def received(self) -> AsyncIterator[Event]:
        return self._arrivals.received()

    # Connections, one after the other

    async def _keep(self, stands: asyncio.Future[None]) -> None:
        """Have a connection, always. Only the first may not fail: then `stands` tells why."""
        clock = asyncio.get_running_loop().time
        backoff = 0.0
        while True:
            began = clock()
            try:
                await self._live(stands)
            except LinkLost as error:
                if not stands.done():
                    stands.set_exception(error)
                    return
            # Only one that has lasted is followed by a quick attempt.
            lasted = clock() - began > LAST_BACKOFF_SECONDS
            backoff = FIRST_BACKOFF_SECONDS if lasted else _longer(backoff)
            await asyncio.sleep(self._jitter() * backoff)

    async def _live(self, stands: asyncio.Future[None]) -> None:
        """One connection, from its beginning to its end, which is LinkLost."""
        link = self._link(self._url)
        try:
            async with _within(self._patience_seconds, "connecting"):
                await link.open()
            await self._use(link, stands)
        except LinkLost as error:
            if self.up:
                log.warning("the pub/sub is down", at=self.name, why=str(error))
            raise
        finally:
            self._let_go()
            await link.close()

    async def _use(self, link: Link, stands: asyncio.Future[None]) -> None:
        ends: list[BaseException] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.listen(self._take))
                tasks.create_task(self._send(link))
                self._round = _Round(self._wanted)
                while self._round.channels:
                    await self._settle(link, self._round)
                await self._beat(self._patience_seconds)
                self._stand(stands)
                tasks.create_task(self._keep_settled(link))
                await self._keep_beating()
        except* LinkLost as group:
            ends.extend(group.exceptions)
        raise ends[0]

    def _stand(self, stands: asyncio.Future[None]) -> None:
        self.up = True
        if stands.done():
            log.warning("the pub/sub is up again", at=self.name)
            self._arrivals.take(Interrupted())
        else:
            stands.set_result(None)

    def _let_go(self) -> None:
        """The connection is no more: nobody shall wait for it."""
        self.up = False
        self.dropped += len(self._outgoing)
        self._outgoing.clear()
        self._all_sent.set()
        self._confirmed.clear()
        for round_ in (self._under_way, self._round):
            if round_ is not None:
                round_.over.set()
        self._under_way = self._round = None

    # What is done on a connection, side by side

    def _take(self, channel: str, payload: bytes) -> None:
        if channel == self._heart:
            self._heard.set()
        elif channel in self._wanted:
            self._arrivals.take(Received(channel, payload))

    async def _send(self, link: Link) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            # The heart does not queue, or a long queue would look like a silent server.
            beat = [Publication(self._heart, b"")] if self._heart_due else []
            self._heart_due = False
            batch = list(islice(self._outgoing, BATCH))
            self.dropped += await link.publish(beat + batch)
            for _ in batch:
                self._outgoing.popleft()
            if self._outgoing:
                self._to_send.set()
            else:
                self._all_sent.set()

    async def _keep_beating(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_seconds)
            await self._beat(2 * self._heartbeat_seconds)

    async def _beat(self, patience: float) -> None:
        """Say something to ourselves, and hear it."""
        self._heard.clear()
        self._heart_due = True
        self._to_send.set()
        # Bit by bit: if it was this process that stood still, only one bit has gone by, and what
        # has arrived meanwhile is read before the next.
        for _ in range(BITS):
            with suppress(TimeoutError):
                async with asyncio.timeout(patience / BITS):
                    await self._heard.wait()
                    return
        raise LinkLost(f"no heartbeat has come back within {patience:g} s")

    def _note(self, channel: str, round_: _Round) -> _Round:
        round_.channels[channel] = None
        self._to_settle.set()
        return round_

    async def _keep_settled(self, link: Link) -> None:
        while True:
            await self._to_settle.wait()
            self._to_settle.clear()
            if self._round is not None:
                await self._settle(link, self._round)

    async def _settle(self, link: Link, round_: _Round) -> None:
        """Carry over to the server what is wanted of these channels by now. What is wanted from
        now on goes into the next round."""
        self._under_way, self._round = round_, _Round()
        names = list(round_.channels)
        for start in range(0, len(names), BATCH):
            await self._settle_some(link, names[start : start + BATCH])
        round_.over.set()

    async def _settle_some(self, link: Link, channels: list[str]) -> None:
        new = [c for c in channels if c in self._wanted and c not in self._confirmed]
        old = [c for c in channels if c not in self._wanted and c in self._confirmed]
        # Who subscribes while one of these is under way must wait for the next round.
        self._confirmed.difference_update(old)
        async with _within(self._patience_seconds, "subscribing"):
            if new:
                await link.subscribe(new)
            if old:
                await link.unsubscribe(old)
        self._confirmed.update(new)


def _longer(backoff: float) -> float:
    return min(max(2 * backoff, FIRST_BACKOFF_SECONDS), LAST_BACKOFF_SECONDS)


@asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise LinkLost(f"{what} has taken more than {seconds:g} s") from None
