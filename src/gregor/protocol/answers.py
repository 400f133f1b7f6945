"""What a server answers over HTTP."""

from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import InBandMessage
from gregor.core.state import Item
from gregor.errors import Turn
from gregor.protocol.frames import Result


class Results(Struct, frozen=True):
    """What became of each message, in order."""

    results: tuple[Result, ...]


class StateAnswer(Struct, frozen=True):
    """The live items, and what a replica that shows the same has for a hash."""

    items: tuple[Item, ...]
    as_of: Time
    hash: str


class CountAnswer(Struct, frozen=True):
    """How many items have a category that begins with each prefix."""

    counts: dict[str, int]
    as_of: Time


class MessagesAnswer(Struct, frozen=True):
    """What came since, and the cursor from which to ask next."""

    messages: tuple[InBandMessage, ...]
    cursor: Time


class ReadyAnswer(Struct, frozen=True):
    """This server can do its work. `troubles` are those of parts that it can do without."""

    ready: bool
    troubles: tuple[str, ...]


class ProblemDocument(Struct, frozen=True, omit_defaults=True):
    """An error, as RFC 9457 has it; `code`, `turn` and `field` say what a program needs. Only
    /readyz lists `troubles`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    turn: Turn
    field: str | None = None
    troubles: tuple[str, ...] = ()
