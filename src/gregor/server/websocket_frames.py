"""The frames of a WebSocket (RFC 6455), without I/O: bytes of a peer in, what it says out.

A frame is judged by its head, before its payload is kept. So a FrameReader holds at most one
message of the largest size, and what one read of the socket brought.
"""

from functools import lru_cache
from typing import NamedTuple, TypeAlias

from websockets.frames import apply_mask  # type: ignore[attr-defined]  # the compiled one

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
FIN = 0x80  # in the first byte: the last frame of a message
MASKED = 0x80  # in the second byte
RESERVED_BITS = 0x70
MAX_CONTROL = 125  # bytes in a control frame

NORMAL, BAD_FRAME, NO_CODE, ABNORMAL, NOT_UTF8, TOO_LARGE, FAILED, RESTART = (
    1000, 1002, 1005, 1006, 1007, 1009, 1011, 1012,
)  # fmt: skip
CODES_OF_PEERS = frozenset({*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)})

OPCODES = {
    CONTINUATION: CONTINUATION,
    TEXT: TEXT,
    BINARY: BINARY,
    FIN | CONTINUATION: CONTINUATION,
    FIN | TEXT: TEXT,
    FIN | BINARY: BINARY,
    FIN | CLOSE: CLOSE,
    FIN | PING: PING,
    FIN | PONG: PONG,
}
"""The opcode of each first byte that is allowed."""


class BadFrame(Exception):
    """The peer violates the protocol. The connection is closed with this code and reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class Ping(NamedTuple):
    """The peer asks for a pong with this payload."""

    payload: bytes


class Pong(NamedTuple):
    """The peer is there."""

    payload: bytes


class Fragment(NamedTuple):
    """A part of a message, which is not complete. So many of its bytes are there."""

    size: int


class PeerCloses(NamedTuple):
    """The peer says nothing more."""

    code: int
    reason: str


Received: TypeAlias = str | bytes | Ping | Pong | Fragment | PeerCloses
"""A text message, a binary message, or what else a frame says."""


class Head(NamedTuple):
    """What the first bytes of a frame say: it is `size` bytes from `start`."""

    opcode: int
    is_last: bool
    start: int
    size: int


class FrameReader:
    """Reads the frames of one client. After a BadFrame it is of no more use."""

    __slots__ = ("_buffer", "_message", "_opcode", "max_size")

    def __init__(self, max_size: int) -> None:
        """A message has at most `max_size` bytes, which may be changed between messages."""
        self.max_size = max_size
        self._buffer = bytearray()
        self._opcode = CONTINUATION  # of the message that has begun; CONTINUATION: none has
        self._message = bytearray()  # its fragments so far

    @property
    def has_bytes(self) -> bool:
        """Whether bytes wait for `next`. They may be a part of a frame."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Add what the client has sent."""
        self._buffer += data

    def next(self) -> Received | None:
        """What the next frame says; None until the rest of it is fed. Raises BadFrame."""
        buffer = self._buffer
        head = self._head()
        if head is None or len(buffer) < head.start + head.size:
            return None
        opcode, is_last, start, size = head
        payload = apply_mask(buffer[start : start + size], buffer[start - 4 : start])
        del buffer[: start + size]
        match opcode:
            case 8:
                return _peer_closes(payload)
            case 9:
                return Ping(payload)
            case 10:
                return Pong(payload)
            case _:
                return self._data(opcode, payload, is_last)

    def _head(self) -> Head | None:
        """The head of the next frame, up to its mask, if it is complete and allowed here."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        opcode = self._opcode_of(buffer[0])
        size, start = _short_size(opcode, buffer[1]), 6
        if size > MAX_CONTROL:
            start = 8 if size == 126 else 14
            if len(buffer) < start - 4:
                return None
            size = _long_size(buffer[2 : start - 4])
        if opcode < CLOSE and len(self._message) + size > self.max_size:
            raise BadFrame(TOO_LARGE, f"a message has at most {self.max_size} bytes")
        return Head(opcode, buffer[0] >= FIN, start, size)

    def _opcode_of(self, first: int) -> int:
        opcode = OPCODES.get(first)
        if opcode is None:
            raise BadFrame(BAD_FRAME, _why_refused(first))
        if opcode < CLOSE and (opcode == CONTINUATION) == (self._opcode == CONTINUATION):
            raise BadFrame(BAD_FRAME, "a fragment is out of place")
        return opcode

    def _data(self, opcode: int, payload: bytes, is_last: bool) -> str | bytes | Fragment:
        self._opcode = opcode or self._opcode
        if not is_last:
            self._message += payload
            return Fragment(len(payload))
        if self._message:
            payload = bytes(self._message + payload)
            self._message = bytearray()
        is_text, self._opcode = self._opcode == TEXT, CONTINUATION
        return _decoded(payload) if is_text else payload


def _why_refused(first: int) -> str:
    if first & RESERVED_BITS:
        return "a reserved bit is set: no extension was agreed on"
    if first & 0x0F in (CLOSE, PING, PONG):
        return "a control frame is not fragmented"
    return f"the opcode {first & 0x0F} is reserved"


def _short_size(opcode: int, second: int) -> int:
    if not second & MASKED:
        raise BadFrame(BAD_FRAME, "a client masks its frames")
    size = second & 0x7F
    if opcode >= CLOSE and size > MAX_CONTROL:
        raise BadFrame(BAD_FRAME, f"a control frame has at most {MAX_CONTROL} bytes")
    return size


def _long_size(digits: bytearray) -> int:
    size = int.from_bytes(digits, "big")
    if size <= (MAX_CONTROL if len(digits) == 2 else 0xFFFF):
        raise BadFrame(BAD_FRAME, "a size is written in as few bytes as possible")
    return size


def _decoded(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise BadFrame(NOT_UTF8, "a text is not UTF-8") from None


def _peer_closes(payload: bytes) -> PeerCloses:
    if not payload:
        return PeerCloses(NO_CODE, "")
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or code not in CODES_OF_PEERS:
        raise BadFrame(BAD_FRAME, "the close code is not one that a peer sends")
    return PeerCloses(code, _decoded(payload[2:]))


# Frames to a client, which are not masked


@lru_cache(maxsize=1)
def text_frame(text: str) -> bytes:
    """A text message. Cached, because a broadcast often sends the same text to many devices."""
    return _frame(TEXT, text.encode())


def binary_frame(data: bytes) -> bytes:
    """A binary message."""
    return _frame(BINARY, data)


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping with this payload."""
    return _frame(PONG, payload)


def close_frame(code: int, reason: str = "") -> bytes:
    """The last frame. NO_CODE is not sent; a reason is cut where it is too long."""
    if code == NO_CODE:
        return _frame(CLOSE, b"")
    cut = reason.encode()[: MAX_CONTROL - 2].decode(errors="ignore")
    return _frame(CLOSE, code.to_bytes(2, "big") + cut.encode())


def _frame(opcode: int, payload: bytes) -> bytes:
    first, size = FIN | opcode, len(payload)
    if size < 126:
        return b"%c%c%b" % (first, size, payload)
    if size < 65536:
        return b"%c\x7e%b%b" % (first, size.to_bytes(2, "big"), payload)
    return b"%c\x7f%b%b" % (first, size.to_bytes(8, "big"), payload)


PING_FRAME = _frame(PING, b"")
