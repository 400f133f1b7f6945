"""The bad line that other tests stand on."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest

from gregor.testing.backends import Redis
from gregor.testing.proxy import Proxy, _Losing


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with Redis() as server, Proxy("127.0.0.1", server.port) as proxy:
        yield proxy


async def ask(port: int, question: bytes, lines: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(question)
    answer = b"".join([await reader.readline() for _ in range(lines)])
    writer.close()
    return answer


async def test_what_it_forwards_arrives(proxy: Proxy) -> None:
    assert await ask(proxy.port, b"PING\r\n" * 3, 3) == b"+PONG\r\n" * 3


@pytest.mark.parametrize("direction", ["up", "down"])
async def test_it_goes_deaf_without_a_word(proxy: Proxy, direction: str) -> None:
    proxy.deafen(up=direction == "up", down=direction == "down")
    question = asyncio.create_task(ask(proxy.port, b"PING\r\n", 1))
    assert not (await asyncio.wait([question], timeout=0.1))[0]
    proxy.hear()
    assert await ask(proxy.port, b"PING\r\n", 1) == b"+PONG\r\n"
    assert not question.done()
    proxy.drop_connections()
    assert await question == b""


async def test_it_loses_publications_only(proxy: Proxy) -> None:
    publish = b"*3\r\n$7\r\nPUBLISH\r\n$1\r\n7\r\n$4\r\n\r\n\r\n\r\n"
    proxy.lose(0.5, Random(1))
    question = (publish + b"*1\r\n$4\r\nPING\r\n") * 50
    assert await ask(proxy.port, question, 100) == b":0\r\n+PONG\r\n" * 50
    assert 10 < proxy.lost < 40


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_commands_may_come_in_pieces(size: int) -> None:
    stream = b"*3\r\n$7\r\nPUBLISH\r\n$1\r\n7\r\n$2\r\n\r\n\r\n*1\r\n$4\r\nPING\r\n" * 3
    losing = _Losing(lambda: True)
    pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
    changed = b"".join(map(losing.change, pieces))
    assert changed == stream.replace(b"$1\r\n7", b"$1\r\n\xff")
