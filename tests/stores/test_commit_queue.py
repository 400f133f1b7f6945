"""Whose turn it is in a commit: laws of the queue."""

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gregor.core.message import Dismissal, InBandMessage, Range, create, put
from gregor.interfaces import Slot
from gregor.stores.sql.commit_queue import (
    ALONE_AFTER_COMMITS,
    COMMIT_COST,
    LEAST_SHARE_COST,
    MAX_QUEUED_MESSAGES,
    ROUND_COST,
    SHARE_COST,
    WHOLE_COST,
    CommitQueue,
    Piece,
    cost_of,
    sender_of,
)

USERS = ("ada", "bob", "eve")


class BatchOfUser(NamedTuple):
    """A batch, whose slots can be told from those of others."""

    slots: Sequence[Slot]

    def __repr__(self) -> str:
        return f"{len(self.slots)} of {self.slots[0].message.uid}"


def batch(user: str, messages: int, body: str = "") -> BatchOfUser:
    return BatchOfUser([Slot(create(user, "a", body)) for _ in range(messages)])


batches = st.builds(
    batch,
    st.sampled_from(USERS),
    st.sampled_from([1, 2, SHARE_COST, 3 * SHARE_COST]),
    st.sampled_from(["", "x" * 60_000]),
)


def commits_of(queue: CommitQueue[BatchOfUser]) -> list[list[Piece[BatchOfUser]]]:
    """All commits, until nothing waits."""
    commits = []
    while queue:
        commits.append(queue.take())
    return commits


def queue_of(sent: Sequence[BatchOfUser]) -> CommitQueue[BatchOfUser]:
    queue: CommitQueue[BatchOfUser] = CommitQueue()
    for each in sent:
        queue.add(each)
    return queue


@given(st.lists(batches, max_size=12))
def test_each_message_is_committed_once_and_those_of_a_user_in_their_order(
    sent: list[BatchOfUser],
) -> None:
    queue = queue_of(sent)
    committed = [s for pieces in commits_of(queue) for piece in pieces for s in piece.slots]
    for user in USERS:
        queued = [s for b in sent for s in b.slots if s.message.uid == user]
        assert [s for s in committed if s.message.uid == user] == queued
    assert queue.messages == 0


@given(st.lists(batches, max_size=12))
def test_last_piece_of_a_batch_is_the_one_that_ends_it(sent: list[BatchOfUser]) -> None:
    left = {id(each): len(each.slots) for each in sent}
    for piece in (piece for pieces in commits_of(queue_of(sent)) for piece in pieces):
        left[id(piece.batch)] -= len(piece.slots)
        assert piece.is_last == (left[id(piece.batch)] == 0)


def cost_by_user(pieces: Sequence[Piece[BatchOfUser]]) -> dict[str, list[int]]:
    """What the messages of each user cost."""
    costs: dict[str, list[int]] = {}
    for slot in (slot for piece in pieces for slot in piece.slots):
        costs.setdefault(slot.message.uid, []).append(cost_of(slot.message))
    return costs


@given(st.lists(batches, max_size=12))
def test_commit_has_of_each_user_about_a_share_while_others_wait(
    sent: list[BatchOfUser],
) -> None:
    most = SHARE_COST + WHOLE_COST
    for pieces in commits_of(queue_of(sent)):
        costs = cost_by_user(pieces)
        assert len(costs) <= 1 or all(sum(each[:-1]) < most for each in costs.values())


@pytest.mark.parametrize("users", [1, 2, 7, 8, 9, 40, 41, 90])
def test_commit_reaches_each_of_many_users_and_takes_a_round_of_them_at_most(users: int) -> None:
    queue = queue_of([batch(f"u{n}", 5 * SHARE_COST) for n in range(users)])
    costs = cost_by_user(queue.take())
    assert len(costs) == users
    if users > 1:
        assert sum(map(sum, costs.values())) <= max(ROUND_COST, users * LEAST_SHARE_COST)


