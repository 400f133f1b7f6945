"""The frames that a device would receive, as server-sent events: read-only and one way."""

import asyncio

from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.node.channel import NO_SOCKET, ChannelClosed
from gregor.node.conversation import Resumption
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import Messages, SyncPage
from gregor.server.service import Service

KEEP_ALIVE_SECONDS = 15.0


class EventStream:
    """An ASGI response that streams a user's frames as events. The event id is the cursor from
    which a client resumes."""

    def __init__(self, service: Service, resumption: Resumption) -> None:
        self._service = service
        self._resumption = resumption

    async def __call__(self, scope: Scope, receive: Receive, send: ASGISend) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-store"),
                    (b"x-accel-buffering", b"no"),
                ],
            }
        )
        await self._service.serve(EventStreamChannel(receive, send), self._resumption)


class EventStreamChannel:
    """A response of events as a Channel. No frame is ever read from it."""

    socket = NO_SOCKET

    def __init__(self, receive: Receive, send: ASGISend) -> None:
        self._receive = receive
        self._send = send

    async def read(self) -> str | None:
        """Wait for the end of the connection. Meanwhile, send comments, because proxies and clients
        close connections that are silent for long."""
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._disconnected()
            except TimeoutError:
                await self._write_text(": keep-alive\n\n")
            else:
                raise ChannelClosed

    async def write(self, effect: Send | Close) -> None:
        match effect:
            case Send() as send:
                await self._write_text(as_event(send))
            case Close():
                await self._send({"type": "http.response.body", "body": b""})

    async def _write_text(self, text: str) -> None:
        try:
            event = {"type": "http.response.body", "body": text.encode(), "more_body": True}
            await self._send(event)
        except OSError as error:
            raise ChannelClosed from error

    async def _disconnected(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def as_event(send: Send) -> str:
    """A frame as an event. An event has an id if a client can resume from it: not a page of a
    snapshot that is followed by more pages."""
    lines = [f"event: {send.frame.__struct_config__.tag}", f"data: {send.text}"]
    match send.frame:
        case SyncPage(mode="snapshot", more=True):
            pass
        case SyncPage(cursor=cursor) | Messages(cursor=cursor):
            lines.insert(0, f"id: {cursor}")
    return "\n".join(lines) + "\n\n"
