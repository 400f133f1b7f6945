"""The response bodies of the HTTP API."""

from msgspec import Struct

from gregor.core.instant import Time
from gregor.core.message import UID, InBandMessage
from gregor.core.state import Item
from gregor.core.state_page import StatePage
from gregor.errors import Action
from gregor.protocol.frames import Result


class Results(Struct, frozen=True):
    """The result of each message, in order."""

    results: tuple[Result, ...]

    @property
    def should_retry(self) -> bool:
        """Whether to retry the request: the shards of some users did not answer, or a rate is used
        up."""
        return any(result.should_retry for result in self.results)

    @property
    def retry_after(self) -> float:
        """After how many seconds to retry, as far as the results say."""
        errors = (result.error for result in self.results)
        return max((error.retry_after_ms or 0 for error in errors if error), default=0) / 1000


class StateAnswer(Struct, frozen=True):
    """The visible items that were asked for, all or a page of them; the hash of all live items of
    the device; the cursor after which messages continue the state; and the user's epoch, the ctime
    of the last erase. The same request with `page` set to `next_page` has the next page, of the
    same instant; null says that there is none."""

    items: tuple[Item, ...]
    as_of: Time
    hash: str
    cursor: Time
    epoch: Time = 0
    next_page: str | None = None

    @classmethod
    def of(cls, page: StatePage, next_page: str | None = None) -> "StateAnswer":
        """The answer with a page, which is the last one if no token of the next page is given."""
        return cls(page.items, page.as_of, page.hash, page.cursor, page.epoch, next_page)


class CountAnswer(Struct, frozen=True):
    """How many items have a category that begins with each prefix; by segment, how many items
    each category has that was cut before the first dot after the prefix."""

    counts: dict[str, int]
    as_of: Time


class MessagesAnswer(Struct, frozen=True):
    """A page of messages since a start. The next request is `after` the cursor; it finds messages
    that are stored already if there are `more`. `epoch` is the user's: the ctime of the last
    erase."""

    messages: tuple[InBandMessage, ...]
    cursor: Time
    more: bool
    epoch: Time = 0


class PruneAnswer(Struct, frozen=True):
    """What was forgotten: of how many users, how many messages have lost their contents, and how
    many ids are gone."""

    users: int
    contents: int
    ids: int


class EraseAnswer(Struct, frozen=True):
    """The user was erased at the ctime `epoch`. `pending` are the shards that were away: what they
    still have of the user is removed before they serve again."""

    uid: UID
    epoch: Time
    pending: tuple[str, ...] = ()


class ImportProblem(Struct, frozen=True):
    """A line that was refused, and why. Other lines are not affected."""

    line: int
    code: str
    reason: str


class ImportAnswer(Struct, frozen=True):
    """What came of an import: so many users; messages that are stored now, and that were known,
    forgotten ones included; and lines that were refused, the first of which are named. Only if it
    is `complete`, the last user is, and none is missing after it: the line of the end has come."""

    users: int
    stored: int
    known: int
    refused: int
    complete: bool
    problems: tuple[ImportProblem, ...] = ()


class ReadyAnswer(Struct, frozen=True):
    """The readiness of this server. `problems` are those of parts that are not essential."""

    ready: bool
    problems: tuple[str, ...]


class ProblemDocument(Struct, frozen=True, omit_defaults=True):
    """An error as defined by RFC 9457; `code`, `action` and `field` are for programs. Only
    /readyz fills in `problems`, only the error `erased` has an `epoch`, and only `limit` the name
    of the `limit`, its `maximum`, and, where waiting helps, `retry_after_ms`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    action: Action
    field: str | None = None
    problems: tuple[str, ...] = ()
    epoch: Time | None = None
    limit: str | None = None
    maximum: int | None = None
    retry_after_ms: int | None = None
