"""What is fuzzed: each target takes any bytes, as a peer may send them, and checks a law of what it
makes of them. An exception that its callers do not expect is a fault as well."""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import msgspec
from msgspec import Raw

from gregor.core.arguments import duration, query_time
from gregor.core.export import check_head, decode_line, encode_line
from gregor.core.facts import Facts
from gregor.core.message import InBandMessage, Message, OutOfBandMessage, parse_message
from gregor.core.state_hash import hash_of
from gregor.core.sync import Changes, Sync
from gregor.errors import GregorError, Malformed, Unauthenticated
from gregor.interfaces import HOLDS_FOREVER, Rejected
from gregor.protocol.effects import Close
from gregor.protocol.entries import read_addressed, read_entries
from gregor.protocol.frames import MAX_FRAME, Error, decode_device_frame, encode
from gregor.protocol.json_parts import array_elements, object_members
from gregor.protocol.server_session import ServerSession
from gregor.server import proxy_protocol
from gregor.server.auth import JWTAuthenticator
from gregor.server.websocket_frames import BadFrame, FrameReader

Target: TypeAlias = Callable[[bytes], None]

SECRET = "fuzzing-9f86d081884c7d659a2feaa0"
_UID = "alice"


def frame(data: bytes) -> None:
    """A frame of a device, in both phases: it is taken, answered, or ends the conversation."""
    text = data.decode(errors="surrogateescape")
    with suppress(GregorError):
        decode_device_frame(data)
    for session in (ServerSession(), _open_session()):
        if session.receive(text) is None:
            for answer in iter(session.next, None):
                if not isinstance(answer, Close):
                    _check_answer(answer)


def _open_session() -> ServerSession:
    session = ServerSession()
    session.resume("laptop", 0, None)
    session.reading()
    session.opened(_UID, Sync(Changes(()), 0, 1, hash_of(())), 1, HOLDS_FOREVER)
    return session


def _check_answer(answer: object) -> None:
    match getattr(answer, "frame", None):
        case Error(message=message):
            message.encode()  # what is told can be sent
        case _:
            pass


def message(data: bytes) -> None:
    """A message of a sender: it is rejected, or what is stored of it reads back as the same."""
    (entry,) = read_entries([Raw(data)], _UID.__eq__, uid=_UID)
    if isinstance(entry, Rejected):
        entry.error.message.encode()
        return
    _check_reads_back(entry)
    if isinstance(entry, InBandMessage):
        with suppress(GregorError):  # a time beyond the largest
            stored = entry.stamp(2_000_000, prev=1_000_000)
            once = Facts().replay(stored)
            assert once.replay(stored).hash(None, 3_000_000) == once.hash(None, 3_000_000)


def _check_reads_back(message: Message) -> None:
    again = parse_message(encode(message), stamped=True)
    match message, again:
        case OutOfBandMessage(), OutOfBandMessage():
            assert bytes(message.raw_body) == bytes(again.raw_body)
        case _:
            assert again == message


def addressed(data: bytes) -> None:
    """One message for the users that stand on the lines after it."""
    json, *uids = data.split(b"\n")
    if uids:
        with suppress(GregorError):
            read_addressed(Raw(json), [Raw(uid) for uid in uids], lambda _: True)


def parts(data: bytes) -> None:
    """JSON that is cut into its parts: where it is JSON, these are its members and elements."""
    with suppress(GregorError, msgspec.DecodeError, UnicodeError, RecursionError):
        whole = msgspec.json.decode(data)
        if isinstance(whole, dict):
            members = object_members(data)
            assert {name: msgspec.json.decode(part) for name, part in members.items()} == whole
        elif isinstance(whole, list):
            elements = array_elements(Raw(data))
            assert [msgspec.json.decode(part) for part in elements] == whole
    for cut in (object_members, lambda json: array_elements(Raw(json))):
        with suppress(msgspec.DecodeError, UnicodeError, RecursionError):
            cut(data)


def token(data: bytes) -> None:
    """A token: nobody can make one that is accepted without the secret."""
    text = data.decode("latin-1")
    with suppress(Unauthenticated):
        identity = asyncio.run(_AUTHENTICATOR.identify(text))
        raise AssertionError(f"a forged token is accepted: {identity}")


def export_line(data: bytes) -> None:
    """A line of an export: it is malformed, or writes back as what it says."""
    with suppress(GregorError):
        check_head(data)
    try:
        line = decode_line(data)
    except GregorError:
        return
    assert decode_line(encode_line(line)) == line


def websocket(data: bytes) -> None:
    """What a client sends on a WebSocket says the same in whatever pieces it arrives."""
    half = len(data) // 2
    assert _received([data]) == _received([data[:half], data[half:]])


def _received(pieces: Sequence[bytes]) -> list[object]:
    reader, received = FrameReader(MAX_FRAME), list[object]()
    try:
        for piece in pieces:
            reader.feed(piece)
            received += iter(reader.next, None)
    except BadFrame as error:
        received.append((error.code, error.reason))
    return received


def proxy_header(data: bytes) -> None:
    """The header of a proxy: it is malformed, incomplete, or ends within what was received."""
    try:
        header = proxy_protocol.parse(data)
    except Malformed:
        return
    if isinstance(header, proxy_protocol.ProxyHeader):
        assert 0 < header.size <= len(data)
        assert proxy_protocol.parse(data[: header.size]) == header


def time(data: bytes) -> None:
    """A time in a query, and a duration in a setting."""
    text = data.decode(errors="surrogateescape")
    for read in (query_time, duration):
        with suppress(GregorError):
            read("at", text)


_AUTHENTICATOR = JWTAuthenticator(SECRET, clock=lambda: 1_800_000_000_000_000)
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        *(frame, message, addressed, parts, token, export_line, websocket, proxy_header, time),
    )
}
