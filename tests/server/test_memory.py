"""What a request that is refused leaves in memory: nothing."""

import asyncio
import gc
import json
import socket
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from gregor.server.auth import Role
from tests.server.harness import JSON, Served, creation, to, token, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

LARGE = "x" * 400_000
REQUESTS = 10

REFUSED: dict[str, Callable[[], JSON]] = {
    "a message with an unknown field": lambda: {**to("u"), "unknown": LARGE},
    "a message with a body that is too large": lambda: to("u", body=LARGE),
    "a batch with such messages": lambda: {"messages": [{**to("u"), "unknown": LARGE}]},
    "a batch with an unknown field": lambda: {"messages": [to("u")], "unknown": LARGE},
    "a message for bad users": lambda: {"uids": [LARGE, 1], "message": creation()},
    "a conflict": lambda: to("u", msg_id="same", body="x" * 60_000),
}


@pytest.fixture
def no_collections() -> Iterator[None]:
    """While the test runs, only what nothing refers to is freed, and no cycle is."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    yield
    tracemalloc.stop()
    gc.enable()


class Requests:
    """One connection, which keeps nothing of what it sends and receives."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, message: JSON) -> bytes:
        """The answer."""
        body = json.dumps(message).encode()
        head = (
            "POST /v1/messages HTTP/1.1",
            "Host: localhost",
            f"Authorization: Bearer {token('s', Role.SERVICE)}",
            f"Content-Length: {len(body)}",
        )
        self._writer.write("\r\n".join((*head, "", "")).encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        return answer + await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_request_is_freed_without_a_garbage_collection(
    jwt_server: Served, no_collections: None, name: str
) -> None:
    """An error that refers to the frames in which it was raised keeps the body in them, and the
    server collects cycles rarely."""
    port = jwt_server.http.base_url.port
    requests = Requests(*await asyncio.open_connection("127.0.0.1", port))
    await requests.post(to("u", msg_id="same"))
    await requests.post(REFUSED[name]())
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(REQUESTS):
        assert b"error" in await requests.post(REFUSED[name]())
    # The thread that has read the last one may hold it for a moment after the answer.
    await until(lambda: (tracemalloc.get_traced_memory()[0] - before) / REQUESTS < 40_000)
    requests.close()


CLOSE = b"Host: localhost\r\nConnection: close\r\n"
WEBSOCKET = (
    b"Host: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
ENDED = {
    "a good request": b"GET /healthz HTTP/1.1\r\n" + CLOSE + b"X: %b\r\n\r\n",
    "a body that nobody reads": b"GET /healthz HTTP/1.1\r\n"
    + CLOSE
    + b"Content-Length: 900000\r\n\r\n%b",
    "HTTP/1.0": b"GET /healthz HTTP/1.0\r\nHost: localhost\r\nContent-Length: 30000\r\n\r\n%b"
    + CLOSE,
    "a bad token": b"GET /v1/limits HTTP/1.1\r\n" + CLOSE + b"X: %b\r\n\r\n",
    "no HTTP": b"GET%b\r\n\r\n",
    "a head that does not end": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: %b",
    "no WebSocket at its path": b"GET / HTTP/1.1\r\n" + WEBSOCKET + b"X: %b\r\n\r\n",
}


@pytest.mark.parametrize("name", ENDED)
async def test_connection_that_ended_is_freed_without_a_garbage_collection(
    jwt_server: Served, no_collections: None, name: str
) -> None:
    before = 0
    for n in range(REQUESTS + 2):
        if n == 2:
            before, _ = tracemalloc.get_traced_memory()
        await connect_once(jwt_server, ENDED[name] % (b"x" * 30_000))
    after, _ = tracemalloc.get_traced_memory()
    assert (after - before) / REQUESTS < 15_000


async def connect_once(served: Served, request: bytes) -> None:
    """Connect, send this, and wait until the server has ended and forgotten the connection."""
    loop, port = asyncio.get_running_loop(), served.http.base_url.port
    with socket.socket() as sock:
        sock.setblocking(False)
        await loop.sock_connect(sock, ("127.0.0.1", port))
        await loop.sock_sendall(sock, request)
        if CLOSE not in request:
            sock.shutdown(socket.SHUT_WR)
        while await loop.sock_recv(sock, 65_536):
            pass
    await until(lambda: served.server.service.open_connections.number == 0)
