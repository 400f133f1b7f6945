"""Ports for servers that are started later, or again.

While a server is down, or not yet up, no other process may get its port. So each process chooses
from a block of ports that it has locked against the other test runs of this account, and the
system chooses none of them for clients: a client that reconnects must not connect to itself.
"""

import fcntl
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import BinaryIO

from gregor.errors import SetupError

# Below the ephemeral ports of the usual systems.
PORTS = range(22_000, 30_000)

# A member of a Redis Cluster listens on a second port, 10,000 higher.
CLUSTER_PORTS = range(20_000, 22_000)

BLOCK_SIZE = 200


def free_port(ports: range = PORTS) -> int:
    """A port of loopback on which nothing listens. Until this process ends, no other one gets it
    from this function, and this one only after the rest of its block. Raises SetupError if there
    is none."""
    for port in islice(_own_ports(ports), BLOCK_SIZE):
        with socket.socket() as candidate, suppress(OSError):
            candidate.bind(("127.0.0.1", port))
            return port
    raise SetupError(f"something listens on each of the {BLOCK_SIZE} ports of this process")


@cache
def _own_ports(ports: range) -> Iterator[int]:
    """The ports of a block that this process has locked, again and again."""
    for start in ports[::BLOCK_SIZE]:
        with suppress(BlockingIOError, PermissionError):  # which of the two depends on the system
            # One byte of the file stands for a block; the lock ends with the process.
            fcntl.lockf(_lock_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
            return cycle(range(start, start + BLOCK_SIZE))
    raise SetupError(f"other test runs hold all ports of {ports.start}-{ports.stop - 1}")


@cache
def _lock_file() -> BinaryIO:
    """Open until the process ends: to close it would end the locks."""
    path = Path(tempfile.gettempdir(), f"gregor-test-ports-{os.getuid()}")
    return path.open("ab")
