"""The conversation over a WebSocket."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress

from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.core.message import Message
from gregor.errors import Forbidden, GregorError, TooLarge, Unavailable
from gregor.protocol.frames import MAX_FRAME, Result
from gregor.protocol.server import Authenticate, Close, Send, Store
from gregor.server.auth import Role
from gregor.server.delivery import Delivery
from gregor.server.http import problem
from gregor.server.service import Service
from gregor.server.socket import NO_SOCKET, Socket, socket_of


class Connect:
    """The ASGI app at /v1/connect."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: ASGISend) -> None:
        await receive()
        if self._service.draining:
            await problem(Unavailable("this server is stopping"))(scope, receive, send)
            return
        await send({"type": "websocket.accept"})
        connection = Connection(self._service, receive, send, socket_of(scope))
        with self._service.serving(connection):
            await connection.run()


class Connection(Delivery):
    """One WebSocket: its two hands, and the session that tells them what to do."""

    def __init__(
        self, service: Service, receive: Receive, send: ASGISend, socket: Socket = NO_SOCKET
    ) -> None:
        super().__init__(service.node, service.metrics, socket)
        self._service = service
        self._receive = receive
        self._send = send
        self._attached = AsyncExitStack()

    async def run(self) -> None:
        """Hold the conversation until either side ends it."""
        with self.until_ended():
            self.later(self._service.hello_seconds, self.session.greeting_expired)
            async with self._attached, asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(self._write())
                await self._read()
                writing.cancel()

    async def _read(self) -> None:
        while (event := await self._receive())["type"] != "websocket.disconnect":
            text = event.get("text")
            if text is not None and len(text) > MAX_FRAME:  # a host may let more through than we
                self.session.refuse(TooLarge(f"a frame takes up to {MAX_FRAME} bytes"))
            match self.session.receive(text):
                case Authenticate(token):
                    await self._authenticate(token)
                case Store(n, messages):
                    await self._store(n, messages)
            self.wake()

    async def _write(self) -> None:
        with suppress(_Gone):  # the reading hand hears of it
            await self.write_all(self._write_one)

    async def _write_one(self, effect: Send | Close) -> None:
        try:
            match effect:
                case Send() as send:
                    await self._send({"type": "websocket.send", "text": send.text})
                case Close(code, reason):
                    await self._send({"type": "websocket.close", "code": code, "reason": reason})
        except (OSError, RuntimeError) as error:  # the second: uvicorn has closed it already
            raise _Gone from error

    async def _authenticate(self, token: str) -> None:
        try:
            identity = self._service.authenticator.identify(token)
            if identity.role is not Role.DEVICE:
                raise Forbidden("a service's token is not a device's; make one with role device")
        except GregorError as error:
            self.session.refuse(error)
            return
        self.expire(identity.expires_at)
        await self._attached.enter_async_context(self._service.node.attach(identity.uid, self))
        self.session.authenticated(identity.uid, self._service.node.clock())

    async def _store(self, n: int, entries: Sequence[Message | Result]) -> None:
        try:
            results = await self._service.inject(entries)
            for result in results:
                # The device keeps what was not taken for now, and what was is taken twice.
                if result.error is not None and result.to_repeat:
                    raise Unavailable(result.error.message)
            self.session.stored(n, results)
        except Unavailable as error:
            self.session.unavailable(n, error)


class _Gone(Exception):
    """The device is not there any more."""
