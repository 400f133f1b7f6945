"""uvicorn's WebSocket, with a synchronous write for when the socket accepts data.

An ASGI application can only `await send(…)`. To broadcast one message to a thousand devices, it
would have to wake up a thousand tasks. This WebSocket passes itself to the application in
`scope["extensions"]`, so that the application can write directly. Another ASGI server does not
offer it, and the application sends as usual.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request
from websockets.protocol import State

from gregor.node.channel import NO_SOCKET, Socket

EXTENSION = "gregor.socket"


def socket_of(scope: Mapping[str, Any]) -> Socket:
    """The socket that the ASGI server offers, or NO_SOCKET."""
    socket: Socket = scope.get("extensions", {}).get(EXTENSION, NO_SOCKET)
    return socket


class DirectWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket as a Socket. It offers itself to the application under EXTENSION."""

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == 101:
            extensions: Any = self.scope["extensions"]
            extensions[EXTENSION] = self

    @property
    def ready(self) -> bool:
        return (
            self.handshake_complete
            and self.writable.is_set()
            and self.conn.state is State.OPEN
            and not (self.close_sent or self.transport.is_closing())
        )

    def write(self, text: str) -> None:
        self.transport.write(text_frame(text))


@lru_cache(maxsize=1)
def text_frame(text: str) -> bytes:
    """An unmasked text frame (RFC 6455, section 5.2). Cached, because a broadcast often sends
    the same text to many devices."""
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return b"\x81%c%b" % (size, payload)
    if size < 65536:
        return b"\x81\x7e%b%b" % (size.to_bytes(2, "big"), payload)
    return b"\x81\x7f%b%b" % (size.to_bytes(8, "big"), payload)
