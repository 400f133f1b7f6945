"""A bad line: a TCP proxy that drops connections, goes deaf without a word, or loses publications.

async with Proxy("127.0.0.1", server.port) as proxy:
    url = f"redis://127.0.0.1:{proxy.port}"
    proxy.deafen()
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Self

CHUNK = 65_536
END = b"\r\n"

Change = Callable[[bytes], bytes]


class Proxy:
    """Listens on loopback, at `port`, and forwards to a target. Opened with `async with`."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.port = 0
        self.lost = 0  # publications
        self._target = (target_host, target_port)
        self._lines: set[_Line] = set()
        self._deaf = (False, False)
        self._loses: Callable[[], bool] = lambda: False
        self._tasks = asyncio.TaskGroup()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._server is not None
        self._server.close()
        self.drop_connections()
        await self._tasks.__aexit__(None, None, None)

    def drop_connections(self) -> None:
        """Break every connection, with what is under way on it."""
        for line in self._lines:
            line.cut()

    def deafen(self, *, up: bool = True, down: bool = True, new: bool = True) -> None:
        """Nothing comes through any more to the server (`up`) or back (`down`): on the
        connections that there are for ever, on `new` ones if they are made before `hear`. They
        stand, and take what is sent to them."""
        for line in self._lines:
            line.deaf = (line.deaf[0] or up, line.deaf[1] or down)
        if new:
            self._deaf = (up, down)

    def hear(self) -> None:
        """New connections are good ones again."""
        self._deaf = (False, False)

    def lose(self, share: float, random: Random) -> None:
        """Lose a share of the PUBLISH commands to Redis, as if nobody were subscribed."""
        self._loses = lambda: random.random() < share

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        line = _Line(writer, back, self._deaf)
        self._lines.add(line)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(line.pump(0, reader, back, _Losing(self._is_lost).change))
                tasks.create_task(line.pump(1, there, writer, _unchanged))
        finally:
            self._lines.remove(line)

    def _is_lost(self) -> bool:
        lost = self._loses()
        self.lost += lost
        return lost


class _Line:
    """One connection and its other half, up (0) and down (1)."""

    def __init__(
        self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, deaf: tuple[bool, bool]
    ) -> None:
        self.deaf = deaf
        self._ends = (client, server)

    async def pump(
        self,
        direction: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        change: Change,
    ) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                if not self.deaf[direction]:
                    writer.write(change(chunk))
                    await writer.drain()
        except OSError:
            pass  # one of the ends has gone, and the other goes with it
        finally:
            self.cut()

    def cut(self) -> None:
        for end in self._ends:
            end.transport.abort()


def _unchanged(chunk: bytes) -> bytes:
    return chunk


class _Losing:
    """Loses PUBLISH commands out of the stream to a Redis. Their channels get a name of the same
    length that nobody knows, so that each still has its reply, and all replies their order."""

    def __init__(self, is_lost: Callable[[], bool]) -> None:
        self._is_lost = is_lost
        self._waiting = b""
        self._redis: bool | None = None  # as long as nobody has said anything

    def change(self, chunk: bytes) -> bytes:
        if self._redis is None:
            self._redis = chunk.startswith(b"*")
        if not self._redis:
            return chunk
        self._waiting += chunk
        whole = bytearray()
        while (spans := _first_command(self._waiting, len(whole))) is not None:
            whole += self._waiting[len(whole) : spans[-1].stop + len(END)]
            self._rename(whole, spans)
        self._waiting = self._waiting[len(whole) :]
        return bytes(whole)

    def _rename(self, stream: bytearray, spans: list[slice]) -> None:
        if stream[spans[0]] == b"PUBLISH" and self._is_lost():
            channel = spans[1]
            stream[channel] = b"\xff" * (channel.stop - channel.start)


def _first_command(stream: bytes, at: int) -> list[slice] | None:
    """Where the arguments of the command at this place are, if it is there as a whole."""
    spans: list[slice] = []
    number, at = _number(stream, at)
    for _ in range(number):
        size, start = _number(stream, at)
        at = start + size + len(END)
        spans.append(slice(start, start + size))
    return spans if spans and at <= len(stream) else None


def _number(stream: bytes, at: int) -> tuple[int, int]:
    """The number in the line `*3` or `$7` at this place, and where the next line begins. Of a line
    that is not there as a whole: nothing, far away."""
    end = stream.find(END, at)
    return (int(stream[at + 1 : end]), end + len(END)) if end >= 0 else (0, len(stream) + 1)
