"""uvicorn's HTTP, which hands a connection over to a WebSocket."""

from typing import Any

from gregor.server.http10 import UnchunkedHTTP10
from gregor.server.socket import NO_ACCOUNT, PeerAccount
from gregor.server.websocket_handshake import Refusal, check, refusing, websocket_scope


class UpgradingHTTP(UnchunkedHTTP10):
    """uvicorn's HTTP protocol, whose `ws_protocol_class` makes DirectWebSockets. Nothing of it is
    left when the connection is a WebSocket."""

    def account(self) -> PeerAccount:
        """What is kept of the client for as long as its WebSocket lasts."""
        return NO_ACCOUNT

    def handle_websocket_upgrade(self) -> None:
        self.connections.discard(self)
        self.parser = None  # type: ignore[assignment]  # it refers to this protocol
        scope: Any = self.scope
        request = check(scope)
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # the answer to an earlier request is under way
        elif isinstance(request, Refusal):
            status, reason, headers = request
            self.transport.write(refusing(status, headers, reason.encode()))
            self.transport.close()
        else:
            new_socket: Any = self.ws_protocol_class
            socket = new_socket(
                self.transport,
                key=request,
                connections=self.connections,
                tasks=self.tasks,
                account=self.account(),
            )
            self.transport.set_protocol(socket)
            socket.start(self.app, websocket_scope(scope, self.url))
