"""The entry point of a server process that the bench measures:

python -m bench.target PORT gregor STORE [PUBSUB]
python -m bench.target PORT bare
"""

import logging
import sys
from typing import Any

import uvicorn
import uvloop

from gregor.config import load
from gregor.limits import OFF
from gregor.server import process

BARE: dict[str, Any] = {
    "lifespan": "off",
    "http": "httptools",
    "ws_per_message_deflate": False,
    "log_config": None,
    "log_level": "warning",
    "access_log": False,
}
"""uvicorn as it is, but for what neither server does: compression, and a log of requests."""


class BareApp:
    """A minimal WebSocket server: it sends each text back to its sender, and a text that begins
    with `!` to all connections."""

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
        for receiver in tuple(self._sends) if text.startswith("!") else (send,):
            await receiver({"type": "websocket.send", "text": text})


async def serve_bare(port: int) -> None:
    with process.listen("127.0.0.1", port) as listening:
        config = uvicorn.Config(BareApp(), ws="websockets-sansio", **BARE)
        await uvicorn.Server(config).serve([listening])


def main(port: str, kind: str, store: str = "", pubsub: str | None = None) -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    if kind == "bare":
        uvloop.run(serve_bare(int(port)))
    else:
        listen = f"127.0.0.1:{port}"
        settings = load(listen=listen, store=store, pubsub=pubsub, drain_seconds=0, **OFF)
        uvloop.run(process.serve(settings))


if __name__ == "__main__":
    main(*sys.argv[1:])
