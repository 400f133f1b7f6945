"""The faulty network that other tests use."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from tests.fleet.proxy import Proxy, _PublicationFilter
from tests.fleet.servers import Redis


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with Redis() as server, Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


async def request(port: int, commands: bytes, lines: int) -> bytes:
    """Send commands, and return this number of lines of the reply."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(commands)
    reply = b"".join([await reader.readline() for _ in range(lines)])
    writer.close()
    return reply


async def test_forwarded_commands_are_answered(proxy: Proxy) -> None:
    assert await request(proxy.port, b"PING\r\n" * 3, 3) == b"+PONG\r\n" * 3


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_blackholed_connection_gets_no_reply_until_it_is_dropped(
    proxy: Proxy, direction: str
) -> None:
    proxy.blackhole(up=direction == "up", down=direction == "down")
    blackholed = asyncio.create_task(request(proxy.port, b"PING\r\n", 1))
    assert not (await asyncio.wait([blackholed], timeout=0.1))[0]
    proxy.restore()
    assert await request(proxy.port, b"PING\r\n", 1) == b"+PONG\r\n"
    assert not blackholed.done()
    proxy.drop_connections()
    assert await blackholed == b""


async def test_only_publications_are_dropped_and_all_commands_are_answered(proxy: Proxy) -> None:
    publish = b"*3\r\n$7\r\nPUBLISH\r\n$1\r\n7\r\n$4\r\n\r\n\r\n\r\n"
    proxy.drop_publications(0.5, Random(1))
    commands = (publish + b"*1\r\n$4\r\nPING\r\n") * 50
    assert await request(proxy.port, commands, 100) == b":0\r\n+PONG\r\n" * 50
    assert 10 < proxy.dropped < 40


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_publications_split_into_chunks_are_dropped(size: int) -> None:
    stream = b"*3\r\n$7\r\nPUBLISH\r\n$1\r\n7\r\n$2\r\n\r\n\r\n*1\r\n$4\r\nPING\r\n" * 3
    publications = _PublicationFilter(lambda: True)
    chunks = [stream[at : at + size] for at in range(0, len(stream), size)]
    filtered = b"".join(map(publications.filter, chunks))
    assert filtered == stream.replace(b"$1\r\n7", b"$1\r\n\xff")
