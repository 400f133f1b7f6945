"""The guards of what is answered without a token, because only this machine may ask."""

from abc import ABC, abstractmethod
from functools import partial

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gregor.errors import Forbidden
from gregor.server.client_address import Address, parse_address
from gregor.server.hosts import AllowedHosts
from gregor.server.origins import AllowedOrigins
from gregor.server.problems import problem
from gregor.server.websocket import refuse_websocket

PROXY_HEADERS = ("forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip")
PROXY_PREFIXES = ("x-forwarded", "x-envoy-", "cf-")


class LoopbackGuard(ABC):
    """An app around another one, which rejects some requests."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.refusal(scope) or self._app)(scope, receive, send)

    def refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a request that is rejected; None if it is not."""
        try:
            if scope["type"] != "lifespan":
                self._check(_server_address(scope), Headers(scope=scope))
        except Forbidden as error:
            is_socket = scope["type"] == "websocket"
            return partial(refuse_websocket, error) if is_socket else problem(error)
        return None

    @abstractmethod
    def _check(self, server: Address | None, headers: Headers) -> None:
        """Raises Forbidden if a request to this address of the server is rejected. It has no
        address if it is asked by a test client, or at a Unix socket."""


class LoopbackOnly(LoopbackGuard):
    """Restricts an app without authentication to this machine, also where it is mounted. Rejects
    requests to addresses that are not loopback, or to names that are not this machine's; those that
    a proxy forwards, whose clients may be anywhere; and those of web pages that may not use it. (A
    browser lets any page send a request, and only keeps the answer from it.)"""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins, hosts: AllowedHosts) -> None:
        super().__init__(app)
        self._origins = origins
        self._hosts = hosts

    def _check(self, server: Address | None, headers: Headers) -> None:
        if server is not None and not server.is_loopback:
            raise Forbidden("auth `open` answers on loopback addresses only; set auth to `jwt`")
        if _is_forwarded(headers):
            raise Forbidden(
                "auth `open` answers no request that a proxy forwards, because its client may be"
                " anywhere; set auth to `jwt`"
            )
        self._hosts.require(headers)
        self._origins.require(headers)


class LoopbackNames(LoopbackGuard):
    """An app for operators, which tells some without a token. At an address that is loopback it
    rejects requests for names that are not this machine's. (A request that names no host, in
    HTTP/1.0, is no browser's. At other addresses everybody may ask who reaches them.)"""

    def __init__(self, app: ASGIApp, hosts: AllowedHosts) -> None:
        super().__init__(app)
        self._hosts = hosts

    def _check(self, server: Address | None, headers: Headers) -> None:
        if server is not None and server.is_loopback and "host" in headers:
            self._hosts.require(headers)


def _server_address(scope: Scope) -> Address | None:
    server = scope.get("server")
    return None if server is None else parse_address(server[0])


def _is_forwarded(headers: Headers) -> bool:
    return any(name in PROXY_HEADERS or name.startswith(PROXY_PREFIXES) for name in headers)
