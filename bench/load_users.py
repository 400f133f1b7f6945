"""Many users with several devices each: one device of each user sends, and all receive."""

import asyncio
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Self

from bench.load import (
    BenchFailed,
    LoadDevice,
    all_stored,
    chat_message,
    connect_all,
    consume_frame,
)
from bench.servers import Address
from gregor.core.message import new_msg_id

DEVICES = 3
RUN_TIMEOUT_SECONDS = 60.0


class LoadUsers:
    """The devices of the users. The first device of each user is the sender."""

    def __init__(self, devices: list[LoadDevice]) -> None:
        self.devices = devices
        self.senders = devices[::DEVICES]

    @classmethod
    async def connect(cls, addresses: Sequence[Address], users: int) -> Self:
        """Connect the devices. Those of each user are distributed over the addresses."""
        return cls(
            await connect_all(
                [
                    (
                        addresses[(user + device) % len(addresses)],
                        f"user-{user}",
                        f"device-{device}",
                    )
                    for user in range(users)
                    for device in range(DEVICES)
                ]
            )
        )

    @property
    def catch_up_syncs(self) -> int:
        """How often a device was a slow consumer and was synced from the store."""
        return sum(device.catch_up_syncs for device in self.devices)

    async def run(self, frames: int, messages: int) -> "LoadRun":
        """Each sender sends this number of frames with this number of messages each, and sends
        the next frame after the ack. Returns when every device has received all messages of its
        user. Raises BenchFailed if the counts are wrong, and TimeoutError after 60 s."""
        run = LoadRun(self, frames, messages)
        async with asyncio.timeout(RUN_TIMEOUT_SECONDS):
            await run.run()
        return run

    def close(self) -> None:
        for device in self.devices:
            device.close()


class LoadRun:
    """One run of the load users, and its measurements."""

    def __init__(self, users: LoadUsers, frames: int, messages: int) -> None:
        self.seconds = 0.0
        self.latencies: list[float] = []  # from sending a frame to its ack
        self._messages = messages
        self._devices = users.devices
        self._frames = {sender: _frames(frames, messages) for sender in users.senders}
        self._sent_at: dict[LoadDevice, float] = {}
        self._ctimes: dict[str, int] = {}  # of the last acknowledged message of each user
        self._expected = {device: device.messages + frames * messages for device in users.devices}
        self._missing = len(users.devices) + len(users.senders)
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        for device in self._devices:
            device.on_update = self._receive
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

    def _send(self, sender: LoadDevice) -> None:
        frame = next(self._frames[sender], None)
        if frame is None:
            self._count_down()
        else:
            self._sent_at[sender] = perf_counter()
            sender.send(frame)

    def _acknowledge(self, sender: LoadDevice, ack: bytes) -> None:
        self.latencies.append(perf_counter() - self._sent_at[sender])
        self._ctimes[sender.uid] = all_stored(ack, self._messages)
        self._send(sender)

    def _receive(self, device: LoadDevice) -> None:
        if device.messages == self._expected[device]:
            self._count_down()

    def _count_down(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._done.set_result(None)


def _frames(frames: int, messages: int) -> Iterator[bytes]:
    """The frames of one sender, encoded before the measurement starts."""
    return iter(
        [
            consume_frame(n, [chat_message(new_msg_id(), n) for _ in range(messages)])
            for n in range(frames)
        ]
    )
