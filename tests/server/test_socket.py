"""A text that is written at once is the frame that the WebSocket library would have written."""

import pytest
from websockets.frames import Frame, Opcode

from gregor.server.socket import NO_SOCKET, socket_of, text_frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_a_text_frame_is_the_one_that_the_library_makes(size: int) -> None:
    text = "ü" + "x" * (size - 2) if size > 1 else "x" * size
    expected = Frame(Opcode.TEXT, text.encode()).serialize(mask=False)
    assert text_frame(text) == expected


def test_a_server_that_offers_no_socket_is_never_written_to_at_once() -> None:
    assert socket_of({"type": "websocket"}) is NO_SOCKET
    assert not NO_SOCKET.ready
