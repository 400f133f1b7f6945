"""A node served over HTTP: WebSocket, JSON and server-sent events, as an ordinary ASGI app."""

from gregor.server.app import Server
from gregor.server.auth import Authenticator, Identity, Role
from gregor.server.metrics import Metrics

__all__ = ["Authenticator", "Identity", "Metrics", "Role", "Server"]
