"""Hypothesis strategies for one user's messages.

The value space is small on purpose: few ids, few categories, and times close together. So
dismissals match items, ids repeat, and ranges end exactly where an item was created.
"""

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, TypeVar

import msgspec

from gregor.core.history import Cutoff
from gregor.core.instant import SECOND, Time, TimeOrOffset
from gregor.core.message import (
    JSON,
    UID,
    Creation,
    DeviceID,
    Dismissal,
    InBandMessage,
    KeyDismissal,
    MsgID,
    Range,
    raw,
)
from gregor.core.sync import EXPIRY_GRACE
from gregor.errors import InvalidMessage
from gregor.extras import required_extra

with required_extra("testing"):
    from hypothesis import strategies as st

MAX_TIME = 80
MSG_IDS: tuple[MsgID, ...] = tuple(f"m{n}" for n in range(8))
UNKNOWN_IDS: tuple[MsgID, ...] = ("unknown", "é")

History: TypeAlias = tuple[InBandMessage, ...]
Ending = TypeVar("Ending", Range, KeyDismissal)

times: st.SearchStrategy[Time] = st.integers(0, MAX_TIME)
"""Times in and around a history."""

late_times: st.SearchStrategy[Time] = times | times.map(lambda time: time + EXPIRY_GRACE)
"""Times in and around a history, and times at which what has expired then is no longer sent."""

devices: st.SearchStrategy[DeviceID | None] = st.sampled_from([None, "d1", "d2"])
categories = st.sampled_from(["a", "a.b", "a.b.c", "ab", "b", "A", "%", "a_b", "é"])
_bodies: list[JSON] = [None, 1, "x", {"b": 1, "a": [2]}]
bodies = st.sampled_from(_bodies).map(raw)

ids = st.sampled_from([*MSG_IDS, *UNKNOWN_IDS])
end_times = st.one_of(
    st.none(),
    times.map(lambda time: TimeOrOffset(time=time)),
    st.integers(-30, 30).map(lambda offset: TimeOrOffset(offset=offset)),
)
expiries = st.one_of(
    st.none(),
    st.none(),
    times.map(lambda time: TimeOrOffset(time=time)),
    st.integers(0, 30).map(lambda offset: TimeOrOffset(offset=offset)),
)
keys = st.sampled_from(["k", "l"])


@st.composite
def creations(draw: st.DrawFn) -> Creation:
    """A creation, often with a key; its start is often before its expiry, or at most where only
    the ctime decides that."""
    category, body, expires = draw(categories), draw(bodies), draw(expiries)
    key = draw(st.none() | keys)
    try:
        return Creation(category, body, expires, draw(expiries), key)
    except InvalidMessage:  # a start that is not before the expiry
        return Creation(category, body, expires, None, key)


ranges = st.builds(
    Range,
    categories,
    end_times,
    st.lists(ids, max_size=2).map(tuple),
    prefix=st.booleans(),
    scheduled=st.booleans(),
)
key_dismissals = st.builds(KeyDismissal, keys, end_times)
dismissals = st.builds(
    Dismissal,
    st.lists(ids, max_size=3).map(tuple),
    st.lists(ranges, max_size=2).map(tuple),
    st.lists(key_dismissals, max_size=2).map(tuple),
).filter(bool)


@st.composite
def messages(draw: st.DrawFn, msg_ids: Sequence[MsgID] = MSG_IDS) -> InBandMessage:
    """A message as a sender writes it: a creation, a dismissal, or both."""
    kind = draw(st.sampled_from(["creation", "dismissal", "update"]))
    return InBandMessage(
        uid="user",
        msg_id=draw(st.sampled_from(msg_ids)),
        device_id=draw(devices),
        creation=None if kind == "dismissal" else draw(creations()),
        dismissal=None if kind == "creation" else draw(dismissals),
    )


@st.composite
def histories(draw: st.DrawFn, max_size: int = 8) -> History:
    """One user's log in a state machine of record: stamped messages, in order. The order of the
    ids is random, so dismissals name both earlier and later items."""
    size = draw(st.integers(0, max_size))
    order = draw(st.permutations(MSG_IDS))[:size]
    history: list[InBandMessage] = []
    ctime = 0
    for msg_id in order:
        prev, ctime = ctime, ctime + draw(st.integers(1, 9))
        history.append(draw(messages((msg_id,))).stamp(ctime, prev))
    return tuple(history)


