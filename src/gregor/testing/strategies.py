"""Hypothesis strategies for one user's messages.

The worlds are small on purpose: few ids, few categories, and times that lie close together, so
that dismissals hit, ids repeat, ranges end just there where an item was made.
"""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
from hypothesis import strategies as st

from gregor.core.instant import Time, TimeOrOffset
from gregor.core.message import (
    JSON,
    UID,
    Creation,
    DeviceID,
    Dismissal,
    InBandMessage,
    MsgID,
    Range,
    raw,
)

MOST_TIME = 80
MSG_IDS: tuple[MsgID, ...] = tuple(f"m{n}" for n in range(8))
STRANGE_IDS: tuple[MsgID, ...] = ("nobody", "é")

History: TypeAlias = tuple[InBandMessage, ...]

times: st.SearchStrategy[Time] = st.integers(0, MOST_TIME)
"""Times around those of a history."""

devices: st.SearchStrategy[DeviceID | None] = st.sampled_from([None, "d1", "d2"])
categories = st.sampled_from(["a", "a.b", "a.b.c", "ab", "b", "A", "%", "a_b", "é"])
_bodies: list[JSON] = [None, 1, "x", {"b": 1, "a": [2]}]
bodies = st.sampled_from(_bodies).map(raw)

ids = st.sampled_from([*MSG_IDS, *STRANGE_IDS])
ends = st.one_of(
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
creations = st.builds(Creation, categories, bodies, expiries)
ranges = st.builds(
    Range, categories, ends, st.lists(ids, max_size=2).map(tuple), prefix=st.booleans()
)
dismissals = st.builds(
    Dismissal, st.lists(ids, max_size=3).map(tuple), st.lists(ranges, max_size=2).map(tuple)
).filter(bool)


@st.composite
def messages(draw: st.DrawFn, msg_ids: Sequence[MsgID] = MSG_IDS) -> InBandMessage:
    """A message as a sender writes it: a creation, a dismissal, or both."""
    kind = draw(st.sampled_from(["creation", "dismissal", "update"]))
    return InBandMessage(
        uid="user",
        msg_id=draw(st.sampled_from(msg_ids)),
        device_id=draw(devices),
        creation=None if kind == "dismissal" else draw(creations),
        dismissal=None if kind == "creation" else draw(dismissals),
    )


@st.composite
def histories(draw: st.DrawFn, max_size: int = 8) -> History:
    """What a state machine of record has of one user: stamped messages, in order. Which id comes
    when is left to chance, so that dismissals name items of the past and of the future."""
    size = draw(st.integers(0, max_size))
    order = draw(st.permutations(MSG_IDS))[:size]
    history: list[InBandMessage] = []
    ctime = 0
    for msg_id in order:
        prev, ctime = ctime, ctime + draw(st.integers(1, 9))
        history.append(draw(messages((msg_id,))).stamp(ctime, prev))
    return tuple(history)


@st.composite
def shuffled(draw: st.DrawFn, history: Sequence[InBandMessage]) -> list[InBandMessage]:
    """The same messages, each at least once, in any order."""
    if not history:
        return []
    repeated = draw(st.lists(st.sampled_from(history), max_size=len(history)))
    return draw(st.permutations([*history, *repeated]))


def of_user(uid: UID, history: Sequence[InBandMessage]) -> list[InBandMessage]:
    """The same history as another user's."""
    return [msgspec.structs.replace(message, uid=uid) for message in history]
