"""One server process: uvicorn around a Server, signals, and graceful shutdown."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gregor.clock import now
from gregor.config import Settings
from gregor.core.instant import Time
from gregor.errors import SetupError
from gregor.log_event import LogEvent
from gregor.server.acceptor import Acceptor
from gregor.server.app import Server
from gregor.server.composition import tls_of, warn_of_short_history
from gregor.server.deadlines import Deadlines
from gregor.server.descriptors import raise_limit
from gregor.server.guarded_http import GuardedHTTP
from gregor.server.open_connections import ClientConnection, OpenConnections
from gregor.server.peer_errors import PeerErrors
from gregor.server.service import WRITE_TIMEOUT_SECONDS
from gregor.server.socket import DirectWebSocket, WebSockets
from gregor.server.tls import TLS
from gregor.urls import redacted

log = logging.getLogger("gregor.server")


async def serve(settings: Settings, clock: Callable[[], Time] = now) -> None:
    """Serve until SIGTERM or SIGINT; then shut down gracefully: refuse new work, finish commits,
    send the devices away, and return. Raises SetupError if the server cannot start, and any error
    that ends it early."""
    raise_limit()
    tls = tls_of(settings)
    with listen(*settings.address) as listener, listening_for_admin(settings) as admin:
        async with Server.from_settings(settings, clock) as server:
            process = Process(server, app_of(server, settings), tls)
            with (
                on_stop_signals(process.request_stop),
                on_reload_signal(None if tls is None else tls.reload),
            ):
                announce(listener, admin, settings)
                await process.serve_on(listener, admin)
    log.info(LogEvent("stopped"))


def app_of(server: Server, settings: Settings) -> ASGIApp:
    """What the address of `listen` answers."""
    return server.admin if settings.all_on_one_address else server.app


def announce(listener: socket.socket, admin: socket.socket | None, settings: Settings) -> None:
    """Log the URLs at which the server answers, and what may be a mistake in its settings."""
    log.info(
        LogEvent(
            "serving",
            url=_url_of(listener, "http" if settings.tls_cert is None else "https"),
            **({} if admin is None else {"admin": _url_of(admin)}),
            store=", ".join(map(redacted, settings.stores.values())),
        )
    )
    warn_of_short_history(settings)


def _url_of(listener: socket.socket, scheme: str = "http") -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _tune_garbage_collector() -> None:
    """Exclude the objects that exist now from garbage collection, and collect less often. The
    garbage of a message is freed by reference counting, so most collections would scan the objects
    of thousands of connections and find nothing. Measured: saves 10 % of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _shorten_switch_interval() -> None:
    """Give the interpreter to a thread that waits for it sooner than after 5 ms, the default. The
    database's thread waits for a busy event loop before each statement of a commit; and the event
    loop for a busy thread, before each thing that it reads. Shorter costs processor time: it takes
    some 40 µs to hand the interpreter over. Measured: the p99 of an ack beside a flood of pings is
    11 ms with 0.1 ms, 21 with 0.2 and 53 with 0.5; a message of 60 users who send 20 at a time
    takes a tenth more processor time with 0.1 ms than with 0.2 or 0.5."""
    sys.setswitchinterval(0.000_2)


