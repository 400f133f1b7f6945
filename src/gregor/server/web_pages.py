"""What a server says to browsers: which pages may use it, and that no answer is to be kept."""

from functools import partial

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gregor.errors import Forbidden
from gregor.protocol.requests import EPOCH_HEADER
from gregor.server.origins import AllowedOrigins
from gregor.server.websocket import refuse_websocket

METHODS = ("GET", "HEAD", "POST", "DELETE")
REQUEST_HEADERS = ("Authorization", "Content-Type", "Last-Event-ID", EPOCH_HEADER)
ANSWER_HEADERS = ("Retry-After", "WWW-Authenticate")
PREFLIGHT_SECONDS = 7200  # for so long a browser need not ask again; none remembers it for longer


class WebPages:
    """An app around another one, for web pages of other origins. Those that are allowed may read
    its answers; this is what CORS is for. It has no say over WebSockets, so one of a page that is
    not allowed has a refusal, which the entrance asks for."""

    def __init__(self, app: ASGIApp, origins: AllowedOrigins) -> None:
        self._origins = origins
        self._app = CORSMiddleware(
            app,
            allow_origin_regex=origins.pattern,
            allow_methods=METHODS,
            allow_headers=REQUEST_HEADERS,
            expose_headers=ANSWER_HEADERS,
            allow_private_network=True,
            max_age=PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    def refusal(self, scope: Scope) -> ASGIApp | None:
        """The answer to a WebSocket of a page that is not allowed; None if it is."""
        try:
            self._origins.require(Headers(scope=scope))
        except Forbidden as error:
            return partial(refuse_websocket, error)
        return None


class AnswerHeaders:
    """An app around another one. Says with each of its answers, also with errors, that nobody may
    keep it, guess its type, or give it to the page of another origin."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(event: Message) -> None:
            # The second one is the answer to a WebSocket that is not accepted.
            if event["type"] in ("http.response.start", "websocket.http.response.start"):
                _add_headers(MutableHeaders(scope=event))
            await send(event)

        await self._app(scope, receive, send_with_headers)


def _add_headers(headers: MutableHeaders) -> None:
    headers["Cache-Control"] = "no-store"
    headers["X-Content-Type-Options"] = "nosniff"
    if "Origin" not in headers.get("Vary", ""):  # Starlette's CORS adds it to some answers
        headers.add_vary_header("Origin")
