"""Our side of a connection can be ended, whatever the client has done meanwhile."""

import asyncio
import socket
import struct

from gregor.server.half_close import end_output

RESETS = struct.pack("ii", 1, 0)  # as SO_LINGER: closing drops what was not read


async def test_connection_that_the_client_has_reset_can_be_ended() -> None:
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[asyncio.Transport] = asyncio.Queue()

    class Accepted(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            accepted.put_nowait(transport)

    async with await loop.create_server(Accepted, "127.0.0.1", 0) as server:
        client = socket.create_connection(server.sockets[0].getsockname())
        transport = await accepted.get()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESETS)
        client.close()
        assert end_output(transport)
        transport.abort()
