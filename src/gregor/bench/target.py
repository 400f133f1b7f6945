"""What runs in the process of a server that is measured:

python -m gregor.bench.target PORT gregor STORE [PUBSUB]
python -m gregor.bench.target PORT bare
"""

import logging
import sys
from typing import Any

import structlog
import uvicorn
import uvloop

from gregor.config import Settings
from gregor.server import serving


class Bare:
    """The least that a WebSocket server can do: it says to its sender what it hears, and to all
    of them what begins with `!`."""

    def __init__(self) -> None:
        self._sends: dict[Any, None] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        self._sends[send] = None
        try:
            while (event := await receive())["type"] != "websocket.disconnect":
                await self._answer(send, event["text"])
        finally:
            del self._sends[send]

    async def _answer(self, send: Any, text: str) -> None:
        for each in tuple(self._sends) if text.startswith("!") else (send,):
            await each({"type": "websocket.send", "text": text})


async def serve_bare(port: int) -> None:
    with serving.listen("127.0.0.1", port) as listening:
        config = serving.config(Bare(), ws="websockets-sansio")
        await uvicorn.Server(config).serve([listening])


def main(port: str, what: str, store: str = "", pubsub: str | None = None) -> None:
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),  # the figures have the other
    )
    if what == "bare":
        uvloop.run(serve_bare(int(port)))
    else:
        listen = f"127.0.0.1:{port}"
        settings = Settings(listen=listen, store=store, pubsub=pubsub, drain_seconds=0)
        uvloop.run(serving.serve(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
