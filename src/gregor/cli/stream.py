"""A recorded stream of activity, parsed line by line into messages to send.

Each line is a JSON object:

    {"t": 1242729073000, "uid": "u1", "msg_id": "81e2…", "create": {"category": …, "body": …}}
    {"t": 1242729497000, "uid": "u1", "msg_id": "97dd…", "dismiss": {"msg_ids": ["81e2…"]}}
    {"t": 1242729498000, "uid": "u1", "msg_id": "aa39…", "dismiss": {"ranges": [{"category": …}]}}
    {"t": 1242729499000, "uid": "u1", "msg_id": "b0c2…", "dismiss": {"keys": [{"key": …}]}}

`t` is the sender's clock, in milliseconds. It may run backwards, and it is not the ctime: the
server assigns the ctime, in the order in which the lines of a user are sent.

A creation may have a `key`, `starts` and `expires`, a key an `end_time`, and a range also
`skip_msg_ids`, `prefix` and `scheduled`, as in Gregor's own messages. A range or key without an end
ends at its own ctime: it dismisses what its sender sent before it. A time of the sender's clock
cannot be compared with ctimes that are assigned years later. Only its offset from `t` is kept, so
`{"time": …}` becomes an offset.
"""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
from msgspec import Raw, Struct, field

from gregor.core.admission import SHORTEST_EXPIRY
from gregor.core.instant import TimeOrOffset
from gregor.core.message import Creation, Dismissal, InBandMessage, KeyDismissal, Range
from gregor.errors import GregorError, SetupError

Dismissed = TypeVar("Dismissed", Range, KeyDismissal)


class Create(Struct, frozen=True, forbid_unknown_fields=True):
    category: str
    raw_body: Raw = field(name="body")
    expires: TimeOrOffset | None = None
    starts: TimeOrOffset | None = None
    key: str | None = None

    def creation(self, t: int) -> Creation:
        # No server admits a start before the creation, or an expiry at the creation or before it,
        # which this line may have.
        return Creation(
            self.category,
            self.raw_body,
            expires=_relative(self.expires, t, at_least=SHORTEST_EXPIRY),
            starts=_relative(self.starts, t, at_least=0),
            key=self.key,
        )


class Dismiss(Struct, frozen=True, forbid_unknown_fields=True):
    msg_ids: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()
    keys: tuple[KeyDismissal, ...] = ()

    def dismissal(self, t: int) -> Dismissal:
        return Dismissal(
            self.msg_ids,
            tuple(_ending_relative(range_, t) for range_ in self.ranges),
            tuple(_ending_relative(key, t) for key in self.keys),
        )


class StreamLine(Struct, frozen=True, forbid_unknown_fields=True):
    t: int
    uid: str
    msg_id: str
    create: Create | None = None
    dismiss: Dismiss | None = None

    def message(self) -> InBandMessage:
        return InBandMessage(
            self.uid,
            self.msg_id,
            creation=None if self.create is None else self.create.creation(self.t),
            dismissal=None if self.dismiss is None else self.dismiss.dismissal(self.t),
        )


class BadLine(NamedTuple):
    """A line that is not a valid message, with the reason."""

    reason: str


_decoder = msgspec.json.Decoder(StreamLine)


def parse(line: bytes) -> InBandMessage | BadLine:
    """Parse one line."""
    try:
        return _decoder.decode(line).message()
    except GregorError as error:
        return BadLine(error.message)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        return BadLine(str(error))


def offset_from_line(time: TimeOrOffset, t: int) -> int:
    """The offset of `time` from the line's own time `t`, in microseconds."""
    return time.after(t * 1000) - t * 1000


def _relative(time: TimeOrOffset | None, t: int, *, at_least: int) -> TimeOrOffset | None:
    if time is None:
        return None
    return TimeOrOffset(offset=max(at_least, offset_from_line(time, t)))


def _ending_relative(dismissed: Dismissed, t: int) -> Dismissed:
    if dismissed.end_time is None:
        return dismissed
    end = TimeOrOffset(offset=offset_from_line(dismissed.end_time, t))
    return msgspec.structs.replace(dismissed, end_time=end)


class Source:
    """An open stream: its lines, and the read position."""

    def __init__(self, file: BufferedReader, name: str, size: int | None) -> None:
        self.size = size
        self._file = file
        self._name = name
        self._contents = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file

    @property
    def position(self) -> int:
        """How many of the `size` bytes have been read."""
        return 0 if self.size is None else self._file.tell()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The contents. Raises SetupError if gzip cannot read them."""
        while chunk := await asyncio.to_thread(self._read):
            yield chunk

    async def lines(self) -> AsyncIterator[tuple[int, bytes]]:
        """The non-blank lines with their numbers. Raises SetupError if gzip cannot read it."""
        number, partial = 0, b""
        async for chunk in self.chunks():
            *complete, partial = (partial + chunk).split(b"\n")
            for line in complete:
                number += 1
                if line.strip():
                    yield number, line
        if partial.strip():
            yield number + 1, partial

    def _read(self) -> bytes:
        # read1 returns what is available, even half a line: a pipe may stay silent for long.
        try:
            return self._contents.read1(64 * 1024)
        except (OSError, EOFError, zlib.error) as error:
            raise SetupError(f"{self._name} cannot be read: {error}") from error


@contextmanager
def open_stream(file: Path) -> Iterator[Source]:
    """Open the stream in a file; `-` is stdin. Raises SetupError if it cannot be read."""
    stdin = str(file) == "-"
    try:
        with open(0, "rb", closefd=False) if stdin else file.open("rb") as contents:
            yield Source(contents, str(file), None if stdin else file.stat().st_size)
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}") from error
