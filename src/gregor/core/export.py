"""The lines of an export: what a store knows of its users, as JSON, one object a line.

The first line says the version. Then come the users, one after the other: what the user's row says;
the deaths that do not follow from the messages; the messages in the order of their ctimes; and what
is left of those whose contents are forgotten. The last line counts, so a file that was cut short
can be told from a whole one. `spec/export.md` is the specification.
"""

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from gregor.core.admission import check_text
from gregor.core.instant import MAX_TIME, Time
from gregor.core.message import MAX_MSG_ID, MAX_UID, UID, Ctime, Digest, InBandMessage, MsgID
from gregor.errors import GregorError, InvalidMessage, Malformed

VERSION = 1

MAX_LINE = 1024 * 1024
"""In bytes: more than the largest message takes."""

MAX_AUTHOR = 300  # bytes

StoredCtime: TypeAlias = Annotated[int, Meta(ge=1, le=MAX_TIME)]


class ExportedUser(Struct, frozen=True, forbid_unknown_fields=True):
    """A user's clock, mark, epoch, floor, and the instant up to which tokens do not hold."""

    uid: UID
    ctime: Ctime = 0
    mark: Ctime = 0
    epoch: Ctime = 0
    floor: Ctime = 0
    erased_at: Ctime = 0

    def __post_init__(self) -> None:
        check_text("uid", self.uid, MAX_UID)

    @property
    def time(self) -> Time:
        return self.ctime

    def continues(self, earlier: "ExportedUser") -> bool:
        """Whether what was read of the user before is still true, but for messages after it."""
        return (self.mark, self.epoch, self.floor) == (earlier.mark, earlier.epoch, earlier.floor)


class ExportedTombstone(Struct, frozen=True, forbid_unknown_fields=True):
    """An item that is dead from `at`, whether it has arrived or not."""

    uid: UID
    msg_id: MsgID
    at: StoredCtime

    def __post_init__(self) -> None:
        _check_ids(self.uid, self.msg_id)

    @property
    def time(self) -> Time:
        return self.at


class ExportedMessage(InBandMessage, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A stored message, with its author, if that is known."""

    author: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stamped:
            raise InvalidMessage("a message of an export has a `ctime`", field="ctime")
        if self.author is not None:
            check_text("author", self.author, MAX_AUTHOR)

    @classmethod
    def of(cls, message: InBandMessage, author: str | None) -> "ExportedMessage":
        return cls(**_fields_of(message), author=author)

    @property
    def message(self) -> InBandMessage:
        return InBandMessage(**_fields_of(self))

    @property
    def time(self) -> Time:
        return self.ctime


class ExportedPruned(Struct, frozen=True, forbid_unknown_fields=True):
    """What is left of a message whose contents are forgotten."""

    uid: UID
    msg_id: MsgID
    ctime: StoredCtime
    digest: Digest

    def __post_init__(self) -> None:
        _check_ids(self.uid, self.msg_id)
        if not _DIGEST.fullmatch(self.digest):
            raise InvalidMessage("`digest` must be 22 characters of base64url", field="digest")

    @property
    def time(self) -> Time:
        return self.ctime


Record: TypeAlias = ExportedTombstone | ExportedMessage | ExportedPruned
"""What a line says of a user, but for the line of the user itself."""


class ExportEnd(Struct, frozen=True, forbid_unknown_fields=True):
    """The export is whole: so many users, and messages with contents, came before."""

    users: int
    messages: int


Line: TypeAlias = ExportedUser | Record | ExportEnd


def encode_line(line: Line) -> bytes:
    return b'{"%s":%s}\n' % (_NAMES[type(line)].encode(), _encoder.encode(line))


def head_line() -> bytes:
    """The first line of an export."""
    return b'{"gregor_export":%d}\n' % VERSION


def decode_line(line: bytes) -> Line:
    """A line after the first. Raises Malformed or InvalidMessage."""
    try:
        decoded = _decoder.decode(line)
    except msgspec.ValidationError as error:
        raise Malformed(str(error)) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}") from error
    given = [value for value in decoded.values() if not isinstance(value, UnsetType)]
    if len(given) != 1:
        raise Malformed(f"a line has one of {', '.join(_NAMES.values())}")
    return given[0]


def check_head(line: bytes) -> None:
    """Raises Malformed if this is not the first line of an export that this code can read."""
    try:
        version = _head_decoder.decode(line).gregor_export
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(
            'this is not an export of Gregor: its first line is not {"gregor_export": 1}'
        ) from error
    if version != VERSION:
        raise Malformed(
            f"this is an export of version {version}, and this Gregor reads version {VERSION}:"
            " import it with the Gregor that wrote it, or a later one"
        )


class _Head(Struct, frozen=True):
    """The first line. A later version may say more in it."""

    gregor_export: int


class _AnyLine(Struct, frozen=True, forbid_unknown_fields=True):
    user: ExportedUser | UnsetType = UNSET
    tombstone: ExportedTombstone | UnsetType = UNSET
    message: ExportedMessage | UnsetType = UNSET
    pruned: ExportedPruned | UnsetType = UNSET
    end: ExportEnd | UnsetType = UNSET

    def values(self) -> tuple[Line | UnsetType, ...]:
        return self.user, self.tombstone, self.message, self.pruned, self.end


_NAMES: Mapping[type[Line], str] = {
    ExportedUser: "user",
    ExportedTombstone: "tombstone",
    ExportedMessage: "message",
    ExportedPruned: "pruned",
    ExportEnd: "end",
}
_DIGEST = re.compile(r"[A-Za-z0-9_-]{22}")
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(_AnyLine)
_head_decoder = msgspec.json.Decoder(_Head)


def _check_ids(uid: UID, msg_id: MsgID) -> None:
    check_text("uid", uid, MAX_UID)
    check_text("msg_id", msg_id, MAX_MSG_ID)


def _fields_of(message: InBandMessage) -> dict[str, Any]:
    return {name: getattr(message, name) for name in InBandMessage.__struct_fields__}


# Page by page


class ExportPlace(NamedTuple):
    """Where a page of a user begins: in this part, after this ctime or id."""

    part: int = 0
    ctime: Time = 0
    msg_id: MsgID = ""


class ExportPage(NamedTuple):
    """What a store knows of a user, or a page of it, read at one instant. `next` is where the next
    page begins; None: there is none."""

    user: ExportedUser
    records: tuple[Record, ...]
    next: ExportPlace | None = None


class ImportPart(NamedTuple):
    """Lines of one user, in their order. Of the lines before them, so many messages are `accepted`,
    forgotten ones included. With `ends`, no line of the user follows."""

    user: ExportedUser
    records: Sequence[Record]
    accepted: int = 0
    ends: bool = False


class Taken(Enum):
    """What has come of a line: what it says is stored now, or its message was known before, perhaps
    with another ctime, which stays."""

    STORED = "stored"
    KNOWN = "known"
    KNOWN_AT_ANOTHER_TIME = "known at another time"


Verdict: TypeAlias = Taken | GregorError
"""What has come of a line, or why it was refused. A line that is refused changes nothing."""


def accepted(records: Sequence[Record], verdicts: Sequence[Verdict]) -> int:
    """How many messages of these lines are stored now with their ctime, forgotten ones included."""
    return sum(
        verdict in (Taken.STORED, Taken.KNOWN) and not isinstance(record, ExportedTombstone)
        for record, verdict in zip(records, verdicts, strict=True)
    )
