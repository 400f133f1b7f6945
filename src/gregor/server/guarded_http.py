"""uvicorn's HTTP, which keeps the last file descriptors free, and waits for no silent client."""

from asyncio import Transport
from typing import Any

from gregor.server.descriptors import Descriptors
from gregor.server.upgrades import UpgradingHTTP

SCARCE_SECONDS = 5.0  # how long a client may be silent while descriptors are scarce


class GuardedHTTP(UpgradingHTTP):
    """One connection. It is refused if it took a reserved descriptor, and closed if it sends
    nothing for as long as an idle one. While descriptors are scarce, it serves one request."""

    def __init__(self, descriptors: Descriptors, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._descriptors = descriptors
        self._serves_one_request = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._descriptors.refuses_connection():
            transport.abort()
            return
        self._serves_one_request = self._descriptors.are_scarce
        seconds = SCARCE_SECONDS if self._serves_one_request else self.timeout_keep_alive
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if self._serves_one_request and self.cycle is not None:
            self.cycle.keep_alive = False
