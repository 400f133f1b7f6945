"""Devices that cost the load generator little, so that it is the server that is measured.

A frame is made by hand: RFC 6455 as far as a well-behaved server makes it necessary, that is, text
in one piece and pings, with a masking key of zero, which makes masking a no-op. What comes in is
told apart by its first bytes, and its messages are counted rather than decoded.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from gregor.bench.servers import Address

_MASK = b"\0\0\0\0"
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10

Heard = Callable[[bytes], None]


class BenchFailed(Exception):
    """The server did not do what is being measured."""


class Connection(asyncio.Protocol):
    """One WebSocket. `heard` is called with each text that comes."""

    def __init__(self, path: str, host: str, heard: Heard) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.heard = heard
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._rest = b""
        self._transport: Any = None

    @classmethod
    async def open(cls, address: Address, path: str, heard: Heard) -> "Connection":
        loop = asyncio.get_running_loop()
        _, self = await loop.create_connection(
            lambda: cls(path, f"{address.host}:{address.port}", heard), *address
        )
        await self.opened
        return self

    def send(self, frame: bytes) -> None:
        """Send a frame that `text_frame` has made."""
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
        data = self._rest + data if self._rest else data
        if not self.opened.done():
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                self._rest = head
                return
            if b" 101 " not in head:
                self.opened.set_exception(BenchFailed(head.decode(errors="replace")))
                return
            self.opened.set_result(None)
        start = 0
        while (found := _frame(data, start)) is not None:
            opcode, begin, start = found
            if opcode == _TEXT:
                self.heard(data[begin:start])
            elif opcode == _PING:
                self.send(_client_frame(_PONG, data[begin:start]))
            elif opcode == _CLOSE:
                self._transport.abort()
        self._rest = data[start:]


def _frame(data: bytes, start: int) -> tuple[int, int, int] | None:
    """The opcode of the frame that begins here, and where its payload begins and ends; None if
    not all of it has come."""
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
    return _client_frame(_TEXT, payload)


class Device:
    """A connected device that counts what it is told. `on_ack` is called with each ack, `on_news`
    after each frame that moves the cursor."""

    def __init__(self, uid: str, device_id: str) -> None:
        self.uid = uid
        self.device_id = device_id
        self.messages = 0
        self.cursor = 0
        self.frame_bytes = 0  # of the last frame with messages
        self.lags = -1  # the first sync is no lag
        self.on_ack: Callable[[Device, bytes], None] = _ignore
        self.on_news: Callable[[Device], None] = _ignore
        self.on_sync: Callable[[Device], None] = _ignore
        self._paging = False
        self._connection: Connection

    @classmethod
    async def connect(cls, address: Address, uid: str, device_id: str) -> "Device":
        """A device that has said hello, and has had its first sync."""
        self = cls(uid, device_id)
        self._connection = await Connection.open(address, "/v1/connect", self._heard)
        synced = self._next_sync()
        hello = {"type": "hello", "token": uid, "device_id": device_id, "protocol": 1}
        self._connection.send(text_frame(msgspec.json.encode(hello)))
        await synced
        return self

    def send(self, frame: bytes) -> None:
        self._connection.send(frame)

    async def consume(self, n: int, messages: list[bytes]) -> int:
        """Have these messages stored; the ctime of the last of them."""
        acknowledged: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.on_ack = lambda _, ack: acknowledged.set_result(ack)
        self.send(consume_frame(n, messages))
        return all_stored(await acknowledged, len(messages))

    async def sync(self, cursor: int) -> None:
        """Be told what came after the cursor."""
        synced = self._next_sync()
        self.send(text_frame(b'{"type":"verify","cursor":%d}' % cursor))
        await synced

    def _next_sync(self) -> "asyncio.Future[None]":
        synced: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_sync = lambda _: synced.set_result(None)
        return synced

    def close(self) -> None:
        self._connection.close()

    def _heard(self, text: bytes) -> None:
        if text.startswith(b'{"type":"messages"'):
            self.messages += text.count(b'"msg_id":')
            self.frame_bytes = len(text)
            self.cursor = int(text[text.rfind(b'"cursor":') + 9 : -1])
            self.on_news(self)
        elif text.startswith(b'{"type":"ack"'):
            self.on_ack(self, text)
        elif text.startswith(b'{"type":"sync"'):
            self._sync(text)
        elif not text.startswith((b'{"type":"welcome"', b'{"type":"goaway"')):
            raise BenchFailed(text.decode())

    def _sync(self, text: bytes) -> None:
        page = msgspec.json.decode(text)
        if page["mode"] == "snapshot" and not self._paging:
            self.messages = 0  # it tells of all that lives; a crowd dismisses nothing
        self.messages += len(page.get("messages", ())) + len(page.get("items", ()))
        self._paging = page.get("more", False)
        if not self._paging:
            self.cursor = page["cursor"]
            self.lags += 1
            self.on_sync(self)
            self.on_news(self)


def _ignore(*_: object) -> None:
    pass


async def connect_all(devices_at: list[tuple[Address, str, str]]) -> list[Device]:
    """Devices at these servers with these uids and device_ids, some dozens at a time."""
    devices: list[Device] = []
    for start in range(0, len(devices_at), 50):
        some = (Device.connect(*each) for each in devices_at[start : start + 50])
        devices += await asyncio.gather(*some)
    return devices


def consume_frame(n: int, messages: list[bytes]) -> bytes:
    """A consume frame, ready to be sent."""
    return text_frame(b'{"type":"consume","n":%d,"messages":[%s]}' % (n, b",".join(messages)))


def chat_message(msg_id: str, room: int) -> bytes:
    """What a chat backend would say: about 220 bytes with its envelope."""
    message = {
        "msg_id": msg_id,
        "creation": {
            "category": f"chat.unread.room{room}",
            "body": {"from": "ada", "text": "the build is green again, can you have a look?"},
        },
    }
    return msgspec.json.encode(message)


def all_stored(ack: bytes, messages: int) -> int:
    """The ctime of the last message of an ack, which must have stored all of so many."""
    if ack.count(b'"status":"stored"') != messages:
        raise BenchFailed(f"not all was stored: {ack[:500].decode()}")
    return int(ack[ack.rfind(b'"ctime":') + 8 : -3])
