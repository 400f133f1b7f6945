"""What is forgotten of a user's history, and who must begin again because of it.

A user's history floor only rises. What was past at the floor (a message that has done its work: its
item, if it has one, was dead or had expired) may have lost its contents. What stays answers every
question about the floor and later as before: an item that is forgotten is not visible then, and a
dismissal that is forgotten reaches nothing that is stored later, but for the ids that it names,
which are kept. Questions about what was before the floor are refused.

An erase is a floor at the epoch, with nothing kept.
"""

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from gregor.core.facts import Facts
from gregor.core.instant import SECOND, Time
from gregor.core.message import InBandMessage, MsgID
from gregor.core.state_page import PageStart
from gregor.core.sync import After, Since, Start, UserTime
from gregor.core.visibility import At, has_expired
from gregor.errors import Erased, GregorError, HistoryForgotten, Resync

DAY = 86_400 * SECOND


class Cutoff(NamedTuple):
    """What is dead up to `floor` loses its contents. Ids whose contents are gone, and ids that were
    dismissed and have not arrived, are forgotten up to `ids`."""

    floor: Time
    ids: Time


class Retention(NamedTuple):
    """For how long contents and ids are kept, in microseconds; 0: for ever."""

    contents: Time = 90 * DAY
    ids: Time = 400 * DAY

    def cutoff(self, now: Time) -> Cutoff | None:
        """What is forgotten now; None if nothing ever is."""
        if not self.contents:
            return None
        return Cutoff(max(now - self.contents, 0), max(now - self.ids, 0) if self.ids else 0)

    @property
    def ids_days(self) -> int:
        """For how many whole days, at least, an id is kept; 0: for ever."""
        return max(1, self.ids // DAY) if self.contents and self.ids else 0


FOR_EVER = Retention(contents=0)


def is_past(message: InBandMessage, dismissed_at: Time | None, floor: Time) -> bool:
    """Whether a stored message may lose its contents, when the history up to the floor is
    forgotten. Its item, if it has one, was dismissed at this time (None: it was not)."""
    if message.ctime > floor:
        return False
    is_dead = dismissed_at is not None and dismissed_at <= floor
    return message.creation is None or is_dead or has_expired(message.expires_at, floor)


def past_messages(
    log: Iterable[InBandMessage], facts: Facts, floor: Time
) -> dict[MsgID, InBandMessage]:
    """The messages of a log that are past at the floor, by their ids. Without these ids, the facts
    that follow from the log are `facts.forgetting(ids, floor)`."""
    return {m.msg_id: m for m in log if is_past(m, facts.death_of(m.msg_id), floor)}


# Who must begin again

Question: TypeAlias = Start | At | PageStart
"""What a reader asks that has begun before: messages since a start, the state at a stated time, or
a later page of a state."""


def require_remembered(question: Question, user: UserTime) -> None:
    """Raises HistoryForgotten for a question whose answer may be forgotten."""
    if _is_forgotten(question, user):
        raise HistoryForgotten(
            f"the user's history up to {user.floor} is forgotten;"
            " read the state, and go on from its cursor"
        )


def _is_forgotten(question: Question, user: UserTime) -> bool:
    floor = user.floor
    match question:
        case After(cursor):
            return cursor > 0 and user.has_forgotten(cursor)
        case Since(time):
            return 0 < time <= floor
        case At(time):
            return time < floor
        case PageStart(as_of, known):
            # What has died after `known` belongs to the page. Nothing has if the clock stands.
            return as_of < floor or user.has_forgotten(known)


# What is refused


def stored_too_late(floor: Time) -> HistoryForgotten:
    """The error of a stamped message that is not after the history floor. What would have reached
    its item may be forgotten."""
    return HistoryForgotten(
        f"the user's history up to {floor} is forgotten, so no message can be stored in it",
        field="ctime",
    )


def wrong_epoch(known: Time, epoch: Time) -> GregorError:
    """The error of a message whose sender knows another epoch than the user's."""
    if known < epoch:
        return Erased("the user was erased after the sender last heard of it", epoch=epoch)
    return Resync("the store is older than what the sender knows: it was restored from a backup")
