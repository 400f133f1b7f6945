"""The conversation over a WebSocket."""

from starlette.types import Receive
from starlette.types import Send as ASGISend

from gregor.node.channel import NO_SOCKET, ChannelClosed, Socket
from gregor.protocol.effects import Close, Send


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
