"""The conversation over a WebSocket."""

from contextlib import suppress

from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.errors import Forbidden, Unavailable
from gregor.node.channel import NO_SOCKET, ChannelClosed, Socket
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Error
from gregor.server.problems import problem
from gregor.server.service import Service
from gregor.server.socket import socket_of


class WebSocketEndpoint:
    """The ASGI app at /v1/connect."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: ASGISend) -> None:
        await receive()
        try:
            self._service.require_room_for_device()
        except Unavailable as error:
            await problem(error)(scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        await self._service.serve(WebSocketChannel(receive, send, socket_of(scope)))


class WebSocketChannel:
    """An accepted WebSocket as a Channel: a frame is one text message."""

    def __init__(self, receive: Receive, send: ASGISend, socket: Socket = NO_SOCKET) -> None:
        self.socket = socket
        self._receive = receive
        self._send = send

    async def read(self) -> str | None:
        event = await self._receive()
        if event["type"] == "websocket.disconnect":
            raise ChannelClosed
        text: str | None = event.get("text")
        return text

    async def write(self, effect: Send | Close) -> None:
        try:
            match effect:
                case Send() as send:
                    await self._send({"type": "websocket.send", "text": send.text})
                case Close(code, reason):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError) as error:  # RuntimeError: uvicorn has already closed it
            raise ChannelClosed from error


async def refuse_websocket(error: Forbidden, receive: Receive, send: ASGISend) -> None:
    """Accept a WebSocket and end it as a conversation does: a page cannot read the status of one
    that is not accepted."""
    await receive()
    await send({"type": "websocket.accept"})
    channel = WebSocketChannel(receive, send)
    with suppress(ChannelClosed):
        await channel.write(Send(Error.of(error)))
        await channel.write(Close(error.close_code, error.message))
