"""The guard of a server without authentication: only this machine may use it."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from gregor.config import is_loopback
from gregor.errors import Forbidden
from gregor.server.problems import problem


class LoopbackOnly:
    """Restricts an app without authentication to this machine, also where it is mounted: rejects
    requests to addresses that are not loopback, and requests of web pages of other origins."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif not _is_loopback_server(scope.get("server")):
            error = Forbidden("auth `open` answers on loopback addresses only; set auth to `jwt`")
            await problem(error)(scope, receive, send)
        elif not _is_local_origin(dict(scope["headers"]).get(b"origin")):
            error = Forbidden("auth `open` rejects web pages of other origins; set auth to `jwt`")
            await problem(error)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_loopback_server(server: Sequence[Any] | None) -> bool:
    try:
        return server is None or ip_address(server[0]).is_loopback
    except ValueError:  # a host name or a path: a test client of the host, or a Unix socket
        return True


def _is_local_origin(origin: bytes | None) -> bool:
    """Whether the request comes from a page of this machine, or from no page at all."""
    if origin is None:
        return True
    host = urlsplit(origin.decode("latin-1")).hostname
    return host is not None and is_loopback(host)
