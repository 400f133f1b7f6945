"""A recorded stream of activity, line by line, as messages that can be sent.

Each line is a JSON object:

    {"t": 1242729073000, "uid": "u1", "msg_id": "81e2…", "create": {"category": …, "body": …}}
    {"t": 1242729497000, "uid": "u1", "msg_id": "97dd…", "dismiss": {"msg_ids": ["81e2…"]}}
    {"t": 1242729498000, "uid": "u1", "msg_id": "aa39…", "dismiss": {"ranges": [{"category": …}]}}

`t` is the sender's own clock, in milliseconds. It may run backwards, and it is not the ctime: that
is the server's to give, in the order in which the lines of a user are sent.

A creation may have a `dtime`, and a range an `end_time`, `skip_msg_ids` and `prefix`, as in
Gregor's own messages. A range without an end ends at its own ctime: it dismisses what its sender
had sent before it. A time of the sender's clock would mean nothing beside ctimes given years
later; what carries over is its distance from `t`, so `{"time": …}` becomes an offset.
"""

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Raw, Struct, field

from gregor.core.instant import TimeOrOffset
from gregor.core.message import Creation, Dismissal, InBandMessage, Range
from gregor.errors import GregorError, SetupError


class Create(Struct, frozen=True, forbid_unknown_fields=True):
    category: str
    raw_body: Raw = field(name="body")
    dtime: TimeOrOffset | None = None

    def creation(self, t: int) -> Creation:
        # What was to end before it began has ended at once.
        ends = None if self.dtime is None else TimeOrOffset(offset=max(0, distance(self.dtime, t)))
        return Creation(self.category, self.raw_body, ends)


class Dismiss(Struct, frozen=True, forbid_unknown_fields=True):
    msg_ids: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()

    def dismissal(self, t: int) -> Dismissal:
        return Dismissal(self.msg_ids, tuple(_range(range_, t) for range_ in self.ranges))


class Line(Struct, frozen=True, forbid_unknown_fields=True):
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


class Bad(NamedTuple):
    """A line that is no message, and why."""

    reason: str


_decoder = msgspec.json.Decoder(Line)


def parse(line: bytes) -> InBandMessage | Bad:
    """The message that a line holds."""
    try:
        return _decoder.decode(line).message()
    except GregorError as error:
        return Bad(error.message)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        return Bad(str(error))


def distance(when: TimeOrOffset, t: int) -> int:
    """How far from the line's own time `when` is, in microseconds."""
    return when.after(t * 1000) - t * 1000


def _range(range_: Range, t: int) -> Range:
    if range_.end_time is None:
        return range_
    end = TimeOrOffset(offset=distance(range_.end_time, t))
    return msgspec.structs.replace(range_, end_time=end)


class Source:
    """An opened stream: its lines, and how far they have been read."""

    def __init__(self, file: BufferedReader, name: str, size: int | None) -> None:
        self.size = size
        self._file = file
        self._name = name
        self._contents = gzip.GzipFile(fileobj=file) if name.endswith(".gz") else file

    @property
    def position(self) -> int:
        """How many of the `size` bytes are behind us."""
        return 0 if self.size is None else self._file.tell()

    async def lines(self) -> AsyncIterator[tuple[int, bytes]]:
        """The lines that are not blank, with their numbers. Raises SetupError if it is no gzip."""
        number, rest = 0, b""
        while chunk := await asyncio.to_thread(self._read):
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                if line.strip():
                    yield number, line
        if rest.strip():
            yield number + 1, rest

    def _read(self) -> bytes:
        # What is there already, were it half a line: a pipe may rest for long.
        try:
            return self._contents.read1(64 * 1024)
        except (OSError, EOFError, zlib.error) as error:
            raise SetupError(f"{self._name} cannot be read: {error}") from error


@contextmanager
def opened(file: Path) -> Iterator[Source]:
    """The stream in a file; `-` is stdin."""
    stdin = str(file) == "-"
    try:
        with open(0, "rb", closefd=False) if stdin else file.open("rb") as contents:
            yield Source(contents, str(file), None if stdin else file.stat().st_size)
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}") from error
