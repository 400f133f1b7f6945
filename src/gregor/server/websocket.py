"""The conversation over a WebSocket."""

from contextlib import suppress

from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.errors import Forbidden
from gregor.node.channel import NO_SOCKET, ChannelClosed, Socket
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Error


class WebSocketChannel:
    """A WebSocket as a Channel, once it is accepted: a frame is one text message."""

    __slots__ = ("_receive", "_send", "socket")

    def __init__(self, receive: Receive, send: ASGISend, socket: Socket = NO_SOCKET) -> None:
        self.socket = socket
        self._receive = receive
        self._send = send

    async def accept(self) -> None:
        """Accept the WebSocket."""
        await self._receive()
        await self._send({"type": "websocket.accept"})

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


async def refuse_websocket(
    error: Forbidden, scope: Scope, receive: Receive, send: ASGISend
) -> None:
    """Accept a WebSocket and end it as a conversation does: a page cannot read the status of one
    that is not accepted."""
    channel = WebSocketChannel(receive, send)
    await channel.accept()
    with suppress(ChannelClosed):
        await channel.write(Send(Error.of(error)))
        await channel.write(Close(error.close_code, error.message))
