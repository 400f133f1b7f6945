"""A server: one node, its store, and the ASGI app in front of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from time import time_ns
from typing import Any, Self

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute

from gregor.config import Auth, Settings
from gregor.consumers.broadcaster import Broadcaster
from gregor.core.instant import Time
from gregor.errors import SetupError
from gregor.node import Node
from gregor.server import http
from gregor.server.auth import Authenticator, JWTAuthenticator, OpenAuthenticator
from gregor.server.delivery import Delivery
from gregor.server.metrics import Metrics
from gregor.server.openapi import describe
from gregor.server.service import Service
from gregor.server.websocket import Connect
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.engine import Database
from gregor.storage.migrations import migrate


def now() -> Time:
    """This machine's clock."""
    return time_ns() // 1000


class Server:
    """All of one Gregor. While `async with` holds it, `app` answers, as itself or mounted:

    gregor = Server(Settings())
    app = FastAPI(lifespan=gregor.lifespan)
    app.mount("/gregor", gregor.app)
    """

    def __init__(self, settings: Settings, clock: Callable[[], Time] = now) -> None:
        self.settings = settings
        deliveries: dict[Delivery, None] = {}
        self.metrics = Metrics(deliveries)
        self.database = Database(settings.store, migrate)
        self.state_machine = SQLStateMachine(self.database, clock, self.metrics.committed)
        self.node = Node(
            self.state_machine,
            [Broadcaster()],
            clock=clock,
            sweep_seconds=settings.sweep_seconds,
            observer=self.metrics,
        )
        self.service = Service(self.node, authenticator(settings), self.metrics, deliveries)
        self.app = self._app()
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.database)
            await stack.enter_async_context(self.state_machine)
            await stack.enter_async_context(self.node)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(tasks.create_task(self.service.watch()).cancel)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._opened.__aexit__(*exc_info)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """For the host application's `lifespan=`."""
        async with self:
            yield
            await self.drain()

    async def drain(self) -> None:
        """Send the devices away, and take nothing new; what was accepted is still stored."""
        await self.service.drain(self.settings.drain_seconds)

    def _app(self) -> Starlette:
        user = "/v1/users/{uid:path}"
        ask = partial(http.endpoint, self.service)
        show = partial(http.open_endpoint, self.service)
        routes = [
            WebSocketRoute("/v1/connect", Connect(self.service)),
            Route("/v1/messages", ask(http.post_messages), methods=["POST"]),
            Route(f"{user}/state", ask(http.get_state), methods=["GET"]),
            Route(f"{user}/count", ask(http.get_count), methods=["GET"]),
            Route(f"{user}/messages", ask(http.get_messages), methods=["GET"]),
            Route(f"{user}/events", ask(http.get_events), methods=["GET"]),
            Route("/healthz", show(http.get_health), methods=["GET"]),
            Route("/readyz", show(http.get_ready), methods=["GET"]),
            Route("/metrics", show(http.get_metrics), methods=["GET"]),
            Route("/openapi.json", show(_describe), methods=["GET"]),
            Route("/", show(_welcome), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: http.on_http_exception})


def authenticator(settings: Settings) -> Authenticator:
    """How callers of a server with these settings prove who they are."""
    if settings.auth is Auth.JWT:
        if settings.jwt_secret is None:
            raise SetupError(
                "--auth jwt needs a secret: set GREGOR_JWT_SECRET, "
                "for example to the output of `openssl rand -hex 32`"
            )
        return JWTAuthenticator(settings.jwt_secret.get_secret_value())
    if not settings.loopback:
        raise SetupError(
            f"--auth open lets everybody in, so it listens on a loopback address only, not on "
            f"{settings.listen}; use --auth jwt, or --listen 127.0.0.1:9911"
        )
    return OpenAuthenticator()


async def _describe(service: Service, request: Request) -> Response:
    return Response(msgspec.json.encode(describe()), media_type="application/json")


async def _welcome(service: Service, request: Request) -> Response:
    return Response(WELCOME, media_type="text/plain")


WELCOME = """This is Gregor.

  POST /v1/messages              put messages in
  GET  /v1/users/UID/state       what a user's devices show
  GET  /v1/users/UID/count       badges
  GET  /v1/users/UID/messages    what has happened since
  GET  /v1/users/UID/events      the same, live (server-sent events)
  WS   /v1/connect               a device

All of it is described in /openapi.json.
"""
