"""The handshake of a WebSocket (RFC 6455, section 4.2): a request in, the answer to it out."""

import base64
import binascii
from collections.abc import Iterable
from hashlib import sha1
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
VERSION = b"13"
KEPT = ("http_version", "server", "client", "root_path", "headers", "state")


class Refusal(NamedTuple):
    """The answer to a request that is no valid handshake."""

    status: HTTPStatus
    reason: str
    headers: Headers = ()


def check(scope: dict[str, Any]) -> Refusal | bytes:
    """The key of a request to upgrade to a WebSocket, or why it is refused."""
    headers = dict(scope["headers"])
    if scope["method"] != "GET" or scope["http_version"] != "1.1":
        return Refusal(HTTPStatus.BAD_REQUEST, "a WebSocket begins with GET and HTTP/1.1")
    if headers.get(b"sec-websocket-version") != VERSION:
        return Refusal(
            HTTPStatus.UPGRADE_REQUIRED,
            f"this server speaks version {VERSION.decode()} of WebSockets",
            [(b"upgrade", b"websocket"), (b"sec-websocket-version", VERSION)],
        )
    key: bytes = headers.get(b"sec-websocket-key", b"")
    if not _is_key(key):
        return Refusal(HTTPStatus.BAD_REQUEST, "Sec-WebSocket-Key is not 16 bytes in Base64")
    return key


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except binascii.Error:
        return False


def websocket_scope(http: dict[str, Any], url: bytes) -> dict[str, Any]:
    """The ASGI scope of a WebSocket, from that of the request that asks for it."""
    raw_path, _, query = url.partition(b"?")
    return {
        **{name: http[name] for name in KEPT},
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "scheme": "wss" if http["scheme"] == "https" else "ws",
        "path": http["root_path"] + unquote(raw_path.decode("latin-1")),
        "raw_path": http["root_path"].encode() + raw_path,
        "query_string": query,
        "subprotocols": _subprotocols(http["headers"]),
        "extensions": {"websocket.http.response": {}},
    }


def _subprotocols(headers: Headers) -> list[str]:
    lists = [value for name, value in headers if name == b"sec-websocket-protocol"]
    return [name.strip() for names in lists for name in names.decode("latin-1").split(",")]


def switching(key: bytes, headers: Headers) -> bytes:
    """The answer that accepts the request with this key."""
    accepted = base64.b64encode(sha1(key + GUID, usedforsecurity=False).digest())
    upgrade = [
        (b"Upgrade", b"websocket"),
        (b"Connection", b"Upgrade"),
        (b"Sec-WebSocket-Accept", accepted),
    ]
    return _head(HTTPStatus.SWITCHING_PROTOCOLS, [*upgrade, *headers])


def refusing(status: int, headers: Headers, body: bytes) -> bytes:
    """An answer that does not accept the request, after which the connection ends."""
    length = b"%d" % len(body)
    kept = [(name, value) for name, value in headers if name.lower() not in OWN_HEADERS]
    own = [(b"content-length", length), (b"connection", b"close")]
    return _head(HTTPStatus(status), [*kept, *own]) + body


OWN_HEADERS = frozenset({b"content-length", b"connection"})


def _head(status: HTTPStatus, headers: Headers) -> bytes:
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, status.phrase.encode(), b"".join(lines))
