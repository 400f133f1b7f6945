"""HTTP that is sent by hand: what no library would send, and what comes too slowly."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Self

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from gregor.protocol.requests import MAX_REQUEST
from gregor.server import guarded_http, read_pace
from gregor.server.guarded_http import HEAD_BYTES, HEAD_FIELDS
from gregor.server.open_connections import (
    DEFAULT_CONNECTION_LIMITS,
    ConnectionLimits,
    OpenConnections,
)
from gregor.server.peer_errors import PeerError, PeerErrors
from gregor.server.read_pace import FREE_READS
from tests.server.harness import Served, listening, small_buffer_socket, token, until
from tests.timeouts import TIMEOUT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

SHORT = ConnectionLimits(head=0.3, body=0.3, keep_alive=0.3, write=0.3, linger=0.3)


class Raw:
    """A connection on which any bytes can be sent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int) -> Self:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def send_endlessly(self, data: bytes) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while True:
                await self.send(data)

    async def answer(self) -> tuple[int, bytes]:
        """The status and the body of the next answer, which says its length."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
            length = {name.lower(): value for name, value in fields.items()}[b"content-length"]
            return int(head.split()[1]), await self.reader.readexactly(int(length))

    async def head(self) -> bytes:
        """The head of the next answer."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""

    async def trickle(self, piece: bytes) -> None:
        """Send this piece again and again, until the server ends the connection."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            try:
                while not self.reader.at_eof():
                    await self.send(piece)
                    await asyncio.sleep(0.02)
            except OSError:
                pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.writer.close()


class Guarded:
    """A server of one small app with these limits."""

    def __init__(self, port: int, connections: OpenConnections, errors: PeerErrors) -> None:
        self.port = port
        self.connections = connections
        self.errors = errors

    async def connect(self) -> Raw:
        return await Raw.connect(self.port)

    def count(self, reason: PeerError) -> float:
        counts = next(iter(self.errors.readings())).samples()
        return dict(counts)[(reason.value,)]


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body, or with the address of the client, or with much."""
    match scope["path"]:
        case "/client":
            await PlainTextResponse(scope["client"][0])(scope, receive, send)
        case "/much":
            chunks = (b"x" * 65536 for _ in range(10_000))
            await StreamingResponse(_each(chunks))(scope, receive, send)
        case "/refused":
            await PlainTextResponse("no", 403)(scope, receive, send)
        case "/fields":
            await Request(scope, receive).body()
            await PlainTextResponse(str(len(scope["headers"])))(scope, receive, send)
        case _:
            with suppress(ClientDisconnect):
                body = await Request(scope, receive).body()
                await PlainTextResponse(body)(scope, receive, send)


async def _each(chunks: Any) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@asynccontextmanager
async def guarded(
    limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS,
    errors: PeerErrors | None = None,
    **options: Any,
) -> AsyncIterator[Guarded]:
    connections = OpenConnections(limits)
    errors = errors or PeerErrors(limits.trusted)
    async with listening(echo, connections=connections, errors=errors, **options) as port:
        yield Guarded(port, connections, errors)


def get(path: bytes = b"/client", *fields: bytes) -> bytes:
    return b"\r\n".join([b"GET " + path + b" HTTP/1.1", b"Host: localhost", *fields, b"", b""])


def post(body: bytes, length: int | None = None, path: bytes = b"/") -> bytes:
    size = len(body) if length is None else length
    return b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        path,
        size,
        body,
    )


# Heads


