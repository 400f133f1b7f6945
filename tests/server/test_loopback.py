"""What a server without authentication refuses, on each of its ways in, served and mounted."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio
from starlette.applications import Starlette
from starlette.routing import Mount

from gregor.server import Server
from tests.server.harness import listening, open_settings, to
from tests.timeouts import TIMEOUT_SECONDS

pytestmark = pytest.mark.asyncio(loop_scope="module")

LOCAL = "Host: 127.0.0.1"
APP = "https://app.example.com"

# Headers of a request, and whether it is answered.
REQUESTS: list[tuple[tuple[str, ...], bool]] = [
    ((LOCAL,), True),
    (("Host: localhost:1",), True),
    (("Host: [::1]:9911",), True),
    (("Host: gregor.test",), True),
    # (What is no host at all is refused before it comes here: test_guarded_http.py.)
    (("Host: evil.example",), False),
    (("Host: evil.example:9911", "Sec-Fetch-Site: same-origin"), False),
    (("Host: evil.example", "Origin: http://evil.example"), False),
    (("Host: evil.example", "Origin: http://127.0.0.1"), False),
    ((LOCAL, "Origin: http://localhost:3000", "Sec-Fetch-Site: cross-site"), True),
    ((LOCAL, f"Origin: {APP}", "Sec-Fetch-Site: cross-site"), True),
    ((LOCAL, "Sec-Fetch-Site: same-origin"), True),
    ((LOCAL, "Sec-Fetch-Site: none"), True),
    ((LOCAL, "Sec-Fetch-Site: cross-site"), False),
    ((LOCAL, "Origin: http://evil.example"), False),
    ((LOCAL, "Origin: null"), False),
    ((LOCAL, "Origin: http://["), False),
    ((LOCAL, "Origin: http://127.0.0.1:99999"), True),  # of this machine, if of anything
    ((LOCAL, "Origin: http://127.0.0.1.evil.example"), False),
    ((LOCAL, "Origin: \xff\xfe"), False),
    ((LOCAL, "Origin: "), False),
    ((LOCAL, "Forwarded: for=203.0.113.9"), False),
    ((LOCAL, "X-Forwarded-For: 203.0.113.9"), False),
    ((LOCAL, "x-forwarded-proto: https"), False),
    ((LOCAL, "X-Forwarded-Host: gregor.example.com"), False),
    ((LOCAL, "X-Forwarded-Anything: 1"), False),
    ((LOCAL, "X-Real-IP: 203.0.113.9"), False),
    ((LOCAL, "CF-Connecting-IP: 203.0.113.9"), False),
    ((LOCAL, "X-Forwarded: for=203.0.113.9"), False),
    ((LOCAL, "Via: 1.1 proxy"), False),
]
UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version: 13",
)
_HELLO = json.dumps({"type": "hello", "token": "u", "device_id": "d", "protocol": 2}).encode()
HELLO = bytes([0x81, 0x80 | len(_HELLO), 0, 0, 0, 0]) + _HELLO  # a text, masked with zeros
PATHS = ("/v1/users/u/state", "/v1/users/u/events", "/openapi.json", "/nowhere")


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=["served", "mounted"])
async def address(request: pytest.FixtureRequest) -> AsyncIterator[tuple[int, str]]:
    """The port and the root of an open server: alone, or in a host application."""
    server = Server.from_settings(open_settings(allow_host=("gregor.test",), allow_origin=(APP,)))
    async with AsyncExitStack() as stack:
        if request.param == "served":
            await stack.enter_async_context(server)
            yield await stack.enter_async_context(listening(server.app)), ""
        else:
            host = Starlette(routes=[Mount("/gregor", server.app)], lifespan=server.lifespan)
            yield await stack.enter_async_context(listening(host, lifespan="on")), "/gregor"


async def answer(port: int, *lines: str, body: bytes = b"") -> tuple[int, bytes]:
    """The status of the answer to a request of these lines, and what of the body came with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (*lines, f"Content-Length: {len(body)}", "Connection: close", "", "")
    writer.write("\r\n".join(head).encode("latin-1") + body)
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            status = int((await reader.readline()).split()[1])
            await reader.readuntil(b"\r\n\r\n")
            return status, await reader.read(2000)
    finally:
        writer.close()


async def frame_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The opcode and the contents of the next WebSocket frame."""
    first, length = await reader.readexactly(2)
    if length == 126:
        length = int.from_bytes(await reader.readexactly(2))
    return first & 0xF, await reader.readexactly(length)


@pytest.mark.parametrize(("headers", "answered"), REQUESTS)
async def test_only_this_machine_is_answered(
    address: tuple[int, str],
    headers: tuple[str, ...],
    answered: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port, root = address
    for path in PATHS:
        status, body = await answer(port, f"GET {root}{path} HTTP/1.1", *headers)
        assert (status != 403) is answered, path
        assert answered or json.loads(body)["code"] == "forbidden"
    post = f"POST {root}/v1/messages HTTP/1.1"
    status, _ = await answer(port, post, *headers, body=json.dumps(to("u")).encode())
    assert status == (200 if answered else 403)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.parametrize(("headers", "answered"), REQUESTS)
async def test_only_this_machine_connects_a_device(
    address: tuple[int, str], headers: tuple[str, ...], answered: bool
) -> None:
    port, root = address
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = (f"GET {root}/v1/connect HTTP/1.1", *headers, *UPGRADE, "", "")
    writer.write("\r\n".join(lines).encode("latin-1"))
    async with asyncio.timeout(TIMEOUT_SECONDS):
        assert (await reader.readline()).split()[1] == b"101"
        await reader.readuntil(b"\r\n\r\n")
        if answered:
            writer.write(HELLO)
        frame = json.loads((await frame_of(reader))[1])
        if answered:
            assert frame["type"] == "welcome"
        else:
            assert frame["code"] == "forbidden"
            opcode, closing = await frame_of(reader)
            assert (opcode, int.from_bytes(closing[:2])) == (8, 4003)
    writer.close()


async def test_refusal_says_what_to_do(address: tuple[int, str]) -> None:
    port, root = address
    for header, advice in (
        ("Host: evil.example", b"allow_host"),
        (f"{LOCAL}\r\nOrigin: http://evil.example", b"allow_origin"),
        (f"{LOCAL}\r\nVia: 1.1 proxy", b"set auth to `jwt`"),
    ):
        _, body = await answer(port, f"GET {root}/v1/users/u/state HTTP/1.1", header)
        assert advice in body
