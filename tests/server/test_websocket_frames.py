"""The frames of a WebSocket: laws for all bytes, and a table of what a peer may not do."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode

from gregor.server.websocket_frames import (
    BadFrame,
    Fragment,
    FrameReader,
    PeerCloses,
    Ping,
    Pong,
    Received,
    binary_frame,
    close_frame,
    pong_frame,
    text_frame,
)

MAX_SIZE = 1000


def client_frame(opcode: Opcode, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A frame of a client, as the WebSocket library writes it."""
    return Frame(opcode, payload, fin).serialize(mask=True)


def read(reader: FrameReader, data: bytes) -> Iterator[Received]:
    """What a reader says of these bytes, which come next."""
    reader.feed(data)
    while (received := reader.next()) is not None:
        yield received


def read_all(chunks: Sequence[bytes]) -> tuple[list[Received], tuple[int, str] | None]:
    """What a new reader says of the bytes, and the violation at which it stops."""
    reader = FrameReader(MAX_SIZE)
    received: list[Received] = []
    try:
        for chunk in chunks:
            received += read(reader, chunk)
    except BadFrame as violation:
        return received, (violation.code, violation.reason)
    return received, None


texts = st.text(max_size=200)
payloads = st.binary(max_size=125)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, list[Received]]:
    """The bytes of a client that obeys the rules, and what it says."""
    sent, said = b"", list[Received]()
    for kind in draw(st.lists(st.sampled_from(["text", "binary", "ping", "pong"]), max_size=6)):
        match kind:
            case "text" | "binary":
                text = draw(texts)
                message = text if kind == "text" else text.encode()
                frames, parts = draw(fragmented(text.encode(), kind == "text"))
                sent, said = sent + frames, [*said, *parts, message]
            case "ping":
                payload = draw(payloads)
                sent += client_frame(Opcode.PING, payload)
                said.append(Ping(payload))
            case _:
                payload = draw(payloads)
                sent += client_frame(Opcode.PONG, payload)
                said.append(Pong(payload))
    return sent, said


@st.composite
def fragmented(draw: st.DrawFn, data: bytes, is_text: bool) -> tuple[bytes, list[Received]]:
    """A message in one or more frames, with pings between them."""
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=3)))
    parts = [data[begin:end] for begin, end in pairwise([0, *cuts, len(data)])]
    sent, said = b"", list[Received]()
    for number, part in enumerate(parts):
        opcode = Opcode.CONT if number else Opcode.TEXT if is_text else Opcode.BINARY
        is_last = number == len(parts) - 1
        sent += client_frame(opcode, part, fin=is_last)
        if not is_last:
            sent += client_frame(Opcode.PING, b"between")
            said += [Fragment(len(part)), Ping(b"between")]
    return sent, said


def cut(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(places)]


any_cuts = st.lists(st.integers(0, 10_000), max_size=12)


@given(conversations(), any_cuts)
def test_law_reader_says_what_a_client_has_said_however_it_is_cut_into_reads(
    conversation: tuple[bytes, list[Received]], cuts: list[int]
) -> None:
    sent, said = conversation
    assert read_all(cut(sent, cuts)) == (said, None)


@given(conversations(), st.binary(max_size=300), any_cuts)
def test_law_any_bytes_are_a_conversation_or_one_violation_however_they_are_cut(
    conversation: tuple[bytes, list[Received]], garbage: bytes, cuts: list[int]
) -> None:
    data = conversation[0] + garbage
    at_once, in_reads = read_all([data]), read_all(cut(data, cuts))
    assert at_once == in_reads
    assert at_once[1] is None or at_once[1][0] in {1002, 1007, 1009}


@given(conversations(), st.integers(0, 10_000), st.integers(0, 7), any_cuts)
def test_law_a_flipped_bit_never_raises_anything_else(
    conversation: tuple[bytes, list[Received]], place: int, bit: int, cuts: list[int]
) -> None:
    data = bytearray(conversation[0] or client_frame(Opcode.TEXT, b"x"))
    data[place % len(data)] ^= 1 << bit
    assert read_all([bytes(data)]) == read_all(cut(bytes(data), cuts))


def one(first: int, second: int, rest: bytes = b"") -> bytes:
    return bytes([first, second]) + rest


MASK = b"\1\2\3\4"

