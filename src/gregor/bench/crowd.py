"""Many users with several devices each: one of them sends, and all receive."""

import asyncio
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Self

from gregor.bench.load import (
    BenchFailed,
    Device,
    all_stored,
    chat_message,
    connect_all,
    consume_frame,
)
from gregor.bench.servers import Address
from gregor.core.message import new_msg_id

DEVICES = 3
PATIENCE_SECONDS = 60.0


class Crowd:
    """The devices of these users. Each user's first device is the one that sends."""

    def __init__(self, devices: list[Device]) -> None:
        self.devices = devices
        self.senders = devices[::DEVICES]

    @classmethod
    async def gather(cls, addresses: Sequence[Address], users: int) -> Self:
        """Spread over the servers at these addresses, as are the devices of each user."""
        return cls(
            await connect_all(
                [
                    (addresses[(u + d) % len(addresses)], f"user-{u}", f"device-{d}")
                    for u in range(users)
                    for d in range(DEVICES)
                ]
            )
        )

    @property
    def lags(self) -> int:
        """How often a device was too slow, and was told from the store."""
        return sum(device.lags for device in self.devices)

    async def exchange(self, frames: int, messages: int) -> "Exchange":
        """Every user sends so many frames of so many messages, the next one when the last is
        acknowledged; until every device of every user has received all of it."""
        exchange = Exchange(self, frames, messages)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await exchange.run()
        return exchange

    def close(self) -> None:
        for device in self.devices:
            device.close()


class Exchange:
    """One exchange of a crowd, and what it has measured."""

    def __init__(self, crowd: Crowd, frames: int, messages: int) -> None:
        self.seconds = 0.0
        self.latencies: list[float] = []  # from sending a frame to its ack
        self._messages = messages
        self._devices = crowd.devices
        self._frames = {sender: _frames(frames, messages) for sender in crowd.senders}
        self._sent_at: dict[Device, float] = {}
        self._ctimes: dict[str, int] = {}  # of the last message of each user
        self._expected = {device: device.messages + frames * messages for device in crowd.devices}
        self._missing = len(crowd.devices) + len(crowd.senders)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        for device in self._devices:
            device.on_news = self._receive
        start = perf_counter()
        for sender in self._frames:
            sender.on_ack = self._acknowledge
            self._send(sender)
        await self._done
        self.seconds = perf_counter() - start
        for device in self._devices:
            if device.messages != self._expected[device] or (
                device.cursor != self._ctimes[device.uid]
            ):
                raise BenchFailed(f"{device.uid} {device.device_id} has not received everything")

    def _send(self, sender: Device) -> None:
        frame = next(self._frames[sender], None)
        if frame is None:
            self._one_less()
        else:
            self._sent_at[sender] = perf_counter()
            sender.send(frame)

    def _acknowledge(self, sender: Device, ack: bytes) -> None:
        self.latencies.append(perf_counter() - self._sent_at[sender])
        self._ctimes[sender.uid] = all_stored(ack, self._messages)
        self._send(sender)

    def _receive(self, device: Device) -> None:
        if device.messages == self._expected[device]:
            self._one_less()

    def _one_less(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._done.set_result(None)


def _frames(frames: int, messages: int) -> Iterator[bytes]:
    """Made beforehand: it is not the sender that is measured."""
    return iter(
        [
            consume_frame(n, [chat_message(new_msg_id(), n) for _ in range(messages)])
            for n in range(frames)
        ]
    )