@st.composite
def histories_and_instants(draw: st.DrawFn) -> tuple[History, Time]:
    """A history, and a time that is often that of one of its messages, or next to it."""
    history = draw(histories())
    edges = [message.ctime + step for message in history for step in (0, 0, 1, -1)]
    return history, draw(st.sampled_from(edges) | times if edges else times)


class WriteStep(NamedTuple):
    """A step of a life: a batch of messages, each with the difference between the epoch that its
    sender knows and the user's (None: not checked). Without a ctime, they are new."""

    messages: tuple[tuple[InBandMessage, int | None], ...]


class ForgetStep(NamedTuple):
    """A step of a life: the history is pruned."""

    cutoff: Cutoff


class EraseStep(NamedTuple):
    """A step of a life: the user is erased."""


LifeStep: TypeAlias = WriteStep | ForgetStep | EraseStep
Life: TypeAlias = list[tuple[Time, LifeStep]]
"""What happens to a user, with what the clock shows at each step."""

_known_epochs = st.sampled_from([None, None, None, 0, 0, -1, 1])


@st.composite
def writes(draw: st.DrawFn) -> WriteStep:
    """New messages and replays, with ids and ctimes that collide."""
    stamps = times.filter(bool) | st.just(0)
    sent = draw(st.lists(st.tuples(messages(), stamps, _known_epochs), max_size=4))
    return WriteStep(tuple((message.stamp(ctime, 0), epoch) for message, ctime, epoch in sent))


_id_cutoffs = st.just(0) | times


def _cutoff(floor: Time, ids: Time) -> Cutoff:
    """An id outlives the contents of its message, as the settings require."""
    return Cutoff(floor, min(ids, floor))


def lives(ids: st.SearchStrategy[Time] = _id_cutoffs, max_size: int = 7) -> st.SearchStrategy[Life]:
    """With ids that are forgotten up to these times."""
    forgets = st.builds(ForgetStep, st.builds(_cutoff, times, ids))
    steps = st.one_of(writes(), writes(), writes(), forgets, forgets, st.just(EraseStep()))
    return st.lists(st.tuples(times, steps), max_size=max_size)


@st.composite
def shuffled(draw: st.DrawFn, history: Sequence[InBandMessage]) -> list[InBandMessage]:
    """The same messages in random order, each at least once."""
    if not history:
        return []
    repeated = draw(st.lists(st.sampled_from(history), max_size=len(history)))
    return draw(st.permutations([*history, *repeated]))


def in_seconds(message: InBandMessage, start: Time) -> InBandMessage:
    """The same message with each time and offset, but not its ctime, in seconds instead of
    microseconds: times from `start` on. So items last for longer than a batch takes."""
    creation, dismissal = message.creation, message.dismissal
    if creation is not None:
        creation = msgspec.structs.replace(
            creation,
            expires=_in_seconds(creation.expires, start),
            starts=_in_seconds(creation.starts, start),
        )
    if dismissal is not None:
        dismissal = msgspec.structs.replace(
            dismissal,
            ranges=tuple(_ending_in_seconds(range_, start) for range_ in dismissal.ranges),
            keys=tuple(_ending_in_seconds(key, start) for key in dismissal.keys),
        )
    return msgspec.structs.replace(message, creation=creation, dismissal=dismissal)


def _ending_in_seconds(part: Ending, start: Time) -> Ending:
    return msgspec.structs.replace(part, end_time=_in_seconds(part.end_time, start))


def _in_seconds(instant: TimeOrOffset | None, start: Time) -> TimeOrOffset | None:
    if instant is None:
        return None
    if instant.offset is not None:
        return TimeOrOffset(offset=instant.offset * SECOND)
    return TimeOrOffset(time=start + instant.after(0) * SECOND)


def of_user(uid: UID, history: Sequence[InBandMessage]) -> list[InBandMessage]:
    """The same messages with another uid."""
    return [msgspec.structs.replace(message, uid=uid) for message in history]
