"""The kinds of abusers of `fairness`: each does one harm to a server, again and again.

They use a token that they have, of one device or of one service, or none.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count, repeat
from typing import Any, NamedTuple, TypeAlias

import msgspec

from bench.load import LoadConnection, text_frame
from bench.servers import Address
from gregor.limits import DEFAULT_LIMITS
from gregor.protocol.frames import PROTOCOL

OWN_UID = "BENCH_UID"
UID = os.environ.get(OWN_UID, "abuser")
DEVICE_TOKEN, SERVICE_TOKEN = "BENCH_DEVICE_TOKEN", "BENCH_SERVICE_TOKEN"
"""The variables in which an abuser's process finds its user and its tokens."""

ITEMS, BATCH = 10_000, 500
LIVE_ITEMS = DEFAULT_LIMITS.live_items
IN_FLIGHT = 8  # frames, or requests, that wait for their answers
CONNECTIONS = 100
LONG_AGO = {"time": 1_000_000_000_000_000}

JSON: TypeAlias = Any
_encode = msgspec.json.encode


class Target(NamedTuple):
    """The server that is abused, and the tokens for it."""

    address: Address
    device_token: str
    service_token: str


Abuse: TypeAlias = Callable[[Target], Awaitable[None]]


class Abuser(NamedTuple):
    """The messages that it stores first, and what it does then, which never ends."""

    abuse: Abuse
    stored: Sequence[JSON] = ()


class HTTP:
    """One connection, on which one request follows the other. It is made again if it was lost."""

    def __init__(self, address: Address, token: str) -> None:
        self._address = address
        self._token = token
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> "HTTP":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._streams is not None:
            self._streams[1].close()

    async def request(self, method: str, path: str, body: bytes = b"") -> None:
        """Send a request, and read its answer."""
        reader, writer = self._streams or await asyncio.open_connection(*self._address)
        self._streams = reader, writer
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._address.host}\r\n"
            f"Authorization: Bearer {self._token}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body)
            await writer.drain()
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            if b"\r\ntransfer-encoding: chunked" in answer:
                await _read_chunks(reader)
            else:
                length = int(answer.partition(b"content-length:")[2].partition(b"\r\n")[0])
                await _read(reader, length)
        except BaseException:
            writer.close()
            self._streams = None
            raise


async def _read(reader: asyncio.StreamReader, length: int) -> None:
    while length > 0:
        length -= len(await reader.read(min(length, 1 << 20)) or _lost())


async def _read_chunks(reader: asyncio.StreamReader) -> None:
    size = 1
    while size:
        size = int(await reader.readline() or _lost(), 16)
        await _read(reader, size + len(b"\r\n"))


def _lost() -> bytes:
    raise ConnectionResetError("the server has closed the connection")


# What is repeated


def _consuming(message: Callable[[int], JSON], messages: int = 1) -> Abuse:
    """Consumes of such messages, several of them in flight."""

    def frames() -> Iterator[bytes]:
        for n in count(1):
            batch = [message(n * messages + i) for i in range(messages)]
            yield _encode({"type": "consume", "n": n, "messages": batch})

    return _sending(frames)


def _sending(frames: Callable[[], Iterator[bytes]]) -> Abuse:
    """These frames from a connected device; each of them has an answer."""

    async def abuse(target: Target) -> None:
        in_flight = asyncio.Semaphore(IN_FLIGHT)
        texts = frames()
        async with asyncio.TaskGroup() as tasks:
            device = await _device(target, lambda text: in_flight.release())
            tasks.create_task(device.lost())
            while True:
                await in_flight.acquire()
                device.send(text_frame(next(texts)))

    return abuse


class _Device(LoadConnection):
    async def lost(self) -> None:
        """Wait for the end of the connection, and raise it."""
        await self._ended.wait()
        raise ConnectionResetError("the server has closed the connection")

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._ended = asyncio.Event()

    def send(self, frame: bytes) -> None:
        if self._transport.is_closing():
            raise ConnectionResetError("the server has closed the connection")
        super().send(frame)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._ended.set()

    def stop_reading(self) -> None:
        self._transport.pause_reading()

    def buffered(self) -> int:
        size: int = self._transport.get_write_buffer_size()
        return size


async def _connected(target: Target, on_text: Callable[[bytes], None]) -> _Device:
    return await _Device.open(target.address, "/v1/connect", on_text)


