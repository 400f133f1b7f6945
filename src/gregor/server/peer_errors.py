"""What clients do wrong, counted by reason; and addresses that do it too often, which are refused.

A client that guesses tokens or sends garbage costs little each time. Refused before its request is
read, it costs next to nothing. An address that stands for many users is never refused as a whole.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from enum import StrEnum
from typing import NamedTuple

from gregor.errors import Unavailable
from gregor.server.client_address import NO_NETWORKS, Networks, counted_address
from gregor.server.metrics import Reading, Readings, counter, counters
from gregor.server.refusals import Refusals

BURST = 200  # errors that an address may make at once
PER_SECOND = 5.0  # errors that are forgiven
MAX_ADDRESSES = 10_000


class PeerError(StrEnum):
    """What a client did wrong."""

    AUTHENTICATION = "authentication"  # no token, or one that does not hold
    BODY = "body"  # a body that is too slow, or malformed
    HEAD = "head"  # a head that is too large, or too slow
    PROTOCOL = "protocol"  # not HTTP
    PROXY = "proxy"  # no header of the PROXY protocol, or none was to be sent
    TLS = "tls"  # no handshake
    WEBSOCKET = "websocket"  # not the WebSocket protocol


class Throttled(Unavailable):
    """Too many errors, or connections, from this address. Retry later."""

    status = 429


class Spent(NamedTuple):
    """How many errors an address had at a time, without those that were forgiven."""

    errors: float
    at: float

    def now(self, now: float) -> float:
        return max(0.0, self.errors - (now - self.at) * PER_SECOND)


class PeerErrors:
    """Counts errors, in total by reason, and by address as a token bucket. It remembers the
    MAX_ADDRESSES that made one last."""

    def __init__(
        self,
        trusted: Networks = NO_NETWORKS,
        burst: float = BURST,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trusted = trusted
        self._burst = burst
        self._clock = clock
        self._counts: Counter[tuple[str, ...]] = Counter(
            {(reason.value,): 0 for reason in PeerError}
        )
        self._spent: OrderedDict[str, Spent] = OrderedDict()
        self._throttled = Refusals("refusing an address that makes too many errors", clock=clock)

    def count(self, reason: PeerError, host: str | None) -> None:
        """The client at this host made an error."""
        self._counts[reason.value,] += 1
        address = None if host is None else counted_address(host, self._trusted)
        if address is None:
            return
        now = self._clock()
        errors = self._spent[address].now(now) if address in self._spent else 0.0
        self._spent[address] = Spent(min(errors + 1, self._burst + PER_SECOND), now)
        self._spent.move_to_end(address)
        if len(self._spent) > MAX_ADDRESSES:
            self._spent.popitem(last=False)

    def throttles(self, host: str) -> bool:
        """Whether this host has made too many errors, and is to be refused for a moment."""
        if not self._spent:
            return False
        address = counted_address(host, self._trusted)
        spent = None if address is None else self._spent.get(address)
        if spent is None or spent.now(self._clock()) < self._burst:
            return False
        self._throttled.count(address=host, action="if it is a proxy, name it with --trusted-proxy")
        return True

    def readings(self) -> Iterator[Reading | Readings]:
        yield counters(
            "peer_errors", "What clients did wrong, by reason", ("reason",), lambda: self._counts
        )
        yield counter(
            "throttled_connections",
            "Connections and requests refused because their address makes too many errors",
            lambda: self._throttled.total,
        )


CLIENT_HOST: ContextVar[str | None] = ContextVar("client_host", default=None)
"""The host of the client whose request the current task serves; None if it is not known."""
