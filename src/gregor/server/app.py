"""A server: one node, its store, and the ASGI app that serves them."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from secrets import token_hex
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gregor.clock import now
from gregor.config import Auth, Settings, is_loopback
from gregor.consumers.broadcaster import Broadcaster
from gregor.consumers.publisher import Publisher
from gregor.core.instant import SECOND, Time
from gregor.core.message import UID, Message
from gregor.errors import Forbidden, SetupError
from gregor.interfaces import Caller, Rejected, StateMachineOfRecord
from gregor.node.conversation import Conversation
from gregor.node.node import Node
from gregor.pubsub.interface import PubSub
from gregor.pubsub.remote import pubsub_at
from gregor.server import http
from gregor.server.auth import Authenticator, JWTAuthenticator, OpenAuthenticator
from gregor.server.metrics import Metrics, Reading, counter, gauge
from gregor.server.openapi import describe
from gregor.server.readiness import Readiness
from gregor.server.service import HELLO_SECONDS, WRITE_TIMEOUT_SECONDS, Service
from gregor.server.websocket import WebSocketEndpoint
from gregor.server.worker_metrics import WorkerMetrics
from gregor.shards.rebalance import establish
from gregor.shards.state_machine import Shard, ShardedStateMachine
from gregor.stores.sql.database import Database
from gregor.stores.sql.lazy import LazyDatabase
from gregor.stores.sql.migrations import migrate, require_newest, requiring_no_shard
from gregor.stores.sql.state_machine import SQLStateMachine
from gregor.stores.sql.store_url import database_at, is_shared

CLOCK_CHECK_SECONDS = 10.0

IN_PROCESS = Caller("in-process")
"""The host application, which injects without a token."""


def _is_up(shard: Shard) -> bool:
    return shard.problem is None


class Server:
    """One complete Gregor server. Open it with `async with`; inside the block, `app` answers
    requests, standalone or mounted in another ASGI app:

    gregor = Server(Settings())
    app = FastAPI(lifespan=gregor.lifespan)
    app.mount("/gregor", gregor.app)

    The host needs `lifespan=`, because it does not run the lifespan of an app that it mounts. A
    Server can be opened only once.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], Time] = now,
        *,
        worker_metrics: WorkerMetrics | None = None,
        hello_seconds: float = HELLO_SECONDS,
        write_timeout_seconds: float = WRITE_TIMEOUT_SECONDS,
    ) -> None:
        self.settings = settings
        self.worker_metrics = worker_metrics
        conversations: dict[Conversation, None] = {}
        self.metrics = Metrics(conversations)
        self.databases = {n: _database(url, n, settings) for n, url in settings.stores.items()}
        self.state_machine = _state_machine(self.databases, settings, clock, self.metrics)
        self.pubsub = None if settings.pubsub is None else pubsub_at(settings.pubsub)
        self.node = _node(self.state_machine, self.pubsub, settings, clock, self.metrics)
        self.readiness = Readiness(self.node, self.pubsub)
        self.metrics.readings += self._readings()
        self.service = Service(
            self.node,
            authenticator(settings),
            self.metrics,
            self.readiness,
            conversations,
            worker_metrics=worker_metrics,
            hello_seconds=hello_seconds,
            write_timeout_seconds=write_timeout_seconds,
        )
        self.app: ASGIApp = self._app()
        if settings.auth is Auth.OPEN:
            self.app = LoopbackOnly(self.app)
        self._opened: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("a Server can be opened only once; create another one")
        async with AsyncExitStack() as stack:
            for database in self.databases.values():
                await stack.enter_async_context(database)
            if isinstance(self.state_machine, ShardedStateMachine) and self._may_add_shards():
                await establish(self.state_machine.databases)
            await stack.enter_async_context(self.state_machine)
            if self.pubsub is not None:
                await stack.enter_async_context(self.pubsub)
            await stack.enter_async_context(self.node)
            await stack.enter_async_context(self.service)
            if self.worker_metrics is not None:
                await stack.enter_async_context(self.worker_metrics.serving_page(self.metrics.page))
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(*exc_info)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """The lifespan for the host application. Drains the server before it closes it."""
        async with self:
            yield
            await self.drain()

    async def drain(self) -> None:
        """Shut down gracefully: accept no new messages, store the accepted ones, and send
        the devices away."""
        await self.service.drain(self.settings.drain_seconds)

    async def inject(self, message: Message) -> Message:
        """Inject a new message from this process, and return it as all devices will receive it.
        Raises the error of a rejected message, and Unavailable if the store does not answer."""
        (outcome,) = await self.node.inject(IN_PROCESS, [message])
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome.message

    def _may_add_shards(self) -> bool:
        """Whether new shards may be added to the map: with --migrate, or if all are files, as
        for the schema."""
        return self.settings.migrate or not any(map(is_shared, self.settings.stores.values()))

    def _readings(self) -> Iterator[Reading]:
        """The metrics whose values other objects keep."""
        yield gauge("ready", "1 if /readyz answers 200", lambda: self.readiness.ready)
        yield gauge(
            "clock_skew_seconds",
            "By how much, at the least, the store's clock is ahead of this machine's",
            lambda: self.state_machine.skew / SECOND,
        )
        if isinstance(self.state_machine, ShardedStateMachine):
            for shard in self.state_machine.shards.values():
                yield gauge(
                    "shard_up",
                    "1 while the shard answers; otherwise requests of its users fail",
                    partial(_is_up, shard),
                    {"shard": shard.name},
                )
        if (pubsub := self.pubsub) is not None:
            yield gauge(
                "pubsub_up", "1 while this server can publish and receive", lambda: pubsub.up
            )
            yield counter(
                "pubsub_dropped",
                "Payloads that were, or may have been, lost; the sweep finds in-band messages",
                lambda: pubsub.dropped,
            )

    def _app(self) -> Starlette:
        user = "/v1/users/{uid:uid}"
        private = partial(http.authenticated_endpoint, self.service)
        public = partial(http.public_endpoint, self.service)
        routes = [
            WebSocketRoute("/v1/connect", WebSocketEndpoint(self.service)),
            Route("/v1/messages", private(http.post_messages), methods=["POST"]),
            Route(f"{user}/state", private(http.get_state), methods=["GET"]),
            Route(f"{user}/count", private(http.get_count), methods=["GET"]),
            Route(f"{user}/messages", private(http.get_messages), methods=["GET"]),
            Route(f"{user}/events", private(http.get_events), methods=["GET"]),
            Route("/healthz", public(http.get_health), methods=["GET"]),
            Route("/readyz", public(http.get_ready), methods=["GET"]),
            Route("/metrics", public(http.get_metrics), methods=["GET"]),
            Route("/openapi.json", public(_get_openapi), methods=["GET"]),
            Route("/", public(_get_front_page), methods=["GET"]),
        ]
        app = Starlette(
            routes=routes,
            exception_handlers={
                HTTPException: http.on_http_exception,
                Exception: http.on_exception,
            },
        )
        app.router.redirect_slashes = False  # each resource has exactly one URL
        return app


