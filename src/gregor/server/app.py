"""A server: one node, its store, and the ASGI app in front of them."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from secrets import token_hex
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec
from sqlalchemy import Connection
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
from gregor.interfaces import Rejected, StateMachineOfRecord
from gregor.node import Node
from gregor.pubsub.interface import PubSub
from gregor.pubsub.remote import pubsub_at
from gregor.server import http
from gregor.server.auth import Authenticator, JWTAuthenticator, OpenAuthenticator
from gregor.server.delivery import Delivery
from gregor.server.metrics import Metrics, Reading, counter, gauge
from gregor.server.openapi import describe
from gregor.server.readiness import Readiness
from gregor.server.service import HELLO_SECONDS, SLOWEST_SECONDS, Service
from gregor.server.siblings import Siblings
from gregor.server.websocket import Connect
from gregor.state_machines.moving import establish
from gregor.state_machines.shard_map import name_here
from gregor.state_machines.sharded import Shard, ShardedStateMachine
from gregor.state_machines.sql import SQLStateMachine
from gregor.storage.database import Database, Work
from gregor.storage.engine import database_at, is_shared
from gregor.storage.migrations import expect_newest, migrate
from gregor.storage.patient import PatientDatabase

COMPARE_SECONDS = 10.0


def _is_up(shard: Shard) -> bool:
    return shard.trouble is None


class Server:
    """All of one Gregor. While `async with` holds it, `app` answers, as itself or mounted:

    gregor = Server(Settings())
    app = FastAPI(lifespan=gregor.lifespan)
    app.mount("/gregor", gregor.app)

    The host runs no lifespan of what it mounts: hence `lifespan=`. A Server is opened once.
    """

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], Time] = now,
        *,
        siblings: Siblings | None = None,
        hello_seconds: float = HELLO_SECONDS,
        slowest_seconds: float = SLOWEST_SECONDS,
    ) -> None:
        self.settings = settings
        self.siblings = siblings
        deliveries: dict[Delivery, None] = {}
        self.metrics = Metrics(deliveries)
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
            deliveries,
            siblings=siblings,
            hello_seconds=hello_seconds,
            slowest_seconds=slowest_seconds,
        )
        self.app: ASGIApp = self._app()
        if settings.auth is Auth.OPEN:
            self.app = LoopbackOnly(self.app)
        self._opened: AsyncExitStack | None = None

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("a Server is opened once; make another")
        async with AsyncExitStack() as stack:
            for database in self.databases.values():
                await stack.enter_async_context(database)
            if isinstance(self.state_machine, ShardedStateMachine) and self._may_establish():
                await establish(self.state_machine.databases)
            await stack.enter_async_context(self.state_machine)
            if self.pubsub is not None:
                await stack.enter_async_context(self.pubsub)
            await stack.enter_async_context(self.node)
            await stack.enter_async_context(self.service)
            if self.siblings is not None:
                await stack.enter_async_context(self.siblings.answering(self.metrics.page))
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._opened is not None
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

    async def inject(self, message: Message) -> Message:
        """Accept a new message from this process, and return it as everyone will see it.
        Raises what is wrong with it, and Unavailable if the store does not answer."""
        (outcome,) = await self.node.inject([message])
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome.message

    def _may_establish(self) -> bool:
        """Whether shards that are new may be taken in: as with their schema, files are."""
        return self.settings.migrate or not any(map(is_shared, self.settings.stores.values()))

    def _readings(self) -> Iterator[Reading]:
        """What nobody tells the metrics unasked."""
        yield gauge("ready", "Whether /readyz says yes", lambda: self.readiness.ready)
        yield gauge(
            "clock_skew_seconds",
            "How far the store's clock is ahead of this machine's, at the least",
            lambda: self.state_machine.skew / SECOND,
        )
        if isinstance(self.state_machine, ShardedStateMachine):
            for shard in self.state_machine.shards.values():
                yield gauge(
                    "shard_up",
                    "Whether the shard answers; while it does not, its users are refused",
                    partial(_is_up, shard),
                    {"shard": shard.name},
                )
        if (pubsub := self.pubsub) is not None:
            yield gauge("pubsub_up", "Whether servers hear of each other", lambda: pubsub.up)
            yield counter(
                "pubsub_dropped",
                "Publications of which other servers hear late, out of the store",
                lambda: pubsub.dropped,
            )

    def _app(self) -> Starlette:
        user = "/v1/users/{uid:uid}"
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
        app = Starlette(
            routes=routes,
            exception_handlers={
                HTTPException: http.on_http_exception,
                Exception: http.on_exception,
            },
        )
        app.router.redirect_slashes = False  # each address has one spelling
        return app


class LoopbackOnly:
    """What lets everybody in answers this machine alone, wherever it may be mounted, and no page
    that a browser on this machine has from elsewhere."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not _on_loopback(scope.get("server")):
            error = Forbidden("auth `open` answers on loopback addresses only; set auth to `jwt`")
            await http.problem(error)(scope, receive, send)
        elif not _from_here(dict(scope["headers"]).get(b"origin")):
            error = Forbidden("auth `open` answers no page from elsewhere; set auth to `jwt`")
            await http.problem(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _on_loopback(server: Sequence[Any] | None) -> bool:
    try:
        return server is None or ip_address(server[0]).is_loopback
    except ValueError:  # a name or a path: the host's tests, or a socket of this machine
        return True


def _from_here(origin: bytes | None) -> bool:
    """Whether the page that asks, if it is one, is this machine's own."""
    if origin is None:
        return True
    host = urlsplit(origin.decode("latin-1")).hostname
    return host is not None and is_loopback(host)


class _UID(Convertor[str]):
    """A uid is opaque: slashes and line ends may be in it."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> UID:
        return value

    def to_string(self, value: UID) -> str:
        return value


register_url_convertor("uid", _UID())


def _database(url: str, shard: str | None, settings: Settings) -> Database:
    """The store, or one of its shards. A file is this server's own, and is brought up to date;
    what others use as well changes only when somebody says so."""
    prepare = expect_newest if is_shared(url) and not settings.migrate else migrate
    database = database_at(
        url,
        prepare if shard is not None else lambda c: _prepare_the_only_one(c, prepare),
        connections=settings.store_connections,
        seconds=settings.store_seconds,
    )
    # Others can be served while a shard is away, but not by whoever is to bring it up to date.
    return database if shard is None or settings.migrate else PatientDatabase(database)


def _prepare_the_only_one(connection: Connection, prepare: Work[None]) -> None:
    prepare(connection)
    shard = name_here(connection)
    if shard is not None:
        raise SetupError(
            f"this database is shard {shard!r} of several; name all of them: "
            f"--store {shard}=URL --store NAME=URL"
        )


def _state_machine(
    databases: Mapping[str | None, Database],
    settings: Settings,
    clock: Callable[[], Time],
    metrics: Metrics,
) -> SQLStateMachine | ShardedStateMachine:
    """The singleton's and the fleet's, or with several databases that of a fleet over shards."""
    machines = {
        name: SQLStateMachine(
            database,
            clock,
            metrics.committed,
            compare_seconds=COMPARE_SECONDS if is_shared(settings.stores[name]) else None,
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
    """The singleton, or with a pub/sub one of a fleet."""
    name = token_hex(8)  # no other node has it, in this process or elsewhere
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
