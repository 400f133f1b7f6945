"""One process that serves: uvicorn around a Server, its signals, and its end."""

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gregor.clock import now
from gregor.config import Settings
from gregor.core.instant import Time
from gregor.errors import SetupError
from gregor.protocol.frames import MAX_FRAME
from gregor.server.app import Server
from gregor.server.service import SLOWEST_SECONDS
from gregor.server.socket import WebSocket
from gregor.storage.database import shown

log = structlog.get_logger("gregor.server")


async def serve(settings: Settings, clock: Callable[[], Time] = now) -> None:
    """Serve until SIGTERM or SIGINT; then refuse new work, finish commits, send the devices away
    and return. Raises SetupError if it cannot start, and whatever ends it before it should."""
    with listen(*settings.address) as listening:
        async with Server(settings, clock) as server:
            process = Process(server)
            with told_by_signals(process.tell):
                announce(listening, settings)
                await process.serve_on(listening)
    log.info("stopped")


def announce(listening: socket.socket, settings: Settings) -> None:
    """Say where it can be reached."""
    host, port = listening.getsockname()[:2]
    log.info(
        "serving",
        url=f"http://{host}:{port}",
        store=", ".join(map(shown, settings.stores.values())),
    )


def _let_rest_what_stays() -> None:
    """Have the garbage collector pass over what is there for good, and come less often: what a
    message leaves behind is freed by its reference count, and thousands of connections would be
    walked through in vain. Measured: 10 % of the processor time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _take_short_turns() -> None:
    """Let the thread of the database have the interpreter soon when it asks for it, which it does
    between the statements of a commit: it would wait for a busy event loop for 5 ms each time.
    Single runs gained a fifth by it, alternating ones nothing beyond the noise."""
    sys.setswitchinterval(0.000_5)


def config(
    app: ASGIApp, ws: type[WebSocketsSansIOProtocol] | Literal["websockets-sansio"] = WebSocket
) -> uvicorn.Config:
    """How uvicorn has to be set up: messages are small and many, so they are not compressed."""
    return uvicorn.Config(
        app,
        lifespan="off",
        ws=ws,
        ws_max_size=MAX_FRAME,
        ws_per_message_deflate=False,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


@contextmanager
def told_by_signals(tell: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `tell` is called on SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, tell)
    try:
        yield
    finally:
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(name)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises SetupError if the address is not to be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio looks at the protocol's number before it turns Nagle's algorithm off.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            # Accepted sockets inherit it: the kernel gives up a peer that acknowledges nothing.
            milliseconds = int(SLOWEST_SECONDS * 1000)
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listening.bind((host, port))
        listening.listen(4096)
    except OSError as error:
        listening.close()
        raise SetupError(
            f"cannot listen on {host}:{port}: {error.strerror}; "
            "choose another address with --listen HOST:PORT"
        ) from error
    listening.setblocking(False)
    return listening


class Process(uvicorn.Server):
    """uvicorn around an open server, told to stop by us once the devices have been sent away."""

    def __init__(self, server: Server) -> None:
        super().__init__(config(server.app))
        self._server = server
        self._told = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def tell(self) -> None:
        """Leave; told again, end at once."""
        self.force_exit = self.should_exit = self._told.is_set()
        self._told.set()

    async def serve_on(self, listening: socket.socket) -> None:
        """Returns when it was told to leave, and has left."""
        _let_rest_what_stays()
        _take_short_turns()
        async with asyncio.TaskGroup() as tasks:
            leaving = tasks.create_task(self._leave_when_told())
            await self.serve([listening])
            leaving.cancel()

    async def _leave_when_told(self) -> None:
        await self._told.wait()
        log.info("stopping")
        await self._server.drain()
        self.should_exit = True