async def _device(target: Target, on_text: Callable[[bytes], None]) -> _Device:
    """A device that is synced, and then passes on the texts that are no part of it."""
    synced = asyncio.Event()

    def receive(text: bytes) -> None:
        if synced.is_set() and not text.startswith(b'{"type":"messages"'):
            on_text(text)
        elif text.startswith(b'{"type":"sync"') and b'"more":true' not in text[-200:]:
            synced.set()

    device = await _connected(target, receive)
    hello = {"type": "hello", "token": target.device_token, "device_id": "phone"}
    device.send(text_frame(_encode({**hello, "protocol": PROTOCOL})))
    async with asyncio.timeout(30):
        await synced.wait()
    return device


def _requesting(
    method: str,
    path: str,
    body: Callable[[int], bytes] = lambda n: b"",
    *,
    as_service: bool = False,
    token: str | None = None,
) -> Abuse:
    """These requests, several of them in flight."""

    async def request_again(target: Target, numbers: Iterator[int]) -> None:
        own = target.service_token if as_service else target.device_token
        async with HTTP(target.address, own if token is None else token) as http:
            for n in numbers:
                await http.request(method, path, body(n))

    async def abuse(target: Target) -> None:
        numbers = count()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(IN_FLIGHT):
                tasks.create_task(request_again(target, numbers))

    return abuse


def _posting(body: Callable[[int], JSON]) -> Abuse:
    return _requesting("POST", "/v1/messages", lambda n: _encode(body(n)), as_service=True)


def _getting(path: str) -> Abuse:
    return _requesting("GET", f"/v1/users/{UID}/{path}")


# Kinds that need more than a loop


async def _ping(target: Target) -> None:
    """Pings, whose pongs are not read."""
    device = await _device(target, lambda text: None)
    device.stop_reading()
    pings = (b"\x89\xfd\0\0\0\0" + b"p" * 125) * 500
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(device.lost())
        while True:
            if device.buffered() < 1 << 20:
                device.send(pings)
            await asyncio.sleep(0)


async def _send_bad_utf8(target: Target) -> None:
    """A frame that is not UTF-8, in place of a hello."""
    while True:
        device = await _connected(target, lambda text: None)
        device.send(text_frame(b'{"token":"\xff\xfe' + b"\xff" * 1_000 + b'"}'))
        with suppress(ConnectionResetError):
            await device.lost()


def _dribbling(start: Callable[[Target], bytes], piece: Callable[[int], bytes]) -> Abuse:
    """Something that never ends, in small pieces: one more, on each of many connections in turn."""

    async def dribble(target: Target) -> None:
        writers: list[asyncio.StreamWriter] = []
        for n in count():
            if len(writers) < CONNECTIONS:
                _, writer = await asyncio.open_connection(*target.address)
                writer.write(start(target))
                writers.append(writer)
            writer = writers[n % len(writers)]
            if writer.is_closing():
                writers.remove(writer)
                continue
            writer.write(piece(n))
            with suppress(OSError):
                await writer.drain()

    return dribble


def _half_head(target: Target) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: x\r\n"


def _half_body(target: Target) -> bytes:
    """A device's request, whose body is still to come."""
    return (
        f"POST /v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {target.device_token}\r\n"
        f"Content-Length: {1 << 16}\r\n\r\n"
    ).encode()


def _half_hello(target: Target) -> bytes:
    """A WebSocket, and the beginning of its first frame."""
    return (
        b"GET /v1/connect HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        b"\x81\xff" + (1 << 16).to_bytes(8, "big") + bytes(4)
    )


async def _reconnect(target: Target) -> None:
    while True:
        device = await _device(target, lambda text: None)
        device.close()


async def _leave_streams_unread(target: Target) -> None:
    """Event streams that nobody reads, while the user's state changes."""
    streams = []
    for n in range(300):
        _, writer = await asyncio.open_connection(*target.address, limit=1_024)
        path = f"/v1/users/{UID}/events?device_id=d{n}"
        token = f"Authorization: Bearer {target.device_token}"
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\n{token}\r\n\r\n".encode())
        streams.append(writer)
    await _consuming(lambda n: _creation("a", "x" * 10_000, key="a"))(target)


# Messages


def _creation(category: str, body: JSON = None, **fields: JSON) -> JSON:
    return {"creation": {"category": category, "body": body, **fields}}


def _put(n: int) -> JSON:
    return _creation("badge", n, key="badge")


def _items(category: Callable[[int], str], number: int = ITEMS) -> list[JSON]:
    return [{"msg_id": f"i{n}", **_creation(category(n), "x" * 40)} for n in range(number)]


def _create_and_dismiss(n: int) -> JSON:
    """An item for which there is no room, unless the range makes some."""
    return {**_creation("a"), "dismissal": {"ranges": [{"category": "z", "prefix": True}]}}


def _ranges(ranges: Sequence[JSON]) -> Callable[[int], JSON]:
    message = {"dismissal": {"ranges": ranges}}
    return lambda n: message


