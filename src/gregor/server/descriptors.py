"""The file descriptors of this process, of which each connection takes one.

A process that has none left can neither answer a health check nor open a connection to its store.
So devices do not get the last ones, and no connection at all gets the very last ones.
"""

import errno
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator

from gregor.errors import SetupError, Unavailable
from gregor.log_event import LogEvent
from gregor.server.metrics import Reading, counter
from gregor.server.refusals import Refusals

try:
    import resource
except ImportError:  # Windows, which has no such limit
    resource = None  # type: ignore[assignment]

log = logging.getLogger("gregor.server")

FOR_REQUESTS = 32  # for health checks and requests, which are short
FOR_FILES = 24  # for the files of a store, the pub/sub and the event loop
OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
MAX_PAUSE_SECONDS = 1.0  # between two counts
HOW_TO_RAISE = "raise it with `ulimit -n`, or with LimitNOFILE in the unit of systemd"


class Descriptors:
    """How many this process has left. It may open as many as `limit` says at the moment."""

    def __init__(
        self, reserved: int = FOR_FILES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """The `reserved` ones are for the store, the pub/sub and files: connections of clients do
        not get them."""
        self._refusals = Refusals(
            "connections refused: file descriptors run out", logging.ERROR, clock
        )
        self._open = 0  # as counted last, and what was accepted and closed since
        self._count_at = -math.inf
        self._reserved = reserved
        self._clock = clock

    @property
    def refused(self) -> int:
        return self._refusals.total

    @property
    def are_scarce(self) -> bool:
        """Whether only those for requests and the reserved ones are left, and none for devices."""
        return self._left() < self._reserved + FOR_REQUESTS

    def check(self) -> None:
        """Raise SetupError if the limit leaves none for devices."""
        if self.are_scarce:
            raise SetupError(
                f"this process may open {limit()} files and connections, and needs most of them "
                f"itself, so that no device could connect; {HOW_TO_RAISE}"
            )

    def require_one_for_device(self) -> None:
        """Raise Unavailable if the connection of a device, which lasts, would take one of those
        that are for requests."""
        if self.are_scarce:
            self.count_refusal()
            raise Unavailable("this server has no more room for devices; retry with another server")

    @property
    def allow_connection(self) -> bool:
        """Whether one more connection leaves the reserved ones."""
        return self._left() > self._reserved

    def opened(self) -> None:
        """A connection has taken one."""
        self._open += 1

    def closed(self) -> None:
        """A connection has given one back."""
        self._open -= 1

    def _left(self) -> int:
        """How many can still be opened. To count them may take long where there are many, so at
        most a fiftieth of the time is spent on that, as far as MAX_PAUSE_SECONDS allows."""
        if self._clock() >= self._count_at:
            started = time.perf_counter()
            self._open = open_descriptors()
            pause = 50 * (time.perf_counter() - started)
            self._count_at = self._clock() + min(pause, MAX_PAUSE_SECONDS)
        return limit() - self._open

    def readings(self) -> Iterator[Reading]:
        yield counter(
            "refused_connections",
            "Connections refused because file descriptors ran out",
            lambda: self.refused,
        )

    def count_refusal(self) -> None:
        """A connection was refused because there are too few."""
        self._refusals.count(limit=limit(), action=HOW_TO_RAISE)


def raise_limit() -> None:
    """Raise the limit of this process as far as it may, and log it."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS: "unlimited" is more than it allows
        log.warning(LogEvent("cannot raise the limit of file descriptors", error=str(error)))
    else:
        log.info(LogEvent("raised the limit of file descriptors", before=soft, now=hard))


def limit() -> int:
    """How many this process may open."""
    if resource is None:
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def open_descriptors(listing: str = "/dev/fd") -> int:
    """How many this process has open; 0 where the system does not tell, as on Windows and in a
    chroot without /proc. Linux tells it as a size since 6.2. To list them gives up the interpreter
    at each, and beside busy threads that takes milliseconds for a thousand."""
    if resource is None:
        return 0
    try:
        if sys.platform == "linux" and (number := os.stat(listing).st_size):
            return number
        return len(os.listdir(listing)) - 1  # without that of the listing
    except OSError as error:
        return limit() if error.errno in OUT_OF_DESCRIPTORS else 0
