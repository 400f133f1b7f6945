"""The conversation over a WebSocket."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.core.message import Message
from gregor.errors import Forbidden, GregorError, TooLarge, Unavailable
from gregor.interfaces import Caller, Rejected
from gregor.protocol.effects import Close, Send
from gregor.protocol.frames import MAX_FRAME
from gregor.protocol.server_session import Authenticate, Store
from gregor.server.auth import Role
from gregor.server.delivery import Delivery
from gregor.server.http import problem
from gregor.server.service import Service
from gregor.server.socket import NO_SOCKET, Socket, socket_of


class WebSocketEndpoint:
    """The ASGI app at /v1/connect."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: ASGISend) -> None:
        await receive()
        if self._service.draining:
            error = Unavailable("this server is stopping; retry with another server")
            await problem(error)(scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        connection = WebSocketConnection(self._service, receive, send, socket_of(scope))
        with self._service.serving(connection):
            await connection.run()


class WebSocketConnection(Delivery):
    """One WebSocket: its reader, its writer, and the session that decides what they do."""

    def __init__(
        self, service: Service, receive: Receive, send: ASGISend, socket: Socket = NO_SOCKET
    ) -> None:
        super().__init__(service.node, service.metrics, socket)
        self._service = service
        self._receive = receive
        self._send = send
        self._attachment = AsyncExitStack()

    async def run(self) -> None:
        """Run the conversation until either side closes it."""
        with self.guarded():
            self.call_later(self._service.hello_seconds, self.session.hello_timed_out)
            async with self._attachment, asyncio.TaskGroup() as tasks:
                writer = tasks.create_task(self._write())
                await self._read()
                writer.cancel()

    async def _read(self) -> None:
        while (event := await self._receive())["type"] != "websocket.disconnect":
            text = event.get("text")
            if text is not None and len(text) > MAX_FRAME:  # a host app's limit may be higher
                self.session.refuse(TooLarge(f"a frame has at most {MAX_FRAME} bytes"))
            match self.session.receive(text):
                case Authenticate(token):
                    await self._authenticate(token)
                case Store(n, entries):
                    await self._store(n, entries)
            self.wake()

    async def _write(self) -> None:
        with suppress(_Disconnected):  # the reader receives the disconnect event
            await self.write_all(self._write_one)

    async def _write_one(self, effect: Send | Close) -> None:
        try:
            match effect:
                case Send() as send:
                    await self._send({"type": "websocket.send", "text": send.text})
                case Close(code, reason):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError) as error:  # RuntimeError: uvicorn has already closed it
            raise _Disconnected from error

    async def _authenticate(self, token: str) -> None:
        try:
            identity = self._service.authenticator.identify(token)
            if identity.role is not Role.DEVICE:
                raise Forbidden("a service token cannot connect a device; use the role `device`")
        except GregorError as error:
            self.session.refuse(error)
            return
        self.expire(identity.expires_at)
        await self._attachment.enter_async_context(self._service.node.attach(identity.uid, self))
        self.session.authenticated(identity.uid, self._service.node.clock())

    async def _store(self, n: int, entries: Sequence[Message | Rejected]) -> None:
        caller = Caller(self.session.uid, self.session.device_id)
        try:
            self.session.stored(n, await self._service.inject(caller, entries))
        except Unavailable as error:
            self.session.unavailable(n, error)


class _Disconnected(Exception):
    """The connection to the device is closed."""