def _nested(number: int) -> list[JSON]:
    """Prefixes that each begin with the one before."""
    return [{"category": "a" * n, "prefix": True} for n in range(1, number)]


def _of_a_device(messages: Sequence[JSON]) -> Sequence[JSON]:
    return [{**message, "device_id": "tablet"} for message in messages]


def _of_another_device(message: Callable[[int], JSON]) -> Callable[[int], JSON]:
    """Its ranges match the items, and do not reach them."""
    return lambda n: {**message(n), "device_id": "phone"}


def _for_many(n: int) -> JSON:
    uids = [f"user-{n}-{i}" for i in range(10_000)]
    return {"uids": uids, "message": _creation("many")}


def _for_one(n: int) -> JSON:
    return {"uids": [UID] * 10_000, "message": {"msg_id": f"m{n}", **_creation("one")}}


def _notifications(n: int) -> JSON:
    body = {"title": "the build is green again"}
    item = _creation("inbox.build", body, key="build")
    marker = _creation("unread.build", key="unread:build")
    return {"messages": [{"uid": UID, **message} for message in (item, marker)] * 250}


_PREFIXES = "&".join(f"prefix=p{n}" for n in range(6_000))

KINDS: Mapping[str, Abuser] = {
    "puts under one key": Abuser(_consuming(_put)),
    "batches of puts": Abuser(_consuming(_put, BATCH)),
    "100 prefix ranges": Abuser(
        _consuming(_ranges([{"category": f"z{n}", "prefix": True} for n in range(100)])),
        _items(lambda n: "a" * 100 + f".{n % 10}"),
    ),
    "100 nested prefix ranges": Abuser(
        _consuming(_of_another_device(_ranges(_nested(100)))),
        _of_a_device(_items(lambda n: "a" * 100 + f".{n % 10}")),
    ),
    "500 categories": Abuser(
        _consuming(_ranges([{"category": f"c{n}", "end_time": LONG_AGO} for n in range(BATCH)])),
        _items(lambda n: f"c{n % BATCH}"),
    ),
    "2,000 ranges": Abuser(
        _consuming(_ranges([{"category": f"z{n}"} for n in range(2_000)])),
        _items(lambda n: f"a.{n}"),
    ),
    "items and ranges beyond the limit": Abuser(
        _consuming(_create_and_dismiss, BATCH), _items(lambda n: f"a.{n}", LIVE_ITEMS)
    ),
    "puts at the limit": Abuser(_consuming(_put, BATCH), _items(lambda n: "a", LIVE_ITEMS - 1)),
    "100,000 skip_msg_ids": Abuser(
        _consuming(_ranges([{"category": "a", "skip_msg_ids": [f"i{n}" for n in range(50_000)]}])),
        _items(lambda n: "a"),
    ),
    "a batch of large bodies": Abuser(_consuming(lambda n: _creation("a", "x" * 60_000), 8)),
    "one user named 10,000 times": Abuser(_posting(_for_one)),
    "10,000 users in a request": Abuser(_posting(_for_many)),
    "notifications": Abuser(_posting(_notifications)),
    "counts of 6,000 prefixes": Abuser(_getting(f"count?{_PREFIXES}"), _items(lambda n: f"p{n}")),
    "counts": Abuser(_getting("count?prefix=a"), _items(lambda n: f"a.{n}")),
    "states": Abuser(_getting("state"), _items(lambda n: f"a.{n}")),
    "messages since 0": Abuser(_getting("messages?since=0"), _items(lambda n: f"a.{n}")),
    "verify": Abuser(
        _sending(lambda: repeat(b'{"type":"verify","cursor":0}')), _items(lambda n: f"a.{n}")
    ),
    "300 unread event streams": Abuser(_leave_streams_unread),
    "out-of-band messages": Abuser(_consuming(lambda n: {"system": "s", "body": "x" * 100}, BATCH)),
    "bodies of 8 MiB": Abuser(
        _requesting("POST", "/v1/messages", lambda n: b'{"messages":[' + b"1," * 4_000_000 + b"1]}")
    ),
    "rejected tokens": Abuser(_requesting("GET", f"/v1/users/{UID}/count", token="wrong")),
    "pings": Abuser(_ping),
    "bad UTF-8 before the hello": Abuser(_send_bad_utf8),
    "half-sent heads": Abuser(_dribbling(_half_head, lambda n: b"x-%d: %s\r\n" % (n, b"y" * 200))),
    "half-sent bodies": Abuser(_dribbling(_half_body, lambda n: b" " * 20)),
    "half-sent hellos": Abuser(_dribbling(_half_hello, lambda n: b" " * 20)),
    "reconnects": Abuser(_reconnect),
}
