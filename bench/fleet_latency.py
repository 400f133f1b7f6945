"""The latency from the ack of a message to its delivery by another node; baseline: bare Redis.

A sender is connected to one node, and a receiving device of the same user to the other. One message
is in flight at a time. One process measures both: the time between the arrival of the ack at the
sender and the arrival of the delivery at the receiver. The node publishes before it acknowledges,
so a delivery can arrive first, which counts as 0. The figure does not contain the time that the ack
itself travels, a fraction of a millisecond in our favour. Therefore the time from sending to
delivery is reported, too: it includes everything, also the durable commit.

After each message, bare Redis is measured: redis-py, with one connection that publishes the same
bytes that a node has published, and one that receives them.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from statistics import mean, median, quantiles
from time import perf_counter
from typing import Any, NamedTuple, Self

from redis.asyncio import Redis

from bench import fleet
from bench.load import LoadDevice, all_stored, chat_message, consume_frame
from bench.report import Figure, Wanted
from bench.servers import Address
from gregor.core.message import new_msg_id

UID, CHANNEL = "user", "bench"
CHANNEL_OF_USER = f"gregor:*:user:{UID}"
MESSAGES, WARM_UP = 2_000, 100
RUN_TIMEOUT_SECONDS = 20.0


class DeliveryTimes(NamedTuple):
    """Seconds after sending."""

    acknowledged: float
    delivered: float

    @property
    def after_ack(self) -> float:
        """Seconds from the ack to the delivery; 0 if the delivery arrived first."""
        return max(0.0, self.delivered - self.acknowledged)


async def measure(quick: bool) -> list[Figure]:
    messages, warm_up = (50, 5) if quick else (MESSAGES, WARM_UP)
    async with (
        fleet.backends() as backends,
        backends.nodes(2, await backends.store()) as (near, far),
        DevicePair.on(near.address, far.address) as pair,
        BarePubSub.at(backends.redis.url) as bare,
    ):
        payload = await bare.capture_payload(pair)
        samples = [
            (await pair.measure(), await bare.measure(payload)) for _ in range(warm_up + messages)
        ]
    times, bare_times = zip(*samples[warm_up:], strict=True)
    after_ack = [t.after_ack for t in times]
    delivered = [t.delivered for t in times]
    acknowledged = [t.acknowledged for t in times]
    delivered_first = mean(t.after_ack == 0 for t in times)
    return [
        # Unlike the second figure, the first cannot be 0.
        Figure(
            name="from sending to the delivery on another node, one message in flight",
            measured=_percentiles(delivered),
            beside=f"from sending to the ack: {_percentiles(acknowledged)}",
            ratio=median(delivered) / median(acknowledged),
        ),
        Figure(
            name="  from the ack to that delivery",
            measured=f"{_percentiles(after_ack)}; {delivered_first:.0%} arrived before the ack",
            beside=f"bare Redis, {len(payload)} bytes from publish to receive: "
            f"{_percentiles(bare_times)}",
            ratio=median(after_ack) / median(bare_times),
            wanted=Wanted.BELOW,
            threshold=3,
        ),
    ]


def _percentiles(seconds: Sequence[float]) -> str:
    p99 = quantiles(seconds, n=100)[98]
    return f"p50 {median(seconds) * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms"


class DevicePair:
    """Two devices of one user, on two nodes."""

    def __init__(self, sender: LoadDevice, receiver: LoadDevice) -> None:
        self._sender = sender
        self._receiver = receiver
        self._sent = 0

    @classmethod
    @asynccontextmanager
    async def on(cls, near: Address, far: Address) -> AsyncIterator[Self]:
        devices = [
            await LoadDevice.connect(node, UID, f"device-on-{node.port}") for node in (near, far)
        ]
        yield cls(*devices)
        for device in devices:
            device.close()

    async def measure(self) -> DeliveryTimes:
        """Send a message. The times are taken when the frames arrive."""
        loop = asyncio.get_running_loop()
        acknowledged: asyncio.Future[tuple[float, bytes]] = loop.create_future()
        delivered: asyncio.Future[float] = loop.create_future()
        self._sender.on_ack = lambda _, ack: acknowledged.set_result((perf_counter(), ack))
        self._receiver.on_update = lambda _: delivered.set_result(perf_counter())
        self._sent += 1
        frame = consume_frame(self._sent, [chat_message(new_msg_id(), self._sent)])
        start = perf_counter()
        self._sender.send(frame)
        async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
            (acknowledged_at, ack), delivered_at = await acknowledged, await delivered
        all_stored(ack, 1)
        return DeliveryTimes(acknowledged_at - start, delivered_at - start)


class BarePubSub:
    """A connection to Redis that publishes, and one that receives."""

    def __init__(self, publisher: Any, subscriber: Any) -> None:
        self._publisher = publisher
        self._subscriber = subscriber

    @classmethod
    @asynccontextmanager
    async def at(cls, url: str) -> AsyncIterator[Self]:
        async with Redis.from_url(url) as publisher, publisher.pubsub() as subscriber:
            yield cls(publisher, subscriber)

    async def capture_payload(self, pair: DevicePair) -> bytes:
        """Return the payload that a node publishes for a message. Afterwards the subscriber
        receives only what `measure` publishes."""
        await self._subscriber.psubscribe(CHANNEL_OF_USER)
        await self._subscriber.get_message(timeout=RUN_TIMEOUT_SECONDS)
        await pair.measure()
        payload: bytes = (await self._subscriber.get_message(timeout=RUN_TIMEOUT_SECONDS))["data"]
        await self._subscriber.punsubscribe(CHANNEL_OF_USER)
        await self._subscriber.subscribe(CHANNEL)
        for _ in range(2):
            await self._subscriber.get_message(timeout=RUN_TIMEOUT_SECONDS)
        return payload

    async def measure(self, payload: bytes) -> float:
        """Seconds from publish to receive."""
        receiving = asyncio.create_task(self._receive())
        await asyncio.sleep(0)  # now it waits for its socket
        start = perf_counter()
        await self._publisher.publish(CHANNEL, payload)
        return await receiving - start

    async def _receive(self) -> float:
        async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
            await self._subscriber.get_message(timeout=None)
        return perf_counter()
