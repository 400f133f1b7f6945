"""A faulty network: a TCP proxy that breaks or blackholes connections, or drops PUBLISH commands.

async with Proxy("127.0.0.1", server.port) as proxy:
    url = f"redis://127.0.0.1:{proxy.port}"
    proxy.blackhole()
"""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, Self

CHUNK_BYTES = 65_536
CRLF = b"\r\n"

_UP, _DOWN = 0, 1  # to the server, to the client

Filter = Callable[[bytes], bytes]


class Proxy:
    """Listens on a loopback `port` and forwards to a target. Opened with `async with`."""

    def __init__(self, target_host: str, target_port: int) -> None:
        self.port = 0
        self.dropped = 0  # PUBLISH commands
        self._target = (target_host, target_port)
        self._connections: set[_ProxiedConnection] = set()
        self._new_blackholed = (False, False)
        self._drops: Callable[[], bool] = lambda: False
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

    def lead_to(self, port: int) -> None:
        """Lead new connections to another server, as a virtual address that moves. Existing ones
        stay where they are."""
        self._target = (self._target[0], port)

    def drop_connections(self) -> None:
        """Break every connection; the bytes in flight on it are lost."""
        for connection in self._connections:
            connection.cut()

    def blackhole(self, *, up: bool = True, down: bool = True, new: bool = True) -> None:
        """Forward nothing to the server (`up`) or to the client (`down`) any more. Existing
        connections stay blackholed forever; with `new`, so do those made before `restore`. The
        connections stay open and accept what is sent to them."""
        for connection in self._connections:
            connection.blackholed = (
                connection.blackholed[0] or up,
                connection.blackholed[1] or down,
            )
        if new:
            self._new_blackholed = (up, down)

    def restore(self) -> None:
        """Let new connections work again. Idempotent."""
        self._new_blackholed = (False, False)

    def drop_publications(self, share: float, rng: Random) -> None:
        """Drop a share (0 to 1) of the PUBLISH commands to Redis: they get their reply and
        reach no subscriber."""
        self._drops = lambda: rng.random() < share

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.create_task(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _ProxiedConnection(writer, server_writer, self._new_blackholed)
        self._connections.add(connection)
        try:
            async with asyncio.TaskGroup() as tasks:
                commands = _PublicationFilter(self._is_dropped)
                tasks.create_task(connection.forward(_UP, reader, server_writer, commands.filter))
                tasks.create_task(connection.forward(_DOWN, server_reader, writer, _unchanged))
        finally:
            self._connections.remove(connection)

    def _is_dropped(self) -> bool:
        is_dropped = self._drops()
        self.dropped += is_dropped
        return is_dropped


class _ProxiedConnection:
    """A client's connection to the proxy and the proxy's connection to the server."""

    def __init__(
        self,
        client: asyncio.StreamWriter,
        server: asyncio.StreamWriter,
        blackholed: tuple[bool, bool],
    ) -> None:
        self.blackholed = blackholed
        self._writers = (client, server)

    async def forward(
        self,
        direction: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        filter_: Filter,
    ) -> None:
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                if not self.blackholed[direction]:
                    writer.write(filter_(chunk))
                    await writer.drain()
        except OSError:
            pass  # one side closed its connection; the other is closed below
        finally:
            self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()


def _unchanged(chunk: bytes) -> bytes:
    return chunk


class _PublicationFilter:
    """Drops PUBLISH commands from the stream to a Redis server. It renames their channels to an
    unused name of the same length, so each command still gets its reply, in order."""

    def __init__(self, is_dropped: Callable[[], bool]) -> None:
        self._is_dropped = is_dropped
        self._buffer = b""
        self._is_redis: bool | None = None  # None until the first bytes arrive

    def filter(self, chunk: bytes) -> bytes:
        if self._is_redis is None:
            self._is_redis = chunk.startswith(b"*")
        if not self._is_redis:
            return chunk
        self._buffer += chunk
        complete = bytearray()
        while (spans := _command_at(self._buffer, len(complete))) is not None:
            complete += self._buffer[len(complete) : spans[-1].stop + len(CRLF)]
            self._rename(complete, spans)
        self._buffer = self._buffer[len(complete) :]
        return bytes(complete)

    def _rename(self, stream: bytearray, spans: list[slice]) -> None:
        if stream[spans[0]] == b"PUBLISH" and self._is_dropped():
            channel = spans[1]
            stream[channel] = b"\xff" * (channel.stop - channel.start)


def _command_at(stream: bytes, position: int) -> list[slice] | None:
    """The positions of the arguments of the command that starts at `position`; None if the command
    is not complete."""
    spans: list[slice] = []
    arguments, position = _number_at(stream, position)
    for _ in range(arguments):
        size, start = _number_at(stream, position)
        position = start + size + len(CRLF)
        spans.append(slice(start, start + size))
    return spans if spans and position <= len(stream) else None


def _number_at(stream: bytes, position: int) -> tuple[int, int]:
    """The number in the line `*3` or `$7` at `position`, and where the next line begins. For an
    incomplete line: 0, and a position beyond the end of the stream."""
    end = stream.find(CRLF, position)
    return (int(stream[position + 1 : end]), end + len(CRLF)) if end >= 0 else (0, len(stream) + 1)
