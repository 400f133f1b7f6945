"""The open connections of clients: how many there may be, from where, and which can make room.

A connection that waits for its client holds a file descriptor and does nothing with it. When there
is no room for a new connection, the one that has waited for longest is closed: first those that
have had their last answer, then those that have said nothing yet, then those that may send another
request, and then those whose clients have for a while not gone on with what they began. So clients
that are silent or slow keep nobody out.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gregor.config import KEEP_ALIVE_SECONDS
from gregor.errors import Unavailable
from gregor.server.client_address import NO_NETWORKS, Networks, counted_address
from gregor.server.descriptors import FOR_REQUESTS, Descriptors
from gregor.server.metrics import Reading, counter, gauge
from gregor.server.refusals import Refusals

STALLED_SECONDS = 5.0
"""Only then can it make room: an honest client has mostly gone on by then."""


class ConnectionLimits(NamedTuple):
    """What clients may do with their connections; times are in seconds. The networks are those of
    trusted proxies."""

    max_connections: int | None = None  # None: as many as there are file descriptors
    connections_per_address: int = 1000  # 0: any number
    head: float = 10.0  # for a whole head, and for a TLS handshake
    body: float = 30.0  # for a body, besides the time that a slow line takes
    keep_alive: float = KEEP_ALIVE_SECONDS
    write: float = 30.0  # for a client to accept data
    linger: float = 3.0  # for a client to take the last answer
    trusted: Networks = NO_NETWORKS
    proxy_protocol: bool = False


DEFAULT_CONNECTION_LIMITS = ConnectionLimits()


def _nothing() -> None:
    """What there is to close of a connection before it begins, and after its end."""


class ClientConnection:
    """One open connection: whose it is, and how to close it at once."""

    __slots__ = ("abort", "address", "host", "peer", "port")

    def __init__(self, peer: str, port: int) -> None:
        self.peer = peer  # the host at its other end, or that the PROXY protocol names
        self.host = peer  # the client's, which a trusted proxy may forward
        self.port = port
        self.address: str | None = None  # under which it is counted
        self.abort: Callable[[], object] = _nothing


class OpenConnections:
    """All open connections of one process. Each is `silent`, before its first request or the first
    message of its WebSocket; or `idle` after a request; or `stalled`, while its client is to send
    the rest of a body, or to take an answer; or `ended`, after the last answer; or busy."""

    def __init__(
        self,
        limits: ConnectionLimits = DEFAULT_CONNECTION_LIMITS,
        descriptors: Descriptors | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.descriptors = descriptors or Descriptors()
        self._open: dict[ClientConnection, None] = {}
        # In the order in which they began to wait, with when that was.
        self._ended: dict[ClientConnection, float] = {}
        self._silent: dict[ClientConnection, float] = {}
        self._idle: dict[ClientConnection, float] = {}
        self._stalled: dict[ClientConnection, float] = {}
        self._clock = clock
        self._of_address: Counter[str] = Counter()
        self._shed = 0
        self._over_address = Refusals("too many connections from one address")

    def of_operators(self) -> "OpenConnections":
        """Those to another address of the same process, which no proxy forwards."""
        limits = self.limits._replace(max_connections=None, proxy_protocol=False)
        return OpenConnections(limits, self.descriptors)

    @property
    def number(self) -> int:
        return len(self._open)

    @property
    def has_room(self) -> bool:
        """Whether one more connection may be accepted."""
        maximum = self.limits.max_connections
        if maximum is not None and self.number >= maximum:
            return False
        return self.descriptors.allow_connection

    def require_room_for_device(self) -> None:
        """Raise Unavailable if the connection of a device, which lasts, would take one of those
        that are for requests, even if those that do nothing were closed."""
        for _ in range(FOR_REQUESTS):
            if self._has_room_for_device or not self.shed():
                break
        self.descriptors.require_one_for_device()
        if not self._has_room_for_device:
            raise Unavailable("this server has no more room for devices; retry with another server")

    @property
    def _has_room_for_device(self) -> bool:
        maximum = self.limits.max_connections
        if maximum is not None and self.number > maximum - min(FOR_REQUESTS, maximum // 4):
            return False
        return not self.descriptors.are_scarce

    # What becomes of a connection

    def add(self, connection: ClientConnection) -> None:
        """It is accepted, and waits for its first request."""
        self._open[connection] = None
        self.become_silent(connection)
        self._count(connection)
        self.descriptors.opened()

    def discard(self, connection: ClientConnection) -> None:
        """It is closed. May be called again."""
        if connection in self._open:
            del self._open[connection]
            self.become_busy(connection)
            connection.abort = _nothing  # it refers to the transport
            self._uncount(connection)
            self.descriptors.closed()

    def become_silent(self, connection: ClientConnection) -> None:
        """Its client may speak, and has said nothing yet."""
        self._wait(connection, self._silent)

    def become_busy(self, connection: ClientConnection) -> None:
        """It waits for nothing that its client is to do."""
        for waiting in (self._ended, self._silent, self._idle, self._stalled):
            waiting.pop(connection, None)

    def become_idle(self, connection: ClientConnection) -> None:
        """Its request is answered, and it may send another one."""
        self._wait(connection, self._idle)

    def become_stalled(self, connection: ClientConnection) -> None:
        """Its client is to go on with a request, or with an answer. May be called again."""
        if connection not in self._stalled:
            self._wait(connection, self._stalled)

    def become_ended(self, connection: ClientConnection) -> None:
        """All is said, and its client has a little time to take it."""
        self._wait(connection, self._ended)

    def _wait(self, connection: ClientConnection, waiting: dict[ClientConnection, float]) -> None:
        if connection in self._open:
            self.become_busy(connection)
            waiting[connection] = self._clock()

    def shed(self) -> bool:
        """Close the one that has waited for longest. Returns whether there was one."""
        connection = self._first_to_shed()
        if connection is None:
            return False
        self._shed += 1
        abort = connection.abort
        self.discard(connection)
        abort()
        return True

    def _first_to_shed(self) -> ClientConnection | None:
        if waiting := self._ended or self._silent or self._idle:
            return next(iter(waiting))
        connection, since = next(iter(self._stalled.items()), (None, 0.0))
        return connection if self._clock() - since >= STALLED_SECONDS else None

    # Addresses

    def move(self, connection: ClientConnection, host: str) -> None:
        """A trusted proxy says that the connection is now from this host."""
        if host != connection.host:
            self._uncount(connection)
            connection.host = host
            self._count(connection)

    def exceeds(self, connection: ClientConnection) -> bool:
        """Whether its address has too many connections, with this one."""
        maximum, address = self.limits.connections_per_address, connection.address
        if not maximum or address is None or self._of_address[address] <= maximum:
            return False
        self._over_address.count(address=address, maximum=maximum)
        return True

    def _count(self, connection: ClientConnection) -> None:
        connection.address = counted_address(connection.host, self.limits.trusted)
        if connection.address is not None:
            self._of_address[connection.address] += 1

    def _uncount(self, connection: ClientConnection) -> None:
        address = connection.address
        if address is not None:
            self._of_address[address] -= 1
            if not self._of_address[address]:
                del self._of_address[address]

    # For the metrics

    def readings(self) -> Iterator[Reading]:
        yield gauge("open_connections", "Connections of clients that are open", lambda: self.number)
        yield counter(
            "shed_connections",
            "Connections that waited for their clients and were closed to make room for others",
            lambda: self._shed,
        )
        yield counter(
            "refused_connections_of_address",
            "Connections refused because their address has too many",
            lambda: self._over_address.total,
        )
