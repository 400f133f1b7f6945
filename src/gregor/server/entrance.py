"""The entrance of a server: devices go straight to their conversation, requests through the layers.

A WebSocket lasts, and each layer that it passes would hold memory for as long. So what a layer has
to say about one is asked here, once.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from starlette.types import ASGIApp, Receive, Scope, Send

from gregor.errors import Unavailable
from gregor.server.peer_errors import CLIENT_HOST
from gregor.server.problems import problem
from gregor.server.service import Service
from gregor.server.socket import socket_of
from gregor.server.web_pages import AnswerHeaders
from gregor.server.websocket import WebSocketChannel

CONNECT = "/v1/connect"

Guard: TypeAlias = Callable[[Scope], ASGIApp | None]
"""The app that refuses a request; None if it is not refused."""


class Entrance:
    """The ASGI app of a server, around the one for requests. Serves WebSockets at CONNECT."""

    def __init__(self, app: ASGIApp, service: Service, guards: Sequence[Guard]) -> None:
        """Each guard may refuse a device, the first one first."""
        self._app = app
        self._service = service
        self._guards = (*guards, self._no_room)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = scope.get("client")
        CLIENT_HOST.set(None if client is None else client[0])
        if scope["type"] != "websocket" or _path(scope) != CONNECT:
            await self._app(scope, receive, send)
        elif refusal := self._refusal(scope):
            await AnswerHeaders(refusal)(scope, receive, send)
        else:
            channel = WebSocketChannel(receive, send, socket_of(scope))
            del scope  # what the request said is needed no more, and takes some memory
            await channel.accept()
            await self._service.serve(channel)

    def _no_room(self, scope: Scope) -> ASGIApp | None:
        """The answer to a device for which there is no room; None if there is some."""
        try:
            self._service.require_room_for_device()
        except Unavailable as error:
            return partial(_answer, error)
        return None

    def _refusal(self, scope: Scope) -> ASGIApp | None:
        refusals = (guard(scope) for guard in self._guards)
        return next((refusal for refusal in refusals if refusal is not None), None)


async def _answer(error: Unavailable, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a WebSocket over HTTP, so that a balancer tries another server."""
    await receive()
    await problem(error)(scope, receive, send)


def _path(scope: Scope) -> str:
    """The path below that at which the app is mounted."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))
