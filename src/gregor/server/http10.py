"""uvicorn's HTTP, without chunks in answers to HTTP/1.0, which does not know them.

uvicorn sends a body in chunks if its length is not known beforehand, as that of an event stream. To
a client or a proxy that speaks HTTP/1.0, the end of the connection is the end of such a body.
"""

import sys

from starlette.types import Message
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle


class UnchunkedHTTP10(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which answers HTTP/1.0 as above."""

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.cycle is not None:  # or its body would stay until garbage is collected
            vars(self.cycle).pop("send", None)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if self.scope["http_version"] == "1.0" and cycle is not None:
            _end_with_connection(cycle)


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    """Send a body of unknown length as it is; the connection is closed after the response."""
    send = cycle.send

    async def send_without_chunks(message: Message) -> None:
        match message["type"]:
            case "http.response.start" if not _has_length(message):
                cycle.chunked_encoding = False
                cycle.expected_content_length = sys.maxsize
            case "http.response.body" if not message.get("more_body", False):
                if cycle.expected_content_length > sys.maxsize // 2:
                    cycle.expected_content_length = len(message.get("body", b""))
        await send(message)  # type: ignore[arg-type]

    cycle.send = send_without_chunks  # type: ignore[method-assign, assignment]


def _has_length(start: Message) -> bool:
    return any(name.lower() == b"content-length" for name, _ in start["headers"])
