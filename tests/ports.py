"""Ports for servers that are started later, or again."""

import secrets
import socket

# Below the ephemeral port range of the usual systems. While a server is down, no other process
# may get its port; in particular, a client that reconnects must not connect to itself.
PORTS = range(20_000, 30_000)  # above them are the second ports of Redis Clusters


def free_port(ports: range = PORTS) -> int:
    """A port of loopback on which nothing listens."""
    while True:
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", secrets.choice(ports)))
            except OSError:
                continue
            port: int = candidate.getsockname()[1]
            return port
