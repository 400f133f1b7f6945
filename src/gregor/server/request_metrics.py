"""Counts the HTTP requests of a server, and measures how long they wait for their answer."""

from collections.abc import Callable, Sequence
from http import HTTPMethod
from time import perf_counter
from typing import TypeAlias

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# What is counted together, because a caller can invent any number of them.
NO_ROUTE = "none"
OTHER_METHOD = "other"

METHODS = frozenset(HTTPMethod)

Answered: TypeAlias = Callable[[str, str, int, float], None]
"""Is called with the method, the template of the route, the status, and the seconds."""


class RequestMetrics:
    """An app around another one, for whose HTTP requests it calls `answered` when their answer
    begins: an event stream has no end to wait for, and a slow reader is not a slow server."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], answered: Answered) -> None:
        self._app = app
        self._answered = answered
        # By id: the endpoint in the scope may be a host's, of any type, if no route is ours.
        self._templates = {
            id(route.endpoint): route.path_format for route in routes if isinstance(route, Route)
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = perf_counter()

        async def send_and_count(event: Message) -> None:
            if event["type"] == "http.response.start":
                seconds = perf_counter() - begin
                self._answered(_method(scope), self._route(scope), event["status"], seconds)
            await send(event)

        await self._app(scope, receive, send_and_count)

    def _route(self, scope: Scope) -> str:
        return self._templates.get(id(scope.get("endpoint")), NO_ROUTE)


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else OTHER_METHOD