def config(
    app: ASGIApp,
    websockets: WebSockets | None = None,
) -> uvicorn.Config:
    """The configuration of uvicorn."""
    return uvicorn.Config(
        app,
        lifespan="off",
        http=GuardedHTTP,
        proxy_headers=False,  # GuardedHTTP believes those of trusted proxies
        ws=partial(DirectWebSocket, websockets or WebSockets()),  # type: ignore[arg-type]
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


@contextmanager
def on_stop_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT call `request_stop`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, request_stop)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def on_reload_signal(reload: Callable[[], None] | None) -> Iterator[None]:
    """While the block runs, SIGHUP calls `reload`, if there is something to reload."""
    if reload is None:
        yield
        return
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, reload)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def listen(host: str, port: int, option: str = "--listen") -> socket.socket:
    """A listening socket. Raises SetupError, which names the option, if the address cannot be
    used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Name the protocol: otherwise asyncio does not disable Nagle's algorithm.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Accepted sockets inherit it: the kernel drops a peer that acknowledges no data.
            milliseconds = int(WRITE_TIMEOUT_SECONDS * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind((host, port))
        listener.listen(4096)
    except OSError as error:
        listener.close()
        raise SetupError(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            f"choose another address with {option} HOST:PORT"
        ) from error
    listener.setblocking(False)
    return listener


@contextmanager
def listening_for_admin(settings: Settings) -> Iterator[socket.socket | None]:
    """While the block runs, the socket of the admin address is open, if there is one. The address
    that nobody has chosen gives way to a free port where another server has it."""
    address = settings.admin_address
    if address is None:
        yield None
        return
    try:
        listener = listen(*address, option="--admin-listen")
    except SetupError as error:
        if settings.admin_listen is not None:
            raise
        log.warning(LogEvent("the default admin address is taken", reason=error.message))
        listener = listen(address[0], 0, option="--admin-listen")
    with listener:
        yield listener


class GuardedServer(uvicorn.Server):
    """uvicorn that accepts connections as an Acceptor does, and serves each with GuardedHTTP."""

    def __init__(
        self,
        config: uvicorn.Config,
        connections: OpenConnections,
        errors: PeerErrors,
        tls: TLS | None = None,
    ) -> None:
        super().__init__(config)
        self._connections = connections
        self._errors = errors
        self._tls = tls

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Override uvicorn's signal handling: `on_stop_signals` replaces it."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        deadlines = Deadlines(asyncio.get_running_loop())

        def new_protocol(connection: ClientConnection) -> asyncio.Protocol:
            return GuardedHTTP(
                self._connections,
                self._errors,
                deadlines,
                config=self.config,
                server_state=self.server_state,
                app_state={},
                connection=connection,
            )

        await self.lifespan.startup()
        acceptors = [
            Acceptor(sock, new_protocol, self._connections, self._errors, deadlines, self._tls)
            for sock in sockets or ()
        ]
        self.servers: list[Any] = acceptors
        for acceptor in acceptors:
            acceptor.start()
        self.started = True


class Process(GuardedServer):
    """uvicorn around an open Server, and another one around its admin app. It stops after the
    server has sent its devices away."""

    def __init__(self, server: Server, app: ASGIApp | None = None, tls: TLS | None = None) -> None:
        """The `app` answers in place of `server.app`."""
        service = server.service
        configured = config(app or server.app, service.websockets)
        super().__init__(configured, service.open_connections, service.peer_errors, tls)
        if tls is not None:
            server.metrics.readings += tls.readings()
        self._admin = GuardedServer(
            config(server.admin, service.websockets),
            service.open_connections.of_operators(),
            service.peer_errors,
        )
        self._server = server
        self._stop_requested = asyncio.Event()

    def request_stop(self) -> None:
        """Shut down gracefully. A second request stops the process at once."""
        self.force_exit = self.should_exit = self._stop_requested.is_set()
        self._stop_requested.set()

    async def serve_on(self, listener: socket.socket, admin: socket.socket | None = None) -> None:
        """Serve, and the admin app on a socket of its own, until a requested stop is complete."""
        _tune_garbage_collector()
        _shorten_switch_interval()
        self._server.service.descriptors.check()
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._drain_on_request())]
            if self._tls is not None:
                background.append(tasks.create_task(self._tls.check_periodically()))
            if admin is not None:
                tasks.create_task(self._admin.serve([admin]))
            await self.serve([listener])
            self._admin.should_exit, self._admin.force_exit = True, self.force_exit
            for task in background:
                task.cancel()

    async def _drain_on_request(self) -> None:
        await self._stop_requested.wait()
        log.info(LogEvent("stopping"))
        await self._server.drain()
        self.should_exit = True