async def test_head_of_the_limit_is_served() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(get(b"/client", b"A: " + b"z" * (HEAD_BYTES - 200)))
        assert (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    "head",
    {
        "a long field": get(b"/", b"A: " + b"z" * HEAD_BYTES),
        "a long URL": get(b"/" + b"z" * HEAD_BYTES),
        "many fields": get(b"/", *[b"x%d: y" % n for n in range(HEAD_FIELDS + 1)]),
        "long fields": get(b"/", *[b"x%d: %b" % (n, b"y" * 700) for n in range(50)]),
        "a field without an end": get(b"/", b"A: " + b"z" * 4 * HEAD_BYTES).rstrip(),
        "a URL without an end": b"GET /" + b"z" * 4 * HEAD_BYTES,
    }.items(),
    ids=lambda item: item[0],
)
async def test_head_beyond_the_limit_is_refused_and_ends_the_connection(
    head: tuple[str, bytes],
) -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(head[1])
        status, body = await raw.answer()
        assert (status, json.loads(body)["code"]) == (431, "too-large")
        assert await raw.rest() == b""
        assert server.count(PeerError.HEAD) == 1


async def test_head_without_an_end_is_not_taken() -> None:
    """However fast it comes: what is sent after the refusal is dropped, and not for long."""
    async with guarded() as server, await server.connect() as raw:
        await raw.send(get().rstrip() + b"\r\n")
        with pytest.raises(OSError, match=r"reset|lost|closed|pipe"):
            await raw.send_endlessly(b"".join(b"x%d: y\r\n" % n for n in range(1_000)))


@pytest.mark.parametrize(("version", "statuses"), [(b"1.1", [100, 200]), (b"1.0", [200])])
async def test_body_is_asked_for_if_the_client_knows_that(
    version: bytes, statuses: list[int]
) -> None:
    head = post(b"", length=4).rstrip().replace(b"1.1", version)
    async with guarded() as server, await server.connect() as raw:
        await raw.send(head + b"\r\nExpect: 100-continue\r\n\r\n")
        for status in statuses:
            if status == 200:
                await raw.send(b"body")
            assert int((await raw.head()).split()[1]) == status


def chunked(*chunks: bytes, trailer: bytes = b"", path: bytes = b"/") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" % path
    return head + b"".join(chunks) + b"0\r\n" + trailer + b"\r\n"


@pytest.mark.parametrize(
    "request_",
    {
        "a trailer": chunked(trailer=b"A: " + b"z" * 4 * HEAD_BYTES + b"\r\n"),
        "many trailers": chunked(trailer=b"A: z\r\n" * HEAD_FIELDS * 2),
        "an extension of a chunk": chunked(b"1;a=" + b"z" * 4 * HEAD_BYTES + b"\r\nx\r\n"),
        "extensions of chunks": chunked(*[b"1;a=" + b"z" * 100 + b"\r\nx\r\n"] * 2_000),
        "tiny chunks": chunked(*[b"1\r\nx\r\n"] * 50_000),
    }.items(),
    ids=lambda item: item[0],
)
async def test_what_surrounds_a_body_is_limited(request_: tuple[str, bytes]) -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(request_[1])
        assert (await raw.answer())[0] == 431
        assert server.count(PeerError.BODY) == 1


async def test_trailer_is_no_header() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(chunked(b"2\r\nok\r\n", trailer=b"A: b\r\n", path=b"/fields"))
        assert await raw.answer() == (200, b"2")


async def test_body_in_chunks_is_served() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(chunked(*[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 1_000))
        assert await raw.answer() == (200, b"x" * 1_024_000)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(b"".join(post(b"%d" % n) for n in range(20)))
        assert [await raw.answer() for _ in range(20)] == [(200, b"%d" % n) for n in range(20)]
        await raw.send(post(b"and later"))
        assert await raw.answer() == (200, b"and later")


async def test_too_many_pipelined_requests_end_the_connection() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(get() * 1_000)
        assert (await raw.rest()).count(b"HTTP/1.1 200") <= 1
        assert server.count(PeerError.PROTOCOL) == 1


# Deadlines


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\n"])
async def test_connection_without_a_whole_head_ends(sent: bytes) -> None:
    async with guarded(SHORT) as server, await server.connect() as raw:
        await raw.send(sent)
        answer = await raw.rest()
        assert answer[:12] == (b"HTTP/1.1 408" if sent else b"")
        await until(lambda: server.connections.number == 0)


@pytest.mark.parametrize(
    ("begin", "piece", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"a: b\r\n", PeerError.HEAD),
        (b"GET /client HTTP/1.1\r\nHost: localhost\r\n\r\nGET ", b"z", PeerError.HEAD),
        (post(b"{", 1_000_000), b" ", PeerError.BODY),
    ],
)
async def test_byte_after_byte_gains_no_time(begin: bytes, piece: bytes, reason: PeerError) -> None:
    async with guarded(SHORT) as server, await server.connect() as raw:
        await raw.send(begin)
        await raw.trickle(piece)
        assert server.count(reason) == 1


