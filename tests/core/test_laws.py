"""The laws of the replicated state, on random histories of one user."""

from collections.abc import Sequence

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.facts import Facts
from gregor.core.instant import Time
from gregor.core.message import DeviceID, InBandMessage, MsgID, create
from gregor.core.state import State
from gregor.core.state_hash import hash_of
from gregor.core.sync import (
    EXPIRY_GRACE,
    After,
    Recipient,
    Since,
    Start,
    just_stored,
    knowledge_in,
    reductions,
    snapshot_of,
    what_is_left,
)
from gregor.testing import oracle
from gregor.testing.strategies import (
    History,
    categories,
    devices,
    histories,
    histories_and_instants,
    late_times,
    messages,
    shuffled,
    times,
)

EMPTY = Facts()


def messages_since(
    history: Sequence[InBandMessage], device_id: DeviceID | None, start: Start, now: Time
) -> list[InBandMessage]:
    later = [message for message in history if message.ctime >= start.first]
    store = knowledge_in(EMPTY.replay_all(history))
    return list(what_is_left(reductions(later, Recipient(device_id, start.known, now), store)))


def as_stored(
    history: Sequence[InBandMessage], device_id: DeviceID | None, known: int
) -> list[InBandMessage]:
    """The messages that are stored after the first `known`, as they are sent to the device."""
    sent = []
    for size in range(known + 1, len(history) + 1):
        facts, message = EMPTY.replay_all(history[:size]), history[size - 1]
        dead, replaced = message.msg_id in facts.dismissed, facts.predecessor(message)
        part = just_stored(message, dead, None if replaced is None else replaced.msg_id)
        sent.append(part and part.addressed_to(device_id))
    return [message for message in sent if message is not None]


def replay_on_device(replica: Facts, messages: Sequence[InBandMessage]) -> Facts:
    """Replay messages as a device does, which keeps nothing of what is dead."""
    for message in messages:
        replica = replica.replay(message).pruned()
    return replica


def known_up_to(history: Sequence[InBandMessage], cursor: Time) -> Facts:
    return EMPTY.replay_all(message for message in history if message.ctime <= cursor)


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
def test_hash_is_of_the_live_items_alone(
    history: History, device_id: DeviceID | None, now: Time
) -> None:
    facts = EMPTY.replay_all(history)
    expected = hash_of(reversed(oracle.live(history, device_id, now)))
    assert facts.hash(device_id, now) == expected
    told = snapshot_of(facts, device_id, now).facts()
    assert told.items.hash(now) == expected, "kept up by adding and subtracting"


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


@given(histories_and_instants(), devices, late_times, st.booleans())
def test_law_since_an_instant_makes_who_knows_what_is_before_it_know_the_present(
    case: tuple[History, Time], device_id: DeviceID | None, now: Time, knows_it: bool
) -> None:
    """With or without the message at that very instant."""
    history, start = case
    known = known_up_to(history, start if knows_it else start - 1)
    sent = messages_since(history, device_id, Since(start), now)
    expected = oracle.visible(history, device_id, now)
    for replica in (known.replay_all(sent), replay_on_device(known.pruned(), sent)):
        assert ctimes_and_ids(replica.state(device_id, now)) == expected


@given(histories_and_instants(), devices, late_times)
def test_law_after_a_cursor_makes_who_knows_all_up_to_it_know_the_present(
    case: tuple[History, Time], device_id: DeviceID | None, now: Time
) -> None:
    history, cursor = case
    known = known_up_to(history, cursor)
    sent = messages_since(history, device_id, After(cursor), now)
    expected = oracle.visible(history, device_id, now)
    for replica in (known.replay_all(sent), replay_on_device(known.pruned(), sent)):
        assert ctimes_and_ids(replica.state(device_id, now)) == expected


@given(histories(), devices, times, late_times, st.integers(0, 8), st.booleans())
def test_law_device_that_is_told_in_order_knows_the_present(
    history: History,
    device_id: DeviceID | None,
    cursor: Time,
    now: Time,
    stored_count: int,
    begins_with_snapshot: bool,
) -> None:
    """It syncs from any cursor, by changes or a snapshot, and is then told what is stored."""
    stored = history[:stored_count]
    cursor = min(cursor, stored[-1].ctime if stored else 0)  # no replica is ahead of the store
    if begins_with_snapshot:
        replica = snapshot_of(EMPTY.replay_all(stored), device_id, now).facts()
    else:
        sent = messages_since(stored, device_id, After(cursor), now)
        replica = replay_on_device(known_up_to(stored, cursor).pruned(), sent)
    replica = replay_on_device(replica, as_stored(history, device_id, len(stored)))
    expected = oracle.visible(history, device_id, now)
    assert ctimes_and_ids(replica.state(device_id, now)) == expected
    assert replica.hash(device_id, now) == hash_of(oracle.live(history, device_id, now))
    assert replica == Facts.of_live(replica.items)


@given(histories(), devices, times, late_times)
def test_messages_since_contain_only_what_is_needed(
    history: History, device_id: DeviceID | None, start: Time, now: Time
) -> None:
    just_live = oracle.live(history, device_id, now - EXPIRY_GRACE)
    ctime_of = {message.msg_id: message.ctime for message in history if message.creation}
    sent = messages_since(history, device_id, Since(start), now)
    assert [message.ctime for message in sent] == sorted({message.ctime for message in sent})
    for message in sent:
        assert message.creation is not None or message.dismissal
        if message.creation is not None:
            assert message.msg_id in {msg_id for _, msg_id in just_live}
        for msg_id in message.dismissal.msg_ids if message.dismissal else ():
            assert ctime_of[msg_id] <= start


# Values


@given(histories())
def test_replay_does_not_change_the_original_facts(history: History) -> None:
    facts, before = EMPTY, []
    for message in history:
        before.append((facts, msgspec.structs.astuple(facts)))
        facts = facts.replay(message)
    for value, contents in before:
        assert msgspec.structs.astuple(value) == contents