def test_few_messages_that_were_sent_together_are_committed_together() -> None:
    queue = queue_of([batch(f"u{n}", WHOLE_COST) for n in range(100)] * 3)
    assert all(piece.is_last for pieces in commits_of(queue) for piece in pieces)


def test_few_messages_that_cost_more_are_committed_in_turns() -> None:
    puts = [Slot(put("ada", "a")) for _ in range(WHOLE_COST)]
    queue = queue_of([BatchOfUser(puts), *(batch(f"u{n}", 1) for n in range(100))])
    assert len(queue.take()[0].slots) == WHOLE_COST // 2


@given(st.lists(st.integers(1, WHOLE_COST), min_size=1, max_size=12))
def test_messages_sent_a_few_at_a_time_have_no_more_than_others(sizes: list[int]) -> None:
    """In a crowd whose shares are small: over all commits, a share of each, and one batch more."""
    crowd = [batch(f"u{n}", 100) for n in range(ROUND_COST // LEAST_SHARE_COST)]
    queue = queue_of([*(batch("eve", size) for size in sizes), *crowd])
    committed = 0
    for commits in range(1, 6):
        committed += sum(cost_by_user(queue.take()).get("eve", []))
        assert committed < commits * LEAST_SHARE_COST + WHOLE_COST


@given(st.lists(batches, max_size=12))
def test_user_who_comes_last_is_in_the_next_commit(sent: list[BatchOfUser]) -> None:
    queue = queue_of(sent)
    last = batch("victim", 1)
    queue.add(last)
    assert last in [piece.batch for piece in queue.take()]


@pytest.mark.parametrize("users", [1, 2, 7, 8, 9, 40, 41, 99, 100, 101, 150])
def test_every_user_has_a_turn_before_one_has_two(users: int) -> None:
    queue = queue_of([batch(f"u{n}", 2 * SHARE_COST) for n in range(users)])
    turns = [piece.slots[0].message.uid for pieces in commits_of(queue) for piece in pieces]
    rounds = [turns[start : start + users] for start in range(0, len(turns), users)]
    assert all(len(set(round_)) == users for round_ in rounds) or users == 1


def test_sender_who_is_alone_gets_a_whole_commit() -> None:
    assert len(queue_of([batch("ada", 5_000)]).take()[0].slots) == COMMIT_COST


def test_sender_who_is_alone_again_gets_a_whole_commit_after_some_time() -> None:
    queue = queue_of([batch("bob", 1), batch("ada", 20_000)])
    queue.take()
    sizes = [len(queue.take()[0].slots) for _ in range(ALONE_AFTER_COMMITS + 1)]
    assert sizes == [SHARE_COST] * (ALONE_AFTER_COMMITS) + [COMMIT_COST]


def dismissing(uid: str, ranges: int) -> InBandMessage:
    return InBandMessage(uid, "m", dismissal=Dismissal((), (Range("a"),) * ranges))


def test_message_that_costs_more_than_a_share_is_committed_all_the_same() -> None:
    heavy = dismissing("ada", 10_000)
    assert cost_of(heavy) > COMMIT_COST
    queue = queue_of([BatchOfUser([Slot(heavy)]), batch("bob", 1)])
    assert [len(pieces) for pieces in commits_of(queue)] == [2]


def heavy_of_each(users: int) -> list[BatchOfUser]:
    return [BatchOfUser([Slot(dismissing(f"eve {n}", 2_000))]) for n in range(users)]


def test_light_message_waits_for_no_heavy_ones_of_others() -> None:
    queue = queue_of([*heavy_of_each(50), batch("victim", 1)])
    assert "victim" in cost_by_user(queue.take())


def test_heavy_message_behind_a_light_one_has_no_earlier_turn() -> None:
    mixed = [Slot(create("ada", "a")), Slot(dismissing("ada", 2_000))]
    queue = queue_of([BatchOfUser(mixed), batch("bob", 1), *heavy_of_each(2)])
    costs = cost_by_user(queue.take())
    assert costs["ada"] == costs["bob"] == [1]


def test_each_commit_has_a_heavy_message_however_many_light_ones_wait() -> None:
    light = [batch(f"u{n}", 10 * SHARE_COST) for n in range(COMMIT_COST // LEAST_SHARE_COST)]
    queue = queue_of([*light, *heavy_of_each(5)])
    heavy = [uid for _ in range(5) for uid in cost_by_user(queue.take()) if uid.startswith("eve")]
    assert heavy == [f"eve {n}" for n in range(5)]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_who_had_more_than_a_share_waits_until_it_is_paid(ranges: list[int]) -> None:
    """Beside a user who always has something: over all commits so far, its share of each, and a
    few messages more."""
    heavy = [dismissing("eve", number) for number in ranges]
    costs, so_far = [cost_of(each) for each in heavy], 0
    enough = sum(costs) // SHARE_COST + 1 + len(heavy)  # a turn ends before a heavy one
    small = BatchOfUser([Slot(create("ada", "a"))] * (enough * SHARE_COST))
    queue = queue_of([small, BatchOfUser([Slot(each) for each in heavy])])
    for commits in range(1, enough + 1):
        so_far += sum(cost_by_user(queue.take()).get("eve", []))
        assert so_far < commits * SHARE_COST + WHOLE_COST + max(costs)
    assert so_far == sum(costs)


def test_who_waits_alone_in_debt_need_not_pay_it() -> None:
    queue = queue_of([BatchOfUser([Slot(dismissing(uid, 400))] * 3) for uid in ("ada", "eve")])
    assert all(commits_of(queue))


def test_ranges_cost_what_the_items_are_against_which_they_are_held() -> None:
    few = [create("ada", "a"), InBandMessage("ada", "m", dismissal=Dismissal(("i",), ()))]
    assert [cost_of(each, lambda uid: 20_000) for each in few] == [cost_of(each) for each in few]
    assert cost_of(dismissing("ada", 1), lambda uid: 20_000) > 3 * SHARE_COST
    assert cost_of(dismissing("ada", 1), lambda uid: 50) == cost_of(dismissing("ada", 1))
    items = {"eve": 20_000}
    queue: CommitQueue[BatchOfUser] = CommitQueue(lambda uid: items.get(uid, 0))
    for uid in ("ada", "bob", "eve"):
        queue.add(BatchOfUser([Slot(dismissing(uid, 1))] * 20))
    assert [len(piece.slots) for piece in queue.take()] == [20, 20, 1]


def test_message_with_a_key_costs_twice_as_much() -> None:
    """It may take the place of another one, which is looked up."""
    puts = [Slot(put("ada", "a")) for _ in range(5 * SHARE_COST)]
    queue = queue_of([BatchOfUser(puts), batch("bob", 1)])
    assert [len(piece.slots) for piece in queue.take()] == [SHARE_COST // 2, 1]


def test_messages_to_several_users_have_the_share_of_who_sends_them() -> None:
    to_many = [Slot(create(f"u{n}", "a"), "service:backend") for n in range(10 * SHARE_COST)]
    queue = queue_of([BatchOfUser(to_many), batch("ada", 1)])
    assert [len(piece.slots) for piece in queue.take()] == [SHARE_COST, 1]
    assert sender_of(to_many) == ("sender", "service:backend")


def test_what_one_sender_has_queued_does_not_keep_out_another() -> None:
    queue = queue_of([batch("eve", MAX_QUEUED_MESSAGES)])
    assert not queue.add(batch("eve", 1))
    assert queue.add(batch("ada", 1))


def test_rest_of_a_batch_that_has_failed_is_dropped() -> None:
    failed, later = batch("ada", 5 * SHARE_COST), batch("ada", 1)
    queue = queue_of([failed, later, batch("bob", 1)])
    queue.take()
    queue.drop(failed)
    assert [piece.batch for piece in queue.take()] == [later]
    assert queue.messages == 0
