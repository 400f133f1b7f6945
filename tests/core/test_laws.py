"""The laws of the replicated state, on random histories of one user."""

from collections.abc import Sequence
from functools import partial

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, MsgID, create
from gregor.core.state import State, state_hash
from gregor.core.sync import fate_in, since
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


def messages_since(
    history: Sequence[InBandMessage], device_id: DeviceID | None, start: Time, now: Time
) -> list[InBandMessage]:
    later = [message for message in history if message.ctime >= start]
    fate_of = partial(fate_in, EMPTY.replay_all(history))
    return list(since(later, device_id, start, now, fate_of))


def ctimes_and_ids(state: State) -> list[tuple[Time, MsgID]]:
    return [item.order() for item in state]


@st.composite
def conflicting_facts(draw: st.DrawFn) -> Facts:
    """Facts of messages that no single store would accept: several messages with different
    contents may have the same msg_id."""
    pairs = draw(st.lists(st.tuples(messages(("m0", "m1", "m2")), st.integers(1, 9)), max_size=5))
    return EMPTY.replay_all(message.stamp(ctime, 0) for message, ctime in pairs)


# Order and repetition


@given(histories().flatmap(lambda history: st.tuples(st.just(history), shuffled(history))))
def test_replay_is_idempotent_and_independent_of_order(
    history_and_shuffled: tuple[History, list[InBandMessage]],
) -> None:
    history, reordered = history_and_shuffled
    assert EMPTY.replay_all(reordered) == EMPTY.replay_all(history)


@given(conflicting_facts(), conflicting_facts())
def test_join_is_commutative(a: Facts, b: Facts) -> None:
    assert a.join(b) == b.join(a)


@given(conflicting_facts(), conflicting_facts(), conflicting_facts())
def test_join_is_associative(a: Facts, b: Facts, c: Facts) -> None:
    assert a.join(b.join(c)) == a.join(b).join(c)


@given(conflicting_facts())
def test_join_is_idempotent(a: Facts) -> None:
    assert a.join(a) == a


@given(conflicting_facts())
def test_join_with_empty_facts_changes_nothing(a: Facts) -> None:
    assert a.join(EMPTY) == a
    assert EMPTY.join(a) == a


@given(
    st.lists(st.tuples(messages(("m0", "m1", "m2", "m3")), st.integers(1, 9)), max_size=6),
    st.integers(0, 6),
)
def test_join_equals_replay_of_the_messages_of_both_replicas(
    pairs: list[tuple[InBandMessage, Time]], split: int
) -> None:
    stamped = [message.stamp(ctime, 0) for message, ctime in pairs]
    first, second = EMPTY.replay_all(stamped[:split]), EMPTY.replay_all(stamped[split:])
    assert first.join(second) == EMPTY.replay_all(stamped)


@given(histories(), st.integers(0, 8), times)
def test_dead_item_stays_dead_after_more_messages(history: History, known: int, now: Time) -> None:
    facts = EMPTY.replay_all(history[:known])
    dead = set(facts.dismissed) | set(facts.tombstones)
    assert not dead & {item.msg_id for item in facts.replay_all(history).state(None, now)}


def test_creation_with_the_smallest_rank_wins_in_a_conflict_of_ids() -> None:
    early = create("user", "a", "early", msg_id="m").stamp(1, 0)
    late = create("user", "a", "a", msg_id="m").stamp(2, 0)
    greater = create("user", "b", "a", msg_id="m").stamp(1, 0)
    for order in ([early, late, greater], [greater, late, early], [late, greater, early]):
        (item,) = EMPTY.replay_all(order).state(None, 9)
        assert (item.ctime, item.category, item.body) == (1, "a", "early")


# What is visible


@given(histories(), devices, times)
def test_present_state_equals_the_oracle(
    history: History, device_id: DeviceID | None, now: Time
) -> None:
    state = EMPTY.replay_all(history).state(device_id, now)
    assert ctimes_and_ids(state) == oracle.visible(history, device_id, now)


@given(histories(), devices, times)
def test_past_state_equals_the_oracle_and_ignores_later_messages(
    history: History, device_id: DeviceID | None, at: Time
) -> None:
    state = EMPTY.replay_all(history).state_at(device_id, at)
    assert ctimes_and_ids(state) == oracle.visible(history, device_id, now=0, at=at)
    earlier = [message for message in history if message.ctime <= at]
    assert ctimes_and_ids(state) == oracle.visible(earlier, device_id, now=0, at=at)


@given(histories(), devices, times)
def test_hash_depends_only_on_the_visible_items(
    history: History, device_id: DeviceID | None, now: Time
) -> None:
    state = EMPTY.replay_all(history).state(device_id, now)
    assert state.hash() == state_hash(reversed(oracle.visible(history, device_id, now)))


@given(histories(), categories, times)
def test_count_is_the_number_of_items_with_the_prefix(
    history: History, prefix: str, now: Time
) -> None:
    state = EMPTY.replay_all(history).state(None, now)
    expected = [item for item in state if item.category.encode().startswith(prefix.encode())]
    assert list(state.with_prefix(prefix)) == expected
    assert state.count(prefix) == len(expected)
    assert state.count() == len(state)


# Messages since


@given(histories(), devices, times, times)
def test_facts_before_and_messages_since_give_the_present_state(
    history: History, device_id: DeviceID | None, start: Time, now: Time
) -> None:
    before = EMPTY.replay_all(message for message in history if message.ctime < start)
    replica = before.replay_all(messages_since(history, device_id, start, now))
    assert ctimes_and_ids(replica.state(device_id, now)) == oracle.visible(history, device_id, now)


@given(histories(), devices, times, times, st.integers(0, 8))
def test_pruned_replica_that_receives_only_addressed_messages_equals_the_oracle(
    history: History, device_id: DeviceID | None, cursor: Time, now: Time, stored_count: int
) -> None:
    def received(messages: Sequence[InBandMessage]) -> list[InBandMessage]:
        addressed = (message.addressed_to(device_id) for message in messages)
        return [message for message in addressed if message is not None]

    stored, later = history[:stored_count], history[stored_count:]
    clock = stored[-1].ctime if stored else 0
    cursor = min(cursor, clock)  # no replica is ahead of the store
    replica = EMPTY.replay_all(received([m for m in stored if m.ctime <= cursor])).prune(cursor)
    replica = replica.replay_all(messages_since(stored, device_id, cursor + 1, now))
    replica = replica.prune(clock)
    replica = replica.replay_all(received(later))
    assert ctimes_and_ids(replica.state(device_id, now)) == oracle.visible(history, device_id, now)


@given(histories(), devices, times, times)
def test_messages_since_contain_only_what_is_needed(
    history: History, device_id: DeviceID | None, start: Time, now: Time
) -> None:
    visible_ids = {msg_id for _, msg_id in oracle.visible(history, device_id, now)}
    reduced = messages_since(history, device_id, start, now)
    assert [message.ctime for message in reduced] == sorted({message.ctime for message in reduced})
    for message in reduced:
        assert message.creation is not None or message.dismissal
        assert message.creation is None or message.msg_id in visible_ids


# Values


@given(histories())
def test_replay_does_not_change_the_original_facts(history: History) -> None:
    facts, before = EMPTY, []
    for message in history:
        before.append((facts, msgspec.structs.astuple(facts)))
        facts = facts.replay(message)
    for value, contents in before:
        assert msgspec.structs.astuple(value) == contents
