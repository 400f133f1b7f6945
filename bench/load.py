"""Devices with a low cost for the load generator, so that the bench measures the server.

The WebSocket implementation covers the part of RFC 6455 that a well-behaved server needs: text
messages in one frame, and pings. Its masking key is zero, so masking is a no-op. Incoming frames
are recognised by their first bytes, and their messages are counted, not decoded.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, Self

import msgspec

from bench.servers import Address
from gregor.protocol.frames import PROTOCOL

_MASK = b"\0\0\0\0"
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10

OnText = Callable[[bytes], None]


class BenchFailed(Exception):
    """The server did not do the work that the bench measures."""


class LoadConnection(asyncio.Protocol):
    """One WebSocket. `on_text` is called with each text message."""

    def __init__(self, path: str, host: str, on_text: OnText) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_text = on_text
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._buffer = b""
        self._transport: Any = None

    @classmethod
    async def open(cls, address: Address, path: str, on_text: OnText) -> Self:
        loop = asyncio.get_running_loop()
        _, self = await loop.create_connection(
            lambda: cls(path, f"{address.host}:{address.port}", on_text), *address
        )
        await self.opened
        return self

    def send(self, frame: bytes) -> None:
        """Send a frame from `text_frame`."""
        self._transport.write(frame)

    def close(self) -> None:
        self.opened.cancel()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(self._request.encode())

    def connection_lost(self, error: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(BenchFailed("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self.opened.done():
            head, separator, data = data.partition(b"\r\n\r\n")
            if not separator:
                self._buffer = head
                return
            if b" 101 " not in head:
                self.opened.set_exception(BenchFailed(head.decode(errors="replace")))
                return
            self.opened.set_result(None)
        start = 0
        while (frame := _frame_at(data, start)) is not None:
            opcode, begin, start = frame
            if opcode == _TEXT:
                self.on_text(data[begin:start])
            elif opcode == _PING:
                self.send(_client_frame(_PONG, data[begin:start]))
            elif opcode == _CLOSE:
                self._transport.abort()
        self._buffer = data[start:]


def _frame_at(data: bytes, start: int) -> tuple[int, int, int] | None:
    """The opcode of the frame that begins at `start`, and the start and end of its payload; None if
    the frame is incomplete."""
    if len(data) - start < 2:
        return None
    opcode, length, begin = data[start] & 15, data[start + 1], start + 2
    if length >= 126:
        begin += 2 if length == 126 else 8
        length = int.from_bytes(data[start + 2 : begin], "big")
    end = begin + length
    return (opcode, begin, end) if end <= len(data) and begin <= len(data) else None


def _client_frame(opcode: int, payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + _MASK + payload


def text_frame(payload: bytes) -> bytes:
    """A WebSocket frame with a text payload."""
    return _client_frame(_TEXT, payload)


class LoadDevice:
    """A connected device that counts the messages it receives. `on_ack` is called with each ack or
    error, `on_update` after each frame that moves the cursor, `on_sync` after each complete
    sync."""

    def __init__(self, uid: str, device_id: str) -> None:
        self.uid = uid
        self.device_id = device_id
        self.messages = 0
        self.cursor = 0
        self.frame_bytes = 0  # of the last frame with messages
        self.catch_up_syncs = -1  # the first sync is not counted
        self.on_ack: Callable[[LoadDevice, bytes], None] = _ignore
        self.on_update: Callable[[LoadDevice], None] = _ignore
        self.on_sync: Callable[[LoadDevice], None] = _ignore
        self._paging = False
        self._connection: LoadConnection

    @classmethod
    async def connect(
        cls, address: Address, uid: str, device_id: str, token: str | None = None
    ) -> "LoadDevice":
        """Connect a device, send its hello, and wait for its first sync. With `--auth open`, its
        token is its uid."""
        self = cls(uid, device_id)
        self._connection = await LoadConnection.open(address, "/v1/connect", self._receive)
        synced = self._next_sync()
        hello = {"token": token or uid, "device_id": device_id, "protocol": PROTOCOL}
        self._connection.send(text_frame(msgspec.json.encode({"type": "hello", **hello})))
        await synced
        return self

    def send(self, frame: bytes) -> None:
        self._connection.send(frame)

    async def consume(self, n: int, messages: list[bytes]) -> int:
        """Send messages and wait for their ack; the ctime of the last one. Raises BenchFailed if
        one was not stored."""
        acknowledged: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.on_ack = lambda _, ack: acknowledged.done() or acknowledged.set_result(ack)
        self.send(consume_frame(n, messages))
        return all_stored(await acknowledged, len(messages))

    async def sync(self, cursor: int) -> None:
        """Request a sync from the cursor, and wait for it."""
        synced = self._next_sync()
        self.send(text_frame(b'{"type":"verify","cursor":%d}' % cursor))
        await synced

    def _next_sync(self) -> "asyncio.Future[None]":
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_sync = lambda _: synced.set_result(None)
        return synced

    def close(self) -> None:
        self._connection.close()

    def _receive(self, text: bytes) -> None:
        if text.startswith(b'{"type":"messages"'):
            self.messages += text.count(b'"msg_id":')
            self.frame_bytes = len(text)
            self.cursor = int(text[text.rfind(b'"cursor":') + 9 : -1])
            self.on_update(self)
        elif text.startswith((b'{"type":"ack"', b'{"type":"error"')):
            self.on_ack(self, text)
        elif text.startswith(b'{"type":"sync"'):
            self._receive_sync(text)
        elif not text.startswith((b'{"type":"welcome"', b'{"type":"goaway"')):
            raise BenchFailed(text.decode())

    def _receive_sync(self, text: bytes) -> None:
        page = msgspec.json.decode(text)
        if page["mode"] == "snapshot" and not self._paging:
            self.messages = 0  # a snapshot contains all live items, and load users dismiss none
        self.messages += len(page.get("messages", ())) + len(page.get("items", ()))
        self._paging = page.get("more", False)
        if not self._paging:
            self.cursor = page["cursor"]
            self.catch_up_syncs += 1
            self.on_sync(self)
            self.on_update(self)


def _ignore(*_: object) -> None:
    pass


async def connect_all(devices_at: list[tuple[Address, str, str]]) -> list[LoadDevice]:
    """Connect a device for each (address, uid, device_id), 50 at a time."""
    devices: list[LoadDevice] = []
    for start in range(0, len(devices_at), 50):
        chunk = devices_at[start : start + 50]
        devices += await asyncio.gather(*(LoadDevice.connect(*device) for device in chunk))
    return devices


def consume_frame(n: int, messages: list[bytes]) -> bytes:
    """A WebSocket frame with a consume frame of these messages."""
    return text_frame(b'{"type":"consume","n":%d,"messages":[%s]}' % (n, b",".join(messages)))


def chat_message(msg_id: str, room: int) -> bytes:
    """A typical chat message: about 170 bytes, and 230 once it has a uid, ctime and prev."""
    message = {
        "msg_id": msg_id,
        "creation": {
            "category": f"chat.unread.room{room}",
            "body": {"from": "ada", "text": "the build is green again, can you have a look?"},
        },
    }
    return msgspec.json.encode(message)


def all_stored(ack: bytes, messages: int) -> int:
    """The ctime of the last message of an ack. Raises BenchFailed if the ack does not have this
    number of stored messages."""
    if ack.count(b'"status":"stored"') != messages:
        raise BenchFailed(f"not all messages were stored: {ack[:500].decode()}")
    begin = ack.rfind(b'"ctime":') + 8
    return int(ack[begin : ack.index(b",", begin)])
