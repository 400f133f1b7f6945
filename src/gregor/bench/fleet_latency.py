"""How long after its ack a message reaches a device on another node, beside a bare Redis.

A sender on one node, a listening device of the same user on the other, one message under way at a
time. All is seen from outside, in one process: the ack reaches the sender, the delivery reaches the
listener, and what counts is the time between the two. The node publishes before it says ack, so a
delivery might come first, which counts as 0; and the walk of the ack itself is not in the figure,
which is a part of a millisecond in our favour. Hence the time from sending to delivery is told,
too: it holds all there is, a durable commit included.

After each message a bare Redis has its turn: redis-py, a connection that publishes the very bytes
that a node has published, and one that receives them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any, NamedTuple, Self

from redis.asyncio import Redis

from gregor.bench import fleet
from gregor.bench.load import Device, all_stored, chat_message, consume_frame
from gregor.bench.report import Figure, Wanted
from gregor.bench.servers import Address
from gregor.consumers.publisher import channel_of
from gregor.core.message import new_msg_id

UID, CHANNEL = "user", "bench"
MESSAGES, WARM_UP = 2_000, 100
PATIENCE_SECONDS = 20.0


class Walk(NamedTuple):
    """Seconds from sending."""

    acknowledged: float
    delivered: float

    @property
    def further(self) -> float:
        """From the ack to the delivery."""
        return max(0.0, self.delivered - self.acknowledged)


async def measure(quick: bool) -> list[Figure]:
    messages, warm_up = (50, 5) if quick else (MESSAGES, WARM_UP)
    async with (
        fleet.place() as place,
        place.nodes(2, await place.store()) as (near, far),
        Pair.on(near.address, far.address) as pair,
        Bare.at(place.redis.url) as bare,
    ):
        payload = await bare.overhear(pair)
        turns = [(await pair.walk(), await bare.walk(payload)) for _ in range(warm_up + messages)]
    walks, bares = zip(*turns[warm_up:], strict=True)
    further = [walk.further for walk in walks]
    delivered = [walk.delivered for walk in walks]
    acknowledged = [walk.acknowledged for walk in walks]
    first = mean(walk.further == 0 for walk in walks)
    return [
        # First what cannot be nothing.
        Figure(
            name="from sending to the delivery on another node, one message in flight",
            measured=_told(delivered),
            beside=f"from sending to the ack: {_told(acknowledged)}",
            ratio=median(delivered) / median(acknowledged),
        ),
        Figure(
            name="  from the ack to that delivery",
            measured=f"{_told(further)}; {first:.0%} came before the ack",
            beside=f"bare Redis, {len(payload)} bytes from publish to receive: {_told(bares)}",
            ratio=median(further) / median(bares),
            wanted=Wanted.BELOW,
            threshold=3,
        ),
    ]


def _told(seconds: Sequence[float]) -> str:
    p99 = quantiles(seconds, n=100)[98]
    return f"p50 {median(seconds) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"


class Pair:
    """Two devices of one user, on two nodes."""

    def __init__(self, sender: Device, listener: Device) -> None:
        self._sender = sender
        self._listener = listener
        self._sent = 0

    @classmethod
    @asynccontextmanager
    async def on(cls, near: Address, far: Address) -> AsyncIterator[Self]:
        devices = [
            await Device.connect(node, UID, f"device-on-{node.port}") for node in (near, far)
        ]
        yield cls(*devices)
        for device in devices:
            device.close()

    async def walk(self) -> Walk:
        """Send a message. The times are taken where the frames come in."""
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[tuple[float, bytes]] = loop.create_future()
        delivered: asyncio.Future[float] = loop.create_future()
        self._sender.on_ack = lambda _, ack: acknowledged.set_result((perf_counter(), ack))
        self._listener.on_news = lambda _: delivered.set_result(perf_counter())
        self._sent += 1
        frame = consume_frame(self._sent, [chat_message(new_msg_id(), self._sent)])
        start = perf_counter()
        self._sender.send(frame)
        async with asyncio.timeout(PATIENCE_SECONDS):
            (acknowledged_at, ack), delivered_at = await acknowledged, await delivered
        all_stored(ack, 1)
        return Walk(acknowledged_at - start, delivered_at - start)


class Bare:
    """A connection to Redis that publishes, and one that receives."""

    def __init__(self, publisher: Any, subscriber: Any) -> None:
        self._publisher = publisher
        self._subscriber = subscriber

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Self]:
        async with Redis.from_url(url) as publisher, publisher.pubsub() as subscriber:
            yield cls(publisher, subscriber)

    async def overhear(self, pair: Pair) -> bytes:
        """What a node publishes when it has stored a message. From then on only what is
        published here is received."""
        await self._subscriber.subscribe(channel_of(UID))
        await self._subscriber.get_message(timeout=PATIENCE_SECONDS)
        await pair.walk()
        payload: bytes = (await self._subscriber.get_message(timeout=PATIENCE_SECONDS))["data"]
        await self._subscriber.unsubscribe(channel_of(UID))
        await self._subscriber.subscribe(CHANNEL)
        for _ in range(2):
            await self._subscriber.get_message(timeout=PATIENCE_SECONDS)
        return payload

    async def walk(self, payload: bytes) -> float:
        """Seconds from publish to receive."""
        receiving = asyncio.create_task(self._receive())
        await asyncio.sleep(0)  # it waits for its socket
        start = perf_counter()
        await self._publisher.publish(CHANNEL, payload)
        return await receiving - start

    async def _receive(self) -> float:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._subscriber.get_message(timeout=None)
        return perf_counter()
