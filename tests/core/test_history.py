"""The laws of the history floor, on random histories of one user."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.facts import Facts
from gregor.core.history import (
    DAY,
    Cutoff,
    Question,
    Retention,
    past_messages,
    require_remembered,
    stored_too_late,
    wrong_epoch,
)
from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, create, dismiss
from gregor.core.state_page import PageStart
from gregor.core.sync import (
    After,
    Recipient,
    Since,
    Start,
    UserTime,
    knowledge_in,
    reductions,
    snapshot_of,
    what_is_left,
)
from gregor.core.visibility import At
from gregor.errors import Action, Erased, HistoryForgotten
from gregor.testing import oracle
from gregor.testing.strategies import (
    History,
    devices,
    histories,
    histories_and_instants,
    late_times,
    times,
)
from tests.core.test_laws import EMPTY, ctimes_and_ids, known_up_to, replay_on_device


class Remembered(NamedTuple):
    """What a store has of a user: a log, and the facts that follow from it."""

    log: tuple[InBandMessage, ...]
    facts: Facts

    @classmethod
    def of(cls, history: Sequence[InBandMessage]) -> "Remembered":
        return cls(tuple(history), EMPTY.replay_all(history))

    def forgetting(self, floor: Time) -> "Remembered":
        past = past_messages(self.log, self.facts, floor)
        log = tuple(message for message in self.log if message.msg_id not in past)
        return Remembered(log, self.facts.forgetting(past.keys(), floor))

    def followed_by(self, messages: Sequence[InBandMessage]) -> "Remembered":
        return Remembered((*self.log, *messages), self.facts.replay_all(messages))

    def messages_since(
        self, device_id: DeviceID | None, start: Start, now: Time
    ) -> Sequence[InBandMessage]:
        log = [message for message in self.log if message.ctime >= start.first]
        recipient = Recipient(device_id, start.known, now)
        return what_is_left(reductions(log, recipient, knowledge_in(self.facts)))


def clock_of(history: Sequence[InBandMessage]) -> Time:
    return history[-1].ctime if history else 0


def is_answered(question: Question, user: UserTime) -> bool:
    try:
        require_remembered(question, user)
    except HistoryForgotten:
        return False
    return True


# What is forgotten changes no answer


@given(histories_and_instants())
def test_law_past_is_what_has_done_its_work(case: tuple[History, Time]) -> None:
    history, floor = case
    kept = Remembered.of(history).forgetting(floor)
    gone = {message.msg_id for message in history} - {message.msg_id for message in kept.log}
    assert gone == oracle.past(history, floor)
    assert set(kept.facts.tombstones) & gone == set()
    for message in kept.log:
        if message.creation is not None:
            assert kept.facts.find(message.msg_id) is not None, "its item is known"


@given(histories_and_instants(), devices, times)
def test_law_nothing_changes_now_or_at_the_floor_and_later(
    case: tuple[History, Time], device_id: DeviceID | None, time: Time
) -> None:
    history, floor = case
    whole = EMPTY.replay_all(history)
    kept, later = Remembered.of(history).forgetting(floor).facts, max(floor, time)
    assert kept.state(device_id, later) == whole.state(device_id, later)
    assert kept.hash(device_id, later) == whole.hash(device_id, later)
    for at in (floor, later):
        assert kept.state_at(device_id, at) == whole.state_at(device_id, at)
        assert ctimes_and_ids(kept.state_at(device_id, at)) == oracle.visible(
            history, device_id, 0, at
        )


@given(histories_and_instants(), devices, times, times)
def test_law_page_of_a_state_that_is_answered_is_right(
    case: tuple[History, Time], device_id: DeviceID | None, as_of: Time, known: Time
) -> None:
    """The state was read before the history was forgotten, and before later messages came."""
    history, floor = case
    start = PageStart(as_of, min(known, clock_of(history)), "", 0, "")
    if not is_answered(start, UserTime(clock_of(history), floor=floor)):
        return
    whole, kept = EMPTY.replay_all(history), Remembered.of(history).forgetting(floor).facts
    state = kept.state_at(device_id, start.as_of, start.known)
    assert state == whole.state_at(device_id, start.as_of, start.known)


@given(histories_and_instants(), devices, times, late_times, st.booleans())
def test_law_who_knows_all_up_to_an_answered_start_is_told_the_present(
    case: tuple[History, Time],
    device_id: DeviceID | None,
    known: Time,
    now: Time,
    asks_since: bool,
) -> None:
    history, floor = case
    known = min(known, clock_of(history))
    start: Start = Since(known) if asks_since else After(known)
    if not is_answered(start, UserTime(clock_of(history), floor=floor)):
        return
    now = max(now, floor)
    sent = Remembered.of(history).forgetting(floor).messages_since(device_id, start, now)
    facts = known_up_to(history, known)
    expected = oracle.visible(history, device_id, now)
    for replica in (facts.replay_all(sent), replay_on_device(facts.pruned(), sent)):
        assert ctimes_and_ids(replica.state(device_id, now)) == expected


@given(histories_and_instants(), devices, late_times)
def test_law_snapshot_is_the_present(
    case: tuple[History, Time], device_id: DeviceID | None, now: Time
) -> None:
    history, floor = case
    now = max(now, floor)
    snapshot = snapshot_of(Remembered.of(history).forgetting(floor).facts, device_id, now).facts()
    assert ctimes_and_ids(snapshot.state(device_id, now)) == oracle.visible(history, device_id, now)
    whole = EMPTY.replay_all(history)
    assert snapshot.hash(device_id, now) == whole.hash(device_id, now)


# A floor is a merge


@given(histories_and_instants(), times)
def test_law_floors_compose_to_their_maximum_in_any_order(
    case: tuple[History, Time], other: Time
) -> None:
    history, floor = case
    whole = Remembered.of(history)
    highest = whole.forgetting(max(floor, other))
    assert whole.forgetting(floor).forgetting(other) == highest
    assert whole.forgetting(other).forgetting(floor) == highest
    assert highest.forgetting(floor) == highest


@given(histories_and_instants(), st.integers(0, 8))
def test_law_what_is_stored_after_the_floor_may_come_before_or_after_it_rises(
    case: tuple[History, Time], stored: int
) -> None:
    """The floor may rise before what is after it arrives, at any moment between, or at last."""
    history, floor = case
    last = Remembered.of(history).forgetting(floor)
    after = [message for message in history if message.ctime > floor]
    before = history[: len(history) - len(after)]
    middle = Remembered.of([*before, *after[:stored]]).forgetting(floor).followed_by(after[stored:])
    for other in (middle, middle.forgetting(floor)):
        assert other.log == last.log
        assert dict(other.facts.dismissed) == dict(last.facts.dismissed)
        assert other.facts.items == last.facts.items


@given(histories(), times)
def test_law_dead_id_that_arrives_after_its_dismissal_is_forgotten_stays_dead(
    history: History, floor: Time
) -> None:
    kept = Remembered.of(history).forgetting(floor).facts
    arrived = {message.msg_id for message in history}
    for message in history:
        for msg_id in () if message.dismissal is None else message.dismissal.msg_ids:
            if msg_id not in arrived:
                late = create("user", "a", msg_id=msg_id).stamp(999, 0)
                assert msg_id in kept.replay(late).dismissed


# Which questions are answered

LATE = UserTime(clock=30, floor=20)
EARLY = UserTime(clock=10, floor=20)
NEVER = UserTime(clock=30)


@pytest.mark.parametrize(
    ("user", "question", "answered"),
    [
        (LATE, After(0), True),
        (LATE, After(1), False),
        (LATE, After(19), False),
        (LATE, After(20), True),
        (LATE, After(30), True),
        (EARLY, After(9), False),
        (EARLY, After(10), True),
        (LATE, Since(-5), True),
        (LATE, Since(0), True),
        (LATE, Since(1), False),
        (LATE, Since(20), False),
        (LATE, Since(21), True),
        (LATE, At(0), False),
        (LATE, At(19), False),
        (LATE, At(20), True),
        (LATE, At(99), True),
        (LATE, PageStart(19, 19, "", 0, ""), False),
        (LATE, PageStart(25, 19, "", 0, ""), False),
        (LATE, PageStart(20, 20, "", 0, ""), True),
        (EARLY, PageStart(20, 10, "", 0, ""), True),
        (EARLY, PageStart(20, 9, "", 0, ""), False),
        (EARLY, PageStart(19, 10, "", 0, ""), False),
        (NEVER, After(1), True),
        (NEVER, Since(1), True),
        (NEVER, At(0), True),
        (NEVER, PageStart(1, 1, "", 0, ""), True),
    ],
)
def test_question_is_answered_or_refused(
    user: UserTime, question: Question, answered: bool
) -> None:
    assert is_answered(question, user) == answered


def test_refusal_says_what_to_do() -> None:
    with pytest.raises(HistoryForgotten, match="up to 20 is forgotten; read the state") as raised:
        require_remembered(At(3), LATE)
    assert raised.value.action is Action.RESYNC


@pytest.mark.parametrize(
    ("user", "continued"),
    [
        (LATE, {20, 25, 30}),
        (EARLY, {10}),
        (NEVER, {0, 9, 10, 19, 20, 25, 30}),
        (UserTime(clock=30, mark=25, floor=20), {25, 30}),
        (UserTime(clock=30, mark=9, floor=20), {20, 25, 30}),
        (UserTime(clock=0), {0}),
    ],
)
def test_cursors_that_get_changes(user: UserTime, continued: set[Time]) -> None:
    asked = (0, 9, 10, 19, 20, 25, 30, 31)
    assert {cursor for cursor in asked if user.continues(cursor)} == continued


def test_next_ctime_is_after_the_clock_and_the_floor() -> None:
    assert [UserTime(5, floor=9).next_ctime(now) for now in (0, 9, 10, 50)] == [10, 10, 10, 50]
    assert UserTime(9, floor=5).next_ctime(0) == 10


# What is refused, and for how long what is kept


def test_refusals_name_the_field_and_the_epoch() -> None:
    assert stored_too_late(20).field == "ctime"
    error = wrong_epoch(3, 7)
    assert isinstance(error, Erased)
    assert error.epoch == 7
    assert wrong_epoch(9, 7).action is Action.RESYNC


@pytest.mark.parametrize(
    ("retention", "cutoff", "ids_days"),
    [
        (Retention(), Cutoff(910 * DAY, 600 * DAY), 400),
        (Retention(contents=0), None, 0),
        (Retention(contents=0, ids=5 * DAY), None, 0),
        (Retention(ids=0), Cutoff(910 * DAY, 0), 0),
        (Retention(contents=2_000 * DAY, ids=3_000 * DAY), Cutoff(0, 0), 3_000),
    ],
)
def test_retention_is_a_cutoff_at_each_instant(
    retention: Retention, cutoff: Cutoff | None, ids_days: int
) -> None:
    assert retention.cutoff(1_000 * DAY) == cutoff
    assert retention.ids_days == ids_days


def test_creation_and_what_it_dismissed_are_forgotten_apart() -> None:
    """An update stays with its live item, though its dismissal has done its work."""
    first = create("user", "a", msg_id="1").stamp(1, 0)
    update = create("user", "a", msg_id="2").stamp(2, 1)
    update = msgspec.structs.replace(update, dismissal=dismiss("user", "1").dismissal)
    kept = Remembered.of([first, update]).forgetting(5)
    assert kept.log == (update,)