async def test_idle_connection_is_kept_for_its_time_and_then_ends() -> None:
    async with guarded(SHORT._replace(head=60)) as server, await server.connect() as raw:
        for _ in range(3):
            await raw.send(get())
            assert await raw.answer() == (200, b"127.0.0.1")
        assert await raw.rest() == b""
        assert server.count(PeerError.HEAD) == 0


async def test_slow_line_has_time_for_a_large_body() -> None:
    """As long as it brings what the slowest line does: here, 64 KiB give it 4 s."""
    async with guarded(SHORT) as server, await server.connect() as raw:
        await raw.send(post(b"x" * 65_536, 70_000))
        for _ in range(10):
            await asyncio.sleep(0.05)
            await raw.send(b"x" * 10)
        await raw.send(b"x" * (70_000 - 65_536 - 100))
        assert await raw.answer() == (200, b"x" * 70_000)


async def test_client_that_does_not_read_its_answer_is_disconnected() -> None:
    async with guarded(SHORT) as server:
        sock = small_buffer_socket(server.port)
        with sock:
            await asyncio.get_running_loop().sock_sendall(sock, get(b"/much"))
            await until(lambda: server.connections.number == 1)
            await until(lambda: server.connections.number == 0)


# Bodies that nobody wants


async def test_answer_before_the_body_reaches_a_client_that_still_sends_it() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(post(b"x" * 1_000, 12_000_000, b"/refused"))
        assert await raw.answer() == (403, b"no")
        await raw.send(b"x" * 11_000_000)  # more than the system's buffers hold
        assert await raw.rest() == b""


async def test_a_body_that_is_dropped_is_read_with_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_http, "DROP_PAUSE_SECONDS", 3_600)
    async with guarded(SHORT) as server, await server.connect() as raw:
        await raw.send(post(b"x" * 1_000, 12_000_000, b"/refused"))
        assert await raw.answer() == (403, b"no")
        with pytest.raises((TimeoutError, ConnectionError)):
            async with asyncio.timeout(0.3):
                await raw.send(b"x" * 11_000_000)


# What comes in small pieces


