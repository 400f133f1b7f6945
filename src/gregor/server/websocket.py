"""The conversation over a WebSocket."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress

from starlette.types import Receive, Scope
from starlette.types import Send as ASGISend

from gregor.core.instant import SECOND
from gregor.core.message import Message
from gregor.errors import Forbidden, GregorError, Unauthenticated, Unavailable
from gregor.protocol.frames import Frame, Result, encode
from gregor.protocol.server import Authenticate, Store
from gregor.server.auth import Role
from gregor.server.delivery import Delivery
from gregor.server.service import Service

HELLO_SECONDS = 5.0


class Connect:
    """The ASGI app at /v1/connect."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: ASGISend) -> None:
        await receive()
        if self._service.draining:
            await send({"type": "websocket.close"})
            return
        await send({"type": "websocket.accept"})
        connection = Connection(self._service, receive, send)
        with self._service.serving(connection):
            await connection.run()


class Connection(Delivery):
    """One WebSocket: its two hands, and the session that tells them what to do."""

    def __init__(self, service: Service, receive: Receive, send: ASGISend) -> None:
        super().__init__(service.node, service.metrics)
        self._service = service
        self._receive = receive
        self._send = send
        self._attached = AsyncExitStack()
        self._timers: list[asyncio.TimerHandle] = []

    async def run(self) -> None:
        """Hold the conversation until either side ends it."""
        self._later(HELLO_SECONDS, self.session.greeting_expired)
        try:
            with self.until_ended():
                async with self._attached, asyncio.TaskGroup() as tasks:
                    writing = tasks.create_task(self._write())
                    await self._read()
                    writing.cancel()
        finally:
            for timer in self._timers:
                timer.cancel()

    async def _read(self) -> None:
        while (event := await self._receive())["type"] != "websocket.disconnect":
            match self.session.receive(event.get("text")):
                case Authenticate(token):
                    await self._authenticate(token)
                case Store(n, messages):
                    await self._store(n, messages)
            self.wake()

    async def _write(self) -> None:
        # A device that has gone, or is being closed, takes no more; the reading hand hears of it.
        with suppress(OSError, RuntimeError):
            code, reason = await self.write_all(self._write_frame)
            await self._send({"type": "websocket.close", "code": code, "reason": reason})

    async def _write_frame(self, frame: Frame) -> None:
        await self._send({"type": "websocket.send", "text": encode(frame)})

    async def _authenticate(self, token: str) -> None:
        try:
            identity = self._service.authenticator.identify(token)
            if identity.role is not Role.DEVICE:
                raise Forbidden("a service's token is not a device's; make one with role device")
            if not identity.uid:
                raise Unauthenticated("the token names no user")
        except GregorError as error:
            self.session.refuse(error)
            return
        if identity.expires_at is not None:
            left = (identity.expires_at - self._service.node.clock()) / SECOND
            self._later(left, lambda: self.session.refuse(Unauthenticated("the token has expired")))
        await self._attached.enter_async_context(self._service.node.attach(identity.uid, self))
        self.session.authenticated(identity.uid, self._service.node.clock())

    async def _store(self, n: int, entries: Sequence[Message | Result]) -> None:
        try:
            self.session.stored(n, await self._service.inject(entries))
        except Unavailable as error:
            self.session.unavailable(n, error)

    def _later(self, seconds: float, event: Callable[[], None]) -> None:
        def happen() -> None:
            event()
            self.wake()

        self._timers.append(asyncio.get_running_loop().call_later(seconds, happen))