# What is wrong with these bytes of a client: (bytes, close code).
VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "the first reserved bit": (one(0xC1, 0x80, MASK), 1002),
    "the second reserved bit": (one(0xA1, 0x80, MASK), 1002),
    "the third reserved bit": (one(0x91, 0x80, MASK), 1002),
    **{f"the reserved opcode {n}": (one(0x80 | n, 0x80, MASK), 1002) for n in (3, 4, 5, 6, 7)},
    **{f"the reserved opcode {n}": (one(0x80 | n, 0x80, MASK), 1002) for n in range(11, 16)},
    "no mask": (one(0x81, 0x01, b"x"), 1002),
    "a ping without a mask": (one(0x89, 0x00), 1002),
    "a fragmented ping": (one(0x09, 0x80, MASK), 1002),
    "a fragmented pong": (one(0x0A, 0x80, MASK), 1002),
    "a fragmented close": (one(0x08, 0x80, MASK), 1002),
    "a ping of 126 bytes": (one(0x89, 0xFE), 1002),
    "a close of 126 bytes": (one(0x88, 0xFE), 1002),
    "a fragment of no message": (one(0x80, 0x80, MASK), 1002),
    "a message inside another one": (
        client_frame(Opcode.TEXT, b"a", fin=False) + client_frame(Opcode.TEXT, b"b"),
        1002,
    ),
    "a size of 125 in two bytes": (one(0x81, 0xFE, b"\0\x7d"), 1002),
    "a size of 65,535 in eight bytes": (one(0x81, 0xFF, (65_535).to_bytes(8, "big")), 1002),
    "a text that is not UTF-8": (client_frame(Opcode.TEXT, b"\xff"), 1007),
    "a text that ends inside a character": (client_frame(Opcode.TEXT, b"\xc3"), 1007),
    "a surrogate in a text": (client_frame(Opcode.TEXT, b"\xed\xa0\x80"), 1007),
    "a reason that is not UTF-8": (client_frame(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
    "a close of one byte": (client_frame(Opcode.CLOSE, b"\x03"), 1002),
    **{
        f"the close code {code}": (client_frame(Opcode.CLOSE, code.to_bytes(2, "big")), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "a message above the limit": (one(0x81, 0xFE, (MAX_SIZE + 1).to_bytes(2, "big")), 1009),
    "a message of 2**63 bytes": (one(0x82, 0xFF, b"\x80" + bytes(7)), 1009),
    "fragments above the limit": (
        client_frame(Opcode.TEXT, bytes(MAX_SIZE), fin=False) + one(0x00, 0x81),
        1009,
    ),
}


@pytest.mark.parametrize("defect", VIOLATIONS)
def test_violation_has_the_close_code_of_its_kind_before_its_payload_has_come(defect: str) -> None:
    data, code = VIOLATIONS[defect]
    _, violation = read_all([data])
    assert violation is not None
    assert violation[0] == code


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1011, 1014, 3000, 4999])
def test_peer_may_close_with_a_code_and_a_reason(code: int) -> None:
    payload = code.to_bytes(2, "big") + "für heute".encode()
    assert read_all([client_frame(Opcode.CLOSE, payload)]) == (
        [PeerCloses(code, "für heute")],
        None,
    )


def test_peer_may_close_without_a_code() -> None:
    assert read_all([client_frame(Opcode.CLOSE)]) == ([PeerCloses(1005, "")], None)


def test_message_of_the_largest_size_is_read() -> None:
    assert read_all([client_frame(Opcode.TEXT, b"x" * MAX_SIZE)]) == (["x" * MAX_SIZE], None)


def test_reader_keeps_nothing_of_what_it_has_said() -> None:
    reader = FrameReader(MAX_SIZE)
    for _ in range(3):
        assert list(read(reader, client_frame(Opcode.TEXT, b"x", fin=False))) == [Fragment(1)]
        assert list(read(reader, client_frame(Opcode.CONT, b"y"))) == ["xy"]
        assert not reader.has_bytes


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 300_000])
def test_frames_are_those_of_the_websocket_library(size: int) -> None:
    text = "ü" + "x" * (size - 2) if size > 1 else "x" * size
    data = text.encode()
    assert text_frame(text) == Frame(Opcode.TEXT, data).serialize(mask=False)
    assert binary_frame(data) == Frame(Opcode.BINARY, data).serialize(mask=False)
    if size <= 125:
        assert pong_frame(data) == Frame(Opcode.PONG, data).serialize(mask=False)


@given(st.text())
def test_law_reason_of_a_close_frame_is_cut_between_characters(reason: str) -> None:
    frame = close_frame(1000, reason)
    assert len(frame) <= 127
    assert reason.startswith(frame[4:].decode())