class LoopbackOnly:
    """Restricts an app without authentication to this machine, also where it is mounted: rejects
    requests to addresses that are not loopback, and requests of web pages of other origins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not _is_loopback_server(scope.get("server")):
            error = Forbidden("auth `open` answers on loopback addresses only; set auth to `jwt`")
            await http.problem(error)(scope, receive, send)
        elif not _is_local_origin(dict(scope["headers"]).get(b"origin")):
            error = Forbidden("auth `open` rejects web pages of other origins; set auth to `jwt`")
            await http.problem(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_loopback_server(server: Sequence[Any] | None) -> bool:
    try:
        return server is None or ip_address(server[0]).is_loopback
    except ValueError:  # a host name or a path: a test client of the host, or a Unix socket
        return True


def _is_local_origin(origin: bytes | None) -> bool:
    """Whether the request comes from a page of this machine, or from no page at all."""
    if origin is None:
        return True
    host = urlsplit(origin.decode("latin-1")).hostname
    return host is not None and is_loopback(host)


class _UID(Convertor[str]):
    """Accepts any uid. It is opaque, so it may contain slashes and line breaks."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> UID:
        return value

    def to_string(self, value: UID) -> str:
        return value


register_url_convertor("uid", _UID())


def _database(url: str, shard: str | None, settings: Settings) -> Database:
    """The store, or one of its shards. A file belongs to this server alone, so its schema is
    migrated; the schema of a shared database is migrated only with --migrate."""
    prepare = require_newest if is_shared(url) and not settings.migrate else migrate
    database = database_at(
        url,
        prepare if shard is not None else requiring_no_shard(prepare),
        connections=settings.store_connections,
        seconds=settings.store_seconds,
    )
    # A server can start while a shard is down, but not if it has to migrate that shard.
    return database if shard is None or settings.migrate else LazyDatabase(database)


