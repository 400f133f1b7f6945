"""A server: the ASGI apps of one node, and its life from start to graceful shutdown."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, nullcontext
from typing import Any, Self

from starlette.applications import Starlette
from starlette.types import ASGIApp

from gregor.clock import now
from gregor.config import Settings
from gregor.core.instant import Time
from gregor.core.message import UID, Message
from gregor.interfaces import Caller, EraseResult, Rejected
from gregor.limits import DEFAULT_LIMITS, Limits
from gregor.node.node import Node
from gregor.server.auth import Authenticator, OpenAuthenticator
from gregor.server.composition import (
    Parts,
    authenticator_of,
    connection_limits_of,
    descriptors_of,
)
from gregor.server.descriptors import Descriptors
from gregor.server.entrance import Entrance
from gregor.server.going_away import draining_on_stop
from gregor.server.hosts import AllowedHosts
from gregor.server.loopback import LoopbackGuard, LoopbackNames, LoopbackOnly
from gregor.server.metrics import Metrics
from gregor.server.open_connections import DEFAULT_CONNECTION_LIMITS, ConnectionLimits
from gregor.server.origins import AllowedOrigins
from gregor.server.request_metrics import RequestMetrics
from gregor.server.routes import make_admin_app, make_public_app
from gregor.server.service import DEFAULT_TIMEOUTS, Service, Timeouts
from gregor.server.web_pages import AnswerHeaders, WebPages
from gregor.server.worker_metrics import WorkerMetrics

IN_PROCESS = Caller("in-process")
"""The host application, which injects without a token."""


class Server:
    """Serves a node to devices and backends. Open it with `async with`; inside the block, `app`
    answers requests, standalone or mounted in another ASGI app. `admin` is another app, for
    operators: it also answers, without a token, with metrics, the reasons of the readiness, and the
    description of the API. So mount it only where not everybody reaches it, or not at all:

    gregor = Server.from_settings(Settings())
    app = FastAPI(lifespan=gregor.lifespan)
    app.mount("/gregor", gregor.app)

    The host needs `lifespan=`, because it does not run the lifespan of an app that it mounts. A
    Server can be opened only once.

    `from_settings` makes the parts of a server, and opens and closes them with it. Instead, a host
    can supply its own: a node on its own store and pub/sub, an authenticator, and Metrics, which
    are also the node's observer. It then opens them itself, before the server:

    metrics = Metrics()
    node = Node(state_machine, Broadcaster(), Publisher(pubsub), clock=now, observer=metrics)
    gregor = Server(node, authenticator=SessionAuthenticator(), metrics=metrics)
    async with database, state_machine, pubsub, node, gregor: ...

    With an OpenAuthenticator the app answers on loopback addresses only, to loopback names and
    those of `allow_host`, and to no proxy. (A test client asks for `http://localhost`.) Web pages
    of this machine may use it, and those of the origins of `allow_origin`. With any authenticator
    `admin` answers at loopback addresses to these names only.
    """

    def __init__(
        self,
        node: Node,
        *,
        authenticator: Authenticator,
        metrics: Metrics | None = None,
        worker_metrics: WorkerMetrics | None = None,
        parts: AbstractAsyncContextManager[object] | None = None,
        descriptors: Descriptors | None = None,
        connection_limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        limits: Limits = DEFAULT_LIMITS,
        allow_origin: Iterable[str] = (),
        allow_host: Iterable[str] = (),
        lame_duck_seconds: float = 0.0,
        drain_seconds: float = 5.0,
    ) -> None:
        """The `parts` are opened before the server, and closed after it. Raises SetupError if one
        of `allow_origin` is no origin, or one of `allow_host` no host. The `limits` of what a user
        has are kept by the state machine of the node, which is to be told the same."""
        self.node = node
        self.metrics = metrics or Metrics()
        self.service = Service(
            node,
            authenticator,
            self.metrics,
            worker_metrics=worker_metrics,
            timeouts=timeouts,
            descriptors=descriptors,
            limits=limits,
            connection_limits=connection_limits,
        )
        is_open = isinstance(authenticator, OpenAuthenticator)
        origins = AllowedOrigins(allow_origin, only_local=is_open)
        hosts = AllowedHosts(allow_host)

        def guarded(endpoints: Starlette, loopback: LoopbackGuard | None) -> ASGIApp:
            pages = WebPages(loopback or endpoints, origins)
            guards = [pages.refusal, *([loopback.refusal] if loopback else [])]
            requests = RequestMetrics(AnswerHeaders(pages), endpoints.routes, self.metrics.answered)
            return Entrance(requests, self.service, guards)

        public, admin = make_public_app(self.service), make_admin_app(self.service)
        if is_open:
            self.app = guarded(public, LoopbackOnly(public, origins, hosts))
            self.admin = guarded(admin, LoopbackOnly(admin, origins, hosts))
        else:
            self.app = guarded(public, None)
            self.admin = guarded(admin, LoopbackNames(admin, hosts))
        self._parts = parts or nullcontext()
        self._worker_metrics = worker_metrics
        self._lame_duck_seconds = lame_duck_seconds
        self._drain_seconds = drain_seconds
        self._opened: AsyncExitStack | None = None

    @classmethod
    def from_settings(
        cls,
        settings: Settings,
        clock: Callable[[], Time] = now,
        *,
        authenticator: Authenticator | None = None,
        worker_metrics: WorkerMetrics | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
    ) -> Self:
        """A server with all its parts. A given authenticator replaces that of the settings. Raises
        SetupError if the settings are unsafe."""
        parts = Parts(settings, clock)
        return cls(
            parts.node,
            authenticator=authenticator or authenticator_of(settings),
            metrics=parts.metrics,
            worker_metrics=worker_metrics,
            parts=parts.opened(),
            descriptors=descriptors_of(settings),
            connection_limits=connection_limits_of(settings),
            timeouts=timeouts,
            limits=settings.limits,
            allow_origin=settings.allow_origin,
            allow_host=settings.allow_host,
            lame_duck_seconds=settings.lame_duck,
            drain_seconds=settings.drain_seconds,
        )

    async def __aenter__(self) -> Self:
        if self._opened is not None:
            raise RuntimeError("a Server can be opened only once; create another one")
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._parts)
            await stack.enter_async_context(self.service)
            if self._worker_metrics is not None:
                page = self._worker_metrics.serving_page(self.metrics.page)
                await stack.enter_async_context(page)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        assert self._opened is not None
        await self._opened.__aexit__(*exc_info)

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """The lifespan for the host application. Drains the server before it closes it: as soon as
        the process is told to stop by SIGTERM or SIGINT, or else when the lifespan ends."""
        async with self:
            async with draining_on_stop(self.drain):
                yield
            await self.drain()

    async def drain(self) -> None:
        """Shut down gracefully: become unready, serve as before for the lame-duck time, accept no
        new messages, store the accepted ones, and send the devices away. Called again, it does not
        wait for the lame-duck time: the caller has no more."""
        if not self.service.readiness.stopping:
            await self.service.be_lame_duck(self._lame_duck_seconds)
        await self.service.drain(self._drain_seconds)

    async def inject(self, message: Message) -> Message:
        """Inject a new message from this process, and return it as all devices will receive it.
        Raises the error of a rejected message, and Unavailable if the store does not answer."""
        (outcome,) = await self.node.inject(IN_PROCESS, [message])
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome.message

    async def erase(self, uid: UID) -> EraseResult:
        """Erase a user from this process: delete everything of the user, and disconnect all the
        user's devices. Raises Unavailable if the store does not answer."""
        return await self.node.erase(IN_PROCESS, uid)
