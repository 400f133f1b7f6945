"""Keeps the consumes of one connection in order when one of them is refused.

A device may send several consumes before the first is answered. If the node refuses consume n, for
which there is something to wait, it must not store what was written after it. So it refuses every
later consume with the same error, until n comes again.

A device of an earlier version counts on: it sends the same messages again with the next number. So
n has come again also if a consume begins with a message of the same id. A single out-of-band
message that is refused is not sent again, and nothing waits for it.
"""

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from gregor.core.message import MsgID
from gregor.errors import Action, GregorError, LimitExceeded
from gregor.protocol.frames import Ack, Consume, Error, Frame

ANSWERS_MS = 100
"""When to send a consume again if too many wait for their answers."""


class _Refused(NamedTuple):
    """The first consume that was refused, with the id of its first message, and why."""

    n: int
    first: MsgID | None
    error: GregorError


class ConsumeOrder:
    """The consumes of one connection: those without an answer, at most `most` (0: any number), and
    the first one that was refused."""

    __slots__ = ("_last_stored", "_most", "_refused", "_unanswered")

    def __init__(self, most: int) -> None:
        self._most = most
        self._unanswered: list[Consume] = []
        self._refused: _Refused | None = None
        self._last_stored = 0  # the highest number

    def waiting(self, consume: Consume) -> GregorError | None:
        """The error of an earlier consume, for which this one has to wait, if it has to."""
        refused = self._refused
        if refused is not None and not _is_again(consume, refused):
            return refused.error
        return None

    def too_many(self) -> LimitExceeded | None:
        """What is wrong if one more consume waits for its answer, if that is too many."""
        if self._most and len(self._unanswered) >= self._most:
            return LimitExceeded(
                f"{self._most} consumes wait for their answers; read these first",
                limit="consumes_in_flight",
                maximum=self._most,
                retry_after_ms=ANSWERS_MS,
            )
        return None

    def received(self, consume: Consume, error: GregorError | None) -> None:
        """A consume is taken, or refused with an error."""
        if error is not None:
            self._refuse(consume, error)
        else:
            self._refused = None
            self._unanswered.append(consume)

    def refused(self, n: int, error: GregorError) -> None:
        """A consume that was taken was not stored."""
        for consume in self._unanswered:
            if consume.n == n:
                self._refuse(consume, error)
                return

    def stored(self, n: int) -> None:
        """A consume that was taken is stored. If it comes again, nothing waits for it."""
        self._last_stored = max(self._last_stored, n)

    def sent(self, frame: Frame) -> None:
        """A frame was sent to the device; it may be an answer."""
        match frame:
            case Ack(n=n) | Error(n=int(n)):
                for place, consume in enumerate(self._unanswered):
                    if consume.n == n:
                        del self._unanswered[place]
                        return

    def _refuse(self, consume: Consume, error: GregorError) -> None:
        if error.action is not Action.RETRY or consume.n <= self._last_stored:
            return
        if self._refused is None and not _is_out_of_band(consume):
            self._refused = _Refused(consume.n, _first_id(consume), error)
        elif self._refused is not None and _is_again(consume, self._refused):
            self._refused = self._refused._replace(error=error)


def _is_again(consume: Consume, refused: _Refused) -> bool:
    if consume.n == refused.n:
        return True
    return refused.first is not None and _first_id(consume) == refused.first


def _first_id(consume: Consume) -> MsgID | None:
    """The id of the first message, if it has one."""
    first = _headed(consume)
    return first.msg_id if isinstance(first.msg_id, str) else None


class _MessageHead(Struct):
    """What is looked at of a message that is not read. Only an out-of-band one has a system."""

    msg_id: Any = None
    system: Any = None


_head_decoder = msgspec.json.Decoder(_MessageHead)


def _headed(consume: Consume) -> _MessageHead:
    """The first message of a consume; what is no message says nothing."""
    if not consume.messages:
        return _MessageHead()
    try:
        return _head_decoder.decode(consume.messages[0])
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _MessageHead()


def _is_out_of_band(consume: Consume) -> bool:
    """Whether it is one out-of-band message and nothing else, as devices send them."""
    return len(consume.messages) == 1 and _headed(consume).system is not None