def _state_machine(
    databases: Mapping[str | None, Database],
    settings: Settings,
    clock: Callable[[], Time],
    metrics: Metrics,
) -> SQLStateMachine | ShardedStateMachine:
    """The state machine of record: of one database, or of several shards."""
    machines = {
        name: SQLStateMachine(
            database,
            clock,
            metrics.committed,
            clock_check_seconds=CLOCK_CHECK_SECONDS if is_shared(settings.stores[name]) else None,
            may_become_shard=name is not None or is_shared(settings.stores[name]),
        )
        for name, database in databases.items()
    }
    if None in machines:
        return machines[None]
    return ShardedStateMachine({name or "": machine for name, machine in machines.items()})


def _node(
    state_machine: StateMachineOfRecord,
    pubsub: PubSub | None,
    settings: Settings,
    clock: Callable[[], Time],
    metrics: Metrics,
) -> Node:
    """A single node, or with a pub/sub a node of a fleet."""
    name = token_hex(8)  # unique, also among the nodes of this process
    publisher = [] if pubsub is None else [Publisher(pubsub, name)]
    return Node(
        state_machine,
        [*publisher, Broadcaster()],
        clock=clock,
        pubsub=pubsub,
        name=name,
        sweep_seconds=settings.sweep_seconds,
        observer=metrics,
    )


def authenticator(settings: Settings) -> Authenticator:
    """The authenticator for these settings. Raises SetupError if they are unsafe."""
    if settings.auth is Auth.JWT:
        if settings.jwt_secret is None:
            raise SetupError(
                "--auth jwt needs a secret: set GREGOR_JWT_SECRET, "
                "for example to the output of `openssl rand -hex 32`"
            )
        return JWTAuthenticator(settings.jwt_secret.get_secret_value())
    if not settings.loopback:
        raise SetupError(
            f"--auth open accepts every caller, so it listens on loopback addresses only, not on "
            f"{settings.listen}; use --auth jwt, or --listen 127.0.0.1:9911"
        )
    return OpenAuthenticator()


async def _get_openapi(service: Service, request: Request) -> Response:
    return Response(msgspec.json.encode(describe()), media_type="application/json")


async def _get_front_page(service: Service, request: Request) -> Response:
    return Response(FRONT_PAGE, media_type="text/plain")


FRONT_PAGE = """This is Gregor.

  POST /v1/messages              inject messages
  GET  /v1/users/UID/state       the visible items of a user
  GET  /v1/users/UID/count       counts of items, for badges
  GET  /v1/users/UID/messages    the messages since a time
  GET  /v1/users/UID/events      the same, live (server-sent events)
  WS   /v1/connect               the connection of a device

/openapi.json describes the HTTP API.
"""
