"""A channel to a device that a test plays, and the server of its conversation."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec

from gregor.core.instant import Time
from gregor.core.message import Message
from gregor.errors import Unauthenticated
from gregor.interfaces import HOLDS_FOREVER, Caller, Outcome, Rejected
from gregor.node.channel import ChannelClosed
from gregor.node.conversation import Admission, DeliveryCounts
from gregor.node.limiter import unlimited
from gregor.node.node import Node
from gregor.protocol.effects import Close, Send


class FakeSocket:
    """A socket that a test makes ready. It records what is written to it."""

    def __init__(self) -> None:
        self.ready = False
        self.writes: list[Sequence[str]] = []

    def write(self, texts: Sequence[str]) -> None:
        self.writes.append(texts)

    @property
    def written(self) -> list[str]:
        """The frames of all writes."""
        return [text for texts in self.writes for text in texts]

    @property
    def types(self) -> list[list[str]]:
        """The types of the frames of each write."""
        return [[msgspec.json.decode(text)["type"] for text in texts] for texts in self.writes]


class FakeChannel:
    """A channel that records what is written to it, and accepts it while it is not `blocked`."""

    def __init__(self) -> None:
        self.socket = FakeSocket()
        self.written: list[Send] = []
        self.close: Close | None = None
        self.closed_at = 0.0  # loop time
        self.blocked = False
        self.fails = False  # a write is a defect
        self._to_read: asyncio.Queue[str | ChannelClosed | None] = asyncio.Queue()

    def send(self, type_: str, **fields: Any) -> None:
        """The device sends a frame."""
        self._to_read.put_nowait(msgspec.json.encode({"type": type_, **fields}).decode())

    def disconnect(self) -> None:
        self._to_read.put_nowait(ChannelClosed())

    async def read(self) -> str | None:
        frame = await self._to_read.get()
        if isinstance(frame, ChannelClosed):
            raise frame
        return frame

    async def write(self, effect: Send | Close) -> None:
        if self.fails:
            raise ZeroDivisionError
        if self.blocked:
            await asyncio.get_running_loop().create_future()
        match effect:
            case Send():
                self.written.append(effect)
            case Close():
                self.close = effect
                self.closed_at = asyncio.get_running_loop().time()
                self.disconnect()

    @property
    def types(self) -> list[str]:
        """The types of the frames that were written."""
        return [str(send.frame.__struct_config__.tag) for send in self.written]


class FakeHost:
    """A server for conversations. Tokens are uids; `refused` is not admitted."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.counts = DeliveryCounts()
        self.limiter = unlimited()
        self.hello_seconds = 5.0
        self.expires_at: Time | None = None
        self.issued_at: Time | None = HOLDS_FOREVER
        self.admission_seconds = 0.0  # how long an admission takes

    async def admit(self, token: str, seconds: float) -> Admission:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self.admission_seconds)
        if token == "refused":
            raise Unauthenticated("who are you?")
        return Admission(token, self.expires_at, self.issued_at)

    async def inject(
        self, caller: Caller, entries: Sequence[Message | Rejected], epoch: Time | None = None
    ) -> list[Outcome]:
        return await self.node.inject(caller, entries, epoch)
