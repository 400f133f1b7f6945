"""The laws of the replicated state, on random histories of one user."""

from collections.abc import Sequence
from functools import partial

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, MsgID, create
from gregor.core.state import Facts, Known, State, hash_of, since
from gregor.testing import oracle
from gregor.testing.strategies import (
    History,
    categories,
    devices,
    histories,
    messages,
    shuffled,
    times,
)

EMPTY = Facts()


def known_to(facts: Facts, now: Time, msg_id: MsgID) -> Known | None:
    """What a store that has these facts says of an item."""
    item = facts.find(msg_id)
    if item is None:
        return None
    return Known(item.ctime, item.device_id, msg_id in facts.items and not item.expired(now))


def messages_since(
    history: Sequence[InBandMessage], device_id: DeviceID | None, start: Time, now: Time
) -> list[InBandMessage]:
    later = [message for message in history if message.ctime >= start]
    known = partial(known_to, EMPTY.replay_all(history), now)
    return list(since(later, device_id, start, known))


def names(state: State) -> list[tuple[Time, MsgID]]:
    return [item.order() for item in state]


@st.composite
def rumours(draw: st.DrawFn) -> Facts:
    """What a replica knows that was told anything by anybody: here one id may stand for
    messages with different contents."""
    told = draw(st.lists(st.tuples(messages(("m0", "m1", "m2")), st.integers(1, 9)), max_size=5))
    return EMPTY.replay_all(message.stamp(ctime, 0) for message, ctime in told)


# Order and repetition


@given(histories().flatmap(lambda history: st.tuples(st.just(history), shuffled(history))))
def test_facts_are_the_same_in_any_order_however_often_they_are_told(
    world: tuple[History, list[InBandMessage]],
) -> None:
    history, in_disorder = world
    assert EMPTY.replay_all(in_disorder) == EMPTY.replay_all(history)


@given(rumours(), rumours())
def test_join_is_commutative(a: Facts, b: Facts) -> None:
    assert a.join(b) == b.join(a)


@given(rumours(), rumours(), rumours())
def test_join_is_associative(a: Facts, b: Facts, c: Facts) -> None:
    assert a.join(b.join(c)) == a.join(b).join(c)


@given(rumours())
def test_join_is_idempotent(a: Facts) -> None:
    assert a.join(a) == a


@given(rumours())
def test_join_with_nothing_changes_nothing(a: Facts) -> None:
    assert a.join(EMPTY) == a
    assert EMPTY.join(a) == a


@given(
    st.lists(st.tuples(messages(("m0", "m1", "m2", "m3")), st.integers(1, 9)), max_size=6),
    st.integers(0, 6),
)
def test_to_join_is_to_replay_what_the_other_was_told(
    told: list[tuple[InBandMessage, Time]], split: int
) -> None:
    stamped = [message.stamp(ctime, 0) for message, ctime in told]
    ours, theirs = stamped[:split], stamped[split:]
    assert EMPTY.replay_all(ours).join(EMPTY.replay_all(theirs)) == EMPTY.replay_all(stamped)


@given(histories(), st.integers(0, 8), times)
def test_knowing_more_never_brings_an_item_back(history: History, known: int, now: Time) -> None:
    facts = EMPTY.replay_all(history[:known])
    dead = set(facts.dead) | set(facts.ids)
    assert not dead & {item.msg_id for item in facts.replay_all(history).state(None, now)}


def test_where_one_id_has_two_contents_the_smaller_stands() -> None:
    early = create("user", "a", "early", msg_id="m").stamp(1, 0)
    late = create("user", "a", "a", msg_id="m").stamp(2, 0)
    bigger = create("user", "b", "a", msg_id="m").stamp(1, 0)
    for order in ([early, late, bigger], [bigger, late, early], [late, bigger, early]):
        (item,) = EMPTY.replay_all(order).state(None, 9)
        assert (item.ctime, item.category, item.body) == (1, "a", "early")


# What is visible


@given(histories(), devices, times)
def test_the_present_is_what_the_definition_says(
    history: History, device_id: DeviceID | None, now: Time
) -> None:
    state = EMPTY.replay_all(history).state(device_id, now)
    assert names(state) == oracle.visible(history, device_id, now)


@given(histories(), devices, times)
def test_the_past_is_what_the_definition_says_whatever_has_happened_since(
    history: History, device_id: DeviceID | None, at: Time
) -> None:
    state = EMPTY.replay_all(history).state_at(device_id, at)
    assert names(state) == oracle.visible(history, device_id, now=0, at=at)
    told_by_then = [message for message in history if message.ctime <= at]
    assert names(state) == oracle.visible(told_by_then, device_id, now=0, at=at)


@given(histories(), devices, times)
def test_the_hash_is_of_what_is_visible_and_of_nothing_else(
    history: History, device_id: DeviceID | None, now: Time
) -> None:
    state = EMPTY.replay_all(history).state(device_id, now)
    assert state.hash() == hash_of(reversed(oracle.visible(history, device_id, now)))


@given(histories(), categories, times)
def test_a_count_is_the_size_of_what_begins_with_the_prefix(
    history: History, prefix: str, now: Time
) -> None:
    state = EMPTY.replay_all(history).state(None, now)
    expected = [item for item in state if item.category.encode().startswith(prefix.encode())]
    assert list(state.with_prefix(prefix)) == expected
    assert state.count(prefix) == len(expected)
    assert state.count() == len(state)


# Messages since


@given(histories(), devices, times, times)
def test_what_was_known_before_and_the_messages_since_make_the_present(
    history: History, device_id: DeviceID | None, start: Time, now: Time
) -> None:
    before = EMPTY.replay_all(message for message in history if message.ctime < start)
    replica = before.replay_all(messages_since(history, device_id, start, now))
    assert names(replica.state(device_id, now)) == oracle.visible(history, device_id, now)


@given(histories(), devices, times, times, st.integers(0, 8))
def test_a_device_that_forgets_and_hears_only_what_concerns_it_keeps_up(
    history: History, device_id: DeviceID | None, cursor: Time, now: Time, live: int
) -> None:
    def heard(messages: Sequence[InBandMessage]) -> list[InBandMessage]:
        addressed = (message.addressed_to(device_id) for message in messages)
        return [message for message in addressed if message is not None]

    stored, to_come = history[:live], history[live:]
    clock = stored[-1].ctime if stored else 0
    cursor = min(cursor, clock)  # nobody was told of what is to come
    replica = EMPTY.replay_all(heard([m for m in stored if m.ctime <= cursor])).forget(cursor)
    replica = replica.replay_all(messages_since(stored, device_id, cursor + 1, now))
    replica = replica.forget(clock)
    replica = replica.replay_all(heard(to_come))
    assert names(replica.state(device_id, now)) == oracle.visible(history, device_id, now)


@given(histories(), devices, times, times)
def test_messages_since_say_nothing_in_vain(
    history: History, device_id: DeviceID | None, start: Time, now: Time
) -> None:
    shown = {msg_id for _, msg_id in oracle.visible(history, device_id, now)}
    sent = messages_since(history, device_id, start, now)
    assert [message.ctime for message in sent] == sorted({message.ctime for message in sent})
    for message in sent:
        assert message.creation is not None or message.dismissal
        assert message.creation is None or message.msg_id in shown


# Values


@given(histories())
def test_replaying_leaves_the_facts_it_began_with_as_they_were(history: History) -> None:
    facts, before = EMPTY, []
    for message in history:
        before.append((facts, msgspec.structs.astuple(facts)))
        facts = facts.replay(message)
    for value, contents in before:
        assert msgspec.structs.astuple(value) == contents
