"""The guard of a server without authentication: only this machine may use it."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gregor.errors import Forbidden
from gregor.server.origins import AllowedOrigins
from gregor.server.problems import problem


class LoopbackOnly:
    """Restricts an app without authentication to this machine, also where it is mounted: rejects
    requests to addresses that are not loopback, and requests of web pages that may not use it. (A
    browser lets any page send a request, and only keeps the answer from it.)"""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.refusal(scope) or self._app)(scope, receive, send)

    def refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a request that is rejected; None if it is not."""
        try:
            self._check(scope)
        except Forbidden as error:
            return problem(error)
        return None

    def _check(self, scope: Scope) -> None:
        if scope["type"] == "lifespan":
            return
        if not _is_loopback_server(scope.get("server")):
            raise Forbidden("auth `open` answers on loopback addresses only; set auth to `jwt`")
        self._origins.require(Headers(scope=scope))


def _is_loopback_server(server: Sequence[Any] | None) -> bool:
    try:
        return server is None or ip_address(server[0]).is_loopback
    except ValueError:  # a host name or a path: a test client of the host, or a Unix socket
        return True
