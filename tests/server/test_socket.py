"""The frames that DirectWebSocket writes are those that the WebSocket library would write."""

import pytest
from websockets.frames import Frame, Opcode

from gregor.node.channel import NO_SOCKET
from gregor.server.socket import socket_of
from gregor.server.websocket_frames import text_frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_text_frame_equals_frame_of_websocket_library(size: int) -> None:
    text = "ü" + "x" * (size - 2) if size > 1 else "x" * size
    expected = Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
    assert text_frame(text) == expected


def test_socket_of_server_without_extension_is_never_ready() -> None:
    assert socket_of({"type": "websocket"}) is NO_SOCKET
    assert not NO_SOCKET.ready
