"""Accepts the connections of a listening socket, as long as there is room for them.

While there is none, the socket is not watched: new connections wait in the kernel's queue, and cost
nothing. (An event loop that accepts by itself accepts all, and closes those that it has no
descriptors for, or spins.) Before a connection becomes HTTP, it may have to say for whom it is
forwarded, and to make a TLS handshake; both have a deadline.
"""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeAlias

from gregor.errors import GregorError, Malformed
from gregor.server.client_address import plain_host
from gregor.server.deadlines import Deadlines
from gregor.server.descriptors import OUT_OF_DESCRIPTORS
from gregor.server.open_connections import ClientConnection, OpenConnections
from gregor.server.peer_errors import PeerError, PeerErrors, Throttled
from gregor.server.proxy_protocol import MAX_V2, ProxyHeader, parse
from gregor.server.tls import TLS

AT_ONCE = 2  # connections accepted before the event loop does something else
PAUSE_SECONDS = 0.1

Connecting: TypeAlias = Coroutine[Any, Any, tuple[asyncio.Transport, asyncio.BaseProtocol]]
NewProtocol: TypeAlias = Callable[[ClientConnection], asyncio.Protocol]


class Acceptor:
    """Accepts connections from when it is started until it is closed, and makes each of them the
    transport of a new protocol. It takes the place of asyncio's Server within uvicorn."""

    def __init__(
        self,
        listener: socket.socket,
        new_protocol: NewProtocol,
        connections: OpenConnections,
        errors: PeerErrors,
        deadlines: Deadlines,
        tls: TLS | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._new_protocol = new_protocol
        self._connections = connections
        self._limits = connections.limits
        self._errors = errors
        self._deadlines = deadlines
        self._tls = tls
        self._beginning: dict[asyncio.Task[bool], ClientConnection] = {}
        self._resuming: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._resuming = None
        self._loop.add_reader(self._listener, self._accept_some)

    def close(self) -> None:
        """Accept no more, and close connections that have not become HTTP yet."""
        if self._resuming is not None:
            self._resuming.cancel()
        self._loop.remove_reader(self._listener)
        for connection in self._beginning.values():
            connection.abort()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._beginning, return_exceptions=True)

    def _pause(self) -> None:
        self._loop.remove_reader(self._listener)
        self._resuming = self._loop.call_later(PAUSE_SECONDS, self.start)

    def _accept_some(self) -> None:
        """A connection waits to be accepted, and perhaps more of them."""
        if not self._connections.has_room and not self._connections.shed():
            self._pause()
            return
        for _ in range(AT_ONCE):
            try:
                sock, address = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                self._could_not_accept(error)
                return
            self._begin(sock, *address[:2])
            if not self._connections.has_room:
                return  # the event loop calls again, after it has read from these

    def _could_not_accept(self, error: OSError) -> None:
        """The system has no descriptor or memory left for it, which others may give back soon."""
        if error.errno in OUT_OF_DESCRIPTORS:
            self._connections.descriptors.count_refusal()
            self._connections.shed()
        self._pause()

    def _begin(self, sock: socket.socket, host: str, port: int) -> None:
        sock.setblocking(False)
        connection = ClientConnection(plain_host(host), port)
        self._connections.add(connection)
        task = self._loop.create_task(self._run(connection, sock))
        connection.abort = task.cancel
        self._beginning[task] = connection
        # Not in the task itself, which does nothing at all if it is cancelled before it starts.
        task.add_done_callback(partial(self._begun, connection, sock))

    def _begun(
        self, connection: ClientConnection, sock: socket.socket, task: asyncio.Task[bool]
    ) -> None:
        """The protocol has taken over, or the connection is closed."""
        del self._beginning[task]
        is_http = False
        try:
            is_http = not task.cancelled() and task.result()  # the event loop logs a defect
        finally:
            if not is_http:
                sock.close()
                self._connections.discard(connection)

    async def _run(self, connection: ClientConnection, sock: socket.socket) -> bool:
        """Bring the connection to where its protocol takes over. Returns whether it has; it is
        aborted at the deadline, or to make room."""
        deadline = self._deadlines.deadline(lambda: connection.abort())
        deadline.set(self._limits.head)
        try:
            await self._admit(connection, sock)
            return await self._become_http(connection, sock)
        except GregorError:
            return False
        finally:
            deadline.cancel()

    async def _admit(self, connection: ClientConnection, sock: socket.socket) -> None:
        """Raise a GregorError if this address may not have a connection now."""
        if self._limits.proxy_protocol:
            await self._read_proxy_header(connection, sock)
        if self._errors.throttles(connection.peer) or self._connections.exceeds(connection):
            raise Throttled("too many errors, or connections, from this address")

    async def _become_http(self, connection: ClientConnection, sock: socket.socket) -> bool:
        tls = self._tls
        connecting = self._loop.connect_accepted_socket(
            lambda: self._new_protocol(connection),
            sock,
            ssl=None if tls is None else tls.context,
            ssl_handshake_timeout=None if tls is None else self._limits.head,
        )
        try:
            await (_connect_whole(connection, connecting) if tls is None else connecting)
        except OSError:  # SSLError too
            if tls is not None:
                self._errors.count(PeerError.TLS, connection.peer)
            return False
        return True

    async def _read_proxy_header(self, connection: ClientConnection, sock: socket.socket) -> None:
        """Read for whom the connection is forwarded. Raises Malformed if that is not said, or not
        by a trusted proxy."""
        try:
            if connection.peer not in self._limits.trusted:
                raise Malformed("not from a trusted proxy")
            header = await self._proxy_header(sock)
        except (Malformed, OSError) as error:
            self._errors.count(PeerError.PROXY, connection.peer)
            raise Malformed("no header of the PROXY protocol") from error
        if header.client is not None:
            host, connection.port = header.client
            connection.peer = plain_host(host)
            self._connections.move(connection, connection.peer)

    async def _proxy_header(self, sock: socket.socket) -> ProxyHeader:
        """Read the header, and not a byte of what follows it."""
        data = b""
        while True:
            await self._readable(sock)
            new = sock.recv(MAX_V2, socket.MSG_PEEK)
            if not new:
                raise Malformed("closed before its header")
            match parse(data + new):
                case ProxyHeader() as header:
                    sock.recv(header.size - len(data))
                    return header
                case _:
                    data += sock.recv(len(new))

    async def _readable(self, sock: socket.socket) -> None:
        readable = asyncio.Event()
        self._loop.add_reader(sock, readable.set)
        try:
            await readable.wait()
        finally:
            self._loop.remove_reader(sock)


async def _connect_whole(connection: ClientConnection, connecting: Connecting) -> None:
    """Connect, which takes a turn of the event loop, and abort the connection after it if that was
    to be done in there. If it were cancelled instead, uvloop would close the transport and never
    tell the protocol, for which uvicorn waits when it stops."""
    is_aborted = False

    def abort() -> None:
        nonlocal is_aborted
        is_aborted = True

    connection.abort = abort  # until the protocol has the transport
    transport, _ = await connecting
    if is_aborted:
        transport.abort()
