"""The guard of a server without authentication: only this machine may use it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gregor.errors import Forbidden
from gregor.server.client_address import parse_address
from gregor.server.hosts import AllowedHosts
from gregor.server.origins import AllowedOrigins
from gregor.server.problems import problem
from gregor.server.websocket import refuse_websocket

PROXY_HEADERS = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip")
PROXY_PREFIXES = ("x-forwarded", "x-envoy-", "cf-")


class LoopbackOnly:
    """Restricts an app without authentication to this machine, also where it is mounted. Rejects
    requests to addresses that are not loopback, or to names that are not this machine's; those that
    a proxy forwards, whose clients may be anywhere; and those of web pages that may not use it. (A
    browser lets any page send a request, and only keeps the answer from it.)"""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins, hosts: AllowedHosts) -> None:
        self._app = app
        self._origins = origins
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.refusal(scope) or self._app)(scope, receive, send)

    def refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a request that is rejected; None if it is not."""
        try:
            if scope["type"] != "lifespan":
                self._check(scope.get("server"), Headers(scope=scope))
        except Forbidden as error:
            is_socket = scope["type"] == "websocket"
            return partial(refuse_websocket, error) if is_socket else problem(error)
        return None

    def _check(self, server: Sequence[Any] | None, headers: Headers) -> None:
        if not _is_loopback_server(server):
            raise Forbidden("auth `open` answers on loopback addresses only; set auth to `jwt`")
        if _is_forwarded(headers):
            raise Forbidden(
                "auth `open` answers no request that a proxy forwards, because its client may be"
                " anywhere; set auth to `jwt`"
            )
        self._hosts.require(headers)
        self._origins.require(headers)


def _is_loopback_server(server: Sequence[Any] | None) -> bool:
    address = None if server is None else parse_address(server[0])
    # Without one it is a host name or a path: a test client of the host, or a Unix socket.
    return address is None or address.is_loopback


def _is_forwarded(headers: Headers) -> bool:
    return any(name in PROXY_HEADERS or name.startswith(PROXY_PREFIXES) for name in headers)
