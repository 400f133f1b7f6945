"""The transport of a device: a WebSocket to its node."""

from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import (
    ConnectionClosed,
    InvalidHandshake,
    InvalidStatus,
    WebSocketException,
)

from gregor.backoff import retry_after
from gregor.client.connection import Connect, Transport
from gregor.client.outside import Disconnected
from gregor.errors import SetupError
from gregor.protocol.frames import MAX_FRAME

PING_INTERVAL_SECONDS, PING_TIMEOUT_SECONDS = 20.0, 20.0


class WebSocketTransport:
    """A Transport over a WebSocket. Pings detect a node that vanished without closing it."""

    def __init__(self, websocket: ClientConnection) -> None:
        self._websocket = websocket

    async def send(self, text: str) -> None:
        try:
            await self._websocket.send(text)
        except ConnectionClosed as error:
            raise _disconnected(error) from error

    async def receive(self) -> str:
        try:
            return await self._websocket.recv(decode=True)
        except ConnectionClosed as error:
            raise _disconnected(error) from error
        except UnicodeError as error:
            raise Disconnected(1007, "the node sent a frame that is not UTF-8 text") from error

    async def close(self) -> None:
        await self._websocket.close()

    def abort(self) -> None:
        """Drop the connection without a closing handshake, as a lost network does. Idempotent."""
        self._websocket.transport.abort()


def websocket(url: str) -> Connect:
    """Returns a Connect for the server at this URL (http, https, ws or wss). Raises SetupError if
    the URL is not valid."""
    address = websocket_url(url)
    # A proxy from the environment cannot reach this machine's loopback address.
    loopback = urlsplit(address).hostname in ("localhost", "127.0.0.1", "::1")

    async def connect() -> Transport:
        try:
            connection = await connect_websocket(
                address,
                compression=None,
                max_size=8 * MAX_FRAME,
                ping_interval=PING_INTERVAL_SECONDS,
                ping_timeout=PING_TIMEOUT_SECONDS,
                close_timeout=1.0,
                proxy=None if loopback else True,
            )
        except InvalidStatus as error:
            raise Disconnected(
                error.response.status_code,
                f"the server answered {error.response.status_code} to the handshake",
                retry_after(error.response.headers.get("Retry-After")),
            ) from error
        except (WebSocketException, InvalidHandshake) as error:
            raise Disconnected(0, str(error)) from error
        return WebSocketTransport(connection)

    return connect


def websocket_url(url: str) -> str:
    """The WebSocket URL for devices of the server at `url`. Raises SetupError if it is not a URL
    of a server."""
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(urlsplit(url).scheme)
    if scheme is None or not urlsplit(url).hostname:
        raise SetupError(f"{url!r} is not the URL of a server, such as http://127.0.0.1:9911")
    parts = urlsplit(url)._replace(scheme=scheme, query="", fragment="")
    return parts.geturl().rstrip("/") + "/v1/connect"


def _disconnected(error: ConnectionClosed) -> Disconnected:
    if error.rcvd is None:
        return Disconnected(1006, "the connection broke")
    return Disconnected(error.rcvd.code, error.rcvd.reason)