async def test_head_and_body_in_small_pieces_are_read_with_rests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The rests are too long for the test: what comes after the free pieces is not read."""
    monkeypatch.setattr(read_pace, "REST_SECONDS", 3_600)
    whole = post(b"x" * 100)
    for start in (whole[:20], whole[:-50]):
        async with guarded(SHORT) as server, await server.connect() as raw:
            await raw.send(start)
            rest = whole[len(start) :]
            for n in range(FREE_READS + 1):
                await asyncio.sleep(0.01)  # so that each is read by itself
                await raw.send(rest[n : n + 1])
            await raw.send(rest[FREE_READS + 1 :])
            assert (await raw.answer())[0] == 408


@pytest.mark.parametrize("pieces", [FREE_READS, 3 * FREE_READS])
async def test_request_in_small_pieces_is_answered(pieces: int) -> None:
    async with guarded() as server, await server.connect() as raw:
        whole = post(b"x" * 200)
        for _ in range(2):
            for n in range(pieces):
                await raw.send(whole[n : n + 1])
                await asyncio.sleep(0.001)
            await raw.send(whole[pieces:])
            assert await raw.answer() == (200, b"x" * 200)


async def test_requests_whose_bodies_follow_their_heads_do_not_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read_pace, "REST_SECONDS", 3_600)
    async with guarded() as server, await server.connect() as raw:
        whole = post(b"x")
        for _ in range(3 * FREE_READS):
            await raw.send(whole[:-1])
            await asyncio.sleep(0.001)
            await raw.send(whole[-1:])
            assert await raw.answer() == (200, b"x")


def small_chunks(number: int) -> bytes:
    """A request whose body is so many chunks of one byte."""
    head = b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"1\r\nx\r\n" * number + b"0\r\n\r\n"


async def test_body_of_many_small_chunks_is_taken_in_many_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read_pace, "REST_SECONDS", 0.001)
    async with guarded() as server, await server.connect() as raw:
        for _ in range(2):
            await raw.send(small_chunks(5_000))
            assert await raw.answer() == (200, b"x" * 5_000)


async def test_small_chunks_that_are_not_taken_yet_have_a_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(read_pace, "REST_SECONDS", 3_600)
    async with guarded(SHORT) as server, await server.connect() as raw:
        await raw.send(small_chunks(5_000))
        assert (await raw.answer())[0] == 408
        assert await raw.rest() == b""


async def test_request_that_is_answered_before_its_body_is_the_last_also_behind_another() -> None:
    """The end of one body, the next head and a part of its body come in one read."""
    async with guarded(SHORT) as server, await server.connect() as raw:
        second = post(b"x", 5, b"/refused")
        await raw.send(post(b"a", 2, b"/"))
        await asyncio.sleep(0.01)
        await raw.send(b"b" + second)
        assert await raw.answer() == (200, b"ab")
        assert b"connection: close" in await raw.head()
        with suppress(ConnectionError):
            await raw.send(b"yyyy")
        await raw.rest()
        await until(lambda: server.connections.number == 0)


async def test_body_that_has_not_come_does_not_delay_the_stop_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with guarded() as server:
        raw = await server.connect()
        await raw.send(post(b"x", 100))
        await until(lambda: bool(server.connections._stalled))
    status, body = await raw.answer()
    assert (status, json.loads(body)["code"]) == (503, "unavailable")
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    raw.writer.close()


async def test_body_is_not_read_before_the_app_asks_for_it() -> None:
    asks = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await asks.wait()
        await echo(scope, receive, send)

    async with listening(app) as port, await Raw.connect(port) as raw:
        raw.writer.write(post(b"x" * MAX_REQUEST))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await raw.writer.drain()
        asks.set()
        assert (await raw.answer())[0] == 200


@pytest.mark.parametrize("authorization", [b"", b"Authorization: Bearer a.b.c\r\n"])
async def test_body_of_a_caller_without_a_token_is_not_read(
    jwt_server: Served, authorization: bytes
) -> None:
    port = jwt_server.http.base_url.port
    assert port is not None
    async with await Raw.connect(port) as raw:
        head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8000000\r\n"
        await raw.send(head + authorization + b"\r\n{")
        assert (await raw.answer())[0] == 401


async def test_body_that_says_to_be_too_large_is_refused_at_once(jwt_server: Served) -> None:
    port = jwt_server.http.base_url.port
    assert port is not None
    async with await Raw.connect(port) as raw:
        head = b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % (
            MAX_REQUEST + 1
        )
        await raw.send(head + b"Authorization: Bearer %b\r\n\r\n{" % token("u").encode())
        assert (await raw.answer())[0] == 413


# Odd requests

WEBSOCKET = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Version: 13",
)
KEY = b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

ODD = {
    "an invalid host": (b"GET /nope HTTP/1.1\r\nHost: [\r\n\r\n", {400}),
    "an invalid host, 405": (b"DELETE / HTTP/1.1\r\nHost: [\r\n\r\n", {400}),
    "no host": (b"GET /nope HTTP/1.1\r\n\r\n", {400}),
    "two hosts": (get(b"/nope", b"Host: y"), {400}),
    "no host in HTTP/1.0": (b"GET /nope HTTP/1.0\r\n\r\n", {404}),
    "a host with spaces": (b"GET /nope HTTP/1.1\r\nHost: a b/c?d\r\n\r\n", {400}),
    "raw bytes in the path": (get(b"/v1/users/\xff\xfe/state"), {400}),
    "raw bytes in the query": (get(b"/v1/users/a/state?at=\xff\xfe"), {400, 401, 422}),
    "encoded bytes in the path": (get(b"/v1/users/%ff/state"), {401, 422}),
    "an absolute URL": (get(b"http://other/nope"), {404}),
    "an absolute URL without a path": (get(b"http://other"), {200, 400}),
    "CONNECT": (b"CONNECT x:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400}),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
    "h2c": (get(b"/nope", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings"), {404}),
    "HTTP/2": (PREFACE, {400}),
    "an unknown method": (b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n", {400}),
    "a TLS handshake": (b"\x16\x03\x01\x02\x00\x01\x00", {400}),
    "garbage": (b"\x00\xff\x00\xff\r\n\r\n", {400}),
    "a bare line": (b"\nx\n\n", {400}),
    "a length and chunks": (
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        {400},
    ),
    "two lengths": (
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        b"Content-Length: 6\r\n\r\nhello",
        {400},
    ),
    "a negative length": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        {400},
    ),
    "an endless length": (
        b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: "
        + b"9" * 40
        + b"\r\n\r\n",
        {400},
    ),
    "an invalid chunk": (
        b"POST /nope HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        {400},
    ),
    "a token that is not ASCII": (
        get(b"/v1/users/a/state", b"Authorization: Bearer \xe9\xff"),
        {401},
    ),
    "a line break in a field": (get(b"/nope", b"A: b\nHost: y"), {400}),
    "a zero in a field": (get(b"/nope", b"A: b\0c"), {400}),
    "a WebSocket at another path": (get(b"/metrics", *WEBSOCKET, KEY), {403, 404}),
    "a WebSocket with an invalid host": (
        b"GET /v1/connect HTTP/1.1\r\nHost: [\r\n%b\r\n\r\n" % b"\r\n".join([*WEBSOCKET, KEY]),
        {400},
    ),
    "a WebSocket with raw bytes in the path": (get(b"/v1/\xff", *WEBSOCKET, KEY), {400, 403, 404}),
    "a WebSocket with a bad key": (
        get(b"/v1/connect", *WEBSOCKET, b"Sec-WebSocket-Key: x"),
        {400},
    ),
    "a WebSocket without a key": (get(b"/v1/connect", *WEBSOCKET), {400}),
    "a WebSocket of another version": (
        get(b"/v1/connect", *WEBSOCKET[:2], b"Sec-WebSocket-Version: 7", KEY),
        {400, 426},
    ),
    "a WebSocket with POST": (
        get(b"/v1/connect", *WEBSOCKET, KEY, b"Content-Length: 0").replace(b"GET", b"POST"),
        {400, 405},
    ),
    "no WebSocket at its path": (get(b"/v1/connect"), {404, 426}),
}


@pytest.mark.parametrize("name", ODD)
async def test_odd_request_has_a_clean_answer(
    jwt_server: Served, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    request, statuses = ODD[name]
    port = jwt_server.http.base_url.port
    assert port is not None
    with caplog.at_level(logging.WARNING):
        async with await Raw.connect(port) as raw:
            await raw.send(request)
            answer = await raw.head()
            raw.writer.write_eof()
            answer += await raw.rest()
    assert int(answer[9:12]) in statuses, answer
    assert answer.count(b"HTTP/1.1 ") == 1
    assert [record.getMessage() for record in caplog.records] == []


async def test_upgrade_to_an_unknown_protocol_is_answered_as_if_it_was_not_asked_for() -> None:
    async with guarded() as server, await server.connect() as raw:
        await raw.send(get(b"/client", b"Upgrade: h2c", b"Connection: Upgrade") + PREFACE)
        assert await raw.answer() == (200, b"127.0.0.1")
        assert await raw.rest() == b""


async def test_kinds_are_all_counted_from_the_start() -> None:
    reading: Callable[[], Any] = next(iter(PeerErrors().readings())).samples
    assert {labels for labels, _ in reading()} == {(reason.value,) for reason in PeerError}
